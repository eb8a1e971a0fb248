"""The discretised logistic on integers: bits for training, table index for coding, samples for previews.

``P(r) = sigmoid((r + 1/2) / s) - sigmoid((r - 1/2) / s)``, r the integer minus a real mean, s = 2^log2_scale:
Salimans et al. 2017 (PixelCNN++, arXiv:1701.05517), equation 2, without the edge bins. Its logarithm is taken
as ``log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))``, which neither overflows nor cancels. The
mixture is in `mixture.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.kernels.dispatch import (
    Pointer,
    Value,
    ceil_div,
    check_same_device,
    check_tensor,
    constexpr,
    jit,
    on_device,
    tl,
    use_triton,
)

LOG2_SCALE_LIMIT = 60.0
"""Scales are clamped to 2^-60..2^60: every product below stays finite in float32 for |r| < 2^60."""
SERIES = 0.5
"""Below this the functions of 1/s are taken from their series; both sides are then good to 2e-7."""
N_FRACTIONS = 8
"""Table classes for the fractional part of the mean, an eighth of a pixel value each."""
MAX_SCALES = 65536 // N_FRACTIONS
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 1024


def logistic_bits(residual: Tensor, log2_scale: Tensor) -> Tensor:
    """Bits of integers under a discretised logistic, with gradients for both arguments.

    residual: float, value minus mean. log2_scale: the same shape and dtype, octaves; clamped to -60..60.
    Returns float32 of that shape (float64 for float64). Raises ValueError where shapes, dtypes or devices
    differ.
    """
    _check_pair(residual, log2_scale)
    if use_triton(residual) and residual.dtype != torch.float64:
        return _bits_triton(residual, log2_scale)
    return logistic_bits_reference(residual, log2_scale)


def table_index(mean16: Tensor, log2_scale16: Tensor, low16: int, n_scales: int) -> tuple[Tensor, Tensor]:
    """Map integer entropy parameters to frequency-table index and rounded mean, exactly.

    mean16: int32, sixteenths of a pixel value, |mean16| < 2^19. log2_scale16: int32 of the same shape,
    sixteenths of an octave. Scale classes are quarter octaves, class 0 at low16, n_scales of them. Returns
    the index ``scale * 8 + fraction`` as uint16 and the mean, rounded half up, as int16; the fraction class
    is (mean - rounded mean) in eighths, -4/8 in class 0. Raises ValueError for wrong shapes, dtypes and
    n_scales.
    """
    _check_index(mean16, log2_scale16, n_scales)
    if use_triton(mean16):
        return table_index_triton(mean16, log2_scale16, low16, n_scales)
    return table_index_reference(mean16, log2_scale16, low16, n_scales)


def logistic_sample(mean: Tensor, log2_scale: Tensor, uniform: Tensor) -> Tensor:
    """An integer from each logistic: int32, ``round(mean + s * logit(u))``; float32 inputs of one shape,
    uniform in (0, 1).

    Distributed exactly as `logistic_bits` says. Raises ValueError where shapes or dtypes differ.
    """
    _check_pair(mean, log2_scale)
    _check_pair(mean, uniform)
    s = torch.exp2(log2_scale.float().clamp(-LOG2_SCALE_LIMIT, 30.0))
    return torch.floor(mean + s * torch.logit(uniform.float()) + 0.5).to(torch.int32)


def logistic_bits_reference(residual: Tensor, log2_scale: Tensor) -> Tensor:
    """The definition; float32 inside at least, differentiable."""
    r, scale = residual, log2_scale.clamp(-LOG2_SCALE_LIMIT, LOG2_SCALE_LIMIT)
    if r.dtype != torch.float64:
        r, scale = r.float(), scale.float()
    inv = torch.exp2(-scale)
    a, b = (r + 0.5) * inv, (r - 0.5) * inv
    nats = F.softplus(-a) + F.softplus(b) - log1mexp(inv, -scale * math.log(2))
    return nats / math.log(2)


def log1mexp(d: Tensor, log_d: Tensor) -> Tensor:
    """log(1 - exp(-d)) for d > 0 whose logarithm is at hand, accurate even where d underflows."""
    small = d < SERIES
    e = torch.where(small, 0.0, torch.exp(-torch.where(small, SERIES, d)))
    d2 = torch.where(small, d, 0.0) ** 2
    series = log_d - torch.where(small, d, 0.0) / 2 + d2 / 24 - d2 * d2 / 2880 + d2 * d2 * d2 / 181440
    return torch.where(small, series, torch.log1p(-e))


def table_index_reference(
    mean16: Tensor, log2_scale16: Tensor, low16: int, n_scales: int
) -> tuple[Tensor, Tensor]:
    """The definition, in int32."""
    mean = (mean16 + 8) >> 4
    fraction = (mean16 - 16 * mean + 8) >> 1
    scale = ((log2_scale16 - low16 + 2) >> 2).clamp(0, n_scales - 1)
    return (scale * N_FRACTIONS + fraction).to(torch.uint16), mean.to(torch.int16)


# Launchers


class _Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, log2_scale: Tensor) -> Tensor:
        r, scale = residual.contiguous(), log2_scale.contiguous()
        bits = torch.empty(r.shape, dtype=torch.float32, device=r.device)
        with on_device(r.device):
            _bits_kernel[(ceil_div(r.numel(), BLOCK),)](r, scale, bits, r.numel(), SIZE=BLOCK)
        ctx.save_for_backward(r, scale)
        return bits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        r, scale = ctx.saved_tensors
        d_r, d_scale = torch.empty_like(r), torch.empty_like(scale)
        grad = grads[0].float().contiguous()
        grid = (ceil_div(r.numel(), BLOCK),)
        with on_device(r.device):
            _bits_grad_kernel[grid](r, scale, grad, d_r, d_scale, r.numel(), SIZE=BLOCK)
        return d_r, d_scale


_bits_triton: Callable[[Tensor, Tensor], Tensor] = _Bits.apply


def table_index_triton(
    mean16: Tensor, log2_scale16: Tensor, low16: int, n_scales: int
) -> tuple[Tensor, Tensor]:
    """The Triton kernel."""
    m, scale = mean16.contiguous(), log2_scale16.contiguous()
    index = torch.empty(m.shape, dtype=torch.uint16, device=m.device)
    mean = torch.empty(m.shape, dtype=torch.int16, device=m.device)
    if m.numel():
        grid = (ceil_div(m.numel(), BLOCK),)
        with on_device(m.device):
            _index_kernel[grid](m, scale, index, mean, m.numel(), low16, n_scales, SIZE=BLOCK)
    return index, mean


# Checks


def _check_pair(a: Tensor, b: Tensor) -> None:
    check_tensor("the first tensor", a, (*FLOATS, torch.float64), tuple(a.shape))
    check_tensor("the second tensor", b, (a.dtype,), tuple(a.shape))
    check_same_device(a, second=b)
    if a.numel() == 0:
        raise ValueError("tensors must hold at least one element")


def _check_index(mean16: Tensor, log2_scale16: Tensor, n_scales: int) -> None:
    check_tensor("mean16", mean16, (torch.int32,), tuple(mean16.shape))
    check_tensor("log2_scale16", log2_scale16, (torch.int32,), tuple(mean16.shape))
    check_same_device(mean16, log2_scale16=log2_scale16)
    if not 1 <= n_scales <= MAX_SCALES:
        raise ValueError(f"n_scales must be 1..{MAX_SCALES}, not {n_scales}")


# Triton kernels


@jit
def softplus(x: Value) -> Value:
    """log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@jit
def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@jit
def log1mexp_kernel(d: Value, log_d: Value) -> Value:
    """log(1 - exp(-d)); see `log1mexp`."""
    near = tl.minimum(d, 0.5)
    d2 = near * near
    series = log_d - near * 0.5 + d2 * (1.0 / 24.0 - d2 * (1.0 / 2880.0 - d2 * (1.0 / 181440.0)))
    return tl.where(d < 0.5, series, tl.log(1.0 - tl.exp(-tl.maximum(d, 0.5))))


@jit
def d_over_expm1(d: Value) -> Value:
    """d / (exp(d) - 1): the derivative of log(1 - exp(-d)) by log d."""
    near = tl.minimum(d, 0.5)
    d2 = near * near
    series = 1.0 - near * 0.5 + d2 * (1.0 / 12.0 - d2 * (1.0 / 720.0 - d2 * (1.0 / 30240.0)))
    e = tl.exp(-tl.maximum(d, 0.5))
    return tl.where(d < 0.5, series, d * e / (1.0 - e))


@jit
def _bits_kernel(residual: Pointer, log2_scale: Pointer, bits: Pointer, n: Value, SIZE: constexpr) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    r = tl.load(residual + i, mask=i < n, other=0.0).to(tl.float32)
    scale = tl.load(log2_scale + i, mask=i < n, other=0.0).to(tl.float32)
    scale = tl.minimum(tl.maximum(scale, -60.0), 60.0)
    inv = tl.exp2(-scale)
    nats = softplus(-(r + 0.5) * inv) + softplus((r - 0.5) * inv)
    nats -= log1mexp_kernel(inv, -scale * 0.6931471805599453)
    tl.store(bits + i, nats * 1.4426950408889634, mask=i < n)


@jit
def _bits_grad_kernel(
    residual: Pointer,
    log2_scale: Pointer,
    grad: Pointer,
    d_residual: Pointer,
    d_scale: Pointer,
    n: Value,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    r = tl.load(residual + i, mask=i < n, other=0.0).to(tl.float32)
    raw = tl.load(log2_scale + i, mask=i < n, other=0.0).to(tl.float32)
    g = tl.load(grad + i, mask=i < n, other=0.0)
    scale = tl.minimum(tl.maximum(raw, -60.0), 60.0)
    inv = tl.exp2(-scale)
    a = (r + 0.5) * inv
    b = (r - 0.5) * inv
    right = sigmoid(-a)
    left = sigmoid(b)
    tl.store(d_residual + i, g * inv * (left - right) * 1.4426950408889634, mask=i < n)
    by_scale = a * right - b * left + d_over_expm1(inv)
    tl.store(d_scale + i, tl.where(raw == scale, g * by_scale, 0.0), mask=i < n)


@jit
def _index_kernel(
    mean16: Pointer,
    log2_scale16: Pointer,
    index: Pointer,
    mean: Pointer,
    n: Value,
    low16: Value,
    n_scales: Value,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    m16 = tl.load(mean16 + i, mask=i < n, other=0)
    m = (m16 + 8) >> 4
    fraction = (m16 - 16 * m + 8) >> 1
    scale = (tl.load(log2_scale16 + i, mask=i < n, other=0) - low16 + 2) >> 2
    scale = tl.minimum(tl.maximum(scale, 0), n_scales - 1)
    tl.store(index + i, (scale * 8 + fraction).to(tl.uint16), mask=i < n)
    tl.store(mean + i, m.to(tl.int16), mask=i < n)
