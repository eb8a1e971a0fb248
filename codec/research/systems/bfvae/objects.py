"""Study `bfvae-objects`: moving objects on flat grounds and on photographs.

Zeng's thesis, section 5.4.1, figures 5.6 to 5.9; drawn shapes stand for CLEVR, shapes on crops of photographs
for COCO. It shows pictures and no figures: ours measure swaps, extraction, leaks.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import photographs
from vbc.codec.research.parts.picture_vae import Form, prior_nats
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.parts.shapes import SHAPES, Drawing, Scenes, draw, recomposed
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.bfvae.measures import mean_psnr, rolled, separation, swapped, told, true_swap
from vbc.codec.research.systems.bfvae.model import PLAN, Bfvae, Kind, scene_batches, trained

FORM = Form(3, 32, 32, (16, 32, 64), hidden=256, residual=False)
MOVING = Drawing(reach=0.6, radius=(0.28, 0.42), most=2)
CENTRAL = replace(MOVING, reach=0.0, most=1)
PICTURES, TESTED, SHOWN = 10_000, 1000, 10
PROBE_TRAIN, PROBE_TEST = 1500, 1000
UNITS = {
    "reconstruction": "dB",
    "swap": "dB",
    "extraction": "dB",
    "object left": "%",
    "pure ground": "dB",
    "colour from z_b": "%",
    "shape from z_b": "%",
    "shape from z_f": "%",
    "KL z_b": "nats",
    "KL z_f": "nats",
}


@dataclass(frozen=True)
class Variant:
    """A model of the study. photographs: whether they are the grounds."""

    beta: float
    drawing: Drawing = MOVING
    photographs: bool = False

    @property
    def kind(self) -> Kind:
        return Kind(FORM, front=32, back=64, beta=self.beta)


VARIANTS = {
    "flat, beta 1": Variant(1.0),
    "flat, beta 5": Variant(5.0),
    "flat, beta 5, central": Variant(5.0, CENTRAL),
    "photographs, beta 1": Variant(1.0, photographs=True),
    "photographs, beta 5": Variant(5.0, photographs=True),
}


@dataclass(frozen=True)
class Grounds:
    """Photographs to paste on, uint8 [N, 3, 32, 32]."""

    train: Tensor
    test: Tensor

    def scenes(self, variant: Variant, n: int, seed: int, test: bool) -> Scenes:
        """Pictures of a variant; training and test photographs are different ones."""
        tiles = self.test if test else self.train
        return draw(variant.drawing, n, seed, tiles if variant.photographs else None)


@torch.no_grad()
def figures_of(model: Bfvae, variant: Variant, grounds: Grounds, seed: int) -> dict[str, float]:
    """The figures of UNITS on new pictures; labels are told of pictures with one object."""
    test = grounds.scenes(variant, TESTED, seed + 100, test=True)
    single = replace(variant, drawing=replace(variant.drawing, most=1))
    probe_train = grounds.scenes(single, PROBE_TRAIN, seed + 200, test=True)
    probe_test = grounds.scenes(single, PROBE_TEST, seed + 201, test=True)
    with torch.enable_grad():
        colour, shape = (told(model, probe_train, probe_test, label, seed) for label in ("colour", "shape"))
    pure = model.extract(test.backgrounds).cpu()
    return separation(model, test) | {
        "pure ground": mean_psnr(pure, test.backgrounds),
        "colour from z_b": colour["z_b test"],
        "shape from z_b": shape["z_b test"],
        "shape from z_f": shape["z_f test"],
        "KL z_b": prior_nats(model.encode_back(test.images)).mean().item(),
        "KL z_f": prior_nats(model.encode_front(test.foregrounds, test.masks)).mean().item(),
    }


def run(setting: Setting) -> Result:
    """All variants, as many steps each."""
    tiles = photographs(setting.data, 32)
    grounds = Grounds(torch.cat((tiles.train, tiles.valid)), tiles.test)
    seconds = 0.95 * setting.budget_s / len(VARIANTS)
    models, rows = {}, []
    for name, variant in VARIANTS.items():
        scenes = grounds.scenes(variant, PICTURES, setting.seed, test=False)
        batches = scene_batches(scenes, PLAN.batch, setting.seed)
        model = trained(variant.kind, batches, seconds, setting, name.replace(",", ""), timed_as="objects")
        models[name] = model
        rows.append(Row(name, figures_of(model, variant, grounds, setting.seed)))
    drawn = [name for key, model in models.items() for name in show(key, model, grounds, setting)]
    table = Table("Moving objects, on new pictures", UNITS, rows)
    return Result([table], claims({row.model: row.figures for row in rows}), notes(), drawn)


def show(name: str, model: Bfvae, grounds: Grounds, setting: Setting) -> list[str]:
    """Swaps, extracted grounds, and objects that are put in one by one."""
    variant = VARIANTS[name]
    scenes = grounds.scenes(variant, SHOWN, setting.seed + 300, test=True)
    others = rolled(scenes)
    rows = {
        "pictures": scenes.images,
        "reconstruction": swapped(model, scenes, scenes),
        "object of the left neighbour": swapped(model, scenes, others),
        "true": true_swap(scenes, others),
        "extracted ground": model.extract(scenes.images).cpu(),
        "true ground": scenes.backgrounds,
        **one_by_one(model, variant, scenes, setting.seed),
    }
    end = "-pictures" if variant.photographs else ""
    return save_rows(setting.out / f"{name.replace(', ', '-').replace(' ', '-')}{end}.png", rows)


def one_by_one(model: Bfvae, variant: Variant, scenes: Scenes, seed: int) -> dict[str, Tensor]:
    """The first picture's ground with one object more from picture to picture, composed and true."""
    single = draw(replace(variant.drawing, most=1), SHOWN // 2, seed + 400)
    f, mask = single.foregrounds.clone(), single.masks.clone()
    for n in range(1, len(f)):
        f[n] = recomposed(f[n], mask[n], f[n - 1])
        mask[n] |= mask[n - 1]
    ground = scenes.images[:1].expand(len(f), -1, -1, -1)
    z_b, z_f = model.encode_back(ground).mean, model.encode_front(f, mask).mean
    true = recomposed(f, mask, scenes.backgrounds[:1].expand_as(f))
    return {"one object more each": model.compose(z_b, z_f).cpu(), "true, one more each": true}


def claims(found: dict[str, dict[str, float]]) -> list[Effect]:
    """What section 5.4.1 claims of moving objects. found: figures by variant."""
    effects = []
    for grounds in ("flat", "photographs"):
        one, five = found[f"{grounds}, beta 1"], found[f"{grounds}, beta 5"]
        effects += [
            Effect(
                f"{grounds}: with beta 5 swaps are better than with 1.",
                five["swap"] > one["swap"],
                f"{five['swap']:.2f} and {one['swap']:.2f} dB",
            ),
            Effect(
                f"{grounds}: and reconstructions worse.",
                five["reconstruction"] < one["reconstruction"],
                f"{five['reconstruction']:.2f} and {one['reconstruction']:.2f} dB",
            ),
            Effect(
                f"{grounds}: an empty foreground extracts the ground without a mask (beta 5: less than half "
                "of the object's difference is left).",
                five["object left"] < 50,
                f"{five['object left']:.0f} % left, {five['extraction']:.1f} dB; beta 1: "
                f"{one['object left']:.0f} %, {one['extraction']:.1f} dB",
            ),
            Effect(
                f"{grounds}: z_b does not tell the object's shape (below 45 %, chance "
                f"{100 // len(SHAPES)} %), z_f does.",
                five["shape from z_b"] < 45 and five["shape from z_f"] > five["shape from z_b"] + 20,
                f"{five['shape from z_b']:.1f} and {five['shape from z_f']:.1f} %",
            ),
        ]
    moving, central = found["flat, beta 5"], found["flat, beta 5, central"]
    photographic = found["photographs, beta 5"]
    return [
        *effects,
        Effect(
            "Central objects leak more into z_b than moving ones.",
            central["colour from z_b"] > moving["colour from z_b"]
            and central["object left"] > moving["object left"],
            f"colour told by z_b: {central['colour from z_b']:.1f} and {moving['colour from z_b']:.1f} %; "
            f"left after extraction {central['object left']:.0f} and {moving['object left']:.0f} %",
        ),
        Effect(
            "Pure grounds, which training lacks, are reconstructed (above 20 dB on flat ones).",
            moving["pure ground"] > 20,
            f"{moving['pure ground']:.1f} dB, photographs {photographic['pure ground']:.1f} dB",
        ),
        Effect(
            "On photographs pictures are blurry: grounds are worse than flat ones.",
            photographic["pure ground"] < moving["pure ground"],
            f"{photographic['pure ground']:.1f} and {moving['pure ground']:.1f} dB",
        ),
    ]


def notes() -> list[str]:
    return [
        "32x32 pictures (thesis: 64x64), z_f 32, z_b 64 latents, 16-32-64 channels; Adam from 1e-3. One or "
        "two shapes a picture; swaps take the object of another picture, against the true recomposition.",
        "Object left: error of the extracted ground where the object was, 100 % where it is still in place. "
        "Probes: two-layer network from mean codes, pictures of one object.",
        "Grounds of photographs: tiles of 128 pixels made 32; those for testing are of other photographs.",
    ]


STUDY = Study(
    about="BFVAE on moving objects: swaps, extraction, leaks; flat grounds and photographs, beta 1 and 5",
    source="Zeng's thesis, sections 5.3 and 5.4.1, figures 5.6 to 5.9",
    budget="25m",
    run=run,
)
