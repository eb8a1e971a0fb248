"""Study `tvae-coadaptation`: when decoder and pose adapt to each other badly (thesis, VI.ii, figure 12).

Bad minima: z unused, one blurry template bent by the pose; or a template that is a shrunken digit. Said to
help: poses that start at the identity, and informative priors. Good models draw templates thick, filling the
frame.
"""

import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vbc.codec.research.parts import pictures
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.transformer_vae.ink import ink
from vbc.codec.research.systems.transformer_vae.model import AFFINE, DigitModel, Form, ink_nats
from vbc.codec.research.systems.transformer_vae.poses import PoseForm
from vbc.codec.research.systems.transformer_vae.training import (
    TRAINING_SHARE,
    Case,
    digits,
    epochs,
    measure,
    train_cases,
)
from vbc.codec.research.systems.transformer_vae.upright import SHOWN, to_bytes

Z = 8
SEEDS = 5
FORMS = {
    "start at the identity": Form("TVAE-identity", Z, AFFINE),
    "random start": Form("TVAE-random", Z, AFFINE, from_identity=False),
    "random start, prior": Form("TVAE-prior", Z, PoseForm("affine", "learned"), from_identity=False),
}
UNUSED = 1.0
"""Nats of KL_z below which z says nothing."""
SHRUNKEN = 0.5
"""Ink of a template over that of the digit it is drawn for, below which it is shrunken."""
LOST = 0.9
"""Reconstruction over what the mean digit costs, above which a model has learned nothing but that."""
UNITS = {
    "KL_z": "nats",
    "reconstruction": "nats",
    "template": "ink of template / digit",
    "collapsed": "% of runs",
}


def run(setting: Setting) -> Result:
    """Train five of each; how much z says, how large templates are, how many collapsed."""
    data = digits(setting, 2000)
    cases = [Case(form, seed) for seed in range(SEEDS) for form in FORMS.values()]
    trained, steps = train_cases(cases, data.train, setting, TRAINING_SHARE * setting.budget_s)
    mean = data.train.double().mean(0).div(255).float().expand(len(data.test), -1, -1, -1)
    lost = LOST * float(ink_nats(data.test, mean).mean())
    found: dict[str, list[dict[str, float]]] = {}
    shown = {"test digits": data.test[:SHOWN]}
    for name, form in FORMS.items():
        for seed in range(SEEDS):
            model = trained[Case(form, seed)]
            template, drawn = templates(model, data.test.to(setting.device))
            nats = measure(model, data.test, setting)
            size = float((ink(template) / ink(drawn).clamp_min(1)).mean())
            found.setdefault(name, []).append(judged(nats["KL_z"], nats["RE"], size, lost))
            shown[f"{name}, seed {setting.seed + seed}: templates"] = to_bytes(template[:SHOWN])
    means = {
        name: {key: statistics.fmean(one[key] for one in runs) for key in UNITS}
        for name, runs in found.items()
    }
    each = [
        Row(f"{name}, seed {setting.seed + seed}", figures)
        for name, runs in found.items()
        for seed, figures in enumerate(runs)
    ]
    tables = [
        Table(f"Aff-TVAE {Z}: means over {SEEDS} seeds", UNITS, [Row(name, f) for name, f in means.items()]),
        Table("Each run", UNITS, each),
    ]
    notes = [
        epochs(steps, data.train),
        f"Collapsed: KL_z below {UNUSED:g} nat (z unused), templates of less than {SHRUNKEN:g} of the "
        f"digits' ink (shrunken), or a reconstruction above {lost:.0f} nats, {LOST:g} of what the mean digit "
        "costs.",
        "The random start gives the pose's head Glorot's first weights instead of zeros; the prior is (c) of "
        "`tvae-pose`, whose reconstruction also carries noise of the pose.",
    ]
    names = pictures.save_rows(setting.out / "templates-pictures.png", shown)
    return Result(tables, effects(found), notes, names)


@torch.no_grad()
def templates(model: DigitModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the means of a digit's codes, the template and what it becomes in its pose: [N, 1, 28, 28] each."""
    z, u = model.encode(x)
    template = model.template(z.mean)
    return template, model.place(template, u.mean)


def judged(kl_z: float, reconstruction: float, template: float, lost: float) -> dict[str, float]:
    """The figures of a run. lost: nats of reconstruction above which it has learned nothing."""
    bad = kl_z < UNUSED or template < SHRUNKEN or reconstruction > lost
    return {"KL_z": kl_z, "reconstruction": reconstruction, "template": template, "collapsed": 100.0 * bad}


def effects(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Effect]:
    """Claims of section VI.ii."""
    share = {name: statistics.fmean(one["collapsed"] for one in runs) for name, runs in found.items()}
    identity, start, prior = FORMS
    good = [one["template"] for runs in found.values() for one in runs if not one["collapsed"]]
    said = "collapsed: " + ", ".join(f"{name} {of:.0f} %" for name, of in share.items())
    used = "; ".join(
        f"{name}: KL_z " + ", ".join(f"{one['KL_z']:.1f}" for one in runs) for name, runs in found.items()
    )
    return [
        Effect("some runs end in bad minima", share[start] > 0, f"{said}; {used}"),
        Effect("a start at the identity helps", share[identity] < share[start], said),
        Effect("an informative prior of the pose helps", share[prior] < share[start], said),
        Effect(
            "good models draw templates thicker than the digits, filling the frame",
            bool(good) and statistics.fmean(good) > 1,
            "ink of template over digit in runs that did not collapse: "
            + (f"{min(good):.2f} to {max(good):.2f}" if good else "none"),
        ),
    ]


STUDY = Study(
    about="When decoder and pose of a TVAE adapt to each other badly, and what helps",
    source="thesis on spatial transformers in VAEs, section VI.ii",
    budget="15m",
    run=run,
)
