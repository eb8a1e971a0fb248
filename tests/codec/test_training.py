"""Training: every stage runs, resumes where it was, and leaves a model that codes."""

import json
import math
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vbc.codec.model import load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings
from vbc.codec.train import eye_loss, stages
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.checkpoint import load_checkpoint, save_checkpoint
from vbc.codec.train.exact_loss import archival_loss, validate_exact
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import known_answers, stored_answers
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.precision import autocast, bfloat16_pays
from vbc.codec.train.run_folder import BINS, EXACT, EYE, LAYERED, LOSSY, TUNED_EXACT, RunFolder
from vbc.codec.train.stages import train
from vbc.codec.train.training_loop import Schedule, run_stage
from vbc.codec.train.training_tiles import batches, load_tiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    for name, size in (("a", (128, 384)), ("b", (300, 200))):
        Image.fromarray(photo(*size).permute(1, 2, 0).numpy()).save(path / f"{name}.png")
    return path


def test_tiles(folder: Path, tmp_path: Path) -> None:
    tiles = load_tiles(folder)
    assert tiles.shape == (3 + 2, 3, 128, 128)
    assert np.array_equal(tiles[1], photo(128, 384)[:, :, 128:256].numpy())
    with pytest.raises(FileNotFoundError):
        load_tiles(tmp_path)


def test_batches_are_a_function_of_seed_and_step(folder: Path) -> None:
    tiles = load_tiles(folder)
    stream = batches(tiles, 4, seed=3, start_step=0)
    first = [next(stream) for _ in range(3)]
    assert torch.equal(first[2], next(batches(tiles, 4, seed=3, start_step=2)))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("has", "wanted"), [(True, True), (True, False), (False, True)])
def test_bfloat16_where_the_processor_has_it(
    has: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it would be emulated, at a quarter of the speed."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    bfloat16_pays.cache_clear()
    with autocast("cpu", wanted):
        found = nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype
    bfloat16_pays.cache_clear()
    assert found == (torch.bfloat16 if has and wanted else torch.float32)


def run(steps: int, checkpoint: Path, tiles: np.ndarray) -> ExactNet:
    torch.manual_seed(0)
    net = ExactNet(width=8)
    schedule = Schedule(steps=steps, rate=1e-3, batch=2, warmup=1, log_every=1, valid_every=100)
    run_stage(
        net,
        archival_loss(net),
        validate_exact(net, tiles[:1]),
        tiles,
        schedule,
        checkpoint,
        say=lambda report: None,
    )
    return net


def test_resuming_equals_never_having_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = load_tiles(folder)
    monkeypatch.setattr(Schedule, "rate_at", lambda self, step: 1e-3)  # the cosine depends on the length
    whole = run(4, tmp_path / "whole.safetensors", tiles)
    run(2, tmp_path / "part.safetensors", tiles)
    resumed = run(4, tmp_path / "part.safetensors", tiles)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    run(1, tmp_path / "x.safetensors", load_tiles(folder))
    with pytest.raises(RuntimeError):
        load_checkpoint(tmp_path / "x.safetensors", ExactNet(width=16))


def test_learning_rate() -> None:
    schedule = Schedule(steps=1000, rate=1.0, rate_end=0.1, warmup=10)
    assert schedule.rate_at(0) == pytest.approx(0.1)
    assert schedule.rate_at(10) == pytest.approx(1.0)
    assert schedule.rate_at(505) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert schedule.rate_at(1000) == pytest.approx(0.1)


def test_all_stages(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vbc.codec.train.stages as module

    monkeypatch.setattr(module, "REFIT_TILES", 2)
    lines: list[str] = []
    train(folder, folder, tmp_path, stage="all", steps=1, emit=lines.append)
    reports = [json.loads(line) for line in lines]
    assert [r["stage"] for r in reports if "tiles" in r] == list(module.STAGES)
    assert sum("valid" in r for r in reports) == 4
    path = tmp_path / "model.safetensors"
    model = load_model(path)
    assert stored_answers(path) == known_answers(model)
    x = photo(40, 40)
    data = encode_image(x, model=model, settings=EncodeSettings(lossless=True))
    assert torch.equal(decode_image(data, model=model).rgb, x)
    again: list[str] = []
    train(folder, folder, tmp_path, stage="lossy", steps=1, emit=again.append)
    assert len(again) == 1, "a finished stage is not trained again"


def test_unknown_stage(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="known are"):
        train(folder, folder, tmp_path, stage="everything")


def checkpoint_of(path: Path, net: torch.nn.Module) -> dict[str, torch.Tensor]:
    save_checkpoint(path, net, torch.optim.Adam(net.parameters()), 0)
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_fine_tuning_starts_from_an_earlier_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step away from its weights, which stay as they are; export takes what was not tuned from there."""
    monkeypatch.setattr(stages, "REFIT_TILES", 1)
    monkeypatch.setattr(eye_loss, "FIT_BATCHES", 1)
    earlier, out = tmp_path / "earlier", tmp_path / "run"
    torch.manual_seed(3)
    start = {
        name: checkpoint_of(earlier / f"{name}.safetensors", net)
        for name, net in ((EYE, LossyNet()), (LAYERED, ExactNet()), (BINS, BinsNet()))
    }
    kept = {path.name: path.read_bytes() for path in earlier.iterdir()}
    options: dict[str, Any] = {"stage": "fine-tune", "lossy": EYE, "steps": 1, "batch": 1}
    with pytest.raises(FileNotFoundError):
        train(folder, folder, out, **options, emit=lambda line: None)
    lines: list[str] = []
    train(folder, folder, out, **options, start_from=earlier, emit=lines.append)
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == kept
    assert (out / "log.jsonl").read_text().splitlines()[-len(lines) :] == lines
    assert {json.loads(line)["stage"] for line in lines} == {EYE, TUNED_EXACT, "export"}
    run = RunFolder(out, earlier, EYE)
    bins = run.load_bins(run.load_exact())
    assert bins is not None
    assert all(torch.equal(value, start[BINS][name]) for name, value in bins.state_dict().items())
    for net, name in ((run.load_lossy(), EYE), (run.load_exact(), LAYERED)):
        moved = [(value - start[name][key]).abs().max() for key, value in net.state_dict().items()]
        assert 0 < max(moved) < 0.02, "one step of Adam, of steps that learn twenty times as fast too"
    x, model = photo(40, 40), load_model(out / "model.safetensors")
    data = encode_image(x, model=model, settings=EncodeSettings(lossless=True))
    assert torch.equal(decode_image(data, model=model).rgb, x)


def test_what_a_stage_starts_from(tmp_path: Path) -> None:
    """The stage before it in the run, else the same one of the earlier run, else the one before it there."""
    own, earlier = tmp_path / "own", tmp_path / "earlier"
    own.mkdir()
    earlier.mkdir()
    run = RunFolder(own, earlier, EYE)
    assert run.start(LOSSY) is None
    with pytest.raises(FileNotFoundError):
        run.start(EYE)
    for new in (earlier / "tune-lossy.safetensors", earlier / "eye.safetensors"):
        new.touch()
        assert run.start(EYE) == new
    (own / "eye.safetensors").touch()
    assert run.start(EYE) == earlier / "eye.safetensors", "where it began, also when it goes on"
    (own / "tune-lossy.safetensors").touch()
    assert run.start(EYE) == own / "tune-lossy.safetensors"
    for stage in (EXACT, TUNED_EXACT, LAYERED):
        (earlier / f"{stage}.safetensors").touch()
        assert run.start(TUNED_EXACT) == run.start(LAYERED) == earlier / f"{stage}.safetensors"
    assert RunFolder(own, earlier).start(TUNED_EXACT) == earlier / "tune-exact.safetensors"
    assert run.find(LAYERED, TUNED_EXACT) == earlier / "tune-layered.safetensors"
    (own / "tune-exact.safetensors").touch()
    assert run.find(LAYERED, TUNED_EXACT) == own / "tune-exact.safetensors"


PROCESSES = """
import sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from torch import nn
from vbc.codec.train.processes import joined, rank
from vbc.codec.train.training_loop import Schedule, run_stage

torch.manual_seed(1)
net = nn.ModuleDict({"used": nn.Linear(4, 3), "seldom": nn.Linear(4, 3), "never": nn.Linear(2, 2)})

def loss(x, step):
    y = x[:, :1, 0, :4].float() / 255  # [n, 1, 4]; products of matrices would be in bfloat16
    value = (y * net["used"].weight).sum(-1).square().mean()
    if step % 2:
        value = value + (y * net["seldom"].weight).sum(-1).sin().mean()
    return value, {"loss": value.item()}

reports = []
tiles = np.random.default_rng(2).integers(0, 256, (9, 3, 128, 128), dtype=np.uint8)
with joined("cpu") as device:
    schedule = Schedule(steps=7, rate=0.05, batch=6, warmup=1, log_every=1, valid_every=3)
    out = Path(sys.argv[1])
    run_stage(net, loss, lambda: {"rank": rank()}, tiles, schedule, out, device, reports.append)
    save_file(net.state_dict(), f"{out}.{rank()}")
print(len(reports))
"""


def test_several_processes_train_as_one_does(tmp_path: Path) -> None:
    """Each takes a part of every batch; a part of the network that only some steps use counts too."""
    script = tmp_path / "script.py"
    script.write_text(PROCESSES)
    alone = subprocess.run([sys.executable, script, tmp_path / "one"], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    two = [  # with the variables that torchrun sets
        subprocess.Popen(
            [sys.executable, script, tmp_path / "two"],
            env=os.environ | where | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[0] for process in two]
    assert [process.returncode for process in two] == [0, 0]
    one, *both = (load_file(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    torch.manual_seed(1)
    assert (one["used.weight"] - nn.Linear(4, 3).weight).abs().max() > 0.05
    for name, value in one.items():
        assert torch.equal(both[0][name], both[1][name]), "processes keep equal weights"
        assert torch.allclose(both[0][name], value, atol=1e-5), name
    assert alone.stdout.split() == ["10"]
    assert [text.strip() for text in said] == ["10", "7"], "the first one validates"
