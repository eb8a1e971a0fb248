"""The thesis' network for Frey faces, and what is measured of it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts import code_metrics

HEIGHT, WIDTH = 28, 20
PIXELS = HEIGHT * WIDTH
PARAMETERS = (320, 18496, 36928, 36928, 286752, 66, 66, 26880, 18464, 289)
"""Of each layer of the network with two units (thesis, tables 4.1 and 4.2)."""
GRID = 6
CHUNK = 128
"""Faces that go through a network at a time when it is measured."""


class FreyVae(nn.Module):
    """The thesis' network. Its weights start as in Keras (Glorot, uniform), whose example it is."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 3, stride, 1)
            for n_in, n_out, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1))
        )
        self.dense = nn.Linear(64 * 14 * 10, 32)
        self.mean, self.log_var = nn.Linear(32, d), nn.Linear(32, d)
        self.spread = nn.Linear(d, 64 * 14 * 10)
        self.up = nn.ConvTranspose2d(64, 32, 3, 2, 1, output_padding=1)
        self.out = nn.Conv2d(32, 1, 3, 1, 1)
        for weight, bias in self.layers():
            nn.init.xavier_uniform_(weight)
            nn.init.zeros_(bias)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases in the order of the thesis' tables."""
        modules = [*self.convs, self.dense, self.mean, self.log_var, self.spread, self.up, self.out]
        pairs = [tuple(module.parameters()) for module in modules]
        return [(weight, bias) for weight, bias in pairs]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Faces in 0..1, float [N, 1, 28, 20], to mean and log-variance [N, d]."""
        for conv in self.convs:
            x = F.relu(conv(x))
        h = F.relu(self.dense(x.flatten(1)))
        return self.mean(h), self.log_var(h).clamp(-20, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Log-odds of grey values: float [N, 1, 28, 20]."""
        h = F.relu(self.spread(z)).view(-1, 64, 14, 10)
        logits: Tensor = self.out(F.relu(self.up(h)))
        return logits


@torch.no_grad()
def measure(model: FreyVae, x: Tensor) -> dict[str, float]:
    """Figures of a trained model on faces, uint8 [N, 1, 28, 20]: H1 to H3 of the thesis."""
    mean, log_var, z = codes(model, x)
    total, of_means = code_metrics.covariance_of(z), code_metrics.covariance_of(mean)
    deviations = total.diag().sqrt()
    correlation = total / torch.outer(deviations, deviations)
    eigenvalues = torch.linalg.eigvalsh(total)
    return {
        "excess": excess(model, x),
        "KL": code_metrics.kl_of_units(mean, log_var).sum(1).mean().item() / math.log(2),
        "active": float(code_metrics.n_active(mean)),
        "F_A": code_metrics.covariance_distance(log_var, total),
        "F_B": code_metrics.covariance_distance(log_var, of_means),
        "prior KL": code_metrics.kl_of_gaussian(z.mean(0), total),
        "condition": float(eigenvalues[-1] / eigenvalues[0]),
        "correlation": (correlation - torch.eye(len(total)).to(total)).abs().max().item(),
    }


def codes(model: FreyVae, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, log-variances and draws of faces' codes: float [N, d] each."""
    parts = [model.encode(part.float() / 255) for part in torch.split(x, CHUNK)]
    mean, log_var = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, log_var, code_metrics.sampled(mean, log_var)


@torch.no_grad()
def excess(model: FreyVae, x: Tensor) -> float:
    """Cross entropy above the least there is, thousandths of a nat per pixel; faces uint8 [N, 1, 28, 20]."""
    drawn = torch.split(codes(model, x)[2], CHUNK)
    decoded = torch.cat([model.decode(part) for part in drawn])
    return 1000 * (F.binary_cross_entropy_with_logits(decoded, x.float() / 255).item() - perfect(x))


@torch.no_grad()
def manifold(model: FreyVae) -> Tensor:
    """Decoded faces of a grid: the first two units at normal quantiles 0.05 to 0.95, the others 0; uint8
    [36, 1, 28, 20]."""
    at = torch.special.ndtri(torch.linspace(0.05, 0.95, GRID))
    z = torch.zeros(GRID * GRID, model.mean.out_features)
    z[:, :2] = torch.cartesian_prod(at, at)
    grey = torch.sigmoid(model.decode(z.to(model.mean.weight.device)))
    return (255 * grey).round().to(torch.uint8).cpu()


def perfect(x: Tensor) -> float:
    """Cross entropy of grey values with themselves, the least there is: nats per pixel."""
    faces = x.double() / 255
    return float(-(torch.special.xlogy(faces, faces) + torch.special.xlogy(1 - faces, 1 - faces)).mean())


def mean_image(x: Tensor) -> float:
    """Cross entropy with the mean face: nats per pixel."""
    faces = x.double() / 255
    return float(F.binary_cross_entropy(faces.mean(0).expand_as(faces), faces))


def collapse_estimates(x: Tensor, n: int = 5) -> list[float]:
    """The betas at which a linear model's units die, the strongest first: eigenvalues of the covariance over
    the pixels' Bernoulli variances, divided by the number of pixels."""
    faces = x.double().flatten(1) / 255
    m = faces.mean(0)
    whitened = (faces - m) / torch.sqrt(m * (1 - m))
    values: list[float] = torch.linalg.eigvalsh(torch.cov(whitened.T, correction=0)).flip(0)[:n].tolist()
    return [value / PIXELS for value in values]
