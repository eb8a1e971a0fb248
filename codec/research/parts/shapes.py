"""Coloured shapes on flat grounds or photographs, with true masks and what is behind them.

Squares, stars, circles, triangles of any angle, pasted by `vbc.kernels.research.glimpse`. Masks are binary:
a picture is exactly its foreground inside and its background outside.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.kernels.research.glimpse import paste

SHAPES = ("square", "star", "circle", "triangle")
COLOURS = {
    "red": (200, 40, 40),
    "green": (60, 200, 60),
    "blue": (50, 70, 200),
    "dark green": (20, 90, 40),
    "black": (0, 0, 0),
}
JITTER = 12
"""Colours differ from these by up to so many grey values, all but black."""
PATCH, MARGIN = 64, 1.1
"""Side of the drawn shapes in pixels; half of it over the radius of their circle."""
INNER = 0.45
"""Radius of a star's inner corners over that of its points."""


@dataclass(frozen=True)
class Drawing:
    """What pictures are like.

    colours, grounds: names in COLOURS, those of objects and of flat grounds; an object never has its ground's
    name. reach: how far from the middle an object's centre lies at most in each direction, 1 is the border.
    radius: least and greatest, 1 is half the side. most: objects a picture; each has one at least.
    """

    side: int = 32
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = ("red", "green", "blue")
    grounds: tuple[str, ...] = ("red", "green", "blue", "dark green")
    reach: float = 0.0
    radius: tuple[float, float] = (0.45, 0.6)
    most: int = 1


class Scenes(NamedTuple):
    """Pictures in parts: images = foregrounds inside masks, backgrounds outside.

    images, foregrounds (black outside), backgrounds (whole): uint8 [N, 3, S, S]. masks: uint8 [N, 1, S, S], 0
    or 1. shape, colour: int64 [N], of the first object, places in SHAPES and COLOURS. ground: int64 [N],
    likewise, -1 for a photograph.
    """

    images: Tensor
    foregrounds: Tensor
    backgrounds: Tensor
    masks: Tensor
    shape: Tensor
    colour: Tensor
    ground: Tensor


def draw(drawing: Drawing, n: int, seed: int, photographs: Tensor | None = None) -> Scenes:
    """n pictures. photographs: uint8 [M, 3, S, S], the grounds, drawn at random; flat ones where None."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    colour = _some(drawing.colours, names, (drawing.most, n), rng)
    if photographs is None:
        ground = _some(drawing.grounds, names, (n,), rng)
        for _ in range(100):  # an object of the ground's colour would not be seen: another ground
            same = (colour == ground).any(0)
            ground = np.where(same, _some(drawing.grounds, names, (n,), rng), ground)
        backgrounds = _flat(ground, rng).view(n, 3, 1, 1).expand(-1, -1, drawing.side, drawing.side)
    else:
        ground = np.full(n, -1)
        backgrounds = photographs[torch.from_numpy(rng.integers(0, len(photographs), n))]
    shape = _some(drawing.shapes, SHAPES, (drawing.most, n), rng)
    masks = torch.zeros((n, 1, drawing.side, drawing.side), dtype=torch.uint8)
    foregrounds = torch.zeros_like(backgrounds)
    count = rng.integers(1, drawing.most + 1, n)
    for k in range(drawing.most):
        there = torch.from_numpy(count > k).view(-1, 1, 1, 1)
        inside = placed(shape[k], drawing, rng) & there
        foregrounds = torch.where(inside, _flat(colour[k], rng).view(n, 3, 1, 1), foregrounds)
        masks |= inside.to(torch.uint8)
    images = recomposed(foregrounds, masks, backgrounds)
    labels = (torch.from_numpy(part.astype(np.int64)) for part in (shape[0], colour[0], ground))
    return Scenes(images, foregrounds, backgrounds.contiguous(), masks, *labels)


def recomposed(foregrounds: Tensor, masks: Tensor, backgrounds: Tensor) -> Tensor:
    """Foregrounds on other backgrounds: uint8 [N, 3, S, S]."""
    return torch.where(masks.bool(), foregrounds, backgrounds)


def placed(shape: NDArray[np.int64], drawing: Drawing, rng: np.random.Generator) -> Tensor:
    """Masks of shapes at random places, sizes and angles: bool [N, 1, S, S]."""
    n = len(shape)
    angle, radius = rng.uniform(0, 2 * math.pi, n), rng.uniform(*drawing.radius, n)
    centre = rng.uniform(-drawing.reach, drawing.reach, (2, n))
    half = MARGIN * radius
    rows = (
        half * np.cos(angle),
        -half * np.sin(angle),
        centre[0],
        half * np.sin(angle),
        half * np.cos(angle),
    )
    transforms = torch.from_numpy(np.stack((*rows, centre[1]), 1).astype(np.float32)).view(n, 2, 3)
    patches = torch.stack([_shape(name) for name in SHAPES])[torch.from_numpy(shape)]
    size = (n, drawing.side, drawing.side)
    return paste(patches, transforms, torch.arange(n), size)[0] > 0.5


def _shape(name: str) -> Tensor:
    """A shape within the circle of radius 1 / MARGIN: float32 [1, PATCH, PATCH], 0 or 1."""
    at = (np.arange(PATCH) * 2 + 1) / PATCH - 1
    x, y = MARGIN * at, MARGIN * at[:, None]
    if name == "circle":
        inside = x**2 + y**2 < 0.8**2
    else:
        n = {"square": 4, "star": 10, "triangle": 3}[name]
        corners = 2 * math.pi * np.arange(n) / n
        radii = np.where(np.arange(n) % 2, INNER, 1.0) if name == "star" else np.ones(n)
        inside = _in_polygon(x, y, radii * np.sin(corners), -radii * np.cos(corners))
    return torch.from_numpy(inside.astype(np.float32)).unsqueeze(0)


def _in_polygon(
    x: NDArray[np.float64], y: NDArray[np.float64], xs: NDArray[np.float64], ys: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether points lie in a polygon: a ray to the right crosses its sides an odd number of times."""
    inside = np.zeros(np.broadcast(x, y).shape, bool)
    for x0, y0, x1, y1 in zip(xs, ys, np.roll(xs, -1), np.roll(ys, -1), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside


def _some(
    names: tuple[str, ...],
    among: list[str] | tuple[str, ...],
    size: tuple[int, ...],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Places in `among` of names drawn at random."""
    places = np.array([among.index(name) for name in names])
    drawn: NDArray[np.int64] = rng.choice(places, size)
    return drawn


def _flat(colour: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """Colours, jittered: uint8 [N, 3]."""
    plain = np.array(list(COLOURS.values()))[colour]
    moved = (
        plain
        + rng.integers(-JITTER, JITTER + 1, plain.shape) * (colour != list(COLOURS).index("black"))[:, None]
    )
    return torch.from_numpy(np.clip(moved, 0, 255).astype(np.uint8))
