"""Mixture of K discretised logistics for RGB, as in PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517).

Colour values are mapped to -1..1; a bin is 2/255 wide, the bins at 0 and 255 reach to infinity. Within a
component the mean of green is shifted by the red value and that of blue by both, linearly: ``m_G = mean_G +
tanh(c_0) R``, ``m_B = mean_B + tanh(c_1) R + tanh(c_2) G``. Parameters are planes [N, 10K, H, W]: K logits,
3K means, 3K log-scales (natural logarithm), 3K coefficients, the three channels of each group one after the
other.
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
from vbc.kernels.logistic import FLOATS, d_over_expm1, log1mexp, log1mexp_kernel, sigmoid, softplus
from vbc.kernels.research.mixture_cpu import MixtureBitsOnCpu

MIN_LOG_SCALE = -7.0
"""PixelCNN++'s floor of the log-scales."""
MAX_LOG_SCALE = 40.0
"""Far beyond use; keeps the products of scales finite in float32."""
BLOCK = 256


def mixture_bits(params: Tensor, x: Tensor, min_log_scale: float = MIN_LOG_SCALE) -> Tensor:
    """Bits of each pixel's three values, with the gradient for all parameters.

    params: float [N, 10K, H, W], planes as above. x: uint8 [N, 3, H, W]. Log-scales are clamped to
    min_log_scale..40. Returns float32 [N, H, W] (float64 for float64). Raises ValueError for other shapes and
    dtypes. Memory beyond the result: nothing of the size of params, on a CPU their gradient.
    """
    _check(params, x)
    if use_triton(params) and params.dtype != torch.float64:
        return _bits_triton(params, x, min_log_scale)
    if params.device.type == "cpu" and params.dtype == torch.float32:
        return _bits_on_cpu(params, x, min_log_scale, MAX_LOG_SCALE)
    return mixture_bits_reference(params, x, min_log_scale)


def mixture_mean(params: Tensor) -> Tensor:
    """The mean of the mixture before discretisation, the preview of a missing picture: uint8 [N, 3, H, W]."""
    _check(params)
    return _draw(params, None, MIN_LOG_SCALE) if use_triton(params) else mixture_mean_reference(params)


def mixture_sample(params: Tensor, uniform: Tensor, min_log_scale: float = MIN_LOG_SCALE) -> Tensor:
    """A picture from the mixture: uint8 [N, 3, H, W], distributed as `mixture_bits` says.

    uniform: float32 [N, 4, H, W] in (0, 1): the first chooses the component, the others draw R, G, B. The
    caller makes them, so the result is the caller's to repeat. Raises ValueError for other shapes and dtypes.
    """
    _check(params)
    check_tensor("uniform", uniform, (torch.float32, torch.float64), (params.shape[0], 4, *params.shape[2:]))
    check_same_device(params, uniform=uniform)
    if use_triton(params):
        return _draw(params, uniform, min_log_scale)
    return mixture_sample_reference(params, uniform, min_log_scale)


def mixture_bits_reference(params: Tensor, x: Tensor, min_log_scale: float = MIN_LOG_SCALE) -> Tensor:
    """The definition; float32 inside at least, differentiable."""
    logits, means, log_scales, coefficients = _split(params, min_log_scale)
    v = x.to(means.dtype).unsqueeze(2) / 127.5 - 1
    red, green, _ = v.unbind(1)
    m = torch.stack(
        (
            means[:, 0],
            means[:, 1] + coefficients[:, 0] * red,
            means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green,
        ),
        1,
    )
    inv = torch.exp(-log_scales)
    a, b = (v - m + 1 / 255) * inv, (v - m - 1 / 255) * inv
    low, high = -F.softplus(-a), -F.softplus(b)
    inner = low + high + log1mexp(inv * (2 / 255), math.log(2 / 255) - log_scales)
    edge = x.unsqueeze(2)
    log_p = torch.where(edge == 0, low, torch.where(edge == 255, high, inner)).sum(1)
    nats = torch.logsumexp(logits, 1) - torch.logsumexp(logits + log_p, 1)
    return nats / math.log(2)


def mixture_mean_reference(params: Tensor) -> Tensor:
    """The definition of `mixture_mean`."""
    logits, means, _, coefficients = _split(params, MIN_LOG_SCALE)
    red = means[:, 0]
    green = means[:, 1] + coefficients[:, 0] * red
    blue = means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green
    weight = torch.softmax(logits, 1).unsqueeze(1)
    return _to_uint8((torch.stack((red, green, blue), 1) * weight).sum(2))


def mixture_sample_reference(params: Tensor, uniform: Tensor, min_log_scale: float = MIN_LOG_SCALE) -> Tensor:
    """The definition of `mixture_sample`: inverse distribution functions throughout."""
    logits, means, log_scales, coefficients = _split(params, min_log_scale)
    u = uniform.to(means.dtype)
    below = torch.softmax(logits, 1).cumsum(1) < u[:, :1]
    k = below.sum(1, keepdim=True).clamp_max(logits.shape[1] - 1).unsqueeze(1).expand(-1, 3, -1, -1, -1)
    mean, log_scale, coefficient = (t.gather(2, k).squeeze(2) for t in (means, log_scales, coefficients))
    noise = torch.exp(log_scale) * torch.logit(u[:, 1:])
    out: list[Tensor] = []
    for channel in range(3):
        m = mean[:, channel]
        if channel == 1:
            m = m + coefficient[:, 0] * out[0]
        elif channel == 2:
            m = m + coefficient[:, 1] * out[0] + coefficient[:, 2] * out[1]
        out.append(_to_uint8(m + noise[:, channel]).to(m.dtype) / 127.5 - 1)
    return _to_uint8(torch.stack(out, 1))


def _to_uint8(v: Tensor) -> Tensor:
    return torch.floor((v + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)


def _split(params: Tensor, min_log_scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [N, K, H, W]; means, clamped log-scales, tanh of the coefficients [N, 3, K, H, W]."""
    n, planes, h, w = params.shape
    k = planes // 10
    p = params if params.dtype == torch.float64 else params.float()
    means, log_scales, coefficients = p[:, k:].view(n, 3, 3, k, h, w).unbind(1)
    return p[:, :k], means, log_scales.clamp(min_log_scale, MAX_LOG_SCALE), torch.tanh(coefficients)


# Launchers


class _Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, params: Tensor, x: Tensor, min_log_scale: float) -> Tensor:
        params, x = params.contiguous(), x.contiguous()
        n, planes, h, w = params.shape
        bits, lse_logits, lse_joint = torch.empty((3, n, h, w), device=params.device).unbind(0)
        with on_device(params.device):
            _bits_kernel[(ceil_div(bits.numel(), BLOCK),)](
                params,
                x,
                bits,
                lse_logits,
                lse_joint,
                bits.numel(),
                h * w,
                min_log_scale,
                K=planes // 10,
                SIZE=BLOCK,
            )
        ctx.save_for_backward(params, x, lse_logits, lse_joint)
        ctx.min_log_scale = min_log_scale
        return bits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        params, x, lse_logits, lse_joint = ctx.saved_tensors
        n, planes, h, w = params.shape
        d_params = torch.empty_like(params)
        with on_device(params.device):
            _bits_grad_kernel[(ceil_div(n * h * w, BLOCK),)](
                params,
                x,
                lse_logits,
                lse_joint,
                grads[0].float().contiguous(),
                d_params,
                n * h * w,
                h * w,
                ctx.min_log_scale,
                K=planes // 10,
                SIZE=BLOCK,
            )
        return d_params, None, None


_bits_triton: Callable[[Tensor, Tensor, float], Tensor] = _Bits.apply
_bits_on_cpu: Callable[[Tensor, Tensor, float, float], Tensor] = MixtureBitsOnCpu.apply


def _draw(params: Tensor, uniform: Tensor | None, min_log_scale: float) -> Tensor:
    """The mean, or a sample where uniform numbers are given."""
    params = params.contiguous()
    n, planes, h, w = params.shape
    y = torch.empty((n, 3, h, w), dtype=torch.uint8, device=params.device)
    with on_device(params.device):
        _draw_kernel[(ceil_div(n * h * w, BLOCK),)](
            params,
            params if uniform is None else uniform.contiguous(),
            y,
            n * h * w,
            h * w,
            min_log_scale,
            K=planes // 10,
            SAMPLE=uniform is not None,
            SIZE=BLOCK,
        )
    return y


# Checks


def _check(params: Tensor, x: Tensor | None = None) -> None:
    check_tensor("params", params, (*FLOATS, torch.float64), (None, None, None, None))
    n, planes, h, w = params.shape
    if planes % 10 or 0 in params.shape:
        raise ValueError(f"params must be [N, 10K, H, W] and not empty, not {list(params.shape)}")
    if x is not None:
        check_tensor("x", x, (torch.uint8,), (n, 3, h, w))
        check_same_device(params, x=x)


# Triton kernels. A program takes SIZE pixels and walks over the components.


@jit
def _tanh(x: Value) -> Value:
    return 2.0 * sigmoid(2.0 * x) - 1.0


@jit
def _channel(value: Value, mean: Value, log_scale: Value) -> Value:
    """log P of one channel's value (0..255, as float) in one component."""
    inv = tl.exp(-log_scale)
    centred = value / 127.5 - 1.0 - mean
    low = -softplus(-(centred + 1.0 / 255.0) * inv)
    high = -softplus((centred - 1.0 / 255.0) * inv)
    inner = low + high + log1mexp_kernel(inv * (2.0 / 255.0), -4.848116364598481 - log_scale)
    return tl.where(value == 0, low, tl.where(value == 255, high, inner))


@jit
def _channel_grad(value: Value, mean: Value, log_scale: Value) -> Value:
    """Derivatives of `_channel` by mean and log-scale."""
    inv = tl.exp(-log_scale)
    centred = value / 127.5 - 1.0 - mean
    a = (centred + 1.0 / 255.0) * inv
    b = (centred - 1.0 / 255.0) * inv
    right = tl.where(value == 255, 0.0, sigmoid(-a))
    left = tl.where(value == 0, 0.0, sigmoid(b))
    width = tl.where((value == 0) | (value == 255), 0.0, d_over_expm1(inv * (2.0 / 255.0)))
    return inv * (left - right), b * left - a * right - width


@jit
def _log_scale(at: Value, inside: Value, low: Value) -> Value:
    """The raw log-scale and the clamped one."""
    raw = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    return raw, tl.minimum(tl.maximum(raw, low), 40.0)


@jit
def _plane(at: Value, inside: Value) -> Value:
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@jit
def _bits_kernel(
    params: Pointer,  # [N, 10K, HW]
    x: Pointer,  # uint8 [N, 3, HW]
    bits: Pointer,  # float32 [N, HW], as the next two
    lse_logits: Pointer,
    lse_joint: Pointer,
    n_pixels: Value,
    area: Value,
    min_log_scale: Value,
    K: constexpr,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = i < n_pixels
    image = i // area
    at = params + image * (10 * K) * area + (i - image * area)
    colour = x + image * 3 * area + (i - image * area)
    red = tl.load(colour, mask=inside, other=0).to(tl.float32)
    green = tl.load(colour + area, mask=inside, other=0).to(tl.float32)
    blue = tl.load(colour + 2 * area, mask=inside, other=0).to(tl.float32)
    r = red / 127.5 - 1.0
    g = green / 127.5 - 1.0
    top_prior = tl.full((SIZE,), -1e30, tl.float32)  # running maximum and sum of two logsumexp
    top_joint = tl.full((SIZE,), -1e30, tl.float32)
    sum_prior = tl.zeros((SIZE,), tl.float32)
    sum_joint = tl.zeros((SIZE,), tl.float32)
    for k in range(K):
        logit = _plane(at + k * area, inside)
        mean_r = _plane(at + (K + k) * area, inside)
        mean_g = _plane(at + (2 * K + k) * area, inside)
        mean_b = _plane(at + (3 * K + k) * area, inside)
        _, scale_r = _log_scale(at + (4 * K + k) * area, inside, min_log_scale)
        _, scale_g = _log_scale(at + (5 * K + k) * area, inside, min_log_scale)
        _, scale_b = _log_scale(at + (6 * K + k) * area, inside, min_log_scale)
        c_0 = _tanh(_plane(at + (7 * K + k) * area, inside))
        c_1 = _tanh(_plane(at + (8 * K + k) * area, inside))
        c_2 = _tanh(_plane(at + (9 * K + k) * area, inside))
        joint = logit + _channel(red, mean_r, scale_r) + _channel(green, mean_g + c_0 * r, scale_g)
        joint += _channel(blue, mean_b + c_1 * r + c_2 * g, scale_b)
        new_top = tl.maximum(top_prior, logit)
        sum_prior = sum_prior * tl.exp(top_prior - new_top) + tl.exp(logit - new_top)
        top_prior = new_top
        new_top = tl.maximum(top_joint, joint)
        sum_joint = sum_joint * tl.exp(top_joint - new_top) + tl.exp(joint - new_top)
        top_joint = new_top
    prior = top_prior + tl.log(sum_prior)
    total = top_joint + tl.log(sum_joint)
    tl.store(lse_logits + i, prior, mask=inside)
    tl.store(lse_joint + i, total, mask=inside)
    tl.store(bits + i, (prior - total) * 1.4426950408889634, mask=inside)


@jit
def _bits_grad_kernel(
    params: Pointer,
    x: Pointer,
    lse_logits: Pointer,
    lse_joint: Pointer,
    grad: Pointer,  # float32 [N, HW]
    d_params: Pointer,
    n_pixels: Value,
    area: Value,
    min_log_scale: Value,
    K: constexpr,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = i < n_pixels
    image = i // area
    place = image * (10 * K) * area + (i - image * area)
    at = params + place
    to = d_params + place
    colour = x + image * 3 * area + (i - image * area)
    red = tl.load(colour, mask=inside, other=0).to(tl.float32)
    green = tl.load(colour + area, mask=inside, other=0).to(tl.float32)
    blue = tl.load(colour + 2 * area, mask=inside, other=0).to(tl.float32)
    r = red / 127.5 - 1.0
    g = green / 127.5 - 1.0
    weight = tl.load(grad + i, mask=inside, other=0.0) * 1.4426950408889634
    prior = tl.load(lse_logits + i, mask=inside, other=0.0)
    total = tl.load(lse_joint + i, mask=inside, other=0.0)
    for k in range(K):
        logit = _plane(at + k * area, inside)
        mean_r = _plane(at + (K + k) * area, inside)
        mean_g = _plane(at + (2 * K + k) * area, inside)
        mean_b = _plane(at + (3 * K + k) * area, inside)
        raw_r, scale_r = _log_scale(at + (4 * K + k) * area, inside, min_log_scale)
        raw_g, scale_g = _log_scale(at + (5 * K + k) * area, inside, min_log_scale)
        raw_b, scale_b = _log_scale(at + (6 * K + k) * area, inside, min_log_scale)
        c_0 = _tanh(_plane(at + (7 * K + k) * area, inside))
        c_1 = _tanh(_plane(at + (8 * K + k) * area, inside))
        c_2 = _tanh(_plane(at + (9 * K + k) * area, inside))
        mean_g += c_0 * r
        mean_b += c_1 * r + c_2 * g
        joint = logit + _channel(red, mean_r, scale_r) + _channel(green, mean_g, scale_g)
        joint += _channel(blue, mean_b, scale_b)
        share = -weight * tl.exp(joint - total)
        by_mean_r, by_scale_r = _channel_grad(red, mean_r, scale_r)
        by_mean_g, by_scale_g = _channel_grad(green, mean_g, scale_g)
        by_mean_b, by_scale_b = _channel_grad(blue, mean_b, scale_b)
        tl.store(to + k * area, share + weight * tl.exp(logit - prior), mask=inside)
        tl.store(to + (K + k) * area, share * by_mean_r, mask=inside)
        tl.store(to + (2 * K + k) * area, share * by_mean_g, mask=inside)
        tl.store(to + (3 * K + k) * area, share * by_mean_b, mask=inside)
        tl.store(to + (4 * K + k) * area, tl.where(raw_r == scale_r, share * by_scale_r, 0.0), mask=inside)
        tl.store(to + (5 * K + k) * area, tl.where(raw_g == scale_g, share * by_scale_g, 0.0), mask=inside)
        tl.store(to + (6 * K + k) * area, tl.where(raw_b == scale_b, share * by_scale_b, 0.0), mask=inside)
        tl.store(to + (7 * K + k) * area, share * by_mean_g * r * (1.0 - c_0 * c_0), mask=inside)
        tl.store(to + (8 * K + k) * area, share * by_mean_b * r * (1.0 - c_1 * c_1), mask=inside)
        tl.store(to + (9 * K + k) * area, share * by_mean_b * g * (1.0 - c_2 * c_2), mask=inside)


@jit
def _bin(v: Value) -> Value:
    """The value 0..255 whose bin holds v."""
    return tl.minimum(tl.maximum(tl.floor((v + 1.0) * 127.5 + 0.5), 0.0), 255.0)


@jit
def _draw_kernel(
    params: Pointer,
    uniform: Pointer,  # float [N, 4, HW]
    y: Pointer,  # uint8 [N, 3, HW]
    n_pixels: Value,
    area: Value,
    min_log_scale: Value,
    K: constexpr,
    SAMPLE: constexpr,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = i < n_pixels
    image = i // area
    pixel = i - image * area
    at = params + image * (10 * K) * area + pixel
    to = y + image * 3 * area + pixel
    top = tl.full((SIZE,), -1e30, tl.float32)
    total = tl.zeros((SIZE,), tl.float32)
    for k in range(K):
        logit = _plane(at + k * area, inside)
        new_top = tl.maximum(top, logit)
        total = total * tl.exp(top - new_top) + tl.exp(logit - new_top)
        top = new_top
    if SAMPLE:
        noise = uniform + image * 4 * area + pixel
        threshold = tl.load(noise, mask=inside, other=0.5).to(tl.float32)
        below = tl.zeros((SIZE,), tl.float32)
        chosen = tl.zeros((SIZE,), tl.int64)
        for k in range(K):
            below += tl.exp(_plane(at + k * area, inside) - top) / total
            chosen += tl.where(below < threshold, 1, 0)
        one = at + tl.minimum(chosen, K - 1) * area
        u_r = tl.load(noise + area, mask=inside, other=0.5).to(tl.float32)
        u_g = tl.load(noise + 2 * area, mask=inside, other=0.5).to(tl.float32)
        u_b = tl.load(noise + 3 * area, mask=inside, other=0.5).to(tl.float32)
        _, scale_r = _log_scale(one + 4 * K * area, inside, min_log_scale)
        _, scale_g = _log_scale(one + 5 * K * area, inside, min_log_scale)
        _, scale_b = _log_scale(one + 6 * K * area, inside, min_log_scale)
        mean_r = _plane(one + K * area, inside)
        red = _bin(mean_r + tl.exp(scale_r) * (tl.log(u_r) - tl.log(1.0 - u_r)))
        r = red / 127.5 - 1.0
        mean_g = _plane(one + 2 * K * area, inside) + _tanh(_plane(one + 7 * K * area, inside)) * r
        green = _bin(mean_g + tl.exp(scale_g) * (tl.log(u_g) - tl.log(1.0 - u_g)))
        g = green / 127.5 - 1.0
        mean_b = _plane(one + 3 * K * area, inside) + _tanh(_plane(one + 8 * K * area, inside)) * r
        mean_b += _tanh(_plane(one + 9 * K * area, inside)) * g
        blue = _bin(mean_b + tl.exp(scale_b) * (tl.log(u_b) - tl.log(1.0 - u_b)))
    else:
        red = tl.zeros((SIZE,), tl.float32)
        green = tl.zeros((SIZE,), tl.float32)
        blue = tl.zeros((SIZE,), tl.float32)
        for k in range(K):
            share = tl.exp(_plane(at + k * area, inside) - top) / total
            r = _plane(at + (K + k) * area, inside)
            g = _plane(at + (2 * K + k) * area, inside) + _tanh(_plane(at + (7 * K + k) * area, inside)) * r
            b = _plane(at + (3 * K + k) * area, inside) + _tanh(_plane(at + (8 * K + k) * area, inside)) * r
            b += _tanh(_plane(at + (9 * K + k) * area, inside)) * g
            red += share * r
            green += share * g
            blue += share * b
        red = _bin(red)
        green = _bin(green)
        blue = _bin(blue)
    tl.store(to, red.to(tl.uint8), mask=inside)
    tl.store(to + area, green.to(tl.uint8), mask=inside)
    tl.store(to + 2 * area, blue.to(tl.uint8), mask=inside)
