"""The likelihood that the networks are trained with: a logistic, integrated over the bins of integers."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.kernels.logistic import logistic_bits


def logistic_nll(residual: Tensor, log2_scale: Tensor) -> Tensor:
    """Bits of an integer under a discretised logistic; residual = x - mean. Safe for every scale.

    On CUDA one fused kernel, with its gradients (`kernels.logistic`).

    log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)),
    with a, b = (residual +- 1/2) / s.
    PixelCNN++ (Salimans et al. 2017, arXiv:1701.05517), equation 2, without the edge bins.
    """
    if residual.is_cuda:
        return logistic_bits(residual.float(), log2_scale.float().expand_as(residual))
    inv = torch.exp2(-log2_scale)
    a, b = (residual + 0.5) * inv, (residual - 0.5) * inv
    nats = F.softplus(-a) + F.softplus(b) - torch.log(-torch.expm1(-inv))
    return nats / math.log(2)
