"""Models of digits trained as in the thesis, as many steps each, and what all studies measure of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled, mnist
from vbc.codec.research.parts.fit import equal_steps
from vbc.codec.research.parts.importance import add_up, mean_terms
from vbc.codec.research.parts.loop import Batches, Loss, Plan, random_batch, train
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.transformer_vae.model import DigitModel, Form

BATCH = 100
STEPS = 30_000
"""As many as 50 epochs of all 60,000 digits have."""
TRAINING_SHARE = 0.85
"""Of a study's budget; the rest is for measuring."""
FULL_BUDGET_S = 300.0
"""From here on a study measures on as many digits as it should; below, it shows that its way runs."""


@dataclass(frozen=True)
class Case:
    """A model of a study. seed: added to the run's."""

    form: Form
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.form.name}-{self.seed}".replace(" ", "-")


def plan_of(seed: int) -> Plan:
    """Adadelta with Lasagne's constants."""
    return Plan(STEPS, BATCH, 1.0, optimiser="adadelta", seed=seed, log_every=500)


def digits(setting: Setting, n_test: int, binary: bool = False) -> Labelled:
    """The digits at hand, the first `n_test` of those for testing; a twentieth where the budget is small.

    binary: whether grey values become 0 and 255.
    """
    train_x, train_y, test_x, test_y = mnist(setting.data)
    n_test = sized(setting, n_test)
    if binary:
        train_x, test_x = ((x > 127).to(torch.uint8) * 255 for x in (train_x, test_x))
    return Labelled(train_x, train_y, test_x[:n_test], test_y[:n_test])


def sized(setting: Setting, n: int) -> int:
    """How many digits or samples are measured on: n, or a twentieth where the budget is small."""
    return n if setting.budget_s >= FULL_BUDGET_S else max(1, n // 20)


def loss_of(model: DigitModel) -> Loss:
    """The negative bound, nats per digit."""

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        terms = model.terms([x], torch.default_generator)
        return add_up(terms).mean(), {name: nats.detach().mean().item() for name, nats in terms.items()}

    return loss


def train_cases(
    cases: Sequence[Case], images: Tensor, setting: Setting, seconds: float
) -> tuple[dict[Case, DigitModel], int]:
    """Models and the steps that each took: as many as fit into the seconds together, `STEPS` at most."""
    makes = {case.name: maker(case, images, setting) for case in cases}
    steps = equal_steps(makes, plan_of(setting.seed), seconds, setting)
    trained = {}
    for case in cases:
        model, loss, batches = makes[case.name]()
        plan = replace(plan_of(setting.seed + case.seed), steps=steps)
        train(model, loss, batches, plan, setting.out / f"{case.name}.safetensors", setting)
        trained[case] = model.eval()
    return trained, steps


def maker(case: Case, images: Tensor, setting: Setting) -> Callable[[], tuple[DigitModel, Loss, Batches]]:
    """What starts a model: itself, its loss, its batches."""

    def make() -> tuple[DigitModel, Loss, Batches]:
        seed = setting.seed + case.seed
        torch.manual_seed(seed)
        model = DigitModel(case.form)
        return model, loss_of(model), random_batch(images, BATCH, seed)

    return make


def seeded(setting: Setting) -> torch.Generator:
    """Random numbers for measuring, on the run's device."""
    return torch.Generator(setting.device).manual_seed(setting.seed)


def measure(model: DigitModel, x: Tensor, setting: Setting) -> dict[str, float]:
    """Means over digits in nats: RE, KL_z, KL_u, and the negative bound as "total"."""
    return mean_terms(model, x.to(setting.device), seeded(setting), batch=500)


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)


def epochs(steps: int, images: Tensor) -> str:
    """How long models were trained, as a sentence of a note."""
    passes = steps * BATCH / len(images)
    return f"{steps} steps of {BATCH} digits a model, {passes:.1f} passes over {len(images)} digits."
