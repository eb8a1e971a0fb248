"""Beta-VAE on Frey faces (beta-VAE thesis, chapters 4 and 5): what beta does, and what its measures measure.

The loss scale decides everything: binary cross entropy is averaged over the 560 pixels and KL summed over
the units, so that the ordinary VAE is beta = 1 / 560 = 0.0018.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts import code_metrics, pictures
from vbc.codec.research.parts.data_sets import frey_faces
from vbc.codec.research.parts.loop import Batches, Loss, Plan, random_batch, steps_within, train
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table

HEIGHT, WIDTH = 28, 20
PIXELS = HEIGHT * WIDTH
PARAMETERS = (320, 18496, 36928, 36928, 286752, 66, 66, 26880, 18464, 289)
"""Of each layer of the network with two units (thesis, tables 4.1 and 4.2)."""
EPOCHS, BATCH, RATE = 10, 16, 1e-3
DIMENSIONS = (2, 3, 5)
COLLAPSE = 0.01
"""Where the thesis sees the latents die; half and twice as much are trained too."""
BETAS = tuple(sorted((*(10.0**n for n in range(-6, 4)), COLLAPSE / 2, 2 * COLLAPSE)))
PRIOR_BETAS = (20.0, 30.0, 50.0)
"""Further ones of the comparison of aggregate posterior and prior (thesis, figure 5.2), with two units."""
ALIVE_BITS = 0.1
"""A KL above it carries something."""
GRID = 6
CHUNK = 128
"""Faces that go through a network at a time when it is measured."""
SHOWN_BETAS = (1e-5, 1e-3, COLLAPSE / 2, 2 * COLLAPSE, 1.0)


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


class Case(NamedTuple):
    """A model of the sweep. scale: whether cross entropy is averaged over pixels or summed. held_out: which
    tenth of the frames is for validation, drawn at random or the last in time."""

    d: int
    beta: float
    scale: Literal["mean", "sum"] = "mean"
    held_out: Literal["random", "last"] = "random"

    @property
    def name(self) -> str:
        return f"d{self.d}-beta{self.beta:g}-{self.scale}-{self.held_out}"


def cases() -> list[Case]:
    """All models of the study."""
    sweep = [Case(d, beta) for d in DIMENSIONS for beta in BETAS]
    more = [Case(2, beta) for beta in PRIOR_BETAS]
    summed = [Case(2, PIXELS * beta, "sum") for beta in (COLLAPSE / 2, 2 * COLLAPSE)]
    return [*sweep, *more, *summed, Case(2, 1e-3, held_out="last")]


def loss_of(model: FreyVae, x: Tensor, case: Case) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy + beta KL of faces, uint8 [N, 1, 28, 20]; logs cross entropy in nats per pixel and KL in
    bits."""
    faces = x.float() / 255
    mean, log_var = model.encode(faces)
    z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
    entropy = F.binary_cross_entropy_with_logits(model.decode(z), faces)
    kl = code_metrics.kl_of_units(mean, log_var).sum(1).mean()
    scale = PIXELS if case.scale == "sum" else 1
    return scale * entropy + case.beta * kl, {"entropy": entropy.item(), "kl_bits": kl.item() / math.log(2)}


def split(faces: Tensor, held_out: Literal["random", "last"]) -> tuple[Tensor, Tensor]:
    """Faces for training, and a tenth for validation."""
    order = np.arange(len(faces))
    if held_out == "random":
        order = np.random.default_rng(0).permutation(len(faces))
    cut = len(faces) - len(faces) // 10
    return faces[order[:cut]], faces[order[cut:]]


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


def run(setting: Setting) -> Result:
    """Train all models, measure each on all faces."""
    faces = frey_faces(setting.data)
    todo = cases()
    n_train = len(split(faces, "random")[0])
    whole = Plan(EPOCHS * (n_train // BATCH), BATCH, RATE, optimiser="rmsprop", seed=setting.seed)

    def make() -> tuple[nn.Module, Loss, Batches]:
        model = FreyVae(2)
        return model, lambda x, step: loss_of(model, x, todo[0]), random_batch(faces, BATCH, setting.seed)

    plan = replace(whole, steps=steps_within(make, whole, setting.budget_s / len(todo), setting, "frey"))
    figures: dict[Case, dict[str, float]] = {}
    grids: dict[Case, Tensor] = {}
    for case in todo:
        torch.manual_seed(setting.seed)
        model = FreyVae(case.d)
        train_part, valid = split(faces, case.held_out)

        def loss(
            x: Tensor, step: int, model: FreyVae = model, case: Case = case
        ) -> tuple[Tensor, dict[str, float]]:
            return loss_of(model, x, case)

        batch = random_batch(train_part, BATCH, setting.seed)
        train(model, loss, batch, plan, setting.out / f"{case.name}.safetensors", setting)
        figures[case] = measure(model, faces.to(setting.device))
        figures[case]["valid"] = excess(model, valid.to(setting.device))
        grids[case] = manifold(model)
        figures[case]["grid"] = grids[case].float().std(0, unbiased=False).mean().item()
    gap = 1000 * (mean_image(faces) - perfect(faces))
    notes = [
        f"{plan.steps} steps of {BATCH} faces a model: {plan.steps * BATCH / n_train:.1f} epochs.",
        f"The mean face is {gap:.1f} thousandths of a nat per pixel above a perfect reconstruction "
        f"({mean_image(faces):.4f} and {perfect(faces):.4f} nats).",
        "A linear model's units would die at beta = "
        + ", ".join(f"{beta:.4f}" for beta in collapse_estimates(faces))
        + " (PCA of whitened faces).",
    ]
    return Result(tables(figures), effects(figures, gap), notes, draw(figures, grids, setting))


H1_UNITS = {
    "excess": "nats/1000 pixels",
    "valid": "nats/1000 pixels",
    "KL": "bits",
    "active": "units",
    "grid": "grey values",
}
H23_UNITS = {
    "KL": "bits",
    "active": "units",
    "F_A": "",
    "F_B": "",
    "prior KL": "nats",
    "condition": "",
    "correlation": "",
}


def tables(figures: dict[Case, dict[str, float]]) -> list[Table]:
    """The sweep for each number of units; covariance distance and prior with two units; the controls."""

    def rows(chosen: list[Case], units: dict[str, str]) -> list[Row]:
        return [Row(f"beta {c.beta:g}", {key: figures[c][key] for key in units}) for c in chosen]

    sweep = [c for c in figures if c.scale == "mean" and c.held_out == "random"]
    found = []
    for d in DIMENSIONS:
        title = f"H1, {d} units: cross entropy above the perfect one, KL, how much the decoded grid varies"
        chosen = [c for c in sweep if c.d == d and c.beta in BETAS]
        found.append(Table(title, H1_UNITS, rows(chosen, H1_UNITS)))
    two = sorted((c for c in sweep if c.d == 2), key=lambda c: c.beta)
    title = "H2, H3, 2 units: covariance distance to sampled codes (A), to means (B); Gaussian fit and prior"
    found.append(Table(title, H23_UNITS, rows(two, H23_UNITS)))
    controls = [c for c in figures if c not in sweep]
    named = [
        Row(
            f"beta {c.beta:g}, cross entropy as {c.scale}, {c.held_out} tenth held out",
            {k: figures[c][k] for k in H1_UNITS},
        )
        for c in controls
    ]
    found.append(Table("Controls, 2 units: summed loss; the last frames held out", H1_UNITS, named))
    return found


def effects(figures: dict[Case, dict[str, float]], gap: float) -> list[Effect]:
    """Claims of chapters 4 and 5. gap: of the mean face above perfect, thousandths of a nat per pixel."""

    def of(key: str, beta: float, d: int = 2) -> float:
        return figures[Case(d, beta)][key]

    low, high = COLLAPSE / 2, 2 * COLLAPSE
    around = [(of("KL", low, d), of("KL", high, d)) for d in DIMENSIONS]
    collapse = all(below > ALIVE_BITS > above for below, above in around)
    falling = [[of("KL", beta, d) for beta in BETAS] for d in DIMENSIONS]
    monotone = all(b <= a + 0.05 * a + ALIVE_BITS for kls in falling for a, b in pairwise(kls))
    flat = [of("excess", beta, d) / gap for beta in BETAS if beta >= high for d in DIMENSIONS]
    grids = of("grid", 1e-3), of("grid", high)
    summed = [figures[Case(2, PIXELS * beta, "sum")]["KL"] for beta in (low, high)]
    top, distance = max(BETAS), [of("F_A", beta) for beta in BETAS]
    fit = [of("prior KL", beta) for beta in (1e-5, 1e-3, 1.0, 100.0)]
    shear = of("correlation", 1.0), of("condition", 1.0)
    leak = figures[Case(2, 1e-3, held_out="last")]["valid"], of("valid", 1e-3)
    return [
        Effect(
            "the latents die at beta = 0.01, whatever their number (here: within a factor of 2)",
            collapse,
            "; ".join(
                f"{d} units: {below:.2f} bits at {low:g}, {above:.2f} at {high:g}"
                for d, (below, above) in zip(DIMENSIONS, around, strict=True)
            ),
        ),
        Effect(
            "KL falls as beta grows",
            monotone,
            "; ".join(
                f"{d} units: {k[0]:.1f} to {k[-1]:.2f} bits" for d, k in zip(DIMENSIONS, falling, strict=True)
            ),
        ),
        Effect(
            "below 0.01 decoded faces differ, above it they are one face",
            grids[0] > 5 * grids[1] and min(flat) > 0.9,
            f"the grid varies by {grids[0]:.1f} grey values at 0.001 and {grids[1]:.2f} at {high:g}; "
            f"from there on {min(flat):.2f} to {max(flat):.2f} as far from perfect as the mean face",
        ),
        Effect(
            "the threshold is one of the loss scale: with cross entropy summed it is 560 times as high",
            summed[0] > ALIVE_BITS > summed[1],
            f"{summed[0]:.2f} bits at {PIXELS * low:g}, {summed[1]:.2f} at {PIXELS * high:g}",
        ),
        Effect(
            "the covariance distance falls as beta grows (which the thesis takes for disentangling)",
            distance[-1] < 0.2 * max(distance),
            f"from {max(distance):.2f} to {distance[-1]:.2f} at {top:g}, with {of('KL', top):.2f} bits and "
            f"{of('active', top):.0f} active units: it vanishes with the code, nothing disentangles. "
            f"Against the means' covariance it goes to {of('F_B', top):.2f} (sqrt 2 = 1.41)",
        ),
        Effect(
            "the aggregate posterior is sheared at small beta and nears the prior; it is the prior from 1 on",
            fit[0] > fit[1] > fit[2] and fit[2] < 0.02 and shear[0] < 0.1,
            f"KL of the fit {fit[0]:.2f}, {fit[1]:.2f}, {fit[2]:.4f}, {fit[3]:.4f} nats at 1e-5 to 100; "
            f"at 1 correlation {shear[0]:.3f}, condition {shear[1]:.2f}",
        ),
        Effect(
            "neighbours in time leak into a validation set drawn at random",
            leak[0] > leak[1],
            f"{leak[1]:.1f} thousandths of a nat above perfect at random, {leak[0]:.1f} on the last tenth",
        ),
    ]


def draw(figures: dict[Case, dict[str, float]], grids: dict[Case, Tensor], setting: Setting) -> list[str]:
    """Manifolds, and curves of KL and cross entropy over beta."""
    names = []
    shown = ", ".join(f"{beta:g}" for beta in SHOWN_BETAS)
    rows = {
        f"{d} units, beta {shown}": torch.cat(
            [pictures.tiled(grids[Case(d, beta)], GRID) for beta in SHOWN_BETAS]
        )
        for d in DIMENSIONS
    }
    names += pictures.save_rows(setting.out / "manifolds.png", rows)
    for key, unit in (("KL", "bits"), ("excess", "nats / 1000 pixels")):
        curves = {f"{d} units": (BETAS, [figures[Case(d, b)][key] for b in BETAS]) for d in DIMENSIONS}
        path = setting.out / f"{key.lower()}_over_beta.png"
        names += pictures.save_curves(path, curves, "beta", f"{key} [{unit}]", log_x=True)
    return names


STUDY = Study(
    about="Beta-VAE on Frey faces: collapse, covariance distance, aggregate posterior",
    source="beta-VAE thesis, chapters 4 and 5",
    budget="25m",
    run=run,
)
