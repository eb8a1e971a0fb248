"""What the exact levels need of a model, and what tunes it to one image."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vbc.codec.nets.int_nets import IntChain, IntPhase
from vbc.kernels.conv import IntConv
from vbc.kernels.predict import PredictMaps


@dataclass(frozen=True)
class ValuesModel:
    """What values that follow bins need: networks by phase, and the first of their tables."""

    chains: dict[str, IntChain]
    first_table: int

    def to(self, device: torch.device) -> "ValuesModel":
        """The same on another device."""
        return ValuesModel({p: chain.to(device) for p, chain in self.chains.items()}, self.first_table)


@dataclass(frozen=True)
class ExactModel:
    """The phases' networks and look-up tables, of values and of bins, by phase, and the table of tuned
    corrections."""

    phases: dict[str, IntPhase]
    maps: dict[str, PredictMaps]
    bin_maps: dict[str, PredictMaps]
    values: ValuesModel
    tuning_table: int

    def to(self, device: torch.device) -> "ExactModel":
        """The same on another device."""
        phases = {p: net.to(device) for p, net in self.phases.items()}
        maps, bin_maps = ({p: m.to(device) for p, m in of.items()} for of in (self.maps, self.bin_maps))
        return replace(self, phases=phases, maps=maps, bin_maps=bin_maps, values=self.values.to(device))


@dataclass(frozen=True)
class Tuning:
    """What tunes the outputs of a phase to one image.

    layer: corrections of three means and three log-scales from the last hidden layer. around: int32
    [`n_around`, 3], how a channel's mean follows the prior errors around it (`NEIGHBOURS`), then single known
    pixels (`TAPS`). before: int32 [2, 3, 2], how its mean follows the residuals of the channels before, and
    its log-scale their ratios to their scales. Slopes are in 256ths.
    """

    layer: IntConv
    around: Tensor
    before: Tensor


NEIGHBOURS: dict[str, tuple[tuple[tuple[str, int, int], ...], ...]] = {
    "D": ((("A", 0, 0), ("A", 0, 1), ("A", 1, 0), ("A", 1, 1)),),
    "H": ((("A", 0, 0), ("A", 0, 1)), (("D", -1, 0), ("D", 0, 0))),
    "V": (
        (("A", 0, 0), ("A", 1, 0)),
        (("D", 0, -1), ("D", 0, 0)),
        (("H", 0, -1), ("H", 0, 0), ("H", 1, -1), ("H", 1, 0)),
    ),
}
"""Groups of neighbours of a pixel whose prior errors tuned means follow: plane, rows down, columns right."""

TAPS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "D": tuple(("A", y, x) for y in range(-1, 3) for x in range(-1, 3) if 0 <= y <= 1 or 0 <= x <= 1),
    "H": (
        *(("A", y, x) for y in range(-1, 2) for x in range(2)),
        *(("D", y, x) for y in range(-1, 1) for x in range(-1, 2)),
    ),
    "V": (
        *(("A", y, x) for y in range(2) for x in range(-1, 2)),
        *(("D", y, x) for y in range(-1, 2) for x in range(-1, 1)),
        *(("H", y, x) for y in range(2) for x in range(-1, 1)),
    ),
}
"""Known pixels around one of a phase whose differences to its base tuned means follow: plane, rows down,
columns right. What a linear predictor fitted to the image would see."""


def n_around(phase: str) -> int:
    """Of how many kinds of things around a pixel a tuned mean follows its channel's."""
    return len(NEIGHBOURS[phase]) + len(TAPS[phase])
