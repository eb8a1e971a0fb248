"""The networks as the decoder runs them: integers only (docs/format.md, "Networks")."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from vbc.codec.quantise import ZERO, Tensors
from vbc.kernels.conv import IntConv


def load_conv(tensors: Tensors, name: str, head: bool = False) -> IntConv:
    """The layer exported under `name`."""
    return IntConv(tensors[f"{name}.weight"], tensors[f"{name}.bias"], tensors[f"{name}.shift"], head)


def as_input(planes: Tensor) -> Tensor:
    """Planes of integers -64..63 as the uint8 0..127 that layers take, channels last."""
    return planes.to(torch.uint8, memory_format=torch.channels_last).add_(ZERO)  # wraps modulo 256


@dataclass(frozen=True)
class IntChain:
    """Hidden 3x3 layers and a head; the first bias comes from a table over use and quality."""

    layers: tuple[IntConv, ...]
    head: IntConv
    condition: Tensor

    @classmethod
    def load(cls, tensors: Tensors, name: str) -> Self:
        """The chain exported under `name`."""
        n = sum(f"{name}.{i}.weight" in tensors for i in range(16))
        layers = tuple(load_conv(tensors, f"{name}.{i}") for i in range(n))
        return cls(layers, load_conv(tensors, f"{name}.head", head=True), tensors[f"{name}.condition"])

    @property
    def radius(self) -> int:
        """Positions lost on each side."""
        return len(self.layers) + self.head.weight.shape[-1] // 2

    def __call__(self, planes: Tensor, quality: int, use: int = 0) -> Tensor:
        """planes: int -64..63 [N, C, h+2r, w+2r]. Returns int32 [N, outputs, h, w], sixteenths."""
        x = self.layers[0](as_input(planes), self.condition[use, quality])
        for layer in self.layers[1:]:
            x = layer(x)
        return self.head(x)


@dataclass(frozen=True)
class IntPhase:
    """Entropy parameters of one phase of the exact levels."""

    first: IntConv
    layered: IntConv
    second: IntConv
    third: IntConv
    head: IntConv
    skip: IntConv
    condition: Tensor
    layered_condition: Tensor
    surprise: Tensor

    @classmethod
    def load(cls, tensors: Tensors, name: str) -> Self:
        """The phase exported under `name`."""
        return cls(
            first=load_conv(tensors, f"{name}.first"),
            layered=load_conv(tensors, f"{name}.layered"),
            second=load_conv(tensors, f"{name}.second"),
            third=load_conv(tensors, f"{name}.third"),
            head=load_conv(tensors, f"{name}.head", head=True),
            skip=load_conv(tensors, f"{name}.skip", head=True),
            condition=tensors[f"{name}.condition"],
            layered_condition=tensors[f"{name}.layered_condition"],
            surprise=tensors[f"{name}.surprise"],
        )

    def features(self, planes: Tensor, level_class: int, lossy: Tensor | None, quality: int) -> Tensor:
        """Last hidden layer, uint8 [N, width, h, w].

        planes: int [N, C, h+6, w+6]; lossy: int [N, 12, h+6, w+6] or None.
        """
        if lossy is None:
            x = self.first(as_input(planes), self.condition[level_class])
        else:
            both = as_input(torch.cat((planes, lossy), 1))
            x = self.layered(both, self.layered_condition[level_class, quality])
        return self.third(self.second(x))

    def parameters(self, features: Tensor, planes: Tensor) -> Tensor:
        """Mean offsets, log2 scales and coefficients: int32 [N, 9, h, w].

        In sixteenths, sixteenths of an octave, and 64ths.
        """
        h, w = planes.shape[-2:]
        return self.head(features) + self.skip(as_input(planes[..., 2 : h - 2, 2 : w - 2]))
