"""Frequency tables: the logistic's own, then refit on what the integer model meets.

See docs/training.md, "Tables".
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from vbc.bitstream.container import VALUES_BOUND
from vbc.bitstream.tables import ESCAPE, SYMBOL_MAX, normalise_counts
from vbc.codec.entropy.coder import Counter
from vbc.codec.exact.tuning import N_TUNING_TABLES, NARROWEST_TABLE
from vbc.codec.exact.values import FAR_OFFSETS, N_VALUE_SCALES, NEAR_OFFSETS
from vbc.codec.lossy.latents import (
    FAR_QUARTERS,
    N_REFINED_SCALES,
    N_SCALES,
    NEAR_QUARTERS,
    REFINED_SCALE_MIN,
    SCALE_MIN,
)
from vbc.codec.lossy.map_coding import N_MAP_TABLES
from vbc.codec.nets.int_nets import Tensors
from vbc.kernels.predict import FRACTIONS, LOG_SCALE_MAX, LOG_SCALE_MIN

LEAST_FREQUENCY = 32
"""Of 2^24: what training never met costs 19 bits, and that there is all of it costs 0.0007 bits a symbol."""
UNCOUNTED_FREQUENCY = 256
"""As long as nothing has been counted: nothing costs more than 16 bits."""
PRIOR_COUNTS = 200.0
"""Weight of the logistic beside the counts: tables that are met seldom stay near it."""

BIN_FRACTIONS = slice(4, 12)
"""Of a step: a mean lies no further from where its bins begin than half a pixel value."""


def fraction_classes(scale_class: int) -> int:
    """How many fractional means a scale distinguishes: 8 below 2 pixel values, then fewer.

    That costs 0.04 % in all.
    """
    if scale_class < 20:
        return 8
    return 4 if scale_class < 24 else 2 if scale_class < 28 else 1


Parameters = list[tuple[float, float]]
"""Mean and log2 scale that each table stands for."""


def exact_table_index(first: int, near: slice) -> tuple[NDArray[np.uint16], Parameters]:
    """The map [3, (log-scale, fraction)] to tables from `first` on, and what they stand for.

    near: the fractions of the mean that occur; the others share the tables of the nearest ones.
    """
    scales = np.arange(LOG_SCALE_MAX - LOG_SCALE_MIN + 1)
    classes = (scales + 2) >> 2
    index = np.zeros((3, len(scales), FRACTIONS), np.uint16)
    parameters: Parameters = []
    fractions = np.arange(FRACTIONS).clip(near.start, near.stop - 1)
    for c in range(3):
        for k in range(int(classes.max()) + 1):
            n = fraction_classes(k)
            for j in np.unique(fractions * n >> 4):
                chosen = fractions * n >> 4 == j
                index[c][np.ix_(classes == k, chosen)] = first + len(parameters)
                mean = np.arange(FRACTIONS)[np.arange(FRACTIONS) * n >> 4 == j].mean()
                parameters.append(((mean - 8) / 16, (4 * k + LOG_SCALE_MIN) / 16))
    return index.reshape(3, -1), parameters


def logistic_table(mean: float, log2_scale: float) -> NDArray[np.float64]:
    """Probabilities of -127..127 and the escape (what lies beyond): float64 [256]."""
    edges = (np.arange(-SYMBOL_MAX, SYMBOL_MAX + 2) - 0.5 - mean) / 2.0**log2_scale
    cdf = 0.5 * (1 + np.tanh(edges / 2))
    p = np.empty(256)
    p[:ESCAPE] = np.diff(cdf)
    p[ESCAPE] = max(0.0, 1.0 - p[:ESCAPE].sum())
    return p


def refinement_tables() -> NDArray[np.float64]:
    """Probabilities of the symbols of refinements by scale, then offset: float64 [260, 256].

    How often a latent leaves its cell, counts will tell.
    """
    # the middle of what each of the two open classes holds
    quarters = [*range(NEAR_QUARTERS + 1), *(first + 2 for first in FAR_QUARTERS)]
    quarters[NEAR_QUARTERS] += 1
    octaves = (4 * np.arange(N_REFINED_SCALES) + REFINED_SCALE_MIN) / 16
    return cell_tables(octaves, np.array(quarters) / 4, 1)


def value_tables() -> NDArray[np.float64]:
    """Probabilities of the values in bins of 5, by scale, then offset: float64 [325, 256]."""
    quarters = [*range(NEAR_OFFSETS + 1), *(first + 2 for first in FAR_OFFSETS)]
    octaves = (4 * np.arange(N_VALUE_SCALES) + LOG_SCALE_MIN) / 16
    return cell_tables(octaves, np.array(quarters) / 4, VALUES_BOUND)


def cell_tables(
    octaves: NDArray[np.float64], offsets: NDArray[np.float64], reach: int
) -> NDArray[np.float64]:
    """Probabilities of -reach to reach: the logistic of a scale, restricted to a cell, in whose middle 0 is.

    By scale, then by how far the mean lies from the middle: float64 [scales * offsets, 256]. A symbol is
    positive towards the mean.
    """
    offset, scale = np.meshgrid(offsets, 2.0**octaves)
    edges = (np.arange(-reach - 0.5, reach + 1)[:, None, None] - offset) / scale
    # F(upper) - F(lower) = F(upper) (1 - F(lower)) (1 - exp(lower - upper)), and all bins are equally wide
    log_mass = -np.logaddexp(0, -edges[1:]) - np.logaddexp(0, edges[:-1])
    mass = np.exp(log_mass - log_mass.max(0))
    tables = np.zeros((offset.size, 256))
    tables[:, SYMBOL_MAX - reach : SYMBOL_MAX + reach + 1] = (mass / mass.sum(0)).reshape(len(mass), -1).T
    return tables


def initial_tables() -> tuple[Tensors, NDArray[np.float64]]:
    """The table tensors of a new model, and the tables' prior probabilities [T, 256]."""
    index, parameters = exact_table_index(0, slice(0, FRACTIONS))
    bins_index, of_bins = exact_table_index(len(parameters), BIN_FRACTIONS)
    parameters += of_bins
    first = len(parameters)
    parameters += [(0.0, (4 * k + SCALE_MIN) / 16) for _ in range(3) for k in range(N_SCALES)]
    tuning = len(parameters)
    parameters += [(0.0, NARROWEST_TABLE + k / 2) for k in range(N_TUNING_TABLES)]
    maps = len(parameters)
    parameters += [(0.0, math.log2(0.25 + 0.25 * spread)) for spread in range(N_MAP_TABLES)]
    refinements = len(parameters)
    of_refinements = refinement_tables()
    values = refinements + len(of_refinements)
    prior = np.concatenate(([logistic_table(*p) for p in parameters], of_refinements, value_tables()))
    tensors = {
        "exact.table_index": torch.from_numpy(index.astype(np.int32)),
        "exact.bins_table_index": torch.from_numpy(bins_index.astype(np.int32)),
        "exact.values_table": torch.tensor([values], dtype=torch.int32),
        "lossy.first_table": torch.tensor([first], dtype=torch.int32),
        "lossy.map_table": torch.tensor([maps], dtype=torch.int32),
        "lossy.refine_table": torch.tensor([refinements], dtype=torch.int32),
        "exact.tuning_table": torch.tensor([tuning], dtype=torch.int32),
        "tables": as_tables(prior, UNCOUNTED_FREQUENCY),
    }
    return tensors, prior


def refit_tables(prior: NDArray[np.float64], counter: Counter) -> torch.Tensor:
    """Tables int32 [T, 256] from counts over the prior."""
    return as_tables(prior * PRIOR_COUNTS + counter.counts, LEAST_FREQUENCY)


def as_tables(weights: NDArray[np.float64], least: int) -> torch.Tensor:
    """Tables int32 [T, 256] in proportion to weights, each entry at least so much."""
    return torch.from_numpy(normalise_counts(weights, least).astype(np.int32))
