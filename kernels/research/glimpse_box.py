"""Glimpses through axis-aligned boxes in integers: the same pixels on every device.

A box is four integers in 16.16 fixed point: x and y of the first output pixel's centre in the source, and
the steps from one output pixel to the next. Source pixel k has its centre at k << 16. Coordinates are
rounded to 1/256, ``X = x + j * step_x + 128``: the pixel is ``X >> 16``, the weight of the next one ``w =
(X >> 8) & 255``. The value is ``((256 - wy) * ((256 - wx) p00 + wx p01) + wy * ((256 - wx) p10 + wx p11) +
2^15) >> 16``, pixels outside the source being 0. The affine form with gradients is in `glimpse.py`.
"""

import torch
from torch import Tensor

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
from vbc.kernels.research.glimpse import check_index

ONE = 1 << 16
MAX_STEP = 1 << 30
"""Of a crop's coordinates and steps, for `invert_boxes`."""
MAX_BOX = 1 << 47
"""Of any box: 65536 steps of this size still fit 64 bits, and the inverse of a box stays below it."""
BLOCK = 256


def crop_boxes(images: Tensor, boxes: Tensor, index: Tensor, side: int) -> Tensor:
    """Crop side x side patches.

    images: uint8 [N, C, H, W], or int16 with |value| < 2^14. boxes: int64 [G, 4], x, y, step_x, step_y,
    at most 2^47 in size. index: int64 [G], the image of each box. Returns [G, C, side, side] of the images'
    dtype. Raises ValueError for other shapes, dtypes and ranges.
    """
    _check(images, boxes, index, images.shape[0])
    if side < 1:
        raise ValueError(f"side must be at least 1, not {side}")
    each = torch.arange(index.numel(), device=index.device)
    return _resample(images, boxes, index, each, (index.numel(), side, side))[0].to(images.dtype)


def paste_boxes(
    patches: Tensor, boxes: Tensor, index: Tensor, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Paste patches into empty images, through boxes that map image pixels to patch pixels (`invert_boxes`
    of the crop's).

    patches: uint8 or int16 [G, C, n, n]. size: N, H, W. Returns int32 sums of the patches' values [N, C, H,
    W] and of their coverage [N, 1, H, W], 65536 inside a patch. Raises ValueError as `crop_boxes` does.
    """
    _check(patches, boxes, index, size[0])
    if min(size) < 1:
        raise ValueError(f"size must be at least 1 in every direction, not {size}")
    each = torch.arange(index.numel(), device=index.device)
    return _resample(patches, boxes, each, index, size)


def invert_boxes(boxes: Tensor) -> Tensor:
    """The boxes the other way round, to nearest: int64 [G, 4]. ValueError where a step is not 1..2^30."""
    check_tensor("boxes", boxes, (torch.int64,), (None, 4))
    start, step = boxes[:, :2], boxes[:, 2:]
    if not bool(((step >= 1) & (step <= MAX_STEP) & (start.abs() <= MAX_STEP)).all()):
        raise ValueError(f"steps must be 1..{MAX_STEP}, starts at most {MAX_STEP}")

    def divide(a: Tensor, b: Tensor) -> Tensor:
        return torch.div(2 * a + b, 2 * b, rounding_mode="floor")

    return torch.cat((divide(-start * ONE, step), divide(torch.full_like(step, ONE * ONE), step)), 1)


def _resample(
    source: Tensor, boxes: Tensor, source_of: Tensor, output_of: Tensor, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    run = resample_boxes_triton if use_triton(source) else resample_boxes_reference
    return run(source, boxes, source_of, output_of, size)


def resample_boxes_reference(
    source: Tensor, boxes: Tensor, source_of: Tensor, output_of: Tensor, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """The definition, in int64; sums over the glimpses of each output."""
    n_out, height, width = size
    _, c, h, w = source.shape
    x = boxes[:, 0, None] + torch.arange(width, device=boxes.device) * boxes[:, 2, None] + 128
    y = boxes[:, 1, None] + torch.arange(height, device=boxes.device) * boxes[:, 3, None] + 128
    value = torch.zeros((boxes.shape[0], c, height, width), dtype=torch.int64, device=boxes.device)
    cover = torch.zeros((boxes.shape[0], 1, height, width), dtype=torch.int64, device=boxes.device)
    for dy in (0, 1):
        i = (y >> 16) + dy
        wy = (y >> 8) & 255 if dy else 256 - ((y >> 8) & 255)
        for dx in (0, 1):
            j = (x >> 16) + dx
            wx = (x >> 8) & 255 if dx else 256 - ((x >> 8) & 255)
            inside = ((i >= 0) & (i < h))[:, :, None] & ((j >= 0) & (j < w))[:, None]
            weight = torch.where(inside, wy[:, :, None] * wx[:, None], 0)
            rows, cols = i.clamp(0, h - 1)[:, :, None], j.clamp(0, w - 1)[:, None]
            read = source[source_of[:, None, None], :, rows, cols].permute(0, 3, 1, 2)
            value += weight[:, None] * read
            cover += weight[:, None]
    total = torch.zeros((n_out, c, height, width), dtype=torch.int64, device=boxes.device)
    covered = torch.zeros((n_out, 1, height, width), dtype=torch.int64, device=boxes.device)
    total.index_add_(0, output_of, (value + (1 << 15)) >> 16)
    covered.index_add_(0, output_of, cover)
    return total.int(), covered.int()


def resample_boxes_triton(
    source: Tensor, boxes: Tensor, source_of: Tensor, output_of: Tensor, size: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """The Triton kernel."""
    _, c, h, w = source.shape
    n_out, height, width = size
    total = torch.empty((n_out, c, height, width), dtype=torch.int32, device=source.device)
    covered = torch.empty((n_out, 1, height, width), dtype=torch.int32, device=source.device)
    counts = torch.bincount(output_of, minlength=n_out)
    with on_device(source.device):
        _boxes_kernel[(ceil_div(height * width, BLOCK), n_out)](
            source.contiguous(),
            boxes.contiguous(),
            source_of,
            torch.argsort(output_of, stable=True),
            torch.cat((counts.new_zeros(1), counts.cumsum(0))),
            total,
            covered,
            c,
            h,
            w,
            height,
            width,
            SIZE=BLOCK,
        )
    return total, covered


# Checks


def _check(source: Tensor, boxes: Tensor, index: Tensor, n: int) -> None:
    check_tensor("images or patches", source, (torch.uint8, torch.int16), (None, None, None, None))
    if 0 in source.shape:
        raise ValueError(f"images and patches must not be empty, not {list(source.shape)}")
    check_tensor("boxes", boxes, (torch.int64,), (index.numel(), 4))
    if not bool((boxes.abs() <= MAX_BOX).all()):
        raise ValueError("boxes must be at most 2^47 in size")
    check_index(index, n)
    check_same_device(source, boxes=boxes, index=index)


# Triton kernel


@jit
def _pixel(at: Pointer, i: Value, j: Value, h: Value, w: Value, weight: Value, inside: Value) -> Value:
    """Weighted pixels and weights, 0 outside the source."""
    there = inside & (i >= 0) & (i < h) & (j >= 0) & (j < w)
    p = tl.load(at + i * w + j, mask=there, other=0).to(tl.int32)
    return p * weight, tl.where(there, weight, 0)


@jit
def _boxes_kernel(
    source: Pointer,  # [S, C, h, w]
    boxes: Pointer,  # int64 [G, 4]
    source_of: Pointer,
    order: Pointer,  # glimpses sorted by output
    starts: Pointer,  # where each output's glimpses start in it
    total: Pointer,  # int32 [n, C, height, width]
    covered: Pointer,  # int32 [n, 1, height, width]
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
    row = (pixel // width).to(tl.int64)
    col = pixel - row * width
    first = tl.load(starts + output)
    end = tl.load(starts + output + 1)
    for channel in range(c):
        acc = tl.zeros((SIZE,), tl.int32)
        cover = tl.zeros((SIZE,), tl.int32)
        for entry in range(first, end):
            g = tl.load(order + entry)
            x = tl.load(boxes + g * 4) + col * tl.load(boxes + g * 4 + 2) + 128
            y = tl.load(boxes + g * 4 + 1) + row * tl.load(boxes + g * 4 + 3) + 128
            j = x >> 16
            i = y >> 16
            wx = ((x >> 8) & 255).to(tl.int32)
            wy = ((y >> 8) & 255).to(tl.int32)
            at = source + (tl.load(source_of + g) * c + channel) * h * w
            p00, w00 = _pixel(at, i, j, h, w, (256 - wy) * (256 - wx), inside)
            p01, w01 = _pixel(at, i, j + 1, h, w, (256 - wy) * wx, inside)
            p10, w10 = _pixel(at, i + 1, j, h, w, wy * (256 - wx), inside)
            p11, w11 = _pixel(at, i + 1, j + 1, h, w, wy * wx, inside)
            acc += (p00 + p01 + p10 + p11 + 32768) >> 16
            cover += w00 + w01 + w10 + w11
        tl.store(total + (output * c + channel) * height * width + pixel, acc, mask=inside)
        if channel == 0:
            tl.store(covered + output * height * width + pixel, cover, mask=inside)
