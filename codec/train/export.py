"""From trained networks to the weights file: integers, refit tables, known answers (docs/training.md)."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vbc.bitstream.container import MAX_BOUND, MAX_QUALITY, REFINEMENT_QUALITY, VALUES_BOUND
from vbc.bitstream.geometry import MAX_REFINEMENTS, Geometry
from vbc.codec.entropy.coder import Coder, Counter, Discard, PseudoRandom
from vbc.codec.exact.groups import GridStep, GroupBatch, Predictions
from vbc.codec.exact.level import code_groups as code_exact_groups
from vbc.codec.exact.level import put_group, put_predictions
from vbc.codec.exact.model import Tuning
from vbc.codec.exact.planes import every
from vbc.codec.exact.tuning import code_tuning
from vbc.codec.exact.values import ValuesStep, code_values
from vbc.codec.files.image_io import write_atomic
from vbc.codec.flow.choose_quality import CROPS, sample_of, score_of
from vbc.codec.flow.encode_levels import geometry_of
from vbc.codec.flow.lossy_trial import add_level, code_lossy, code_stage
from vbc.codec.lossy.coding import code_maps, prior_means
from vbc.codec.lossy.latents import latent_grid
from vbc.codec.lossy.quality_map import QualityMap, values_for_the_eye
from vbc.codec.lossy.synthesis import synthesise
from vbc.codec.model import Model, build_model
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES, Tensors
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export_nets import export_bins, export_exact, export_lossy, export_values
from vbc.codec.train.frequency_tables import initial_tables, refit_tables
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.values_net import ValuesNet

LOWEST_LAYERED = 10
"""The lowest quality of the lossy pictures that exact levels are trained with."""
SCORED_TILES = 180
"""Twenty samples tell the mean score within about 2 points."""
KNOWN_SIZES = ((1, 1), (23, 40))


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


def export_model(
    exact: ExactNet,
    lossy: LossyNet,
    tiles: NDArray[np.uint8] | None,
    for_the_eye: bool = False,
    bins: BinsNet | None = None,
    values: ValuesNet | None = None,
) -> Tensors:
    """Tensors of a weights file.

    The tables are refit on what the integer model codes of the tiles, where given; the weights then know what
    scores their pictures have. for_the_eye: `lossy` was trained so. bins, values: None for what their
    training begins with.
    """
    first, prior = initial_tables()
    if bins is None:
        bins = BinsNet(exact.width)
        bins.start(exact)
    of_values = export_values(values or ValuesNet())
    tensors = {**export_exact(exact), **export_bins(bins), **of_values, **export_lossy(lossy), **first}
    if for_the_eye:
        tensors["analysis.for_the_eye"] = torch.ones(1, dtype=torch.int32)
    if tiles is not None:
        counter = count_symbols(build_model(tensors), tiles, seed=2)
        tensors["tables"] = refit_tables(prior, counter)
        tensors["analysis.score"] = typical_scores(build_model(tensors), tiles[:SCORED_TILES])
    return {k: v.contiguous() for k, v in tensors.items()}


def typical_scores(model: Model, tiles: NDArray[np.uint8]) -> Tensor:
    """The score that pictures have on an average at each base, float32 [101], rising.

    With weights for the eye they have maps. tiles: uint8 [N, 3, 128, 128]; each nine are a sample of
    `choose_quality`, the last ones are filled up.
    """
    n = -(-len(tiles) // CROPS**2) * CROPS**2
    tiles = np.resize(tiles, (n, *tiles.shape[1:]))
    samples = [
        sample_of(torch.from_numpy(square)[None], None)[0] for square in squares_of_tiles(tiles, CROPS)
    ]
    values = [values_for_the_eye(sample) if model.lossy.for_the_eye else None for sample in samples]
    knots = np.arange(0, 101, 10)
    means = [
        np.mean([score_of(model, x, QualityMap(int(q), v)) for x, v in zip(samples, values, strict=True)])
        for q in knots
    ]
    scores = np.interp(np.arange(101), knots, np.maximum.accumulate(means))
    return torch.from_numpy(scores + 1e-3 * np.arange(101)).float()


def squares_of_tiles(tiles: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures of side x side tiles: uint8 [N / side^2, 3, side H, side W] of [N, 3, H, W]."""
    n, c, h, w = tiles.shape
    grid = tiles.reshape(n // side**2, side, side, c, h, w).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(grid.reshape(-1, c, side * h, side * w))


def known_answers(model: Model) -> dict[str, str]:
    """SHA-256 prefixes of what the decoder makes of fixed symbols, by size and kind.

    They are equal on every device.
    """
    out = {}
    with torch.no_grad():
        for size in KNOWN_SIZES:
            latents = None
            coder = PseudoRandom()
            height, width = latent_grid(*size)
            window = slice(0, height), slice(0, width)
            qualities = code_maps(model.lossy, coder, [window], 60, torch.ones(1, dtype=torch.bool))
            for level in (1, 2, 3):
                latents = add_level(model, coder, level, latents, qualities)
                full = latents
                for missing in range(level + 1, 4):
                    full = torch.cat((full, prior_means(model.lossy, missing, full, [window], qualities)), 1)
                used = np.full((1, 1), level)
                lossy = synthesise(model.lossy, full, size, used, qualities)
                out[f"{size} level {level}"] = digest(lossy)
            for refinement in range(1, MAX_REFINEMENTS + 1):
                latents = code_stage(model, coder, qualities, None, refinement, latents)
                count = np.full((1, 1), refinement)
                refined = synthesise(model.lossy, latents, size, used, qualities, refined=count)
                out[f"{size} refinement {refinement}"] = digest(refined)
            for kind, guide, tuned, bound in (
                ("archival", None, False, 0),
                ("tuned", None, True, 0),
                ("layered", lossy, False, 0),
                ("bins", None, True, 1),
                ("layered bins", lossy, False, MAX_BOUND),
            ):
                out[f"{size} {kind}"] = digest(known_exact(model, lossy, guide, tuned, bound))
            out[f"{size} values"] = digest(known_values(model, lossy))
    return out


def known_exact(model: Model, picture: Tensor, guide: Tensor | None, tuned: bool, bound: int) -> Tensor:
    """What pseudo-random symbols make of the base grid of a picture, uint8 [1, 3, H, W]: int16 YCoCg-R."""
    geometry = geometry_of(picture)
    coder = PseudoRandom()
    x, errors = rgb_to_ycocg(every(picture, geometry.top)), None
    for k in reversed(range(geometry.top)):
        step = grid_step(model, x, errors, guide, k, 60, bound)
        tunings: dict[str, tuple[Tuning, ...] | None] = {}
        if tuned:
            tunings = {p: code_tuning(model.exact, coder, p, None, x.device) for p in PHASES}
        h, w = geometry.grids[k]
        batch = GroupBatch(step, [(slice(0, h), slice(0, w))])
        code_exact_groups([batch], [coder], lambda p, *_, t=tunings: t.get(p))
        missed = torch.zeros_like(x, dtype=torch.int8) if errors is None else errors
        finer, errors = (torch.empty((1, 3, h, w), dtype=dtype) for dtype in (torch.int16, torch.int8))
        put_group(finer, x, batch.windows[0], batch.pixels, 0)
        put_group(errors, missed, batch.windows[0], batch.errors, 0)
        x = finer
    return x


def known_values(model: Model, picture: Tensor) -> Tensor:
    """What pseudo-random symbols make of a picture's bins, uint8 [1, 3, H, W]: G, R and B of its phases, in a
    row."""
    coder = PseudoRandom()
    parts = []
    for k, step in code_bins(model, Discard(), picture, None, 60, VALUES_BOUND):
        found = code_values(step, [whole_grid(geometry_of(picture), k)], coder)
        parts += [found[p].flatten() for p in PHASES]
    return torch.cat([torch.zeros(1, dtype=torch.int16), *parts])


def digest(x: Tensor) -> str:
    """First 16 hex digits of SHA-256 over an integer tensor, row by row."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]


def save_model(path: Path, tensors: Tensors) -> Model:
    """Write a weights file with its known answers; returns the model."""
    model = build_model(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, metadata={"format": "vbc-model-1", **known_answers(model)}))
    return model


def stored_answers(path: Path) -> dict[str, str]:
    """The known answers in a weights file."""
    with safe_open(path, "pt") as f:
        return {k: v for k, v in f.metadata().items() if k != "format"}
