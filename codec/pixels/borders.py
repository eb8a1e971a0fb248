"""Windows of planes with what surrounds them; beyond a border its last row or column is repeated.

Tensors are [N, C, h, w], channels last in memory. Gradients pass.
"""

import torch
from torch import Tensor

Window = tuple[slice, slice]
"""Rows and columns within a plane."""


def extend(x: Tensor, height: int, width: int, halo: int) -> Tensor:
    """x [N, C, h, w] with its last row and column repeated up to a size, then all borders `halo` times.

    Returns a copy [N, C, height + 2 halo, width + 2 halo]. h and w are at least 1.
    """
    h, w = x.shape[-2:]
    rows, cols = slice(halo, halo + h), slice(halo, halo + w)
    return _placed(x, (height + 2 * halo, width + 2 * halo), rows, cols)


def window_with_halo(x: Tensor, window: Window, halo: int) -> Tensor:
    """A window of [N, C, h, w] and `halo` positions around it: a view where all of them are inside."""
    (top, bottom), (left, right) = ((part.start - halo, part.stop + halo) for part in window)
    height, width = x.shape[-2:]
    inside = slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right))
    part = x[..., inside[0], inside[1]]
    size = bottom - top, right - left
    if part.shape[-2:] == size:
        return part
    rows = slice(inside[0].start - top, inside[0].stop - top)
    cols = slice(inside[1].start - left, inside[1].stop - left)
    return _placed(part, size, rows, cols)


def _placed(x: Tensor, size: tuple[int, int], rows: slice, cols: slice) -> Tensor:
    """x in the middle of a plane of some size, its borders repeated."""
    out = torch.empty(
        (*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    out[..., rows, cols] = x
    out[..., rows, : cols.start] = x[..., :1]
    out[..., rows, cols.stop :] = x[..., -1:]
    out[..., : rows.start, :] = out[..., rows.start : rows.start + 1, :]
    out[..., rows.stop :, :] = out[..., rows.stop - 1 : rows.stop, :]
    return out
