"""Probabilities of pixels given a network's maps. Models count in nats; reports turn them into bits.

Values 0..255 are mapped to -1..1; a bin is 2/255 wide, the first and the last reach to infinity.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.kernels.logistic import log1mexp
from vbc.kernels.research.mixture import (
    MIN_LOG_SCALE,
    mixture_bits,
    mixture_mean,
    mixture_sample,
)

FIRST_LOG_SCALE = -2.0
"""Log-scale that a network starts with: 17 grey values. From 0, half the range, AdaMax at 0.002 a step would
need a thousand steps to get there."""
SMALLEST_UNIFORM = 1e-5
"""Random numbers keep this distance from 0 and 1: their logits stay finite in float32."""


def bin_log_mass(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of the mass that a logistic puts on a value's bin.

    x: values 0..255 of any dtype; mean in -1..1 and log_scale: float; the three broadcast. Accurate in the
    tails: log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a)).
    """
    value = x.to(mean.dtype) / 127.5 - 1 - mean
    inverse = torch.exp(-log_scale)
    low, high = -F.softplus(-(value + 1 / 255) * inverse), -F.softplus((value - 1 / 255) * inverse)
    inner = low + high + log1mexp(inverse * (2 / 255), math.log(2 / 255) - log_scale)
    return torch.where(x == 0, low, torch.where(x == 255, high, inner))


def over_pixels(nats: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of [N, H, W] over the pixels that count: [N]."""
    return (nats if mask is None else nats * mask).sum((1, 2))


def uniforms(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Random numbers inside (0, 1): float32, drawn on the generator's device."""
    u = torch.rand(shape, generator=generator, device=generator.device)
    return u.clamp(SMALLEST_UNIFORM, 1 - SMALLEST_UNIFORM).to(device)


@dataclass(frozen=True)
class ColourMixture:
    """p(picture | maps): a mixture of k discretised logistics, one component for the channels of a pixel.

    channels: 3 or 1. RGB: 10 k maps as in `vbc.kernels.research.mixture` (PixelCNN++); gray: 3 k maps,
    logits, means and log-scales. maps: float [N, n_maps, H, W]. x: uint8 [N, channels, H, W].
    """

    channels: int = 3
    k: int = 10

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"pictures have 1 or 3 channels, not {self.channels}")

    @property
    def n_maps(self) -> int:
        """Maps that the network has to give."""
        return 10 * self.k if self.channels == 3 else 3 * self.k

    def start(self) -> Tensor:
        """What the maps are before training, the network's bias: equal weights, means spread over the range.
        float32 [n_maps]."""
        k, c = self.k, self.channels
        means = torch.linspace(-0.8, 0.8, k) if k > 1 else torch.zeros(1)
        parts = (torch.zeros(k), means.repeat(c), torch.full((c * k,), FIRST_LOG_SCALE))
        return torch.cat((*parts, torch.zeros(3 * k if c == 3 else 0)))

    def nats(self, maps: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """-log p of each picture: float32 [N]. mask: bool [N or 1, H, W], the pixels that count; all where
        it is None."""
        if self.channels == 3:
            return over_pixels(mixture_bits(maps, x) * math.log(2), mask)
        logits, means, log_scales = self._gray(maps)
        joint = logits + bin_log_mass(x, means, log_scales)
        return over_pixels(torch.logsumexp(logits, 1) - torch.logsumexp(joint, 1), mask)

    def masses(self, maps: Tensor, x: Tensor, channel: int) -> Tensor:
        """Probabilities of a channel's values given the channels before it, taken from x: float64
        [N, H, W, 256]."""
        maps = maps.double()
        if self.channels == 1:
            logits, means, log_scales = self._gray(maps)
        else:
            logits, means, log_scales = self._given(maps, x, channel)
        weights = torch.softmax(logits, 1)
        edges = (torch.arange(255, device=maps.device).double() + 0.5) / 127.5 - 1  # between two bins
        total = torch.zeros((*means[:, 0].shape, 257), dtype=torch.float64, device=maps.device)
        total[..., 256] = 1
        for weight, mean, log_scale in zip(
            weights.unbind(1), means.unbind(1), log_scales.unbind(1), strict=True
        ):
            below = torch.sigmoid((edges - mean.unsqueeze(-1)) * torch.exp(-log_scale).unsqueeze(-1))
            total[..., 1:256] += weight.unsqueeze(-1) * below
        return total.diff(dim=-1)

    def mean(self, maps: Tensor) -> Tensor:
        """The mean of the whole mixture: uint8 [N, channels, H, W]."""
        if self.channels == 3:
            return mixture_mean(maps)
        logits, means, _ = self._gray(maps)
        return _grey_values((torch.softmax(logits, 1) * means).sum(1, keepdim=True))

    def mode(self, maps: Tensor) -> Tensor:
        """The picture without noise, the mean of the likeliest component: uint8 [N, channels, H, W]."""
        best = maps[:, : self.k].argmax(1, keepdim=True)
        groups = torch.unflatten(maps, 1, (-1, self.k))
        chosen = groups.gather(2, best.unsqueeze(1).expand(-1, groups.shape[1], -1, -1, -1)).squeeze(2)
        return ColourMixture(self.channels, 1).mean(chosen)

    def sample(self, maps: Tensor, generator: torch.Generator) -> Tensor:
        """A picture drawn from p: uint8 [N, channels, H, W]."""
        n, _, h, w = maps.shape
        u = uniforms((n, 4 if self.channels == 3 else 2, h, w), generator, maps.device)
        if self.channels == 3:
            return mixture_sample(maps.contiguous(), u)
        logits, means, log_scales = self._gray(maps)
        below = (torch.softmax(logits, 1).cumsum(1) < u[:, :1]).sum(1, keepdim=True)
        k = below.clamp_max(self.k - 1)
        mean, log_scale = means.gather(1, k), log_scales.gather(1, k)
        return _grey_values(mean + torch.exp(log_scale) * torch.logit(u[:, 1:]))

    def _gray(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, means, log_scales = torch.unflatten(maps, 1, (3, self.k)).unbind(1)
        return logits, means, log_scales.clamp_min(MIN_LOG_SCALE)

    def _given(self, maps: Tensor, x: Tensor, channel: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log-scales [N, k, H, W] of one channel once the earlier ones are known: they
        shift the means and weigh the components by what they said."""
        groups = torch.unflatten(maps, 1, (10, self.k))
        logits, means, log_scales = groups[:, 0], groups[:, 1:4], groups[:, 4:7].clamp_min(MIN_LOG_SCALE)
        tanh = torch.tanh(groups[:, 7:])
        red, green, _ = (x.double() / 127.5 - 1).unsqueeze(2).unbind(1)
        shifted = (
            means[:, 0],
            means[:, 1] + tanh[:, 0] * red,
            means[:, 2] + tanh[:, 1] * red + tanh[:, 2] * green,
        )
        for earlier in range(channel):
            value = x[:, earlier : earlier + 1]
            logits = logits + bin_log_mass(value, shifted[earlier], log_scales[:, earlier])
        return logits, shifted[channel], log_scales[:, channel]


def _grey_values(v: Tensor) -> Tensor:
    """-1..1 to the nearest of 0..255."""
    return torch.floor((v + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)
