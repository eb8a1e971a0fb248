"""What the exact levels need of a model, and what tunes it to one image."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vbc.codec.nets.int_nets import N_LEVEL_CLASSES, IntChain, IntPhase, Tensors
from vbc.kernels.conv import IntConv
from vbc.kernels.predict import PredictMaps

OUTPUTS = 6
"""Tuned outputs of a phase: three means, three log-scales."""
MAX_DIRECTIONS = 64
"""So many directions of the largest vectors and symbols cannot overflow 32 bits."""


@dataclass(frozen=True)
class ValuesModel:
    """What values that follow bins need: networks by phase, and the first of their tables."""

    chains: dict[str, IntChain]
    first_table: int

    def to(self, device: torch.device) -> "ValuesModel":
        """The same on another device."""
        return ValuesModel({p: chain.to(device) for p, chain in self.chains.items()}, self.first_table)


@dataclass(frozen=True)
class TuningBasis:
    """In what basis the corrections that tune a phase to an image are coded, by level class.

    vectors: int32 [3 classes, 6 outputs, corrections, directions], in 2^-`VECTOR_SHIFT` of a correction's
    unit. scales: int16 [3, 6, directions], how widely a direction's symbols are spread, in half octaves from
    the narrowest tuning table on.
    """

    vectors: Tensor
    scales: Tensor

    @classmethod
    def load(cls, tensors: Tensors, phase: str, width: int) -> Self:
        """That of a phase with last hidden layers of a width. Raises ValueError for wrong shapes."""
        vectors, scales = (tensors[f"exact.{phase}.tuning.{name}"] for name in ("vectors", "scales"))
        around = n_around(phase)
        n = scales.shape[-1]
        if vectors.shape != (N_LEVEL_CLASSES, OUTPUTS, width + 1 + around + 2, n) or n > MAX_DIRECTIONS:
            raise ValueError(f"the tuning of phase {phase} has vectors {list(vectors.shape)}")
        if scales.shape != (*vectors.shape[:2], n):
            raise ValueError(f"the tuning of phase {phase} has scales {list(scales.shape)}")
        there = torch.ones((OUTPUTS, width + 1 + around + 2, 1), dtype=torch.int32)
        there[:, width + 1 :, 0] = used_slopes(around).flatten(0, 1).int()
        return cls(vectors.int() * there, scales)

    def to(self, device: torch.device) -> "TuningBasis":
        """The same on another device."""
        return TuningBasis(self.vectors.to(device), self.scales.to(device))


@dataclass(frozen=True)
class ExactModel:
    """The phases' networks and look-up tables, of values and of bins, by phase, the bases of their tuned
    corrections, and the first of the tables of those."""

    phases: dict[str, IntPhase]
    maps: dict[str, PredictMaps]
    bin_maps: dict[str, PredictMaps]
    values: ValuesModel
    tuning: dict[str, TuningBasis]
    tuning_table: int

    def to(self, device: torch.device) -> "ExactModel":
        """The same on another device."""
        phases = {p: net.to(device) for p, net in self.phases.items()}
        maps, bin_maps = ({p: m.to(device) for p, m in of.items()} for of in (self.maps, self.bin_maps))
        tuning, values = {p: basis.to(device) for p, basis in self.tuning.items()}, self.values.to(device)
        return replace(self, phases=phases, maps=maps, bin_maps=bin_maps, values=values, tuning=tuning)


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


def used_slopes(around: int) -> Tensor:
    """Which slopes there are: bool [2 (mean, log-scale), 3 channels, around + 2].

    A mean follows what is around it (`n_around`) and the channels before, a log-scale those channels.
    """
    used = torch.zeros((2, 3, around + 2), dtype=torch.bool)
    used[0, :, :around] = True
    for c in range(3):
        used[:, c, around : around + c] = True
    return used
