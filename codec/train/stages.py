"""`codec train`: lossy stage, exact stage, quantisation-aware tuning of both, export (docs/training.md)."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vbc.codec.model import build_model
from vbc.codec.train.bins_loss import bins_loss, validate_bins
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.checkpoint import load_checkpoint
from vbc.codec.train.exact_loss import archival_loss, layered_alone_loss, layered_loss, validate_exact
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import export_model, save_model
from vbc.codec.train.eye_loss import eye_distortion, eye_loss, fit_kappa, plane_distance
from vbc.codec.train.integer_runs import lossy_pictures
from vbc.codec.train.layered_start import start_layered
from vbc.codec.train.lossy_loss import lossy_loss, validate_lossy
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.processes import joined, n_processes, rank, wait_for_all
from vbc.codec.train.qconv import set_quantise
from vbc.codec.train.run_folder import (
    BEFORE,
    BINS,
    EXACT,
    EYE,
    LAYERED,
    LOSSY,
    TUNED_EXACT,
    TUNED_LOSSY,
    VALUES,
    WHOLE,
    RunFolder,
)
from vbc.codec.train.training_loop import Emit, Loss, Report, Schedule, run_stage
from vbc.codec.train.training_tiles import load_tiles
from vbc.codec.train.values_loss import validate_values, value_tiles, values_loss
from vbc.codec.train.values_net import ValuesNet
from vbc.codec.train.whole_loss import WholeNet, validate_whole, whole_loss

STAGES = (LOSSY, EXACT, TUNED_LOSSY, TUNED_EXACT, "export")
"""Of a whole run; those below are done on request alone."""
ON_REQUEST = (EYE, LAYERED, WHOLE, BINS, VALUES)
RATE = {
    LOSSY: 1.5e-3,
    EXACT: 2.5e-3,
    TUNED_LOSSY: 3e-4,
    EYE: 4e-4,
    TUNED_EXACT: 7e-4,
    LAYERED: 4e-4,
    WHOLE: 2e-4,
    BINS: 1e-3,
    VALUES: 2e-3,
}
Training = tuple[torch.nn.Module, Loss, Callable[[], dict[str, float]], NDArray[np.uint8]]
"""What `run_stage` is told of a stage: network, loss, validation and tiles."""
TUNE_SHARE = 0.4
"""Steps of a tuning stage over those of a full one."""
START_TILES = 240
"""Four megapixels for 243 taps a mean."""
VALUE_TILES = 1200
"""Twenty megapixels: the networks are small."""
LOG = "log.jsonl"
"""Of all reports, in a run's folder."""
REFIT_TILES = 600
"""Ten megapixels: every table that matters meets tens of thousands of symbols."""


def train(
    data: Path,
    valid: Path,
    out: Path,
    *,
    stage: str = "all",
    lossy: str = TUNED_LOSSY,
    start_from: Path | None = None,
    steps: int = 10_000,
    batch: int = 16,
    device: str = "cpu",
    emit: Emit = print,
) -> None:
    """Run one stage or several; what is finished or half done in `out` is taken up, not repeated.

    data, valid: folders of images or tile mosaics. steps: of the lossy and exact stages. batch: tiles a step,
    of all processes together where `torchrun` has started several. stage: "all", "tune" (both tunings),
    "fine-tune" (of the lossy network asked for and the exact ones, then export), or one of `STAGES` and
    `ON_REQUEST`. lossy: the stage whose lossy network later ones take,
    "tune-lossy", "eye" or "whole". start_from: folder of an earlier run, whose weights stages start from
    where this run has nothing earlier. Reports are also appended to `out/log.jsonl`. Raises FileNotFoundError
    where data or an earlier stage's result is missing, ValueError for an unknown stage.
    """
    fine_tuned = (lossy,) if lossy == WHOLE else (lossy, TUNED_EXACT)  # that one tunes both networks
    several = {"all": STAGES, "tune": STAGES[2:4], "fine-tune": (*fine_tuned, "export")}
    chosen = several.get(stage, (stage,))
    known = {*STAGES, *ON_REQUEST}
    if not set(chosen) <= known:
        raise ValueError(f"stage {stage!r}; known are {', '.join([*several, *sorted(known)])}")
    if lossy not in (TUNED_LOSSY, EYE, WHOLE):
        raise ValueError(f"lossy network {lossy!r}; known are {TUNED_LOSSY}, {EYE}, {WHOLE}")
    if stage == LAYERED and lossy == TUNED_LOSSY:
        raise ValueError(f"{LAYERED} is for the lossy networks {EYE} and {WHOLE}, not for {lossy}")
    out.mkdir(parents=True, exist_ok=True)
    run = RunFolder(out, start_from, lossy)
    with joined(device) as device:
        if batch < n_processes():
            raise ValueError(f"a batch of {batch} tiles is too small for {n_processes()} processes")
        tiles, held_out = load_tiles(data), load_tiles(valid)
        for name in chosen:
            say = reporter(name, out / LOG, emit)
            say({"tiles": len(tiles)})
            if name != "export":
                train_stage(name, run, tiles, held_out, steps, batch, device, say)
            elif rank() == 0:
                export(run, tiles, say)
            wait_for_all()


def reporter(stage: str, log: Path, emit: Emit) -> Report:
    """Where a stage's reports go, as lines of JSON: to `emit` and a log in the run's folder. Of several
    processes one reports."""

    def say(report: dict[str, Any]) -> None:
        line = json.dumps({"stage": stage, **report})
        emit(line)
        with log.open("a") as file:
            file.write(line + "\n")

    return say if rank() == 0 else lambda report: None


def train_stage(
    name: str,
    run: RunFolder,
    tiles: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    steps: int,
    batch: int,
    device: str,
    say: Report,
) -> None:
    """One training stage, from its checkpoint or from the result of the stage it builds on."""
    tuning = name in BEFORE
    checkpoint, start = run.checkpoint(name), run.start(name)
    schedule = Schedule(max(1, round(steps * TUNE_SHARE)) if tuning else steps, RATE[name], batch=batch)
    torch.manual_seed(schedule.seed)
    if name in (LOSSY, TUNED_LOSSY, EYE):
        net = LossyNet()
        load(net, start)
        set_quantise(net, tuning)
        prepare(net, device)
        loss, validate = lossy_loss(net), validate_lossy(net, held_out)
        if name == EYE:
            loss = eye_loss(net, fit_kappa(net, tiles, schedule.seed))
            validate = validate_lossy(net, held_out, plane_distance)
        run_stage(net, loss, validate, tiles, schedule, checkpoint, device, say)
        return
    if name == WHOLE:
        whole, loss, validate = whole_training(run, tiles, held_out, schedule.seed, device)
        run_stage(whole, loss, validate, tiles, schedule, checkpoint, device, say)
        return
    if name in (BINS, VALUES):
        prepared = bins_training if name == BINS else values_training
        of_bins, loss, validate, seen = prepared(run, start, tiles, held_out, device)
        # to values it matters whether rows and columns are even or odd
        schedule = replace(schedule, augment=name == BINS)
        run_stage(of_bins, loss, validate, seen, schedule, checkpoint, device, say)
        return
    exact = ExactNet()
    load(exact, start)
    set_quantise(exact, tuning)
    loss = archival_loss(exact)
    if tuning:
        model = build_model(export_model(exact, run.load_lossy(), None))
        tiles, held_out = lossy_pictures(model, tiles, seed=3), lossy_pictures(model, held_out, seed=4)
        loss = layered_loss(exact) if name != LAYERED else layered_alone_loss(exact)
        if start is not None and start.stem == EXACT and not checkpoint.exists():
            picked = np.random.default_rng(6).permutation(len(tiles))[:START_TILES]
            start_layered(exact, tiles[picked])
    prepare(exact, device)
    run_stage(exact, loss, validate_exact(exact, held_out), tiles, schedule, checkpoint, device, say)


def whole_training(
    run: RunFolder, tiles: NDArray[np.uint8], held_out: NDArray[np.uint8], seed: int, device: str
) -> tuple[WholeNet, Loss, Callable[[], dict[str, float]]]:
    """The lossy network for the eye and the layers of layered files, on the bits of whole files."""
    run = replace(run, lossy=EYE)
    net = WholeNet(run.load_lossy(), run.load_exact())
    set_quantise(net, True)
    prepare(net, device)
    distortion = eye_distortion(fit_kappa(net.lossy, tiles, seed))
    alone = validate_lossy(net.lossy, held_out, plane_distance)
    together = validate_whole(net, held_out)
    return net, whole_loss(net, distortion), lambda: together() | alone()


def bins_training(
    run: RunFolder, start: Path | None, tiles: NDArray[np.uint8], held_out: NDArray[np.uint8], device: str
) -> Training:
    """The networks for bins, which begin as the exact ones."""
    exact = run.load_exact()
    bins = BinsNet()
    bins.start(exact)
    load(bins, start)
    set_quantise(bins, True)
    prepare(bins, device)
    model = build_model(export_model(exact, run.load_lossy(), None))
    tiles, held_out = lossy_pictures(model, tiles, seed=3), lossy_pictures(model, held_out, seed=4)
    return bins, bins_loss(bins), validate_bins(bins, held_out), tiles


def values_training(
    run: RunFolder, start: Path | None, tiles: NDArray[np.uint8], held_out: NDArray[np.uint8], device: str
) -> Training:
    """The networks of values after bins, on what the integer model's bins leave of some of the tiles."""
    exact, values = run.load_exact(), ValuesNet()
    load(values, start)
    set_quantise(values, True)
    prepare(values, device)
    bins = run.load_bins(exact)
    model = build_model(export_model(exact, run.load_lossy(), None, bins=bins))
    picked = np.random.default_rng(7).permutation(len(tiles))[:VALUE_TILES]
    seen, seen_held_out = (
        value_tiles(model, lossy_pictures(model, some, seed))
        for seed, some in ((3, tiles[picked]), (4, held_out))
    )
    return values, values_loss(values), validate_values(values, seen_held_out), seen


def prepare(net: torch.nn.Module, device: str) -> None:
    """Move a network to where it trains; channels last is several times faster on a CPU."""
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's annotations


def load(net: torch.nn.Module, start: Path | None) -> None:
    """Give a network the weights that its stage starts from, where there are any."""
    if start is not None:
        load_checkpoint(start, net)


def export(run: RunFolder, tiles: NDArray[np.uint8], say: Report) -> None:
    """Write `model.safetensors` into a run's folder, from the tuned networks."""
    exact = run.load_exact()
    picked = np.random.default_rng(5).permutation(len(tiles))[:REFIT_TILES]
    bins, values = run.load_bins(exact), run.load_values()
    tensors = export_model(exact, run.load_lossy(), tiles[picked], run.lossy != TUNED_LOSSY, bins, values)
    path = run.checkpoint("model")
    model = save_model(path, tensors)
    say({"model": str(path), "hash": model.hash.hex(), "bytes": path.stat().st_size})
