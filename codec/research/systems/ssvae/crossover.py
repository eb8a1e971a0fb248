"""Studies `ssvae-32` (table 7.2) and `ssvae-64` (tables 7.5 and 7.6): does a VAE of several levels code
pictures in fewer bits than a plain one? The thesis says no at 32 x 32 and yes at 64 x 64."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from vbc.codec.research.parts.data_sets import Split, cifar, photographs
from vbc.codec.research.parts.frechet import own_distance, train_features
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.parts.priors import RealNVP
from vbc.codec.research.run import RESULT, Effect, Result, Row, Setting, Study, Table, load_result
from vbc.codec.research.systems.ssvae.comparison import (
    FULL_BUDGET_S,
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
from vbc.codec.research.systems.ssvae.model import Sizes, SsVae
from vbc.codec.research.systems.ssvae.modes import generate
from vbc.codec.research.systems.ssvae.representations import HALVED
from vbc.codec.research.systems.ssvae.vae import LATENT_SHAPE, Size

SHOWN = 8
PIXEL_MIXTURES_64 = 5
"""Components at 64 x 64, where ten would take half of a step's time."""
UNITS = {
    "nll": "bits per dimension, IW",
    "elbo": "bits per dimension",
    "RE": "nats per image, sum",
    "KL": "nats per image, sum",
    "RE_x": "nats per image",
    "frechet": "own features",
    "parameters": "",
    "seconds_1": "s",
    "seconds_20": "s",
    "steps": "",
    "iw_images": "images for nll",
}
MORE_UNITS = {name: "nats per image" for name in ("RE_y", "RE_y1", "RE_y2", "KL_u", "KL_z", "KL_z1", "KL_z2")}


def vae(side: int, more: Size, wide: bool = False, mixtures: int = 10) -> SsVae:
    """A VAE with RealNVP prior whose decoder is widened to the parameters of its rivals. wide: three times
    the latents."""
    channels, *sides = LATENT_SHAPE
    prior = RealNVP((3 * channels, sides[0], sides[1]), kernel=1) if wide else RealNVP(LATENT_SHAPE)
    sizes = Sizes(encode_u=Size(4, 3), decode_u=Size(16, 3), more_decoder=more)
    return SsVae(side, (), sizes, prior, mixtures)


def levels(side: int, k: int, mixtures: int = 10) -> SsVae:
    """The ssVAE with k halvings."""
    return SsVae(side, (HALVED,) * k, mixtures=mixtures)


def entrants_32(thesis_vae: dict[str, float], thesis_ssvae: dict[str, float], name: str) -> list[Entrant]:
    """A VAE and an ssVAE, their parameters within a tenth."""
    return [
        Entrant(f"{name}-vae", partial(vae, 32, Size(16, 10)), thesis_vae),
        Entrant(f"{name}-ssvae", partial(levels, 32, 1), thesis_ssvae),
    ]


SETS_32: dict[str, tuple[Callable[[Path], Split], list[Entrant]]] = {
    "cifar": (
        cifar,
        entrants_32(
            {"nll": 3.51, "RE": 5540, "RE_x": 5540, "KL": 1966},
            {"nll": 3.65, "RE": 6348, "RE_x": 5107, "RE_y": 1241, "KL_z": 619, "KL_u": 819, "KL": 1438},
            "cifar",
        ),
    ),
    "photographs": (
        partial(photographs, side=32),
        entrants_32(
            {"nll": 4.15, "RE": 7153, "RE_x": 7153, "KL": 1683},
            {"nll": 4.32, "RE": 7826, "RE_x": 6548, "RE_y": 1278, "KL_z": 596, "KL_u": 760, "KL": 1356},
            "photographs",
        ),
    ),
}
"""Sets of 32 x 32 pixels; the photographs stand for the thesis' ImageNet32."""
ENTRANTS_64 = [
    Entrant(
        "vae",
        partial(vae, 64, Size(32, 12), mixtures=PIXEL_MIXTURES_64),
        {"nll": 3.85, "RE": 30809, "KL": 1961},
    ),
    Entrant("vae-3072", partial(vae, 64, Size(32, 8), wide=True, mixtures=PIXEL_MIXTURES_64), quick=True),
    Entrant("2-level", partial(levels, 64, 1, PIXEL_MIXTURES_64), quick=True),
    Entrant("3-level", partial(levels, 64, 2, PIXEL_MIXTURES_64), {"nll": 3.70, "RE": 30394, "KL": 1171}),
]
"""Photographs stand for the thesis' Imagenette64 (table 7.6). "vae-3072" has the latents of "3-level" and its
parameters; the prior has 1x1 convolutions where the others' have 3x3."""


def compare(
    entrants: list[Entrant], data: Split, setting: Setting, batch: int, seconds: float, name: str
) -> tuple[dict[str, Measured], list[Table], list[str]]:
    """Train and measure; the models by name, a table of likelihoods and one of modes, the pictures."""
    trained = train_equally(entrants, data, setting, batch, seconds)
    steps = 300 if setting.budget_s >= FULL_BUDGET_S else 10
    net = train_features(data.train, setting, f"features-{name}", steps=steps)
    size = samples(setting.budget_s)
    test = data.test[: size.others]
    bicubic = enlarged_bicubic(HALVED.make(test))
    enlargement = alike(bicubic, test)
    measured: dict[str, Measured] = {}
    mode_rows = [Row("bicubic enlargement of y", {**enlargement, "values": HALVED.make(test)[0].numel()})]
    shown = {"originals": test[:SHOWN], "bicubic enlargement of y": bicubic[:SHOWN]}
    for entrant in entrants:
        model, n_steps = trained[entrant.name]
        one = measure(entrant, model, n_steps, data.test, setting)
        made = generate(model, size.generated, seeded(setting)).cpu()
        again = shown_again(model, test, setting)
        figures = {"frechet": own_distance(net, made, data.test)}
        figures |= {f"{key}_bicubic": value for key, value in enlargement.items()}
        for mode, pictures in again.items():
            quality = {**alike(pictures, test), "values": float(values_sent(model, mode))}
            mode_rows.append(Row(f"{entrant.name}: {mode}", quality))
            figures |= {f"{key}_{mode}": value for key, value in quality.items()}
            shown[f"{entrant.name}: {mode}"] = pictures[:SHOWN]
        shown[f"{entrant.name}: samples"] = made[:SHOWN]
        measured[entrant.name] = add_figures(one, figures)
    rows = [Row(e.name, measured[e.name].figures, e.thesis) for e in entrants]
    used = {key: unit for key, unit in MORE_UNITS.items() if any(key in row.figures for row in rows)}
    tables = [
        Table(f"{name}: likelihood", UNITS | used, rows),
        Table(f"{name}: pictures by mode", MODE_UNITS, mode_rows),
    ]
    return measured, tables, save_rows(Path(setting.out) / f"{name}.png", shown)


def values_sent(model: SsVae, mode: str) -> int:
    """Numbers that a mode keeps: values of y and latents (the thesis' count for compression)."""
    latents = model.base.prior.shape[0] * model.base.prior.shape[1] * model.base.prior.shape[2]
    if mode.startswith("RS"):
        return int(mode[2:]) * latents
    level = model.level(len(model.levels))
    y = level.y_channels * level.y_side**2
    return y + latents if mode == "CR" else y


def enlarged_bicubic(y: Tensor) -> Tensor:
    """Twice the size, bicubic: uint8."""
    big = F.interpolate(y.float(), scale_factor=2, mode="bicubic", align_corners=False)
    return big.round().clamp(0, 255).to(y.dtype)


def run_32(setting: Setting) -> Result:
    """Both sets; half the budget each."""
    tables, effects, pictures = [], [], []
    for name, (load, entrants) in SETS_32.items():
        seconds = TRAINING_SHARE * setting.budget_s / len(SETS_32)
        measured, more, shown = compare(entrants, load(setting.data), setting, 32, seconds, name)
        tables += more
        pictures += shown
        effects += effects_32(name, measured[f"{name}-vae"], measured[f"{name}-ssvae"])
    return Result(tables, effects, notes(setting), pictures)


def effects_32(name: str, vae: Measured, ssvae: Measured) -> list[Effect]:
    """The claims around table 7.2 and figure 7.2, in the figures of one set."""
    v, s = vae.figures, ssvae.figures
    difference = nll_difference(ssvae, vae, 3072)
    order = ("psnr_CR", "psnr_RS2", "vae", "psnr_RS1")
    levels = [v["psnr_RS1"] if key == "vae" else s[key] for key in order]
    said = ", ".join(f"{key.removeprefix('psnr_')} {x:.2f}" for key, x in zip(order, levels, strict=True))
    return [
        Effect(
            f"{name}: the ssVAE's nll is worse than the VAE's",
            difference.mean > 0 and difference.clear,
            f"ssVAE less VAE: {difference}",
        ),
        Effect(
            f"{name}: its RE_x is lower", s["RE_x"] < v["RE_x"], f"{s['RE_x']:.0f} and {v['RE_x']:.0f} nats"
        ),
        Effect(f"{name}: its KL sum is lower", s["KL"] < v["KL"], f"{s['KL']:.0f} and {v['KL']:.0f} nats"),
        Effect(f"{name}: z is used: KL_z is well above 0", s["KL_z"] > 10, f"KL_z {s['KL_z']:.1f} nats"),
        Effect(
            f"{name}: its samples are nearer to the data (Frechet distance, own features)",
            s["frechet"] < v["frechet"],
            f"{s['frechet']:.3f} and {v['frechet']:.3f}",
        ),
        Effect(
            f"{name}: super-resolution is at least as sharp as bicubic enlargement (energy of fine detail)",
            s["fine_detail_SR"] >= s["fine_detail_bicubic"],
            f"{s['fine_detail_SR']:.1f} and {s['fine_detail_bicubic']:.1f}, PSNR {s['psnr_SR']:.2f} and "
            f"{s['psnr_bicubic']:.2f} dB",
        ),
        Effect(f"{name}: PSNR CR > RS2 > VAE > RS1", levels == sorted(levels, reverse=True), f"{said} dB"),
    ]


def run_64(setting: Setting) -> Result:
    """Photographs at 64 x 64."""
    data = photographs(setting.data, 64)
    seconds = TRAINING_SHARE * setting.budget_s
    measured, tables, pictures = compare(ENTRANTS_64, data, setting, 16, seconds, "photographs-64")
    effects = [crossover(measured, setting), *effects_64(measured)]
    return Result(tables, effects, notes(setting), pictures)


def crossover(m: dict[str, Measured], setting: Setting) -> Effect:
    """The main finding, from this run and that of `ssvae-32` beside it (under its default name)."""
    claim = "The crossover: more levels lose to the VAE at 32 x 32 and win at 64 x 64"
    folder = setting.out.parent / f"ssvae-32-{setting.seed}"
    if not (folder / RESULT).exists():
        return Effect(claim, None, f"there is no finished run {folder.name} beside this one")
    rows = {row.model: row.figures for table in load_result(folder).result.tables for row in table.rows}
    small = rows["photographs-ssvae"]["nll"] - rows["photographs-vae"]["nll"]
    large = m["3-level"].figures["nll"] - m["vae"].figures["nll"]
    said = f"levels less VAE: {small:+.3f} bpd on photographs at 32 x 32, {large:+.3f} bpd at 64 x 64"
    return Effect(claim, small > 0 > large, said)


def effects_64(m: dict[str, Measured]) -> list[Effect]:
    """The claims around tables 7.5 and 7.6, and what the controls say of them."""
    vae, wide, two, three = (m[e.name] for e in ENTRANTS_64)
    v, t = vae.figures, three.figures
    differences = {other.name: nll_difference(three, other, 12288) for other in (vae, wide, two)}
    keys = ("psnr_RS1", "psnr_RS2", "psnr_RS3", "psnr_CR")
    psnr = [t[key] for key in keys]
    said = ", ".join(f"{key.removeprefix('psnr_')} {x:.2f}" for key, x in zip(keys, psnr, strict=True))
    claims = {
        "vae": "At 64 x 64 three levels overtake the VAE in nll",
        "vae-3072": "Three levels overtake a VAE of as many latents and parameters (ours)",
        "2-level": "Three levels overtake two (ours)",
    }
    return [
        *(
            Effect(
                claim,
                differences[name].mean < 0 and differences[name].clear,
                f"3-level less {name}: {differences[name]}",
            )
            for name, claim in claims.items()
        ),
        Effect("Three levels' RE sum is lower", t["RE"] < v["RE"], f"{t['RE']:.0f}, {v['RE']:.0f} nats"),
        Effect("Their KL sum is lower", t["KL"] < v["KL"], f"{t['KL']:.0f} and {v['KL']:.0f} nats"),
        Effect(
            "PSNR rises: RS1 < RS2 <= RS3 < CR",
            psnr[0] < psnr[1] <= psnr[2] < psnr[3],
            f"{said} dB",
        ),
        Effect(
            "The step from RS1 to RS2 is larger than that from RS2 to RS3",
            psnr[1] - psnr[0] > psnr[2] - psnr[1],
            f"{said} dB",
        ),
        Effect(
            "RS1 is about as good as the VAE's reconstruction, within 1 dB",
            abs(t["psnr_RS1"] - v["psnr_RS1"]) < 1,
            f"{t['psnr_RS1']:.2f} and {v['psnr_RS1']:.2f} dB",
        ),
        Effect(
            "Three levels are slower to sample",
            t["seconds_1"] > v["seconds_1"],
            f"{t['seconds_1']:.3f} and {v['seconds_1']:.3f} s an image",
        ),
    ]


def notes(setting: Setting) -> list[str]:
    """How it was measured."""
    size = samples(setting.budget_s)
    return [
        f"nll: {size.importance} importance samples for each of iw_images test images; RE, KL, PSNR: "
        f"{size.others} test images; Frechet distance: {size.generated} generated images on own features.",
        "Pictures are without pixel noise: the mean of each pixel's likeliest component.",
        "Models of a set took equally many steps on the same batches; parameters are equal to a tenth.",
    ]


STUDY_32 = Study("ssVAE of two levels beside a VAE at 32 x 32", "ssVAE thesis, table 7.2", "45m", run_32)
STUDY_64 = Study(
    "ssVAE of three levels beside VAEs at 64 x 64: the crossover",
    "ssVAE thesis, tables 7.5, 7.6",
    "45m",
    run_64,
)
