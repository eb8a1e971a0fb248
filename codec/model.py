"""Weights as the codec uses them: safetensors in, a frozen model out, identified by a hash.

See docs/format.md, section 6. Every set of weights that a release has shipped stays installed, so that its
files stay readable: `weights/index.json` names them all, the newest last.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vbc.bitstream.container import Header
from vbc.bitstream.errors import ModelMissing
from vbc.bitstream.tables import TableSet
from vbc.codec.entropy.coder import Reader, Writer
from vbc.codec.entropy.tensor_coder import TensorReader, TensorWriter, device_tables
from vbc.codec.exact.model import ExactModel, TuningBasis, ValuesModel
from vbc.codec.exact.tuning import N_TUNING_TABLES
from vbc.codec.exact.values import N_VALUE_TABLES
from vbc.codec.lossy.model import ANALYSIS, LossyModel
from vbc.codec.nets.int_nets import IntChain, IntPhase, Tensors
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.settings import Tune
from vbc.kernels.predict import PredictMaps

HASH_BYTES = 8
INDEX = "index.json"
"""Of the weights folder: a list of {"file", "model" (hash), "tables" (hash), "tune"}, the newest last."""
FOLDERS = "VBC_WEIGHTS"
"""The environment variable with folders of further weights, separated as in PATH."""

PID = os.getpid()


class WeightsError(ValueError):
    """A weights file cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Model:
    """Everything that decides what a bit means, and the encoder's analysis.

    cumulative: the tables on the device where symbols are coded; None where the host codes them.
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

    @property
    def decodes_blindly(self) -> bool:
        """Whether readers find damage only when they are finished, for which they wait for a device."""
        return self.cumulative is not None

    def to(self, device: torch.device | str) -> "Model":
        """The model for a device; copies are kept.

        On the CPU that is the model as loaded, whose symbols numpy and constriction code. The name of a
        device that is not there raises what torch raises (`kernels.dispatch.require_device` explains more).
        """
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return self if device == self.device else place(self, device)

    def writer(self, n_groups: int, worker: ThreadPoolExecutor | None = None) -> Writer | TensorWriter:
        """An encoder of so many groups, where the model's symbols are coded; worker: as `Writer`."""
        if self.cumulative is None:
            return Writer(self.tables, n_groups, worker)
        return TensorWriter(self.tables, n_groups)

    def reader(self, payloads: Sequence[bytes | memoryview], max_symbols: int) -> Reader | TensorReader:
        """A decoder of groups, likewise. Raises Corrupt."""
        if self.cumulative is None:
            return Reader(self.tables, payloads, max_symbols)
        return TensorReader(self.cumulative, payloads, max_symbols)

    def check(self, header: Header) -> None:
        """Raises ModelMissing unless a file was made with this model."""
        for wanted, have in ((header.model_hash, self.hash), (header.tables_hash, self.tables.digest)):
            if wanted != have:
                raise ModelMissing(wanted)


@functools.lru_cache(maxsize=8)
def place(model: Model, device: torch.device) -> Model:
    """The model with networks and tables on a device, where symbols are then coded too.

    Any device will do: on the CPU this is the device path in plain torch.
    """
    placed = replace(
        model,
        exact=model.exact.to(device),
        lossy=model.lossy.to(device),
        cumulative=device_tables(model.tables, device),
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # threads may use it on streams of their own
    return placed


def model_hash(tensors: Tensors) -> bytes:
    """First 8 bytes of SHA-256 over every decoder tensor but the tables.

    Name, dtype, shape and little-endian bytes of each, by name. Tensors that no decoder needs stay out of it:
    a better analysis leaves old files readable.
    """
    h = hashlib.sha256()
    for name in sorted(tensors):
        if name == "tables" or name.startswith(ANALYSIS):
            continue
        t = tensors[name].contiguous()
        h.update(f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}\n".encode())
        h.update(t.numpy().tobytes())
    return h.digest()[:HASH_BYTES]


def build_model(tensors: Tensors) -> Model:
    """A model from exported tensors. Raises WeightsError where some are missing or break an invariant."""
    try:
        tables = TableSet(tensors["tables"].numpy())
        phases = {p: IntPhase.load(tensors, p) for p in PHASES}
        exact = ExactModel(
            phases,
            predict_maps(tensors, "", "exact.table_index"),
            predict_maps(tensors, ".bins", "exact.bins_table_index"),
            ValuesModel(
                {p: IntChain.load(tensors, f"exact.{p}.values") for p in PHASES},
                int(tensors["exact.values_table"]),
            ),
            {p: TuningBasis.load(tensors, p, net.width) for p, net in phases.items()},
            int(tensors["exact.tuning_table"]),
        )
        check_tables(tensors, len(tables))
        lossy = LossyModel.load(tensors, tables)
    except (KeyError, ValueError) as e:
        raise WeightsError(f"not the weights of this codec: {e}") from e
    return Model(exact, lossy, tables, model_hash(tensors))


def check_tables(tensors: Tensors, n_tables: int) -> None:
    """Raises ValueError where the exact levels would use a table that is not there."""
    for name, count in (
        ("exact.table_index", 1),
        ("exact.bins_table_index", 1),
        ("exact.tuning_table", N_TUNING_TABLES),
        ("exact.values_table", N_VALUE_TABLES),
    ):
        index = tensors[name]
        if index.min() < 0 or index.max() + count > n_tables:
            raise ValueError(f"{name} leads beyond the {n_tables} tables")


def predict_maps(tensors: Tensors, kind: str, index: str) -> dict[str, PredictMaps]:
    """What predicts values (kind "") or bins (".bins"), by phase."""
    log2, tables = tensors["exact.log2_residual"], tensors[index].to(torch.int16)
    return {p: PredictMaps(log2, tensors[f"exact.{p}{kind}.surprise"], tables) for p in PHASES}


@functools.lru_cache(maxsize=8)
def load_model(path: Path | None = None, tune: Tune = "eye") -> Model:
    """The model in a safetensors file, by default the newest one installed for a purpose; cached.

    Raises WeightsError, or OSError where it is missing.
    """
    if path is None:
        return load_installed([entry for entry in installed() if entry["tune"] == tune][-1]["file"])
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise WeightsError(f"{path}: {e}") from e
    with torch.no_grad():
        return build_model(tensors)


def model_of(header: Header) -> Model:
    """The model that a file was made with: an installed one, or `HASH.safetensors` of its model's hash in one
    of the folders that the environment variable `VBC_WEIGHTS` names.

    Raises ModelMissing where there is none, WeightsError where that file holds no weights.
    """
    wanted = {"model": header.model_hash.hex(), "tables": header.tables_hash.hex()}
    for entry in installed():
        if wanted.items() <= entry.items():
            return load_installed(entry["file"])
    for folder in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        path = Path(folder, f"{wanted['model']}.safetensors")
        if path.is_file():
            model = load_model(path)
            model.check(header)
            return model
    raise ModelMissing(header.model_hash)


def installed() -> list[dict[str, str]]:
    """The index of the weights folder: file, both hashes and purpose of each set, the newest last."""
    entries: list[dict[str, str]] = json.loads((weights_folder() / INDEX).read_text("utf-8"))
    return entries


def load_installed(name: str) -> Model:
    """The model in a file of the weights folder."""
    with resources.as_file(weights_folder() / name) as path:
        return load_model(path)


def weights_folder() -> Traversable:
    """Where installed weights are."""
    return resources.files("vbc.codec") / "weights"


def mind_forks() -> None:
    """Let a forked child use one thread.

    A child of fork (multiprocessing's default on Linux before Python 3.14) has none of its parent's OpenMP
    threads, and would wait for them for ever.
    """
    global PID
    if os.getpid() != PID:
        PID = os.getpid()
        torch.set_num_threads(1)
