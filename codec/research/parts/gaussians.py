"""Diagonal Gaussians: posteriors and conditional priors of the latent variables. Natural logarithms."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_VAR_LIMIT = 7.0
"""Log-variances are clamped to -7..7, as in the released code of the ssVAE thesis."""


class Gaussian(NamedTuple):
    """mean and log_var: float [N, ...], of one shape. `Gaussian.of` clamps log_var to -7..7."""

    mean: Tensor
    log_var: Tensor

    @classmethod
    def of(cls, maps: Tensor) -> "Gaussian":
        """From a network's maps [N, 2 C, ...]: means, then log-variances; float32 at least."""
        mean, log_var = (maps if maps.dtype == torch.float64 else maps.float()).chunk(2, 1)
        return cls(mean, log_var.clamp(-LOG_VAR_LIMIT, LOG_VAR_LIMIT))

    def sample(self, noise: Tensor | torch.Generator) -> Tensor:
        """mean + sigma * noise; a generator draws standard normal noise."""
        if isinstance(noise, torch.Generator):
            shape = self.mean.shape
            drawn = torch.randn(shape, generator=noise, device=noise.device, dtype=self.mean.dtype)
            noise = drawn.to(self.mean.device)
        return self.mean + torch.exp(0.5 * self.log_var) * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of each of the N codes: [N]."""
        square = (z - self.mean) ** 2 * torch.exp(-self.log_var)
        return -0.5 * (square + self.log_var + math.log(2 * math.pi)).flatten(1).sum(1)

    def expand(self, n: int) -> "Gaussian":
        """n copies of the Gaussian of a single picture."""
        return Gaussian(*(part.expand(n, *part.shape[1:]) for part in self))


def standard_normal(n: int, shape: tuple[int, ...], device: torch.device) -> Gaussian:
    """N(0, I) for n codes of `shape`."""
    zeros = torch.zeros((n, *shape), device=device)
    return Gaussian(zeros, zeros)


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) in nats, closed form (ssVAE thesis, appendix A.2): [N]."""
    ratio = torch.exp(q.log_var - p.log_var) + (q.mean - p.mean) ** 2 * torch.exp(-p.log_var)
    return 0.5 * (p.log_var - q.log_var + ratio - 1).flatten(1).sum(1)
