"""Bins before values: the exact grids in steps of 2 bound + 1 of G, R and B (docs/format.md, section 11.7).

A symbol says how many steps a sample lies from its rounded mean. So no decoded sample is further from the
picture than the bound, and all that follows sees the decoded ones.
"""

import torch
from torch import Tensor

from vbc.bitstream.container import MAX_BOUND
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.kernels.predict import FRACTIONS, LOG_SCALE_MIN, ChannelPredictor, Corrections, PredictMaps

STEP_OCTAVES = (0, 25, 37, 45, 51, 55, 59, 63, 65)
"""Sixteenths of an octave of 2 bound + 1, by bound."""
CHANNELS = (1, 0, 2)
"""G, R and B among R, G and B, and R, G and B among G, R and B."""

assert len(STEP_OCTAVES) == MAX_BOUND + 1


def bins_base(base: Tensor) -> Tensor:
    """The base in G, R and B: int16 [N, 3, h, w] of one in Y, Co and Cg. Modulo 2^16."""
    y, co, cg = base.unbind(1)
    middle = y - (cg >> 1)
    blue = middle - (co >> 1)
    return torch.stack((cg + middle, blue + co, blue), 1)


def bins_pixels(rgb: Tensor) -> Tensor:
    """G, R and B, int16 [N, 3, h, w], of uint8 RGB."""
    return rgb[:, CHANNELS].to(torch.int16)


def seen_pixels(channels: Tensor) -> Tensor:
    """What networks see of G, R and B of 0 to 255, int16 [N, 3, h, w]: Y, Co and Cg likewise."""
    return rgb_to_ycocg(channels[:, CHANNELS].to(torch.uint8))


class BinPredictor(ChannelPredictor):
    """Tables and rounded means of G, R, B in steps of 2 bound + 1, as `ChannelPredictor` of Y, Co, Cg."""

    lows = (0, 0, 0)

    def __init__(self, base: Tensor, out: Tensor, tuned: Corrections | None, maps: PredictMaps, bound: int):
        super().__init__(base, out, tuned, maps)
        self._bound, self._step = bound, 2 * bound + 1
        self._predicted: list[tuple[Tensor, Tensor]] = []
        """Mean and log2 scale of each channel, corrections included."""

    def tables(self) -> tuple[Tensor, Tensor]:
        """Table and rounded mean of the next channel: int16 [P] each. Scale and fraction count in steps."""
        mean, scale = self.predict()
        self._predicted.append((mean, scale))
        rounded = (mean + 8) >> 4
        fraction = (2 * (mean - 16 * rounded) + self._step).div_(2 * self._step, rounding_mode="floor")
        scale = (scale - STEP_OCTAVES[self._bound]).clamp_(min=LOG_SCALE_MIN)
        key = FRACTIONS * (scale - LOG_SCALE_MIN) + fraction + FRACTIONS // 2
        return self._maps.tables[len(self._values)].index_select(0, key), rounded.to(torch.int16)

    def symbols(self, wanted: Tensor, rounded: Tensor) -> Tensor:
        """The bins of samples int16 [P], whose middles are no further from them than the bound."""
        away = wanted - rounded + self._bound
        return away.div_(self._step, rounding_mode="floor")

    def values(self, rounded: Tensor, symbols: Tensor) -> Tensor:
        """The middles of bins, limited to samples: int16 [P]."""
        middles = symbols.int().mul_(self._step).add_(rounded)
        return middles.clamp_(0, 255).to(torch.int16)

    def predictions(self) -> tuple[Tensor, Tensor]:
        """What the bins were predicted with, of all channels: int8 [3, P] each, as `groups.Predictions`."""
        means, scales = (torch.stack(part) for part in zip(*self._predicted, strict=True))
        offsets = means.sub_(16 * torch.stack(self._values)).clamp_(-128, 127)
        return offsets.to(torch.int8), scales.to(torch.int8)
