"""`codec train`: lossy stage, exact stage, quantisation-aware tuning of both, export (docs/training.md)."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vbc.codec.model import build_model
from vbc.codec.train.bins_loss import bins_loss, validate_bins
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.checkpoint import load_checkpoint
from vbc.codec.train.exact_loss import archival_loss, layered_alone_loss, layered_loss, validate_exact
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import export_model, lossy_pictures, save_model
from vbc.codec.train.eye_loss import eye_distortion, eye_loss, fit_kappa, plane_distance
from vbc.codec.train.layered_start import start_layered
from vbc.codec.train.lossy_loss import lossy_loss, validate_lossy
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.qconv import set_quantise
from vbc.codec.train.training_loop import Emit, Loss, Schedule, run_stage
from vbc.codec.train.training_tiles import load_tiles
from vbc.codec.train.values_loss import validate_values, value_tiles, values_loss
from vbc.codec.train.values_net import ValuesNet
from vbc.codec.train.whole_loss import WholeNet, validate_whole, whole_loss

STAGES = ("lossy", "exact", "tune-lossy", "tune-exact", "export")
"""Of a whole run; those below are done on request alone."""
EYE, LAYERED, WHOLE, BINS, VALUES = "eye", "tune-layered", "whole", "bins", "values"
LOSSY, EXACT, TUNED_LOSSY, TUNED_EXACT = (f"{name}.safetensors" for name in STAGES[:4])
EARLIER = {"tune-lossy": LOSSY, EYE: TUNED_LOSSY, "tune-exact": EXACT, LAYERED: TUNED_EXACT}
"""What the tuning stages start from."""
RATE = {
    "lossy": 1.5e-3,
    "exact": 2.5e-3,
    "tune-lossy": 3e-4,
    EYE: 4e-4,
    "tune-exact": 7e-4,
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
REFIT_TILES = 600
"""Ten megapixels: every table that matters meets tens of thousands of symbols."""


def train(
    data: Path,
    valid: Path,
    out: Path,
    *,
    stage: str = "all",
    lossy: str = "tune-lossy",
    steps: int = 10_000,
    batch: int = 16,
    device: str = "cpu",
    emit: Emit = print,
) -> None:
    """Run one stage or all of them; what is finished or half done in `out` is taken up, not repeated.

    data, valid: folders of images or tile mosaics. steps: of the lossy and exact stages. batch: tiles a step.
    stage: "all", "tune" (both tunings), `EYE`, `LAYERED`, `WHOLE`, `BINS`, `VALUES` or one of `STAGES`.
    lossy: the stage whose lossy network later ones take, "tune-lossy", `EYE` or `WHOLE`. Raises
    FileNotFoundError where data or an earlier stage's result is missing, ValueError for an unknown stage.
    """
    chosen = {"all": STAGES, "tune": STAGES[2:4]}.get(stage, (stage,))
    known = {*STAGES, EYE, LAYERED, WHOLE, BINS, VALUES}
    if not set(chosen) <= known:
        raise ValueError(f"stage {stage!r}; known are all, tune, {', '.join(sorted(known))}")
    if lossy not in ("tune-lossy", EYE, WHOLE):
        raise ValueError(f"lossy network {lossy!r}; known are tune-lossy, {EYE}, {WHOLE}")
    out.mkdir(parents=True, exist_ok=True)
    tiles, held_out = load_tiles(data), load_tiles(valid)
    for name in chosen:
        emit(json.dumps({"stage": name, "tiles": len(tiles)}))
        if name == "export":
            export(out, lossy, tiles, emit)
        else:
            train_stage(name, out, lossy, tiles, held_out, steps, batch, device, emit)


def train_stage(
    name: str,
    out: Path,
    lossy: str,
    tiles: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    steps: int,
    batch: int,
    device: str,
    emit: Emit,
) -> None:
    """One training stage, from its checkpoint or from the result of the stage it builds on."""
    tuning = name in EARLIER
    earlier = out / EARLIER[name] if tuning else None
    checkpoint = out / f"{name}.safetensors"
    schedule = Schedule(max(1, round(steps * TUNE_SHARE)) if tuning else steps, RATE[name], batch=batch)
    torch.manual_seed(schedule.seed)
    if name in ("lossy", "tune-lossy", EYE):
        net = LossyNet()
        start(net, earlier, checkpoint)
        set_quantise(net, tuning)
        prepare(net, device)
        loss, validate = lossy_loss(net), validate_lossy(net, held_out)
        if name == EYE:
            load_checkpoint(out / TUNED_LOSSY, net)  # of a resumed run too, so that kappa is what it was
            loss = eye_loss(net, fit_kappa(net, tiles, schedule.seed))
            validate = validate_lossy(net, held_out, plane_distance)
        run_stage(net, loss, validate, tiles, schedule, checkpoint, device, emit)
        return
    if name == WHOLE:
        whole, loss, validate = whole_training(out, tiles, held_out, schedule.seed, device)
        run_stage(whole, loss, validate, tiles, schedule, checkpoint, device, emit)
        return
    if name in (BINS, VALUES):
        prepared = bins_training if name == BINS else values_training
        of_bins, loss, validate, seen = prepared(out, lossy, tiles, held_out, device)
        # to values it matters whether rows and columns are even or odd
        schedule = replace(schedule, augment=name == BINS)
        run_stage(of_bins, loss, validate, seen, schedule, checkpoint, device, emit)
        return
    exact = ExactNet()
    start(exact, earlier, checkpoint)
    set_quantise(exact, tuning)
    loss = archival_loss(exact)
    if tuning:
        model = build_model(export_model(exact, load_lossy(out, lossy), None))
        tiles, held_out = lossy_pictures(model, tiles, seed=3), lossy_pictures(model, held_out, seed=4)
        loss = layered_loss(exact) if name != LAYERED else layered_alone_loss(exact)
        if not checkpoint.exists() and name != LAYERED:
            picked = np.random.default_rng(6).permutation(len(tiles))[:START_TILES]
            start_layered(exact, tiles[picked])
    prepare(exact, device)
    run_stage(exact, loss, validate_exact(exact, held_out), tiles, schedule, checkpoint, device, emit)


def whole_training(
    out: Path, tiles: NDArray[np.uint8], held_out: NDArray[np.uint8], seed: int, device: str
) -> tuple[WholeNet, Loss, Callable[[], dict[str, float]]]:
    """The lossy network for the eye and the layers of layered files, on the bits of whole files."""
    net = WholeNet(load_lossy(out, EYE), load_exact(out))
    set_quantise(net, True)
    prepare(net, device)
    distortion = eye_distortion(fit_kappa(net.lossy, tiles, seed))
    alone = validate_lossy(net.lossy, held_out, plane_distance)
    together = validate_whole(net, held_out)
    return net, whole_loss(net, distortion), lambda: together() | alone()


def bins_training(
    out: Path, lossy: str, tiles: NDArray[np.uint8], held_out: NDArray[np.uint8], device: str
) -> Training:
    """The layers for bins, beside the exact networks as they are."""
    exact = load_exact(out, lossy)
    bins = BinsNet()
    bins.start(exact)
    for net in (exact, bins):
        set_quantise(net, True)
        prepare(net, device)
    exact.requires_grad_(False)
    model = build_model(export_model(exact, load_lossy(out, lossy), None))
    tiles, held_out = lossy_pictures(model, tiles, seed=3), lossy_pictures(model, held_out, seed=4)
    return bins, bins_loss(bins, exact), validate_bins(bins, exact, held_out), tiles


def values_training(
    out: Path, lossy: str, tiles: NDArray[np.uint8], held_out: NDArray[np.uint8], device: str
) -> Training:
    """The networks of values after bins, on what the integer model's bins leave of some of the tiles."""
    exact, values = load_exact(out, lossy), ValuesNet()
    set_quantise(values, True)
    prepare(values, device)
    bins = load_bins(out, exact)
    model = build_model(export_model(exact, load_lossy(out, lossy), None, bins=bins))
    picked = np.random.default_rng(7).permutation(len(tiles))[:VALUE_TILES]
    seen, seen_held_out = (
        value_tiles(model, lossy_pictures(model, some, seed))
        for seed, some in ((3, tiles[picked]), (4, held_out))
    )
    return values, values_loss(values), validate_values(values, seen_held_out), seen


def start(net: torch.nn.Module, earlier: Path | None, checkpoint: Path) -> None:
    """Load the earlier stage's weights unless this stage has a checkpoint of its own.

    That one is loaded by `run_stage`.
    """
    if earlier is not None and not checkpoint.exists():
        load_checkpoint(earlier, net)


def prepare(net: torch.nn.Module, device: str) -> None:
    """Move a network to where it trains; channels last is several times faster on a CPU."""
    net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's annotations


def load_lossy(out: Path, lossy: str) -> LossyNet:
    """The lossy network of stage `lossy`; for "tune-lossy" the float one as long as it has not begun."""
    if lossy == WHOLE:
        return load_whole(out).lossy
    net = LossyNet()
    result = out / f"{lossy}.safetensors"
    load_checkpoint(out / LOSSY if lossy != EYE and not result.exists() else result, net)
    return net


def load_whole(out: Path) -> WholeNet:
    """Both networks that were trained together."""
    net = WholeNet(LossyNet(), ExactNet())
    load_checkpoint(out / f"{WHOLE}.safetensors", net)
    return net


def load_exact(out: Path, lossy: str = EYE) -> ExactNet:
    """The tuned exact networks, with layers of layered files tuned on their own where there are such, or
    together with the lossy network of stage `WHOLE`."""
    if lossy == WHOLE:
        return load_whole(out).exact
    exact = ExactNet()
    layered = out / f"{LAYERED}.safetensors"
    load_checkpoint(layered if layered.exists() else out / TUNED_EXACT, exact)
    return exact


def load_bins(out: Path, exact: ExactNet) -> BinsNet | None:
    """The layers for bins, where they have been trained."""
    result = out / f"{BINS}.safetensors"
    if not result.exists():
        return None
    bins = BinsNet(exact.width)
    load_checkpoint(result, bins)
    return bins


def load_values(out: Path) -> ValuesNet | None:
    """The networks of values after bins, where they have been trained."""
    result = out / f"{VALUES}.safetensors"
    if not result.exists():
        return None
    values = ValuesNet()
    load_checkpoint(result, values)
    return values


def export(out: Path, lossy: str, tiles: NDArray[np.uint8], emit: Emit) -> None:
    """Write `out/model.safetensors` from the tuned networks."""
    exact = load_exact(out, lossy)
    picked = np.random.default_rng(5).permutation(len(tiles))[:REFIT_TILES]
    bins, values = load_bins(out, exact), load_values(out)
    tensors = export_model(exact, load_lossy(out, lossy), tiles[picked], lossy != "tune-lossy", bins, values)
    model = save_model(out / "model.safetensors", tensors)
    size = (out / "model.safetensors").stat().st_size
    emit(json.dumps({"model": str(out / "model.safetensors"), "hash": model.hash.hex(), "bytes": size}))
