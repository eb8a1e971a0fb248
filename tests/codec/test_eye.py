"""The distance for the eye, and the training stage that lowers it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import constant, noise, photo, smooth
from PIL import Image
from torch import Tensor
from torch.optim import Adam

import vbc.codec.train.stages as stages
from vbc.codec.train import eye_loss as module
from vbc.codec.train.checkpoint import save_checkpoint
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.eye_loss import eye_distance, eye_loss, fit_kappa, plane_distance
from vbc.codec.train.lossy_loss import lossy_loss, squared_error, validate_lossy
from vbc.codec.train.lossy_net import LossyNet, Widths
from vbc.codec.train.run_folder import RunFolder
from vbc.codec.train.training_loop import Schedule, run_stage

SIDE = 128
TILES = np.stack([photo(SIDE, SIDE).numpy(), smooth(SIDE, SIDE).numpy()])


def distance(a: Tensor, b: Tensor) -> float:
    """Of two pictures [3, H, W]."""
    return eye_distance(a[None].float(), b[None].float()).item()


def gray_noise(deviation: float) -> Tensor:
    """[1, 128, 128], the same pattern for every deviation."""
    return deviation * torch.randn(1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [photo, noise, constant])
def test_equal_pictures_have_no_distance(make) -> None:
    assert distance(make(SIDE, SIDE), make(SIDE, SIDE)) == 0


def test_grows_with_noise_and_blur() -> None:
    x = photo(SIDE, SIDE).float()
    noisy = [distance(x, x + gray_noise(deviation)) for deviation in (0, 1, 2, 4, 8, 16)]
    blurred = [distance(x, smooth(SIDE, SIDE, reach)) for reach in (0, 1, 2, 3)]
    for series in (noisy, blurred):
        assert series == sorted(set(series)), series


def test_lost_texture_is_worse_than_noise_of_the_same_squared_error() -> None:
    """So says SSIMULACRA 2 (100 is perfect): 54 blurred, 83 noisy; 70 without texture, 74 with it doubled."""
    x, blurred = photo(SIDE, SIDE).float(), smooth(SIDE, SIDE).float()
    deviation = (x - blurred).square().mean().sqrt().item()
    assert distance(x, blurred) > 1.1 * distance(x, x + gray_noise(deviation))
    flat = 50 + 0.6 * blurred
    texture = gray_noise(10)
    assert distance(flat + texture, flat) > 1.1 * distance(flat + texture, flat + 2 * texture)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (32, 16), (33, 65), (128, 16)])
def test_small_and_odd_sizes(height: int, width: int) -> None:
    x = photo(height, width)
    assert 0 < distance(x, x // 2 * 2 + 1) < distance(x, x // 16 * 16 + 8)


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="sides >= 16"):
        distance(photo(15, 40), photo(15, 40))


@pytest.mark.parametrize("original", [constant(32, 32, 0), constant(32, 32), photo(32, 32)])
@pytest.mark.parametrize("change", [0, 1e-3, 1, -1, -300, 300])
def test_gradients_are_finite(original: Tensor, change: float) -> None:
    x = (original[None].float() + change).requires_grad_()
    eye_distance(original[None], x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_autocast_does_not_coarsen_it() -> None:
    a, b = photo(64, 64)[None], photo(64, 64)[None] // 4 * 4
    exact = eye_distance(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(eye_distance(a, b), exact)


def small_net() -> LossyNet:
    torch.manual_seed(0)
    return LossyNet(Widths(8, 8, 8, 8, 8))


def test_kappa_makes_both_weigh_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIT_BATCHES", 1)
    net = small_net()
    kappa = fit_kappa(net, TILES)
    torch.manual_seed(5)
    assert fit_kappa(net, TILES) == kappa, "whatever the global generator's state"
    monkeypatch.setattr(module, "plane_distance", squared_error)
    assert fit_kappa(net, TILES) == pytest.approx(1)
    assert np.isfinite(fit_kappa(net, np.zeros_like(TILES)))


def test_the_loss_is_the_lossy_one_but_for_the_distortion() -> None:
    net, batch = small_net(), torch.from_numpy(TILES)

    def value(loss) -> float:
        torch.manual_seed(3)
        return loss(batch, 0)[0].item()

    no_rate = value(lossy_loss(net, lambda planes, target: 0 * squared_error(planes, target)))
    squared = value(lossy_loss(net)) - no_rate
    eye = value(lossy_loss(net, plane_distance)) - no_rate
    assert value(eye_loss(net, 100.0)) - no_rate == pytest.approx(0.2 * squared + 80 * eye, rel=1e-3)


def tune(steps: int, checkpoint: Path) -> LossyNet:
    net = small_net()
    schedule = Schedule(steps=steps, rate=1e-3, batch=2, warmup=1, log_every=1000, valid_every=1000)
    validate = validate_lossy(net, TILES, plane_distance)
    reports: list[dict[str, Any]] = []
    run_stage(net, eye_loss(net, 100.0), validate, TILES, schedule, checkpoint, say=reports.append)
    assert reports[-1]["valid"]["q20_eye"] > reports[-1]["valid"]["q80_eye"] > 0
    return net


def test_resuming_equals_never_having_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Schedule, "rate_at", lambda self, step: 1e-3)  # the cosine depends on the length
    whole = tune(4, tmp_path / "whole.safetensors")
    tune(2, tmp_path / "part.safetensors")
    resumed = tune(4, tmp_path / "part.safetensors")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    def mean_loss(net: LossyNet) -> float:
        torch.manual_seed(9)
        with torch.no_grad():
            return eye_loss(net, 100.0)(torch.from_numpy(TILES).repeat(4, 1, 1, 1), 0)[0].item()

    assert mean_loss(tune(12, tmp_path / "x.safetensors")) < 0.99 * mean_loss(small_net())


def test_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts from the tuned network, and its result is what `lossy="eye"` takes."""
    monkeypatch.setattr(module, "FIT_BATCHES", 1)
    kappas: list[float] = []
    loss = stages.eye_loss
    monkeypatch.setattr(stages, "eye_loss", lambda net, kappa: (kappas.append(kappa), loss(net, kappa))[1])
    Image.fromarray(photo(SIDE, SIDE).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    lines: list[str] = []

    def run() -> None:
        stages.train(tmp_path, tmp_path, tmp_path / "run", stage="eye", steps=1, emit=lines.append)

    with pytest.raises(FileNotFoundError):
        run()
    start = LossyNet()
    with torch.no_grad():
        start.first_scale += 2
    save_checkpoint(RunFolder(tmp_path / "run").checkpoint("tune-lossy"), start, Adam(start.parameters()), 7)
    run()
    assert json.loads(lines[-1])["valid"]["q60_eye"] > 0
    tuned, before = (RunFolder(tmp_path / "run", lossy=name).load_lossy() for name in ("eye", "tune-lossy"))
    assert torch.equal(before.first_scale, start.first_scale)
    assert 0 < (tuned.first_scale - start.first_scale).abs().max() < 0.01, "one step away from its start"
    run()
    assert len(kappas) == 2
    assert kappas[0] == kappas[1], "a resumed run has the same loss"


def test_tuning_and_export_take_the_lossy_network_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "REFIT_TILES", 1)
    Image.fromarray(photo(SIDE, SIDE).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    out = tmp_path / "run"
    for net, name in ((LossyNet(), "eye.safetensors"), (ExactNet(), f"{stages.EXACT}.safetensors")):
        save_checkpoint(out / name, net, Adam(net.parameters()), 1)
    for stage in ("tune-exact", "export"):
        with pytest.raises(FileNotFoundError):  # there is no other
            stages.train(tmp_path, tmp_path, out, stage=stage, steps=1, emit=lambda line: None)
        stages.train(tmp_path, tmp_path, out, stage=stage, lossy="eye", steps=1, emit=lambda line: None)
    assert (out / "model.safetensors").exists()
