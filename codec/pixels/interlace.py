"""Interlaced grids: a grid is coded as its every second row and column, A, and then three phases.

With rows and columns counted from 0, A holds the positions (even, even), D (odd, odd), H (even, odd) and V
(odd, even). A is known first, then D, H and V, each as a whole. So the pixels of the exact levels are coded,
and the blocks of lossy level 1.
"""

from torch import Tensor

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
