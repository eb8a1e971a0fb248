"""Bits of the colour mixture and their gradient on a CPU, in tiles that stay in its cache.

Autograd over whole planes writes thirty intermediate results of the size of the parameters to memory; a tile
computes both at once, by the derivatives that the Triton kernels use. `mixture.py` holds the definition.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 1024
"""Pixels of a tile: one plane of ten components for three channels is then 120 KB, and a dozen of them fit
into a cache of 1 to 2 MB."""


class MixtureBitsOnCpu(torch.autograd.Function):
    """params float32 [N, 10K, H, W], x uint8 [N, 3, H, W], lowest and highest log-scale to bits float32
    [N, H, W]."""

    @staticmethod
    def forward(ctx: Any, params: Tensor, x: Tensor, low: float, high: float) -> Tensor:
        n, _, h, w = params.shape
        planes, values = params.flatten(2), x.flatten(2)
        small = h * w < TILE
        if small:  # the pixels of all images in one line: a tile holds many small images
            planes, values = (t.transpose(0, 1).flatten(1).unsqueeze(0) for t in (planes, values))
        bits = torch.empty((len(planes), planes.shape[2]))
        d_planes = torch.empty_like(planes) if ctx.needs_input_grad[0] else None
        for i in range(len(planes)):
            for start in range(0, planes.shape[2], TILE):
                tile = slice(start, start + TILE)
                to = None if d_planes is None else d_planes[i, :, tile]
                bits[i, tile] = _tile(planes[i, :, tile], values[i, :, tile], low, high, to)
        if d_planes is not None:
            d_params = d_planes.view(-1, n, h * w).transpose(0, 1) if small else d_planes
            ctx.save_for_backward(d_params.reshape(params.shape))
        return bits.view(n, h, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (d_params,) = ctx.saved_tensors
        return d_params * grads[0].unsqueeze(1), None, None, None


def _tile(params: Tensor, x: Tensor, low: float, high: float, d_params: Tensor | None) -> Tensor:
    """Bits [P] of P pixels; params [10K, P], x [3, P]. Writes the derivatives to d_params [10K, P]."""
    k = params.shape[0] // 10
    logits = params[:k]
    means, raw_scales, raw_coefficients = params[k:].view(3, 3, k, -1).unbind(0)
    log_scales = raw_scales.clamp(low, high)
    coefficients = torch.sigmoid(2 * raw_coefficients).mul_(2).sub_(1)  # tanh, five times as fast
    # products with 0 and 1 instead of torch.where, which is twenty times slower than a product here
    not_first, not_last = (x != 0).float().unsqueeze(1), (x != 255).float().unsqueeze(1)
    within = not_first * not_last
    v = x.float().div_(127.5).sub_(1)
    red, green = v[0], v[1]
    centred = v.unsqueeze(1) - means
    centred[1] -= coefficients[0] * red
    centred[2] -= coefficients[1] * red
    centred[2] -= coefficients[2] * green
    inverse = torch.exp(-log_scales)
    a, b = (centred + 1 / 255).mul_(inverse), (centred - 1 / 255).mul_(inverse)
    width = inverse * (2 / 255)
    inside = torch.expm1(-width).neg_()  # 1 - exp(b - a)
    log_p = torch.log(inside).mul_(within)
    log_p.sub_(F.softplus(-a).mul_(not_last)).sub_(F.softplus(b).mul_(not_first))
    joint = log_p.sum(0).add_(logits)
    prior, total = torch.logsumexp(logits, 0), torch.logsumexp(joint, 0)
    if d_params is not None:
        share = torch.exp(joint - total).mul_(-1 / math.log(2))
        right, left = torch.sigmoid(-a).mul_(not_last), torch.sigmoid(b).mul_(not_first)
        # width / (exp(width) - 1), the derivative of log(1 - exp(-width)) by log(width)
        shrink = (1 - inside).mul_(width).div_(inside).mul_(within)
        by_scale = b.mul_(left).sub_(a.mul_(right)).sub_(shrink).mul_(share)
        by_mean = left.sub_(right).mul_(inverse).mul_(share)
        d_params[:k] = share + torch.exp(logits - prior).div_(math.log(2))
        out = d_params[k:].view(3, 3, k, -1)
        out[0] = by_mean
        out[1] = by_scale.mul_(raw_scales == log_scales)
        slopes = coefficients.square_().neg_().add_(1)
        out[2, 0] = by_mean[1] * red * slopes[0]
        out[2, 1] = by_mean[2] * red * slopes[1]
        out[2, 2] = by_mean[2] * green * slopes[2]
    return (prior - total) / math.log(2)
