"""Study `said`: boxes of Multi-MNIST scenes found by description length, and what they are good for (thesis,
section 6.3, tables 6.1 to 6.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import mnist
from vbc.codec.research.parts.pictures import save_curves, save_rows
from vbc.codec.research.parts.scenes import MOST_DIGITS, Scenes, digits_of, with_boxes
from vbc.codec.research.run import Result, Row, Setting, Study, Table
from vbc.codec.research.systems.said import sums
from vbc.codec.research.systems.said.bits import (
    LN2,
    Course,
    Ideal,
    Real,
    follow,
    honest_stops,
    split_bits,
    stops,
)
from vbc.codec.research.systems.said.boxes import Boxes
from vbc.codec.research.systems.said.claims import (
    BY_GRADIENT,
    course_effects,
    object_effects,
    real_effect,
    sum_effects,
)
from vbc.codec.research.systems.said.detection import count_error, mean_average_precision, recall
from vbc.codec.research.systems.said.model import Form, Said
from vbc.codec.research.systems.said.training import OPAQUE_SHARE, TRIES, VAE_SHARE, trained

N_TRAIN, N_TEST = 10_000, 500
N_SUMS, N_SUMS_TEST = 6000, 1500
GLIMPSES = 9
"""Of a test scene; in training there are five, the most digits of a scene."""
SHOWN, CANVASES = 10, 5
STEPS = (0.25, 0.5, 1.0)
"""Grids that means of latents are rounded to, for bits without bits-back."""
VARIANT_SHARE, SUM_SHARE = 0.17, 0.07
"""Parts of the budget for a variant and for a row of the sum task."""
VARIANTS = {
    "SAID": Form(1),
    "no alpha": Form(1, alpha=False),
    "no scope": Form(1, scope=False),
    "8x8-VAE base": Form(1, base="VAE"),
    BY_GRADIENT: Form(1, placing="gradient"),
}
THESIS = {
    "SPAIR": (0.501, 0.261),
    "SPACE": (0.310, 0.031),
    "SAID": (0.503, 0.810),
    "no alpha": (0.490, 0.731),
    "no scope": (0.341, 1.710),
    "8x8-VAE base": (0.452, 1.101),
}
OBJECT_UNITS = {
    "AP": "",
    "count error": "",
    "count error by code length": "",
    "count error, boxes paid": "",
    "objects in boxes": "%",
}
BIT_UNITS = {
    **dict.fromkeys(("base", "boxes", "latents", "residual", "total", "least total"), "bits"),
    "glimpses": "",
    "stop at or next to the least": "%",
}
COURSE_UNITS = {"gain": "bits", "latents": "bits", "box": "bits", "total": "bits", "used": "%"}


class Found(NamedTuple):
    """A variant, its bits on test scenes and the canvases of the first of them, [K + 1, N, C, 64, 64]."""

    model: Said
    course: Course
    canvases: Tensor


def run(setting: Setting) -> Result:
    """Train the variants, follow their glimpses, try the sum task."""
    digits = mnist(setting.data)
    train, test = digits_of(digits, N_TRAIN, N_TEST, setting.seed)
    found = {}
    for name, form in VARIANTS.items():
        seconds = VARIANT_SHARE * setting.budget_s
        model = trained(form, train.images, MOST_DIGITS, seconds, setting, name)
        found[name] = Found(model, *follow(model, test.images, GLIMPSES, Ideal(setting.seed)))
    objects = Table(
        "Boxes as objects (thesis, tables 6.1 and 6.3)",
        OBJECT_UNITS,
        [object_row(name, found.get(name), test) for name in (*THESIS, BY_GRADIENT)],
    )
    bits = [bit_row(name, one.course) for name, one in found.items()]
    for step in STEPS:
        course, _ = follow(found["SAID"].model, test.images, GLIMPSES, Real(step))
        bits.append(bit_row(f"SAID, real bits, grid of {step:g}", course))
    five = digits_of(digits, N_SUMS, N_SUMS_TEST, setting.seed + 1000, fewest=MOST_DIGITS)
    added = sum_rows(found["SAID"].model, *five, setting)
    tables = [
        objects,
        Table("Sums of five digits from the latents of five glimpses (thesis, table 6.2)", sums.UNITS, added),
        Table("Bits of a scene where description length says to stop", BIT_UNITS, bits),
        Table("SAID, glimpse by glimpse", COURSE_UNITS, course_rows(found["SAID"].course)),
    ]
    effects = [
        *object_effects({row.model: row.figures for row in objects.rows if row.model in VARIANTS}),
        *sum_effects({row.model: row.figures for row in added}),
        *course_effects(found["SAID"].course, "Multi-MNIST"),
        real_effect({row.model: row.figures for row in bits}),
    ]
    return Result(tables, effects, notes(), draw(found, test, setting))


def object_row(name: str, found: Found | None, test: Scenes) -> Row:
    """A line of tables 6.1 and 6.3; without a model the thesis' alone."""
    thesis = dict(zip(("AP", "count error"), THESIS[name], strict=True)) if name in THESIS else {}
    if found is None:
        return Row(name, {}, thesis)
    course = found.course
    scores = course.gains - course.latents - course.position
    by_square = stops(course.square[:, :-1] - course.square[:, 1:], course.latents * LN2)
    by_bits = stops(course.gains, course.latents)
    paid = honest_stops(course)
    figures = {
        "AP": mean_average_precision(course.edges, scores, test.boxes, test.counts),
        "count error": count_error(by_square, test.counts),
        "count error by code length": count_error(by_bits, test.counts),
        "count error, boxes paid": count_error(paid, test.counts),
        "objects in boxes": 100 * recall(course.edges, paid, test.boxes, test.counts),
    }
    return Row(name, figures, thesis)


def bit_row(name: str, course: Course) -> Row:
    """Bits at the stop, positions paid for, and the least total of any stop."""
    stop = honest_stops(course)
    near = (course.totals.argmin(1) - stop).abs() <= 1
    figures = {
        **split_bits(course, stop),
        "least total": float(course.totals.min(1).values.double().mean()),
        "glimpses": float(stop.double().mean()),
        "stop at or next to the least": 100 * float(near.double().mean()),
    }
    return Row(name, figures)


def course_rows(course: Course) -> list[Row]:
    """Means after each glimpse."""
    used = honest_stops(course)
    rows = [Row("none", {"total": float(course.totals[:, 0].mean()), "used": 100.0})]
    for t in range(course.gains.shape[1]):
        figures = {
            "gain": float(course.gains[:, t].mean()),
            "latents": float(course.latents[:, t].mean()),
            "box": float(course.position[:, t].mean()),
            "total": float(course.totals[:, t + 1].mean()),
            "used": 100 * float((used > t).double().mean()),
        }
        rows.append(Row(f"glimpse {t + 1}", figures))
    return rows


def sum_rows(model: Said, train: Scenes, test: Scenes, setting: Setting) -> list[Row]:
    """Table 6.2."""

    def true(scenes: Scenes) -> Tensor:
        return sums.shown(scenes, scenes.boxes)

    def found(scenes: Scenes) -> Tensor:
        return sums.glimpsed(model, scenes, setting.seed)

    seconds = SUM_SHARE * setting.budget_s
    ours = {
        name: sums.row(name, model.vae, boxed, train, test, seconds, setting)
        for name, boxed in (("true boxes", true), ("SAID", found))
    }
    others = {
        name: Row(name, {}, dict(zip(sums.COLUMNS, values, strict=True)))
        for name, values in sums.THESIS.items()
    }
    return [ours.get(name, others[name]) for name in sums.THESIS]


def draw(found: dict[str, Found], test: Scenes, setting: Setting) -> list[str]:
    """Boxes up to the stop on scenes, canvases of SAID step by step, and the bits over the glimpses."""
    rows = {}
    for name, one in found.items():
        stop = honest_stops(one.course)[:SHOWN]
        used = (torch.arange(GLIMPSES) < stop[:, None]).unsqueeze(2)
        rows[name] = with_boxes(test.images[:SHOWN], one.course.edges[:SHOWN] * used)
    names = save_rows(setting.out / "boxes-pictures.png", rows)
    canvases = found["SAID"].canvases[: CANVASES + 1, :SHOWN].mul(255).round().to(torch.uint8)
    steps = {f"after {t} glimpses": canvas for t, canvas in enumerate(canvases)}
    names += save_rows(setting.out / "canvases-pictures.png", {"scene": test.images[:SHOWN], **steps})
    curves = {
        name: (list(range(GLIMPSES + 1)), one.course.totals.mean(0).tolist()) for name, one in found.items()
    }
    return names + save_curves(setting.out / "bits.png", curves, "glimpses", "bits of a scene")


def notes() -> list[str]:
    whole = Boxes(torch.zeros(1, 2), torch.full((1, 2), 0.5))
    return [
        "Grey scenes of one channel: N = 64 * 64. Squared errors for the count error after table 6.1 are "
        "summed over three equal channels of 0..1, as the thesis has colour; a glimpse counts while its KL "
        "in nats is below what they fall by.",
        "The optimiser takes a step after each glimpse (a loss of the shared loop may be a generator, and "
        "each of its values takes a step); canvas and scope are constants for the next one.",
        "L_res trains the VAE too, through what it pastes; the likelihood of what a box shows trains the VAE "
        "alone.",
        f"The VAE of glimpses learns alone for {VAE_SHARE:.0%} of a variant's time, from random boxes about "
        f"errors, once for all variants. In the first {OPAQUE_SHARE:.0%} of the other steps boxes are "
        "opaque, and the VAE goes on with such random boxes; else alpha learns to hide boxes, and the VAE "
        "blanks.",
        f"The glimpse network is drawn to the best of {TRIES} boxes, its own and some about it, by "
        "L_res + L_kl + L_pos. With boxes about errors among them it aims between objects. "
        f"'{BY_GRADIENT}' follows the gradient of this sum, as the thesis does.",
        "The base costs 8 bits a value, or its VAE's KL. A box costs L_pos, "
        f"{float(whole.position_nats()) / LN2:.1f} bits for half the side in the middle.",
        "Real bits: edges of boxes at whole pixels, all boxes alike; a bit for each glimpse that there is "
        "one; means of latents on a grid under N(0, 1); the error as whole grey values under a Gaussian of "
        "sent deviation, whose mass beyond 0 and 255 counts for these: on black far below D_t.",
        "AP: boxes of all nine glimpses, scored by gain less cost.",
    ]


STUDY = Study(
    about="SAID: boxes in falling order of information, stopped by description length, and their use",
    source="LSR-GAN, BFVAE and SAID thesis, sections 6.2.3 to 6.4, tables 6.1 to 6.3",
    budget="40m",
    run=run,
)
