"""A model trained for so many seconds: the steps that fit are counted first, so that a rate can fall to its
end."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from vbc.codec.research.parts.loop import Batches, Loss, Plan, steps_within, train
from vbc.codec.research.run import Setting

M = TypeVar("M", bound=nn.Module)


def fit(
    make: Callable[[], M],
    loss_of: Callable[[M, Plan], Loss],
    batches: Batches,
    plan: Plan,
    seconds: float,
    setting: Setting,
    name: str,
) -> M:
    """A model from `make`, trained for some seconds or to the end of the plan, in evaluation mode.

    loss_of: the loss of a model under a plan of known length. name: of the model in the run's folder; a run
    that is repeated finds the model there.
    """
    key = name.replace("|", "-").replace(" ", "-")

    def new() -> M:
        torch.manual_seed(setting.seed)
        return make()

    def timed() -> tuple[nn.Module, Loss, Batches]:
        model = new()
        return model, loss_of(model, plan), batches

    plan = replace(plan, steps=steps_within(timed, plan, seconds, setting, key))
    model = new()
    train(model, loss_of(model, plan), batches, plan, setting.out / f"{key}.safetensors", setting)
    return model.eval()
