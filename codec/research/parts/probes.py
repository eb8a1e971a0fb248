"""Linear probes: how well a line through frozen features tells attributes or classes.

Thesis on patch-VAEs, section 6: p(y|x) = sigmoid(W f(x) + b) for attributes, softmax for classes; stochastic
gradient descent with rate 0.01 and batches of 100, to convergence. So that this rate serves features of any
number and scale, they are centred and divided by one number, after which their mean squared norm is 100.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE, BATCH = 0.01, 100
MOMENTUM = 0.9
"""Ours: a pass with it goes as far as ten without."""
MEAN_SQUARE = 100.0
"""Of the features' norm; the rate is then below the largest stable one, 8 over this."""
EPOCHS, PATIENCE = 60, 4
"""Most passes, and passes without a better validation loss after which the training ends."""
HELD_OUT = 0.1
"""The share of the training examples that says when to stop."""
HIDDEN, NETWORK_RATE, NETWORK_STEPS = 256, 1e-3, 600
"""Of the network that looks harder than a line."""
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class Probe:
    """A fitted probe. weight: [targets, features] for features as they are; offset: [targets]."""

    weight: Tensor
    offset: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Log-odds of attributes or unnormalised log-probabilities of classes: float32 [N, targets]."""
        return torch.cat([part.float() @ self.weight.T + self.offset for part in torch.split(features, 1024)])


def fit_probe(features: Tensor, targets: Tensor, seed: int) -> Probe:
    """Fit a probe. features: float16 or float32 [N, F]. targets: bool [N, attributes], or int64 [N] classes
    from 0."""
    n, size = features.shape
    order = torch.from_numpy(np.random.default_rng((seed, 0)).permutation(n))
    n_valid = max(1, round(HELD_OUT * n))
    valid, train = order[:n_valid], order[n_valid:]
    parts = torch.split(features, 1024)
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0).div(n).float()
    square = sum(float((part.float() - mean).square().sum()) for part in parts) / n
    scale = math.sqrt(MEAN_SQUARE / max(square, 1e-12))
    n_targets = targets.shape[1] if targets.dim() == 2 else int(targets.max()) + 1
    line = nn.Linear(size, n_targets, device=features.device)
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    optimiser = torch.optim.SGD(line.parameters(), RATE, MOMENTUM, nesterov=True)

    def loss(rows: Tensor) -> Tensor:
        scores = line((features[rows].float() - mean) * scale)
        wanted = targets[rows]
        if targets.dim() == 2:
            return F.binary_cross_entropy_with_logits(scores, wanted.float()) * targets.shape[1]
        return F.cross_entropy(scores, wanted)

    best, kept, waited = math.inf, line.weight.detach().clone(), 0
    offset = line.bias.detach().clone()
    for epoch in range(EPOCHS):
        shuffled = train[torch.from_numpy(np.random.default_rng((seed, 1, epoch)).permutation(len(train)))]
        for rows in torch.split(shuffled, BATCH):
            optimiser.zero_grad()
            torch.autograd.backward(loss(rows))
            optimiser.step()
        with torch.no_grad():
            found = float(sum(loss(rows) * len(rows) for rows in torch.split(valid, 1024)))
        waited += 1
        if found < best:
            best, waited = found, 0
            kept, offset = line.weight.detach().clone(), line.bias.detach().clone()
        if waited == PATIENCE:
            break
    weight = kept * scale
    return Probe(weight, offset - weight @ mean)


def network_accuracy(
    features: Tensor, targets: Tensor, test: Tensor, test_targets: Tensor, seed: int
) -> tuple[float, float]:
    """Shares of right answers of a network with one hidden layer of 256 in training and test: what a code
    tells whoever looks hard, where a line tells what it says plainly.

    features: float [N, F], standardised here. targets: int64 [N] classes from 0.
    """
    mean, deviation = features.mean(0), features.std(0).clamp_min(SMALLEST_DEVIATION)
    x, y = ((part.float() - mean) / deviation for part in (features, test))
    n_classes = int(torch.maximum(targets.max(), test_targets.max())) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_classes))
    net = net.to(x)
    optimiser = torch.optim.Adam(net.parameters(), NETWORK_RATE)
    for step in range(NETWORK_STEPS):
        at = np.random.default_rng((seed, 2, step)).integers(0, len(x), BATCH)
        rows = torch.from_numpy(at).to(x.device)
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(net(x[rows]), targets[rows]))
        optimiser.step()
    with torch.no_grad():
        train, new = (
            float((net(part).argmax(1) == wanted).double().mean())
            for part, wanted in ((x, targets), (y, test_targets))
        )
    return train, new


def accuracy(probe: Probe, features: Tensor, targets: Tensor) -> float:
    """Share of right answers, over all attributes together; targets as in `fit_probe`."""
    scores = probe.scores(features)
    right = (scores > 0) == targets if targets.dim() == 2 else scores.argmax(1) == targets
    return float(right.double().mean())


def chance(targets: Tensor) -> float:
    """Accuracy of always saying what is most frequent; targets as in `fit_probe`."""
    if targets.dim() == 1:
        return float(torch.bincount(targets).max() / len(targets))
    share = targets.double().mean(0)
    return float(torch.maximum(share, 1 - share).mean())
