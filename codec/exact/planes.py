"""Grids, their phases and windows of them: tensors [N, C, h, w], channels last in memory.

Grids of B pictures of one size are [B, C, H, W]. Windows of them follow each other in the batch, each with
its B pictures: group n * B + b is window n of picture b.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vbc.codec.exact.features import HALO
from vbc.codec.pixels.borders import Window, window_with_halo
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASE_OFFSET, PHASES


def phase_size(phase: str, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a phase in a grid, or a group of one, of this size."""
    dy, dx = PHASE_OFFSET[phase]
    return (height + 1 - dy) // 2, (width + 1 - dx) // 2


def phase_view(fine: Tensor, phase: str) -> Tensor:
    """The pixels of a phase (or "A") within a grid."""
    dy, dx = PHASE_OFFSET.get(phase, (0, 0))
    return fine[..., dy::2, dx::2]


def halved(window: Window) -> Window:
    """The window of the coarser grid that the positions of a window, which starts at even ones, belong to."""
    rows, cols = (slice(part.start // 2, (part.stop + 1) // 2) for part in window)
    return rows, cols


def moved(window: Window, origin: Window) -> Window:
    """A window that is counted from the start of another one, counted as that one is."""
    rows, cols = (
        slice(o.start + part.start, o.start + part.stop) for part, o in zip(window, origin, strict=True)
    )
    return rows, cols


def shape_of(window: Window) -> tuple[int, int]:
    """Rows and columns of a window."""
    rows, cols = window
    return rows.stop - rows.start, cols.stop - cols.start


def cut(plane: Tensor, windows: Sequence[Window]) -> Tensor:
    """W windows of one shape of planes [B, C, H, W]: [W * B, C, h, w], a view where there is one."""
    return stack([plane[..., rows, cols] for rows, cols in windows])


def cut_with_halo(plane: Tensor, windows: Sequence[Window], halo: int = HALO) -> Tensor:
    """As `cut`, each window grown by `halo`; beyond the plane its last row or column is repeated."""
    return stack([window_with_halo(plane, window, halo) for window in windows])


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [B, C, h, w] along the batch, without a copy where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def lossy_planes(lossy: Tensor, windows: Sequence[Window]) -> dict[str, Tensor]:
    """Planes A, D, H, V of a lossy picture for windows of the coarser grid, with halo: as `lossy_plane`."""
    return {p: lossy_plane(lossy, windows, p) for p in ("A", *PHASES)}


def lossy_plane(lossy: Tensor, windows: Sequence[Window], phase: str) -> Tensor:
    """A phase, or "A", of a lossy picture for windows of the coarser grid: int16 YCoCg-R [W * B, 3, h+8,
    w+8].

    lossy: uint8 RGB [B, 3, h, w] on the finer grid. A phase that the picture has no pixels of is replaced by
    A.
    """
    view = phase_view(lossy, phase)
    return rgb_to_ycocg(cut_with_halo(view if view.numel() else phase_view(lossy, "A"), windows))


def every(picture: Tensor, k: int) -> Tensor:
    """x_k: every 2^k-th row and column of a picture."""
    return picture[..., :: 1 << k, :: 1 << k]


def by_channel(x: Tensor) -> Tensor:
    """[N, C, h, w] to a contiguous tensor [C, N*h*w]."""
    return x.transpose(0, 1).contiguous().view(x.shape[1], -1)


def by_position(x: Tensor) -> Tensor:
    """[N, C, h, w] to [N*h*w, C]; a view where channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def in_windows(channels: Tensor, n: int, height: int, width: int) -> Tensor:
    """[C, n*height*width] to [n, C, height, width]. Inverse: by_channel."""
    return channels.view(len(channels), n, height, width).transpose(0, 1)


def runs(pictures: Sequence[int]) -> list[slice]:
    """Ascending numbers of pictures as ranges: planes of such are views."""
    found: list[slice] = []
    for b in pictures:
        if found and found[-1].stop == b:
            found[-1] = slice(found[-1].start, b + 1)
        else:
            found.append(slice(b, b + 1))
    return found


def in_batches(windows: Iterable[Window], most: int) -> list[list[int]]:
    """Numbers of windows of one shape, in batches of at most so many positions (but at least one window)."""
    batches: list[list[int]] = []
    open_batches: dict[tuple[int, int], list[int]] = {}
    for i, window in enumerate(windows):
        shape = shape_of(window)
        batch = open_batches.get(shape)
        if batch is None or (len(batch) + 1) * shape[0] * shape[1] > most:
            batch = open_batches[shape] = []
            batches.append(batch)
        batch.append(i)
    return batches
