"""Finding the corrections that tune output layers to one image: the encoder's choice, in float, on the CPU.

The correction of means and log-scales is linear in the last hidden layer, so the best one is a small convex
problem a channel: a few Newton steps on sampled positions, no gradient descent through the network. What is
known of corrections beforehand (`codec.train.tuning_prior`) tells which of them a few samples can decide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.exact.groups import GridStep, GroupBatch, Parameters, Surroundings, around_units
from vbc.codec.exact.model import n_around
from vbc.codec.exact.planes import by_position, lossy_planes, moved, shape_of, stack
from vbc.codec.exact.tuning import (
    BIAS_UNIT,
    FINEST,
    NARROWEST_TABLE,
    SHIFT,
    SYMBOL_LIMIT,
    VECTOR_SHIFT,
    CodedTuning,
)
from vbc.codec.pixels.borders import Window

UNIT = 2.0 ** -(SHIFT + 4)
"""Of a correction, in pixel values and octaves, by one activation step."""
SLOPE_UNIT = 2.0**-12
"""A slope of 1, a 256th, times a sixteenth of a pixel value or of an octave."""
SAMPLES = {1: (4_000, 40_000), 2: (400_000, 400_000)}
"""Least and most positions looked at, by effort; in between one of `STRIDE`."""
STRIDE = 4
"""On pictures of 0.4 megapixels one of 14 gives files 0.2 % larger and takes an eighth less time to encode;
all of them give 0.1 % smaller ones."""
MIN_POSITIONS = 1000
"""Smaller phases gain a few bytes at best, and looking for them takes as long as for 7,000."""
SIDE_BITS = 8.0
"""What a tuned output costs beside its symbols: its flag, its part of the packet's ends and of the index."""
DEVIATION_OF_LOGISTIC = math.pi / math.sqrt(3)
"""Standard deviation of a logistic of scale 1."""
WINDOW = 16
"""Side of the windows looked at in larger phases; with 48 files get 1.1 % larger."""
HESSIAN_STRIDE = 3
"""The curvature needs fewer positions than the slope."""
ITERATIONS = 4
MIN_GAIN = 10.0
"""Nats; less is not worth another iteration."""
SCORE_MAX = 4.0
"""A single outlier asks for no more than this."""
SMALLEST_FREQUENCY = 2.0**-16
"""Of a table; an escape costs about as much as two letters of that."""
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
) -> CodedTuning | None:
    """Corrections of a phase of all groups of a level, or None where they would not pay for themselves.

    batches: all groups; targets: their pixels of the phase, int16 [N, 3, h, w] each. known: entropy
    parameters of the batches that have pixels of it, where they are at hand; else the networks are run on
    sampled windows. effort: 1 or 2, how many positions to look at.
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
    basis = step.model.tuning[phase]
    vectors, scales = (x[step.level_class].cpu() for x in (basis.vectors, basis.scales))
    vectors = vectors.view(2, 3, *vectors.shape[1:]) * 2.0**-VECTOR_SHIFT
    octaves = scales.view(2, 3, -1) / 2 + NARROWEST_TABLE
    weight = n_positions / residual.shape[1]
    flags, symbols = fit_channels(
        x, followed, residual, log_scale, vectors, octaves, weight, 2 * step.bound + 1
    )
    if not flags.any():
        return None
    return CodedTuning(*(x.flatten(0, 1).to(torch.int16) for x in (flags, symbols)))


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
    x: Tensor,
    followed: Tensor,
    residual: Tensor,
    log_scale: Tensor,
    vectors: Tensor,
    octaves: Tensor,
    weight: float,
    width: int = 1,
) -> tuple[Tensor, Tensor]:
    """Flags [2 (mean, log-scale), 3 channels] and symbols [2, 3, R], as `CodedTuning` has them.

    What corrections of 1 add to the six, in pixel values and octaves: x [N, P] to all of them alike, followed
    [2, 3, E, N] to each its own. residual in pixel values, log_scale in octaves: [3, N]. vectors: the
    corrections that a step along each direction is, [2, 3, P + E, R]; octaves: log2 scales of the symbols'
    logistic prior, [2, 3, R]. All float32. weight: positions that each of those looked at stands for. width:
    of a bin, in pixel values.

    Newton's method with the logistic's Fisher information at the start (scoring, one factorisation), channel
    by channel with step halving.
    """
    n, p = x.shape
    information = logistic_information(log_scale[:, ::HESSIAN_STRIDE], width)
    part = torch.cat((x[::HESSIAN_STRIDE].T.expand(2, 3, -1, -1), followed[..., ::HESSIAN_STRIDE]), 2)
    weighted = vectors.mT @ (part * (information * HESSIAN_STRIDE).sqrt_()[:, :, None])
    curvature = weighted @ weighted.mT
    precision = (torch.exp2(octaves) * DEVIATION_OF_LOGISTIC).square().reciprocal()
    factor, failed = torch.linalg.cholesky_ex(curvature + torch.diag_embed(precision))
    if failed.any():  # features that float32 cannot tell apart, in graphics that are known to a hundredth
        return torch.zeros((2, 3)), torch.zeros_like(octaves)

    def look(d: Tensor) -> tuple[Tensor, Tensor]:
        delta = (vectors @ d[..., None])[..., 0]
        moved = (delta[..., :p].reshape(-1, p) @ x.T).view(2, 3, n)
        moved += (delta[..., None, p:] @ followed)[:, :, 0]
        nats, scores = logistic_cost(residual - moved[0], log_scale + moved[1], width)
        return nats + (precision * d.square()).sum((0, 2)) / 2, scores

    steps = torch.zeros_like(octaves)
    cost, scores = look(steps)
    length = torch.ones_like(cost)
    for _ in range(ITERATIONS):
        of_all = ((scores.flatten(0, 1) @ x).view(2, 3, p), (followed @ scores[..., None])[..., 0])
        gradient = (vectors.mT @ torch.cat(of_all, 2)[..., None])[..., 0] - precision * steps
        move = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        trial = steps + length[:, None] * move
        trial_cost, trial_scores = look(trial)
        better = trial_cost < cost
        gain = float((cost - trial_cost).clamp_min(0).sum())
        length = torch.where(better, length, length / 2)
        steps = torch.where(better[:, None], trial, steps)
        scores = torch.where(better[:, None], trial_scores, scores)
        cost = torch.minimum(cost, trial_cost)
        if gain < MIN_GAIN and bool(better.all()):
            break
    return round_steps(steps, curvature * weight / math.log(2), octaves)


def round_steps(steps: Tensor, curvature: Tensor, octaves: Tensor) -> tuple[Tensor, Tensor]:
    """Flags and symbols of each output, as precise as pays; none where that saves nothing.

    steps, octaves: [2, 3, R], curvature: [2, 3, R, R], of the bits that steps save, about the best steps.
    """
    fineness = torch.arange(FINEST + 1.0)[:, None, None, None]
    symbols = (steps * 2**fineness).round().clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)  # [fineness, 2, 3, R]
    missed = symbols / 2**fineness - steps

    def bits(d: Tensor) -> Tensor:
        return ((d[..., None, :] @ curvature)[..., 0, :] * d).sum(-1) / 2

    saved = bits(steps) - bits(missed) - symbol_bits(symbols, octaves + fineness).sum(-1)
    most, best = saved.max(0)
    best = best[None, ..., None].expand(1, *steps.shape)
    tuned = most > SIDE_BITS
    flags = torch.where(tuned, best[0, ..., 0] + 1, 0)
    return flags, torch.where(tuned[..., None], symbols.gather(0, best)[0], 0)


def symbol_bits(symbols: Tensor, octaves: Tensor) -> Tensor:
    """Bits of integers under their tables: logistics around 0 of these log2 scales."""
    size, inv = symbols.abs(), torch.exp2(-octaves)
    mass = torch.sigmoid((0.5 - size) * inv) - torch.sigmoid((-0.5 - size) * inv)
    return -torch.log2(mass.clamp_min(SMALLEST_FREQUENCY))


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
    """What corrections of 1 add, residuals and log2 scales of the three channels at sampled positions.

    The first as `fit_channels` has them, x [n, width + 1] and followed [2 (mean, log-scale), 3 channels, E,
    n], zeros where there is no such correction; residuals (pixel values; of bins, of their middles) and
    scales (octaves) [3, n].
    """
    maps = step.maps(phase).to(torch.device("cpu"))
    predictor = step.predictor(samples.base, samples.out, None, maps)
    residuals, scales = [], []
    around, n = n_around(phase), samples.base.shape[1]
    followed = torch.zeros((2, 3, around + 2, n))
    units = torch.tensor(around_units(phase))[:, None] * SLOPE_UNIT
    followed[0, :, :around] = samples.around.reshape(around, 3, n).transpose(0, 1) * units
    for c in range(3):
        mean, log_scale = predictor.predict()
        values = samples.pixels[c]
        if step.bound:
            rounded = ((mean + 8) >> 4).to(torch.int16)
            values = predictor.values(rounded, predictor.symbols(values, rounded))
        residuals.append(values.float() - mean / 16)
        scales.append(log_scale / 16)
        for kind, seen in enumerate(predictor.seen()):
            for i, earlier in enumerate(seen, start=around):
                followed[kind, c, i] = earlier * SLOPE_UNIT
        predictor.learn(values)
    x = torch.full((n, samples.features.shape[1] + 1), BIAS_UNIT * UNIT)
    x[:, :-1] = samples.features * UNIT
    return x, followed, torch.stack(residuals), torch.stack(scales)


def logistic_information(log2_scale: Tensor, width: int = 1) -> Tensor:
    """Fisher's information [2, ..] about mean and log2 scale in an integer under a logistic in bins of a
    width, roughly: what bins hide is taken as if the residual were even in them."""
    variance = torch.exp2(2 * log2_scale)
    area = width * width
    return torch.stack((1 / (3 * (variance + area / 12)), 0.687 * variance / (variance + 0.05 * area)))


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
