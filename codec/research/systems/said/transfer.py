"""Study `said-transfer`: SAID trained on drawn solids, applied to other scenes as it is, and set against
other ways to choose boxes and against a VAE of whole pictures (thesis, section 6.4, figures 6.7 to 6.10)."""

from typing import NamedTuple

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import mnist
from vbc.codec.research.parts.pictures import save_curves, save_rows
from vbc.codec.research.parts.scenes import Scenes, digits_of, solid_scenes, sprite_scenes, with_boxes
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.said import whole
from vbc.codec.research.systems.said.bits import (
    LN2,
    Chooser,
    Course,
    Ideal,
    at_random,
    follow,
    greedy,
    honest_stops,
    on_grid,
    split_bits,
)
from vbc.codec.research.systems.said.claims import course_effects
from vbc.codec.research.systems.said.detection import count_error, recall
from vbc.codec.research.systems.said.model import LATENTS, Form, Said, latent_nats
from vbc.codec.research.systems.said.training import trained
from vbc.codec.research.systems.said.whole import WholeVae

N_TRAIN, N_TEST = 4000, 60
GLIMPSES = 10
"""In training and testing: the most solids of a scene."""
TRIES = 64
COLUMNS = 4
"""Of the regular grid, whose boxes are then 16 pixels wide; all are used, and none costs an address."""
SAID_SHARE, WHOLE_SHARE = 0.65, 0.15
"""Parts of the budget."""
SHOWN = 8
SOLIDS, SPRITES, DIGITS = "solids", "sprites", "digits"
METHODS = ("SAID", "greedy", "random", "grid")
UNITS = {
    **dict.fromkeys(("base", "boxes", "latents", "residual", "total", "least total"), "bits"),
    "glimpses": "",
    "count error": "",
    "objects in boxes": "%",
}


class Found(NamedTuple):
    """What a way to choose boxes comes to on test scenes: bits, the number of glimpses used, int64 [N], and
    canvases, [K + 1, N, C, 64, 64]."""

    course: Course
    stop: Tensor
    canvases: Tensor


def run(setting: Setting) -> Result:
    """Train on solids; measure on solids, sprites and digits."""
    train = solid_scenes(N_TRAIN, 2 * setting.seed)
    tests = {
        SOLIDS: solid_scenes(N_TEST, 2 * setting.seed + 1),
        SPRITES: sprite_scenes(N_TEST, setting.seed),
        DIGITS: digits_of(mnist(setting.data), 1, N_TEST, setting.seed)[1].in_colour(),
    }
    seconds = SAID_SHARE * setting.budget_s
    model = trained(Form(3), train.images, GLIMPSES, seconds, setting, "SAID")
    found = {name: measured(model, test, setting) for name, test in tests.items()}
    glimpses = max(1, round(float(found[SOLIDS]["SAID"].stop.double().mean())))
    latents, seconds = LATENTS * glimpses, WHOLE_SHARE * setting.budget_s
    one_code = whole.trained(latents, train.images, seconds, setting, f"whole {latents}")
    tables, effects = [], []
    for name, test in tests.items():
        rows = [row(method, found[name][method], test) for method in METHODS]
        rows.append(whole_row(f"VAE of the whole, {latents} latents", one_code, test.images, setting))
        tables.append(Table(f"Trained on solids, applied to {name}: bits of a scene", UNITS, rows))
        effects += total_effects(name, {row.model: row.figures for row in rows})
    course = found[SOLIDS]["SAID"].course
    effects += [*course_effects(course, SOLIDS), *count_effects({t.title: t.rows[0] for t in tables}, tests)]
    return Result(tables, effects, notes(), draw(found, tests, setting))


def measured(model: Said, test: Scenes, setting: Setting) -> dict[str, Found]:
    """All ways to choose boxes on one set; all stop by description length but the grid, which is whole."""
    seed = setting.seed
    choosers: dict[str, Chooser | None] = {
        "SAID": None,
        "greedy": greedy(model, TRIES, seed),
        "random": at_random(seed),
        "grid": on_grid(COLUMNS),
    }
    found = {}
    for name, choose in choosers.items():
        n = COLUMNS**2 if name == "grid" else GLIMPSES
        course, canvases = follow(model, test.images, n, Ideal(seed), choose)
        if name == "grid":
            course = course._replace(position=torch.zeros_like(course.position))
            stop = torch.full((len(test.images),), n)
        else:
            stop = honest_stops(course)
        found[name] = Found(course, stop, canvases)
    return found


def row(name: str, found: Found, test: Scenes) -> Row:
    """A line of the table of a set."""
    course, stop, _ = found
    figures = {
        **split_bits(course, stop),
        "least total": float(course.totals.min(1).values.double().mean()),
        "glimpses": float(stop.double().mean()),
        "count error": count_error(stop, test.counts),
        "objects in boxes": 100 * recall(course.edges, stop, test.boxes, test.counts),
    }
    return Row(name, figures)


@torch.no_grad()
def whole_row(name: str, model: WholeVae, images: Tensor, setting: Setting) -> Row:
    """Bits of one code for the whole picture."""
    coding = Ideal(setting.seed)
    x = images.to(setting.device).float() / 255
    code = model.encode(x)
    latents = float(latent_nats(code).double().mean()) / LN2
    residual = float(coding.residual(x, model.decode(coding.send(code)[0])).double().mean())
    total = latents + residual
    return Row(name, {"latents": latents, "residual": residual, "total": total, "least total": total})


def total_effects(data: str, figures: dict[str, dict[str, float]]) -> list[Effect]:
    """Totals of one set against each other."""
    totals = {name: row["total"] for name, row in figures.items()}
    said = ", ".join(f"{name} {total:.0f}" for name, total in totals.items())
    others = [name for name in totals if name not in ("SAID", "greedy")]
    return [
        Effect(
            f"{data}: glimpses that the network chooses take fewer bits than {' and than '.join(others)}.",
            all(totals["SAID"] < totals[name] for name in others),
            f"{said}.",
        ),
        Effect(
            f"{data}: they take no more bits than greedy search (a comparison of ours).",
            totals["SAID"] <= totals["greedy"],
            f"{totals['SAID']:.0f} and {totals['greedy']:.0f} bits, of which residual "
            f"{figures['SAID']['residual']:.0f} and {figures['greedy']['residual']:.0f}.",
        ),
    ]


def count_effects(rows: dict[str, Row], tests: dict[str, Scenes]) -> list[Effect]:
    """Where a model of solids stops on other scenes. rows: SAID's by title of the table."""
    said = {
        name: (row.figures["glimpses"], float(test.counts.double().mean()), row.figures["count error"])
        for (name, test), row in zip(tests.items(), rows.values(), strict=True)
    }
    why = "; ".join(
        f"{name}: {n:.1f} glimpses for {m:.1f} objects, off by {e:.2f}" for name, (n, m, e) in said.items()
    )
    sprites, digits = said[SPRITES], said[DIGITS]
    return [
        Effect(
            "Trained on solids it stops near the number of objects on sprites.", sprites[2] < 1.5, f"{why}."
        ),
        Effect("On digits it stops late.", digits[0] > digits[1] + 1, f"{why}."),
    ]


def draw(found: dict[str, dict[str, Found]], tests: dict[str, Scenes], setting: Setting) -> list[str]:
    """Boxes up to the stop, canvases at the stop, totals over the glimpses."""
    rows, names = {}, []
    for data, test in tests.items():
        for method in ("SAID", "greedy"):
            course, stop, canvases = found[data][method]
            used = (torch.arange(course.edges.shape[1]) < stop[:, None]).unsqueeze(2)
            edges = (course.edges * used)[:SHOWN]
            rows[f"{data}, {method}: boxes, first red"] = with_boxes(test.images[:SHOWN], edges)
            last = canvases[stop[:SHOWN], torch.arange(SHOWN)]
            rows[f"{data}, {method}: canvas"] = last.mul(255).round().to(torch.uint8)
    names += save_rows(setting.out / "boxes-pictures.png", rows)
    steps = found[SOLIDS]["SAID"].canvases[:, :SHOWN].mul(255).round().to(torch.uint8)
    names += save_rows(
        setting.out / "canvases.png", {f"after {t} glimpses": canvas for t, canvas in enumerate(steps)}
    )
    for data in tests:
        curves = {
            method: (list(range(len(totals))), totals)
            for method in METHODS
            for totals in [found[data][method].course.totals.mean(0).tolist()]
        }
        names += save_curves(setting.out / f"bits-{data}.png", curves, "glimpses", "bits of a scene")
    return names


def notes() -> list[str]:
    return [
        f"Scenes have three channels (digits three equal ones), so N = 12288. {N_TEST} scenes of each set.",
        f"Trained as in the study 'said', boxes by search, with {GLIMPSES} glimpses of a scene.",
        "Boxes, greedy or random, go through the same VAE and the same stop, boxes paid for by L_pos; random "
        f"ones have half sides of 1/8 to 1/2. Greedy: of {TRIES} random boxes the one of the least total.",
        f"Grid: {COLUMNS} x {COLUMNS} boxes in their order, all of them, which cost no position.",
        "VAE of the whole picture: ten latents for each glimpse that SAID uses on solids, trained on solids; "
        "without a base, as it codes the picture alone.",
        "Solids have noise of two grey values, which alone takes about 3.1 bits a value whatever codes it.",
    ]


STUDY = Study(
    about="SAID trained on drawn solids, on other scenes as it is, against other boxes and one code for all",
    source="LSR-GAN, BFVAE and SAID thesis, section 6.4, figures 6.7 to 6.10",
    budget="15m",
    run=run,
)
