"""Study `error-maps`: do the errors of a coarse picture mark objects, and does a network that looks at them
find objects (thesis, sections 6.2.1 and 6.2.2)?"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import mnist, photographs
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Loss, Plan, random_batch
from vbc.codec.research.parts.pictures import heat, save_curves, save_rows
from vbc.codec.research.parts.scenes import (
    Scenes,
    digits_of,
    on_photographs,
    solid_scenes,
    sprite_scenes,
    with_boxes,
)
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.said import glimpser, whole
from vbc.codec.research.systems.said.detection import recall
from vbc.codec.research.systems.said.glimpser import BATCH, MOST_STEPS, RATE, RATE_END, best_of, followed
from vbc.codec.research.systems.said.model import PatchVae, enlarged, shrunk
from vbc.codec.research.systems.said.training import vae_loss

N_TRAIN, N_TEST = 4000, 300
GLIMPSES, TRIES = 9, 64
N_GREEDY = 60
"""Scenes on which boxes are compared."""
MARKED = 0.15
"""An error above it, of 0..1, marks an object."""
WHOLE_LATENTS = 30
VAE_SHARE, GLIMPSER_SHARE = 0.06, 0.5
"""Parts of the budget for each VAE and for the glimpser."""
SHOWN = 8
SOLIDS = "solids"
PHOTOGRAPHS = "digits on photographs"
MAPS = {"8x8 and back": "8x8 picture", "8x8 VAE": "VAE of 8x8", "whole VAE": "VAE of the whole"}
MAP_UNITS = {
    "in objects": "grey values",
    "outside": "grey values",
    "in / outside": "",
    "marked in objects": "%",
    "marked outside": "%",
}
GLIMPSE_UNITS = {"glimpser": "grey values^2", "random": "grey values^2", "best of 64": "grey values^2"}
BOX_UNITS = {"off the middle": "pixels", "side": "pixels", "gain": "grey values^2"}


class Maps(NamedTuple):
    """Errors of three coarse pictures of test scenes, float [N, 64, 64] of 0..1, means over the channels."""

    plain: Tensor
    small_vae: Tensor
    whole_vae: Tensor


def run(setting: Setting) -> Result:
    """Maps on four sets of scenes, then the glimpser on solids."""
    sets = scenes_of(setting)
    rows, pictures, figures = [], list[str](), {}
    for name, (train, test) in sets.items():
        maps = error_maps(name, train, test, setting)
        for map_name, found in zip(MAPS, maps, strict=True):
            figures[name, map_name] = map_figures(found, test.masks)
            rows.append(Row(f"{name}: {map_name}", figures[name, map_name]))
        pictures += draw_maps(name, maps, test, setting)
    train, test = sets[SOLIDS]
    model = glimpser.trained(train.images, GLIMPSES, GLIMPSER_SHARE * setting.budget_s, setting, "glimpser")
    x = test.images[:N_GREEDY].to(setting.device).float() / 255
    choosers: dict[str, glimpser.Chooser] = {
        "glimpser": model.look,
        "random": best_of(1, setting.seed),
        "best of 64": best_of(TRIES, setting.seed),
    }
    errors, edges, canvases = {}, {}, {}
    for name, choose in choosers.items():
        errors[name], edges[name], canvases[name] = followed(x, GLIMPSES, choose)
    means = {name: of.mean(0) for name, of in errors.items()}
    steps = [
        Row(f"after {t}", {name: float(mean[t]) for name, mean in means.items()}) for t in range(GLIMPSES + 1)
    ]
    places = box_rows(edges["glimpser"], means["glimpser"])
    first = {
        name: recall(edges[name], torch.ones(len(x), dtype=torch.int64), *truth(test, len(x)))
        for name in choosers
    }
    tables = [
        Table("Errors in and outside of objects", MAP_UNITS, rows),
        Table("Mean squared error over the glimpses, solids", GLIMPSE_UNITS, steps),
        Table("Boxes of the glimpser, solids", BOX_UNITS, places),
    ]
    effects = [*map_effects(figures), *glimpse_effects(means, first, places)]
    pictures += draw_glimpses(test, edges, canvases["glimpser"], means, setting)
    return Result(tables, effects, notes(), pictures)


def scenes_of(setting: Setting) -> dict[str, tuple[Scenes, Scenes]]:
    """Scenes for training and testing by name of the set."""
    seed = setting.seed
    digits = digits_of(mnist(setting.data), N_TRAIN, N_TEST, seed)
    grounds = photographs(setting.data, 64)
    drawn: dict[str, Callable[[int, int], Scenes]] = {SOLIDS: solid_scenes, "sprites": sprite_scenes}
    return {
        **{name: (draw(N_TRAIN, 2 * seed), draw(N_TEST, 2 * seed + 1)) for name, draw in drawn.items()},
        "digits": digits,
        PHOTOGRAPHS: (
            on_photographs(digits[0], grounds.train, seed),
            on_photographs(digits[1], grounds.test, seed),
        ),
    }


def error_maps(name: str, train: Scenes, test: Scenes, setting: Setting) -> Maps:
    """The three maps of a set, whose VAEs are trained first."""
    seconds, channels = VAE_SHARE * setting.budget_s, train.images.shape[1]

    def loss_of(vae: PatchVae, plan: Plan) -> Loss:
        return lambda x, step: vae_loss(vae, shrunk(x.float() / 255), min(1.0, 5 * step / plan.steps))

    plan = Plan(MOST_STEPS, BATCH, RATE, RATE_END, warmup=50, seed=setting.seed, log_every=200)
    batches = random_batch(train.images, BATCH, setting.seed)
    small = fit(lambda: PatchVae(channels), loss_of, batches, plan, seconds, setting, f"8x8 {name}")
    large = whole.trained(WHOLE_LATENTS, train.images, seconds, setting, f"whole {name}")
    with torch.no_grad():
        parts = []
        for part in torch.split(test.images.to(setting.device).float() / 255, 100):
            coarse, side = shrunk(part), part.shape[-1]
            made = (
                enlarged(coarse, side),
                enlarged(small.decode(small.encode(coarse).mean)[0], side),
                large.decode(large.encode(part).mean),
            )
            parts.append([(part - of).abs().mean(1).cpu() for of in made])
    return Maps(*(torch.cat(maps) for maps in zip(*parts, strict=True)))


def map_figures(errors: Tensor, masks: Tensor) -> dict[str, float]:
    """Errors [N, 64, 64] in masks and outside."""
    inside, outside = errors[masks], errors[~masks]
    means = 255 * float(inside.mean()), 255 * float(outside.mean())
    marked = (100 * float((part > MARKED).double().mean()) for part in (inside, outside))
    return dict(zip(MAP_UNITS, (*means, means[0] / max(means[1], 1e-9), *marked), strict=True))


def truth(scenes: Scenes, n: int) -> tuple[Tensor, Tensor]:
    """Boxes and counts of the first scenes."""
    return scenes.boxes[:n], scenes.counts[:n]


def box_rows(edges: Tensor, errors: Tensor) -> list[Row]:
    """Where boxes [N, K, 4] lie, how large they are and what they gain. errors: means, [K + 1]."""
    middle = (edges[..., :2] + edges[..., 2:]) / 2 - 32
    far, side = middle.norm(dim=2).mean(0), (edges[..., 2:] - edges[..., :2]).mean((0, 2))
    gain = errors[:-1] - errors[1:]
    return [
        Row(f"glimpse {t + 1}", dict(zip(BOX_UNITS, map(float, of), strict=True)))
        for t, of in enumerate(zip(far, side, gain, strict=True))
    ]


def map_effects(figures: dict[tuple[str, str], dict[str, float]]) -> list[Effect]:
    """What section 6.2.1 says of the maps."""
    plain, small = (
        {name: of for (name, found), of in figures.items() if found == map_name}
        for map_name in ("8x8 and back", "8x8 VAE")
    )

    def listed(key: str, of: dict[str, dict[str, float]]) -> str:
        return ", ".join(f"{name} {figure[key]:.1f}" for name, figure in of.items())

    drawn = [name for name in plain if name != PHOTOGRAPHS]
    return [
        Effect(
            "The errors of the 8x8 picture mark objects.",
            all(plain[name]["in / outside"] > 3 for name in drawn),
            f"errors in objects over those outside: {listed('in / outside', plain)} (accepted: 3 on drawn "
            "grounds).",
        ),
        Effect(
            "A VAE of the 8x8 picture marks more of the ground.",
            all(small[name]["outside"] > plain[name]["outside"] for name in plain),
            f"mean errors outside, in grey values: plain {listed('outside', plain)}; "
            f"VAE {listed('outside', small)}.",
        ),
        Effect(
            "On natural grounds error maps mark objects poorly.",
            plain[PHOTOGRAPHS]["marked outside"] > 2 * max(plain[name]["marked outside"] for name in drawn),
            f"marked outside of objects: {listed('marked outside', plain)} % (accepted: twice as much as on "
            f"any drawn ground); in objects: {listed('marked in objects', plain)} %.",
        ),
    ]


def glimpse_effects(means: dict[str, Tensor], first: dict[str, float], places: list[Row]) -> list[Effect]:
    """What section 6.2.2 says of the glimpser."""
    far = [row.figures["off the middle"] for row in places]
    gain = [row.figures["gain"] for row in places]
    early, late = sum(far[1:3]) / len(far[1:3]), sum(far[-3:]) / len(far[-3:])
    ends = {name: float(mean[-1]) for name, mean in means.items()}
    start = float(means["glimpser"][0])
    ends_said = ", ".join(f"{name} {end:.0f}" for name, end in ends.items())
    return [
        Effect(
            "Glimpse 1 covers nearly all objects.",
            first["glimpser"] > 0.9,
            f"centres of objects inside it: {first['glimpser']:.0%} (random box: {first['random']:.0%}, best "
            f"of {TRIES}: {first['best of 64']:.0%}).",
        ),
        Effect(
            "Later glimpses are unreliable and drift to the middle.",
            late < early and max(gain[1:]) < gain[0],
            f"boxes lie {early:.1f} pixels off the middle in glimpses 2 and 3, {late:.1f} in the last three; "
            f"gains {', '.join(f'{g:.0f}' for g in gain)}.",
        ),
        Effect(
            "The glimpser lowers the error more than random boxes do (a comparison of ours).",
            ends["glimpser"] < ends["random"],
            f"squared error {start:.0f} before, after {GLIMPSES} boxes: {ends_said}.",
        ),
    ]


def draw_maps(name: str, maps: Maps, test: Scenes, setting: Setting) -> list[str]:
    """Scenes, masks and maps."""
    rows = {"scene": test.images[:SHOWN], "objects": 255 * test.masks[:SHOWN].unsqueeze(1).to(torch.uint8)}
    rows |= {title: heat(of[:SHOWN]) for title, of in zip(MAPS.values(), maps, strict=True)}
    return save_rows(setting.out / f"maps-{name.replace(' ', '-')}-pictures.png", rows)


def draw_glimpses(
    test: Scenes, edges: dict[str, Tensor], canvases: Tensor, means: dict[str, Tensor], setting: Setting
) -> list[str]:
    """Boxes on solids, canvases of the glimpser, and errors over the glimpses."""
    shown = test.images[:SHOWN]
    rows = {
        f"{name}: boxes from first (red) to last (blue)": with_boxes(shown, edges[name][:SHOWN])
        for name in edges
    }
    for t in sorted({0, 1, 3, GLIMPSES}):
        rows[f"canvas after {t}"] = (
            canvases[min(t, len(canvases) - 1), :SHOWN].mul(255).round().to(torch.uint8)
        )
    names = save_rows(setting.out / "glimpser.png", rows)
    curves = {name: (list(range(len(mean))), mean.tolist()) for name, mean in means.items()}
    return names + save_curves(
        setting.out / "error.png", curves, "glimpses", "mean squared error, grey values^2"
    )


def notes() -> list[str]:
    return [
        "Errors are means over the channels; the 8x8 picture is the mean of each 8 x 8 pixels in whole grey "
        f"values, enlarged bilinearly. An error above {MARKED:g} of 0..1 marks an object.",
        f"Both VAEs code at empirical variance, the one of 8x8 with ten latents, the one of the whole with "
        f"{WHOLE_LATENTS}; reconstructions are from means.",
        f"Glimpser: K = {GLIMPSES}, on solids; its four numbers have a deviation of {glimpser.DEVIATION:g} "
        "in training and none in the test. The first boxes are half as wide as the picture.",
        f"Best of {TRIES}: greedily, of random boxes with half sides of 1/8 to 1/2; on {N_GREEDY} scenes, as "
        "the glimpser and random boxes there.",
    ]


STUDY = Study(
    about="Do errors of a coarse picture mark objects? Maps, and a network that places boxes by them",
    source="LSR-GAN, BFVAE and SAID thesis, sections 6.2.1 and 6.2.2",
    budget="15m",
    run=run,
)
