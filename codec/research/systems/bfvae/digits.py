"""Study `bfvae-digits`: another attribute as the foreground, a digit's class; the rest is its style.

Zeng's thesis, section 5.4.3, table 5.7, figure 5.14. The foreground of a digit is one fixed example of its
class: z_f can only say which class it is, and z_b pays for saying it again.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled, mnist, padded
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.frechet import FeatureNet, train_features
from vbc.codec.research.parts.loop import Loss, Plan, batch_indices, random_batch
from vbc.codec.research.parts.picture_vae import Form, PictureVae, codes_of, loss_of
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.parts.probes import network_accuracy
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.bfvae.model import PLAN, Bfvae, Kind, trained

FORM = Form(1, 32, 16, (16, 32, 64), hidden=256, residual=False)
BETA = 5.0
N_CLASSES = 10
BFVAE_SHARE, VAE_SHARE = 0.7, 0.2
"""Of the budget."""
PROBED, TESTED = 6000, 2000
CLASSIFIER_STEPS, CLASSIFIER_SHARE = 4000, 6.0
"""Of the classifier that reads swapped digits: steps at most, and for each second of the budget."""
UNITS = {"train": "%", "test": "%"}
# Table 5.7: accuracy of a network from the style's code to the class, training and test
KNOWN = {
    "Szabo": (97.65, 96.08),
    "Mathieu": (70.85, 66.83),
    "Harsh Jha": (17.72, 17.56),
    "BFVAE z_b": (25.74, 26.51),
}


def load(setting: Setting) -> Labelled:
    """MNIST in a square of 32 pixels."""
    data = mnist(setting.data)
    return data._replace(train=padded(data.train, 32)[0], test=padded(data.test, 32)[0])


def examples(data: Labelled) -> Tensor:
    """The first training digit of each class: uint8 [10, 1, 32, 32]."""
    first = [int((data.train_labels == n).nonzero()[0, 0]) for n in range(N_CLASSES)]
    return data.train[torch.tensor(first)]


def run(setting: Setting) -> Result:
    """A BFVAE of class and style, a VAE beside it, and a classifier that reads what is composed."""
    data = load(setting)
    fronts = examples(data)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.from_numpy(batch_indices(len(data.train), PLAN.batch, setting.seed, step))
        f = fronts[data.train_labels[rows]]
        return data.train[rows], f, torch.zeros_like(f)

    kind = Kind(FORM, front=16, back=16, beta=BETA)
    model = trained(kind, batch, BFVAE_SHARE * setting.budget_s, setting, "digits")
    plain = plain_vae(data, setting)
    steps = max(1, min(CLASSIFIER_STEPS, int(CLASSIFIER_SHARE * setting.budget_s)))
    reader = train_features(data.train, setting, "reader", data.train_labels, steps)
    found = {
        "BFVAE z_b": style_accuracy(model.encode_back(data.train[:PROBED]).mean, model, data, setting.seed),
        "plain VAE z": vae_accuracy(plain, data, setting.seed),
    }
    read = read_swaps(model, reader, data, fronts)
    rows = [
        Row(name, found.get(name, {}), dict(zip(UNITS, KNOWN[name], strict=True)) if name in KNOWN else {})
        for name in (*found, *(name for name in KNOWN if name not in found))
    ]
    tables = [
        Table("A two-layer network from a code to the digit (table 5.7)", UNITS, rows),
        Table(
            "Classes that the classifier reads",
            {"right": "%"},
            [Row(name, {"right": share}) for name, share in read.items()],
        ),
    ]
    return Result(tables, claims(found, read), notes(), show(model, data, fronts, setting))


def plain_vae(data: Labelled, setting: Setting) -> PictureVae:
    """A VAE of whole digits, with beta 1."""

    def loss_under(model: PictureVae, plan: Plan) -> Loss:
        return lambda x, step: loss_of(model, x)

    batches = random_batch(data.train, PLAN.batch, setting.seed)
    plan, seconds = replace(PLAN, seed=setting.seed), VAE_SHARE * setting.budget_s
    return fit(lambda: PictureVae(FORM), loss_under, batches, plan, seconds, setting, "plain VAE")


def style_accuracy(codes: Tensor, model: Bfvae, data: Labelled, seed: int) -> dict[str, float]:
    """What z_b tells of the class, percent. codes: of the first training digits."""
    return _told(codes, model.encode_back(data.test[:TESTED]).mean, data, seed)


def vae_accuracy(model: PictureVae, data: Labelled, seed: int) -> dict[str, float]:
    """What the code of a VAE tells of the class, percent."""
    train, test = (codes_of(model.encoder, x).mean for x in (data.train[:PROBED], data.test[:TESTED]))
    return _told(train, test, data, seed)


def _told(train: Tensor, test: Tensor, data: Labelled, seed: int) -> dict[str, float]:
    labels, wanted = data.train_labels[: len(train)], data.test_labels[: len(test)]
    shares = network_accuracy(train, labels.to(train.device), test, wanted.to(train.device), seed)
    return {name: 100 * share for name, share in zip(UNITS, shares, strict=True)}


@torch.no_grad()
def read_swaps(model: Bfvae, reader: FeatureNet, data: Labelled, fronts: Tensor) -> dict[str, float]:
    """Percent of pictures that are read as they should be: test digits, the same composed of their style and
    class, and of their style and the next class."""
    x, labels = data.test[:TESTED], data.test_labels[:TESTED]
    device = next(reader.parameters()).device
    z_b = model.encode_back(x).mean

    def share(pictures: Tensor, wanted: Tensor) -> float:
        return 100 * float((reader(pictures.to(device)).argmax(1).cpu() == wanted).double().mean())

    def composed(classes: Tensor) -> Tensor:
        return model.compose(z_b, model.encode_front(fronts, torch.zeros_like(fronts)).mean[classes])

    other = (labels + 1) % N_CLASSES
    return {
        "test digits": share(x, labels),
        "composed, own class": share(composed(labels), labels),
        "composed, next class": share(composed(other), other),
    }


def show(model: Bfvae, data: Labelled, fronts: Tensor, setting: Setting) -> list[str]:
    """Figure 5.14: styles in rows, classes in columns."""
    z_f = model.encode_front(fronts, torch.zeros_like(fronts)).mean
    z_b = model.encode_back(data.test[:8]).mean
    rows = {"classes": fronts}
    for n, style in enumerate(z_b):
        composed = model.compose(style.expand(N_CLASSES, -1), z_f).cpu()
        rows[f"style of the first, test digit {n}"] = torch.cat((data.test[n : n + 1], composed))
    return save_rows(setting.out / "styles-pictures.png", rows)


def claims(found: dict[str, dict[str, float]], read: dict[str, float]) -> list[Effect]:
    """What section 5.4.3 claims. found: accuracies from codes. read: percent by the classifier."""
    style, plain = found["BFVAE z_b"]["test"], found["plain VAE z"]["test"]
    return [
        Effect(
            "The style's code hardly tells the class: 20 to 35 % (lower is better; accepted: at most 35 %).",
            style <= 35,
            f"{style:.1f} % in test, {found['BFVAE z_b']['train']:.1f} % in training",
        ),
        Effect("A plain VAE's code tells it: above 90 %.", plain > 90, f"{plain:.1f} %"),
        Effect(
            "Swaps are read as the class of f: above 90 %.",
            read["composed, next class"] > 90,
            ", ".join(f"{name} {share:.1f} %" for name, share in read.items()),
        ),
        Effect("Glasses on faces can be changed and removed.", None, "no faces to paste glasses on are used"),
    ]


def notes() -> list[str]:
    return [
        f"Digits in a square of 32, z_f 16, z_b 16 latents, beta {BETA:g}, 16-32-64 channels; plain VAE: 16.",
        f"Networks of two layers (256) on mean codes of {PROBED} training digits, tested on {TESTED}.",
    ]


STUDY = Study(
    about="BFVAE with a digit's class as foreground: style without class, swaps that a classifier reads",
    source="Zeng's thesis, section 5.4.3, table 5.7",
    budget="10m",
    run=run,
)
