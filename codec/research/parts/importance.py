"""How many bits a latent-variable model gives pictures: the bound, and importance sampling per picture.

log p(x) >= E log (1/S) sum_s p(x, codes_s) / q(codes_s | x) (Burda et al. 2016, arXiv:1509.00519). The mean
over the samples is taken for each picture by itself, before any mean over pictures.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vbc.codec.research.parts.gaussians import Gaussian

Views = Sequence[Tensor]
"""A picture and its coarser representations, coarsest first: uint8 [N, C, H, W] each; the last is x."""
Codes = Sequence[Tensor]
"""Latent variables, u first: float32 [N, C, H, W] each."""


class LatentModel(Protocol):
    """What the models of this wing have in common. Posteriors depend on the views alone, codes given views
    are independent of one another."""

    def views(self, x: Tensor) -> list[Tensor]:
        """uint8 [N, C, H, W] to x and its representations."""

    def posteriors(self, views: Views) -> list[Gaussian]:
        """q(codes | views)."""

    def log_joint(self, views: Views, codes: Codes) -> dict[str, Tensor]:
        """Terms of log p(views, codes) by name, nats [N]."""

    def terms(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """Nats of each picture, by name (RE_x, KL_u, ...): [N] each; their sum is the negative bound."""


def draw(posteriors: Sequence[Gaussian], generator: torch.Generator) -> list[Tensor]:
    """Codes from their posteriors."""
    return [q.sample(generator) for q in posteriors]


@torch.no_grad()
def log_weights(
    model: LatentModel, x: Tensor, n_samples: int, generator: torch.Generator, chunk: int
) -> Tensor:
    """log p(x, codes) - log q(codes | x) for samples of the codes: float32 [N, n_samples].

    x: uint8 [N, C, H, W]. chunk: samples that are decoded at once.
    """
    rows = []
    for i in range(len(x)):
        views = model.views(x[i : i + 1])
        posteriors = model.posteriors(views)
        parts = []
        for start in range(0, n_samples, chunk):
            n = min(chunk, n_samples - start)
            many = [q.expand(n) for q in posteriors]
            codes = draw(many, generator)
            joint = model.log_joint([v.expand(n, -1, -1, -1).contiguous() for v in views], codes)
            posterior = sum((q.log_prob(z) for q, z in zip(many, codes, strict=True)), torch.zeros(()))
            parts.append(torch.stack(list(joint.values())).sum(0) - posterior)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def importance_nats(weights: Tensor) -> Tensor:
    """-log p(x) of each picture as estimated from its log weights [N, S]: [N]."""
    return math.log(weights.shape[1]) - torch.logsumexp(weights.double(), 1)


@torch.no_grad()
def mean_terms(
    model: LatentModel, x: Tensor, generator: torch.Generator, batch: int = 64
) -> dict[str, float]:
    """Mean of every term over pictures, nats per picture; "total" is the negative bound."""
    sums: dict[str, float] = {}
    for part in torch.split(x, batch):
        for name, nats in model.terms(model.views(part), generator).items():
            sums[name] = sums.get(name, 0.0) + float(nats.double().sum())
    means = {name: total / len(x) for name, total in sums.items()}
    return {**means, "total": sum(means.values())}


def add_up(terms: Mapping[str, Tensor]) -> Tensor:
    """The negative bound of each picture: [N]."""
    return torch.stack(list(terms.values())).sum(0)


def bits_per_dim(nats: float, n_values: int) -> float:
    """Nats per picture of n_values sub-pixels as bits per sub-pixel."""
    return nats / (n_values * math.log(2))
