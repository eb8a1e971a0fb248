"""What is known of the corrections that tune the exact levels, before an image is seen.

The log-likelihood of a tile's pixels is nearly quadratic in the corrections; its curvature and slope (natural
parameters) are all that is kept of a tile. Their prior is a normal distribution for each output, found by
expectation maximisation over tiles (Dempster, Laird and Rubin 1977; "type II maximum likelihood"). Its basis
is the one in which both the prior and the mean curvature are diagonal, so that each direction is coded on its
own, in steps as fine as pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.container import MAX_BOUND, VALUES_BOUND
from vbc.codec.entropy.coder import Discard
from vbc.codec.exact.groups import GridStep, GroupBatch, Parameters
from vbc.codec.exact.level import code_groups, put_group
from vbc.codec.exact.model import MAX_DIRECTIONS, OUTPUTS, Tuning, n_around
from vbc.codec.exact.planes import every
from vbc.codec.exact.tuning import N_TUNING_TABLES, NARROWEST_TABLE, VECTOR_SHIFT
from vbc.codec.exact.tuning_fit import (
    DEVIATION_OF_LOGISTIC,
    logistic_cost,
    logistic_information,
    look_at_positions,
    statistics,
)
from vbc.codec.flow.encode_levels import geometry_of
from vbc.codec.model import Model
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES, Tensors
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train.integer_runs import grid_step, lossy_pictures, whole_grid

PRIOR_TILES = 400
DIRECTIONS = 48
"""Kept of each output, those first of which data tells most."""
START_DEVIATION = 20.0
"""Standard deviation of all corrections before any tile is seen, in their units."""
LEAST_POSITIONS = 200
"""Of a phase; of the coarsest grids tiles have no more than 256."""
NEWTON_STEPS = 3
COARSE_POSITIONS = 256
"""Of a phase, for which the steps along directions are as they stand in the weights; larger images halve
them."""
ROUNDS = 8
"""Of expectation and maximisation."""
KEPT_SHARE = 0.95
"""Of tiles: graphics, which are predicted to a hundredth of a pixel value, would rule the rest."""
LARGEST_STEP = 4.0
"""Of a direction, in its standard deviations: wider ones are as good as none."""


@dataclass(frozen=True)
class Evidence:
    """What a tile says of a phase's corrections: curvature float32 [2, 3, n, n] and slope [2, 3, n] of the
    log-likelihood at no correction, if it were quadratic; of so many positions."""

    phase: str
    level_class: int
    positions: int
    curvature: Tensor
    slope: Tensor


def observe(model: Model, tiles: NDArray[np.uint8], seed: int) -> list[Evidence]:
    """What tiles, uint8 [N, 3, H, W], say of the corrections: half of them archival, a quarter layered, the
    others as bins, with a lossy picture or without."""
    rng = np.random.default_rng(seed)
    found: list[Evidence] = []
    with torch.no_grad():
        for i, tile in enumerate(lossy_pictures(model, tiles, seed)):
            with_lossy = torch.from_numpy(tile)[None].contiguous(memory_format=torch.channels_last)
            x, lossy, quality = with_lossy[:, :3], with_lossy[:, 3:6], int(with_lossy[0, 6, 0, 0])
            bound = (0, 0, 0, VALUES_BOUND if i % 8 < 4 else int(rng.integers(1, MAX_BOUND + 1)))[i % 4]
            layered = i % 4 == 1 or i % 8 == 3
            found += observe_levels(model, x, lossy if layered else None, quality, bound)
    return found


def observe_levels(model: Model, x: Tensor, lossy: Tensor | None, quality: int, bound: int) -> list[Evidence]:
    """What all levels of uint8 RGB [1, 3, H, W] say. lossy, quality, bound: as `grid_step` has them."""
    geometry = geometry_of(x)
    coarse = rgb_to_ycocg(every(x, geometry.top))
    errors = torch.zeros_like(coarse, dtype=torch.int8)
    found: list[Evidence] = []
    for k in reversed(range(geometry.top)):
        step = grid_step(model, coarse, errors, lossy, k, quality, bound)
        batch = GroupBatch(step, [whole_grid(geometry, k)])

        def look(
            phase: str,
            targets: list[Tensor] | None,
            known: list[Parameters] | None,
            batch: GroupBatch = batch,
        ) -> Sequence[Tuning] | None:
            assert targets is not None
            assert known is not None
            n = targets[0].numel() // 3
            if n >= LEAST_POSITIONS:
                found.append(look_at_phase(batch, phase, targets, known))
            return None

        code_groups([batch], [Discard()], look, every(x, k), keep=True)
        finer, missed = (torch.empty((1, 3, *geometry.grids[k]), dtype=t) for t in (torch.int16, torch.int8))
        put_group(missed, errors, batch.windows[0], batch.errors, 0)
        if bound:
            put_group(finer, coarse, batch.windows[0], batch.pixels, 0)
        coarse, errors = finer if bound else rgb_to_ycocg(every(x, k)), missed
    return found


def look_at_phase(batch: GroupBatch, phase: str, targets: list[Tensor], known: list[Parameters]) -> Evidence:
    """What all positions of a phase of a group say."""
    step = batch.step
    n = targets[0].numel() // 3
    samples = look_at_positions(phase, [batch], targets, known, torch.arange(n))
    x, followed, residual, log_scale = statistics(step, phase, samples)
    added = torch.cat((x.T.expand(2, 3, -1, -1), followed), 2)
    return Evidence(phase, step.level_class, n, *natural_parameters(added, residual, log_scale, step))


def natural_parameters(
    added: Tensor, residual: Tensor, log_scale: Tensor, step: GridStep
) -> tuple[Tensor, Tensor]:
    """Curvature and slope, as `Evidence` has them, around where a wide prior and the pixels lead to.

    added: what corrections of 1 add, float32 [2, 3, corrections, N]; the others are of `statistics`.
    """
    width = 2 * step.bound + 1
    d = added.new_zeros(added.shape[:3])
    prior = torch.eye(d.shape[-1]) / START_DEVIATION**2
    for i in range(NEWTON_STEPS + 1):
        moved = (d[:, :, None] @ added)[:, :, 0]
        _, scores = logistic_cost(residual - moved[0], log_scale + moved[1], width)
        information = logistic_information(log_scale + moved[1], width)
        curvature = (added * information[:, :, None]) @ added.mT
        gradient = (added @ scores[..., None])[..., 0]
        if i < NEWTON_STEPS:
            move = torch.linalg.solve(curvature + prior, gradient - d @ prior)
            d = d + (move if i else 0.7 * move)  # the first one tends to go too far
    return curvature, (curvature @ d[..., None])[..., 0] + gradient


def fit_prior(curvature: Tensor, slope: Tensor) -> Tensor:
    """Covariances [2, 3, n, n] of the corrections' normal prior, float64; curvature, slope: [tiles, 2, 3, ..]
    of the tiles."""
    n_tiles, n = len(slope), slope.shape[-1]
    covariance = torch.eye(n, dtype=torch.float64).expand(2, 3, n, n) * START_DEVIATION**2
    trust = n_tiles / (n_tiles + n / 2)  # in correlations, of which there are many
    for _ in range(ROUNDS):
        total = torch.zeros_like(covariance)
        for h, g in zip(curvature.double(), slope.double(), strict=True):
            posterior = torch.linalg.solve(torch.eye(n, dtype=torch.float64) + covariance @ h, covariance)
            mean = posterior @ g[..., None]
            total += mean @ mean.mT + posterior
        total = (total + total.mT) / (2 * n_tiles)
        alone = torch.diag_embed(total.diagonal(dim1=-2, dim2=-1))
        covariance = trust * total + (1 - trust) * alone
    return covariance


def typical(curvature: Tensor, positions: Tensor) -> Tensor:
    """The curvature of a position in a tile as most are, float64 [2, 3, n, n].

    That of means goes with the inverse of the noise's variance, so a plain mean would be that of the
    smoothest tiles.
    """
    each = curvature.double() / positions[:, None, None, None, None]
    size = each.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return (each / size).mean(0) * size.median(0).values


def directions(covariance: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [.., n, n] in which the prior is the identity and the curvature diagonal, and that diagonal
    [.., n], descending. Of [.., n, n] each; a covariance may be 0 in places."""
    values, own = torch.linalg.eigh(covariance)
    root = own * values.clamp_min(0).sqrt()[..., None, :]
    strengths, turned = torch.linalg.eigh(root.mT @ curvature @ root)
    return (root @ turned).flip(-1), strengths.flip(-1).clamp_min(0)


def tuning_basis(evidence: list[Evidence]) -> Tensors:
    """The tensors of `TuningBasis` for all phases and level classes."""
    out: Tensors = {}
    for phase in PHASES:
        vectors, scales = [], []
        for level_class in range(N_LEVEL_CLASSES):
            here = [e for e in evidence if (e.phase, e.level_class) == (phase, level_class)]
            sharpness = [float((e.curvature.diagonal(dim1=-2, dim2=-1) / e.positions).max()) for e in here]
            here = [here[i] for i in np.argsort(sharpness)[: max(1, round(KEPT_SHARE * len(here)))]]
            curvature, slope = (
                torch.stack([getattr(e, name) for e in here]) for name in ("curvature", "slope")
            )
            covariance = fit_prior(curvature, slope)
            positions = torch.tensor([e.positions for e in here])
            of_all, strengths = directions(covariance, typical(curvature, positions) * COARSE_POSITIONS)
            steps = (12 / strengths.clamp_min(1e-9)).sqrt().clamp_max(LARGEST_STEP)[..., :DIRECTIONS]
            vectors.append(of_all[..., :DIRECTIONS] * steps[..., None, :] * 2**VECTOR_SHIFT)
            scales.append(2 * (torch.log2(1 / (steps * DEVIATION_OF_LOGISTIC)) - NARROWEST_TABLE))
        out[f"exact.{phase}.tuning.vectors"] = as_int16(torch.stack(vectors).flatten(1, 2))
        out[f"exact.{phase}.tuning.scales"] = as_int16(
            torch.stack(scales).flatten(1, 2).clamp(0, N_TUNING_TABLES - 1)
        )
    return out


def as_int16(x: Tensor) -> Tensor:
    """Rounded, and limited to what int16 holds."""
    return x.round().clamp(-(1 << 15), (1 << 15) - 1).to(torch.int16)


def initial_basis(width: int) -> Tensors:
    """The tensors of `TuningBasis` before any tile is seen: each of the first corrections on its own.

    width: of the last hidden layers.
    """
    out: Tensors = {}
    for phase in PHASES:
        n = width + 1 + n_around(phase) + 2
        kept = min(n, MAX_DIRECTIONS)
        step = START_DEVIATION / 2
        vectors = torch.eye(n)[:, :kept] * step * 2**VECTOR_SHIFT
        scale = 2 * (np.log2(START_DEVIATION / step / DEVIATION_OF_LOGISTIC) - NARROWEST_TABLE)
        out[f"exact.{phase}.tuning.vectors"] = as_int16(vectors).expand(N_LEVEL_CLASSES, OUTPUTS, n, kept)
        out[f"exact.{phase}.tuning.scales"] = torch.full(
            (N_LEVEL_CLASSES, OUTPUTS, kept), round(scale), dtype=torch.int16
        )
    return out
