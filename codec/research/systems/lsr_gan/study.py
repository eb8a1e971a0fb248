"""Studies `lsr-gan-mnist` and `lsr-gan-cifar`: renderers over lambda and beta beside the VAEs' decoders.

Zeng's thesis, tables 3.1 and 3.2, section 3.2.1, figures 3.1 to 3.12. Its figures are of CIFAR-10.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.picture_vae import PictureVae, codes_of, pictures_of
from vbc.codec.research.parts.pictures import save_curves, save_rows
from vbc.codec.research.run import Result, Row, Setting, Study, Table
from vbc.codec.research.systems.lsr_gan.bench import CELL, Bench
from vbc.codec.research.systems.lsr_gan.claims import claims
from vbc.codec.research.systems.lsr_gan.models import (
    COLOURS,
    CONTROL,
    DIGITS,
    LAMBDAS,
    Pictures,
    Point,
    Renderers,
    trained_renderer,
    trained_vae,
)

Figures = dict[str, float]

VAE_SHARE = 0.5
"""Budget of a VAE over that of a renderer."""
TRAINING_SHARE = 0.92
"""Of the budget; the rest is for the classifier and the measures."""
SHOWN, INVENTED = 12, 12

# Table 3.1 by beta: MSE of VAE and LSR, absolute accuracy of both, relative accuracy of both
BY_BETA: dict[float, tuple[float | None, ...]] = {
    0.01: (54.56, None, 44.08, None, 45.69, None),
    1.0: (55.9, 163.06, 42.56, 47.19, 43.75, 48.41),
    5.0: (84.64, 177.22, 28.17, 40.23, 28.34, 43.54),
    20.0: (150.40, 302.17, 17.70, 26.18, 16.90, 31.91),
}
# Table 3.2 by lambda at beta 1: MSE, variance, absolute, relative accuracy
BY_LAMBDA = {
    0.1: (231.34, 15.06, 45.2, 46.40),
    1.0: (163.06, 1.67, 47.19, 48.41),
    5.0: (104.15, 0.70, 47.21, 48.65),
    20.0: (84.69, 0.48, 48.72, 50.22),
}
BLANK = (None, None, None, None)
VAE_MSE = 55.9
"""At beta 1, in the thesis."""
# Section 3.2.1, of the VAE and of the renderer with lambda 1
LOOK = {
    "VAE": {"sharpness": 0.17, "Frechet, test z": 89.8, "Frechet, random z": 138.6},
    "LSR": {"sharpness": 0.28, "Frechet, test z": 35.9, "Frechet, random z": 36.4},
}
BETA_UNITS = {
    "MSE VAE": "",
    "MSE LSR": "",
    "ratio": "",
    "absolute VAE": "%",
    "absolute LSR": "%",
    "relative VAE": "%",
    "relative LSR": "%",
}
LAMBDA_UNITS = {"MSE": "", "ratio": "to the VAE's", "variance": "over z", "absolute": "%", "relative": "%"}
LOOK_UNITS = {
    "sharpness": "",
    "Frechet, test z": "own features",
    "Frechet, random z": "own features",
    "variety": "grey values to the nearest sample",
    "same symbol": "% of latents",
}


def run(kind: Renderers, setting: Setting) -> Result:
    """All VAEs and renderers of a kind."""
    data = kind.load(setting)
    unit = TRAINING_SHARE * setting.budget_s / (VAE_SHARE * len(kind.betas) + len(kind.points))
    bench = Bench(data, setting)
    vaes = {b: trained_vae(kind, b, data.train, VAE_SHARE * unit, setting) for b in kind.betas}
    made = {p: trained_renderer(kind, vaes[p.beta], p, data.train, unit, setting) for p in kind.points}
    decoded = {beta: bench.measure(vae, vae.decoder) for beta, vae in vaes.items()}
    rendered = {point: bench.measure(vaes[point.beta], network) for point, network in made.items()}
    truth = bench.of_test()
    tables = [
        Table(f"{kind.name}, lambda 1 (table 3.1)", BETA_UNITS, beta_rows(decoded, rendered)),
        Table(f"{kind.name}, beta 1 (table 3.2)", LAMBDA_UNITS, lambda_rows(decoded[1.0], rendered)),
        Table(
            f"{kind.name}, how pictures look (section 3.2.1)", LOOK_UNITS, look_rows(truth, decoded, rendered)
        ),
    ]
    effects = claims(kind.name, truth, decoded, rendered)
    drawn = show(data, vaes, made, setting) + curves(decoded, rendered, setting)
    return Result(tables, effects, notes(kind, truth), drawn)


def beta_rows(decoded: Mapping[float, Figures], rendered: Mapping[Point, Figures]) -> list[Row]:
    """Table 3.1: decoder and renderer of each beta, with the thesis' figures."""
    rows = []
    for beta, vae in decoded.items():
        lsr = rendered[Point(beta, 1.0)]
        pairs = [(key, part) for key in ("MSE", "absolute", "relative") for part in ("VAE", "LSR")]
        figures = {f"{key} {part}": (vae if part == "VAE" else lsr).get(key) for key, part in pairs}
        known = dict(zip((f"{key} {part}" for key, part in pairs), BY_BETA[beta], strict=True))
        rows.append(Row(f"beta {beta:g}", *(_with_ratio(found) for found in (figures, known))))
    return rows


def lambda_rows(vae: Figures, rendered: Mapping[Point, Figures]) -> list[Row]:
    """Table 3.2: the VAE of beta 1 and its renderers."""
    columns = {"MSE": "MSE", "variance": "spread", "absolute": "absolute", "relative": "relative"}
    rows = []
    for name, found, known in [
        ("VAE", vae, (VAE_MSE, None, BY_BETA[1.0][2], BY_BETA[1.0][4])),
        *((f"lambda {w:g}", rendered[Point(1.0, w)], BY_LAMBDA.get(w, ())) for w in LAMBDAS if w != CONTROL),
    ]:
        figures = {column: found[key] for column, key in columns.items() if key in found}
        thesis = {
            column: value for column, value in zip(columns, known or BLANK, strict=True) if value is not None
        }
        if thesis:
            thesis["ratio"] = thesis["MSE"] / VAE_MSE
        rows.append(Row(name, {**figures, "ratio": found["MSE"] / vae["MSE"]}, thesis))
    return rows


def look_rows(
    truth: Figures, decoded: Mapping[float, Figures], rendered: Mapping[Point, Figures]
) -> list[Row]:
    """Section 3.2.1 and ours: the test pictures, each decoder, each renderer."""
    found = {"test pictures": truth, **{f"VAE beta {beta:g}": f for beta, f in decoded.items()}}
    found |= {name_of(point): f for point, f in rendered.items()}
    known = {"VAE beta 1": LOOK["VAE"], name_of(Point(1.0, 1.0)): LOOK["LSR"]}
    return [
        Row(name, {key: f[key] for key in LOOK_UNITS if key in f}, known.get(name, {}))
        for name, f in found.items()
    ]


def name_of(point: Point) -> str:
    """A renderer in words."""
    return f"LSR beta {point.beta:g}, lambda {point.weight:g}{', new' * point.new}"


def _with_ratio(found: Mapping[str, float | None]) -> Figures:
    figures = {key: value for key, value in found.items() if value is not None}
    if "MSE LSR" in figures:
        figures["ratio"] = figures["MSE LSR"] / figures["MSE VAE"]
    return figures


def show(
    data: Pictures, vaes: Mapping[float, PictureVae], made: Mapping[Point, nn.Module], setting: Setting
) -> list[str]:
    """Test pictures with what decoders and renderers make of their codes; pictures of random codes."""
    x = data.test[:SHOWN].to(setting.device)
    codes = {beta: codes_of(vae.encoder, x).mean for beta, vae in vaes.items()}
    rows: dict[str, Tensor] = {"original": x}
    torch.manual_seed(setting.seed)
    random = torch.randn(INVENTED, vaes[1.0].form.latents).to(setting.device)
    invented = {}
    for beta, vae in vaes.items():
        rows[f"VAE beta {beta:g}"] = pictures_of(vae.decoder, codes[beta])
        invented[f"VAE beta {beta:g}"] = pictures_of(vae.decoder, random)
        for point, network in made.items():
            if point.beta == beta:
                invented[name_of(point)] = pictures_of(network, random)
                if point.weight != CONTROL:
                    rows[name_of(point)] = pictures_of(network, codes[beta])
    return save_rows(setting.out / "rendered-pictures.png", rows) + save_rows(
        setting.out / "random-codes.png", invented
    )


def curves(
    decoded: Mapping[float, Figures], rendered: Mapping[Point, Figures], setting: Setting
) -> list[str]:
    """MSE over beta and over lambda (figures 3.7, 3.9)."""
    betas = list(decoded)
    weights = [weight for weight in LAMBDAS if weight != CONTROL]
    over_beta = {
        "VAE": (betas, [decoded[beta]["MSE"] for beta in betas]),
        "LSR, lambda 1": (betas, [rendered[Point(beta, 1.0)]["MSE"] for beta in betas]),
    }
    over_lambda = {
        "LSR, beta 1": (weights, [rendered[Point(1.0, weight)]["MSE"] for weight in weights]),
        "VAE, beta 1": (weights, [decoded[1.0]["MSE"]] * len(weights)),
    }
    out = setting.out
    return save_curves(out / "over-beta.png", over_beta, "beta", "MSE", log_x=True) + save_curves(
        out / "over-lambda.png", over_lambda, "lambda", "MSE", log_x=True
    )


def notes(kind: Renderers, truth: Figures) -> list[str]:
    widths = "-".join(map(str, kind.form.widths))
    if "absolute" in truth:
        classes = f"Classifier: {truth['absolute']:.1f} % right on test digits (thesis: 84 % on CIFAR)."
    else:
        classes = (
            "No classes are at hand: those of k-means (10) on features of a net that tells turns and damage."
        )
    return [
        f"Pictures of 32 pixels, {kind.form.latents} latents, {widths} channels, residual blocks; few of the "
        "thesis' points, those that decide its claims. MSE and variance: pictures 0..1, summed over values.",
        f"{classes} Frechet distances are on features of this network, comparable within this run alone.",
        "Variety: distance of a picture of a random code to the most alike other one; test pictures have "
        f"{truth['variety']:.1f}.",
        f"Same symbol: codes rounded to steps of {CELL:g}; share of latents that encoding returns.",
        "Renderers start from the VAE's decoder behind dense layers that change nothing at first; the new "
        "one starts as a DCGAN does. Lambda 0, the adversary alone, is ours. Both networks step at once.",
        "The discriminator has spectral norm, not batch norm as the thesis' DCGAN: with that it won outright "
        "within a few hundred steps, and pictures became noise that satisfied the encoder (tried on digits).",
    ]


STUDY_MNIST = Study(
    about="LSR-GAN on digits: a renderer of a VAE's codes, over lambda and beta",
    source="Zeng's thesis, chapter 3, tables 3.1 and 3.2",
    budget="30m",
    run=partial(run, DIGITS),
)
STUDY_CIFAR = Study(
    about="LSR-GAN on small colour pictures: a renderer of a VAE's codes, over lambda and beta",
    source="Zeng's thesis, chapter 3, tables 3.1 and 3.2",
    budget="30m",
    run=partial(run, COLOURS),
)
