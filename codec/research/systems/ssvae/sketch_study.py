"""Study `ssvae-sketch`: y is a pencil sketch or the gray picture, of full size (thesis table 7.5)."""

from functools import partial

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import photographs
from vbc.codec.research.parts.measures import psnr
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.ssvae.comparison import (
    MODE_UNITS,
    TRAINING_SHARE,
    Entrant,
    Measured,
    add_figures,
    alike,
    measure,
    nll_difference,
    samples,
    seeded,
    shown_again,
    train_equally,
)
from vbc.codec.research.systems.ssvae.crossover import UNITS, notes, vae
from vbc.codec.research.systems.ssvae.model import Sizes, SsVae
from vbc.codec.research.systems.ssvae.modes import complete, generate, posterior_codes
from vbc.codec.research.systems.ssvae.representations import GRAY, SKETCH, Representation
from vbc.codec.research.systems.ssvae.vae import Size

BATCH = 16
SHOWN = 8
MIXTURES = 5
FULL_SIZE = Sizes(encode_u=Size(4, 2), encode_z=Size(4, 2), prior_y=Size(2, 2))
"""y is as large as x, so three encoders work at 64 x 64."""
TO_LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""RGB to Y, Cb, Cr of BT.601."""
COLOUR_UNITS = {"luma_error": "share of its variance", "chroma_error": "share of its variance"}


def full_size(d: Representation) -> SsVae:
    """The ssVAE with one representation of the picture's own size."""
    return SsVae(64, (d,), FULL_SIZE, mixtures=MIXTURES)


ENTRANTS = [
    Entrant(
        "vae",
        partial(vae, 64, Size(32, 10), mixtures=MIXTURES),
        {"nll": 3.12, "RE": 24096, "KL": 2502},
        quick=True,
    ),
    Entrant("sketch", partial(full_size, SKETCH), {"nll": 3.24, "RE": 23797, "KL": 3816}, quick=True),
    Entrant("gray", partial(full_size, GRAY), quick=True),
]
"""The thesis' figures are of CelebA, which is not at hand; photographs stand for it."""


def run(setting: Setting) -> Result:
    """Train the three, measure them, and the errors of luma and chroma of every mode."""
    data = photographs(setting.data, 64)
    trained = train_equally(ENTRANTS, data, setting, BATCH, TRAINING_SHARE * setting.budget_s)
    size = samples(setting.budget_s)
    test = data.test[: size.others]
    shown: dict[str, Tensor] = {"originals": test[:SHOWN]}
    measured: dict[str, Measured] = {}
    mode_rows = []
    for entrant in ENTRANTS:
        model, steps = trained[entrant.name]
        figures: dict[str, float] = {}
        if model.levels:
            shown[f"{entrant.name}: y"] = model.views(test[:SHOWN])[0]
            y_again = rebuilt_view(model, test.to(setting.device), seeded(setting)).cpu()
            shown[f"{entrant.name}: y from u"] = y_again[:SHOWN]
            figures["psnr_y"] = float(psnr(y_again, model.views(test)[0]).clamp_max(99).mean())
        for mode, pictures in shown_again(model, test, setting).items():
            name = "CG" if mode == "SR" else mode
            quality = {**alike(pictures, test), **colour_errors(pictures, test)}
            mode_rows.append(Row(f"{entrant.name}: {name}", quality))
            figures |= {f"{key}_{name}": value for key, value in quality.items()}
            shown[f"{entrant.name}: {name}"] = pictures[:SHOWN]
        shown[f"{entrant.name}: samples"] = generate(model, SHOWN, seeded(setting)).cpu()
        one = measure(entrant, model, steps, data.test, setting)
        measured[entrant.name] = add_figures(one, figures)
    more = {"RE_y": "nats per image", "KL_u": "nats per image", "KL_z": "nats per image"}
    units = {key: unit for key, unit in UNITS.items() if key != "frechet"} | more | {"psnr_y": "dB, y from u"}
    rows = [Row(e.name, measured[e.name].figures, e.thesis) for e in ENTRANTS]
    mode_units = {key: unit for key, unit in MODE_UNITS.items() if key != "values"} | COLOUR_UNITS
    tables = [
        Table("Sketch and gray at 64 x 64: likelihood", units, rows),
        Table("Sketch and gray at 64 x 64: pictures by mode", mode_units, mode_rows),
    ]
    saved = save_rows(setting.out / "sketch.png", shown)
    return Result(tables, effects(measured), [*notes(setting), SKETCH_NOTE], saved)


SKETCH_NOTE = (
    "The sketch is luma divided by its dodged blur (sigma 2 pixels), 8 bits; the thesis' domain-transform "
    "filter is not used. Errors of luma and chroma are mean squares as shares of the test images' variance."
)


@torch.no_grad()
def rebuilt_view(model: SsVae, x: Tensor, generator: torch.Generator) -> Tensor:
    """y from u* alone: uint8 [N, C, H, W]."""
    parts = []
    for part in torch.split(x, 32):
        codes = posterior_codes(model, part, generator)
        k = len(codes)
        parts.append(complete(model, [None] * k, [codes[0], *codes[1:]], len(part), generator)[0][0])
    return torch.cat(parts)


def colour_errors(a: Tensor, x: Tensor) -> dict[str, float]:
    """Mean square errors of luma and of both chromas, as shares of the variance of x's."""
    matrix = torch.tensor(TO_LUMA_CHROMA, dtype=torch.float64)
    have, want = (torch.einsum("dc,nchw->dnhw", matrix, t.double()) for t in (a, x))
    error, variance = (have - want).square().mean((1, 2, 3)), want.var((1, 2, 3))
    return {
        "luma_error": float(error[0] / variance[0]),
        "chroma_error": float(error[1:].sum() / variance[1:].sum()),
    }


def effects(m: dict[str, Measured]) -> list[Effect]:
    """What the thesis says of the sketch (figures 7.4, 7.5, 7.7), and of colouring."""
    v, s, g = (m[name].figures for name in ("vae", "sketch", "gray"))
    difference = nll_difference(m["sketch"], m["vae"], 12288)
    removed = s["chroma_error_RS1"] - s["chroma_error_RS2"]
    return [
        Effect(
            "The sketch model's nll is worse than the VAE's",
            difference.mean > 0 and difference.clear,
            f"sketch less VAE: {difference}",
        ),
        Effect("Its RE is lower", s["RE"] < v["RE"], f"{s['RE']:.0f} and {v['RE']:.0f} nats"),
        Effect("Its KL is higher", s["KL"] > v["KL"], f"{s['KL']:.0f} and {v['KL']:.0f} nats"),
        Effect(
            "The sketch is rebuilt from u almost perfectly (30 dB)", s["psnr_y"] > 30, f"{s['psnr_y']:.2f} dB"
        ),
        Effect(
            "RS1 keeps shape, not colour: its share of chroma error is at least twice that of luma",
            s["chroma_error_RS1"] > 2 * s["luma_error_RS1"],
            f"{s['chroma_error_RS1']:.3f} of chroma's variance, {s['luma_error_RS1']:.3f} of luma's",
        ),
        Effect(
            "z* removes most of RS1's chroma error",
            removed > 0.5 * s["chroma_error_RS1"],
            f"{s['chroma_error_RS1']:.3f} in RS1, {s['chroma_error_RS2']:.3f} in RS2",
        ),
        Effect(
            "The true sketch helps little: PSNR of CG is within 1 dB of RS1",
            abs(s["psnr_CG"] - s["psnr_RS1"]) < 1,
            f"{s['psnr_CG']:.2f} and {s['psnr_RS1']:.2f} dB",
        ),
        Effect(
            "Colouring: the chroma error of CG, with drawn z, is above that of CR (ours)",
            g["chroma_error_CG"] > g["chroma_error_CR"],
            f"{g['chroma_error_CG']:.3f} and {g['chroma_error_CR']:.3f} of chroma's variance",
        ),
    ]


STUDY = Study("ssVAE whose y is a sketch or the gray picture", "ssVAE thesis, table 7.5", "30m", run)
