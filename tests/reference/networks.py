"""Layers, chains and functions of their inputs (docs/format.md, section 8). Planes are int32 [C, h, w]."""

import numpy as np

from reference.weights import Array, Weights

ZERO = 64
"""What a network adds to its inputs."""


def layer(weights: Weights, name: str, x: Array, head: bool = False, bias: Array | None = None) -> Array:
    """A convolution without padding of 0..127; a head's result is not clamped. All sums are below 2^24."""
    weight, shift = weights[f"{name}.weight"], weights[f"{name}.shift"].astype(np.int64)[:, None, None]
    rows, columns = (n - weight.shape[-1] + 1 for n in x.shape[1:])
    total = np.zeros((len(weight), rows, columns))
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            part = x[:, dy : dy + rows, dx : dx + columns].astype(np.float64)
            total += np.tensordot(weight[:, :, dy, dx].astype(np.float64), part, 1)
    sums = total.astype(np.int64) + (weights[f"{name}.bias"] if bias is None else bias)[:, None, None]
    out = (sums + (1 << (shift - 1))) >> shift
    return (out if head else out.clip(0, 127)).astype(np.int32)


def chain(weights: Weights, name: str, inputs: Array, use: int = 0) -> Array:
    """Hidden layers and a head on planes -64..63."""
    x = inputs + ZERO
    bias: Array | None = weights[f"{name}.condition"][use]
    i = 0
    while f"{name}.{i}.weight" in weights.tensors:
        x = layer(weights, f"{name}.{i}", x, bias=bias)
        bias, i = None, i + 1
    return layer(weights, f"{name}.head", x, head=True)


def compand(d: Array) -> Array:
    """Slope 1 up to 32, then 1/4; -64..63."""
    near = d.clip(-32, 32)
    out: Array = (near + ((d - near) >> 2)).clip(-64, 63)
    return out


def fine(d: Array) -> Array:
    """Eighths in units of 1; -64..63."""
    return ((d + 4) >> 3).clip(-64, 63)


def coarse(d: Array) -> Array:
    """Eighths in units of 8; -64..63."""
    return ((d + 32) >> 6).clip(-64, 63)


def quality_planes(quality: Array) -> Array:
    """Inputs [2, h, w] that say which quality is where: it and its square. quality: 0..100, [h, w]."""
    t = ((81 * quality + 32) >> 6) - 64
    return np.stack((t, ((t * t >> 5) - 64).clip(-64, 63)))


def edge(planes: Array, rows: Array, columns: Array) -> Array:
    """The planes [..., h, w] at all pairs of these rows and columns, borders repeated."""
    h, w = planes.shape[-2:]
    return planes[..., rows.clip(0, h - 1), :][..., columns.clip(0, w - 1)]


def around(start: int, stop: int, reach: int) -> Array:
    """The positions from start - reach to stop + reach - 1."""
    return np.arange(start - reach, stop + reach)
