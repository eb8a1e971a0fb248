"""Runs of the integer model over training tiles, each level as one group.

What tables and priors are counted on, and what later networks are trained on.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.container import MAX_BOUND, MAX_QUALITY, REFINEMENT_QUALITY, VALUES_BOUND
from vbc.bitstream.geometry import MAX_REFINEMENTS, Geometry
from vbc.codec.entropy.coder import Coder, Counter, Discard
from vbc.codec.exact.groups import GridStep, GroupBatch, Predictions
from vbc.codec.exact.level import code_groups as code_exact_groups
from vbc.codec.exact.level import put_group, put_predictions
from vbc.codec.exact.planes import every
from vbc.codec.exact.values import ValuesStep, code_values
from vbc.codec.flow.encode_levels import geometry_of
from vbc.codec.flow.lossy_trial import code_lossy
from vbc.codec.lossy.quality_map import QualityMap, values_for_the_eye
from vbc.codec.model import Model
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import rgb_to_ycocg

LOWEST_LAYERED = 10
"""The lowest quality of the lossy pictures that exact levels are trained with."""


def lossy_pictures(model: Model, tiles: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Tiles uint8 [N, 3, H, W] with their lossy pictures at random qualities.

    Returns uint8 [N, 7, H, W], the last plane the quality.
    """
    rng = np.random.default_rng(seed)
    out = np.empty((len(tiles), 7, *tiles.shape[2:]), np.uint8)
    with torch.no_grad():
        for i, tile in enumerate(tiles):
            x = torch.from_numpy(tile)[None]
            quality = random_quality(x, rng, LOWEST_LAYERED)
            out[i, :3], out[i, 6] = tile, quality.base
            out[i, 3:6] = code_lossy(model, Discard(), x, quality)[0].numpy()
    return out


def random_quality(x: Tensor, rng: np.random.Generator, lowest: int = 0) -> QualityMap:
    """A quality for uint8 [1, 3, H, W]: every other time with a map for the eye."""
    base = int(rng.integers(lowest, 101))
    return QualityMap(base, values_for_the_eye(x) if rng.integers(2) else None)


def count_symbols(model: Model, tiles: NDArray[np.uint8], seed: int) -> Counter:
    """Symbols that the integer model codes on tiles, archival and layered."""
    counter = Counter(len(model.tables))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for i, tile in enumerate(tiles):
            x = torch.from_numpy(tile)[None].contiguous(memory_format=torch.channels_last)
            quality = random_quality(x, rng)
            allowed = (MAX_QUALITY - quality.base) // REFINEMENT_QUALITY
            count = min(int(rng.integers(MAX_REFINEMENTS + 1)), allowed)
            quality = replace(quality, refinements=count)
            lossy = code_lossy(model, counter, x, quality)
            code_exact(model, counter, x, lossy if i % 3 == 0 else None, quality.final)
            bound = VALUES_BOUND if i % 2 else int(rng.integers(1, MAX_BOUND + 1))
            guide = lossy if i % 4 < 2 else None
            for k, fine in code_bins(model, counter, x, guide, quality.final, bound):
                if bound == VALUES_BOUND:
                    code_values(fine, [whole_grid(geometry_of(x), k)], counter, every(x, k))
    return counter


def code_exact(model: Model, coder: Coder, x: Tensor, lossy: Tensor | None, quality: int) -> None:
    """Run the exact levels' encoder over uint8 [1, 3, H, W], every level in one group, without tuned
    layers."""
    geometry = geometry_of(x)
    for k in reversed(range(geometry.top)):
        step = grid_step(model, rgb_to_ycocg(every(x, k + 1)), None, lossy, k, quality)
        batch = GroupBatch(step, [whole_grid(geometry, k)])
        code_exact_groups([batch], [coder], lambda *_: None, every(x, k))


def code_bins(
    model: Model, coder: Coder, x: Tensor, lossy: Tensor | None, quality: int, bound: int
) -> Iterator[tuple[int, ValuesStep]]:
    """As `code_exact`, of bins; yields each grid with what values after them see."""
    geometry = geometry_of(x)
    seen = rgb_to_ycocg(every(x, geometry.top))
    for k in reversed(range(geometry.top)):
        window = whole_grid(geometry, k)
        step = replace(grid_step(model, seen, None, lossy, k, quality, bound), keep=True)
        batch = GroupBatch(step, [window])
        code_exact_groups([batch], [coder], lambda *_: None, every(x, k))
        middles = torch.empty((1, 3, *geometry.grids[k]), dtype=torch.int16)
        put_group(middles, seen, window, batch.pixels, 0)
        predictions = Predictions.empty(middles)
        put_predictions(predictions, window, batch.predictions, 0)
        coarse = rgb_to_ycocg(every(x, k + 1))
        yield k, ValuesStep(model.exact.values, middles, coarse, seen, predictions, step.level_class)
        seen = middles


def whole_grid(geometry: Geometry, k: int) -> Window:
    """All of x_k as one group."""
    return slice(0, geometry.grids[k][0]), slice(0, geometry.grids[k][1])


def grid_step(
    model: Model,
    coarse: Tensor,
    errors: Tensor | None,
    lossy: Tensor | None,
    k: int,
    quality: int,
    bound: int = 0,
) -> GridStep:
    """The step from x_{k+1} to x_k. lossy: the whole lossy picture."""
    guide = None if lossy is None else every(lossy, k)
    return GridStep(model.exact, coarse, errors, guide, min(k, N_LEVEL_CLASSES - 1), quality, bound)
