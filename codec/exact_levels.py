"""Coding of the exact levels in integers, both directions in one traversal (docs/format.md, "Exact levels").

A grid step goes from x_s to x_{s-1}; within it the phases D, H, V follow each other, within a phase the
coding blocks in raster order, within a block the channels Y, Co, Cg.
"""

import torch
from torch import Tensor

from vbc.codec.coder import Coder
from vbc.codec.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.exact import HALO, N_LEVEL_CLASSES, PHASE_OFFSET, PHASES
from vbc.codec.exact_block import ExactModel, Step, code_block, phase_view
from vbc.codec.tiles import blocks
from vbc.codec.tuning import MIN_POSITIONS, SAMPLES, code_tuning, fit_tuning

BASE_SIDE = 8
"""The coarsest grid has no side above this and is stored raw."""
BLOCK_SIDE = 512
"""Side of a coding block on the coarse grid: 1024 pixels of the picture."""


def grid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of x_0, x_1, ... down to the raw base grid."""
    sizes = [(height, width)]
    while max(sizes[-1]) > BASE_SIDE:
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes


def phase_size(phase: str, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a phase in a grid of this size."""
    dy, dx = PHASE_OFFSET[phase]
    return (height + 1 - dy) // 2, (width + 1 - dx) // 2


def extend(x: Tensor, height: int, width: int) -> Tensor:
    """Replicate the last row and column up to this size, then a border of `HALO`: channels-last."""
    n, c, h, w = x.shape
    size = (n, c, height + 2 * HALO, width + 2 * HALO)
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    rows, cols = slice(HALO, HALO + h), slice(HALO, HALO + w)
    out[..., rows, cols] = x
    out[..., rows, :HALO] = x[..., :1]
    out[..., rows, HALO + w :] = x[..., -1:]
    out[..., :HALO, :] = out[..., HALO : HALO + 1, :]
    out[..., HALO + h :, :] = out[..., HALO + h - 1 : HALO + h, :]
    return out


def code_step(
    model: ExactModel,
    coder: Coder,
    coarse: Tensor,
    size: tuple[int, int],
    level: int,
    target: Tensor | None = None,
    lossy: Tensor | None = None,
    quality: int = 0,
    tuned: bool = False,
    effort: int = 1,
    block: int = BLOCK_SIDE,
) -> dict[str, Tensor]:
    """Code the pixels of a grid x_{level-1} that its coarser grid lacks.

    coarse: int16 YCoCg-R [1, 3, ceil(h/2), ceil(w/2)]. size: (h, w) of the finer grid. target: that grid as
    uint8 RGB [1, 3, h, w] in an encoder. lossy: the lossy levels' picture on it, likewise, in a layered file.
    tuned: whether output layers tuned to the image are in the level; effort: 1 or 2, how carefully an encoder
    finds them. Returns the three phases, int16 [1, 3, .., ..]. The values do not depend on `block`; the order
    of symbols does, so the format fixes it.
    """
    n_h, n_w = coarse.shape[-2:]
    step = Step(model, {"A": extend(coarse, n_h, n_w)}, lossy, min(level - 1, N_LEVEL_CLASSES - 1), quality)
    phases = {}
    for p in PHASES:
        h, w = phase_size(p, *size)
        if target is None:
            out = torch.empty((1, 3, h, w), dtype=torch.int16, memory_format=torch.channels_last)
        else:
            out = rgb_to_ycocg(phase_view(target, p))
        layer = None
        if tuned:
            wanted = None
            if target is not None and h * w >= MIN_POSITIONS:
                wanted = fit_tuning(step, p, out, SAMPLES[effort])
            layer = code_tuning(model, coder, model.phases[p].width, wanted)
        for rows, cols in blocks(h, w, block):
            want = None if target is None else out[0, :, rows, cols]
            values = code_block(model, p, coder, step.parameters(p, [(rows, cols)], layer), want)
            if target is None:
                out[0, :, rows, cols] = values
        phases[p] = out
        if p != PHASES[-1]:
            # a phase without pixels (one row or column) still stands among its neighbours' inputs
            step.planes[p] = extend(out, n_h, n_w) if h and w else step.planes["A"]
    return phases


def assemble(coarse: Tensor, phases: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """The finer grid int16 YCoCg-R [1, 3, h, w] from its coarser grid and phases."""
    fine = torch.empty((1, 3, *size), dtype=torch.int16, memory_format=torch.channels_last)
    for p, plane in {"A": coarse, **phases}.items():
        phase_view(fine, p).copy_(plane)
    return fine


def assemble_rgb(coarse: Tensor, phases: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """As `assemble`, but uint8 RGB: the finest grid takes half the memory."""
    fine = torch.empty((1, 3, *size), dtype=torch.uint8, memory_format=torch.channels_last)
    for p, plane in {"A": coarse, **phases}.items():
        phase_view(fine, p).copy_(ycocg_to_rgb(plane))
    return fine
