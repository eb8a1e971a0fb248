"""The networks as the decoder runs them: integers only (docs/format.md, section 8)."""

from dataclasses import dataclass
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
    """The layers of a phase that archival and layered files do not share.

    condition: biases of the first layer, int32 [1, width] (archival) or [101, width] by quality; of bins [3,
    8, width], by level class and bound, or [101, 8, width].
    """

    first: IntConv
    head: IntConv
    skip: IntConv
    condition: Tensor

    @classmethod
    def load(cls, tensors: Tensors, name: str, conditioned: bool = True, of_bins: bool = False) -> Self:
        """The ends exported under `name`. conditioned: else the first layer has its own bias alone."""
        first = load_conv(tensors, f"{name}.first")
        condition = tensors[f"{name}.condition"] if conditioned else first.bias[None]
        if of_bins:
            condition = condition[:, None] + tensors[f"{name}.bound"]
        first.check_biases(condition)
        head, skip = (load_conv(tensors, f"{name}.{part}", head=True) for part in ("head", "skip"))
        return cls(first, head, skip, condition)

    def to(self, device: torch.device) -> "PhaseEnds":
        """The ends on another device."""
        first, head, skip = (layer.to(device) for layer in (self.first, self.head, self.skip))
        return PhaseEnds(first, head, skip, self.condition.to(device))


@dataclass(frozen=True)
class PhaseNet:
    """A network of a phase: the ends of archival files, those of layered ones, and what both share.

    layered: of values one, as each level class has a network of its own; of bins one for each class.
    """

    archival: PhaseEnds
    layered: tuple[PhaseEnds, ...]
    second: IntConv
    third: IntConv

    @classmethod
    def load(cls, tensors: Tensors, name: str, of_bins: bool = False) -> Self:
        """The network exported under `name`."""
        parts = [f"layered{c}" for c in range(N_LEVEL_CLASSES)] if of_bins else ["layered"]
        return cls(
            archival=PhaseEnds.load(tensors, name, conditioned=of_bins, of_bins=of_bins),
            layered=tuple(PhaseEnds.load(tensors, f"{name}.{part}", of_bins=of_bins) for part in parts),
            second=load_conv(tensors, f"{name}.second"),
            third=load_conv(tensors, f"{name}.third"),
        )

    def to(self, device: torch.device) -> "PhaseNet":
        """The network on another device."""
        layered = tuple(ends.to(device) for ends in self.layered)
        return PhaseNet(self.archival.to(device), layered, self.second.to(device), self.third.to(device))


@dataclass(frozen=True)
class IntPhase:
    """Entropy parameters of one phase of the exact levels, of values by level class, and of bins.

    surprise: int16 [2, 9], sixteenths of an octave, for the host; a device has a copy (`ExactModel.maps`).
    """

    values: tuple[PhaseNet, ...]
    bins: PhaseNet
    surprise: Tensor

    @classmethod
    def load(cls, tensors: Tensors, phase: str) -> Self:
        """A phase's networks. Raises ValueError where those of its level classes differ in width."""
        nets = tuple(PhaseNet.load(tensors, f"exact.{phase}{c}") for c in range(N_LEVEL_CLASSES))
        bins = PhaseNet.load(tensors, f"exact.{phase}.bins", of_bins=True)
        widths = {net.third.weight.shape[0] for net in (*nets, bins)}
        if len(widths) > 1:
            raise ValueError(f"networks of phase {phase} have {sorted(widths)} channels")
        return cls(nets, bins, tensors[f"exact.{phase}.surprise"])

    def to(self, device: torch.device) -> "IntPhase":
        """The networks on another device."""
        return IntPhase(tuple(net.to(device) for net in self.values), self.bins.to(device), self.surprise)

    @property
    def width(self) -> int:
        """Channels of the last hidden layer."""
        return self.bins.third.weight.shape[0]

    def __call__(
        self, planes: Tensor, lossy: Tensor | None, level_class: int, quality: int, bound: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Last hidden layer, uint8 [N, width, h, w], and parameters, int32 [N, 9, h, w].

        planes: int [N, C, h+6, w+6]; lossy: int [N, 12, h+6, w+6], or None in an archival file. bound: of
        bins, 1 to 8, or 0 for values.
        Parameters: mean offsets in sixteenths, log2 scales in sixteenths of an octave, coefficients in 64ths.
        """
        net = self.bins if bound else self.values[level_class]
        if lossy is None:
            ends, bias = net.archival, net.archival.condition[level_class if bound else 0]
        else:
            ends = net.layered[level_class if bound else 0]
            bias = ends.condition[quality]
            planes = torch.cat((planes, lossy), 1)
        if bound:
            bias = bias[bound - 1]
        x = as_input(planes)
        features = net.third(net.second(ends.first(x, bias, proven=True)))
        h, w = x.shape[-2:]
        return features, ends.head(features) + ends.skip(x[..., 2 : h - 2, 2 : w - 2])
