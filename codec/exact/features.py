"""The exact levels' network inputs, in int16 and so exact: differences of known neighbours to a local base.

A grid step goes from x_{k+1} to x_k. With A = x_{k+1} at the even rows and even columns of x_k, the phases
are D (odd, odd), H (even, odd), V (odd, even). Every phase predicts its pixels from the mean of the four
nearest known pixels (the base) plus what a small network adds, and gives a scale. See docs/architecture.md,
"Exact levels".
"""

import torch
from torch import Tensor

from vbc.codec.pixels.interlace import PHASES, nearest_four, shifted

RADIUS = 3
"""Receptive field of the phase networks on the coarse grid, in positions to each side."""
HALO = RADIUS + 1
"""Known planes are padded by this much: the receptive field and one more for the differences between
neighbours."""
BASE_PLANES = {"D": 9, "H": 9, "V": 15}
LOSSY_PLANES = 12
LOG_SCALE_RANGE = (-4.0, 6.0)
"""Octaves of the logistic scale in pixel values."""


def quarter(x: Tensor) -> Tensor:
    """A quarter of integers, rounded down; of floats, which training has, as it is."""
    return x / 4 if x.is_floating_point() else x >> 2


def compand(d: Tensor) -> Tensor:
    """Fold integer differences into -64..63: slope 1 up to 32, slope 1/4 (rounded down) beyond."""
    near = d.clamp(-32, 32)
    return (quarter(d - near) + near).clamp_(-64, 63)


def phase_base(phase: str, a: Tensor, d: Tensor | None) -> Tensor:
    """Mean of the four nearest known pixels, rounded.

    int16 [N, 3, h+2r-2, w+2r-2] from planes padded by r.
    """
    one, two, three, four = nearest_four(phase, a, d)
    return quarter(one + two + three + four + 2)


def phase_planes(phase: str, base: Tensor, a: Tensor, d: Tensor | None, h: Tensor | None) -> Tensor:
    """Network input: companded differences of known neighbours to the base.

    int16 [N, planes, h+2r-2, w+2r-2], -64..63.
    """
    if phase == "D":
        known = [shifted(a, 0, 0), shifted(a, 0, 1), shifted(a, 1, 0)]
    elif phase == "H":
        assert d is not None
        known = [shifted(a, 0, 0), shifted(a, 0, 1), shifted(d, -1, 0)]
    else:
        assert d is not None
        assert h is not None
        known = [shifted(a, 0, 0), shifted(a, 1, 0), shifted(d, 0, -1), shifted(h, 0, -1), shifted(h, 0, 0)]
    return compand(torch.cat([k - base for k in known], 1))


def layered_base(phase: str, a: Tensor, d: Tensor | None, lossy: dict[str, Tensor]) -> Tensor:
    """The lossy picture plus its mean error at the four nearest known pixels, int16 as `phase_base`.

    lossy: planes A, D, H, V of the lossy picture, padded as `a` and `d`. On coarse grids, where neighbours
    say little of a pixel, the lossy picture says nearly all.
    """
    error = phase_base(phase, a - lossy["A"], None if d is None else d - lossy["D"])
    return shifted(lossy[phase], 0, 0) + error


def guide_planes(base: Tensor, a: Tensor, lossy: dict[str, Tensor]) -> Tensor:
    """Network input from a lossy picture: its error on the known grid, its phases against the base.

    base: `layered_base`; a, lossy: padded by one more. Returns int16 [N, 12, h, w] as `base`, -64..63.
    """
    parts = [shifted(a - lossy["A"], 0, 0), *(shifted(lossy[p], 0, 0) - base for p in PHASES)]
    return compand(torch.cat(parts, 1))


def phase_inputs(
    phase: str, a: Tensor, d: Tensor | None, h: Tensor | None, lossy: dict[str, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Base, planes and, in a layered file, guide planes of a phase, all without the outermost position."""
    if lossy is None:
        base = phase_base(phase, a, d)
        return base, phase_planes(phase, base, a, d, h), None
    base = layered_base(phase, a, d, lossy)
    return base, phase_planes(phase, base, a, d, h), guide_planes(base, a, lossy)
