"""Study `tvae-dimension`: reconstruction against the numbers of the whole code (thesis, V.i, figure 5).

At the same totals, the upright samples of section V.ii, which the thesis shows for totals of 10, 20 and 30.
"""

import torch
from torch import Tensor

from vbc.codec.research.parts import pictures
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.transformer_vae.model import KINDS, DigitModel, Form
from vbc.codec.research.systems.transformer_vae.training import (
    TRAINING_SHARE,
    Case,
    digits,
    epochs,
    measure,
    sized,
    train_cases,
)
from vbc.codec.research.systems.transformer_vae.upright import (
    SHOWN,
    UNITS,
    Figures,
    judge,
    judged,
    to_bytes,
    upright_effects,
)

TOTALS = (10, 20, 25, 30, 40)
"""Of the thesis' 8, 10, 15, 20, 25, 30, 40 those that decide its claims."""
SATURATED = 25
"""Numbers of the code from which on the thesis sees no more gain of the VAE."""
TRAIN_DIGITS = 10_000
"""Training digits that are measured, against overfitting."""


def forms() -> dict[tuple[str, int], Form]:
    """The models, by kind and total: z has what the pose leaves."""
    found = {}
    for kind, make in KINDS.items():
        for total in TOTALS:
            z = total - make(1).pose.n
            if z > 0:
                found[kind, total] = make(z)
    return found


def run(setting: Setting) -> Result:
    """Train a model of each kind for each total; reconstructions, bounds, upright samples."""
    data = digits(setting, 10_000)
    cases = {key: Case(form) for key, form in forms().items()}
    trained, steps = train_cases(list(cases.values()), data.train, setting, TRAINING_SHARE * setting.budget_s)
    by = judge(data, setting)
    seen = data.train[: sized(setting, TRAIN_DIGITS)]
    figures, upright = {}, {}
    for key, case in cases.items():
        model = trained[case]
        test, train = (measure(model, x, setting) for x in (data.test, seen))
        samples, upright[key] = judged(model, data, by, setting)
        figures[key] = {
            "z": float(case.form.z),
            "reconstruction": test["RE"],
            "on training digits": train["RE"],
            "KL_z": test["KL_z"],
            "-ELBO": test["total"],
            **samples,
        }
    units = {
        "z": "numbers",
        "reconstruction": "nats",
        "on training digits": "nats",
        "KL_z": "nats",
        "-ELBO": "nats",
    }
    rows = [Row(f"{kind}, total {total}", figures[kind, total]) for kind, total in figures]
    of_digits = Row("test digits", by.figures(data.test))
    tables = [
        Table("Per test digit, by numbers of the whole code, z and pose", units, rows),
        Table("Upright samples, by numbers of the whole code", UNITS, [*rows, of_digits]),
    ]
    notes = [
        epochs(steps, data.train),
        "A pose of these models is a point and costs nothing, so -ELBO is no code length and favours them.",
        "Choices where the thesis is silent: batches of 100, one draw of z a digit, a trunk shared by z and "
        "pose, Glorot's first weights; the thesis' 170 passes over the digits at hand would be its number of "
        "updates. No model was trained again for a bad local minimum (`tvae-coadaptation` looks for them).",
    ]
    names = draw(figures, upright, {key: trained[case] for key, case in cases.items()}, data.test, setting)
    return Result(tables, effects(figures) + upright_effects(figures, (10, 20, 30)), notes, names)


def effects(figures: Figures) -> list[Effect]:
    """Claims of section V.i."""

    def nats(kind: str, total: int, key: str = "reconstruction") -> float:
        return figures[kind, total][key]

    first, last = TOTALS[0], TOTALS[-1]
    early = nats("VAE", first) - nats("VAE", SATURATED)
    late = nats("VAE", SATURATED) - nats("VAE", last)
    gap = {n: nats("VAE", n) - nats("VAE", n, "on training digits") for n in (SATURATED, last)}
    gains = {
        kind: {t: nats("VAE", t) - nats(kind, t) for t in TOTALS if (kind, t) in figures}
        for kind in KINDS
        if kind != "VAE"
    }
    means = {
        kind: sum(of[t] for t in gains["TPS-TVAE"]) / len(gains["TPS-TVAE"]) for kind, of in gains.items()
    }
    return [
        Effect(
            f"the VAE saturates near {SATURATED} numbers",
            early > 0 and late < 0.2 * early,
            f"it gains {early:.1f} nats from {first} to {SATURATED}, {late:.1f} from there to {last}",
        ),
        Effect(
            f"there is little overfitting beyond {SATURATED}",
            gap[last] < gap[SATURATED] + 1 and late > -1,
            f"test less training digits {gap[SATURATED]:.1f} nats at {SATURATED}, {gap[last]:.1f} at {last}",
        ),
        *(
            Effect(
                f"{kind} reconstructs better than the VAE at an equal total",
                all(gain > 0 for gain in gains[kind].values()),
                "nats gained over the VAE: " + ", ".join(f"{gain:+.1f} at {t}" for t, gain in of.items()),
            )
            for kind, of in gains.items()
        ),
        Effect(
            "significantly so TPS-TVAE and Aff-DTVAE: both gain more than Aff-TVAE",
            min(means["TPS-TVAE"], means["Aff-DTVAE"]) > max(0.0, means["Aff-TVAE"]),
            "mean nats gained where all are: " + ", ".join(f"{k} {mean:+.1f}" for k, mean in means.items()),
        ),
    ]


@torch.no_grad()
def draw(
    figures: Figures,
    upright: dict[tuple[str, int], Tensor],
    models: dict[tuple[str, int], DigitModel],
    test: Tensor,
    setting: Setting,
) -> list[str]:
    """Curves over the total, upright samples, and reconstructions with the templates they are made of."""
    curves = {
        kind: tuple(
            zip(*((t, f["reconstruction"]) for (k, t), f in figures.items() if k == kind), strict=True)
        )
        for kind in KINDS
    }
    names = pictures.save_curves(
        setting.out / "reconstruction.png",
        {kind: (list(xs), list(ys)) for kind, (xs, ys) in curves.items()},
        "numbers of z and pose",
        "reconstruction [nats / test digit]",
    )
    rows = {f"{kind}, total {t}": x for (kind, t), x in upright.items()}
    names += pictures.save_rows(setting.out / "upright.png", rows)
    shown = {
        "test digits": test[:SHOWN],
        **reconstructions({k: m for k, m in models.items() if k[1] == 30}, test, setting),
    }
    return names + pictures.save_rows(setting.out / "reconstructions-pictures.png", shown)


def reconstructions(
    models: dict[tuple[str, int], DigitModel], test: Tensor, setting: Setting
) -> dict[str, Tensor]:
    """Rows of pictures: what each model makes of the first test digits, upright and in their pose."""
    rows = {}
    x = test[:SHOWN].to(setting.device)
    for (kind, total), model in models.items():
        z, u = model.encode(x)
        template = model.template(z.mean)
        if model.form.pose.n:
            rows[f"{kind}, total {total}: upright"] = to_bytes(template)
        rows[f"{kind}, total {total}"] = to_bytes(model.place(template, u.mean))
    return rows


STUDY = Study(
    about="VAE, TVAE and DTVAE of digits: reconstruction against the code's dimension, upright samples",
    source="thesis on spatial transformers in VAEs, sections V.i and V.ii",
    budget="30m",
    run=run,
)
