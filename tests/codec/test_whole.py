"""Training of lossy and exact networks together, on the bits of whole layered files."""

import json
from pathlib import Path

import pytest
import torch
from pictures import photo
from PIL import Image
from torch import Tensor

from vbc.codec.exact.features import phase_inputs
from vbc.codec.pixels.colour import rgb_to_opponent, rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train import eye_loss, stages
from vbc.codec.train.checkpoint import save_checkpoint
from vbc.codec.train.exact_loss import exact_bits
from vbc.codec.train.exact_net import ExactNet, inputs_with_gradient, step_planes
from vbc.codec.train.lossy_loss import squared_error
from vbc.codec.train.lossy_net import LossyNet, Widths
from vbc.codec.train.run_folder import RunFolder
from vbc.codec.train.whole_loss import (
    HIGHEST,
    LOWEST,
    WholeNet,
    decoded_picture,
    layered_qualities,
    whole_loss,
    ycocg_with_gradient,
)

SIDE = 128


@pytest.fixture
def rgb() -> Tensor:
    return photo(SIDE, SIDE)[None]


@pytest.fixture
def lossy(rgb: Tensor) -> Tensor:
    noise = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(1))
    return (rgb + 9 * noise).round().clamp(0, 255).requires_grad_()


def small_net() -> WholeNet:
    torch.manual_seed(5)
    return WholeNet(LossyNet(Widths(8, 8, 8, 8, 8)), ExactNet(width=8))


def test_decoded_picture(rgb: Tensor) -> None:
    """Whole numbers that RGB has, with the gradient of the planes."""
    planes = (rgb_to_opponent(rgb.float() - 128) * 1.3 + 0.2).requires_grad_()
    picture = decoded_picture(planes)
    assert torch.equal(picture, picture.round())
    assert picture.min() == 0
    assert picture.max() == 255
    picture.sum().backward()
    assert planes.grad is not None
    assert planes.grad.abs().max() > 0.5


def test_colour_is_the_integers_with_a_gradient(lossy: Tensor) -> None:
    out = ycocg_with_gradient(lossy)
    assert torch.equal(out.detach(), rgb_to_ycocg(lossy.detach().to(torch.uint8)).float())
    out[:, 1].sum().backward()
    assert lossy.grad is not None
    assert torch.equal(lossy.grad[:, 0], torch.ones_like(lossy[:, 0])), "Co is red minus blue"
    assert torch.equal(lossy.grad[:, 2], -torch.ones_like(lossy[:, 0]))


@pytest.mark.parametrize("phase", PHASES)
def test_inputs_are_the_integers_with_a_gradient(rgb: Tensor, lossy: Tensor, phase: str) -> None:
    planes = step_planes(rgb_to_ycocg(rgb))
    whole = step_planes(rgb_to_ycocg(lossy.detach().to(torch.uint8)))
    known = planes["A"], planes["D"], planes["H"]
    wanted = phase_inputs(phase, *known, whole)
    got = inputs_with_gradient(phase, *known, step_planes(ycocg_with_gradient(lossy)))
    for a, b in zip(got, wanted, strict=True):
        assert b is not None
        assert torch.equal(a, b.float())
        (gradient,) = torch.autograd.grad(a.square().sum(), lossy, retain_graph=True)
        assert gradient.abs().max() > 0


def test_bits_are_those_of_the_exact_networks_alone(rgb: Tensor, lossy: Tensor) -> None:
    net, x, q = ExactNet(width=8), rgb_to_ycocg(rgb), torch.tensor([50.0])
    whole = rgb_to_ycocg(lossy.detach().to(torch.uint8))
    with torch.no_grad():
        assert torch.equal(exact_bits(net, x, ycocg_with_gradient(lossy), q), exact_bits(net, x, whole, q))


def test_qualities(rgb: Tensor) -> None:
    torch.manual_seed(2)
    maps, base = layered_qualities(rgb.float().mean(1, keepdim=True).expand(40, -1, -1, -1))
    assert maps.shape == (40, 1, SIDE // 8, SIDE // 8)
    assert LOWEST <= base.min() < base.max() <= HIGHEST
    constant = (maps == base.view(-1, 1, 1, 1)).flatten(1).all(1)
    assert 5 < constant.sum() < 35


def test_what_learns(rgb: Tensor) -> None:
    """Both networks, but neither steps nor the layers of archival files."""
    net = small_net()
    value, log = whole_loss(net, squared_error)(torch.cat((rgb, rgb.flip(-1))), 0)
    value.backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {
        "lossy.analysis_out.weight",
        "lossy.prior3.head.weight",
        "exact.nets.D0.layered.head.weight",
    } <= moved
    assert "lossy.log2_step" not in moved
    assert all(".layered." in name for name in moved if name.startswith("exact."))
    assert 0 < log["latents_bpsp"] < log["whole_bpsp"]


def test_exact_bits_reach_the_lossy_network(rgb: Tensor) -> None:
    """Not only its own bits and its distortion do."""
    net = small_net()
    target = rgb_to_opponent(rgb.float() - 128)
    q = torch.full((1, 1, SIDE // 8, SIDE // 8), 50.0)
    planes = net.lossy.synthesise(torch.cat(net.lossy(target, q)[0], 1), q, 3)
    bits = exact_bits(
        net.exact, rgb_to_ycocg(rgb), ycocg_with_gradient(decoded_picture(planes)), torch.tensor([50.0])
    )
    bits.backward()
    assert net.lossy.analysis_out.weight.grad is not None
    assert net.lossy.analysis_out.weight.grad.abs().max() > 0


def test_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts from both networks, and its result is what `lossy="whole"` takes."""
    monkeypatch.setattr(eye_loss, "FIT_BATCHES", 1)
    monkeypatch.setattr(stages, "REFIT_TILES", 1)
    Image.fromarray(photo(SIDE, SIDE).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    out = tmp_path / "run"
    lossy, exact = LossyNet(), ExactNet()
    for net, name in ((lossy, "eye.safetensors"), (exact, f"{stages.TUNED_EXACT}.safetensors")):
        save_checkpoint(out / name, net, torch.optim.Adam(net.parameters()), 1)
    lines: list[str] = []
    stages.train(tmp_path, tmp_path, out, stage="whole", steps=1, batch=2, emit=lines.append)
    valid = json.loads(lines[-1])["valid"]
    assert 0 < valid["q50_latents_bpsp"] < valid["q75_latents_bpsp"] < valid["q75_whole_bpsp"]
    trained = RunFolder(out).load_whole()
    assert not torch.equal(trained.lossy.analysis_out.weight, lossy.analysis_out.weight)
    assert torch.equal(trained.lossy.log2_step, lossy.log2_step)
    run = RunFolder(out, lossy="whole")
    assert torch.equal(run.load_lossy().analysis_out.weight, trained.lossy.analysis_out.weight)
    assert torch.equal(run.load_exact().net("D", 0).first.weight, exact.net("D", 0).first.weight)
    stages.train(tmp_path, tmp_path, out, stage="export", lossy="whole", steps=1, emit=lines.append)
    assert (out / "model.safetensors").exists()
