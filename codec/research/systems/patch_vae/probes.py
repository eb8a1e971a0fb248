"""Study `patch-probes`: what lines through patch codes, global codes and pixels tell of attributes and
digits.

Thesis on patch-VAEs, sections 6, 7.3 and 7.4, table 4, figures 8 to 12. Toy faces stand for CelebA, MNIST
for CIFAR, whose labels are not at hand. The features of a patch-VAE are its codes at all positions,
flattened; here at as many positions, regularly spaced, as `LIMIT` features hold.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.research.parts.data_sets import mnist, padded
from vbc.codec.research.parts.pictures import heat, save_rows
from vbc.codec.research.parts.probes import Probe, accuracy, chance, fit_probe
from vbc.codec.research.parts.toy_faces import SHARES, SIDE, ToyFaces
from vbc.codec.research.run import Result, Row, Setting, Study, Table
from vbc.codec.research.systems.patch_vae import global_vae
from vbc.codec.research.systems.patch_vae.faces import code_maps, face_models, faces, steps_said
from vbc.codec.research.systems.patch_vae.global_vae import LAYERS, GlobalForm, GlobalVAE
from vbc.codec.research.systems.patch_vae.model import THESIS, PatchVAE, form, trained
from vbc.codec.research.systems.patch_vae.probe_claims import claims_of_depth, claims_of_table, weight_claims
from vbc.codec.research.systems.patch_vae.weights import box_share, maps_of_weights

LIMIT = 4608
"""Features of one model at most: 144 positions of 32 numbers, 64 of 64."""
DIGIT_LATENTS = 16
FACES_PROBED, DIGITS_PROBED = (3000, 1500), (8000, 4000)
"""Images that probes are fitted to and tested on; their codes take minutes."""
UNITS = {"accuracy": "%", "features": ""}
BOX_UNITS = {"weight in box": "", "area of box": "", "ratio": ""}
FACE_PART = 0.3
"""The share of the budget for patch-VAEs of toy faces, where `patch-maps` has not trained them yet."""
GLOBAL_DIGITS = (GlobalForm(32), GlobalForm(32, global_vae.BETA))
DEPTH_MODEL = "VAE_32d"

# Table 4, CelebA and CIFAR, %
FACES_KNOWN = {
    "ALL": 89.17,
    "15|1": 88.63,
    "15|3": 88.58,
    "9|1": 88.23,
    "15|5": 88.20,
    "3|1": 87.97,
    "9|3": 86.98,
    "PIXEL": 86.52,
    "VAE_4096d": 86.26,
    "VAE_256d": 86.21,
    "VAE_32d": 84.38,
    "beta-VAE_32d": 82.12,
    "beta-VAE_256d": 81.74,
    "CHANCE": 80.04,
}
CIFAR_KNOWN = {
    "ALL": 61.48,
    "15|1": 48.21,
    "15|3": 49.08,
    "9|1": 48.71,
    "15|5": 49.16,
    "3|1": 42.19,
    "9|3": 47.92,
    "PIXEL": 38.22,
    "VAE_32d": 37.66,
    "CHANCE": 10.0,
}

Features = tuple[Tensor, Tensor]
"""Of training and test images: float16 [N, features]."""


class Bench:
    """Probes on one set of images. targets: of training and of test images, as in `fit_probe`."""

    def __init__(self, targets: tuple[Tensor, Tensor], known: dict[str, float], seed: int):
        self.targets, self.known, self.seed = targets, known, seed
        self.rows: list[Row] = []

    def add(self, name: str, features: Features) -> Probe:
        """Fit a probe and note its accuracy on the test images."""
        train, test = (part.flatten(1) for part in features)
        probe = fit_probe(train, self.targets[0].to(train.device), self.seed)
        percent = 100 * accuracy(probe, test, self.targets[1].to(test.device))
        known = {"accuracy": self.known[name]} if name in self.known else {}
        self.rows.append(Row(name, {"accuracy": percent, "features": float(train.shape[1])}, known))
        return probe

    def add_chance(self) -> None:
        figures = {"accuracy": 100 * chance(self.targets[1]), "features": 0.0}
        self.rows.append(Row("CHANCE", figures, {"accuracy": self.known["CHANCE"]}))

    def found(self) -> dict[str, float]:
        return {row.model: row.figures["accuracy"] for row in self.rows}


def stride_for(model: PatchVAE, side: int, limit: int) -> int:
    """The smallest stride at which the codes of an image of side x side are at most `limit` numbers."""
    positions = side - model.form.patch + 1
    return next(s for s in range(1, side) if math.ceil(positions / s) ** 2 * model.latents <= limit)


def projected(features: Features, size: int, seed: int) -> Features:
    """Features through one random matrix: float16 [N, size] each."""
    width = features[0].flatten(1).shape[1]
    matrix = torch.randn(width, size, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width)
    matrix = matrix.to(features[0].device)
    train, test = (torch.cat([x.flatten(1).float() @ matrix for x in torch.split(f, 512)]) for f in features)
    return train.half(), test.half()


@torch.no_grad()
def layer_features(model: GlobalVAE, images: tuple[Tensor, Tensor], layer: int) -> Features:
    """Outputs of one layer; planes of more than twice LIMIT numbers are thinned out by two in both
    directions."""

    def features(x: Tensor) -> Tensor:
        y = model.layers(x.to(next(model.parameters()).device))[layer]
        large = y.dim() == 4 and y[0].numel() > 2 * LIMIT
        return (y[..., ::2, ::2] if large else y).flatten(1).half()

    train, test = (torch.cat([features(part) for part in torch.split(x, 100)]) for x in images)
    return train, test


def probe_models(
    bench: Bench, models: dict[str, PatchVAE], images: tuple[Tensor, Tensor]
) -> tuple[dict[str, Probe], dict[str, int]]:
    """Rows of patch codes, each and all together, of pixels, and the two controls by random projection.

    Returns the probes and the strides of the models' positions.
    """
    side = images[0].shape[-1]
    strides = {name: stride_for(model, side, LIMIT) for name, model in models.items()}
    probes, parts = {}, []
    for name, model in models.items():
        train, test = (code_maps(model, x, strides[name]).flatten(1) for x in images)
        probes[name] = bench.add(name, (train, test))
        parts.append((train, test))
        if name == "9|1":
            bench.add("9|1, random 32", projected((train, test), 32, bench.seed))
    train, test = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    bench.add("ALL", (train, test))
    pixels = (images[0].half() / 255, images[1].half() / 255)
    bench.add("PIXEL", pixels)
    size = next(row.figures["features"] for row in bench.rows if row.model == "9|1")
    bench.add("PIXEL, random as 9|1", projected(pixels, int(size), bench.seed))
    bench.add_chance()
    return probes, strides


def run(setting: Setting) -> Result:
    """Faces first, then digits; probes are fitted outside the budget of training."""
    train, test = faces()
    models = face_models(setting, train.images, FACE_PART * setting.budget_s / len(THESIS))
    unit = (1 - FACE_PART) * setting.budget_s / (len(global_vae.THESIS) + len(THESIS) + len(GLOBAL_DIGITS))
    n, n_test = FACES_PROBED
    images = (train.images[:n], test.images[:n_test])
    bench = Bench((train.attributes[:n], test.attributes[:n_test]), FACES_KNOWN, setting.seed)
    probes, strides = probe_models(bench, models, images)
    depth: list[Row] = []
    for kind in global_vae.THESIS:
        whole = global_vae.trained(kind, train.images, unit, setting, f"faces {kind.name}")
        bench.add(kind.name, layer_features(whole, images, -1))
        if kind.name == DEPTH_MODEL:
            depth = depth_rows(whole, images, bench)
    digits = digit_bench(setting, unit)

    weights = maps_of_weights(probes["9|1"].weight.cpu(), models["9|1"].latents)
    boxes = [
        Row(name, dict(zip(BOX_UNITS, box_share(weights[n], name, 9, strides["9|1"]), strict=True)))
        for n, name in enumerate(SHARES)
        if name != "pale"
    ]
    shown = {name: beside_a_face(weights[n], test, n) for n, name in enumerate(SHARES)}
    pictures = save_rows(setting.out / "weights-of-9-1.png", shown)
    tables = [
        Table("Probes of attributes, toy faces (thesis: CelebA)", UNITS, bench.rows),
        Table(f"Probes of layers of {DEPTH_MODEL}, toy faces", UNITS, depth),
        Table("Probes of digits, MNIST (thesis: CIFAR)", UNITS, digits.rows),
        Table("Weight of the 9|1 probe in an attribute's box", BOX_UNITS, boxes),
    ]
    effects = [
        *claims_of_table("Toy faces", bench.found()),
        *claims_of_depth({row.model: row.figures["accuracy"] for row in depth}),
        *claims_of_table("MNIST", digits.found()),
        weight_claims({row.model: row.figures for row in boxes}),
    ]
    return Result(tables, effects, [*notes(strides), steps_said(setting)], pictures)


def beside_a_face(weights: Tensor, faces: ToyFaces, attribute: int) -> Tensor:
    """A face with an attribute, then the 9|1 probe's map of it at the same scale: uint8 [2, 3, 64, 64]."""
    having = faces.attributes[:, attribute].nonzero()[:1, 0]
    positions = SIDE - form("9|1").patch + 1
    large = F.interpolate(weights[None, None], (positions, positions))  # a map of patches' centres
    margin = form("9|1").patch // 2
    return torch.cat((faces.images[having], F.pad(heat(large[0]), [margin] * 4)))


def depth_rows(model: GlobalVAE, images: tuple[Tensor, Tensor], bench: Bench) -> list[Row]:
    """Accuracy by layer, from the first batch norm to z."""
    layers = Bench(bench.targets, {}, bench.seed)
    for n, name in enumerate(LAYERS):
        layers.add(name, layer_features(model, images, n))
    return layers.rows


def digit_bench(setting: Setting, seconds: float) -> Bench:
    """Patch codes of 16 numbers, and global codes of the digits in a square of 32."""
    digits = mnist(setting.data)
    n, n_test = DIGITS_PROBED
    bench = Bench((digits.train_labels[:n], digits.test_labels[:n_test]), CIFAR_KNOWN, setting.seed)
    models = {
        name: trained(form(name), digits.train, seconds, setting, f"digits {name}", DIGIT_LATENTS)
        for name in THESIS
    }
    probe_models(bench, models, (digits.train[:n], digits.test[:n_test]))
    train = padded(digits.train, 32)[0]
    images = train[:n], padded(digits.test[:n_test], 32)[0]
    for kind in GLOBAL_DIGITS:
        whole = global_vae.trained(kind, train, seconds, setting, f"digits {kind.name}")
        bench.add(kind.name, layer_features(whole, images, -1))
    return bench


def notes(strides: dict[str, int]) -> list[str]:
    used = ", ".join(f"{name}: {stride}" for name, stride in strides.items())
    return [
        f"Features: means of codes at every n-th position, at most {LIMIT} of a model; faces: {used}.",
        "ALL: the features of all six patch-VAEs joined. Accuracy of faces: mean over twelve attributes, "
        f"probes fitted to {FACES_PROBED[0]} faces and {DIGITS_PROBED[0]} digits.",
        "Features are centred and divided by one number, so that the thesis' rate of 0.01 is stable; "
        "momentum stands for more passes; training ends where a tenth held out gets no better.",
        "'random': the same features through a random matrix, as many as the model has beside which "
        "they stand: 9|1 beside VAE_32d, PIXEL beside 9|1.",
        "Patch-VAEs of toy faces are those of `patch-maps` where that study ran in a folder beside this one.",
    ]


STUDY = Study(
    about="linear probes of patch codes, global codes and pixels: attributes of toy faces, digits",
    source="patch-VAE thesis, sections 6 and 7, table 4, figures 8 to 12",
    budget="20m",
    run=run,
)
