"""Training: every stage runs, resumes where it was, and leaves a model that codes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import photo
from PIL import Image

from vbc.codec.model import load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings
from vbc.codec.train.checkpoint import load_checkpoint
from vbc.codec.train.exact_loss import archival_loss, validate_exact
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import known_answers, stored_answers
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
        emit=lambda line: None,
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
    assert [r["stage"] for r in reports if "stage" in r] == list(module.STAGES)
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
