"""A photograph-like example image made from nothing: `python -m vbc.codec.example OUT.png [--size 768x512]
[--seed 1]`.

Sky, hills with texture of a natural spectrum, shaded balls with shadows on a ground plane, soft focus and
camera noise. It stands in for a
photograph where none can be had; it is no benchmark.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vbc.codec.files.image_io import Metadata, Picture, write_atomic, write_picture

Plane = NDArray[np.float64]

SUN = np.array([-0.5, -0.65, 0.57])
"""Direction to the light: x to the right, y down, z to the viewer."""
READ_NOISE = 0.004
SHOT_NOISE = 0.012
"""Noise of a small camera in full daylight: standard deviations at black, and at white beyond it, of linear
light 0..1."""


def make_example(width: int = 768, height: int = 512, seed: int = 1) -> NDArray[np.uint8]:
    """The picture, uint8 [height, width, 3]; the same for the same arguments on one machine."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / float(height)
    light = _sky(rng, x, y)
    for depth in range(3):
        light = _hills(rng, light, y, depth)
    light = _ground(rng, light, x, y)
    for _ in range(7):
        light = _ball(rng, light, x, y, width / height)
    light = _soften(light)
    noise = READ_NOISE + SHOT_NOISE * np.sqrt(np.clip(light, 0, 1))
    light = np.clip(light + noise * rng.standard_normal(light.shape), 0, 1)
    return np.round(255 * light ** (1 / 2.2)).astype(np.uint8)


def _texture(rng: np.random.Generator, shape: tuple[int, int], slope: float) -> Plane:
    """Random field whose amplitude falls as frequency ** -slope, as in natural images; mean 0, deviation
    1."""
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    amplitude = (np.hypot(fy, fx) + 1 / max(shape)) ** -slope
    amplitude[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * amplitude, shape)
    return np.asarray(field / max(float(field.std()), 1e-9))


def _blend(below: Plane, above: Plane, alpha: Plane) -> Plane:
    return np.asarray(below + np.clip(alpha, 0, 1)[..., None] * (above - below))


def _sky(rng: np.random.Generator, x: Plane, y: Plane) -> Plane:
    top, horizon = np.array([0.10, 0.25, 0.62]), np.array([0.62, 0.72, 0.82])
    sky = top + np.clip(y / 0.55, 0, 1)[..., None] * (horizon - top)
    clouds = _texture(rng, (x.shape[0], x.shape[1]), 1.7) * 0.5 - 0.1
    return _blend(sky, np.full_like(sky, 0.85), clouds * (1 - y))


def _hills(rng: np.random.Generator, light: Plane, y: Plane, depth: int) -> Plane:
    h, w = y.shape
    crest = 0.38 + 0.07 * depth + 0.04 * _texture(rng, (2, w), 1.6)[0]
    colour = np.array([0.16, 0.24, 0.13]) * (0.6 + 0.2 * (2 - depth)) + np.array([0.05, 0.09, 0.16]) * (
        2 - depth
    )
    leaves = 1 + 0.16 * (depth + 1) * _texture(rng, (h, w), 0.9)
    return _blend(light, colour * np.clip(leaves, 0.1, 3)[..., None], (y - crest) * h * 0.7)


def _ground(rng: np.random.Generator, light: Plane, x: Plane, y: Plane) -> Plane:
    h, w = y.shape
    depth = 0.12 / np.clip(y - 0.52, 0.01, None)
    boards = 0.5 + 0.5 * np.tanh(6 * np.sin((x - x.mean()) * depth * 42))
    tone = 0.30 + 0.10 * boards * np.exp(-0.4 * depth) + 0.035 * _texture(rng, (h, w), 1.0)
    return _blend(light, tone[..., None] * np.array([1.0, 0.78, 0.55]), (y - 0.58) * h * 0.5)


def _ball(rng: np.random.Generator, light: Plane, x: Plane, y: Plane, aspect: float) -> Plane:
    h, w = y.shape
    cx, cy, r = rng.uniform(0.1, aspect - 0.1), rng.uniform(0.68, 0.9), rng.uniform(0.05, 0.13)
    colour = rng.uniform(0.08, 0.75, 3)
    shadow = np.exp(-3 * np.hypot((x - cx - 0.6 * r) / (1.5 * r), (y - cy - 0.85 * r) / (0.4 * r)) ** 2)
    light = light * (1 - 0.65 * shadow)[..., None]
    u, v = (x - cx) / r, (y - cy) / r
    rho = np.hypot(u, v)
    z = np.sqrt(np.clip(1 - rho**2, 0, 1))
    diffuse = np.clip(u * SUN[0] + v * SUN[1] + z * SUN[2], 0, 1)
    gloss = np.clip(2 * diffuse * z - SUN[2], 0, 1) ** 40
    marks = 1 + 0.12 * _texture(rng, (h, w), 1.2)
    shaded = (colour * ((0.12 + 0.88 * diffuse) * marks)[..., None]) + 0.7 * gloss[..., None]
    return _blend(light, shaded, (1 - rho) * r * h)


def _soften(light: Plane) -> Plane:
    """The lens: a binomial blur [1 2 1] / 4 both ways."""
    for axis in (0, 1):
        pad = [(1, 1) if a == axis else (0, 0) for a in range(3)]
        p = np.moveaxis(np.pad(light, pad, mode="edge"), axis, 0)
        light = np.moveaxis(0.25 * p[:-2] + 0.5 * p[1:-1] + 0.25 * p[2:], 0, axis)
    return light


def main() -> None:
    """Write the example image to the file named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vbc.codec.example", description="Write an example image."
    )
    parser.add_argument("out", type=Path, help="image file to write; its ending says which kind")
    parser.add_argument("--size", default="768x512", help="width x height in pixels")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        width, height = map(int, args.size.split("x"))
    except ValueError:
        parser.error("--size is WIDTHxHEIGHT, for instance 768x512")
    if width < 1 or height < 1:
        parser.error("--size: both sides are at least 1")
    picture = Picture(make_example(width, height, args.seed), gray=False, metadata=Metadata())
    write_atomic(args.out, write_picture(picture, args.out.suffix, exact=True))


if __name__ == "__main__":
    main()
