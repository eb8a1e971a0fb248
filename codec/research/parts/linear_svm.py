"""Linear support vector machines, one against the rest, with the squared hinge loss.

For each class the minimum over w and b of (|w|^2 + b^2) / 2 + C sum_n max(0, 1 - y_n (w x_n + b))^2, as the
widely used LIBLINEAR has it. It is convex and smooth: L-BFGS finds the one minimum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

C = 1.0
ITERATIONS = 100
SMALL_GRADIENT = 1e-4
"""Of the mean loss of an example: below it accuracies move by less than 0.01 points."""


@dataclass(frozen=True)
class Svm:
    """weights: float [features + 1, classes], the offsets last, of features less `centre` [features]."""

    weights: Tensor
    centre: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Of each class: float [N, classes]."""
        return _with_one(features - self.centre) @ self.weights

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of right answers; labels: int64 [N]."""
        return float((self.scores(features).argmax(1) == labels).double().mean())


def fit_svm(features: Tensor, labels: Tensor, start: Svm | None = None) -> Svm:
    """Fit to features, float [N, d], and classes from 0, int64 [N]. start: where to search from.

    Features are centred: that changes no more than which offset is small, and helps the search.
    """
    centre = features.mean(0) if start is None else start.centre
    x = _with_one(features - centre)
    n_classes = int(labels.max()) + 1 if start is None else start.weights.shape[1]
    sign = 2 * torch.nn.functional.one_hot(labels, n_classes).to(x) - 1
    first = x.new_zeros(x.shape[1], n_classes) if start is None else start.weights
    weights = first.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        history_size=20,
        tolerance_grad=SMALL_GRADIENT,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        short = (1 - sign * (x @ weights)).clamp_min(0)
        loss = (0.5 * weights.square().sum() + C * short.square().sum()) / len(x)
        torch.autograd.backward(loss)
        return float(loss.detach())

    minimise: Callable[[Callable[[], float]], object] = optimiser.step
    minimise(closure)
    return Svm(weights.detach(), centre)


def cross_validated(
    features: Tensor, labels: Tensor, n_folds: int, seed: int, start: Svm | None = None
) -> list[float]:
    """Accuracy on each of the parts that a set falls into at random, of a machine fitted to the others.

    start: a machine of the whole set, where each search begins; the minimum it ends in is the same.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels))).to(labels.device)
    parts = torch.tensor_split(order, n_folds)
    found = []
    for n, held_out in enumerate(parts):
        kept = torch.cat([part for m, part in enumerate(parts) if m != n])
        machine = fit_svm(features[kept], labels[kept], start)
        found.append(machine.accuracy(features[held_out], labels[held_out]))
    return found


def _with_one(features: Tensor) -> Tensor:
    return torch.cat((features, torch.ones_like(features[:, :1])), 1)
