"""Colour transforms: reversible YCoCg-R for the exact levels, an opponent space for the lossy ones.

The opponent space is orthogonal. YCoCg-R: Malvar and Sullivan, "YCoCg-R: A Color Space with RGB Reversibility
and Low Dynamic Range", JVT-I014, 2003.
"""

import torch
from torch import Tensor

OPPONENT_TO_RGB = ((1, 1, 1), (1, 0, -2), (1, -1, 1))
"""Rows R, G, B; columns Y, U, V. The columns are orthogonal and the inverse is made of small integers, so
decoding is exact."""


def rgb_to_ycocg(rgb: Tensor) -> Tensor:
    """Map uint8 RGB [..., 3, H, W] to int16 YCoCg-R of the same shape. Reversible.

    Y is in 0..255, Co and Cg in -255..255.
    """
    r, g, b = rgb.to(torch.int16).unbind(-3)
    out = torch.empty_like(rgb, dtype=torch.int16)  # keeps the memory format
    y, co, cg = out.unbind(-3)
    torch.sub(r, b, out=co)
    t = (co >> 1).add_(b)
    torch.sub(g, t, out=cg)
    torch.add(t, cg >> 1, out=y)
    return out


def ycocg_to_rgb(ycocg: Tensor) -> Tensor:
    """Invert `rgb_to_ycocg`. Values that no uint8 image produces wrap modulo 256."""
    y, co, cg = ycocg.unbind(-3)
    out = torch.empty_like(ycocg, dtype=torch.uint8)
    t = y - (cg >> 1)
    b = t - (co >> 1)
    for plane, value in zip(out.unbind(-3), (b + co, cg + t, b), strict=True):
        plane.copy_(value)
    return out


def predicted_rgb(ycocg: Tensor) -> Tensor:
    """As `ycocg_to_rgb` of predicted pixels, int16, which may lie outside what RGB has: limited to 0..255."""
    y, co, cg = ycocg.unbind(-3)
    t = y - (cg >> 1)
    b = t - (co >> 1)
    return torch.stack((b + co, cg + t, b), -3).clamp_(0, 255).to(torch.uint8)


def rgb_to_opponent(rgb: Tensor) -> Tensor:
    """Map float RGB [..., 3, H, W] to Y = (R+G+B)/3, U = (R-B)/2, V = (R-2G+B)/6 (float, same shape)."""
    r, g, b = rgb.unbind(-3)
    return torch.stack(((r + g + b) / 3, (r - b) / 2, (r - 2 * g + b) / 6), -3)


def opponent_to_rgb(yuv: Tensor) -> Tensor:
    """Invert `rgb_to_opponent`: R = Y+U+V, G = Y-2V, B = Y-U+V.

    Works on any signed dtype; exact on integers.
    """
    y, u, v = yuv.unbind(-3)
    yv = y + v
    return torch.stack((yv + u, y - 2 * v, yv - u), -3)
