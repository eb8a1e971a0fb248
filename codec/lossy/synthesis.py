"""Pictures from latents, in integers (docs/format.md, section 10).

Samples are int32 in sixteenths of a pixel value. 2x2 of them are a cell, seen as 4 channels of its plane.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.lossy.features import INTEGERS, enhance_planes, quality_planes
from vbc.codec.lossy.latents import BLOCK, CELLS, plane_order, positions
from vbc.codec.lossy.map_coding import refined_quality
from vbc.codec.lossy.model import LossyModel
from vbc.codec.nets.int_nets import exact_product
from vbc.codec.pixels.borders import Window, window_with_halo
from vbc.codec.pixels.colour import opponent_to_rgb

SQUARE = 64
"""Side in blocks of the squares in which a picture is worked out; each may use other levels."""
REFINED_SQUARE = 32
"""Side in blocks of the squares each of which may have other refinements; divides `SQUARE`."""
SQUARES_AT_ONCE = 4
"""Squares of one shape of one picture that are worked out together: some 25 MB of activations each."""


def synthesise(
    model: LossyModel,
    latents: Tensor,
    size: tuple[int, int],
    levels: NDArray[np.integer],
    quality: Tensor,
    squares: Iterable[tuple[int, int]] | None = None,
    out: Tensor | None = None,
    refined: NDArray[np.integer] | None = None,
) -> Tensor:
    """Pictures of one size, uint8 RGB [B, 3, H, W], channels last.

    latents: int16 [B, 192, h, w], eighths; those of missing levels are the priors' means. size: (H, W).
    levels: the last level that is there, 0..3, for each square of 64 x 64 blocks, [rows, cols]. quality:
    int32 [B, 1, h, w], the maps. squares: the (row, column) of those to work out, by default all. out: a
    picture to write them into; a new one is black elsewhere. refined: how many refinements are there, for
    each square of 32 x 32 blocks, [rows, cols]; None: none.
    """
    if out is None:
        shape = (len(latents), 3, *size)
        out = torch.zeros(1, dtype=torch.uint8, device=latents.device).expand(shape)
        out = out.contiguous(memory_format=torch.channels_last)
    alike: defaultdict[tuple[int, int, int, int], list[Window]] = defaultdict(list)
    for row, col in np.ndindex(*levels.shape) if squares is None else squares:
        use = max(int(levels[row, col]) - 1, 0)
        for (rows, cols), refinement in _even_parts((row, col), latents.shape[-2:], refined):
            alike[use, refinement, rows.stop - rows.start, cols.stop - cols.start].append((rows, cols))
    seen = {refinement: refined_quality(quality, refinement) for _, refinement, *_ in alike}
    for (use, refinement, *_), windows in alike.items():
        for first in range(0, len(windows), SQUARES_AT_ONCE):
            batch = windows[first : first + SQUARES_AT_ONCE]
            pictures = synthesise_windows(model, latents, batch, use, seen[refinement])
            for (rows, cols), rgb in zip(batch, torch.split(pictures, len(latents)), strict=True):
                place = out[
                    ..., BLOCK * rows.start : BLOCK * rows.stop, BLOCK * cols.start : BLOCK * cols.stop
                ]
                place.copy_(rgb[..., : place.shape[2], : place.shape[3]])
    return out


def _even_parts(
    square: tuple[int, int], size: Sequence[int], refined: NDArray[np.integer] | None
) -> Iterator[tuple[Window, int]]:
    """A square of `SQUARE` blocks in parts that have the same number of refinements each, with that number.

    size: of the picture in blocks.
    """
    n = SQUARE // REFINED_SQUARE
    counts = np.zeros((1, 1), int)
    if refined is not None:
        counts = refined[tuple(slice(n * k, n * (k + 1)) for k in square)]
    side = REFINED_SQUARE
    if (counts == counts[0, 0]).all():
        counts, side = counts[:1, :1], SQUARE
    for place in np.ndindex(*counts.shape):
        starts = [SQUARE * k + side * i for k, i in zip(square, place, strict=True)]
        rows, cols = (slice(s, min(s + side, end)) for s, end in zip(starts, size, strict=True))
        yield (rows, cols), int(counts[place])


def synthesise_windows(
    model: LossyModel, latents: Tensor, windows: list[Window], use: int, quality: Tensor
) -> Tensor:
    """uint8 RGB [W * B, 3, 8h, 8w] of W rectangles of h x w blocks of B pictures; of the first one, of all
    pictures, first.

    use: number of the last level that is there, less one (0 if there is none). quality: what the network is
    told.
    """
    halo = model.enhance.radius + 1
    cells = [window_cells(model, latents, window, halo) for window in windows]
    local = [map_of_cells(quality, window, halo - 1) for window in windows]
    planes = [enhance_planes(INTEGERS, part, halo - 1, q) for part, q in zip(cells, local, strict=True)]
    samples = model.enhance(torch.cat(planes), use)
    for corrected, part in zip(torch.split(samples, len(latents)), cells, strict=True):
        corrected.add_(part[..., halo:-halo, halo:-halo])
    return to_rgb(F.pixel_shuffle(samples, 2))


def map_of_cells(quality: Tensor, window: Window, halo: int) -> Tensor:
    """What the network sees of the map on the cells of h x w blocks with `halo` cells around.

    Returns int8 [B, 2, 4h + 2 halo, 4w + 2 halo].
    """
    margin = -(-halo // CELLS)
    blocks = INTEGERS.planes(quality_planes(INTEGERS, window_with_halo(quality, window, margin)))
    cells = blocks.repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3)
    cut = CELLS * margin - halo
    return cells[..., cut : cells.shape[2] - cut, cut : cells.shape[3] - cut]


def window_cells(model: LossyModel, latents: Tensor, window: Window, halo: int) -> Tensor:
    """The cells of h x w blocks with `halo` cells around them: int32 [B, 12, 4h + 2 halo, 4w + 2 halo].

    Beyond the picture's border its outermost cells are repeated.
    """
    margin = -(-halo // CELLS)
    spans = [
        slice(max(part.start - margin, 0), min(part.stop + margin, n_blocks))
        for part, n_blocks in zip(window, latents.shape[-2:], strict=True)
    ]
    cells = inverse_transform(model.basis[BLOCK], latents[..., spans[0], spans[1]])
    rows, cols = (
        slice(CELLS * (part.start - span.start), CELLS * (part.stop - span.start))
        for part, span in zip(window, spans, strict=True)
    )
    return window_with_halo(cells, (rows, cols), halo)


def inverse_transform(basis: Tensor, latents: Tensor) -> Tensor:
    """Samples from all latents int16 [B, 192, h, w], as cells: int32 [B, 12, 4h, 4w].

    Exact in float64: all sums < 2^53. Samples are limited to 16 bits, which only damaged latents exceed: sums
    of what is made from them then fit 32 bits.
    """
    n, _, h, w = latents.shape
    by_plane = latents.permute(0, 2, 3, 1).index_select(3, positions(plane_order(BLOCK), latents.device))
    x = exact_product(by_plane.double().view(n, h, w, 3, BLOCK * BLOCK), basis)
    x = x.add_(1024).mul_(2.0**-11).floor_().clamp_(-32768, 32767).int().view(n, h, w, 3, CELLS, 2, CELLS, 2)
    return x.permute(0, 3, 5, 7, 1, 4, 2, 6).reshape(n, 12, CELLS * h, CELLS * w)


def native_picture(model: LossyModel, latents: Tensor, size: tuple[int, int], level: int) -> Tensor:
    """Level 1 at 1/4 or level 2 at 1/2 of the size, rounded up: uint8 RGB [B, 3, .., ..], channels last.

    latents: int16 [B, C, h, w], at least those of levels 1 and 2; of chroma level 1 has the mean alone, so it
    takes the rest from the means of level 2. size: (H, W) of the whole picture.
    """
    n = 2 * level
    n_pictures, _, h, w = latents.shape
    order = positions(plane_order(n), latents.device)
    x = latents.permute(0, 2, 3, 1)[..., order].double().reshape(n_pictures, h, w, 3, n * n)
    x = exact_product(x, model.basis[n])
    shift = 11 + (2 if level == 1 else 1)  # an n-point basis makes samples 8/n times as large
    x = INTEGERS.shift(x.long(), shift).int().view(n_pictures, h, w, 3, n, n)
    rgb = to_rgb(x.permute(0, 3, 1, 4, 2, 5).reshape(n_pictures, 3, h * n, w * n))
    side = BLOCK // n
    rgb = rgb[..., : -(-size[0] // side), : -(-size[1] // side)]
    return rgb.contiguous(memory_format=torch.channels_last)


def to_rgb(samples: Tensor) -> Tensor:
    """uint8 RGB [N, 3, H, W] from the opponent planes Y, U, V, int32 sixteenths centred on zero."""
    return INTEGERS.shift(opponent_to_rgb(samples), 4).add_(128).clamp_(0, 255).to(torch.uint8)
