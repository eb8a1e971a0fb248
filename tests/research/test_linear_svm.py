"""Linear support vector machines: the minimum is found, and accuracies are those of known clouds."""

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts import linear_svm
from vbc.codec.research.parts.linear_svm import cross_validated, fit_svm


def clouds(n: int, distance: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three round clouds of points, their middles so far from the origin, which is far from 0."""
    r = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    angle = labels.double() * (2 * torch.pi / 3)
    middle = distance * torch.stack((angle.cos(), angle.sin()), 1)
    return 7 + middle + torch.randn(n, 2, generator=r, dtype=torch.float64), labels


def test_the_gradient_vanishes_at_the_minimum() -> None:
    x, labels = clouds(300, 1.0)
    machine = fit_svm(x, labels)
    weights = machine.weights.clone().requires_grad_()
    scores = (x - machine.centre) @ weights[:-1] + weights[-1]
    sign = 2 * torch.nn.functional.one_hot(labels, 3) - 1
    loss = 0.5 * weights.square().sum() + linear_svm.C * (1 - sign * scores).clamp_min(0).square().sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    assert float(gradient.abs().max()) <= 300 * linear_svm.SMALL_GRADIENT
    assert torch.allclose(machine.scores(x), scores.detach())


@pytest.mark.parametrize(("distance", "low", "high"), [(0.0, 0.2, 0.5), (1.5, 0.75, 0.95), (9.0, 1.0, 1.0)])
def test_accuracy_of_clouds(distance: float, low: float, high: float) -> None:
    machine = fit_svm(*clouds(600, distance))
    assert low <= machine.accuracy(*clouds(600, distance, seed=1)) <= high


def test_cross_validation() -> None:
    """Every example is held out once; where the search begins decides nothing."""
    x, labels = clouds(200, 1.5)
    folds = cross_validated(x, labels, 7, seed=1)
    assert folds == cross_validated(x, labels, 7, seed=1, start=fit_svm(x, labels))
    assert len(folds) == 7
    assert 0.7 < sum(folds) / 7 < 1
    alone = torch.eye(4, dtype=torch.float64)
    assert (
        cross_validated(alone, torch.arange(4), 4, seed=1, start=fit_svm(alone, torch.arange(4))) == [0.0] * 4
    )
