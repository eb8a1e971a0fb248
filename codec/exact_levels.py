"""Coding of the exact levels in integers, both directions in one traversal (docs/format.md, "Exact levels").

Planes are int16 [1, 3, h, w] in YCoCg-R. A grid step goes from x_s to x_{s-1}; within it the phases D, H, V follow each other, within
a phase the coding blocks in raster order, within a block the channels Y, Co, Cg.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.codec.coder import Coder
from vbc.codec.colour import rgb_to_ycocg
from vbc.codec.exact import (
    HALO,
    N_LEVEL_CLASSES,
    N_SURPRISE,
    PHASE_OFFSET,
    PHASES,
    RADIUS,
    guide_planes,
    phase_base,
    phase_planes,
)
from vbc.codec.integer import IntPhase

BASE_SIDE = 8
"""The coarsest grid has no side above this and is stored raw."""
BLOCK_SIDE = 512
"""Side of a coding block on the coarse grid: 1024 pixels of the picture."""
LOG_SCALE_MIN, LOG_SCALE_MAX = -64, 96
"""Sixteenths of an octave."""
FRACTIONS = 16
VALUE_RANGE = ((0, 255), (-255, 255), (-255, 255))


@dataclass(frozen=True)
class ExactModel:
    """What the exact levels need: the phases' networks and the maps from parameters to tables."""

    phases: dict[str, IntPhase]
    log2_residual: NDArray[np.int16]
    table_index: NDArray[np.uint16]
    """[3 channels, (log-scale - min) * 16 + fraction]."""


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


def blocks(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Coding blocks in raster order."""
    for r in range(0, height, side):
        for c in range(0, width, side):
            yield slice(r, min(r + side, height)), slice(c, min(c + side, width))


def extend(x: Tensor, height: int, width: int) -> Tensor:
    """Replicate the last row and column up to this size, then a border of `HALO`: channels-last."""
    rows = torch.arange(-HALO, height + HALO).clamp_(0, x.shape[-2] - 1)
    cols = torch.arange(-HALO, width + HALO).clamp_(0, x.shape[-1] - 1)
    return x[..., rows, :][..., cols].contiguous(memory_format=torch.channels_last)


def code_step(
    model: ExactModel,
    coder: Coder,
    coarse: Tensor,
    size: tuple[int, int],
    level: int,
    target: Tensor | None = None,
    lossy: Tensor | None = None,
    quality: int = 0,
    block: int = BLOCK_SIDE,
) -> dict[str, Tensor]:
    """Code the pixels of a grid x_{level-1} that its coarser grid lacks.

    coarse: int16 YCoCg-R [1, 3, ceil(h/2), ceil(w/2)]. size: (h, w) of the finer grid. target: that grid as uint8 RGB
    [1, 3, h, w] in an encoder. lossy: the lossy levels' picture on it, likewise, in a layered file. Returns the three phases,
    int16 [1, 3, .., ..]. The result does not depend on `block` but for the order of symbols, which the format fixes.
    """
    height, width = size
    n_h, n_w = coarse.shape[-2:]
    planes = {"A": extend(coarse, n_h, n_w)}
    phases = {}
    level_class = min(level - 1, N_LEVEL_CLASSES - 1)
    for p in PHASES:
        h, w = phase_size(p, height, width)
        net = model.phases[p]
        if target is None:
            out = torch.empty((1, 3, h, w), dtype=torch.int16, memory_format=torch.channels_last)
        else:
            out = rgb_to_ycocg(phase_view(target, p))
        for rows, cols in blocks(h, w, block):
            known = {k: window(v, rows, cols) for k, v in planes.items()}
            guide = None if lossy is None else lossy_planes(known["A"], lossy, rows, cols)
            base, params = phase_parameters(net, p, known, level_class, guide, quality)
            want = None if target is None else out[0, :, rows, cols]
            got = code_block(model, net, coder, base, params, want)
            if target is None:
                out[0, :, rows, cols] = got
        phases[p] = out
        if p != PHASES[-1]:
            # a phase without pixels (one row or column) still stands among its neighbours' inputs
            planes[p] = extend(out, n_h, n_w) if h and w else planes["A"]
    return phases


def assemble(coarse: Tensor, phases: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """The finer grid int16 [1, 3, h, w] from its coarser grid and phases."""
    fine = torch.empty((1, 3, *size), dtype=torch.int16, memory_format=torch.channels_last)
    fine[..., ::2, ::2] = coarse
    for p, plane in phases.items():
        phase_view(fine, p).copy_(plane)
    return fine


def phase_view(fine: Tensor, phase: str) -> Tensor:
    """The pixels of a phase (or "A") within a grid."""
    dy, dx = PHASE_OFFSET.get(phase, (0, 0))
    return fine[..., dy::2, dx::2]


def window(padded: Tensor, rows: slice, cols: slice) -> Tensor:
    """A block of a padded plane with its halo."""
    return padded[..., rows.start : rows.stop + 2 * HALO, cols.start : cols.stop + 2 * HALO]


def lossy_planes(a: Tensor, lossy: Tensor, rows: slice, cols: slice) -> Tensor:
    """Inputs from the lossy picture: its error on the known grid, its other phases against its own known grid.

    a: int16 window of the known grid with halo. lossy: uint8 RGB [1, 3, h, w] on the finer grid. Returns int16 -64..63
    [1, 12, h', w'], one position less on each side than `a`.
    """
    guide = {}
    for p in ("A", *PHASES):
        view = phase_view(lossy, p)
        if not view.numel():
            view = phase_view(lossy, "A")
        r = torch.arange(rows.start - RADIUS, rows.stop + RADIUS).clamp_(0, view.shape[-2] - 1)
        c = torch.arange(cols.start - RADIUS, cols.stop + RADIUS).clamp_(0, view.shape[-1] - 1)
        guide[p] = rgb_to_ycocg(view[..., r, :][..., c])
    return guide_planes(a[..., 1:-1, 1:-1], guide)


def phase_parameters(
    net: IntPhase, phase: str, known: dict[str, Tensor], level_class: int, guide: Tensor | None, quality: int
) -> tuple[Tensor, Tensor]:
    """Base int16 [1, 3, h, w] and entropy parameters int32 [1, 9, h, w] of a block from planes with halo."""
    a, d, h = known["A"], known.get("D"), known.get("H")
    base = phase_base(phase, a, d)
    planes = phase_planes(phase, base, a, d, h)
    features = net.features(planes, level_class, guide, quality)
    r = RADIUS
    return base[..., r:-r, r:-r], net.parameters(features, planes)


def code_block(
    model: ExactModel, net: IntPhase, coder: Coder, base: Tensor, params: Tensor, target: Tensor | None
) -> Tensor:
    """Code the three channels of one block. base, target: int16 [.., 3, h, w]. Returns int16 [3, h, w]."""
    shape = base.shape[-2:]
    base16 = base[0].to(torch.int32).mul_(16).numpy().reshape(3, -1)
    out = params[0].contiguous().numpy().reshape(9, -1)
    want = None if target is None else target.contiguous().numpy().reshape(3, -1)
    surprise = net.surprise.numpy()
    values = np.empty((3, base16.shape[1]), np.int16)
    residual: list[NDArray[np.int32]] = []
    classes: list[NDArray[np.int32]] = []
    for c in range(3):
        mean = base16[c] + out[c]
        for i, r in enumerate(residual):
            mean += (np.clip(out[6 + c - 1 + i], -127, 127) * r + 32) >> 6
        scale = np.clip(out[3 + c], LOG_SCALE_MIN, LOG_SCALE_MAX)
        if c:
            seen = classes[0] if c == 1 else np.maximum(classes[0], classes[1])
            scale = np.clip(scale + surprise[c - 1][seen], LOG_SCALE_MIN, LOG_SCALE_MAX)
        low, high = VALUE_RANGE[c]
        np.clip(mean, 16 * low, 16 * high, out=mean)
        rounded = (mean + 8) >> 4
        index = model.table_index[c][((scale - LOG_SCALE_MIN) << 4) + (mean - (rounded << 4) + 8)]
        rounded = rounded.astype(np.int16)
        symbols = coder.code(index, None if want is None else want[c] - rounded)
        values[c] = rounded + symbols
        if c < 2:
            r = 16 * values[c].astype(np.int32) - mean
            residual.append(r)
            classes.append(surprise_class(model.log2_residual, r, scale))
    return torch.from_numpy(values.reshape(3, *shape))


def surprise_class(
    log2_residual: NDArray[np.int16], residual: NDArray[np.int32], scale: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Octaves of a residual (sixteenths) over its scale, rounded, plus 4, limited to 0..8."""
    size = log2_residual[np.minimum(np.abs(residual), len(log2_residual) - 1)]
    return np.clip(((size - scale + 8) >> 4) + 4, 0, N_SURPRISE - 1)
