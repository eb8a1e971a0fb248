"""Glimpses: crop square patches under affine transforms, and paste patches back.

The sampler of spatial transformers (Jaderberg et al. 2015, arXiv:1506.02025). Coordinates are those of
`torch.nn.functional.affine_grid` with align_corners=False: -1..1 from edge to edge of the image, pixel
centres half a pixel inside. Bilinear, zero outside. A transform [2, 3] takes patch coordinates to image
coordinates. Both directions are one operation: output o is the sum over its glimpses g of source s(g), read
through T(g). A crop has one glimpse per output; a paste has the inverse transforms and as many glimpses per
image as fall on it. On the CPU torch's own sampler does it in float32, six times as fast as the definition.
The exact form for boxes is in `glimpse_box.py`.
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
FARTHEST = 4.0
"""Coordinates are clamped to -4..4, where even an image of one pixel has ended: integers hold them then."""


def crop(images: Tensor, transforms: Tensor, index: Tensor, side: int) -> Tensor:
    """Crop side x side patches, with gradients for images and transforms.

    images: float32 [N, C, H, W]. transforms: float32 [G, 2, 3], patch to image. index: int64 [G], which
    image each glimpse looks at, any number per image. Returns [G, C, side, side]. Raises ValueError for
    other shapes and dtypes or an index outside 0..N-1. On CUDA the order of the sums in the gradient for
    images is not fixed.
    """
    _check(images, transforms, index, images.shape[0])
    if side < 1:
        raise ValueError(f"side must be at least 1, not {side}")
    each = torch.arange(index.numel(), device=index.device)
    return _resample(images, transforms, index, each, (index.numel(), side, side))


def paste(
    patches: Tensor, transforms: Tensor, index: Tensor, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Paste patches into empty images where `crop` with the same transforms would have taken them from.

    patches: float32 [G, C, n, n]. transforms and index as in `crop`, the transforms invertible. size: N, H,
    W of the images. Returns the sum of all patches [N, C, H, W] and of their coverage [N, 1, H, W] (1
    inside a patch, falling to 0 across its border); their quotient is the mean where patches overlap.
    Gradients for patches and transforms. Raises ValueError as `crop` does.
    """
    _check(patches, transforms, index, size[0])
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 in every direction, not {size}")
    covered = torch.cat((patches, torch.ones_like(patches[:, :1])), 1)
    each = torch.arange(index.numel(), device=index.device)
    both = _resample(covered, invert(transforms), each, index, size)
    return both[:, :-1], both[:, -1:]


def invert(transforms: Tensor) -> Tensor:
    """The inverse affine transforms, [G, 2, 3]; infinite or NaN where there is none."""
    a, b, x, c, d, y = transforms.flatten(1).unbind(1)
    det = a * d - b * c
    rows = (d, -b, b * y - d * x, -c, a, c * x - a * y)
    return (torch.stack(rows, 1) / det[:, None]).view(-1, 2, 3)


def _resample(
    source: Tensor, transforms: Tensor, source_of: Tensor, output_of: Tensor, size: tuple[int, int, int]
) -> Tensor:
    if use_triton(source) and source.dtype == torch.float32:
        return _resample_triton(source, transforms, source_of, output_of, size)
    if source.device.type == "cpu" and source.dtype == torch.float32:
        return _resample_on_cpu(source, transforms, source_of, output_of, size)
    return resample_reference(source, transforms, source_of, output_of, size)


def resample_reference(
    source: Tensor, transforms: Tensor, source_of: Tensor, output_of: Tensor, size: tuple[int, int, int]
) -> Tensor:
    """The definition. source: [S, C, h, w]. size: number, height and width of the outputs."""
    n_out, height, width = size
    _, c, h, w = source.shape
    v = (torch.arange(height, device=source.device, dtype=source.dtype) * 2 + 1) / height - 1
    u = (torch.arange(width, device=source.device, dtype=source.dtype) * 2 + 1) / width - 1
    grid = torch.stack((u.expand(height, -1), v[:, None].expand(-1, width), torch.ones_like(v[:, None] * u)))
    xy = torch.einsum("gik,kyx->giyx", transforms, grid)
    x = ((xy[:, 0] + 1) * w - 1) / 2
    y = ((xy[:, 1] + 1) * h - 1) / 2
    left, top = torch.floor(x.detach()), torch.floor(y.detach())
    value = source.new_zeros((transforms.shape[0], c, height, width))
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs())
            j, i = (torch.where(inside, t, 0).long() for t in (column, row))
            read = source[source_of[:, None, None], :, i, j].permute(0, 3, 1, 2)
            value = value + torch.where(inside, weight, 0)[:, None] * read
    return source.new_zeros((n_out, c, height, width)).index_add(0, output_of, value)


def _resample_on_cpu(
    source: Tensor, transforms: Tensor, source_of: Tensor, output_of: Tensor, size: tuple[int, int, int]
) -> Tensor:
    n_out, height, width = size
    grid = F.affine_grid(transforms, [len(transforms), 1, height, width], align_corners=False)
    value = F.grid_sample(source[source_of], grid.clamp(-FARTHEST, FARTHEST), align_corners=False)
    return value.new_zeros((n_out, *value.shape[1:])).index_add(0, output_of, value)


# Launcher


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        transforms: Tensor,
        source_of: Tensor,
        output_of: Tensor,
        size: tuple[int, int, int],
    ) -> Tensor:
        source, transforms = source.contiguous(), transforms.contiguous()
        _, c, h, w = source.shape
        n_out, height, width = size
        out = torch.empty((n_out, c, height, width), device=source.device)
        order = torch.argsort(output_of, stable=True)
        counts = torch.bincount(output_of, minlength=n_out)
        starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        with on_device(source.device):
            _forward_kernel[(ceil_div(height * width, BLOCK), n_out)](
                source, transforms, source_of, order, starts, out, c, h, w, height, width, SIZE=BLOCK
            )
        ctx.save_for_backward(source, transforms, source_of, output_of)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        source, transforms, source_of, output_of = ctx.saved_tensors
        _, c, h, w = source.shape
        height, width = grads[0].shape[2:]
        n_tiles = ceil_div(height * width, BLOCK)
        d_source = torch.zeros_like(source)
        parts = torch.empty((transforms.shape[0], n_tiles, 6), device=source.device)
        if parts.numel():
            with on_device(source.device):
                _backward_kernel[(n_tiles, transforms.shape[0])](
                    source,
                    transforms,
                    source_of,
                    output_of,
                    grads[0].contiguous(),
                    d_source,
                    parts,
                    c,
                    h,
                    w,
                    height,
                    width,
                    n_tiles,
                    SIZE=BLOCK,
                )
        return d_source, parts.sum(1).view(-1, 2, 3), None, None, None


_resample_triton: Callable[[Tensor, Tensor, Tensor, Tensor, tuple[int, int, int]], Tensor] = _Resample.apply


# Checks


def _check(source: Tensor, transforms: Tensor, index: Tensor, n: int) -> None:
    check_tensor("images or patches", source, (torch.float32, torch.float64), (None, None, None, None))
    if 0 in source.shape:
        raise ValueError(f"images and patches must not be empty, not {list(source.shape)}")
    check_tensor("transforms", transforms, (source.dtype,), (index.numel(), 2, 3))
    check_index(index, n)
    check_same_device(source, transforms=transforms, index=index)


def check_index(index: Tensor, n: int) -> None:
    """Raise ValueError unless index is int64 [G] within 0..n-1 and not empty."""
    check_tensor("index", index, (torch.int64,), (None,))
    if index.numel() < 1 or not bool(((index >= 0) & (index < n)).all()):
        raise ValueError(f"index must hold numbers 0..{n - 1}")


# Triton kernels


@jit
def _corner(at: Pointer, i: Value, j: Value, h: Value, w: Value, inside: Value) -> Value:
    """The pixels at rows i and columns j, 0 outside."""
    there = inside & (i >= 0) & (i < h) & (j >= 0) & (j < w)
    return tl.load(at + i * w + j, mask=there, other=0.0)


@jit
def _add_corner(at: Pointer, amount: Value, i: Value, j: Value, h: Value, w: Value, inside: Value) -> None:
    there = inside & (i >= 0) & (i < h) & (j >= 0) & (j < w)
    tl.atomic_add(at + i * w + j, amount, mask=there)


@jit
def _position(transform: Pointer, u: Value, v: Value, h: Value, w: Value) -> Value:
    """Where grid points lie in the source, in pixels; at most a little outside, so that integers hold it."""
    x = tl.load(transform) * u + tl.load(transform + 1) * v + tl.load(transform + 2)
    y = tl.load(transform + 3) * u + tl.load(transform + 4) * v + tl.load(transform + 5)
    x = ((x + 1.0) * w - 1.0) * 0.5
    y = ((y + 1.0) * h - 1.0) * 0.5
    return tl.minimum(tl.maximum(x, -4.0), w + 4.0), tl.minimum(tl.maximum(y, -4.0), h + 4.0)


@jit
def _forward_kernel(
    source: Pointer,  # [S, C, h, w]
    transforms: Pointer,  # [G, 6]
    source_of: Pointer,
    order: Pointer,  # glimpses sorted by output
    starts: Pointer,  # where each output's glimpses start in it
    out: Pointer,  # [n, C, height, width]
    c: Value,
    h: Value,
    w: Value,
    height: Value,
    width: Value,
    SIZE: constexpr,
) -> None:
    pixel = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    output = tl.program_id(1).to(tl.int64)
    inside = pixel < height * width
    row = pixel // width
    u = ((pixel - row * width) * 2 + 1).to(tl.float32) / width - 1.0
    v = (row * 2 + 1).to(tl.float32) / height - 1.0
    first = tl.load(starts + output)
    end = tl.load(starts + output + 1)
    for channel in range(c):
        acc = tl.zeros((SIZE,), tl.float32)
        for entry in range(first, end):
            g = tl.load(order + entry)
            x, y = _position(transforms + g * 6, u, v, h, w)
            left = tl.floor(x)
            top = tl.floor(y)
            fx = x - left
            fy = y - top
            i = top.to(tl.int32)
            j = left.to(tl.int32)
            at = source + (tl.load(source_of + g) * c + channel) * h * w
            upper = _corner(at, i, j, h, w, inside) * (1.0 - fx) + _corner(at, i, j + 1, h, w, inside) * fx
            lower = _corner(at, i + 1, j, h, w, inside) * (1.0 - fx)
            lower += _corner(at, i + 1, j + 1, h, w, inside) * fx
            acc += upper * (1.0 - fy) + lower * fy
        tl.store(out + (output * c + channel) * height * width + pixel, acc, mask=inside)


@jit
def _backward_kernel(
    source: Pointer,
    transforms: Pointer,
    source_of: Pointer,
    output_of: Pointer,
    grad: Pointer,  # [n, C, height, width]
    d_source: Pointer,
    parts: Pointer,  # [G, n_tiles, 6]
    c: Value,
    h: Value,
    w: Value,
    height: Value,
    width: Value,
    n_tiles: Value,
    SIZE: constexpr,
) -> None:
    """A program takes SIZE output pixels of one glimpse."""
    tile = tl.program_id(0)
    g = tl.program_id(1).to(tl.int64)
    pixel = tile * SIZE + tl.arange(0, SIZE)
    inside = pixel < height * width
    row = pixel // width
    u = ((pixel - row * width) * 2 + 1).to(tl.float32) / width - 1.0
    v = (row * 2 + 1).to(tl.float32) / height - 1.0
    x, y = _position(transforms + g * 6, u, v, h, w)
    left = tl.floor(x)
    top = tl.floor(y)
    fx = x - left
    fy = y - top
    i = top.to(tl.int32)
    j = left.to(tl.int32)
    by_x = tl.zeros((SIZE,), tl.float32)
    by_y = tl.zeros((SIZE,), tl.float32)
    source_plane = tl.load(source_of + g) * c
    output_plane = tl.load(output_of + g) * c
    for channel in range(c):
        at = source + (source_plane + channel) * h * w
        to = d_source + (source_plane + channel) * h * w
        d = tl.load(grad + (output_plane + channel) * height * width + pixel, mask=inside, other=0.0)
        _add_corner(to, d * (1.0 - fx) * (1.0 - fy), i, j, h, w, inside)
        _add_corner(to, d * fx * (1.0 - fy), i, j + 1, h, w, inside)
        _add_corner(to, d * (1.0 - fx) * fy, i + 1, j, h, w, inside)
        _add_corner(to, d * fx * fy, i + 1, j + 1, h, w, inside)
        p00 = _corner(at, i, j, h, w, inside)
        p01 = _corner(at, i, j + 1, h, w, inside)
        p10 = _corner(at, i + 1, j, h, w, inside)
        p11 = _corner(at, i + 1, j + 1, h, w, inside)
        by_x += d * ((p01 - p00) * (1.0 - fy) + (p11 - p10) * fy)
        by_y += d * ((p10 - p00) * (1.0 - fx) + (p11 - p01) * fx)
    by_x = by_x * w * 0.5
    by_y = by_y * h * 0.5
    to = parts + (g * n_tiles + tile) * 6
    tl.store(to, tl.sum(by_x * u, 0))
    tl.store(to + 1, tl.sum(by_x * v, 0))
    tl.store(to + 2, tl.sum(by_x, 0))
    tl.store(to + 3, tl.sum(by_y * u, 0))
    tl.store(to + 4, tl.sum(by_y * v, 0))
    tl.store(to + 5, tl.sum(by_y, 0))
