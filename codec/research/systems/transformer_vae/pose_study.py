"""Study `tvae-pose`: priors over the pose (thesis, section V.iii, figures 10, 11), on digits of two values.

(a) a point, which costs nothing; (b) six degrees of freedom around the identity; (c) around a learned pose;
(d) five: angle, scales, shift; (e) all mixed from fewer independent numbers; (f) thin plates around a learned
pose, which the thesis announces and never does.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vbc.codec.research.parts import pictures
from vbc.codec.research.parts.code_metrics import covariance_of, kl_of_gaussian
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.transformers import Affine
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.transformer_vae.ink import angle_deviation, at_border, axis_angle
from vbc.codec.research.systems.transformer_vae.model import DigitModel, Form, vae
from vbc.codec.research.systems.transformer_vae.poses import PoseForm
from vbc.codec.research.systems.transformer_vae.training import (
    TRAINING_SHARE,
    Case,
    bits,
    digits,
    epochs,
    measure,
    seeded,
    sized,
    train_cases,
)
from vbc.codec.research.systems.transformer_vae.upright import SHOWN, to_bytes

Z = 8
PRIORS: dict[str, PoseForm] = {
    "a": PoseForm("affine", "flat"),
    "b": PoseForm("affine", "upright"),
    "c": PoseForm("affine", "learned"),
    "d": PoseForm("turn", "learned"),
    "e2": PoseForm("affine", "full", 2),
    "e4": PoseForm("affine", "full", 4),
    "e6": PoseForm("affine", "full", 6),
    "plate e4": PoseForm("thin-plate", "full", 4),
    "plate e8": PoseForm("thin-plate", "full", 8),
    "plate e18": PoseForm("thin-plate", "full", 18),
    "f": PoseForm("thin-plate", "learned"),
}
NAMES = {
    "VAE": f"VAE, {Z} numbers",
    "VAE+": f"VAE, {Z + Affine.n} numbers",
    "a": "(a) affine, a point",
    "b": "(b) affine around the identity",
    "c": "(c) affine around a learned pose",
    "d": "(d) angle, scales, shift",
    "e2": "(e) affine from 2 numbers",
    "e4": "(e) affine from 4 numbers",
    "e6": "(e) affine from 6 numbers",
    "plate e4": "(e) thin plate from 4 numbers",
    "plate e8": "(e) thin plate from 8 numbers",
    "plate e18": "(e) thin plate from 18 numbers",
    "f": "(f) thin plate around a learned pose",
}
AFFINE = ("b", "c", "d", "e2", "e4", "e6")
MIXED, MIXED_PLATES = ("e2", "e4", "e6"), ("plate e4", "plate e8", "plate e18")
CORRELATED = 0.2
"""From here on cells are not independent."""
SAMPLES = 2000
ONE = 1
"""The digit whose slant says whether poses are taken out of templates: it has no other part."""

RATE_UNITS = {
    "RE": "bits",
    "KL_z": "bits",
    "KL_u": "bits",
    "-ELBO": "bits",
    "mismatch": "nats",
    "prior sd": "half sides",
    "posterior sd": "half sides",
    "correlation": "of cells, largest",
}
LOOK_UNITS = {"slant": "degrees, sd", "at border": "% of samples", "slant of ones upright": "degrees, sd"}


def forms() -> dict[str, Form]:
    """The models by short name."""
    return {
        "VAE": vae(Z),
        "VAE+": vae(Z + Affine.n),
        **{name: Form(f"TVAE-{name}", Z, pose) for name, pose in PRIORS.items()},
    }


def run(setting: Setting) -> Result:
    """Train a model for each prior; code length, fit of the prior, what samples look like."""
    data = digits(setting, 10_000, binary=True)
    cases = {name: Case(form) for name, form in forms().items()}
    trained, steps = train_cases(list(cases.values()), data.train, setting, TRAINING_SHARE * setting.budget_s)
    models = {name: trained[case] for name, case in cases.items()}
    test, ones = data.test.to(setting.device), data.test_labels == ONE
    figures: dict[str, dict[str, float]] = {}
    rows: dict[str, Tensor] = {}
    for name, model in models.items():
        drawn = samples(model, test, setting)
        figures[name] = {
            **rate(model, test, setting),
            **fit_of_prior(model, test, setting),
            **looks(drawn["moved"]),
            "slant of ones upright": slant_upright(model, test[ones.to(test.device)]),
        }
        for what in ("upright", "moved") if model.form.pose.n else ("moved",):
            rows[f"{NAMES[name]}: {what}"] = to_bytes(drawn[what][:SHOWN])
    real = data.test.float() / 255
    of_digits = {**looks(real), "slant of ones upright": angle_deviation(axis_angle(real[ones]))}
    tables = [
        Table(
            "Bits per test digit, and how the prior of the pose fits",
            RATE_UNITS,
            [Row(NAMES[name], known(figures[name], RATE_UNITS)) for name in figures],
        ),
        Table(
            "Samples with poses from the prior",
            LOOK_UNITS,
            [
                *(Row(NAMES[name], known(figures[name], LOOK_UNITS)) for name in figures),
                Row("test digits", of_digits),
            ],
        ),
    ]
    notes = [
        epochs(steps, data.train),
        f"Digits are cut at half grey to two values, so that -ELBO is a code length; z has {Z} numbers. A "
        "point has no rate: (a) has no -ELBO, and its samples are posed by the Gaussian of the test digits' "
        "poses.",
        "Mismatch: KL of the Gaussian fitted to q(u) over test digits from the prior. Deviations: root mean "
        "square over the cells of a matrix less the identity, or of control points' offsets. Slant: of the "
        "principal axis, directions that repeat after half a turn.",
    ]
    return Result(
        tables, effects(figures, of_digits), notes, pictures.save_rows(setting.out / "samples.png", rows)
    )


def known(figures: dict[str, float], units: dict[str, str]) -> dict[str, float]:
    """The figures of a table that a model has."""
    return {key: figures[key] for key in units if key in figures}


def rate(model: DigitModel, test: Tensor, setting: Setting) -> dict[str, float]:
    """Bits per digit; no total where a pose costs nothing."""
    nats = measure(model, test, setting)
    total = (
        {}
        if model.pose.flat and model.form.pose.n
        else {"KL_u": bits(nats["KL_u"]), "-ELBO": bits(nats["total"])}
    )
    return {"RE": bits(nats["RE"]), "KL_z": bits(nats["KL_z"]), **total}


@torch.no_grad()
def poses(model: DigitModel, test: Tensor) -> Gaussian:
    """q(u|x) of pictures."""
    parts = [model.encode(part)[1] for part in torch.split(test, 500)]
    return Gaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def fit_of_prior(model: DigitModel, test: Tensor, setting: Setting) -> dict[str, float]:
    """How the poses of pictures compare with their prior; nothing for a VAE."""
    if not model.form.pose.n:
        return {}
    q = poses(model, test)
    cells = model.pose.cells(q.sample(seeded(setting)))
    apart = torch.corrcoef(cells.T).fill_diagonal_(0).nan_to_num()
    found = {"posterior sd": spread(cells), "correlation": float(apart.abs().max())}
    if model.pose.flat:
        return found
    prior = model.pose.prior()
    tau = torch.exp(0.5 * prior.log_var)
    mean = (q.mean - prior.mean) / tau
    covariance = covariance_of(mean) + torch.diag((q.log_var - prior.log_var).exp().mean(0))
    if model.form.pose == PRIORS["c"]:
        found |= {"tau horizontal": float(tau[0, 1]), "tau vertical": float(tau[0, 3])}
    drawn = model.pose.cells(prior_poses(model, len(test), test, setting))
    return {
        **found,
        "mismatch": kl_of_gaussian(mean.mean(0).double(), covariance.double()),
        "prior sd": spread(drawn),
    }


def spread(cells: Tensor) -> float:
    """Root mean square over cells of their deviation."""
    return math.sqrt(float(cells.double().var(0).mean()))


@torch.no_grad()
def prior_poses(model: DigitModel, n: int, test: Tensor, setting: Setting) -> Tensor:
    """Poses from their prior, or where that is flat from the Gaussian of pictures' poses: float [n, n_u]."""
    generator, q = seeded(setting), poses(model, test)
    if not model.form.pose.n:
        return q.mean.new_zeros(n, 0)
    if not model.pose.flat:
        return Gaussian(*(part.expand(n, -1) for part in model.pose.prior())).sample(generator)
    noise = Gaussian(*(q.mean.new_zeros(n, model.form.pose.n) for _ in range(2))).sample(generator)
    ridge = 1e-6 * torch.eye(model.form.pose.n, device=noise.device)
    drawn: Tensor = q.mean.mean(0) + noise @ torch.linalg.cholesky(covariance_of(q.mean) + ridge).T
    return drawn


@torch.no_grad()
def samples(model: DigitModel, test: Tensor, setting: Setting) -> dict[str, Tensor]:
    """Digits from the prior, "upright" and "moved" to poses from theirs: float [samples, 1, 28, 28]."""
    n = sized(setting, SAMPLES)
    upright = model.upright_samples(n, seeded(setting))
    return {"upright": upright, "moved": model.place(upright, prior_poses(model, n, test, setting))}


def looks(x: Tensor) -> dict[str, float]:
    """Slant and ink at the border of pictures."""
    return {"slant": angle_deviation(axis_angle(x)), "at border": 100 * at_border(x)}


@torch.no_grad()
def slant_upright(model: DigitModel, ones: Tensor) -> float:
    """How much the slant varies among the templates of ones, degrees."""
    return angle_deviation(axis_angle(model.template(model.encode(ones)[0].mean)))


def effects(figures: Mapping[str, Mapping[str, float]], of_digits: Mapping[str, float]) -> list[Effect]:
    """Claims of section V.iii; what each prior is good for."""

    def of(key: str, *names: str) -> list[float]:
        return [figures[name][key] for name in names]

    def said(key: str, *names: str) -> str:
        return ", ".join(f"({name}) {figures[name][key]:.3g}" for name in names)

    (b,), others = of("-ELBO", "b"), of("-ELBO", *AFFINE[1:])
    wide = of("prior sd", *AFFINE)
    c = figures["c"]
    slant = figures["d"]["slant"], c["slant"]
    upright = figures["d"]["slant of ones upright"], of_digits["slant of ones upright"]
    best = min(AFFINE, key=lambda name: figures[name]["-ELBO"])
    border = of("at border", *MIXED), of("at border", *MIXED_PLATES)
    return [
        Effect(
            "the cells of affine poses are not independent: correlations of up to 0.3",
            max(of("correlation", "b", "c")) >= CORRELATED,
            "largest of two cells " + said("correlation", "b", "c"),
        ),
        Effect(
            "(b), fixed at the identity, gives the worst bound of the affine priors",
            b > max(others),
            f"bits per digit {said('-ELBO', *AFFINE)}",
        ),
        Effect(
            "(b) overestimates the deviation of poses: its prior is the widest",
            wide[0] == max(wide) and wide[0] > figures["b"]["posterior sd"],
            f"prior {said('prior sd', *AFFINE)}; poses of digits {said('posterior sd', *AFFINE)}",
        ),
        Effect(
            "(c) is mostly a horizontal shear",
            c["tau horizontal"] > 1.5 * c["tau vertical"],
            f"tau {c['tau horizontal']:.3f} of the horizontal shear, {c['tau vertical']:.3f} of the vertical",
        ),
        Effect(
            "(d) visibly rotates: samples are slanted more variously than those of (c)",
            slant[0] > slant[1],
            f"sd (d) {slant[0]:.1f}, (c) {slant[1]:.1f}, test digits {of_digits['slant']:.1f} degrees",
        ),
        Effect(
            "(d) draws the bars of digits at one angle upright",
            upright[0] < 0.5 * upright[1],
            f"slant of ones: templates {upright[0]:.1f}, test digits {upright[1]:.1f} degrees, sd",
        ),
        Effect(
            "(e) fits best: of full rank it mismatches less than the priors of independent numbers",
            figures["e6"]["mismatch"] < min(of("mismatch", "b", "c", "d")),
            f"nats {said('mismatch', *AFFINE)}",
        ),
        Effect(
            "(e) has more extreme poses the higher its rank",
            all(list(one) == sorted(one) and one[-1] > one[0] for one in border),
            "% of samples with ink at the border: " + said("at border", *MIXED, *MIXED_PLATES),
        ),
        Effect(
            "with its pose paid for, a TVAE still needs fewer bits than a VAE of as many numbers",
            figures[best]["-ELBO"] < figures["VAE+"]["-ELBO"],
            f"({best}) {figures[best]['-ELBO']:.1f}; VAE of {Z + Affine.n} numbers "
            f"{figures['VAE+']['-ELBO']:.1f}, of {Z} {figures['VAE']['-ELBO']:.1f} bits",
        ),
    ]


STUDY = Study(
    about="Priors over the pose of TVAEs: code length, fit, what samples look like",
    source="thesis on spatial transformers in VAEs, section V.iii",
    budget="25m",
    run=run,
)
