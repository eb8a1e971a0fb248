"""Maps of qualities, as an encoder chooses them: one quality for each square of 16x16 pixels.

Nothing here decides what a bit means, so it may change without a new format.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.bitstream.container import MAX_QUALITY, REFINEMENT_QUALITY
from vbc.codec.lossy.latents import BLOCK, latent_grid
from vbc.codec.lossy.map_coding import (
    MAP_UNIT,
    SQUARE,
    SQUARE_BLOCKS,
    VALUE_LIMIT,
    map_size,
    on_blocks,
    qualities,
)
from vbc.codec.regions import Region

VARIANCE_FLOOR = 2.0
"""Variances below it, of pixel values squared, are no activity."""
BLACK = 4.0
"""Brightness below it, in pixel values, counts as black."""
ACTIVITY_SLOPE = 2.1
"""Units of quality that a square loses for each octave of activity: texture hides errors."""
BRIGHTNESS_SLOPE = 3.0
"""Units that it loses for each octave of brightness: pixel values are far apart for the eye where it is
dark."""
CLAMPED_SHARE = 1 / 50
"""Squares that may need a quality below 0 before refinements, which they cannot have: they get finer than
they should be in the end (docs/decisions/0009-refinement.md)."""
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
        """The same final quality in so many refinements, or in as many as a base of 0 or more allows.

        With a map fewer, so that hardly any square (`CLAMPED_SHARE`) would need a quality below 0 at first.
        """
        count = min(refinements, self._lowest() // REFINEMENT_QUALITY)
        return replace(self, base=self.final - REFINEMENT_QUALITY * count, refinements=count)

    def _lowest(self) -> int:
        """The final quality that all squares have but for a few, 0 at least."""
        if self.values is None:
            return self.final
        values = self.values.flatten().sort().values
        lowest = int(values[min(int(len(values) * CLAMPED_SHARE), len(values) - 1)])
        return max(0, min(self.final, self.final + MAP_UNIT * lowest))

    def on_blocks(self, height: int, width: int, device: torch.device) -> Tensor:
        """Qualities of so many blocks without refinements, int32 [1, 1, height, width]."""
        if self.values is None:
            return torch.full((1, 1, height, width), self.base, dtype=torch.int32, device=device)
        return on_blocks(qualities(self.values.to(device).int(), self.base), height, width)


def change_for_the_eye(picture: Tensor) -> Tensor:
    """By how much the quality of squares should differ from the base: float32 [1, 1, h, w] on the host.

    picture: uint8 RGB [1, 3, H, W]. Coarser where much goes on, finer in the dark; the mean is 0.
    """
    parts = [
        activity_and_brightness(picture[..., top : top + BAND_ROWS, :].float().mean(1, keepdim=True))
        for top in range(0, picture.shape[-2], BAND_ROWS)
    ]
    activity, brightness = (torch.cat(planes, 2) for planes in zip(*parts, strict=True))
    change = ACTIVITY_SLOPE * (activity.mean() - activity)
    change += BRIGHTNESS_SLOPE * (brightness.mean() - brightness)
    return change.cpu()


def map_of_quality(quality: float, changes: Tensor) -> QualityMap:
    """The map with changes, float [1, 1, h, w], about a quality of 0 to 100 that need not be whole.

    The header's is the nearest whole one. The rest is made up by moving some values by one: those of the
    squares that rounding has moved the other way most; among equals, of the first ones.
    """
    base = round(quality)
    exact = changes / MAP_UNIT
    values = exact.round()
    missing = (quality - base) / MAP_UNIT
    n_moved = round(abs(missing) * values.numel())
    order = torch.argsort((exact - values).flatten(), descending=missing > 0, stable=True)
    values.view(-1)[order[:n_moved]] += 1 if missing > 0 else -1
    return QualityMap(base, limited(values))


def as_values(change: Tensor) -> Tensor | None:
    """Values of a map, int16, of what `change_for_the_eye` returns; None where all are 0."""
    return limited((change / MAP_UNIT).round())


def values_for_the_eye(picture: Tensor) -> Tensor | None:
    """The map of qualities that is made from the original alone: values as `QualityMap` has them."""
    return as_values(change_for_the_eye(picture))


def limited(values: Tensor) -> Tensor | None:
    """Values of a map as int16, within their limits; None where all are 0."""
    values = values.clamp(-VALUE_LIMIT, VALUE_LIMIT).to(torch.int16)
    return values if values.any() else None


def squares_touched(boxes: Iterable[Region], height: int, width: int) -> Tensor:
    """The squares of a picture of so many pixels that share a pixel with a rectangle: bool [1, 1, h, w]."""
    touched = torch.zeros((1, 1, *map_size(*latent_grid(height, width))), dtype=torch.bool)
    for x, y, w, h in boxes:
        touched[..., y // SQUARE : -(-(y + h) // SQUARE), x // SQUARE : -(-(x + w) // SQUARE)] = True
    return touched


def finer_inside(quality: QualityMap, gain: int, inside: Tensor) -> QualityMap:
    """The map with about `gain` units of quality more, none at least, in some squares.

    inside: bool [1, 1, h, w]. The base, and so the quality outside, stays.
    """
    steps = max(0, round(gain / MAP_UNIT))
    values = inside * steps if quality.values is None else quality.values + inside * steps
    return replace(quality, values=limited(values))
