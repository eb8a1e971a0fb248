"""Sprites: one white shape on black, drawn from known factors, after dSprites (Matthey et al. 2017).

Five factors: shape (square, ellipse, heart), 6 scales from 0.5 to 1, 40 orientations of the full turn, 32
columns and 32 rows: 737,280 pictures, rendered when they are asked for. As in dSprites a square looks alike
after a quarter turn and an ellipse after a half.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FACTORS = ("shape", "scale", "orientation", "column", "row")
SIZES = (3, 6, 40, 32, 32)
"""How many values each factor has."""
MARGIN = 0.25
"""Centres keep this share of the side from the border, and no shape at scale 1 reaches further than that."""
HALF_SIDE = 0.17
HALF_AXES = (0.22, 0.12)
HEART, HEART_CENTRE = 0.185, 0.2935
"""Unit of the heart (x^2 + y^2 - 1)^3 < x^2 y^3, and its centre of mass on y, around which it turns; from
there it reaches 1.293 units."""


def random_factors(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Factors drawn uniformly: int64 [n, 5]."""
    return np.stack([rng.integers(0, size, n) for size in SIZES], 1)


def render(factors: NDArray[np.int64], side: int = 64) -> Tensor:
    """Pictures of factors: int64 [N, 5] to uint8 [N, 1, side, side], values 0 and 1.

    A pixel is white where its centre is inside the shape. Raises ValueError for factors out of range.
    """
    if factors.shape[1:] != (len(SIZES),) or not ((factors >= 0) & (factors < SIZES)).all():
        raise ValueError(f"factors are integers of 0 to {SIZES} exclusive")
    scale, turn, column, row = (f.reshape(-1, 1, 1).astype(np.float32) for f in factors.T[1:])
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    x = at - (MARGIN + (1 - 2 * MARGIN) * column / (SIZES[3] - 1))
    y = at[:, None] - (MARGIN + (1 - 2 * MARGIN) * row / (SIZES[4] - 1))
    angle, size = turn * np.float32(2 * math.pi / SIZES[2]), 0.5 + 0.5 * scale / (SIZES[1] - 1)
    u = (np.cos(angle) * x + np.sin(angle) * y) / size
    v = (np.cos(angle) * y - np.sin(angle) * x) / size
    inside = np.empty(u.shape, bool)
    for number, test in enumerate((_in_square, _in_ellipse, _in_heart)):
        these = factors[:, 0] == number
        inside[these] = test(u[these], v[these])
    return torch.from_numpy(inside.astype(np.uint8)).unsqueeze(1)


Coordinates = NDArray[np.float32]


def _in_square(u: Coordinates, v: Coordinates) -> NDArray[np.bool_]:
    return np.maximum(np.abs(u), np.abs(v)) < HALF_SIDE


def _in_ellipse(u: Coordinates, v: Coordinates) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (u / HALF_AXES[0]) ** 2 + (v / HALF_AXES[1]) ** 2 < 1
    return inside


def _in_heart(u: Coordinates, v: Coordinates) -> NDArray[np.bool_]:
    x, y = u / HEART, HEART_CENTRE - v / HEART  # its point looks down
    inside: NDArray[np.bool_] = (x**2 + y**2 - 1) ** 3 < x**2 * y**3
    return inside
