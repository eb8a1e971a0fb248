"""From trained networks to the weights file: integers, refit tables, known answers (docs/training.md)."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vbc.bitstream.container import MAX_BOUND, VALUES_BOUND
from vbc.bitstream.geometry import MAX_REFINEMENTS
from vbc.codec.entropy.coder import Discard, PseudoRandom
from vbc.codec.exact.groups import GroupBatch
from vbc.codec.exact.level import code_groups as code_exact_groups
from vbc.codec.exact.level import put_group
from vbc.codec.exact.model import Tuning
from vbc.codec.exact.planes import every
from vbc.codec.exact.tuning import code_tuning
from vbc.codec.exact.values import code_values
from vbc.codec.files.image_io import write_atomic
from vbc.codec.flow.choose_quality import CROPS, sample_of, score_of
from vbc.codec.flow.encode_levels import geometry_of
from vbc.codec.flow.lossy_trial import add_level, code_stage
from vbc.codec.lossy.coding import code_maps, prior_means
from vbc.codec.lossy.latents import latent_grid
from vbc.codec.lossy.quality_map import QualityMap, values_for_the_eye
from vbc.codec.lossy.synthesis import synthesise
from vbc.codec.model import Model, build_model
from vbc.codec.nets.int_nets import Tensors
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export_nets import export_bins, export_exact, export_lossy, export_values
from vbc.codec.train.frequency_tables import initial_tables, refit_tables
from vbc.codec.train.integer_runs import code_bins, count_symbols, grid_step, whole_grid
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.tuning_prior import PRIOR_TILES, initial_basis, observe, tuning_basis
from vbc.codec.train.values_net import ValuesNet

SCORED_TILES = 180
"""Twenty samples tell the mean score within about 2 points."""
KNOWN_SIZES = ((1, 1), (23, 40))


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
    tensors |= initial_basis(exact.width)
    if tiles is not None:
        tensors |= tuning_basis(observe(build_model(tensors), tiles[:PRIOR_TILES], seed=4))
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
            tunings = {
                p: code_tuning(model.exact, coder, p, step.level_class, None, x.device) for p in PHASES
            }
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
