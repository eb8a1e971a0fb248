"""The networks as the decoder runs them: integers only (docs/format.md, section 8)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from vbc.kernels.conv import IntConv
from vbc.kernels.dispatch import known_answer

Tensors = dict[str, Tensor]
"""The tensors of a weights file, by name."""
ZERO = 64
"""The integer that networks see for an input of 0: inputs are -64..63, layers take 0..127."""
N_LEVEL_CLASSES = 3
"""Kinds of grids that the exact levels' networks tell apart: the finest, the second, all coarser ones."""


def load_conv(tensors: Tensors, name: str, head: bool = False) -> IntConv:
    """The layer exported under `name`."""
    return IntConv(tensors[f"{name}.weight"], tensors[f"{name}.bias"], tensors[f"{name}.shift"], head)


def as_input(planes: Tensor) -> Tensor:
    """Planes of integers -64..63 as the uint8 0..127 that layers take, channels last."""
    return planes.to(torch.uint8, memory_format=torch.channels_last).add_(ZERO)  # wraps modulo 256


def exact_product(x: Tensor, basis: Tensor) -> Tensor:
    """x @ basis of integers in float64: [..., n] times [n, n].

    Exact in any order of summation, as all sums are below 2^53. On other devices than the CPU a known-answer
    test guards it; where that fails the CPU does the work.
    """
    if x.device.type == "cuda" and not known_answer(
        "the float64 matrix product", (str(x.device),), partial(_product_agrees, x.device)
    ):
        return (x.cpu() @ basis.cpu()).to(x.device)
    return x @ basis


def _product_agrees(device: torch.device) -> bool:
    """Latents of 16 bits times a basis of 13, the largest sums included, against int64."""
    noise = (torch.arange(67 * 64 + 64 * 64) * 2654435761) >> 5
    x, basis = noise[: 67 * 64].view(67, 64) % 65536 - 32768, noise[67 * 64 :].view(64, 64) % 8192 - 4096
    x[0], basis[:, 0] = -32768, -4096
    have = x.double().to(device) @ basis.double().to(device)
    return torch.equal(have.cpu().long(), x @ basis)


@dataclass(frozen=True)
class IntChain:
    """Hidden 3x3 layers and a head. condition: the first layer's bias by use, int32 [uses, width]."""

    layers: tuple[IntConv, ...]
    head: IntConv
    condition: Tensor

    @classmethod
    def load(cls, tensors: Tensors, name: str) -> Self:
        """The chain exported under `name`."""
        n = sum(f"{name}.{i}.weight" in tensors for i in range(16))
        layers = tuple(load_conv(tensors, f"{name}.{i}") for i in range(n))
        condition = tensors[f"{name}.condition"]
        layers[0].check_biases(condition)
        return cls(layers, load_conv(tensors, f"{name}.head", head=True), condition)

    def to(self, device: torch.device) -> "IntChain":
        """The chain on another device."""
        layers = tuple(layer.to(device) for layer in self.layers)
        return IntChain(layers, self.head.to(device), self.condition.to(device))

    @property
    def radius(self) -> int:
        """Positions lost on each side."""
        return len(self.layers) + self.head.weight.shape[-1] // 2

    def __call__(self, planes: Tensor, use: int = 0) -> Tensor:
        """planes: int -64..63 [N, C, h+2r, w+2r]. Returns int32 [N, outputs, h, w], sixteenths."""
        x = self.layers[0](as_input(planes), self.condition[use], proven=True)
        for layer in self.layers[1:]:
            x = layer(x)
        return self.head(x)


@dataclass(frozen=True)
class PhaseEnds:
    """The layers of a phase that archival and layered files, values and bins do not share.

    condition: biases of the first layer, int32 [3, width] by level class (archival) or [101, width] by
    quality; of bins [3, 8, width] or [101, 8, width], by bound too.
    """

    first: IntConv
    head: IntConv
    skip: IntConv
    condition: Tensor

    @classmethod
    def load(cls, tensors: Tensors, name: str, of_bins: bool) -> Self:
        """The ends exported under `name`."""
        ends = cls(
            first=load_conv(tensors, f"{name}.first"),
            head=load_conv(tensors, f"{name}.head", head=True),
            skip=load_conv(tensors, f"{name}.skip", head=True),
            condition=tensors[f"{name}.condition"],
        )
        if of_bins:
            condition = ends.condition[:, None] + tensors[f"{name}.bound"]
            ends = replace(ends, condition=condition)
        ends.first.check_biases(ends.condition)
        return ends

    def to(self, device: torch.device) -> "PhaseEnds":
        """The ends on another device."""
        first, head, skip = (layer.to(device) for layer in (self.first, self.head, self.skip))
        return PhaseEnds(first, head, skip, self.condition.to(device))


@dataclass(frozen=True)
class AllEnds:
    """Those of archival files, and by level class those of layered ones."""

    archival: PhaseEnds
    layered: tuple[PhaseEnds, ...]

    @classmethod
    def load(cls, tensors: Tensors, name: str, of_bins: bool) -> Self:
        """Those exported under `name`."""
        layered = (PhaseEnds.load(tensors, f"{name}.layered{c}", of_bins) for c in range(N_LEVEL_CLASSES))
        return cls(PhaseEnds.load(tensors, name, of_bins), tuple(layered))

    def to(self, device: torch.device) -> "AllEnds":
        """The same on another device."""
        return AllEnds(self.archival.to(device), tuple(ends.to(device) for ends in self.layered))


@dataclass(frozen=True)
class IntPhase:
    """Entropy parameters of one phase of the exact levels, of values and of bins.

    surprise: int16 [2, 9], sixteenths of an octave, for the host; a device has a copy (`ExactModel.maps`).
    """

    values: AllEnds
    bins: AllEnds
    second: IntConv
    third: IntConv
    surprise: Tensor

    @classmethod
    def load(cls, tensors: Tensors, name: str) -> Self:
        """The phase exported under `name`."""
        return cls(
            values=AllEnds.load(tensors, name, of_bins=False),
            bins=AllEnds.load(tensors, f"{name}.bins", of_bins=True),
            second=load_conv(tensors, f"{name}.second"),
            third=load_conv(tensors, f"{name}.third"),
            surprise=tensors[f"{name}.surprise"],
        )

    def to(self, device: torch.device) -> "IntPhase":
        """The networks on another device."""
        ends = self.values.to(device), self.bins.to(device)
        return IntPhase(*ends, self.second.to(device), self.third.to(device), self.surprise)

    @property
    def width(self) -> int:
        """Channels of the last hidden layer."""
        return self.third.weight.shape[0]

    def __call__(
        self, planes: Tensor, lossy: Tensor | None, level_class: int, quality: int, bound: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Last hidden layer, uint8 [N, width, h, w], and parameters, int32 [N, 9, h, w].

        planes: int [N, C, h+6, w+6]; lossy: int [N, 12, h+6, w+6], or None in an archival file. bound: of
        bins, 1 to 8, or 0 for values.
        Parameters: mean offsets in sixteenths, log2 scales in sixteenths of an octave, coefficients in 64ths.
        """
        kind = self.bins if bound else self.values
        if lossy is None:
            ends, bias = kind.archival, kind.archival.condition[level_class]
        else:
            ends, bias = kind.layered[level_class], kind.layered[level_class].condition[quality]
            planes = torch.cat((planes, lossy), 1)
        if bound:
            bias = bias[bound - 1]
        x = as_input(planes)
        features = self.third(self.second(ends.first(x, bias, proven=True)))
        h, w = x.shape[-2:]
        return features, ends.head(features) + ends.skip(x[..., 2 : h - 2, 2 : w - 2])
