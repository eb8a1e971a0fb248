"""Glimpses at any points: an image read where a grid of points says, for warps that are not affine.

The sampler of spatial transformers (Jaderberg et al. 2015, arXiv:1506.02025) with coordinates clamped to the
image. They are those of `torch.nn.functional.grid_sample` with align_corners=True and padding_mode="border":
the centres of the corner pixels are at -1 and 1. Bilinear. The affine form with zero outside is in
`glimpse.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.kernels.dispatch import (
    Pointer,
    Value,
    ceil_div,
    check_same_device,
    check_tensor,
    constexpr,
    jit,
    on_device,
    tl,
    use_triton,
)

BLOCK = 256


def look_at(images: Tensor, points: Tensor) -> Tensor:
    """Images read at points, with gradients for both.

    images: float32 [N, C, h, w]. points: float32 [N, H, W, 2], x and y of each output pixel in its image,
    not NaN. Returns [N, C, H, W]. At the image's edge and outside of it the gradient for the coordinate that
    is clamped is 0. Raises ValueError for other shapes and dtypes. On CUDA the order of the sums in the
    gradient for images is not fixed.
    """
    _check(images, points)
    if use_triton(images) and images.dtype == torch.float32:
        return _look_triton(images, points)
    return F.grid_sample(images, points, padding_mode="border", align_corners=True)


def look_at_reference(images: Tensor, points: Tensor) -> Tensor:
    """The definition."""
    n, _, h, w = images.shape
    x, y = (_clamped((points[..., axis] + 1) * (0.5 * (size - 1)), size) for axis, size in ((0, w), (1, h)))
    left, top = (torch.floor(t.detach()) for t in (x, y))
    each = torch.arange(n, device=images.device)[:, None, None]
    value = images.new_zeros(())
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            # a pixel beyond the last one has weight 0
            j, i = column.clamp(max=w - 1).long(), row.clamp(max=h - 1).long()
            value = value + weight[..., None] * images[each, :, i, j]
    return value.permute(0, 3, 1, 2)


def _clamped(at: Tensor, size: int) -> Tensor:
    """Positions in pixels, within the image; what is on its edge or beyond passes no gradient on."""
    inside = (at > 0) & (at < size - 1)
    return torch.where(inside, at, at.detach().clamp(0, size - 1))


# Launcher


class _Look(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, points: Tensor) -> Tensor:
        images, points = images.contiguous(), points.contiguous()
        n, c, h, w = images.shape
        height, width = points.shape[1:3]
        out = torch.empty((n, c, height, width), device=images.device)
        if out.numel():
            with on_device(images.device):
                _look_kernel[(ceil_div(height * width, BLOCK), n)](
                    images, points, out, c, h, w, height * width, SIZE=BLOCK
                )
        ctx.save_for_backward(images, points)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        images, points = ctx.saved_tensors
        n, c, h, w = images.shape
        height, width = points.shape[1:3]
        d_images, d_points = torch.zeros_like(images), torch.empty_like(points)
        if points.numel():
            with on_device(images.device):
                _look_grad_kernel[(ceil_div(height * width, BLOCK), n)](
                    images,
                    points,
                    grads[0].contiguous(),
                    d_images,
                    d_points,
                    c,
                    h,
                    w,
                    height * width,
                    SIZE=BLOCK,
                )
        return d_images, d_points


_look_triton: Callable[[Tensor, Tensor], Tensor] = _Look.apply


# Checks


def _check(images: Tensor, points: Tensor) -> None:
    check_tensor("images", images, (torch.float32, torch.float64), (None, None, None, None))
    if 0 in images.shape:
        raise ValueError(f"images must not be empty, not {list(images.shape)}")
    check_tensor("points", points, (images.dtype,), (images.shape[0], None, None, 2))
    if 0 in points.shape:
        raise ValueError(f"points must not be empty, not {list(points.shape)}")
    check_same_device(images, points=points)


# Triton kernels


@jit
def _clamp(at: Value, size: Value) -> Value:
    """Positions within the image, in pixels, and 1 where the coordinate moves the sample, 0 where not."""
    last = (size - 1) * 1.0  # a float, also where the size is a compile-time constant
    at = (at + 1.0) * (0.5 * last)
    moves = tl.where((at > 0.0) & (at < last), 1.0, 0.0)
    return tl.minimum(tl.maximum(at, 0.0), last), moves


@jit
def _look_kernel(
    images: Pointer,  # [N, C, h, w]
    points: Pointer,  # [N, area, 2]
    out: Pointer,  # [N, C, area]
    c: Value,
    h: Value,
    w: Value,
    area: Value,
    SIZE: constexpr,
) -> None:
    pixel = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    n = tl.program_id(1).to(tl.int64)
    inside = pixel < area
    x, _ = _clamp(tl.load(points + (n * area + pixel) * 2, mask=inside, other=0.0), w)
    y, _ = _clamp(tl.load(points + (n * area + pixel) * 2 + 1, mask=inside, other=0.0), h)
    j = tl.floor(x).to(tl.int32)
    i = tl.floor(y).to(tl.int32)
    fx = x - j
    fy = y - i
    right = tl.minimum(j + 1, w - 1)
    below = tl.minimum(i + 1, h - 1)
    for channel in range(c):
        at = images + (n * c + channel) * h * w
        upper = tl.load(at + i * w + j) * (1.0 - fx) + tl.load(at + i * w + right) * fx
        lower = tl.load(at + below * w + j) * (1.0 - fx) + tl.load(at + below * w + right) * fx
        tl.store(out + (n * c + channel) * area + pixel, upper * (1.0 - fy) + lower * fy, mask=inside)


@jit
def _look_grad_kernel(
    images: Pointer,
    points: Pointer,
    grad: Pointer,  # [N, C, area]
    d_images: Pointer,
    d_points: Pointer,
    c: Value,
    h: Value,
    w: Value,
    area: Value,
    SIZE: constexpr,
) -> None:
    pixel = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    n = tl.program_id(1).to(tl.int64)
    inside = pixel < area
    point = (n * area + pixel) * 2
    x, moves_x = _clamp(tl.load(points + point, mask=inside, other=0.0), w)
    y, moves_y = _clamp(tl.load(points + point + 1, mask=inside, other=0.0), h)
    j = tl.floor(x).to(tl.int32)
    i = tl.floor(y).to(tl.int32)
    fx = x - j
    fy = y - i
    right = tl.minimum(j + 1, w - 1)
    below = tl.minimum(i + 1, h - 1)
    by_x = tl.zeros((SIZE,), tl.float32)
    by_y = tl.zeros((SIZE,), tl.float32)
    for channel in range(c):
        at = images + (n * c + channel) * h * w
        to = d_images + (n * c + channel) * h * w
        d = tl.load(grad + (n * c + channel) * area + pixel, mask=inside, other=0.0)
        tl.atomic_add(to + i * w + j, d * (1.0 - fx) * (1.0 - fy), mask=inside)
        tl.atomic_add(to + i * w + right, d * fx * (1.0 - fy), mask=inside)
        tl.atomic_add(to + below * w + j, d * (1.0 - fx) * fy, mask=inside)
        tl.atomic_add(to + below * w + right, d * fx * fy, mask=inside)
        p00 = tl.load(at + i * w + j)
        p01 = tl.load(at + i * w + right)
        p10 = tl.load(at + below * w + j)
        p11 = tl.load(at + below * w + right)
        by_x += d * ((p01 - p00) * (1.0 - fy) + (p11 - p10) * fy)
        by_y += d * ((p10 - p00) * (1.0 - fx) + (p11 - p01) * fx)
    tl.store(d_points + point, by_x * moves_x * 0.5 * (w - 1), mask=inside)
    tl.store(d_points + point + 1, by_y * moves_y * 0.5 * (h - 1), mask=inside)
