"""The lossy levels in float, for training: the networks whose integers `codec.lossy` decodes with.

See docs/architecture.md, "Lossy levels". Latents are in latent units, opponent planes in pixel values centred
on zero, log-scales in octaves; the networks' inputs are those of `codec.lossy.features`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.lossy.features import (
    CONTEXT_PLANES,
    ENHANCE_PLANES,
    FLOATS,
    QUALITY_PLANES,
    enhance_planes,
    interlaced_passes,
    neighbour_planes,
    parity_places,
    prior_planes,
    quality_planes,
)
from vbc.codec.lossy.latents import (
    CELLS,
    INITIAL_STEP,
    LATENT_UNIT,
    LEVEL_LATENTS,
    LEVEL_START,
    N_LATENTS,
    PLANE_GAIN,
    STEP_OCTAVES,
    block_transform,
    inverse_block_transform,
    latent_basis,
    latent_order,
)
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train.likelihood import logistic_nll
from vbc.codec.train.qconv import ACTIVATION_STEP, QConv, QualityBias, round_ste

MEAN_UNIT = 4.0
"""A head's output of 1 is a mean of 4 latent units and a log-scale of 1 octave."""
LOG_SCALE_RANGE = (-2.0, 10.0)
"""Octaves of a latent's logistic scale, in latent units."""
SAMPLE_UNIT = 16
"""Features take samples in sixteenths of a pixel value."""
LOG_SCALE_UNIT = 16
"""Features take log-scales in sixteenths of an octave."""


class Chain(nn.Module):
    """Hidden 3x3 layers and a head, with a bias that depends on the use.

    Loses `radius` positions on each side. Quality is among the input planes.
    """

    def __init__(
        self,
        planes: int,
        width: int,
        hidden: int,
        outputs: int,
        classes: int = 1,
        head_kernel: int = 1,
        zero: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(QConv(planes if i == 0 else width, width, 3) for i in range(hidden))
        self.head = QConv(width, outputs, head_kernel, head=True, zero=zero)
        self.use_bias = nn.Parameter(torch.zeros(classes, width))
        self.radius = hidden + head_kernel // 2
        if not zero:
            with torch.no_grad():
                self.head.weight.mul_(0.1)

    def forward(self, planes: Tensor, use: int = 0) -> Tensor:
        """planes: float [N, C, h+2r, w+2r], -64..63 (`features`). Returns [N, outputs, h, w]."""
        x = (planes * ACTIVATION_STEP).contiguous(memory_format=torch.channels_last)
        extra: Tensor | None = self.use_bias[use].view(1, -1, 1, 1)
        for layer in self.layers:
            x = layer(x, extra)
            extra = None
        out: Tensor = self.head(x)
        return out


def pad(x: Tensor, n: int) -> Tensor:
    """Replicate the border by n positions."""
    return F.pad(x, (n, n, n, n), mode="replicate")


def parity(height: int, width: int, device: torch.device) -> Tensor:
    """Boolean [h, w]: True where row + column is even."""
    places = parity_places(height, width, True, device)
    even = torch.zeros(height * width, dtype=torch.bool, device=device)
    return even.index_fill_(0, places, True).view(height, width)


@dataclass(frozen=True)
class Widths:
    """Channels of the networks' hidden layers."""

    analysis: int = 64
    context: int = 64
    prior: int = 96
    neighbours: int = 64
    enhance: int = 48


class LossyNet(nn.Module):
    """Analysis, priors, synthesis and quantiser steps of the three lossy levels.

    Qualities q are maps, float [N, 1, h, w] on the grid of 8x8 blocks, 0..100.
    """

    basis: Tensor
    rate_factors: ClassVar[dict[str, float]] = {"log2_step": 20.0}
    """Steps may have octaves to go, and Adam moves a parameter by the rate at most."""

    def __init__(self, widths: Widths | None = None) -> None:
        super().__init__()
        n = widths or Widths()
        first, second, third = LEVEL_LATENTS
        self.register_buffer("basis", latent_basis(), persistent=False)
        norm = torch.tensor(PLANE_GAIN).sqrt()
        start = torch.tensor([math.log2(INITIAL_STEP / norm[c]) for c, _, _ in latent_order()])
        self.log2_step = nn.Parameter(start)
        self.analysis_in = nn.Conv2d(N_LATENTS, n.analysis, 1)
        self.analysis_mid = nn.Conv2d(n.analysis, n.analysis, 3)
        self.analysis_out = nn.Conv2d(n.analysis, N_LATENTS, 1)
        self.analysis_condition = QualityBias(n.analysis)
        for parameter in self.analysis_out.parameters():
            nn.init.zeros_(parameter)
        self.first_scale = nn.Parameter(torch.tensor([5.0, 4.0, 4.0, 3.0, 5.0, 5.0]))
        contexts = {p: Chain(CONTEXT_PLANES, n.context, 2, 2 * first, classes=2) for p in PHASES}
        self.context = nn.ModuleDict(contexts)
        self.prior2 = Chain(2 * first + QUALITY_PLANES, n.prior, 3, 2 * second)
        self.prior3 = Chain(2 * (first + second) + QUALITY_PLANES, n.prior, 3, 2 * third)
        self.neighbours2 = Chain(2 * second + QUALITY_PLANES, n.neighbours, 2, 2 * second, zero=True)
        self.neighbours3 = Chain(2 * third + QUALITY_PLANES, n.neighbours, 2, 2 * third, zero=True)
        self.enhance = Chain(ENHANCE_PLANES, n.enhance, 4, 12, classes=3, head_kernel=3, zero=True)
        with torch.no_grad():
            for p in PHASES:
                self.context_chain(p).head.bias[first:] = 4.0
            self.prior2.head.bias[second:] = 3.0
            self.prior3.head.bias[third:] = 2.0

    def context_chain(self, phase: str) -> Chain:
        """Level 1's network of a phase."""
        chain = self.context[phase]
        assert isinstance(chain, Chain)
        return chain

    def step(self, q: Tensor) -> Tensor:
        """Quantiser steps [N, 192, h, w]."""
        return torch.exp2(self.log2_step.view(1, -1, 1, 1) - q * STEP_OCTAVES)

    def analyse(self, planes: Tensor, q: Tensor) -> Tensor:
        """Latents [N, 192, h, w] of opponent planes (float [N, 3, 8h, 8w], centred on zero)."""
        z = block_transform(planes, self.basis)
        x = pad(z / 32, 1)
        x = F.relu(self.analysis_in(x) + self.analysis_condition(pad(q, 1)))
        x = F.relu(self.analysis_mid(x))
        out: Tensor = z + 4 * self.analysis_out(x).float()
        return out

    def level1(self, z: Tensor, q: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised level-1 latents [N, 6, h, w] and their bits [N, h, w], coded in interlaced passes."""
        n = LEVEL_LATENTS[0]
        eighths = torch.empty_like(z)
        bits = torch.empty_like(z[:, 0])
        for part in interlaced_passes(FLOATS, eighths, q):
            target = z[..., part.rows, part.cols]
            if part.phase is None or part.base is None or part.planes is None:
                mean = torch.zeros_like(target)
                log_scale = self.first_scale.view(1, -1, 1, 1).expand_as(target)
            else:
                parameters = self.context_chain(part.phase)(part.planes, part.use)
                mean = part.base / LATENT_UNIT + MEAN_UNIT * parameters[:, :n]
                log_scale = parameters[:, n:]
            zq, b = quantise(target, mean, log_scale, step[..., part.rows, part.cols])
            eighths[..., part.rows, part.cols] = LATENT_UNIT * zq
            bits[..., part.rows, part.cols] = b
        return eighths / LATENT_UNIT, bits

    def prior(self, level: int, below: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log2 scale [N, C, h, w] of level 2 or 3 from the decoded latents below it."""
        net = self.prior2 if level == 2 else self.prior3
        out = net(prior_planes(FLOATS, LATENT_UNIT * pad(below, net.radius + 1), pad(q, net.radius)))
        c = LEVEL_LATENTS[level - 1]
        return MEAN_UNIT * out[:, :c], out[:, c:]

    def synthesise(self, latents: Tensor, q: Tensor, level: int) -> Tensor:
        """Opponent planes [N, 3, 8h, 8w] from all 192 latents.

        Those above `level` are the priors' means.
        """
        return corrected(self.enhance, inverse_block_transform(latents, self.basis), q, level)

    def forward(self, planes: Tensor, q: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Quantised latents and bits [N, h, w] of the three levels."""
        z = self.analyse(planes, q)
        step = self.step(q)
        first, second = LEVEL_START[1:3]
        z1, b1 = self.level1(z[:, :first], q, step[:, :first])
        z2, b2 = self.upper_level(2, z[:, first:second], z1, q, step[:, first:second])
        z3, b3 = self.upper_level(3, z[:, second:], torch.cat((z1, z2), 1), q, step[:, second:])
        return [z1, z2, z3], [b1, b2, b3]

    def upper_level(
        self, level: int, z: Tensor, below: Tensor, q: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantised latents of level 2 or 3 and their bits [N, h, w].

        Blocks of even parity first, the others given those too.
        """
        mean, log_scale = self.prior(level, below, q)
        even = parity(z.shape[-2], z.shape[-1], z.device)
        symbols = round_ste((z - mean) / step)
        net = self.neighbours2 if level == 2 else self.neighbours3
        relative = LOG_SCALE_UNIT * (log_scale - torch.log2(step))
        planes = neighbour_planes(FLOATS, symbols * even, relative, q)
        change = net(pad(planes, net.radius)) * ~even
        c = LEVEL_LATENTS[level - 1]
        return quantise(z, mean + step * change[:, :c], log_scale + change[:, c:], step)

    def complete(self, latents: list[Tensor], q: Tensor) -> Tensor:
        """All 192 latents where only the first levels are given: the priors' means stand for the rest."""
        z = torch.cat(latents, 1)
        for level in range(len(latents) + 1, 4):
            z = torch.cat((z, self.prior(level, z, q)[0]), 1)
        return z


def corrected(chain: Chain, planes: Tensor, q: Tensor, level: int) -> Tensor:
    """Opponent planes [N, 3, 8h, 8w] of a level with what a network like the enhancement's adds to them."""
    cells = F.pixel_unshuffle(planes, 2)
    halo = chain.radius + 1
    q = quality_planes(FLOATS, q).repeat_interleave(CELLS, 2).repeat_interleave(CELLS, 3)
    inputs = enhance_planes(FLOATS, SAMPLE_UNIT * pad(cells, halo), halo - 1, pad(q, halo - 1))
    return planes + F.pixel_shuffle(chain(inputs, level - 1), 2)


def quantise(z: Tensor, mean: Tensor, log2_scale: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Quantised latents (straight-through) and bits [N, h, w] of the residual to the mean.

    The rate is that of the residual with additive uniform noise
    (Balle et al. 2017, arXiv:1611.01704, section 3).
    """
    r = (z - mean) / step
    ls = log2_scale.clamp(*LOG_SCALE_RANGE) - torch.log2(step)
    noisy = r + torch.rand_like(r) - 0.5
    bits = logistic_nll(noisy, ls.clamp(-5, 12)).sum(1)
    return mean + round_ste(r) * step, bits
