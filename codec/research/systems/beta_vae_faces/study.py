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
from vbc.codec.research.systems.beta_vae_faces.faces import (
    GRID,
    PIXELS,
    FreyVae,
    collapse_estimates,
    excess,
    manifold,
    mean_image,
    measure,
    perfect,
)

EPOCHS, BATCH, RATE = 10, 16, 1e-3
DIMENSIONS = (2, 3, 5)
COLLAPSE = 0.01
"""Where the thesis sees the latents die; half and twice as much are trained too."""
ALIVE = 1e-3
"""The beta below it in the thesis' grid."""
BETAS = tuple(sorted((*(10.0**n for n in range(-6, 4)), COLLAPSE / 2, 2 * COLLAPSE)))
PRIOR_BETAS = (20.0, 30.0, 50.0)
"""Further ones of the comparison of aggregate posterior and prior (thesis, figure 5.2), with two units."""
ALIVE_BITS = 0.1
"""A KL above it carries something."""
SHOWN_BETAS = (1e-5, 1e-3, COLLAPSE / 2, 2 * COLLAPSE, 1.0)


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
    summed = [Case(2, PIXELS * beta, "sum") for beta in (ALIVE, 2 * COLLAPSE)]
    return [*sweep, *more, *summed, Case(2, ALIVE, held_out="last")]


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

    high = 2 * COLLAPSE
    kls = {d: [of("KL", beta, d) for beta in (ALIVE, COLLAPSE / 2, high)] for d in DIMENSIONS}
    said = "; ".join(f"{d} units: {a:.2f}, {b:.2f}, {c:.3f}" for d, (a, b, c) in kls.items())
    said = f"bits at {ALIVE:g}, {COLLAPSE / 2:g}, {high:g}: {said}"
    falling = [[of("KL", beta, d) for beta in BETAS] for d in DIMENSIONS]
    monotone = all(b <= a + 0.05 * a + ALIVE_BITS for kls in falling for a, b in pairwise(kls))
    flat = [of("excess", beta, d) / gap for beta in BETAS if beta >= high for d in DIMENSIONS]
    grids = of("grid", ALIVE), of("grid", high)
    summed = [figures[Case(2, PIXELS * beta, "sum")]["KL"] for beta in (ALIVE, high)]
    top, distance = max(BETAS), [of("F_A", beta) for beta in BETAS]
    fit = [of("prior KL", beta) for beta in (1e-5, ALIVE, 1.0, 100.0)]
    shear = of("correlation", 1.0), of("condition", 1.0)
    leak = figures[Case(2, ALIVE, held_out="last")]["valid"], of("valid", ALIVE)
    return [
        Effect(
            "the latents die between beta = 0.001 and 0.01, whatever their number (here: 0.02)",
            all(alive > ALIVE_BITS > dead for alive, _, dead in kls.values()),
            said,
        ),
        Effect(
            "they die within a factor of 2 of 0.01, as a linear model's do",
            all(half > ALIVE_BITS > dead for _, half, dead in kls.values()),
            said,
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
            grids[0] > 3 * grids[1] and min(flat) > 0.9,
            f"the grid varies by {grids[0]:.1f} grey values at 0.001 and {grids[1]:.2f} at {high:g}; "
            f"from there on {min(flat):.2f} to {max(flat):.2f} as far from perfect as the mean face",
        ),
        Effect(
            "the threshold is one of the loss scale: with cross entropy summed it is 560 times as high",
            summed[0] > ALIVE_BITS > summed[1],
            f"{summed[0]:.2f} bits at {PIXELS * ALIVE:g}, {summed[1]:.2f} at {PIXELS * high:g}; averaged, "
            f"{of('KL', 1.0):.4f} at 1",
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
