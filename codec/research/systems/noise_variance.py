"""Study `noise-variance`: a VAE whose noise has the variance of its errors, beside plain squared error.

Zeng's thesis, sections 1.1 and 3.3. The first loss is the length of a message: code by KL, errors by the
Gaussian that fits them. Plain squared error of pictures 0..1 plus KL is, up to a factor, a beta-VAE with beta
0.5 / s^2, whatever s^2 turns out to be. Both are measured in the first one's nats.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vbc.codec.research.parts import code_metrics, pictures
from vbc.codec.research.parts.data_sets import cifar, mnist, padded
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Loss, Plan, random_batch
from vbc.codec.research.parts.measures import fine_detail
from vbc.codec.research.parts.picture_vae import (
    Form,
    PictureVae,
    codes_of,
    drawn,
    loss_of,
    message_nats,
    pictures_of,
    prior_nats,
    squared_error,
)
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table

FORMS = {
    "MNIST": Form(1, 32, 32, (16, 32, 64)),
    "CIFAR": Form(3, 32, 128, (24, 48, 96)),
}
PLAN = Plan(steps=20_000, batch=64, rate=1e-3, rate_end=1e-5, beta1=0.5, log_every=100)
DEAD = 0.01
"""Nats: a latent whose mean KL is smaller says nothing."""
MEASURED, SHOWN = 1000, 12
MEMORISED = 1.05
"""Test messages longer than training ones by more than this are taken for memory."""
UNITS = {
    "total": "nats",
    "KL": "nats",
    "errors": "nats",
    "bits": "bits/dim",
    "noise": "grey values",
    "beta": "0.5 / s^2",
    "dead latents": "",
    "train total": "nats",
    "detail kept": "%",
}

LossOf = Callable[[PictureVae, Tensor], tuple[Tensor, dict[str, float]]]


def squared_loss(model: PictureVae, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Squared error of pictures 0..1, summed, and KL: means per picture of uint8 [N, C, S, S]."""
    q = model.encode(x)
    errors = squared_error(x, model.decode(drawn(q))).flatten(1).sum(1).mean() / 255**2
    code = prior_nats(q).mean()
    return errors + code, {"squared": errors.item(), "kl": code.item()}


LOSSES: dict[str, LossOf] = {"empirical variance": loss_of, "squared error": squared_loss}


@torch.no_grad()
def lengths(model: PictureVae, x: Tensor, seed: int) -> dict[str, float]:
    """Message of a set by the empirical variance of its errors: nats per picture, the noise's deviation."""
    torch.manual_seed(seed)
    q = codes_of(model.encoder, x)
    y = torch.cat([model.decode(z) for z in torch.split(drawn(q), 256)])
    x = x.to(y.device)
    nats, code = message_nats(x, y).item(), prior_nats(q).mean().item()
    noise = squared_error(x, y).mean().item()
    units = code_metrics.kl_of_units(q.mean, q.log_var).mean(0)
    return {
        "total": nats + code,
        "KL": code,
        "errors": nats,
        "noise": noise,
        "dead": (units < DEAD).sum().item(),
    }


def figures_of(model: PictureVae, train: Tensor, test: Tensor, seed: int) -> dict[str, float]:
    """The figures of UNITS, on test pictures where they do not say otherwise."""
    seen, new = (lengths(model, x[:MEASURED], seed) for x in (train, test))
    shown = pictures_of(model.decoder, codes_of(model.encoder, test[:MEASURED]).mean)
    detail = fine_detail(shown.cpu()).mean() / fine_detail(test[:MEASURED]).mean()
    figures = (
        *(new[key] for key in ("total", "KL", "errors")),
        new["total"] / (test[0].numel() * math.log(2)),
        math.sqrt(new["noise"]),
        0.5 * 255**2 / new["noise"],
        new["dead"],
        seen["total"],
        100 * detail.item(),
    )
    return dict(zip(UNITS, figures, strict=True))


def sets(setting: Setting) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test pictures, uint8 [N, C, 32, 32]."""
    digits, colours = mnist(setting.data), cifar(setting.data)
    return {
        "MNIST": (padded(digits.train, 32)[0], padded(digits.test, 32)[0]),
        "CIFAR": (torch.cat((colours.train, colours.valid)), colours.test),
    }


def trained(kind: str, data: str, train: Tensor, seconds: float, setting: Setting) -> PictureVae:
    """A VAE of a set under one of LOSSES."""

    def loss_under(model: PictureVae, plan: Plan) -> Loss:
        return lambda x, step: LOSSES[kind](model, x)

    plan = replace(PLAN, seed=setting.seed)
    batches = random_batch(train, plan.batch, setting.seed)
    return fit(
        lambda: PictureVae(FORMS[data]),
        loss_under,
        batches,
        plan,
        seconds,
        setting,
        f"{data} {kind}",
        timed_as=data,
    )


def run(setting: Setting) -> Result:
    """Both losses on both sets."""
    seconds = 0.97 * setting.budget_s / (len(FORMS) * len(LOSSES))
    tables, effects, drawn_files = [], [], []
    for data, (train, test) in sets(setting).items():
        found, rows = {}, {"original": test[:SHOWN]}
        for kind in LOSSES:
            model = trained(kind, data, train, seconds, setting)
            found[kind] = figures_of(model, train, test, setting.seed)
            rows[kind] = pictures_of(model.decoder, codes_of(model.encoder, test[:SHOWN]).mean).cpu()
        tables.append(Table(f"{data}, per test picture", UNITS, [Row(k, f) for k, f in found.items()]))
        effects += claims(data, found["empirical variance"], found["squared error"])
        drawn_files += pictures.save_rows(setting.out / f"{data}-pictures.png", rows)
    return Result(tables, effects, notes(), drawn_files)


def claims(data: str, fitted: dict[str, float], plain: dict[str, float]) -> list[Effect]:
    """What the thesis says. fitted, plain: figures with empirical variance and with squared error."""
    return [
        Effect(
            f"{data}: with empirical variance the message is shorter.",
            fitted["total"] < plain["total"],
            f"{fitted['total']:.0f} nats against {plain['total']:.0f} with squared error, which amounts to "
            f"beta {plain['beta']:.0f}.",
        ),
        Effect(
            f"{data}: and far more of it is in the code (at least twice as much).",
            fitted["KL"] > 2 * plain["KL"],
            f"KL {fitted['KL']:.1f} against {plain['KL']:.1f} nats.",
        ),
        Effect(
            f"{data}: the objective chooses the code's dimension: latents that do not pay are dropped.",
            plain["dead latents"] > fitted["dead latents"],
            f"{fitted['dead latents']:.0f} of {FORMS[data].latents} latents have a mean KL below {DEAD} nats "
            f"with empirical variance, {plain['dead latents']:.0f} with squared error.",
        ),
        Effect(
            f"{data}: blur is by design: only detail that can be compressed stays.",
            fitted["detail kept"] < 100,
            f"{fitted['detail kept']:.0f} % of the energy of fine detail is in the decoded pictures, "
            f"{plain['detail kept']:.0f} % with squared error.",
        ),
        Effect(
            f"{data}: the network does not memorise: test messages are at most 5 % longer than others.",
            fitted["total"] < MEMORISED * fitted["train total"],
            f"{fitted['total']:.0f} nats on test pictures, {fitted['train total']:.0f} on training ones.",
        ),
    ]


def notes() -> list[str]:
    return [
        "Nats of both by the empirical variance of the errors on 1,000 pictures, in grey values, 1/12 added.",
        "Digits in a square of 32; 32 and 128 latents, 16-32-64 and 24-48-96 channels, Adam from 1e-3.",
        "Detail: energy beyond half the resolution, of pictures decoded from mean codes.",
    ]


STUDY = Study(
    about="VAE with empirical noise variance against plain squared error: message lengths, latents in use",
    source="Zeng's thesis, sections 1.1 and 3.3",
    budget="15m",
    run=run,
)
