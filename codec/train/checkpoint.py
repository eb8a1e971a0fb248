"""Checkpoints of training as safetensors: parameters, Adam's state, step. No pickle; written atomically."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vbc.codec.files.image_io import write_atomic


def save_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write model, optimiser and step to `path` (temporary file, fsync, rename)."""
    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        for k, v in state.items():
            tensors[f"optimiser.{index}.{k}"] = torch.as_tensor(v).cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({k: v.clone() for k, v in tensors.items()}, metadata={"step": str(step)}))


def load_checkpoint(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> int:
    """Restore what `save_checkpoint` wrote; returns the step.

    Raises RuntimeError where the model's shapes differ.
    """
    state: dict[int, dict[str, Tensor]] = {}
    weights: dict[str, Tensor] = {}
    with safe_open(path, "pt") as f:
        step = int(f.metadata()["step"])
        for key in f.keys():  # safe_open is no mapping
            kind, rest = key.split(".", 1)
            if kind == "model":
                weights[rest] = f.get_tensor(key)
            else:
                index, name = rest.split(".", 1)
                state.setdefault(int(index), {})[name] = f.get_tensor(key)
    _, unexpected = model.load_state_dict(weights, strict=optimiser is not None)
    if unexpected:
        raise RuntimeError(f"{path} holds other weights: {unexpected[0]}")
    if optimiser is not None:
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": state, "param_groups": groups})
    return step
