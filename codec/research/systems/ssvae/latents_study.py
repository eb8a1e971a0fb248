"""Study `ssvae-latents`: between two pictures, and what finer levels' codes change (figures 7.1, 7.9)."""

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.research.parts.data_sets import cifar, photographs
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.parts.priors import RealNVP
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.ssvae.comparison import TRAINING_SHARE, samples, seeded
from vbc.codec.research.systems.ssvae.crossover import ENTRANTS_64
from vbc.codec.research.systems.ssvae.earlier_runs import load_or_train
from vbc.codec.research.systems.ssvae.model import SsVae
from vbc.codec.research.systems.ssvae.modes import along, between, from_u, posterior_codes
from vbc.codec.research.systems.ssvae.prior_study import ENTRANTS as PRIOR_ENTRANTS

SHOWN = 8
PAIRS = 4
RESAMPLED = 8
"""Pictures that are drawn with one u."""
VAES = [entrant for entrant in PRIOR_ENTRANTS if entrant.name in ("normal", "realnvp")]
LADDER = [entrant for entrant in ENTRANTS_64 if entrant.name == "3-level"]


def run(setting: Setting) -> Result:
    """VAEs of `vae-priors`, the three levels of `ssvae-64`, or ones trained here."""
    seconds = TRAINING_SHARE * setting.budget_s / 2
    small = cifar(setting.data)
    vaes, said_vaes = load_or_train("vae-priors", VAES, small, setting, 32, seconds)
    large = photographs(setting.data, 64)
    ladder, said_ladder = load_or_train("ssvae-64", LADDER, large, setting, 16, seconds)
    model = ladder["3-level"]
    size = samples(setting.budget_s)
    test_32, test_64 = (t[: size.others].to(setting.device) for t in (small.test, large.test))
    shown = {}
    for i in range(0, 2 * PAIRS, 2):
        for name, vae in vaes.items():
            line = between(vae, test_32[i : i + 2], SHOWN, seeded(setting))
            shown[f"{name}: pair {i // 2 + 1}, along z"] = line.cpu()
        line = between_base(vaes["realnvp"], test_32[i : i + 2], SHOWN, seeded(setting))
        shown[f"realnvp: pair {i // 2 + 1}, along the flow's base"] = line.cpu()
    between_64 = {
        f"3-level: pair {i // 2 + 1}, along u": between(
            model, test_64[i : i + 2], SHOWN, seeded(setting)
        ).cpu()
        for i in range(0, 2 * PAIRS, 2)
    }
    again = {
        f"u of picture {i + 1} kept": torch.cat(
            (test_64[i : i + 1], resampled(model, test_64[i : i + 1], setting)[0])
        ).cpu()
        for i in range(PAIRS)
    }
    pictures = [
        *save_rows(setting.out / "between-32.png", shown),
        *save_rows(setting.out / "between-64.png", between_64),
        *save_rows(setting.out / "resampled.png", again),
    ]
    likeliness = {name: midpoints(vae, test_32) for name, vae in vaes.items()}
    likeliness["3-level"] = midpoints(model, test_64)
    units = {"ends": "nats, log p(u)", "middle": "nats, log p(u)", "as_likely": "share of pairs"}
    bands = changes(resampled(model, test_64[:16], setting), test_64)
    setting.emit(json.dumps({"changes": {k: round(v, 4) for k, v in bands.items()}}))
    tables = [
        Table("Midpoints between codes of test images", units, [Row(k, v) for k, v in likeliness.items()]),
        Table(
            "Change when z_1 and z_2 are drawn anew and u stays, as share of the data's variance",
            dict.fromkeys(bands, "share"),
            [Row("3-level", bands)],
        ),
    ]
    notes = [
        said_vaes,
        said_ladder,
        "Codes are posterior means; all else is drawn, pixels are without noise.",
    ]
    return Result(tables, effects(likeliness, bands), notes, pictures)


@torch.no_grad()
def between_base(model: SsVae, pair: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n pictures on the line between two in the base space of the flow: uint8 [n, 3, H, W]."""
    flow = model.base.prior
    assert isinstance(flow, RealNVP)
    ends, _ = flow.to_base(model.posteriors(model.views(pair))[0].mean)
    return from_u(model, flow.from_base(along(ends[0], ends[1], n)), generator)


@torch.no_grad()
def midpoints(model: SsVae, x: Tensor) -> dict[str, float]:
    """Mean log p(u) of posterior means and of the middles between two, and the share of pairs whose middle is
    no less likely than its ends on average."""
    u = torch.cat([model.posteriors(model.views(part))[0].mean for part in torch.split(x, 32)])
    first, last = u[0::2], u[1::2]
    n = min(len(first), len(last))
    prior = model.base.prior
    ends = (prior.log_prob(first[:n]) + prior.log_prob(last[:n])) / 2
    middle = prior.log_prob((first[:n] + last[:n]) / 2)
    return {
        "ends": float(ends.mean()),
        "middle": float(middle.mean()),
        "as_likely": float((middle >= ends).double().mean()),
    }


@torch.no_grad()
def resampled(model: SsVae, x: Tensor, setting: Setting) -> Tensor:
    """Pictures with the u* of x and all else drawn, several times: uint8 [N, RESAMPLED, 3, H, W]."""
    u = posterior_codes(model, x, seeded(setting))[0]
    made = [from_u(model, u, seeded(setting, 1 + i)) for i in range(RESAMPLED)]
    return torch.stack(made, 1)


def changes(drawn: Tensor, x: Tensor) -> dict[str, float]:
    """Variance over the draws as a share of the variance of x, in bands of detail: what 16 x 16 pixels show,
    what 32 x 32 show beyond it, and the rest.

    drawn: uint8 [N, draws, 3, 64, 64]. x: uint8 [M, 3, 64, 64].
    """
    n, draws = drawn.shape[:2]
    many, data = split_bands(drawn.flatten(0, 1)), split_bands(x)
    return {
        name: float(band.view(n, draws, -1).var(1).mean() / data[name].var(0).mean())
        for name, band in many.items()
    }


def split_bands(x: Tensor) -> dict[str, Tensor]:
    """Detail in three bands that add up to the picture: float64 [N, 3, 64, 64] each."""
    y = x.double()
    coarse, middle = (enlarge(F.avg_pool2d(y, s), s) for s in (4, 2))
    return {"up to 16x16": coarse, "16x16 to 32x32": middle - coarse, "32x32 to 64x64": y - middle}


def enlarge(x: Tensor, n: int) -> Tensor:
    """Every pixel n x n times."""
    return x.repeat_interleave(n, -1).repeat_interleave(n, -2)


def effects(likeliness: dict[str, dict[str, float]], bands: dict[str, float]) -> list[Effect]:
    """What the thesis says of interpolation and of figure 7.9."""
    shares = ", ".join(f"{name} {value:.4f}" for name, value in bands.items())
    values = list(bands.values())
    u = likeliness["3-level"]
    return [
        Effect(
            "With u fixed, drawing z_1 and z_2 anew hardly changes what 16 x 16 pixels show (below a tenth)",
            values[0] < 0.1,
            f"shares of the data's variance: {shares}",
        ),
        Effect("The change grows with the frequency", values == sorted(values), f"{shares}"),
        Effect(
            "Midpoints of u are no less likely under p(u) than the ends",
            u["middle"] >= u["ends"],
            f"middle {u['middle']:.0f}, ends {u['ends']:.0f} nats; {100 * u['as_likely']:.0f} % of pairs",
        ),
        Effect(
            "RealNVP interpolates best",
            None,
            "a matter of looking: between-32.png has both models and the flow's base space",
        ),
    ]


STUDY = Study(
    "ssVAE: interpolation, and resampling with u fixed", "ssVAE thesis, figures 7.1 and 7.9", "15m", run
)
