"""The convolution that is trained in float and shipped in integers.

See docs/architecture.md, "Exact integer networks".

Activations are integers 0..127 that stand for 0..7.94 in training (`ACTIVATION_STEP` each). A weight is an
integer -127..127 times a power of two per output channel. So a hidden layer is
``clamp((W*x + b + 2^(s-1)) >> s, 0, 127)``, and a head is the same without the clamp. During training the
same module runs in float; with `quantise` set it rounds with straight-through gradients (Bengio et al. 2013,
arXiv:1308.3432) exactly where the integers will be rounded.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATION_MAX = 127
"""Seven bits: products of two such numbers never saturate the 16-bit pair sums of CPUs without VNNI, and int8
is signed on GPUs."""
ACTIVATION_STEP = 2.0**-4
WEIGHT_MAX = 127
MAX_SHIFT = 16
Q_MAX = 100
"""Largest quality."""


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest; the gradient passes unchanged."""
    return x + (torch.round(x) - x).detach()


def weight_shift(weight: Tensor) -> Tensor:
    """Shift s per output channel, int64 [O], 1..16: the largest with max|w| * 2^s <= 127."""
    peak = weight.detach().abs().flatten(1).amax(1).clamp_min(1e-12)
    return torch.floor(torch.log2(WEIGHT_MAX / peak)).clamp(1, MAX_SHIFT).long()


def fake_quantise_weight(weight: Tensor) -> Tensor:
    """Weights rounded to the integers that export will write, as floats; straight-through gradient."""
    scale = (2.0 ** weight_shift(weight).to(weight.dtype)).view(-1, *[1] * (weight.dim() - 1))
    return round_ste(weight * scale).clamp(-WEIGHT_MAX, WEIGHT_MAX) / scale


class QConv(nn.Module):
    """A convolution without padding: float in training, integer in the file's arithmetic.

    x: float [N, C, H, W], multiples of 1/16 when quantised. Returns [N, O, H-k+1, W-k+1].
    """

    def __init__(self, c_in: int, c_out: int, k: int, head: bool = False, zero: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, c_in, k, k))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.head = head
        self.quantise = False
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear" if head else "relu")
        if zero:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Convolve; add `extra` (a bias per sample and channel [N, O, 1, 1]) before the non-linearity."""
        weight = fake_quantise_weight(self.weight) if self.quantise else self.weight
        if self.head:
            with torch.autocast(x.device.type, enabled=False):
                return F.conv2d(x.float(), weight, self.bias)
        y = F.conv2d(x, weight, self.bias)
        y = y if extra is None else y + extra
        return rounded_activation(y) if self.quantise else y.clamp(0, ACTIVATION_MAX * ACTIVATION_STEP)


class RoundedActivation(torch.autograd.Function):
    """Clamped to 0..127 and rounded, in steps of `ACTIVATION_STEP`; the gradient passes where nothing was
    clamped. In one function, training takes two thirds of the time."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        steps = y.mul(1 / ACTIVATION_STEP)
        ctx.save_for_backward(steps)
        return steps.round().clamp_(0, ACTIVATION_MAX).mul_(ACTIVATION_STEP)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (steps,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.hardtanh_backward(gradients[0], steps, 0, ACTIVATION_MAX)
        return passed


def rounded_activation(y: Tensor) -> Tensor:
    """Clamp and round to the activation grid; straight-through gradient."""
    out: Tensor = RoundedActivation.apply(y)  # type: ignore[no-untyped-call] # torch has no annotation
    return out


def set_quantise(module: nn.Module, on: bool) -> None:
    """Switch every `QConv` below `module` to or from quantisation-aware arithmetic."""
    for m in module.modules():
        if isinstance(m, QConv):
            m.quantise = on


class QualityBias(nn.Module):
    """Bias of a network's first layer, a quadratic function of quality. Coefficients are [3, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.coefficients = nn.Parameter(torch.zeros(3, width))

    def forward(self, q: Tensor) -> Tensor:
        """q: float [N, 1, h, w]. Returns [N, width, h, w]."""
        t = q / (Q_MAX / 2) - 1
        powers = torch.cat((torch.ones_like(t), t, t * t), 1)
        return torch.einsum("nphw,pc->nchw", powers, self.coefficients)
