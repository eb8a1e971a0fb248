"""The training loop: resumes from its checkpoint and logs one line of JSON per report (docs/training.md)."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbc.codec.train.checkpoint import load_checkpoint, save_checkpoint
from vbc.codec.train.training_tiles import batches

Loss = Callable[[Tensor, int], tuple[Tensor, dict[str, float]]]
"""From a batch (uint8 [N, C, 128, 128]) and the step to the loss and what to log."""
Emit = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """Length and rates of a stage.

    The learning rate is a cosine from `rate` to `rate_end` after a linear warm-up.
    """

    steps: int
    rate: float
    rate_end: float = 1e-5
    warmup: int = 100
    batch: int = 16
    seed: int = 1
    log_every: int = 50
    valid_every: int = 1000
    save_minutes: float = 3.0
    augment: bool = True

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        t = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate_end + (self.rate - self.rate_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, t)))


def run_stage(
    model: nn.Module,
    loss: Loss,
    validate: Callable[[], dict[str, float]],
    tiles: NDArray[np.uint8],
    schedule: Schedule,
    checkpoint: Path,
    device: str = "cpu",
    emit: Emit = print,
) -> None:
    """Train `model` to the end of the schedule, from the checkpoint where there is one.

    Parameters in `model.rate_factors` learn so many times faster than the others.
    """
    factors: dict[str, float] = getattr(model, "rate_factors", {})
    groups = [{"params": p, "factor": factors.get(name, 1.0)} for name, p in model.named_parameters()]
    optimiser = torch.optim.Adam(groups, schedule.rate)
    step = load_checkpoint(checkpoint, model, optimiser) if checkpoint.exists() else 0
    source = batches(tiles, schedule.batch, schedule.seed, step, schedule.augment)
    sums: dict[str, float] = {}
    saved = started = time.monotonic()
    count = 0
    while step < schedule.steps:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step) * group["factor"]
        # qualities and noise too are functions of seed and step; the generator takes 32 bits of its seed
        torch.manual_seed((schedule.seed * 1_000_003 + step) % 2**32)
        with torch.autocast(device, torch.bfloat16):
            value, log = loss(next(source).to(device), step)
        optimiser.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        count += 1
        for k, v in log.items():
            sums[k] = sums.get(k, 0.0) + v
        if step % schedule.log_every == 0:
            means = {k: round(v / count, 5) for k, v in sums.items()}
            seconds = round(time.monotonic() - started, 1)
            emit(json.dumps({"step": step, **means, "rate": schedule.rate_at(step), "s": seconds}))
            sums, count = {}, 0
        if step % schedule.valid_every == 0 or step == schedule.steps:
            emit(json.dumps({"step": step, "valid": validate()}))
        if time.monotonic() - saved > 60 * schedule.save_minutes or step == schedule.steps:
            save_checkpoint(checkpoint, model, optimiser, step)
            saved = time.monotonic()
