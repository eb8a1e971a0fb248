"""Output layers tuned to one image: small integer corrections, found in the encoder, coded in the level.

The format is in docs/format.md.

The correction of means and log-scales is linear in the last hidden layer, so the best one is a small convex
problem per channel: a few Newton steps on sampled positions, no gradient descent through the network.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vbc.codec.entropy.coder import Coder, Index
from vbc.codec.exact.block import (
    AROUND,
    BlockPredictor,
    ExactModel,
    Parameters,
    Step,
    Tuning,
    by_position,
    single,
    stack,
)
from vbc.codec.nets.qconv import ACTIVATION_MAX
from vbc.kernels.conv import IntConv

OUTPUTS = 6
"""Three means, three log-scales."""
SHIFT = 8
"""A correction's unit: one activation step moves a mean by 2^-8 sixteenths."""
UNIT = 2.0 ** -(SHIFT + 4)
"""The same in pixel values and octaves."""
WEIGHT_MAX = 127
SLOPE_UNIT = 2.0**-12
"""A slope of 1, a 256th, times a sixteenth of a pixel value or of an octave."""
BIAS_UNIT = 64
"""A bias counts as the weight of an activation of 64."""
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
ITERATIONS = 2
MIN_GAIN = 10.0
"""Nats; less is not worth another iteration."""
SCORE_MAX = 4.0
"""A single outlier asks for no more than this."""
SMALLEST_PROBABILITY = 1e-6
"""Differences of float32 sigmoids mean nothing below."""


def code_tuning(model: ExactModel, coder: Coder, phase: str, wanted: Tensor | None) -> Tuning | None:
    """Code whether a phase is tuned and its corrections.

    wanted: in an encoder, the corrections as `fit_tuning` gives them, or None for none; ignored by a decoder.
    """
    flag = coder.code(table_of(model, 1), np.array([wanted is not None], np.int16))
    if not flag[0]:
        return None
    width, around = model.phases[phase].width, len(AROUND[phase])
    n, used = OUTPUTS * (width + 1), used_slopes(around)
    symbols = None if wanted is None else tuning_symbols(wanted, width).numpy()
    got = coder.code(table_of(model, n + int(used.sum())), symbols)
    delta = torch.from_numpy(np.clip(got, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int32))
    layer = delta[:n].view(OUTPUTS, width + 1)
    weight = layer[:, :width].to(torch.int8).view(OUTPUTS, width, 1, 1)
    shift = torch.full((OUTPUTS,), SHIFT, dtype=torch.int32)
    conv = IntConv(weight, layer[:, width] * BIAS_UNIT, shift, head=True)
    slopes = torch.zeros(used.shape, dtype=torch.int32)
    slopes[used] = delta[n:]
    return Tuning(conv, slopes[0, :, :around].T.contiguous(), slopes[:, :, around:].numpy())


def tuning_symbols(wanted: Tensor, width: int) -> Tensor:
    """The corrections as coded, int16: those of the last hidden layer, then the slopes there are."""
    layer, slopes = wanted[..., : width + 1], wanted[..., width + 1 :]
    return torch.cat((layer.flatten(), slopes[used_slopes(slopes.shape[-1] - 2)])).to(torch.int16)


def used_slopes(around: int) -> Tensor:
    """Which of the slopes bool [2 (mean, log-scale), 3 channels, around + 2] there are.

    A mean follows the groups of misses around it and the channels before, a log-scale those channels.
    """
    used = torch.zeros((2, 3, around + 2), dtype=torch.bool)
    used[0, :, :around] = True
    for c in range(3):
        used[:, c, around : around + c] = True
    return used


def table_of(model: ExactModel, n: int) -> Index:
    """n times the index of the corrections' table."""
    return np.full(n, model.tuning_table, np.uint16)


def fit_tuning(
    step: Step, phase: str, whole: Parameters | None, target: Tensor, effort: int
) -> Tensor | None:
    """Corrections of a phase, or None where they would not pay for themselves.

    int64 [2 (mean, log-scale), 3 channels, width + 1 features + groups of `AROUND` + 2 channels before].

    whole: the entropy parameters of the phase where it is a single block, else None. target: the phase's
    pixels, int16 [1, 3, h, w]. effort: 1 or 2, how many of them to look at.
    """
    size = target.shape[-2], target.shape[-1]
    least, most = SAMPLES[effort]
    samples = min(max(size[0] * size[1] // STRIDE, least), most)
    if whole is None:
        windows = sample_windows(*size, samples)
        known, around = step.parameters(phase, windows), step.around(phase, windows)
        want = by_position(stack([target[..., rows, cols] for rows, cols in windows]))
    else:
        at = sample_positions(size[0] * size[1], samples)
        known, want = whole.at(at), by_position(target)[at]
        around = single(step.around(phase, [(slice(0, size[0]), slice(0, size[1]))]), at)
    x, followed, residual, log_scale = statistics(step, phase, known, around, want)
    delta, gain = fit_channels(x * UNIT, followed, residual, log_scale)
    gain_bits = gain / math.log(2) * size[0] * size[1] / len(x)
    if gain_bits < COST_BITS * OUTPUTS * x.shape[1]:
        return None
    return delta.round().clamp(-WEIGHT_MAX, WEIGHT_MAX).long()


def fit_channels(x: Tensor, followed: Tensor, residual: Tensor, log_scale: Tensor) -> tuple[Tensor, float]:
    """Corrections [2 (mean, log-scale), 3 channels, P + E] that shorten the code, and by how many nats.

    x: features [N, P] times the corrections' unit, for all alike; followed: [2, 3, E, N], further ones of
    each; residual in pixel values, log_scale in octaves: [3, N]; all float32.

    Newton's method with the logistic's Fisher information at the start (scoring, one factorisation), channel
    by channel with step halving.
    """
    n, p = x.shape
    variance = torch.exp2(2 * log_scale[:, ::HESSIAN_STRIDE])
    information = torch.stack((1 / (3 * (variance + 1 / 12)), 0.687 * variance / (variance + 0.05)))
    part = torch.cat((x[::HESSIAN_STRIDE].T.expand(2, 3, -1, -1), followed[..., ::HESSIAN_STRIDE]), 2)
    weighted = part * (information * HESSIAN_STRIDE).sqrt_()[:, :, None]
    prior = torch.eye(part.shape[2]) / PRIOR_DEVIATION**2
    factor = torch.linalg.cholesky(weighted @ weighted.mT + prior)

    def look(d: Tensor) -> tuple[Tensor, Tensor]:
        moved = (d[..., :p].reshape(-1, p) @ x.T).view(2, 3, n) + (d[..., None, p:] @ followed)[:, :, 0]
        nats, scores = logistic_cost(residual - moved[0], log_scale + moved[1])
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


def statistics(
    step: Step, phase: str, known: Parameters, around: Tensor, want: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, followed values, residuals and log2 scales of the three channels at sampled positions.

    want: their pixels, int16 [N, 3]. Features float [N, width + 1]; what a channel's mean and log-scale
    follow, in units of their slopes, [2, 3, 2, N]; residuals (pixel values) and scales (octaves) [3, N].
    """
    predictor = BlockPredictor(step.model, phase, known)
    pixels = want.T.contiguous().numpy()
    residuals, scales = [], []
    n_around = len(AROUND[phase])
    followed = torch.zeros((2, 3, n_around + 2, len(want)))
    followed[0, :, :n_around] = by_position(around).T.reshape(n_around, 3, -1).transpose(0, 1) * (
        4 * SLOPE_UNIT
    )
    for c in range(3):
        mean, log_scale = (torch.from_numpy(a).float() / 16 for a in predictor.predict(c))
        residuals.append(torch.from_numpy(pixels[c]).float() - mean)
        scales.append(log_scale)
        for kind, seen in enumerate(predictor.seen()):
            for i, values in enumerate(seen, start=n_around):
                followed[kind, c, i] = torch.from_numpy(values) * SLOPE_UNIT
        if c < 2:
            predictor.learn(pixels[c])
    features = by_position(known.features)
    n, width = features.shape
    x = torch.full((n, width + 1), float(BIAS_UNIT))
    x[:, :width] = features
    return x, followed, torch.stack(residuals), torch.stack(scales)


def logistic_cost(residual: Tensor, log2_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Nats [C] of residuals [C, N] under a discretised logistic, and minus each one's derivatives.

    Those by mean and by log2 scale, [2, C, N]. As `exact.logistic_nll`, but both from one pair of sigmoids,
    and an outlier counts and pulls no more than so much.
    """
    inv = torch.exp2(-log2_scale)
    a, b = (residual + 0.5) * inv, (residual - 0.5) * inv
    up, down = torch.sigmoid(a), torch.sigmoid(b)
    nats = -(up - down).clamp_min_(SMALLEST_PROBABILITY).log_().sum(1)
    by_mean = (up + down - 1) * inv
    by_scale = -math.log(2) * (a * (1 - up) - b * down + inv / torch.expm1(inv.clamp_max(60)))
    return nats, torch.stack((by_mean, by_scale)).clamp_(-SCORE_MAX, SCORE_MAX)


assert ACTIVATION_MAX * WEIGHT_MAX * 64 < 1 << 24, "a tuned layer of up to 64 features is always exact"
