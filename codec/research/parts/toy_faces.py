"""Toy faces: drawn, aligned faces of 64x64 pixels with twelve known attributes, most of them local.

They stand for a set of labelled photographs of faces. Geometry varies by +-8 %, position by +-1 pixel; skin,
hair, background and light are random, and noise lies over all. Attributes are independent of one another and
of everything else. All of it is a function of the number of faces and the seed.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 64
SHARES = {
    "glasses": 0.07,
    "mouth open": 0.48,
    "smile": 0.48,
    "beard": 0.2,
    "bangs": 0.15,
    "blond": 0.15,
    "black hair": 0.24,
    "hat": 0.05,
    "thick brows": 0.14,
    "earrings": 0.19,
    "pale": 0.04,
    "eyes shut": 0.1,
}
"""Attributes and how often each is there."""
BOXES = {
    "glasses": (17, 24, 47, 38),
    "mouth open": (24, 40, 40, 51),
    "smile": (24, 40, 40, 51),
    "beard": (16, 39, 48, 58),
    "bangs": (17, 18, 47, 28),
    "blond": (10, 6, 54, 44),
    "black hair": (10, 6, 54, 44),
    "hat": (9, 3, 55, 23),
    "thick brows": (18, 22, 46, 30),
    "earrings": (10, 36, 54, 46),
    "eyes shut": (19, 26, 45, 36),
}
"""Where an attribute shows: left, top, right, bottom in pixels, the last two exclusive. Pale skin is all over
the face and has none."""
N_TRAIN, N_TEST = 8000, 2000
SPREAD, SHIFT, NOISE = 0.08, 1.0, 8.0
"""Of geometry as a share; of position in pixels; of noise, its standard deviation in grey values."""
CHUNK = 250
"""Faces that are drawn at a time."""

DARK_SKIN, LIGHT_SKIN, PALE_SKIN = (92, 58, 40), (224, 172, 138), (246, 236, 230)
BROWN, BLOND, BLACK = (98, 62, 36), (226, 192, 108), (24, 20, 20)
LIPS, MOUTH, WHITE, GOLD, FRAME = (170, 64, 64), (60, 16, 20), (240, 240, 240), (236, 196, 50), (30, 30, 36)

Floats = NDArray[np.floating[Any]]
"""float32 everywhere; for the type checker a product with a number might be more."""


class ToyFaces(NamedTuple):
    """Faces.

    images: uint8 [N, 3, 64, 64]. attributes: bool [N, 12] in the order of SHARES. eyes: float32 [N, 2, 2], x
    and y of the centres of the left and the right eye of the picture, in pixels.
    """

    images: Tensor
    attributes: Tensor
    eyes: Tensor


class Parameters(NamedTuple):
    """What is random in n faces.

    has: bool [n] of each attribute. scale: a factor around 1 of each length, float32 [n]. centre: x and y,
    float32 [n]. colours: float32 [n, 3] by name. light: how much brighter it gets over half a picture to the
    right and down, float32 [n].
    """

    has: dict[str, NDArray[np.bool_]]
    scale: dict[str, Floats]
    centre: tuple[Floats, Floats]
    colours: dict[str, Floats]
    light: tuple[Floats, Floats]


LENGTHS = (
    "width",
    "height",
    "eye distance",
    "eye height",
    "eye size",
    "brow",
    "nose",
    "mouth",
    "mouth height",
)


def toy_faces(n: int, seed: int) -> ToyFaces:
    """n faces."""
    rng = np.random.default_rng(seed)
    attributes = rng.random((n, len(SHARES))) < np.array(list(SHARES.values()))
    images, eyes = [], []
    for start in range(0, n, CHUNK):
        parameters = _draw(attributes[start : start + CHUNK], rng)
        canvas = _paint(parameters)
        noisy = canvas + rng.normal(0, NOISE, canvas.shape).astype(np.float32)
        images.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
        eyes.append(np.stack([np.stack(_eye(parameters, side), 1) for side in (-1, 1)], 1))
    parts = (np.concatenate(images), attributes, np.concatenate(eyes))
    return ToyFaces(*(torch.from_numpy(part) for part in parts))


def train_and_test(seed: int = 0) -> tuple[ToyFaces, ToyFaces]:
    """8,000 faces to train on and 2,000 others."""
    return toy_faces(N_TRAIN, 2 * seed), toy_faces(N_TEST, 2 * seed + 1)


def _draw(attributes: NDArray[np.bool_], rng: np.random.Generator) -> Parameters:
    n = len(attributes)
    has = dict(zip(SHARES, attributes.T, strict=True))
    scale = {name: (1 + SPREAD * rng.uniform(-1, 1, n)).astype(np.float32) for name in LENGTHS}
    x, y = (at + SHIFT * rng.uniform(-1, 1, n).astype(np.float32) for at in (32, 34))
    tone = _between(DARK_SKIN, LIGHT_SKIN, rng.random(n))
    colours = {
        "skin": np.where(has["pale"][:, None], _between(LIGHT_SKIN, PALE_SKIN, np.full(n, 0.85)), tone),
        "hair": _between(BROWN, (130, 84, 50), rng.random(n)),
        "iris": rng.uniform(20, 110, (n, 3)).astype(np.float32),
        "hat": rng.uniform(20, 235, (n, 3)).astype(np.float32),
        "back": rng.uniform(30, 225, (n, 3)).astype(np.float32),
        "low": rng.uniform(30, 225, (n, 3)).astype(np.float32),
    }
    angle, strength = rng.uniform(0, 2 * np.pi, n), rng.uniform(0, 0.25, n)
    light = (strength * np.cos(angle)).astype(np.float32), (strength * np.sin(angle)).astype(np.float32)
    return Parameters(has, scale, (x, y), colours, light)


def _paint(p: Parameters) -> Floats:
    """Faces without noise: float32 [n, 3, 64, 64], from the background to the glasses."""
    at = (np.arange(SIDE) + 0.5).astype(np.float32)
    shape = (len(p.centre[0]), SIDE, SIDE)
    x: Floats = np.broadcast_to(at - _wide(p.centre[0]), shape)
    y: Floats = np.broadcast_to(at[:, None] - _wide(p.centre[1]), x.shape)
    has = {name: _wide(flag.astype(np.float32)) for name, flag in p.has.items()}
    width, height, mouth = (_wide(p.scale[name]) for name in ("width", "height", "mouth"))
    ramp = (at / SIDE).reshape(1, 1, SIDE, 1)
    canvas = p.colours["back"][..., None, None] * (1 - ramp) + p.colours["low"][..., None, None] * ramp
    canvas = np.broadcast_to(canvas, (*canvas.shape[:3], SIDE)).copy()
    skin, hair = p.colours["skin"], _hair(p, y)

    head = _ellipse(x, y, 17 * width, 21 * height)
    scalp = _ellipse(x, y + 5, 20 * width, 22 * height)
    below = _edge(y - 8)  # how far long hair reaches
    _cover(canvas, scalp * below, hair)
    _cover(canvas, head, skin)
    beard = head * _edge(7 * height - y) * 0.8 * has["beard"]
    _cover(canvas, beard, 0.75 * hair)
    _features(canvas, p, x, y, has, hair)
    lips, opening, open_half = _mouth(p, x, y, mouth, has)
    _cover(canvas, lips, LIPS)
    _cover(canvas, opening * open_half, MOUTH)
    _cover(canvas, scalp * _edge(y + (14 - 5.5 * has["bangs"]) * height), hair)
    for side in (-1, 1):
        _cover(canvas, _ellipse(x - side * 18.5 * width, y - 7, 1.8, 2.6) * has["earrings"], GOLD)
    crown = _ellipse(x, y + 16 * height, 17 * width, 13) * _edge(y + 14 * height)
    brim = _ellipse(x, y + 14 * height, 22 * width, 2.2)
    _cover(canvas, np.maximum(crown, brim) * has["hat"], p.colours["hat"])
    light = 1 + (_wide(p.light[0]) * x + _wide(p.light[1]) * y) / (SIDE / 2)
    lit: Floats = canvas * light[:, None]
    return lit


def _features(
    canvas: Floats, p: Parameters, x: Floats, y: Floats, has: dict[str, Floats], hair: Floats
) -> None:
    """Nose, eyes, brows, glasses."""
    nose = _wide(p.scale["nose"])
    _cover(canvas, _ellipse(x, y - 3.5, 1.8, 4.2 * nose) * 0.6, 0.75 * p.colours["skin"])
    size, lift = _wide(p.scale["eye size"]), 8.5 * _wide(p.scale["brow"])
    for side in (-1, 1):
        centre = _eye(p, side)
        u, v = x + _wide(p.centre[0] - centre[0]), y + _wide(p.centre[1] - centre[1])
        shut = has["eyes shut"]
        _cover(canvas, _ellipse(u, v, 3.8 * size, 2.2 * size) * (1 - shut), WHITE)
        _cover(canvas, _ellipse(u, v, 1.8 * size, 1.8 * size) * (1 - shut), p.colours["iris"])
        _cover(canvas, _ellipse(u, v, 3.8 * size, 0.7) * shut, 0.5 * p.colours["skin"])
        thick = 0.9 + 1.1 * has["thick brows"]
        _cover(canvas, _ellipse(u, v + lift - 3, 4.6, thick), 0.6 * hair)
        ring = _ellipse(u, v, 6.2, 5.4) - _ellipse(u, v, 5.0, 4.2)
        _cover(canvas, ring * has["glasses"], FRAME)
    bridge = _ellipse(x, y - _wide(_eye(p, 1)[1] - p.centre[1]), 2.4, 0.9)
    _cover(canvas, bridge * has["glasses"], FRAME)


def _mouth(
    p: Parameters, x: Floats, y: Floats, mouth: Floats, has: dict[str, Floats]
) -> tuple[Floats, Floats, Floats]:
    """Coverage by lips and by what is between them, and whether the mouth is open."""
    half = 6.5 * mouth
    arch = np.clip(1 - (x / half) ** 2, 0, 1)
    line = 10.5 * _wide(p.scale["mouth height"]) + (2.6 * has["smile"] - 0.5) * arch
    gap = (0.3 + 2.4 * has["mouth open"]) * arch
    distance, ends = np.abs(y - line), _edge(np.abs(x) - half)
    return _edge(distance - gap - 1.0) * ends, _edge(distance - gap) * ends, has["mouth open"]


def _hair(p: Parameters, y: Floats) -> Floats:
    """Colours: brown, blond, black; one with both is black on top and blond below. float32 [n, 3, 64, 64]."""
    brown = p.colours["hair"][..., None, None]
    blond, black = (_wide(p.has[name].astype(np.float32))[:, None] for name in ("blond", "black hair"))
    down = np.clip((y[:, None] + 20) / 20, 0, 1)
    share = blond * (1 - black * (1 - down))
    dark = brown * (1 - black) + np.array(BLACK, np.float32).reshape(1, 3, 1, 1) * black
    mixed: Floats = dark * (1 - share) + np.array(BLOND, np.float32).reshape(1, 3, 1, 1) * share
    return mixed


def _eye(p: Parameters, side: int) -> tuple[Floats, Floats]:
    """Centre of an eye, side -1 on the left: float32 [n] both."""
    x = p.centre[0] + side * 7.5 * p.scale["eye distance"]
    return x.astype(np.float32), (p.centre[1] - 3 * p.scale["eye height"]).astype(np.float32)


def _cover(canvas: Floats, coverage: Floats, colour: Floats | tuple[int, int, int]) -> None:
    """Paint over. coverage: 0 to 1 [n, 64, 64]. colour: one, or one a face [n, 3] or pixel [n, 3, 64, 64]."""
    paint = np.asarray(colour, np.float32)
    if paint.ndim < 4:
        paint = np.broadcast_to(paint, (len(canvas), 3))[..., None, None]
    canvas += (paint - canvas) * coverage[:, None]


def _ellipse(x: Floats, y: Floats, a: float | Floats, b: float | Floats) -> Floats:
    """Coverage of each pixel by an ellipse around 0 with these half axes: its edge is one pixel wide."""
    radius = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    slope = np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2)
    return _edge((radius - 1) * radius / np.maximum(slope, 1e-3))


def _edge(distance: Floats) -> Floats:
    """Coverage by what lies at negative distances, in pixels."""
    covered: Floats = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    return covered


def _wide(values: Floats) -> Floats:
    """[n] to [n, 1, 1]."""
    return values.reshape(-1, 1, 1)


def _between(a: tuple[int, int, int], b: tuple[int, int, int], t: NDArray[np.float64]) -> Floats:
    """Colours from a to b: float32 [n, 3]."""
    mixed: Floats = (np.array(a) + (np.array(b) - np.array(a)) * t[:, None]).astype(np.float32)
    return mixed
