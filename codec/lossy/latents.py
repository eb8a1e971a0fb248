"""The latents of the lossy levels: what they are, their order, their units, and the transform they come from.

See docs/architecture.md, "Lossy levels". A block of 8x8 pixels has 192 latents: the coefficients of an
orthonormal 8x8 DCT of three opponent colour planes. Level 1 holds the 2x2 lowest frequencies (of chroma only
the mean), level 2 the rest of the 4x4 lowest, level 3 all others.
"""

import functools
import math

import torch
from torch import Tensor

BLOCK = 8
"""Side of a block in pixels."""
CELLS = BLOCK // 2
"""Cells of 2x2 pixels along a block."""
N_LATENTS = 3 * BLOCK * BLOCK
LEVEL_LATENTS = (6, 42, 144)
"""Latents of a block by level."""
LEVEL_START = (0, 6, 48, 192)
"""The first latent of each level, and the end."""

LATENT_UNIT = 8
"""Decoded latents are integers in eighths."""
STEP_UNIT = 256
"""Quantiser steps are in 1/256 of a latent unit."""
TARGET_UNIT = 16
"""What the encoder wants the latents to be is in sixteenths, which is small against every quantiser step."""
LATENT_MIN, LATENT_MAX = -32768, 32767
SYMBOL_LIMIT = 2047
"""Largest magnitude of a latent's symbol: times the coarsest step it fits 32 bits, and the finest step times
it reaches beyond every latent of a picture."""

STEP_OCTAVES = 1 / 16
"""Octaves of the quantiser step per unit of quality: 0..100 then spans about 0.05 to 4 bpp on photographs."""
INITIAL_STEP = 192.0
"""Quantiser step in RGB units at quality 0."""
LAGRANGE = 0.043
"""Lambda (MSE per subpixel and bit per pixel) over the squared step: 0.13 per sample as in H.264's reference
encoder, over 3."""

N_SCALES = 48
"""Tables per level: quarter octaves of the residual's scale over the step, from 2^-4."""
SCALE_MIN = -64
"""Log-scale over the step of a level's first table, in sixteenths of an octave."""
FIRST_CODED_SCALE = 1
"""Latents are skipped if their scale is below 2^-3.9 of the step: there a symbol other than 0 would cost 12
bits and more, and even a sure 0 costs its share of decoding."""

OFFSET_UNIT = 4
"""Sixteenths of an octave by which groups move the scales of a latent: from one table to the next."""
OFFSET_LIMIT = 16
"""By so many units at most."""

THIRD_OCTAVES = (0, 25, 51, 76)
"""Sixteenths of an octave by which the step of each refinement is finer: 16 log2(3) is 25.36."""
N_REFINED_SCALES, N_OFFSETS = 26, 10
"""A refinement's tables: by quarter octaves of the scale over the fine step, from 2^-3.75, and by the
distance of the mean from the coarse value."""
N_REFINED_TABLES = N_REFINED_SCALES * N_OFFSETS
REFINED_SCALE_MIN = -60
"""Log-scale over the step of a refinement's first tables, in sixteenths of an octave."""
NEAR_QUARTERS, FAR_QUARTERS = 7, (10, 15)
"""Distances in quarters of the fine step: up to 7 each is a class of its own, 6 being the border of the cell;
two more classes begin at 10 and 15."""
FARTHEST = 1 << 20
"""Distances between a mean and a latent, in eighths, are limited to this: sums of them then fit 32 bits."""

PLANE_GAIN = (3, 2, 6)
"""What a squared error in each opponent plane is in RGB, summed over R, G and B."""


@functools.cache
def latent_order() -> list[tuple[int, int, int]]:
    """(colour plane, vertical frequency, horizontal frequency) of each latent.

    By level, then plane, then raster.
    """
    order = [(0, u, v) for u in range(2) for v in range(2)] + [(1, 0, 0), (2, 0, 0)]
    order += [(c, u, v) for c in (1, 2) for u in range(2) for v in range(2) if u or v]
    for lo, hi in ((2, 4), (4, 8)):
        for c in range(3):
            order += [(c, u, v) for u in range(hi) for v in range(hi) if max(u, v) >= lo]
    return order


@functools.cache
def mean_latents(count: int) -> tuple[int, ...]:
    """Those of the first `count` latents that are a plane's mean (both frequencies 0)."""
    return tuple(i for i, (_, u, v) in enumerate(latent_order()[:count]) if u == v == 0)


@functools.cache
def plane_order(n: int) -> tuple[int, ...]:
    """Where among the latents the n x n lowest frequencies are: plane by plane, each in raster order."""
    place = {key: i for i, key in enumerate(latent_order())}
    return tuple(place[c, u, v] for c in range(3) for u in range(n) for v in range(n))


def level_latents(level: int) -> slice:
    """The latents of level 1, 2 or 3 among all 192."""
    return slice(LEVEL_START[level - 1], LEVEL_START[level])


def latent_grid(height: int, width: int) -> tuple[int, int]:
    """Blocks down and across of a picture of so many pixels."""
    return -(-height // BLOCK), -(-width // BLOCK)


@functools.cache
def positions(places: tuple[int, ...], device: torch.device) -> Tensor:
    """An index int64 on a device; kept, as bringing it there waits for the device."""
    return torch.tensor(places).to(device)


# The transform in float, for the encoder and for training


def dct_matrix(n: int = BLOCK) -> Tensor:
    """Orthonormal DCT-II, float64 [frequency, position]."""
    k = torch.arange(n, dtype=torch.float64)
    m = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * n)) * math.sqrt(2 / n)
    m[0] /= math.sqrt(2)
    return m


def latent_basis() -> Tensor:
    """Float32 [192 latents, 192 samples (plane, row, column)]: the separable DCT in latent order."""
    d = dct_matrix()
    rows = torch.zeros(N_LATENTS, 3, BLOCK, BLOCK, dtype=torch.float64)
    for i, (c, u, v) in enumerate(latent_order()):
        rows[i, c] = d[u][:, None] * d[v][None]
    return rows.flatten(1).float()


def block_transform(planes: Tensor, basis: Tensor) -> Tensor:
    """DCT of float [N, 3, 8h, 8w] into latents [N, 192, h, w], channels last. basis: `latent_basis()`."""
    n, c, height, width = planes.shape
    x = planes.view(n, c, height // BLOCK, BLOCK, width // BLOCK, BLOCK).permute(0, 2, 4, 1, 3, 5)
    return (x.reshape(n, height // BLOCK, width // BLOCK, N_LATENTS) @ basis.T).permute(0, 3, 1, 2)


def inverse_block_transform(latents: Tensor, basis: Tensor) -> Tensor:
    """Invert `block_transform` (the basis is orthonormal)."""
    n, _, h, w = latents.shape
    x = (latents.permute(0, 2, 3, 1) @ basis).view(n, h, w, 3, BLOCK, BLOCK)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, h * BLOCK, w * BLOCK)
