"""Frechet distance between sets of images on features of a small network that is trained here.

The published distances use Inception's features, whose weights are not at hand. Ours orders our own models
on one set of images; its numbers compare with no published one. Results name it "own features".
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vbc.codec.research.parts.loop import Plan, batch_indices, train
from vbc.codec.research.run import Setting

N_FEATURES = 64
TURNS = 4
"""Without labels the network learns by which of four quarter turns an image was turned."""


class FeatureNet(nn.Module):
    """Three convolutions of stride 2 and the mean over the picture; classes from these features."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, N_FEATURES, 3, 2, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(N_FEATURES, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """x: values 0..255 [N, C, H, W]. Returns float [N, 64]."""
        out: Tensor = self.trunk(x.float() / 127.5 - 1).mean((2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes: float [N, classes]."""
        out: Tensor = self.head(self.features(x))
        return out


def train_features(
    images: Tensor, setting: Setting, name: str = "features", labels: Tensor | None = None, steps: int = 1000
) -> FeatureNet:
    """A network that classifies images, by their labels or by how they are turned.

    images: uint8 [N, C, H, W], square where there are no labels. labels: int64 [N].
    """
    torch.manual_seed(setting.seed)
    n_classes = TURNS if labels is None else int(labels.max()) + 1
    net = FeatureNet(images.shape[1], n_classes)
    plan = Plan(steps=steps, batch=64, rate=1e-3, rate_end=1e-5, seed=setting.seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(batch_indices(len(images), plan.batch, plan.seed, step))
        if labels is not None:
            return images[index], labels[index]
        turns = torch.from_numpy(np.random.default_rng((plan.seed, step, 1)).integers(0, TURNS, len(index)))
        return torch.stack(
            [x.rot90(int(n), (1, 2)) for x, n in zip(images[index], turns, strict=True)]
        ), turns

    def loss(drawn: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        logits = net(drawn[0])
        right = (logits.argmax(1) == drawn[1]).double().mean().item()
        return nn.functional.cross_entropy(logits, drawn[1]), {"accuracy": right}

    train(net, loss, batch, plan, setting.out / f"{name}.safetensors", setting)
    return net


@torch.no_grad()
def own_distance(net: FeatureNet, a: Tensor, b: Tensor) -> float:
    """Frechet distance between two sets of images on the network's features: [N, C, H, W] each, uint8 or
    float values 0..255."""
    device = next(net.parameters()).device
    sets = [torch.cat([net.features(part.to(device)) for part in torch.split(x, 256)]) for x in (a, b)]
    return frechet_distance(*sets)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets: float [N, F] and [M, F].

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2)), with the sets' covariances S.
    """
    a, b = a.double().cpu(), b.double().cpu()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    half = _of_eigenvalues(cov_a, lambda values: values.clamp_min(0).sqrt())
    cross = torch.linalg.eigvalsh(half @ cov_b @ half).clamp_min(0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def _of_eigenvalues(symmetric: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    out: Tensor = (vectors * f(values)) @ vectors.T
    return out
