"""A PixelCNN of independent square blocks: pixels within a block follow each other, blocks know nothing of
each other.

Thesis on patch-VAEs, section 5: p(x|z) = prod_b prod_{t in b, raster} p(x_t | x_{<t in b}, z). The blocks
lie in the batch axis, so all of an image are computed, and decoded, at once: side^2 steps whatever the
image's size. The masked convolution is `kernels.research.masked_conv` with the order `patches(side)`.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts.blocks import Output
from vbc.kernels.dispatch import use_triton
from vbc.kernels.research.masked_conv import Order, masked_conv, patches

L = TypeVar("L", bound=Any)
N_LAYERS = 3
"""Masked convolutions: one of type A, then type B."""
Draw = Callable[[Tensor], Tensor]
"""From parameters [N, maps, 1, 1] to pixels: uint8 [N, C, 1, 1]."""


def to_blocks(x: Tensor, side: int) -> Tensor:
    """[N, C, H, W] to [N * H/side * W/side, C, side, side], line by line within an image.

    Raises ValueError where the sides do not divide.
    """
    n, c, h, w = x.shape
    if h % side or w % side:
        raise ValueError(f"blocks of {side} do not tile {h} x {w}")
    tiles = x.view(n, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(-1, c, side, side)


def from_blocks(blocks: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `to_blocks`, for images of height x width."""
    _, c, side, _ = blocks.shape
    tiles = blocks.reshape(-1, height // side, width // side, c, side, side)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, height, width)


def block_conv(x: Tensor, weight: Tensor, bias: Tensor, order: Order, kind: str) -> Tensor:
    """`masked_conv` for x: float32 [N, C, side, side] of single blocks and order = patches(side), or any x
    and RASTER.

    On the CPU a dense convolution with the weight masked: the zeros around a block are then the neighbours
    that it must not see. The function is the same; a training step takes 2 to 13 times less time than by
    gathered taps, which are too few to fill a matrix product.
    """
    if use_triton(x):
        return masked_conv(x, weight, bias, order, kind)
    mask = _raster_mask(weight.shape[-1], kind).to(weight.device)
    return F.conv2d(x, weight * mask, bias, padding=weight.shape[-1] // 2)


@lru_cache(maxsize=16)
def _raster_mask(k: int, kind: str) -> Tensor:
    """Which taps of a k x k kernel come before the centre line by line; type B has the centre too. [k, k]."""
    before = torch.zeros(k * k)
    before[: k * k // 2 + (kind == "B")] = 1
    return before.view(k, k)


def keep_scale(layer: L, n_inputs: int) -> L:
    """Draw a layer's weight anew so that a ReLU and the layer keep the scale of their input; its bias is 0.

    n_inputs: values that one output is a sum of. torch's own start counts other ones for masked and
    transposed convolutions and is several times smaller: what z says would be lost on the way to the pixels.
    """
    nn.init.normal_(layer.weight, std=math.sqrt(2 / n_inputs))
    nn.init.zeros_(layer.bias)
    return layer


class BlockConv(nn.Module):
    """A masked convolution of k x k over single blocks."""

    def __init__(self, c_in: int, c_out: int, k: int, order: Order, kind: str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, k, k))
        self.bias = nn.Parameter(torch.empty(c_out))
        self.order, self.kind, self.reach = order, kind, k // 2
        keep_scale(self, c_in * int(_raster_mask(k, kind).sum()))

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, side, side] to [N, c_out, side, side]."""
        return block_conv(x, self.weight, self.bias, self.order, self.kind)


class LocalPixelCNN(nn.Module):
    """Parameters of each pixel's distribution from the earlier pixels of its block and from features of z.

    A layer of type A (3x3, 5x5 for blocks of 5), two of type B, the features added in each; weights are
    shared by all blocks. side: of a block. channels: of the pixels. features: planes of h. start: what a
    pixel's parameters are before training, [n_maps]. order: RASTER makes it a PixelCNN of whole images.
    `reach`: how many rows above and columns beside a pixel its parameters may depend on.
    """

    def __init__(
        self,
        side: int,
        channels: int,
        features: int,
        start: Tensor,
        width: int = 32,
        order: Order | None = None,
    ):
        super().__init__()
        self.side, self.channels, self.features = side, channels, features
        order = order or patches(side)
        first = BlockConv(channels, width, 5 if side >= 5 else 3, order, "A")
        layers = [first, *(BlockConv(width, width, 3, order, "B") for _ in range(N_LAYERS - 1))]
        self.reach = sum(layer.reach for layer in layers)
        self.layers = nn.ModuleList(layers)
        self.condition = keep_scale(nn.Conv2d(features, N_LAYERS * width, 1), features)
        hidden = keep_scale(nn.Conv2d(width, 2 * width, 1), width)
        self.to_maps = nn.Sequential(nn.ReLU(), hidden, nn.ReLU(), Output(2 * width, start, 1))
        self.linear = Output(width, torch.zeros_like(start), 1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """x: uint8 blocks [N, C, side, side]. h: float32 [N, features, side, side]. Returns [N, n_maps,
        side, side]."""
        first, *rest = zip(self.layers, self.condition(h).chunk(len(self.layers), 1), strict=True)
        y = first[0](x.float() / 127.5 - 1) + first[1]
        for layer, condition in rest:
            y = y + layer(F.relu(y)) + condition
        maps: Tensor = self.to_maps(y) + self.linear(y)
        return maps

    @torch.no_grad()
    def sample(self, h: Tensor, draw: Draw) -> Tensor:
        """Blocks drawn pixel by pixel, uint8 [N, C, side, side], from features [N, features, side, side]."""
        x = torch.zeros((h.shape[0], self.channels, self.side, self.side), dtype=torch.uint8, device=h.device)
        for a in range(self.side):
            known, features = x[:, :, : a + 1], h[:, :, : a + 1]  # rows below are not looked at
            for b in range(self.side):
                x[:, :, a : a + 1, b : b + 1] = draw(self(known, features)[:, :, a:, b : b + 1])
        return x
