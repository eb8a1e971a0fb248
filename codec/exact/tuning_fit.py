"""Finding the corrections that tune output layers to one image: the encoder's choice, in float, on the CPU.

The correction of means and log-scales is linear in the last hidden layer, so the best one is a small convex
problem a channel: a few Newton steps on sampled positions, no gradient descent through the network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.exact.groups import GridStep, GroupBatch, Parameters, Surroundings, around_units
from vbc.codec.exact.model import n_around
from vbc.codec.exact.planes import by_position, lossy_planes, moved, shape_of, stack
from vbc.codec.exact.tuning import BIAS_UNIT, OUTPUTS, SHIFT, WEIGHT_MAX
from vbc.codec.pixels.borders import Window

UNIT = 2.0 ** -(SHIFT + 4)
"""Of a correction, in pixel values and octaves, by one activation step."""
SLOPE_UNIT = 2.0**-12
"""A slope of 1, a 256th, times a sixteenth of a pixel value or of an octave."""
SAMPLES = {1: (4_000, 20_000), 2: (400_000, 400_000)}
"""Least and most positions looked at, by effort; in between one of `STRIDE`."""
STRIDE = 14
"""On pictures of 0.4 megapixels 7,000 positions of 98,000 give files 0.3 % larger than all of them do."""
MIN_POSITIONS = 10_000
"""Phases below this hardly gain what the side information costs."""
COST_BITS = 6.5
"""Measured bits of a correction under its table."""
WINDOW = 16
"""Side of the windows looked at in larger phases; with 48 files get 1.1 % larger."""
PRIOR_DEVIATION = 20.0
"""Standard deviation of the corrections' prior in their units: features met rarely stay as they are."""
HESSIAN_STRIDE = 3
"""The curvature needs fewer positions than the slope."""
ITERATIONS = 4
MIN_GAIN = 10.0
"""Nats; less is not worth another iteration."""
SCORE_MAX = 4.0
"""A single outlier asks for no more than this."""
SMALLEST_PROBABILITY = 1e-6
"""Differences of float32 sigmoids mean nothing below."""


@dataclass(frozen=True)
class Samples:
    """Sampled positions of a phase, on the CPU.

    base: int16 [3, n]; out: int32 [9, n]; features: uint8 [n, width], as `groups.Parameters`. around: int16
    [3 K, n], as `Surroundings.around`, thing by thing. pixels: what is to be coded, int16 [3, n].
    """

    base: Tensor
    out: Tensor
    features: Tensor
    around: Tensor
    pixels: Tensor


def fit_tuning(
    phase: str,
    batches: Sequence[GroupBatch],
    targets: Sequence[Tensor],
    known: Sequence[Parameters] | None,
    effort: int,
) -> Tensor | None:
    """Corrections of a phase of all groups of a level, or None where they would not pay for themselves.

    batches: all groups; targets: their pixels of the phase, int16 [N, 3, h, w] each. known: entropy
    parameters of the batches that have pixels of it, where they are at hand; else the networks are run on
    sampled windows. effort: 1 or 2, how many positions to look at. Returns int64 [2 (mean, log-scale), 3
    channels, width + 1 features + `n_around` + 2 channels before].
    """
    some = [i for i, target in enumerate(targets) if target.numel()]
    batches, targets = [batches[i] for i in some], [targets[i] for i in some]
    n_positions = sum(x.numel() // 3 for x in targets)
    if n_positions < MIN_POSITIONS:
        return None
    least, most = SAMPLES[effort]
    n_samples = min(max(n_positions // STRIDE, least), most)
    if known is None:
        samples = look_at_windows(phase, batches, targets, n_samples)
    else:
        samples = look_at_positions(phase, batches, targets, known, sample_positions(n_positions, n_samples))
    step = batches[0].step
    x, followed, residual, log_scale = statistics(step, phase, samples)
    delta, gain = fit_channels(x * UNIT, followed, residual, log_scale, 2 * step.bound + 1)
    gain_bits = gain / math.log(2) * n_positions / len(x)
    if gain_bits < COST_BITS * OUTPUTS * x.shape[1]:
        return None
    return delta.round().clamp(-WEIGHT_MAX, WEIGHT_MAX).long()


def look_at_positions(
    phase: str,
    batches: Sequence[GroupBatch],
    targets: Sequence[Tensor],
    known: Sequence[Parameters],
    at: Tensor,
) -> Samples:
    """Samples at single positions, int64 in order; they count through the batches one after the other."""
    parts = []
    first = 0
    for batch, target, parameters in zip(batches, targets, known, strict=True):
        n = target.numel() // 3
        lo, hi = torch.searchsorted(at, torch.tensor((first, first + n))).tolist()
        here = at[lo:hi] - first
        first += n
        around = torch.cat(list(batch.seen.around(phase, parameters.base, batch.step.bound)), 1)
        tensors = (parameters.base, parameters.out, parameters.features, around, target)
        parts.append([by_position(x)[here.to(x.device)].cpu() for x in tensors])
    base, out, features, around, pixels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples(base.T.contiguous(), out.T.contiguous(), features, around.T, pixels.T.contiguous())


def look_at_windows(
    phase: str, batches: Sequence[GroupBatch], targets: Sequence[Tensor], n_samples: int
) -> Samples:
    """Samples in small windows spread evenly over the groups, on which the networks are run."""
    groups = [(i, n) for i, batch in enumerate(batches) for n in range(len(batch.windows))]
    n_windows = max(1, n_samples // WINDOW**2)
    by_shape: dict[tuple[int, int], list[tuple[int, int, Window]]] = {}
    for place in torch.linspace(0, len(groups) - 1, min(len(groups), n_windows)).round().int().tolist():
        i, n = groups[place]
        height, width = batches[i].size(phase)
        for window in sample_windows(height, width, n_samples // min(len(groups), n_windows)):
            by_shape.setdefault(shape_of(window), []).append((i, n, window))
    parts = []
    step = batches[0].step
    for shape, chosen in by_shape.items():
        seen = Surroundings.join([batches[i].seen.part(n, window, phase) for i, n, window in chosen])
        lossy = None
        if step.lossy is not None:
            places = [moved(window, batches[i].coarse[n]) for i, n, window in chosen]
            lossy = lossy_planes(step.lossy, places)
        known = seen.parameters(step, lossy, phase, shape)
        pixels = stack([targets[i][n : n + 1, :, *window] for i, n, window in chosen])
        around = torch.cat(list(seen.around(phase, known.base, step.bound)), 1)
        tensors = (known.base, known.out, known.features, around, pixels)
        parts.append([by_position(x).cpu() for x in tensors])
    base, out, features, around, pixels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples(base.T.contiguous(), out.T.contiguous(), features, around.T, pixels.T.contiguous())


def fit_channels(
    x: Tensor, followed: Tensor, residual: Tensor, log_scale: Tensor, width: int = 1
) -> tuple[Tensor, float]:
    """Corrections [2 (mean, log-scale), 3 channels, P + E] that shorten the code, and by how many nats.

    x: features [N, P] times the corrections' unit, the same for all six; followed: [2, 3, E, N], features
    that each of the six has of its own; residual in pixel values, log_scale in octaves: [3, N]; all float32.
    width: of a bin, in pixel values.

    Newton's method with the logistic's Fisher information at the start (scoring, one factorisation), channel
    by channel with step halving.
    """
    n, p = x.shape
    variance = torch.exp2(2 * log_scale[:, ::HESSIAN_STRIDE])
    area = width * width
    information = torch.stack((1 / (3 * (variance + area / 12)), 0.687 * variance / (variance + 0.05 * area)))
    part = torch.cat((x[::HESSIAN_STRIDE].T.expand(2, 3, -1, -1), followed[..., ::HESSIAN_STRIDE]), 2)
    weighted = part * (information * HESSIAN_STRIDE).sqrt_()[:, :, None]
    prior = torch.eye(part.shape[2]) / PRIOR_DEVIATION**2
    factor = torch.linalg.cholesky(weighted @ weighted.mT + prior)

    def look(d: Tensor) -> tuple[Tensor, Tensor]:
        moved = (d[..., :p].reshape(-1, p) @ x.T).view(2, 3, n) + (d[..., None, p:] @ followed)[:, :, 0]
        nats, scores = logistic_cost(residual - moved[0], log_scale + moved[1], width)
        return nats + d.square().sum((0, 2)) / (2 * PRIOR_DEVIATION**2), scores

    delta = torch.zeros((2, 3, part.shape[2]))
    cost, scores = look(delta)
    start = cost
    length = torch.ones_like(cost)
    for _ in range(ITERATIONS):
        shared = (scores.flatten(0, 1) @ x).view(2, 3, p)
        gradient = torch.cat((shared, (followed @ scores[..., None])[..., 0]), 2)
        gradient -= delta / PRIOR_DEVIATION**2
        move = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        trial = delta + length[:, None] * move
        trial_cost, trial_scores = look(trial)
        better = trial_cost < cost
        gain = float((cost - trial_cost).clamp_min(0).sum())
        length = torch.where(better, length, length / 2)
        delta = torch.where(better[:, None], trial, delta)
        scores = torch.where(better[:, None], trial_scores, scores)
        cost = torch.minimum(cost, trial_cost)
        if gain < MIN_GAIN and bool(better.all()):
            break
    return delta, float((start - cost).sum())


def sample_positions(n: int, samples: int) -> Tensor:
    """About so many of n positions, spread evenly whatever the width of the rows, in order: int64.

    Multiples of the golden ratio modulo 1 fill the unit interval evenly.
    """
    if n <= samples:
        return torch.arange(n)
    golden = (math.sqrt(5) - 1) / 2
    return (torch.arange(samples, dtype=torch.float64) * golden % 1 * n).long().sort().values


def sample_windows(height: int, width: int, samples: int) -> list[tuple[slice, slice]]:
    """Windows spread evenly over a phase, about so many positions in all.

    The whole phase where it is small.
    """
    if height * width <= samples or min(height, width) <= WINDOW:
        stop = max(1, min(height, samples // width))
        return [(slice(0, stop), slice(0, width))]
    n = samples / WINDOW**2
    n_cols = max(1, min(width // WINDOW, round(math.sqrt(n * width / height))))
    n_rows = max(1, min(height // WINDOW, round(n / n_cols)))
    n_cols = max(1, min(width // WINDOW, round(n / n_rows)))
    tops = [(height - WINDOW) * (2 * i + 1) // (2 * n_rows) for i in range(n_rows)]
    lefts = [(width - WINDOW) * (2 * i + 1) // (2 * n_cols) for i in range(n_cols)]
    return [(slice(t, t + WINDOW), slice(c, c + WINDOW)) for t in tops for c in lefts]


def statistics(step: GridStep, phase: str, samples: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, followed values, residuals and log2 scales of the three channels at sampled positions.

    Features float [n, width + 1]; what a channel's mean and log-scale follow, in units of their slopes, [2,
    3, E, n]; residuals (pixel values; of bins, of their middles) and scales (octaves) [3, n].
    """
    maps = step.maps(phase).to(torch.device("cpu"))
    predictor = step.predictor(samples.base, samples.out, None, maps)
    residuals, scales = [], []
    first = n_around(phase)
    n = samples.base.shape[1]
    followed = torch.zeros((2, 3, first + 2, n))
    units = torch.tensor(around_units(phase))[:, None] * SLOPE_UNIT
    followed[0, :, :first] = samples.around.reshape(first, 3, n).transpose(0, 1) * units
    for c in range(3):
        mean, log_scale = predictor.predict()
        values = samples.pixels[c]
        if step.bound:
            rounded = ((mean + 8) >> 4).to(torch.int16)
            values = predictor.values(rounded, predictor.symbols(values, rounded))
        residuals.append(values.float() - mean / 16)
        scales.append(log_scale / 16)
        for kind, seen in enumerate(predictor.seen()):
            for i, earlier in enumerate(seen, start=first):
                followed[kind, c, i] = earlier * SLOPE_UNIT
        predictor.learn(values)
    x = torch.full((n, samples.features.shape[1] + 1), float(BIAS_UNIT))
    x[:, :-1] = samples.features
    return x, followed, torch.stack(residuals), torch.stack(scales)


def logistic_cost(residual: Tensor, log2_scale: Tensor, width: int = 1) -> tuple[Tensor, Tensor]:
    """Nats [C] of residuals [C, N] under a logistic in bins of a width, and minus each one's derivatives.

    The derivatives by mean and by log2 scale are [2, C, N]. One pair of sigmoids gives all three.
    Probabilities are taken as at least `SMALLEST_PROBABILITY` and derivatives as at most `SCORE_MAX`, so that
    no outlier rules.
    """
    inv = torch.exp2(-log2_scale)
    a, b = (residual + 0.5 * width) * inv, (residual - 0.5 * width) * inv
    up, down = torch.sigmoid(a), torch.sigmoid(b)
    nats = -(up - down).clamp_min_(SMALLEST_PROBABILITY).log_().sum(1)
    by_mean = (up + down - 1) * inv
    wide = width * inv
    part = wide / torch.expm1(wide.clamp_max(60))
    by_scale = -math.log(2) * (a * (1 - up) - b * down + part)
    return nats, torch.stack((by_mean, by_scale)).clamp_(-SCORE_MAX, SCORE_MAX)
