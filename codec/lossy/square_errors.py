"""Where in a picture the eye sees what the lossy levels changed, square by square of a map of qualities.

Nothing here decides what a bit means, so it may change without a new format.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.lossy.eye_distance import (
    HAND_SCALE,
    KINDS,
    NORMS,
    PEAK_FLOOR,
    PLANES,
    SCALES,
    WINDOW_REACH,
    error_planes,
    weights,
    xyb,
)
from vbc.codec.lossy.map_coding import SQUARE
from vbc.codec.pixels.borders import Window, window_with_halo

TILE = 32 * SQUARE
"""Side of what is compared at once, in pixels: about 120 MB of planes in float."""
HALO = 3 * SQUARE
"""Pixels looked at around a tile: `WINDOW_REACH` of the coarsest scale, in whole squares. Errors so depend on
the picture alone, not on its tiles."""
assert HALO >= WINDOW_REACH << SCALES - 1


def square_errors(original: Tensor, decoded: Tensor) -> Tensor:
    """What each square adds to the distance of two pictures: float32 [1, 1, h, w] on the host, 0 or more.

    The distance is that by hand of `eye_distance`: the fitted one gains more by SSIMULACRA 2, which it stands
    for, and less by Butteraugli (docs/decisions/0008-for-the-eye.md).

    original, decoded: uint8 RGB [1, 3, H, W] of any size; beyond its borders the last row and column are
    repeated. Worked through in tiles. A square's part of a mean is its own mean, its part of a 4-norm the
    share that its fourth powers have of the picture's.
    """
    height, width = original.shape[-2:]
    n_h, n_w = -(-height // SQUARE), -(-width // SQUARE)
    weight = HAND_SCALE * weights()[1]
    means, peaks = (weight[:, :, NORMS.index(norm), :, None, None] for norm in NORMS)
    errors = torch.zeros(1, 1, n_h, n_w)
    fourth = torch.zeros(SCALES, len(KINDS), len(PLANES), n_h, n_w)
    for top in range(0, n_h, TILE // SQUARE):
        for left in range(0, n_w, TILE // SQUARE):
            rows, cols = (slice(i, min(i + TILE // SQUARE, n)) for i, n in ((top, n_h), (left, n_w)))
            mean, power = tile_errors(original, decoded, (rows, cols))
            errors[0, 0, rows, cols] = (means * mean).sum((0, 1, 2))
            fourth[..., rows, cols] = power
    norms = (fourth.mean((-1, -2), keepdim=True) + PEAK_FLOOR) ** -0.75
    return errors + (peaks * norms * fourth).sum((0, 1, 2))


def tile_errors(original: Tensor, decoded: Tensor, squares: Window) -> tuple[Tensor, Tensor]:
    """Means of errors and of their fourth powers in a tile: [scale, kind, plane, h, w] each.

    squares: rows and columns of the tile's squares. Pictures as in `square_errors`.
    """
    tile = (
        slice(squares[0].start * SQUARE, squares[0].stop * SQUARE),
        slice(squares[1].start * SQUARE, squares[1].stop * SQUARE),
    )
    # on the host, so that files do not depend on a device's rounding
    a, b = (xyb(window_with_halo(x, tile, HALO).cpu().float()) for x in (original, decoded))
    means, powers = [], []
    for scale in range(SCALES):
        around = (HALO >> scale) - WINDOW_REACH
        inside = slice(around, -around)
        errors = error_planes(a, b)[0, ..., inside, inside].flatten(0, 1)
        means.append(F.avg_pool2d(errors, SQUARE >> scale))
        powers.append(F.avg_pool2d(errors.square().square(), SQUARE >> scale))
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    size = SCALES, len(KINDS), len(PLANES), *means[0].shape[-2:]
    return torch.stack(means).view(size), torch.stack(powers).view(size)
