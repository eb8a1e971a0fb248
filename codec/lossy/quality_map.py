"""Maps of qualities, as an encoder chooses them: one quality for each square of 16x16 pixels.

Nothing here decides what a bit means, so it may change without a new format.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.bitstream.container import MAX_QUALITY, REFINEMENT_QUALITY
from vbc.codec.lossy.latents import BLOCK
from vbc.codec.lossy.map_coding import (
    MAP_UNIT,
    SQUARE,
    SQUARE_BLOCKS,
    VALUE_LIMIT,
    on_blocks,
    qualities,
)

VARIANCE_FLOOR = 2.0
"""Variances below it, of pixel values squared, are no activity."""
BLACK = 4.0
"""Brightness below it, in pixel values, counts as black."""
ACTIVITY_SLOPE = 2.6
"""Units of quality that a square loses for each octave of activity: texture hides errors."""
BRIGHTNESS_SLOPE = 3.8
"""Units that it loses for each octave of brightness: pixel values are far apart for the eye where it is
dark."""
BAND_ROWS = 1024
"""Rows of pixels looked at together: multiples of a square."""


def activity_and_brightness(luma: Tensor) -> tuple[Tensor, Tensor]:
    """How much goes on in each square, and how bright it is, both in octaves: float [N, 1, h, w].

    luma: float [N, 1, H, W], 0..255. Activity is the logarithm of the variance in a block of 8x8, the mean of
    a square's four: an edge in one corner does not make a square busy.
    """
    height, width = luma.shape[-2:]
    padded = F.pad(luma, (0, -width % SQUARE, 0, -height % SQUARE), mode="replicate")
    mean = F.avg_pool2d(padded, BLOCK)
    variance = F.avg_pool2d(padded * padded, BLOCK) - mean * mean
    activity = torch.log2(variance.clamp_min(0) + VARIANCE_FLOOR)
    brightness = torch.log2(mean.clamp_min(BLACK))
    return F.avg_pool2d(activity, SQUARE_BLOCKS), F.avg_pool2d(brightness, SQUARE_BLOCKS)


@dataclass(frozen=True)
class QualityMap:
    """What qualities a picture is coded with.

    base: the header's, 0..100. values: int16 [1, 1, h, w] on squares of 16x16 pixels, in units of `MAP_UNIT`
    over the base; None: the base everywhere. refinements: how many follow, each of which adds
    `REFINEMENT_QUALITY` to all qualities.
    """

    base: int
    values: Tensor | None = None
    refinements: int = 0

    @property
    def final(self) -> int:
        """The base with all refinements."""
        return min(self.base + REFINEMENT_QUALITY * self.refinements, MAX_QUALITY)

    def refined(self, refinements: int) -> "QualityMap":
        """The same final quality in so many refinements, or in as many as a base of 0 or more allows."""
        count = min(refinements, self.final // REFINEMENT_QUALITY)
        return replace(self, base=self.final - REFINEMENT_QUALITY * count, refinements=count)

    def on_blocks(self, height: int, width: int, device: torch.device) -> Tensor:
        """Qualities of so many blocks without refinements, int32 [1, 1, height, width]."""
        if self.values is None:
            return torch.full((1, 1, height, width), self.base, dtype=torch.int32, device=device)
        return on_blocks(qualities(self.values.to(device).int(), self.base), height, width)


def values_for_the_eye(picture: Tensor) -> Tensor | None:
    """Values of a map for uint8 RGB [1, 3, H, W], on the host: coarser where much goes on, finer in the dark.

    Their mean is about 0. None where all are 0.
    """
    parts = [
        activity_and_brightness(picture[..., top : top + BAND_ROWS, :].float().mean(1, keepdim=True))
        for top in range(0, picture.shape[-2], BAND_ROWS)
    ]
    activity, brightness = (torch.cat(planes, 2) for planes in zip(*parts, strict=True))
    change = ACTIVITY_SLOPE * (activity.mean() - activity)
    change += BRIGHTNESS_SLOPE * (brightness.mean() - brightness)
    values = (change / MAP_UNIT).round().clamp(-VALUE_LIMIT, VALUE_LIMIT).to(torch.int16).cpu()
    return values if values.any() else None
