"""The training loop: resumes from its checkpoint and logs one line of JSON per report (docs/training.md)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbc.codec.train.checkpoint import load_checkpoint, save_checkpoint
from vbc.codec.train.precision import autocast
from vbc.codec.train.processes import average_gradients, n_processes, rank, wait_for_all
from vbc.codec.train.progress import progress_bar
from vbc.codec.train.training_tiles import batches

Loss = Callable[[Tensor, int], tuple[Tensor, dict[str, float]]]
"""From a batch (uint8 [N, C, 128, 128]) and the step to the loss and what to log."""
Emit = Callable[[str], None]
Report = Callable[[dict[str, Any]], None]


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
    say: Report = lambda report: None,
) -> None:
    """Train `model` to the end of the schedule, from the checkpoint where there is one.

    Parameters in `model.rate_factors` learn so many times faster than the others. Of several processes
    (`processes.joined`) each takes its part of every batch and says means over its own parts; process 0
    validates and saves.
    """
    wait_for_all()  # what the checkpoint is to be read from may have been written a moment ago
    factors: dict[str, float] = getattr(model, "rate_factors", {})
    groups = [{"params": p, "factor": factors.get(name, 1.0)} for name, p in model.named_parameters()]
    optimiser = torch.optim.Adam(groups, schedule.rate)
    step = load_checkpoint(checkpoint, model, optimiser) if checkpoint.exists() else 0
    source = batches(tiles, schedule.batch, schedule.seed, step, schedule.augment)
    sums: dict[str, float] = {}
    saved = started = time.monotonic()
    count = 0
    first = rank() == 0
    with progress_bar(checkpoint.stem, schedule.steps) as advance:
        while step < schedule.steps:
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate_at(step) * group["factor"]
            # qualities and noise too are functions of seed, step and process; the generator takes 32 bits
            torch.manual_seed((schedule.seed * 1_000_003 + step + rank() * 2_654_435_761) % 2**32)
            part = next(source)[rank() :: n_processes()].to(device)
            with autocast(device):
                value, log = loss(part, step)
            optimiser.zero_grad()
            torch.autograd.backward(value)
            average_gradients(model.parameters())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            count += 1
            advance(step)
            for k, v in log.items():
                sums[k] = sums.get(k, 0.0) + v
            if step % schedule.log_every == 0:
                means = {k: round(v / count, 5) for k, v in sums.items()}
                seconds = round(time.monotonic() - started, 1)
                say({"step": step, **means, "rate": schedule.rate_at(step), "s": seconds})
                sums, count = {}, 0
            last = step == schedule.steps
            if first and (step % schedule.valid_every == 0 or last):
                say({"step": step, "valid": validate()})
            if first and (time.monotonic() - saved > 60 * schedule.save_minutes or last):
                save_checkpoint(checkpoint, model, optimiser, step)
                saved = time.monotonic()
    wait_for_all()
