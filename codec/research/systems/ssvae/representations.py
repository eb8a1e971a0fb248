"""What a picture x is seen through in the ssVAE: y = d(x), a function of x to whole numbers 0..255.

Only a discrete y has an entropy term of zero given x. All arithmetic is on integers: the same y everywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BICUBIC_256 = (-3, -9, 29, 111, 111, 29, -9, -3)
"""Taps of the antialiased bicubic filter (Keys', a = -1/2, stretched by two) to half the size, 256ths."""
LUMA_65536 = (19595, 38470, 7471)
"""Weights of red, green and blue in the luma of BT.601, 65536ths."""
SKETCH_SIGMA = 2.0
SKETCH_RADIUS = 6
"""Three standard deviations of the sketch's blur."""


@dataclass(frozen=True)
class Representation:
    """d: uint8 [N, C, H, W] to uint8 [N, channels, H / divisor, W / divisor]."""

    name: str
    channels: int
    divisor: int
    make: Callable[[Tensor], Tensor]


def halved(x: Tensor) -> Tensor:
    """Half width and height by the antialiased bicubic filter, rounded to 8 bits; the edge is repeated.

    uint8 [N, C, H, W], even sides, to uint8 [N, C, H / 2, W / 2].
    """
    both = _filtered(x, BICUBIC_256, stride=2)
    return (both + 32768 >> 16).clamp(0, 255).to(torch.uint8)


def gray(x: Tensor) -> Tensor:
    """Luma: uint8 [N, 3, H, W] to uint8 [N, 1, H, W]."""
    weights = torch.tensor(LUMA_65536, device=x.device).view(1, 3, 1, 1)
    return ((x.long() * weights).sum(1, keepdim=True) + 32768 >> 16).to(torch.uint8)


def sketch(x: Tensor) -> Tensor:
    """A pencil sketch by dodging: g / (1 - blurred inverse of g), g the luma, rounded to 8 bits.

    uint8 [N, 3, H, W] to uint8 [N, 1, H, W]. The blur is Gaussian, sigma 2 pixels; the edge is repeated.
    """
    g = gray(x).long()
    weights = [math.exp(-(i**2) / (2 * SKETCH_SIGMA**2)) for i in range(-SKETCH_RADIUS, SKETCH_RADIUS + 1)]
    taps = [round(4096 * w / sum(weights)) for w in weights]
    whole = sum(taps) ** 2
    left = (255 * whole - _filtered(255 - g, taps)).clamp_min(1)  # 0 where all around is black: g is 0 too
    return ((2 * 255 * g * whole + left) // (2 * left)).clamp(0, 255).to(torch.uint8)


def _filtered(x: Tensor, taps: Sequence[int], stride: int = 1) -> Tensor:
    """x [N, C, H, W] filtered along both sides, not divided by the taps' sum: int64.

    In float64, which holds these whole numbers exactly.
    """
    before = (len(taps) - stride) // 2
    planes = x.double().flatten(0, 1).unsqueeze(1)
    row = torch.tensor(taps, dtype=torch.float64, device=x.device).view(1, 1, 1, -1)
    edge = (before, len(taps) - stride - before)
    planes = F.conv2d(F.pad(planes, (*edge, 0, 0), "replicate"), row, stride=(1, stride))
    planes = F.conv2d(F.pad(planes, (0, 0, *edge), "replicate"), row.transpose(2, 3), stride=(stride, 1))
    return planes.round().long().view(*x.shape[:2], *planes.shape[2:])


def enlarged(y: Tensor, side: int) -> Tensor:
    """Bilinear enlargement for the networks: float [N, C, h, w] to [N, C, side, side]."""
    if y.shape[-1] == side:
        return y
    return F.interpolate(y, size=(side, side), mode="bilinear", align_corners=False)


HALVED = Representation("downscaled", 3, 2, halved)
GRAY = Representation("gray", 1, 1, gray)
SKETCH = Representation("sketch", 1, 1, sketch)
