"""Study `photo-renderer`: sharp pictures imagined from the codec's levels 1 and 2, which contradict no bit.

Zeng's thesis, chapter 3 (equation 3.3), with the codec in place of the VAE: the renderer starts from what the
decoder shows, a discriminator that sees the same tells its pictures from photographs, and the latent
regulariser keeps the picture's coefficients at the coded latents. What still lies outside a latent's
quantisation cell is moved into it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from vbc.codec.lossy.eye_distance import eye_distance
from vbc.codec.lossy.features import ENHANCE_PLANES
from vbc.codec.lossy.latents import BLOCK, LEVEL_START
from vbc.codec.model import Model, load_model
from vbc.codec.research.parts.adversarial import Adversaries, contest, freeze
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.frechet import FeatureNet, own_distance, train_features
from vbc.codec.research.parts.loop import Batches, Loss, Plan, batch_indices
from vbc.codec.research.parts.measures import fine_detail, psnr, sharpness
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.photo_renderer.coded_tiles import (
    CodedTiles,
    code_tiles,
    steps_of,
    symbols_returned,
    to_pixels,
    to_planes,
    within_cells,
)
from vbc.codec.train.lossy_net import Chain, corrected
from vbc.codec.train.training_tiles import load_tiles

QUALITIES = (20, 80)
N_TILES = 1600
"""Of those for training; coding them takes a minute, outside of the budget."""
CROP = 64
WIDTH, HIDDEN = 64, 6
JUDGE_WIDTHS = (48, 96, 128)
SLOPE = 0.2
CHUNK = 16
PLAN = Plan(steps=100_000, batch=16, rate=6e-4, rate_end=1e-5, beta1=0.5, bf16=True)
FEATURE_SHARE, FEATURE_STEPS = 0.5, 1500
"""Steps of the network whose features measure: for each second of the budget, and at most."""
TRAINING_SHARE = 0.9
SHOWN = 8


@dataclass(frozen=True)
class Kind:
    """A way to train. latents: weight of the latent regulariser; eye: of the distance that the codec's lossy
    levels are trained by, in units of what the decoder's picture has; adversary: of the discriminator."""

    adversary: float
    latents: float
    eye: float


KINDS = {
    "no adversary": Kind(0.0, 1.0, 1.0),
    "terms of the thesis": Kind(1.0, 1.0, 0.0),
    "with the eye's distance": Kind(1.0, 1.0, 1.0),
}
"""The last one would be the product's."""
CHOSEN = "with the eye's distance"
UNITS = {
    "PSNR": "dB",
    "eye distance": "",
    "sharpness": "",
    "fine detail": "squared grey values",
    "Frechet": "own features",
    "symbols returned": "% of coded latents",
}


class PhotoRenderer(nn.Module):
    """What to add to the picture of level 1 or 2: the enhancement network's form, wider and deeper, so that
    it can be exported as integers like that one."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain(ENHANCE_PLANES, WIDTH, HIDDEN, 4 * 3, classes=2, head_kernel=3, zero=True)

    def forward(self, shown: Tensor, quality: Tensor, level: int) -> Tensor:
        """Opponent planes centred on zero, float [N, 3, S, S]. shown: those of the decoder. quality: [N]."""
        blocks = (side // BLOCK for side in shown.shape[-2:])
        q = quality.float().view(-1, 1, 1, 1).expand(-1, 1, *blocks)
        return corrected(self.chain, shown, q, level)


class Judge(nn.Sequential):
    """Log-odds that a picture is a photograph, place by place: of the picture and of what the decoder shows,
    RGB -1..1, float [N, 6, S, S]."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        n_in = 6
        for width in JUDGE_WIDTHS:
            layers += [spectral_norm(nn.Conv2d(n_in, width, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
            n_in = width
        super().__init__(*layers, spectral_norm(nn.Conv2d(n_in, 1, 3, 1, 1)))


Drawn = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of a batch: originals, what is shown, latents of the level (6 or 48), qualities."""


def render(generator: nn.Module, model: Model, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """The rendering of a batch as opponent planes, within the cells, and how far off it was before, in
    steps."""
    _, shown, latents, quality = drawn
    level = LEVEL_START.index(latents.shape[1])
    made = generator(to_planes(shown), quality, level)
    steps = steps_of(model, quality, latents.shape[1]).to(made.device)
    with torch.autocast(made.device.type, enabled=False):
        return within_cells(made, latents, steps)


def renderer_loss(pair: Adversaries, model: Model, kind: Kind) -> Loss:
    """What both networks minimise, each its own part.

    The discriminator as in equation 3.2. The generator: -ln D(G) - ln q(z | G) per latent, q normal about the
    coded latent with a deviation of a step; and the eye's distance over that of the decoder's picture.
    """

    def loss(drawn: Drawn, step: int) -> tuple[Tensor, dict[str, float]]:
        original, shown, _, _ = drawn
        planes, off = render(pair.generator, model, drawn)
        made = to_pixels(planes)
        about = off.square().mean() / 2
        value = kind.latents * about
        log = {"q": about.item(), "psnr": float(psnr(original, made.detach()).mean())}
        if kind.eye:
            real, seen = original.float(), shown.float()
            before = eye_distance(real, seen).mean()
            eye = eye_distance(real, made).mean() / before
            value, log["eye"] = value + kind.eye * eye, eye.item()
        if kind.adversary:
            pairs = (torch.cat((x.float(), shown.float()), 1) / 127.5 - 1 for x in (original, made))
            judge, maker, told = contest(pair.discriminator, *pairs)
            value = value + judge + kind.adversary * maker
            log |= told
        return value, log

    return loss


def crops(tiles: CodedTiles, plan: Plan) -> Batches:
    """Crops at whole blocks, level 1 and 2 by turns."""
    side = tiles.original.shape[-1]

    def batch(step: int) -> Drawn:
        rng = np.random.default_rng((plan.seed, step, 1))
        index = torch.from_numpy(batch_indices(len(tiles.original), plan.batch, plan.seed, step))
        level = 1 + step % 2
        y, x = (int(n) for n in rng.integers(0, (side - CROP) // BLOCK, 2, endpoint=True))
        rows, cols = slice(BLOCK * y, BLOCK * y + CROP), slice(BLOCK * x, BLOCK * x + CROP)
        blocks = slice(y, y + CROP // BLOCK), slice(x, x + CROP // BLOCK)
        latents = tiles.latents[index, : LEVEL_START[level]]
        return (
            tiles.original[index][..., rows, cols],
            tiles.shown[level][index][..., rows, cols],
            latents[..., blocks[0], blocks[1]],
            tiles.quality[index],
        )

    return batch


@torch.no_grad()
def rendered(generator: nn.Module, model: Model, tiles: CodedTiles, level: int) -> Tensor:
    """Renderings of whole tiles, uint8 RGB [N, 3, S, S]."""
    device = next(generator.parameters()).device
    out = []
    for index in torch.split(torch.arange(len(tiles.original)), CHUNK):
        latents = tiles.latents[index, : LEVEL_START[level]]
        parts = (tiles.original[index], tiles.shown[level][index], latents, tiles.quality[index])
        planes, _ = render(generator, model, tuple(part.to(device) for part in parts))  # type: ignore[arg-type]
        out.append(to_pixels(planes).round().to(torch.uint8).cpu())
    return torch.cat(out)


def measure(
    net: FeatureNet, model: Model, tiles: CodedTiles, level: int, pictures: Tensor
) -> dict[str, float]:
    """Figures of pictures that stand for a level."""
    x, latents = tiles.original, tiles.latents[:, : LEVEL_START[level]]
    parts = zip(torch.split(x, CHUNK), torch.split(pictures, CHUNK), strict=True)
    eye = torch.cat([eye_distance(a, b) for a, b in parts])
    return {
        "PSNR": float(psnr(x, pictures).mean()),
        "eye distance": float(eye.mean()),
        "sharpness": float(sharpness(pictures).mean()),
        "fine detail": float(fine_detail(pictures).mean()),
        "Frechet": own_distance(net, x, pictures),
        "symbols returned": symbols_returned(model, pictures, latents, tiles.quality),
    }


def run(setting: Setting) -> Result:
    """All renderers, measured on held-out tiles beside what the decoder shows."""
    model = load_model()
    train, held_out = (torch.from_numpy(load_tiles(setting.data / part)) for part in ("train", "valid"))
    picked = np.random.default_rng(2).permutation(len(train))[:N_TILES]
    tiles = code_tiles(model, train[torch.from_numpy(picked)], QUALITIES, 3)
    test = code_tiles(model, held_out, QUALITIES, 4)
    seconds = TRAINING_SHARE * setting.budget_s / len(KINDS)
    made = {name: trained(model, kind, tiles, seconds, setting, name) for name, kind in KINDS.items()}
    steps = max(1, min(FEATURE_STEPS, int(FEATURE_SHARE * setting.budget_s)))
    net = train_features(tiles.original, setting, steps=steps)
    pictures = {
        level: {"decoder": test.shown[level]} | {n: rendered(g, model, test, level) for n, g in made.items()}
        for level in (1, 2)
    }
    found = {
        level: {name: measure(net, model, test, level, x) for name, x in by_name.items()}
        for level, by_name in pictures.items()
    }
    truth = {
        "sharpness": float(sharpness(test.original).mean()),
        "fine detail": float(fine_detail(test.original).mean()),
    }
    tables = [
        Table(
            f"Level {level} of held-out tiles",
            UNITS,
            [Row("originals", truth), *(Row(name, figures) for name, figures in by_name.items())],
        )
        for level, by_name in found.items()
    ]
    rows = {"level 1": pictures[1]["decoder"], "level 1, rendered": pictures[1][CHOSEN]}
    rows |= {"level 2": pictures[2]["decoder"], "level 2, rendered": pictures[2][CHOSEN]}
    rows["original"] = test.original
    drawn = save_rows(setting.out / "photographs.png", {name: x[:SHOWN] for name, x in rows.items()})
    return Result(tables, claims(found), notes(), drawn)


def trained(
    model: Model, kind: Kind, tiles: CodedTiles, seconds: float, setting: Setting, name: str
) -> nn.Module:
    """A renderer trained for some seconds, in evaluation mode."""

    def loss_of(pair: Adversaries, plan: Plan) -> Loss:
        return renderer_loss(pair, model, kind)

    def make() -> Adversaries:
        return Adversaries(PhotoRenderer(), Judge())

    pair = fit(make, loss_of, crops(tiles, PLAN), PLAN, seconds, setting, name)
    return freeze(pair.generator)


def claims(found: dict[int, dict[str, dict[str, float]]]) -> list[Effect]:
    """What a renderer should do for a viewer."""
    effects = []
    for level, by_name in found.items():
        plain, made, blunt = by_name["decoder"], by_name[CHOSEN], by_name["no adversary"]
        gain = made["sharpness"] / plain["sharpness"]
        effects += [
            Effect(
                f"Level {level}: the rendering is sharper than the decoder's picture, by 1.4 or more.",
                gain >= 1.4,
                f"{made['sharpness']:.3f} against {plain['sharpness']:.3f}, {gain:.2f} times.",
            ),
            Effect(
                f"Level {level}: renderings are nearer to photographs, as sets (own features).",
                made["Frechet"] < plain["Frechet"],
                f"{made['Frechet']:.2f} against {plain['Frechet']:.2f}; without adversary "
                f"{blunt['Frechet']:.2f}.",
            ),
            Effect(
                f"Level {level}: to the eye's distance the rendering is nearer to its original.",
                made["eye distance"] < plain["eye distance"],
                f"{made['eye distance']:.1f} against {plain['eye distance']:.1f}; without adversary "
                f"{blunt['eye distance']:.1f}.",
            ),
            Effect(
                f"Level {level}: analysing the rendering returns as many coded symbols as analysing the "
                "decoder's picture.",
                made["symbols returned"] >= plain["symbols returned"],
                f"{made['symbols returned']:.1f} against {plain['symbols returned']:.1f} %.",
            ),
        ]
    return effects


def notes() -> list[str]:
    """How it was measured."""
    return [
        f"The shipped model for the eye, qualities {QUALITIES[0]} to {QUALITIES[1]}, the same everywhere in "
        "a tile of 128 pixels. All renderings are moved into the quantisation cells of the coded latents, as "
        "the DCT of the picture has them; the codec's own analysis corrects the DCT by a network, so not all "
        "symbols return.",
        "The discriminator sees what the decoder shows beside the picture. Frechet distances are on features "
        "of a network that tells turns and damage, comparable within this run alone.",
    ]


STUDY = Study(
    about="Sharp pictures imagined from the codec's levels 1 and 2, which contradict no coded latent",
    source="Zeng's thesis, chapter 3, equation 3.3, on the codec's own levels",
    budget="40m",
    run=run,
)
