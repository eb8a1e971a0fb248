"""What the codes of a set of images are like: rate, use, distance from the prior, disentanglement.

A code is a diagonal Gaussian, mean and log_var float [N, d], as an encoder gives it. Information is in nats.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ACTIVE = 0.01
"""A unit whose mean varies less over the data says nothing (Burda et al. 2016, arXiv:1509.00519)."""
BINS = 20


def kl_of_units(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(q(z_j | x) || N(0, 1)) of each unit: [N, d]."""
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var)


def n_active(mean: Tensor) -> int:
    """How many units have means that vary over the data."""
    return int((mean.var(0, unbiased=False) > ACTIVE).sum())


def sampled(mean: Tensor, log_var: Tensor, seed: int = 0) -> Tensor:
    """A draw from each code: [N, d], always the same."""
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
    return mean + torch.exp(0.5 * log_var) * noise.to(mean)


def covariance_distance(log_var: Tensor, covariance: Tensor) -> float:
    """Mean over the data of ||diag sigma^2(x) - S||_F (beta-VAE thesis, chapter 5). covariance: S, [d, d]."""
    return float(torch.linalg.matrix_norm(torch.diag_embed(log_var.exp()) - covariance).mean())


def covariance_of(z: Tensor) -> Tensor:
    """Covariance of codes [N, d]: [d, d], also for one unit."""
    return torch.cov(z.T).reshape(z.shape[1], z.shape[1])


def kl_of_gaussian(mean: Tensor, covariance: Tensor) -> float:
    """KL(N(m, S) || N(0, I)) = (tr S + m'm - d - log det S) / 2. mean: [d]. covariance: [d, d]."""
    nats = covariance.trace() + mean @ mean - len(mean) - torch.logdet(covariance)
    return 0.5 * float(nats)


def information(codes: Tensor, factor: NDArray[np.int64]) -> NDArray[np.float64]:
    """I(z_j; v) in nats of each unit, its values in 20 bins of equal width, and a factor: float64 [d].

    codes: float [N, d]. factor: int64 [N].
    """
    z = codes.double().cpu().numpy()
    low, high = z.min(0), z.max(0)
    bins = np.minimum((z - low) / np.maximum(high - low, 1e-12) * BINS, BINS - 1).astype(np.int64)
    return np.array([_mutual(unit, factor) for unit in bins.T])


def information_gaps(codes: Tensor, factors: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each factor by how much the best unit knows more of it than the second, over the factor's entropy:
    float64 [K]. Their mean is the mutual information gap MIG (Chen et al. 2018, arXiv:1802.04942).

    codes: float [N, d]. factors: int64 [N, K].
    """
    gaps = []
    for factor in factors.T:
        first, second = np.sort(information(codes, factor))[:-3:-1]
        gaps.append((first - second) / _entropy(np.bincount(factor)))
    return np.array(gaps)


def classify(features: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy on the test set of a linear classifier (softmax regression) of standardised features.

    features: float [N, d]. labels: int64 [N].
    """
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = (features - mean) / deviation, (test - mean) / deviation
    n_classes = int(labels.max()) + 1
    weights = torch.zeros(x.shape[1] + 1, n_classes, requires_grad=True, device=x.device)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def scores(x: Tensor) -> Tensor:
        return x @ weights[1:] + weights[0]

    def closure() -> float:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(scores(x), labels) + 1e-4 * weights[1:].square().sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    minimise: Callable[[Callable[[], float]], object] = optimiser.step
    minimise(closure)
    with torch.no_grad():
        return float((scores(y).argmax(1) == test_labels).double().mean())


def vote(
    encode: Callable[[NDArray[np.int64]], Tensor],
    sizes: tuple[int, ...],
    n: int,
    pairs: int,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Votes of the beta-VAE metric (Higgins et al. 2017): features float [n, d], and which factor was equal.

    A vote is the mean of |z_1 - z_2| over pairs of factor vectors that are equal in one factor and otherwise
    random. encode: from factors, int64 [N, K], to codes. sizes: how many values each factor has.
    """
    features, labels = [], torch.from_numpy(rng.integers(0, len(sizes), n))
    for label in labels.tolist():
        first, second = (np.stack([rng.integers(0, size, pairs) for size in sizes], 1) for _ in range(2))
        second[:, label] = first[:, label]
        a, b = encode(np.concatenate((first, second))).chunk(2)
        features.append((a - b).abs().mean(0))
    return torch.stack(features), labels.to(features[0].device)


def _mutual(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    joint = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1))
    return _entropy(np.bincount(a)) + _entropy(np.bincount(b)) - _entropy(joint)


def _entropy(counts: NDArray[np.int64]) -> float:
    """Nats of a distribution given by counts."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
