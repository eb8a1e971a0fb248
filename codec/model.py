"""Weights as the codec uses them: safetensors in, a frozen model out, identified by a hash.

See docs/format.md, "Models".
"""

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vbc.bitstream.tables import TableSet
from vbc.codec.entropy.tensor_coder import device_tables
from vbc.codec.exact.block import ExactModel
from vbc.codec.exact.block_device import predict_maps
from vbc.codec.exact.networks import PHASES
from vbc.codec.lossy.model import ANALYSIS, LossyModel
from vbc.codec.nets.int_nets import IntPhase
from vbc.codec.train.export_nets import Tensors

DEFAULT_WEIGHTS = "vbc-1.safetensors"
HASH_BYTES = 8
ENCODER_ONLY = ANALYSIS
"""Tensors that no decoder needs stay out of the hash: a better analysis leaves old files readable."""

if hasattr(os, "register_at_fork"):
    # A forked child (multiprocessing's default on Linux before Python 3.14) has none of its parent's OpenMP
    # threads, and would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class WeightsError(ValueError):
    """A weights file cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that decides what a bit means, and the encoder's analysis.

    cumulative: the tables for `device.TensorReader` where the model was placed on a device; else None, and
    symbols are coded by the host.
    """

    exact: ExactModel
    lossy: LossyModel
    tables: TableSet
    hash: bytes
    cumulative: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.lossy.step.device

    def to(self, device: torch.device | str) -> "Model":
        """The model for a device; copies are kept.

        On the CPU that is the model as loaded, whose symbols numpy and constriction code. The name of a
        device that is not there raises what torch raises (`kernels.dispatch.require_device` explains more).
        """
        device = torch.device(device)
        same = device.type == self.device.type and device.index in (None, self.device.index)
        return self if same else place(self, device)


@functools.lru_cache(maxsize=8)
def place(model: Model, device: torch.device) -> Model:
    """The model with networks and tables on a device, where symbols are then coded too (`codec.device`).

    Any device will do: on the CPU this is the device path in plain torch.
    """
    exact, lossy = model.exact, model.lossy
    placed = replace(
        model,
        exact=replace(
            exact,
            phases={p: net.to(device) for p, net in exact.phases.items()},
            maps={p: predict_maps(exact, p, device) for p in exact.phases},
        ),
        lossy=lossy.to(device),
        cumulative=device_tables(model.tables, device),
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # threads may use it on streams of their own
    return placed


def model_hash(tensors: Tensors) -> bytes:
    """First 8 bytes of SHA-256 over every decoder tensor but the tables.

    Name, dtype, shape and little-endian bytes of each, by name.
    """
    h = hashlib.sha256()
    for name in sorted(tensors):
        if name == "tables" or name.startswith(ENCODER_ONLY):
            continue
        t = tensors[name].contiguous()
        h.update(f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}\n".encode())
        h.update(t.numpy().tobytes())
    return h.digest()[:HASH_BYTES]


def build_model(tensors: Tensors) -> Model:
    """A model from exported tensors. Raises WeightsError where some are missing or break an invariant."""
    try:
        exact = ExactModel(
            {p: IntPhase.load(tensors, f"exact.{p}") for p in PHASES},
            tensors["exact.log2_residual"].numpy(),
            tensors["exact.table_index"].numpy().astype(np.uint16),
            int(tensors["exact.tuning_table"]),
        )
        tables = TableSet(tensors["tables"].numpy())
        lossy = LossyModel.load(tensors, tables)
    except (KeyError, ValueError) as e:
        raise WeightsError(f"not the weights of this codec: {e}") from e
    return Model(exact, lossy, tables, model_hash(tensors))


@functools.lru_cache(maxsize=8)
def load_model(path: Path | None = None) -> Model:
    """The model in a safetensors file, by default the shipped one; cached.

    Raises WeightsError, or OSError where it is missing.
    """
    if path is None:
        with resources.as_file(resources.files("vbc.codec") / "weights" / DEFAULT_WEIGHTS) as default:
            return load_model(default)
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise WeightsError(f"{path}: {e}") from e
    with torch.no_grad():
        return build_model(tensors)
