"""Points of many dimensions shown in the plane: t-SNE (van der Maaten and Hinton 2008), the exact form."""

import math

import torch
from torch import Tensor

STEPS, RATE = 500, 50.0
EARLY, EXAGGERATION = 100, 4.0
"""Steps in which what is near in the original space is drawn together more strongly, and by how much."""
MOMENTA = (0.5, 0.8)
"""In the early steps and after them."""
BISECTIONS = 40
SMALLEST = 1e-12


def tsne(x: Tensor, perplexity: float = 30.0, seed: int = 1, steps: int = STEPS) -> Tensor:
    """A picture of points in the plane: float [N, d] to float32 [N, 2]; N is above 3 times the perplexity.

    Raises ValueError for fewer points.
    """
    if len(x) <= 3 * perplexity:
        raise ValueError(f"{len(x)} points are too few for a perplexity of {perplexity:g}")
    joint = affinities(x, perplexity)
    joint = ((joint + joint.T) / (2 * len(x))).clamp_min(SMALLEST)
    y = 1e-4 * torch.randn((len(x), 2), generator=torch.Generator().manual_seed(seed)).to(joint)
    velocity, gains = torch.zeros_like(y), torch.ones_like(y)
    for step in range(steps):
        early = step < EARLY
        kernel = 1 / (1 + torch.cdist(y, y).square())
        kernel.fill_diagonal_(0)
        pull = (joint * (EXAGGERATION if early else 1) - kernel / kernel.sum()) * kernel
        gradient = 4 * (pull.sum(1, keepdim=True) * y - pull @ y)
        # van der Maaten's gains: larger steps where the direction stays
        gains = torch.where(gradient * velocity < 0, gains + 0.2, gains * 0.8).clamp_min(0.01)
        velocity = MOMENTA[0 if early else 1] * velocity - RATE * gains * gradient
        y = y + velocity - (y + velocity).mean(0)
    return y.float()


def affinities(x: Tensor, perplexity: float) -> Tensor:
    """p(j | i): for each point a Gaussian over the others whose entropy is log perplexity: float64 [N, N]."""
    apart = torch.cdist(x.double(), x.double()).square()
    apart.fill_diagonal_(math.inf)
    apart = apart - apart.amin(1, keepdim=True)
    low, high = torch.full_like(apart[:, :1], -30.0), torch.full_like(apart[:, :1], 30.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2  # log of the precision
        p = torch.softmax(-apart * middle.exp(), 1)
        flat = -(p * p.clamp_min(SMALLEST).log()).sum(1, keepdim=True) > math.log(perplexity)
        low, high = torch.where(flat, middle, low), torch.where(flat, high, middle)
    return torch.softmax(-apart * ((low + high) / 2).exp(), 1)
