"""Measures of codes against what is known of them."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vbc.codec.research.parts import code_metrics as metrics

SIZES = (3, 5, 8)


def factors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, n) for size in SIZES], 1)


def rotation(n: int) -> torch.Tensor:
    turned: torch.Tensor = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(3)))[0]
    return turned


def test_kl_of_units_is_that_of_gaussians() -> None:
    mean, log_var = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    assert torch.allclose(metrics.kl_of_units(mean, log_var), expected, atol=1e-6)


def test_kl_of_a_full_covariance() -> None:
    """The sign of log det is the one that the thesis has wrong."""
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance, mean = root @ root.T + 0.1 * torch.eye(4), torch.arange(4).double()
    identity = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    expected = kl_divergence(MultivariateNormal(mean, covariance), identity)
    assert metrics.kl_of_gaussian(mean, covariance) == pytest.approx(float(expected))
    assert metrics.kl_of_gaussian(torch.zeros(4), torch.eye(4)) == pytest.approx(0)


def test_active_units() -> None:
    mean = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 0.2, 0.05, 0.0]
    )
    assert metrics.n_active(mean) == 2


def test_covariance_distance_of_the_prior_is_zero() -> None:
    log_var = torch.zeros(10, 2)
    assert metrics.covariance_distance(log_var, torch.eye(2)) == 0
    assert metrics.covariance_distance(log_var, torch.zeros(2, 2)) == pytest.approx(math.sqrt(2))


def test_information_of_a_factor_in_itself() -> None:
    f = factors(20_000)
    found = metrics.information(torch.from_numpy(f).float(), f[:, 1])
    assert found[1] == pytest.approx(math.log(5), abs=1e-3)
    assert max(found[0], found[2]) < 0.005


def test_gaps_of_true_and_rotated_factors() -> None:
    f = factors(10_000)
    true = torch.from_numpy(f).float() / torch.tensor([math.sqrt((s * s - 1) / 12) for s in SIZES])
    assert metrics.information_gaps(true, f).min() > 0.98
    assert metrics.information_gaps(true @ rotation(3), f).mean() < 0.25
    assert metrics.information_gaps(torch.cat((true, true), 1), f).max() < 1e-9, "two units know it: no gap"
    noise = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
    assert metrics.information_gaps(noise, f).max() < 0.01


@pytest.mark.parametrize(("turned", "least", "most"), [(False, 0.99, 1.0), (True, 0.8, 1.0)])
def test_votes_of_true_and_rotated_factors(turned: bool, least: float, most: float) -> None:
    turn = rotation(3) if turned else torch.eye(3)
    score = accuracy(lambda f: torch.from_numpy(f).float() @ turn)
    assert least <= score <= most


def test_votes_of_noise() -> None:
    noise = torch.Generator().manual_seed(0)
    assert accuracy(lambda f: torch.randn(len(f), 3, generator=noise)) < 0.5


def accuracy(encode: object) -> float:
    assert callable(encode)
    features, labels = metrics.vote(encode, SIZES, 400, 32, np.random.default_rng(1))
    return metrics.classify(features[:300], labels[:300], features[300:], labels[300:])
