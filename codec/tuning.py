"""Output layers tuned to one image: small integer corrections, found in the encoder, coded in the level.

The format is in docs/format.md.

The correction of means and log-scales is linear in the last hidden layer, so the best one is a small convex
problem per channel: a few Newton steps on sampled positions, no gradient descent through the network.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vbc.codec.coder import Coder, Index
from vbc.codec.exact import logistic_nll
from vbc.codec.exact_block import BlockPredictor, ExactModel, Step, Window, by_channel, stack
from vbc.codec.layers import ACTIVATION_MAX
from vbc.kernels.conv import IntConv

OUTPUTS = 6
"""Three means, three log-scales."""
SHIFT = 8
"""A correction's unit: one activation step moves a mean by 2^-8 sixteenths."""
UNIT = 2.0 ** -(SHIFT + 4)
"""The same in pixel values and octaves."""
WEIGHT_MAX = 127
BIAS_UNIT = 64
"""A bias counts as the weight of an activation of 64."""
SAMPLES = {1: 9_000, 2: 400_000}
"""Positions looked at, by effort; on 9,000 the 98 parameters a channel cost 0.006 bit a symbol in
overfitting."""
MIN_POSITIONS = 10_000
"""Phases below this hardly gain what the side information costs."""
COST_BITS = 6.5
"""Measured bits of a correction under its table."""
WINDOW = 48
PRIOR_DEVIATION = 12.0
"""Standard deviation of the corrections' prior in their units: features met rarely stay as they are."""
HESSIAN_STRIDE = 3
"""The curvature needs fewer positions than the slope."""
ITERATIONS = 3
MIN_GAIN = 10.0
"""Nats; less is not worth another iteration."""
SCORE_MAX = 4.0
"""A single outlier asks for no more than this."""


def code_tuning(model: ExactModel, coder: Coder, width: int, wanted: Tensor | None) -> IntConv | None:
    """Code whether a phase is tuned and its corrections, int [6, width + 1].

    Returns the layer that computes them, or None. wanted: the corrections in an encoder, or None for none;
    ignored by a decoder.
    """
    flag = coder.code(table_of(model, 1), np.array([wanted is not None], np.int16))
    if not flag[0]:
        return None
    n = OUTPUTS * (width + 1)
    symbols = None if wanted is None else wanted.numpy().astype(np.int16).ravel()
    got = coder.code(table_of(model, n), symbols)
    delta = torch.from_numpy(np.clip(got, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int32)).view(OUTPUTS, width + 1)
    weight = delta[:, :width].to(torch.int8).view(OUTPUTS, width, 1, 1)
    shift = torch.full((OUTPUTS,), SHIFT, dtype=torch.int32)
    return IntConv(weight, delta[:, width] * BIAS_UNIT, shift, head=True)


def table_of(model: ExactModel, n: int) -> Index:
    """n times the index of the corrections' table."""
    return np.full(n, model.tuning_table, np.uint16)


def fit_tuning(step: Step, phase: str, target: Tensor, samples: int) -> Tensor | None:
    """Corrections int64 [6, width + 1] for a phase, or None where they would not pay for themselves.

    target: the phase's pixels, int16 [1, 3, h, w]. samples: about how many of them to look at.
    """
    size = target.shape[-2], target.shape[-1]
    x, residual, log_scale = statistics(step, phase, target, sample_windows(*size, samples))
    fits = [fit_channel(x * UNIT, residual[c], log_scale[c]) for c in range(3)]
    means, scales, gains = zip(*fits, strict=True)
    gain_bits = sum(gains) / math.log(2) * size[0] * size[1] / len(x)
    if gain_bits < COST_BITS * OUTPUTS * x.shape[1]:
        return None
    return torch.stack(means + scales).round().clamp(-WEIGHT_MAX, WEIGHT_MAX).long()


def fit_channel(x: Tensor, residual: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, float]:
    """Corrections [P] of mean and log-scale that shorten the code of residuals [N], and by how many nats.

    x: features [N, P] times the corrections' unit; residual in pixel values, log_scale in octaves; all
    float32.

    Newton's method with the logistic's Fisher information at the start (scoring, one factorisation) and step
    halving.
    """
    variance = torch.exp2(2 * log_scale)
    information = (1 / (3 * (variance + 1 / 12)), 0.687 * variance / (variance + 0.05))
    prior = torch.eye(x.shape[1]) / PRIOR_DEVIATION**2
    part = x[::HESSIAN_STRIDE]
    factors = []
    for w in information:
        weighted = part * (w[::HESSIAN_STRIDE] * HESSIAN_STRIDE).sqrt_()[:, None]
        factors.append(torch.linalg.cholesky(weighted.T @ weighted + prior))

    def cost(d: Tensor) -> float:
        nats = math.log(2) * logistic_nll(residual - x @ d[0], log_scale + x @ d[1]).sum()
        return float(nats + d.square().sum() / (2 * PRIOR_DEVIATION**2))

    delta = torch.zeros((2, x.shape[1]))
    start = best = cost(delta)
    for _ in range(ITERATIONS):
        scores = logistic_scores(residual - x @ delta[0], log_scale + x @ delta[1])
        moves = []
        for score, d, factor in zip(scores, delta, factors, strict=True):
            gradient = x.T @ score.clamp(-SCORE_MAX, SCORE_MAX) - d / PRIOR_DEVIATION**2
            moves.append(torch.cholesky_solve(gradient[:, None], factor)[:, 0])
        move = torch.stack(moves)
        for length in (1.0, 0.5, 0.25):
            trial = delta + length * move
            if (value := cost(trial)) < best:
                break
        else:
            break
        delta, gain, best = trial, best - value, value
        if gain < MIN_GAIN:
            break
    return delta[0], delta[1], start - best


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
    step: Step, phase: str, target: Tensor, windows: list[Window]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, residuals and log2 scales of the three channels at sampled positions.

    Features float [N, width + 1]; residuals (pixel values) and scales (octaves) [3, N].
    """
    p = step.parameters(phase, windows)
    predictor = BlockPredictor(step.model, phase, p)
    want = by_channel(stack([target[..., rows, cols] for rows, cols in windows]))
    residuals, scales = [], []
    for c in range(3):
        mean, log_scale = (torch.from_numpy(a).float() / 16 for a in predictor.predict(c))
        residuals.append(torch.from_numpy(want[c]).float() - mean)
        scales.append(log_scale)
        if c < 2:
            predictor.learn(want[c])
    n, width = len(residuals[0]), p.features.shape[1]
    x = torch.full((n, width + 1), float(BIAS_UNIT))
    x[:, :width] = p.features.permute(0, 2, 3, 1).reshape(n, width)
    return x, torch.stack(residuals), torch.stack(scales)


def logistic_scores(residual: Tensor, log2_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the derivatives of `exact.logistic_nll` in nats, by mean and by log2 scale."""
    inv = torch.exp2(-log2_scale)
    a, b = (residual + 0.5) * inv, (residual - 0.5) * inv
    up, down = torch.sigmoid(a), torch.sigmoid(b)
    by_mean = (up + down - 1) * inv
    by_scale = a * (1 - up) - b * down + inv / torch.expm1(inv.clamp_max(60))
    return by_mean, -math.log(2) * by_scale


assert ACTIVATION_MAX * WEIGHT_MAX * 64 < 1 << 24, "a tuned layer of up to 64 features is always exact"
