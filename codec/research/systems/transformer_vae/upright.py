"""Digits drawn from the prior of z, upright, and how good they are (thesis, V.ii, figures 6, 7 and 9).

The thesis only shows them. Measured: blur; how sure a classifier of digits is; the Frechet distance to test
digits in that classifier's features. Captions there say that the pose is the identity, the text that it is
the mean one of the training digits: both are drawn, as an upright template may fill the picture and a digit
of the set does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled
from vbc.codec.research.parts.frechet import FeatureNet, own_distance, train_features
from vbc.codec.research.run import Effect, Setting
from vbc.codec.research.systems.transformer_vae.ink import blur
from vbc.codec.research.systems.transformer_vae.model import KINDS, DigitModel
from vbc.codec.research.systems.transformer_vae.training import FULL_BUDGET_S, seeded, sized

Figures = Mapping[tuple[str, int], Mapping[str, float]]
"""By kind of model and size, which is what a study varies: numbers of the whole code, or of z."""

SAMPLES = 2000
SHOWN = 12
CLASSIFIER_STEPS = 1000
UNITS = {
    "blur": "grey pixels / ink",
    "sure": "%",
    "Frechet": "own features",
    "blur, mean pose": "grey pixels / ink",
    "sure, mean pose": "%",
    "Frechet, mean pose": "own features",
}


@dataclass(frozen=True)
class Judge:
    """A classifier of digits, and test digits."""

    net: FeatureNet
    test: Tensor

    @torch.no_grad()
    def figures(self, x: Tensor, name: str = "") -> dict[str, float]:
        """Of pictures, uint8 [N, 1, 28, 28]. name: what the names of the figures end in."""
        device = next(self.net.parameters()).device
        parts = torch.split(x.to(device), 500)
        sure = torch.cat([torch.softmax(self.net(part), 1).amax(1) for part in parts])
        return {
            f"blur{name}": blur(x.float() / 255),
            f"sure{name}": 100 * float(sure.double().mean()),
            f"Frechet{name}": own_distance(self.net, x, self.test),
        }


def judge(data: Labelled, setting: Setting) -> Judge:
    """A classifier trained on the training digits; fewer steps where the budget is small."""
    steps = CLASSIFIER_STEPS if setting.budget_s >= FULL_BUDGET_S else max(1, int(setting.budget_s))
    return Judge(train_features(data.train, setting, "classifier", data.train_labels, steps), data.test)


@torch.no_grad()
def draw(model: DigitModel, data: Labelled, setting: Setting) -> dict[str, Tensor]:
    """Samples of a model by pose, "" for upright: uint8 [N, 1, 28, 28] of the same codes z."""
    upright = model.upright_samples(sized(setting, SAMPLES), seeded(setting))
    device = upright.device
    parts = torch.split(data.train[: sized(setting, len(data.train))], 500)
    mean = torch.cat([model.encode(part.to(device))[1].mean for part in parts]).mean(0)
    placed = model.place(upright, mean.expand(len(upright), -1))
    return {"": to_bytes(upright), ", mean pose": to_bytes(placed)}


def to_bytes(x: Tensor) -> Tensor:
    """Probabilities as grey values, on the CPU."""
    return (255 * x).round().to(torch.uint8).cpu()


def judged(model: DigitModel, data: Labelled, by: Judge, setting: Setting) -> tuple[dict[str, float], Tensor]:
    """Figures of a model's samples, and the first ones upright."""
    drawn = draw(model, data, setting)
    figures = {key: value for name, x in drawn.items() for key, value in by.figures(x, name).items()}
    return figures, drawn[""][:SHOWN]


def upright_effects(figures: Figures, sizes: Sequence[int]) -> list[Effect]:
    """Claims of section V.ii, from models of increasing sizes; thin plates may lack the first ones."""
    first, second, last = sizes[0], sizes[1], sizes[-1]

    def blurs(kind: str, key: str = "blur") -> dict[int, float]:
        return {size: figures[kind, size][key] for size in sizes if (kind, size) in figures}

    def said(*of: dict[int, float]) -> str:
        return " and ".join(", ".join(f"{value:.2f} at {size}" for size, value in one.items()) for one in of)

    plain, affine, plate, double = (blurs(kind) for kind in KINDS)
    placed = blurs("Aff-TVAE", "blur, mean pose")
    changes = affine[second] - affine[first], plain[second] - plain[first]
    return [
        Effect(
            "upright samples of an Aff-TVAE are sharper than the VAE's",
            all(affine[size] < plain[size] for size in sizes),
            f"blur {said(affine, plain)}; an Aff-TVAE's in the mean pose, where digits are smaller, "
            f"{said(placed)}",
        ),
        Effect("the VAE's get worse with its size", plain[last] > plain[first], f"blur {said(plain)}"),
        Effect(
            "the Aff-TVAE's are less affected by the size",
            abs(changes[0]) < abs(changes[1]),
            f"blur from {first} to {second}: Aff-TVAE {changes[0]:+.3f}, VAE {changes[1]:+.3f}",
        ),
        Effect(
            "thin plates give slightly sharper ones than affine poses",
            all(plate[size] < affine[size] for size in plate),
            f"blur of TPS-TVAE and Aff-TVAE: {said(plate, affine)}",
        ),
        Effect(
            "the Aff-DTVAE's are worse than the Aff-TVAE's and degrade with size as the VAE's do",
            all(double[size] > affine[size] for size in sizes) and double[last] > double[first],
            f"blur of Aff-DTVAE and Aff-TVAE: {said(double, affine)}",
        ),
    ]
