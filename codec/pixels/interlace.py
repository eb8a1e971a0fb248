"""Interlaced grids: a grid is coded as its every second row and column, A, and then three phases.

With rows and columns counted from 0, A holds the positions (even, even), D (odd, odd), H (even, odd) and V
(odd, even). A is known first, then D, H and V, each as a whole. So the pixels of the exact levels are coded,
and the blocks of lossy level 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from vbc.codec.pixels.borders import extend

PHASES = ("D", "H", "V")
"""The phases in the order in which they are coded."""
PHASE_OFFSET = {"D": (1, 1), "H": (0, 1), "V": (1, 0)}
"""Row and column of a phase's first position in the grid."""


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """A view that holds x[i + 1 + down, j + 1 + right] at (i, j); one position is lost on every side.

    x: [..., h, w]; down, right: -1..1. Returns [..., h-2, w-2].
    """
    h, w = x.shape[-2:]
    return x[..., 1 + down : h - 1 + down, 1 + right : w - 1 + right]


def nearest_four(phase: str, a: Tensor, d: Tensor | None) -> list[Tensor]:
    """The four nearest known positions of each position of a phase, as views [..., h-2, w-2].

    a, d: the planes A and D [..., h, w]; D is not needed for phase D itself.
    """
    if phase == "D":
        return [shifted(a, 0, 0), shifted(a, 0, 1), shifted(a, 1, 0), shifted(a, 1, 1)]
    assert d is not None, "D is known before H and V"
    if phase == "H":
        return [shifted(a, 0, 0), shifted(a, 0, 1), shifted(d, -1, 0), shifted(d, 0, 0)]
    return [shifted(a, 0, 0), shifted(a, 1, 0), shifted(d, 0, -1), shifted(d, 0, 0)]


@dataclass(frozen=True)
class PhaseStep:
    """What of a grid is coded at once when it is coded coarse to fine, and what is known around it.

    rows, cols: its positions, at every 2^k-th row and column. phase: D, H or V, or None for the coarsest
    grid, around which nothing is known. depth: 0 on the finest grid. four: the four nearest known positions
    of each, [..., h + 2 radius, w + 2 radius]; beyond the border the last are repeated.
    """

    rows: slice
    cols: slice
    phase: str | None = None
    depth: int = 0
    four: tuple[Tensor, ...] = ()


def coarse_to_fine(grid: Tensor, base_side: int, radius: int) -> Iterator[PhaseStep]:
    """The steps in which a grid [N, C, h, w] is coded; none of them is empty.

    base_side: the coarsest grid has no side above it. The caller fills in `grid[..., rows, cols]` of a step
    before it asks for the next one.
    """
    coarsest = 0
    while max(grid.shape[-2:]) > base_side << coarsest:
        coarsest += 1
    whole = slice(0, None, 1 << coarsest)
    yield PhaseStep(whole, whole)
    for depth in reversed(range(coarsest)):
        stride = 2 << depth
        coarse = grid[..., ::stride, ::stride]
        n_h, n_w = coarse.shape[-2:]
        a = extend(coarse, n_h, n_w, radius + 1)
        d = a  # stands for phase D where that is empty
        for phase in PHASES:
            rows, cols = (slice(offset << depth, None, stride) for offset in PHASE_OFFSET[phase])
            p_h, p_w = grid[..., rows, cols].shape[-2:]
            if not p_h or not p_w:
                continue
            near = slice(0, p_h + 2 * radius), slice(0, p_w + 2 * radius)
            four = tuple(neighbour[..., *near] for neighbour in nearest_four(phase, a, d))
            yield PhaseStep(rows, cols, phase, depth, four)
            if phase == "D":
                d = extend(grid[..., rows, cols], n_h, n_w, radius + 1)
