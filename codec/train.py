"""Training in stages; every stage resumes from its checkpoint and logs one line of JSON (docs/training.md)."""

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

from vbc.codec.checkpoint import load_checkpoint, save_checkpoint
from vbc.codec.colour import rgb_to_ycocg
from vbc.codec.data import batches
from vbc.codec.exact import ExactNet, training_bits

Loss = Callable[[Tensor, int], tuple[Tensor, dict[str, float]]]
"""From a batch (uint8 [N, 3, 128, 128]) and the step to the loss and what to log."""


@dataclass(frozen=True)
class Schedule:
    """Length and rates of a stage. The learning rate is a cosine from `rate` to `rate_end` after a linear warm-up."""

    steps: int
    rate: float
    rate_end: float = 1e-5
    warmup: int = 100
    batch: int = 16
    seed: int = 1
    log_every: int = 50
    valid_every: int = 1000
    save_minutes: float = 3.0

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
    emit: Callable[[str], None] = print,
) -> None:
    """Train `model` to the end of the schedule, from the checkpoint where there is one."""
    optimiser = torch.optim.Adam(model.parameters(), schedule.rate)
    step = load_checkpoint(checkpoint, model, optimiser) if checkpoint.exists() else 0
    source = batches(tiles, schedule.batch, schedule.seed, step)
    sums: dict[str, float] = {}
    saved = started = time.monotonic()
    count = 0
    while step < schedule.steps:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        with torch.autocast(device, torch.bfloat16):
            value, log = loss(next(source).to(device), step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        count += 1
        for k, v in log.items():
            sums[k] = sums.get(k, 0.0) + v
        if step % schedule.log_every == 0:
            line = {k: round(v / count, 5) for k, v in sums.items()}
            emit(json.dumps({"step": step, **line, "rate": schedule.rate_at(step), "s": round(time.monotonic() - started, 1)}))
            sums, count = {}, 0
        if step % schedule.valid_every == 0 or step == schedule.steps:
            emit(json.dumps({"step": step, "valid": validate()}))
        if time.monotonic() - saved > 60 * schedule.save_minutes or step == schedule.steps:
            save_checkpoint(checkpoint, model, optimiser, step)
            saved = time.monotonic()


def exact_loss(net: ExactNet) -> Loss:
    """Bits per subpixel of the finest two grid steps, each position weighing the same."""

    def loss(rgb: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        x = rgb_to_ycocg(rgb)
        bits = exact_bits(net, x)
        value = bits / (3 * x.shape[0] * x.shape[2] * x.shape[3])
        return value, {"bpsp": value.item()}

    return loss


def exact_bits(net: ExactNet, x: Tensor) -> Tensor:
    """Bits of all grid steps down to a side of 16, for int16 YCoCg-R [N, 3, H, W]."""
    total = x.new_zeros((), dtype=torch.float32)
    level = 0
    while min(x.shape[-2:]) >= 32:
        total = total + training_bits(net, x, min(level, 2))
        x = x[..., ::2, ::2]
        level += 1
    return total


def validate_exact(net: ExactNet, tiles: NDArray[np.uint8]) -> Callable[[], dict[str, float]]:
    """Bits per subpixel on validation tiles, in full precision."""

    def validate() -> dict[str, float]:
        bits = 0.0
        with torch.no_grad():
            for part in np.array_split(tiles, max(1, len(tiles) // 16)):
                bits += exact_bits(net, rgb_to_ycocg(torch.from_numpy(part))).item()
        return {"bpsp": round(bits / tiles.size, 5)}

    return validate
