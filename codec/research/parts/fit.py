"""Models trained for so many seconds: the steps that fit are counted first, so that a rate can fall to its
end."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.loop import Batches, Loss, Plan, steps_within, train
from vbc.codec.research.run import Setting

M = TypeVar("M", bound=nn.Module)
Make = Callable[[], tuple[nn.Module, Loss, Batches]]
"""A model, its loss and its batches."""


def fit(
    make: Callable[[], M],
    loss_of: Callable[[M, Plan], Loss],
    batches: Batches,
    plan: Plan,
    seconds: float,
    setting: Setting,
    name: str,
    timed_as: str | None = None,
) -> M:
    """A model from `make`, trained for some seconds or to the end of the plan, in evaluation mode.

    loss_of: the loss of a model under a plan of known length. name: of the model in the run's folder; a run
    that is repeated finds the model there. timed_as: models with the same one get as many steps as the first
    of them; the name where it is None.
    """
    key = name.replace("|", "-").replace(" ", "-")

    def new() -> M:
        torch.manual_seed(setting.seed)
        return make()

    def timed() -> tuple[nn.Module, Loss, Batches]:
        model = new()
        return model, loss_of(model, plan), batches

    plan = replace(plan, steps=steps_within(timed, plan, seconds, setting, timed_as or key))
    model = new()
    train(model, loss_of(model, plan), batches, plan, setting.out / f"{key}.safetensors", setting)
    return model.eval()


def equal_steps(makes: Mapping[str, Make], plan: Plan, seconds: float, setting: Setting) -> int:
    """How many steps of a plan each of several models can take so that all together take so many seconds.

    makes: for each name, under which its own number is kept, a model like the one to be trained.
    """
    share = seconds / len(makes)
    return int(
        statistics.harmonic_mean(
            [steps_within(make, plan, share, setting, name) for name, make in makes.items()]
        )
    )


def fit_betas(
    make: Callable[[], M],
    loss_of: Callable[[M, Tensor, float], tuple[Tensor, dict[str, float]]],
    batches: Batches,
    plan: Plan,
    betas: Sequence[float],
    setting: Setting,
    name: str,
) -> tuple[int, Iterator[tuple[float, M]]]:
    """Steps of each model, and with each beta a model from `make`, which is trained when it is asked for.

    Together they get all of the budget. loss_of: of a model, a batch and beta. name: under which the number
    of steps is kept.
    """

    def loss_at(model: M, beta: float) -> Loss:
        return lambda x, step: loss_of(model, x, beta)

    def timed() -> tuple[nn.Module, Loss, Batches]:
        model = make()
        return model, loss_at(model, 1.0), batches

    seconds = setting.budget_s / len(betas)
    plan = replace(plan, steps=steps_within(timed, plan, seconds, setting, name))

    def models() -> Iterator[tuple[float, M]]:
        for beta in betas:
            torch.manual_seed(setting.seed)
            model = make()
            checkpoint = setting.out / f"beta{beta:g}.safetensors"
            train(model, loss_at(model, beta), batches, plan, checkpoint, setting)
            yield beta, model

    return plan.steps, models()
