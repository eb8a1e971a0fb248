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
TURNS, DAMAGES = 4, 4
"""Without labels the network learns how an image was turned, by quarter turns, and what was done to it:
nothing, half its resolution, noise, or its squares shuffled. Turns alone are hard to tell of crops of
photographs: then it would learn nothing."""
NOISE = 10.0
"""Standard deviation in grey values."""
SQUARES = 4
"""Shuffled squares to a side."""


class FeatureNet(nn.Module):
    """Three convolutions of stride 2, with batch norm, and the mean over the picture; classes from these
    features."""

    def __init__(self, channels: int, n_classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 32, 5, 2, 2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, N_FEATURES, 3, 2, 1),
            nn.BatchNorm2d(N_FEATURES),
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
    """A network that classifies images, by their labels or by what was done to them.

    images: uint8 [N, C, H, W], square where there are no labels. labels: int64 [N].
    """
    torch.manual_seed(setting.seed)
    n_classes = TURNS * DAMAGES if labels is None else int(labels.max()) + 1
    net = FeatureNet(images.shape[1], n_classes)
    plan = Plan(steps=steps, batch=64, rate=1e-3, rate_end=1e-5, seed=setting.seed)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(batch_indices(len(images), plan.batch, plan.seed, step))
        if labels is not None:
            return images[index], labels[index]
        rng = np.random.default_rng((plan.seed, step, 1))
        done = rng.integers(0, TURNS * DAMAGES, len(index))
        changed = [changed_image(x, int(n), rng) for x, n in zip(images[index], done, strict=True)]
        return torch.stack(changed), torch.from_numpy(done)

    def loss(drawn: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        logits = net(drawn[0])
        right = (logits.argmax(1) == drawn[1]).double().mean().item()
        return nn.functional.cross_entropy(logits, drawn[1]), {"accuracy": right}

    train(net, loss, batch, plan, setting.out / f"{name}.safetensors", setting)
    return net


def changed_image(x: Tensor, kind: int, rng: np.random.Generator) -> Tensor:
    """An image uint8 [C, S, S] turned and damaged; kind: turns + 4 times the damage. Float, 0..255."""
    damage, turns = divmod(kind, TURNS)
    x = x.float().rot90(turns, (1, 2))
    height, width = x.shape[1:]
    if damage == 1:
        half = nn.functional.avg_pool2d(x, 2)
        x = nn.functional.interpolate(half[None], (height, width), mode="bilinear", align_corners=False)[0]
    elif damage == 2:
        noise = torch.from_numpy(rng.normal(0, NOISE, x.shape)).float()
        x = (x + noise.to(x.device)).clamp(0, 255)
    elif damage == 3:
        side, order = height // SQUARES, torch.from_numpy(rng.permutation(SQUARES**2)).to(x.device)
        inside = x[:, : SQUARES * side, : SQUARES * side]
        squares = nn.functional.unfold(inside[None], side, stride=side)[..., order]
        whole = nn.functional.fold(squares, inside.shape[1:], side, stride=side)[0]
        x = x.clone()
        x[:, : SQUARES * side, : SQUARES * side] = whole
    return x


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
