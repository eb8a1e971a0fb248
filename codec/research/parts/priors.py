"""Priors of latent variables [N, C, H, W]: each gives log p(z) in nats and draws codes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts.blocks import Block, Output

FIRST_SPREAD = 0.1
"""Standard deviation of a mixture's means before training: near 0 (released code), not all at 0, where the
components would stay equal for ever."""


class Prior(nn.Module):
    """p(z) over codes of a `shape` [C, H, W]."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats: float32 [N]."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Codes drawn from p: float32 [n, C, H, W], on the generator's device."""
        raise NotImplementedError


class StandardNormal(Prior):
    """N(0, I)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z**2 + math.log(2 * math.pi)).flatten(1).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn((n, *self.shape), generator=generator, device=generator.device)


class MixtureOfGaussians(Prior):
    """k diagonal Gaussians of equal weight with learned means and variances (softplus)."""

    def __init__(self, shape: tuple[int, int, int], k: int = 10, seed: int = 1) -> None:
        super().__init__(shape)
        first = torch.randn((k, *shape), generator=torch.Generator().manual_seed(seed))
        self.means = nn.Parameter(FIRST_SPREAD * first)
        self.raw_variances = nn.Parameter(torch.full((k, *shape), math.log(math.e - 1)))  # softplus gives 1

    def log_prob(self, z: Tensor) -> Tensor:
        variances = F.softplus(self.raw_variances).flatten(1)
        square = (z.flatten(1).unsqueeze(1) - self.means.flatten(1)) ** 2 / variances
        each = -0.5 * (square + torch.log(2 * math.pi * variances)).sum(2)
        return torch.logsumexp(each, 1) - math.log(len(self.means))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        k = torch.randint(len(self.means), (n,), generator=generator, device=device)
        noise = torch.randn((n, *self.shape), generator=generator, device=device)
        return self.means[k] + F.softplus(self.raw_variances[k]).sqrt() * noise


class Coupling(nn.Module):
    """Affine coupling (Dinh et al. 2017, arXiv:1605.08803): what the mask keeps gives scale and shift of the
    rest. Scales are tanh times a learned factor for each channel."""

    def __init__(self, mask: Tensor, growth: int, n_units: int, kernel: int) -> None:
        """mask: float [1, C, H, W], 1 where the code is kept; C, H, W are the codes' shape. kernel: of the
        convolution that gives scale and shift."""
        super().__init__()
        n = mask.shape[1]
        self.mask: Tensor
        self.register_buffer("mask", mask, persistent=False)
        self.block = Block(n, growth, n_units)
        self.output = Output(self.block.n_out, torch.zeros(2 * n), kernel)
        self.factor = nn.Parameter(torch.ones(n, 1, 1))

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes to base space, and log |det dv/dz| [N]. Inverse of `from_base`."""
        log_scale, shift = self.look(z)
        return (z - shift) * torch.exp(-log_scale), -log_scale.flatten(1).sum(1)

    def from_base(self, v: Tensor) -> Tensor:
        log_scale, shift = self.look(v)
        return v * torch.exp(log_scale) + shift

    def look(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift: 0 where the mask keeps."""
        raw, shift = self.output(self.block(z * self.mask)).chunk(2, 1)
        free = 1 - self.mask
        return self.factor * torch.tanh(raw) * free, shift * free


class RealNVP(Prior):
    """A flow on the prior, two scales: 3 checkerboard couplings; squeeze; 3 channel-wise ones; half of the
    channels leaves; 4 checkerboard ones on the other half (ssVAE thesis and its released code)."""

    def __init__(
        self, shape: tuple[int, int, int], growth: int = 16, n_units: int = 2, kernel: int = 3
    ) -> None:
        """shape: C, H, W with even H and W. growth, n_units: of the block in each coupling."""
        super().__init__(shape)
        c, h, w = shape
        if h % 2 or w % 2:
            raise ValueError(f"the flow halves the codes' sides, {h}x{w} are not even")
        small, half = (4 * c, h // 2, w // 2), (2 * c, h // 2, w // 2)
        kinds = (
            [checkerboard(shape, i % 2) for i in range(3)],
            [channel_mask(small, i % 2) for i in range(3)],
            [checkerboard(half, i % 2) for i in range(4)],
        )
        self.wide, self.deep, self.last = (
            nn.ModuleList(Coupling(mask, growth, n_units, kernel) for mask in masks) for masks in kinds
        )

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes z to v, which follows N(0, I), and log |det dv/dz| [N]. Inverse of `from_base`."""
        total = z.new_zeros(len(z))
        z, total = _run(self.wide, z, total)
        z, total = _run(self.deep, F.pixel_unshuffle(z, 2), total)
        z, left = z.chunk(2, 1)
        z, total = _run(self.last, z, total)
        return F.pixel_shuffle(torch.cat((z, left), 1), 2), total

    def from_base(self, v: Tensor) -> Tensor:
        v, left = F.pixel_unshuffle(v, 2).chunk(2, 1)
        v = _run_back(self.last, v)
        v = _run_back(self.deep, torch.cat((v, left), 1))
        return _run_back(self.wide, F.pixel_shuffle(v, 2))

    def couplings(self) -> list[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """The flow's couplings from z to v, each from a code [N, C, H, W] to log-scales and shifts of that
        shape: squeezing and splitting are inside."""

        def squeezed(layer: Coupling, parts: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            def look(z: Tensor) -> tuple[Tensor, Tensor]:
                first, *rest = F.pixel_unshuffle(z, 2).chunk(parts, 1)
                kept = [torch.zeros_like(part) for part in rest]
                log_scale, shift = layer.look(first)
                return (
                    F.pixel_shuffle(torch.cat((log_scale, *kept), 1), 2),
                    F.pixel_shuffle(torch.cat((shift, *kept), 1), 2),
                )

            return look

        wide, deep, last = (_couplings(layers) for layers in (self.wide, self.deep, self.last))
        return [
            *(layer.look for layer in wide),
            *(squeezed(layer, 1) for layer in deep),
            *(squeezed(layer, 2) for layer in last),
        ]

    def log_prob(self, z: Tensor) -> Tensor:
        v, log_det = self.to_base(z)
        return log_det - 0.5 * (v**2 + math.log(2 * math.pi)).flatten(1).sum(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.from_base(torch.randn((n, *self.shape), generator=generator, device=generator.device))


def checkerboard(shape: tuple[int, int, int], phase: int) -> Tensor:
    """float32 [1, C, H, W]: 1 on the squares of one colour."""
    _, h, w = shape
    colour = (torch.arange(h).unsqueeze(1) + torch.arange(w) + phase) % 2
    return colour.float().expand(1, *shape).clone()


def channel_mask(shape: tuple[int, int, int], phase: int) -> Tensor:
    """float32 [1, C, H, W]: 1 on one half of the channels."""
    c = shape[0]
    kept = (torch.arange(c) < c // 2) == bool(phase)
    return kept.float().view(1, c, 1, 1).expand(1, *shape).clone()


def _couplings(layers: nn.ModuleList) -> list[Coupling]:
    return [layer for layer in layers if isinstance(layer, Coupling)]


def _run(layers: nn.ModuleList, z: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    for layer in _couplings(layers):
        z, log_det = layer.to_base(z)
        total = total + log_det
    return z, total


def _run_back(layers: nn.ModuleList, v: Tensor) -> Tensor:
    for layer in reversed(_couplings(layers)):
        v = layer.from_base(v)
    return v
