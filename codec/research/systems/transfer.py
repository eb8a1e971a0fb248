"""Study `transfer`: a VAE of photographs on other pictures, as it is and tuned from a hundred images.

Zeng's thesis, chapter 4. Photographs stand for COCO, Frey faces for CelebA; all pictures are 64x64 RGB. The
loss is the message length with empirical noise variance.
"""

import math
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.research.parts import pictures
from vbc.codec.research.parts.data_sets import average, cifar, frey_faces, mnist, padded, photographs
from vbc.codec.research.parts.embedding import tsne
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.loop import Loss, Plan, random_batch
from vbc.codec.research.parts.measures import psnr
from vbc.codec.research.parts.picture_vae import (
    CHUNK,
    Form,
    PictureVae,
    codes_of,
    loss_of,
    message_nats,
    pictures_of,
    prior_nats,
)
from vbc.codec.research.parts.probes import fit_probe
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table

SIDE = 64
FORM = Form(3, SIDE, 128, (32, 64, 128), hidden=256, residual=False)
SOURCE, COLOURS, FACES, DIGITS = "photographs", "CIFAR", "faces", "MNIST"
NATURAL = (SOURCE, COLOURS)
PLAN = Plan(steps=20_000, batch=64, rate=1e-3, rate_end=1e-5, beta1=0.5, log_every=100)
TUNED, EPOCHS, TUNE_BATCH = 100, 50, 20
TUNE_PLAN = Plan(EPOCHS * TUNED // TUNE_BATCH, TUNE_BATCH, 2e-4, beta1=0.5, log_every=50)
"""At the thesis' rate, for both."""
SHARES = {"source": 0.62, "tune": 0.08, "new": 0.08, "new, all faces": 0.14}
"""Of the budget."""
LAST_FACES = 400
"""The film's last frames are for testing."""
PROBED = 500
"""Pictures of a set that a probe is fitted to, and as many that it is tested on."""
DRAWN_POINTS = 250
NEIGHBOURS = 10
DIRECTION, MULTIPLES = 500, (0.0, 0.25, 0.5, 0.75, 1.0)
"""Digits on either side of the direction of thickness; how far along it codes are moved."""
SHOWN = 10

# Table 4.1: accuracies in training and test, KL in nats
KNOWN = {
    SOURCE: (44.6, 35.4, 163.47),
    COLOURS: (42.8, 33.0, 154.29),
    FACES: (97.4, 89.8, 181.44),
    DIGITS: (99.8, 100.0, 216.92),
}
UNITS = {
    "train accuracy": "%",
    "test accuracy": "%",
    "KL": "nats",
    "PSNR": "dB",
    "explained": "% of variance",
    "same set": "% of 10 neighbours",
}

Sets = dict[str, tuple[Tensor, Tensor]]
"""By name, pictures for fitting and for testing: uint8 [N, 3, 64, 64]."""


class Pupil(PictureVae):
    """A VAE that keeps the message length of held-out faces after each epoch: float64 [51], nats."""

    curve: Tensor

    def __init__(self) -> None:
        super().__init__(FORM)
        self.register_buffer("curve", torch.full((EPOCHS + 1,), math.nan, dtype=torch.float64))


def as_source(x: Tensor) -> Tensor:
    """Pictures as the source has them: uint8 [N, 1 or 3, S, S] to [N, 3, 64, 64], bilinear."""
    parts = [
        F.interpolate(part.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        for part in torch.split(x, CHUNK)
    ]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def load(setting: Setting) -> Sets:
    """All sets. The photographs that are tested on are tiles held out from training."""
    tiles, colours, digits = photographs(setting.data, 64), cifar(setting.data), mnist(setting.data)
    faces = padded(frey_faces(setting.data), 28)[0]
    shuffled = torch.randperm(len(faces) - LAST_FACES, generator=torch.Generator().manual_seed(0))
    return {
        SOURCE: (tiles.train, tiles.valid[: 2 * PROBED]),
        COLOURS: (as_source(colours.train[:PROBED]), as_source(colours.test[: 2 * PROBED])),
        FACES: (as_source(faces[shuffled]), as_source(faces[-LAST_FACES:])),
        DIGITS: (as_source(digits.train[: 4 * PROBED]), as_source(digits.test[: 2 * PROBED])),
    }


def trained_source(train: Tensor, setting: Setting) -> PictureVae:
    """The VAE of photographs."""

    def loss_under(model: PictureVae, plan: Plan) -> Loss:
        return lambda x, step: loss_of(model, x)

    plan, seconds = replace(PLAN, seed=setting.seed), SHARES["source"] * setting.budget_s
    batches = random_batch(train, plan.batch, setting.seed)
    return fit(lambda: PictureVae(FORM), loss_under, batches, plan, seconds, setting, "source")


def taught(
    start: PictureVae | None, train: Tensor, test: Tensor, plan: Plan, setting: Setting, name: str
) -> Pupil:
    """A VAE of faces from the source's weights, or from nothing, with its curve."""
    per_epoch = max(1, len(train) // plan.batch)

    def make() -> Pupil:
        pupil = Pupil()
        if start is not None:
            pupil.load_state_dict(start.state_dict(), strict=False)  # all but the curve
        return pupil

    def loss_under(pupil: Pupil, plan: Plan) -> Loss:
        def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
            # before the step: a resumed run finds the epochs that are over in its checkpoint
            if step % per_epoch == 0 and step // per_epoch <= EPOCHS:
                pupil.curve[step // per_epoch] = length(pupil, test)
            found = loss_of(pupil, x)
            if step + 1 == plan.steps and plan.steps // per_epoch <= EPOCHS:
                pupil.curve[plan.steps // per_epoch] = length(pupil, test)
            return found

        return loss

    batches, key = random_batch(train, plan.batch, setting.seed), name.replace(",", "")
    plan, seconds = replace(plan, seed=setting.seed), SHARES[name] * setting.budget_s
    timed_as = f"pupil of {len(train)}"  # those of the same faces get as many steps
    return fit(make, loss_under, batches, plan, seconds, setting, key, timed_as)


@torch.no_grad()
def length(model: PictureVae, x: Tensor) -> float:
    """Message length of pictures, nats each, with codes drawn by the same random numbers every time. Leaves
    the model in training mode where it was."""
    training, generator = model.training, torch.Generator().manual_seed(0)
    model.eval()
    q = codes_of(model.encoder, x)
    y = torch.cat([model.decode(z) for z in torch.split(q.sample(generator), CHUNK)])
    nats = message_nats(x.to(y.device), y) + prior_nats(q).mean()
    model.train(training)
    return nats.item()


def set_rows(
    codes: dict[str, tuple[Gaussian, Gaussian]], model: PictureVae, sets: Sets, seed: int
) -> list[Row]:
    """Table 4.1: the probe from mean codes to sets, KL, how well pictures are decoded."""
    names = list(codes)
    fitted, tested = ([codes[name][part].mean[:PROBED] for name in names] for part in (0, 1))
    n = min(map(len, (*fitted, *tested)))
    labels = torch.arange(len(names)).repeat_interleave(n).to(fitted[0].device)
    train, test = (torch.cat([part[:n] for part in parts]) for parts in (fitted, tested))
    probe = fit_probe(train, labels, seed)
    right = [(probe.scores(x).argmax(1) == labels).double().view(-1, n).mean(1) for x in (train, test)]
    apart = torch.cdist(test, test)
    apart.fill_diagonal_(math.inf)
    near = labels[apart.topk(min(NEIGHBOURS, len(test) - 1), largest=False).indices] == labels.unsqueeze(1)
    rows = []
    for k, name in enumerate(names):
        x, q = sets[name][1], codes[name][1]
        y = pictures_of(model.decoder, q.mean).cpu()
        error, spread = (
            (a.float()).square().mean().item()
            for a in (x.float() - y.float(), x - x.float().mean((1, 2, 3), keepdim=True))
        )
        figures = (
            *(100 * part[k].item() for part in right),
            prior_nats(q).mean().item(),
            psnr(x, y).mean().item(),
            100 * (1 - error / spread),
            100 * near[labels == k].double().mean().item(),
        )
        rows.append(
            Row(name, dict(zip(UNITS, figures, strict=True)), dict(zip(UNITS, KNOWN[name], strict=False)))
        )
    return rows


def thickness(x: Tensor) -> Tensor:
    """Ink over the length of its edges, in pixels: float [N] of uint8 [N, C, H, W], white on black."""
    ink = x.float().mean(1)
    edges = ink.diff(dim=1).abs().sum((1, 2)) + ink.diff(dim=2).abs().sum((1, 2))
    return ink.sum((1, 2)) / edges.clamp_min(1)


def thickened(model: PictureVae, digits: Tensor, codes: Tensor) -> tuple[list[float], dict[str, Tensor]]:
    """Thin digits moved along the direction from thin to thick codes: mean thickness after each multiple of
    MULTIPLES, and rows of pictures. codes: mean codes of the digits."""
    order = thickness(digits).argsort()
    n = min(DIRECTION, len(order) // 3)
    thin, thick = codes[order[:n]], codes[order[-n:]]
    direction = thick.mean(0) - thin.mean(0)
    moved = {f"{m:g}": pictures_of(model.decoder, thin + m * direction).cpu() for m in MULTIPLES}
    rows = {f"thin + {name} (thick - thin)": made[:SHOWN] for name, made in moved.items()}
    return [thickness(made).mean().item() for made in moved.values()], {"thin": digits[order[:SHOWN]], **rows}


def run(setting: Setting) -> Result:
    """Train the source; measure it on all sets; tune it, and train others from nothing."""
    sets = load(setting)
    source = trained_source(sets[SOURCE][0], setting)
    codes = {
        name: (codes_of(source.encoder, train[: 4 * PROBED]), codes_of(source.encoder, test))
        for name, (train, test) in sets.items()
    }
    rows = set_rows(codes, source, sets, setting.seed)
    blurred = as_source(average(sets[SOURCE][1], 2))
    blurred_kl = prior_nats(codes_of(source.encoder, blurred)).mean().item()
    faces, held_out = sets[FACES]
    few = faces[:TUNED]
    pupils = {
        "tune": taught(source, few, held_out, TUNE_PLAN, setting, "tune"),
        "new": taught(None, few, held_out, TUNE_PLAN, setting, "new"),
        "new, all faces": taught(None, faces, held_out, PLAN, setting, "new, all faces"),
    }
    curves = {name: _known(pupil.curve) for name, pupil in pupils.items()}
    ends = {
        "source as it is": length(source, held_out),
        **{n: length(p, held_out) for n, p in pupils.items()},
    }
    widths, moved = thickened(source, sets[DIGITS][1], codes[DIGITS][1].mean)
    tables = [
        Table("A VAE of photographs on other sets (table 4.1)", UNITS, rows),
        Table(
            "Held-out faces, message length", {"nats": "nats"}, [Row(n, {"nats": v}) for n, v in ends.items()]
        ),
        Table(
            "Digits moved along the direction of thickness",
            {"thickness": "pixels"},
            [Row(f"{m:g}", {"thickness": w}) for m, w in zip(MULTIPLES, widths, strict=True)],
        ),
    ]
    figures = {row.model: row.figures for row in rows}
    effects = claims(figures, blurred_kl, curves, ends, widths)
    shown = show(source, pupils, sets, codes, setting)
    shown += pictures.save_rows(setting.out / "thickness-pictures.png", moved)
    shown += pictures.save_curves(
        setting.out / "tuning.png",
        {name: (list(map(float, range(len(c)))), c) for name, c in curves.items()},
        "epoch",
        "nats of held-out faces",
    )
    return Result(tables, effects, notes(), shown)


def _known(curve: Tensor) -> list[float]:
    """The values before the first that is missing."""
    values: list[float] = curve.tolist()
    return values[: next((n for n, value in enumerate(values) if math.isnan(value)), len(values))]


def show(
    source: PictureVae,
    pupils: dict[str, Pupil],
    sets: Sets,
    codes: dict[str, tuple[Gaussian, Gaussian]],
    setting: Setting,
) -> list[str]:
    """Pictures of every set as the source decodes them; faces by the pupils; mean codes in the plane."""
    rows = {}
    for name, (_, test) in sets.items():
        rows[name] = test[:SHOWN]
        rows[f"{name}, decoded"] = pictures_of(source.decoder, codes[name][1].mean[:SHOWN]).cpu()
    faces = sets[FACES][1][:: LAST_FACES // SHOWN][:SHOWN]
    taught_rows = {"faces": faces}
    for name, model in {"source": source, **pupils}.items():
        taught_rows[name] = pictures_of(model.decoder, codes_of(model.encoder, faces).mean).cpu()
    points = {name: q.mean[:DRAWN_POINTS] for name, (_, q) in codes.items()}
    plane = torch.split(tsne(torch.cat(list(points.values()))), [len(part) for part in points.values()])
    return (
        pictures.save_rows(setting.out / "frozen-pictures.png", rows)
        + pictures.save_rows(setting.out / "faces-pictures.png", taught_rows)
        + pictures.save_points(setting.out / "codes.png", dict(zip(points, plane, strict=True)))
    )


def claims(
    found: dict[str, dict[str, float]],
    blurred_kl: float,
    curves: dict[str, list[float]],
    ends: dict[str, float],
    widths: list[float],
) -> list[Effect]:
    """What chapter 4 claims. found: figures by set. curves, ends: nats of held-out faces."""
    kl = {name: f["KL"] for name, f in found.items()}
    natural = max(kl[name] for name in NATURAL)
    told = {name: f["test accuracy"] for name, f in found.items()}
    apart = [b - a for a, b in zip(curves["tune"], curves["new"], strict=True)]
    said = ", ".join(f"{name} {value:.1f}" for name, value in kl.items())
    return [
        Effect(
            "KL is lowest on natural pictures, then faces, then digits.",
            natural < kl[FACES] < kl[DIGITS],
            said,
        ),
        Effect(
            "A linear probe of the code hardly tells natural sets apart (mean below 75 %; by chance, two "
            "sets, 50 %), and digits almost always (95 %).",
            sum(told[name] for name in NATURAL) / len(NATURAL) < 75 and told[DIGITS] > 95,
            ", ".join(f"{name} {value:.1f} %" for name, value in told.items()),
        ),
        Effect(
            "One prior serves all: no set's KL is more than twice the source's.",
            max(kl.values()) < 2 * kl[SOURCE],
            said,
        ),
        Effect(
            "CIFAR's KL is low by the blur of enlarging: photographs made small and enlarged lose KL.",
            blurred_kl < kl[SOURCE],
            f"photographs {kl[SOURCE]:.1f} nats, blurred {blurred_kl:.1f}, CIFAR {kl[COLOURS]:.1f}",
        ),
        Effect(
            "Frozen, the VAE shows other sets recognisably: it explains over half of the variance of each.",
            min(f["explained"] for f in found.values()) > 50,
            ", ".join(f"{name} {f['explained']:.0f} %" for name, f in found.items()),
        ),
        Effect(
            "Digits lie apart, natural sets mix (neighbours of the same set).",
            found[DIGITS]["same set"] > 90 and found[COLOURS]["same set"] < 75,
            ", ".join(f"{name} {f['same set']:.0f} %" for name, f in found.items()),
        ),
        Effect(
            "Tuned from 100 faces the source is better than a new VAE at every epoch.",
            min(apart) > 0,
            f"ahead by {min(apart):.0f} to {max(apart):.0f} nats over {len(apart) - 1} epochs",
        ),
        Effect(
            "And better than a new VAE of all faces, trained longer.",
            ends["tune"] < ends["new, all faces"],
            f"{ends['tune']:.0f} and {ends['new, all faces']:.0f} nats; new from 100 faces {ends['new']:.0f}",
        ),
        Effect(
            "A direction between mean codes of two groups adds its attribute, more with each step.",
            all(b > a for a, b in pairwise(widths)),
            f"thickness {', '.join(f'{w:.2f}' for w in widths)} pixels at multiples "
            f"{', '.join(f'{m:g}' for m in MULTIPLES)}",
        ),
        Effect("Tuning without glasses loses light ones.", None, "these faces wear none"),
    ]


def notes() -> list[str]:
    return [
        "Photographs: tiles held out from training, of the same photographs; faces: the film's last "
        f"{LAST_FACES} frames. CIFAR, faces and digits are enlarged to 64x64, grey ones with equal colours.",
        "128 latents, 32-64-128 channels. Source: Adam from 1e-3; tuning and new at 2e-4, "
        f"{TUNED} faces, up to {EPOCHS} epochs of batches of {TUNE_BATCH}.",
        "Thickness of a stroke: ink over the length of its edges. Explained: 1 - squared error over variance "
        "of the picture's values.",
    ]


STUDY = Study(
    about="a VAE of photographs on other sets, tuned from 100 faces, attributes as directions of its code",
    source="Zeng's thesis, chapter 4, table 4.1",
    budget="20m",
    run=run,
)
