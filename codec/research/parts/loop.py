"""The one training loop of the research wing: seeded, resumable, one line of JSON per report.

Batches, noise and rates are functions of seed and step, so an interrupted run ends with the numbers of one
that was not.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbc.codec.research.run import PROGRESS, Setting, clock, read_json, write_json
from vbc.codec.train.checkpoint import load_checkpoint, save_checkpoint
from vbc.codec.train.precision import autocast
from vbc.codec.train.progress import progress_bar

Batch = Tensor | tuple[Tensor, ...]
Batches = Callable[[int], Batch]
"""From a step to its batch."""
Valued = tuple[Tensor, dict[str, float]]
"""A loss (a scalar) and what to log."""
Loss = Callable[[Any, int], Valued | Iterator[Valued]]
"""From a batch, on the run's device, and the step to the loss. A generator's losses are minimised in turn:
the optimiser takes a step on each before the next one is computed, all of them at the rate of one step."""
Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""From a batch [N, C, H, W] to one of the same shape and type."""
Optimiser = Literal["adam", "adamax", "adadelta", "rmsprop", "sgd"]

PLANS = "plan.json"
"""The file of a run that keeps how many steps fitted its budget."""
TIMED_STEPS = 3
"""Steps that are timed at least; the first one before them also loads and allocates."""


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    The rate rises linearly over `warmup` steps. After it, `decay` < 1 multiplies it at every step, down to
    `rate_end`; else it is a cosine from `rate` to `rate_end`, or constant where there is no `rate_end`.
    clip: largest norm of the gradient. bf16: whether the loss is computed in bfloat16 where torch finds it
    fit and the device is faster in it. beta1: decay of Adam's mean gradient.
    """

    steps: int
    batch: int
    rate: float
    rate_end: float | None = None
    optimiser: Optimiser = "adam"
    beta1: float = 0.9
    decay: float = 1.0
    warmup: int = 0
    seed: int = 1
    clip: float | None = None
    bf16: bool = False
    log_every: int = 50
    valid_every: int = 500
    save_minutes: float = 2.0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.decay < 1:
            return max(self.rate * self.decay ** (step - self.warmup), self.rate_end or 0.0)
        if self.rate_end is None:
            return self.rate
        t = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate_end + (self.rate - self.rate_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))


def train(
    model: nn.Module,
    loss: Loss,
    batch: Batches,
    plan: Plan,
    checkpoint: Path,
    setting: Setting,
    validate: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Train to the end of the plan, from the checkpoint where there is one.

    checkpoint: a name that ends in `.safetensors`; what else is kept stands beside it. validate: a figure to
    be small, computed every `valid_every` steps and at the end with the same random numbers each time; the
    model ends with the weights that had the smallest. Returns the means of the last report, "seconds" of
    training over all calls and, where there is a validation, the best figure as "valid" and its step as
    "valid_step". Raises FloatingPointError where the loss is not finite.
    """
    model.to(setting.device)
    optimiser = make_optimiser(model, plan)
    beside, best = checkpoint.with_suffix(PROGRESS), checkpoint.with_suffix(".best.safetensors")
    step, progress = 0, {"seconds": 0.0}
    if checkpoint.exists() and beside.exists():
        step, progress = load_checkpoint(checkpoint, model, optimiser), read_json(beside)
    spent, started = progress["seconds"], clock(setting.device)
    saved = time.monotonic()
    sums: dict[str, float] = {}
    count = 0
    with progress_bar(checkpoint.stem, plan.steps) as advance:
        while step < plan.steps:
            for key, value in train_step(model, loss, batch, plan, optimiser, step, setting.device).items():
                sums[key] = sums.get(key, 0.0) + value
            step, count = step + 1, count + 1
            advance(step)
            done, valid = step == plan.steps, False
            if step % plan.log_every == 0 or done:
                means = {key: value / count for key, value in sums.items()}
                progress = {**progress, **means, "seconds": round(spent + clock(setting.device) - started, 2)}
                report = {
                    "model": checkpoint.stem,
                    "step": step,
                    **{k: round(v, 5) for k, v in means.items()},
                }
                setting.emit(json.dumps({**report, "s": progress["seconds"]}))
                sums, count = {}, 0
            if validate is not None and (step % plan.valid_every == 0 or done):
                valid, figure = True, validated(model, validate, plan.seed)
                setting.emit(json.dumps({"model": checkpoint.stem, "step": step, "valid": round(figure, 5)}))
                if figure < progress.get("valid", math.inf):
                    progress = {**progress, "valid": figure, "valid_step": step}
                    save_checkpoint(best, model, torch.optim.SGD(model.parameters(), 0.0), step)
            late = time.monotonic() - saved > 60 * plan.save_minutes
            # only where a report ends, so that a resumed run's means cover the same steps
            if done or ((late or valid) and step % plan.log_every == 0):
                write_json(beside, progress)
                save_checkpoint(checkpoint, model, optimiser, step)
                saved = time.monotonic()
    if validate is not None and best.exists():
        load_checkpoint(best, model)
    model.eval()
    return dict(progress)


def train_step(
    model: nn.Module,
    loss: Loss,
    batch: Batches,
    plan: Plan,
    optimiser: torch.optim.Optimizer,
    step: int,
    device: str,
) -> dict[str, float]:
    """One step of training; what the loss logs and, as "loss", the loss itself. Of several losses of a step
    the means, each over the losses that log it."""
    model.train()
    for group in optimiser.param_groups:
        group["lr"] = plan.rate_at(step)
    # noise too is a function of seed and step; the generator takes 32 bits of its seed
    torch.manual_seed((plan.seed * 1_000_003 + step) % 2**32)
    drawn = batch(step)
    drawn = drawn.to(device) if isinstance(drawn, Tensor) else tuple(part.to(device) for part in drawn)
    logged: dict[str, list[float]] = {}
    for value, log in _computed(loss, drawn, step, device, plan.bf16):
        number = value.item()
        if not math.isfinite(number):
            raise FloatingPointError(f"the loss of step {step} is {number}")
        optimiser.zero_grad()
        torch.autograd.backward(value)
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        optimiser.step()
        for key, figure in {"loss": number, **log}.items():
            logged.setdefault(key, []).append(figure)
    return {key: sum(figures) / len(figures) for key, figures in logged.items()}


def _computed(loss: Loss, drawn: Batch, step: int, device: str, bf16: bool) -> Iterator[Valued]:
    """The losses of a step, each computed when it is asked for."""
    with autocast(device, bf16):
        found = loss(drawn, step)
    losses = iter((found,)) if isinstance(found, tuple) else found
    while True:
        with autocast(device, bf16):  # not while the caller goes backward
            value = next(losses, None)
        if value is None:
            return
        yield value


def validated(model: nn.Module, validate: Callable[[], float], seed: int) -> float:
    """The figure of a validation, in evaluation mode, without gradients, with the seed's random numbers."""
    model.eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        return float(validate())


def make_optimiser(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The optimiser of a plan, with the constants of the libraries that the theses used."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    match plan.optimiser:
        case "adam":
            return torch.optim.Adam(parameters, plan.rate, (plan.beta1, 0.999))
        case "adamax":
            return torch.optim.Adamax(parameters, plan.rate, eps=1e-7)
        case "adadelta":
            return torch.optim.Adadelta(parameters, plan.rate, rho=0.95, eps=1e-6)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, plan.rate, alpha=0.9, eps=1e-7)
        case "sgd":
            return torch.optim.SGD(parameters, plan.rate)


def steps_within(
    make: Callable[[], tuple[nn.Module, Loss, Batches]],
    plan: Plan,
    seconds: float,
    setting: Setting,
    name: str,
) -> int:
    """How many steps of a plan fit into some seconds: at least 1, at most `plan.steps`.

    make: a model like the one to be trained, its loss and its batches. A few steps are timed. The number is
    kept in the run's folder under `name`, so that a resumed run gets the same.
    """
    path = setting.out / PLANS
    plans = read_json(path) if path.exists() else {}
    if name not in plans:
        model, loss, batch = make()
        model.to(setting.device)
        optimiser = make_optimiser(model, plan)
        train_step(model, loss, batch, plan, optimiser, 0, setting.device)
        started, count = clock(setting.device), 0
        while count < TIMED_STEPS or clock(setting.device) - started < min(1.0, 0.02 * seconds):
            count += 1
            train_step(model, loss, batch, plan, optimiser, count, setting.device)
        each = (clock(setting.device) - started) / count
        plans[name] = max(1, min(plan.steps, int(seconds / each)))
        write_json(path, plans)
    return int(plans[name])


def random_batch(
    data: Tensor, size: int, seed: int, augment: Augment | None = None
) -> Callable[[int], Tensor]:
    """Batches of a set: a new random order in every pass, the rest of a pass that fills no batch left out.

    data: [N, ...]. Returns a function from the step to `data`'s type [min(size, N), ...]; equal steps give
    equal batches.
    """

    def batch(step: int) -> Tensor:
        x = data[torch.from_numpy(batch_indices(len(data), size, seed, step))]
        return x if augment is None else augment(x, np.random.default_rng((seed, step, 1)))

    return batch


def batch_indices(n: int, size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Which of n examples are in a step's batch: int64 [min(size, n)]. For sets whose examples have parts."""
    n_batches = max(1, n // size)
    at = step % n_batches * size
    return _order(n, seed, step // n_batches)[at : at + size]


@lru_cache(maxsize=8)
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(n)


def flip(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image mirrored left to right, or not."""
    mirrored = torch.from_numpy(rng.random(len(x)) < 0.5).view(-1, 1, 1, 1).to(x.device)
    return torch.where(mirrored, x.flip(-1), x)


def flip_and_shift(x: Tensor, rng: np.random.Generator) -> Tensor:
    """As `flip`, and the batch moved by up to 5 % of its side; the edge is repeated."""
    height, width = x.shape[-2:]
    down, right = (int(rng.integers(-(side // 20), side // 20 + 1)) for side in (height, width))
    rows = torch.arange(height, device=x.device).sub(down).clamp(0, height - 1)
    columns = torch.arange(width, device=x.device).sub(right).clamp(0, width - 1)
    return flip(x, rng)[..., rows, :][..., columns]
