"""patch-VAE: codes of whole images, likelihood and samples of patches, the measures of its study."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.local_pixelcnn import to_blocks
from vbc.codec.research.parts.loop import Plan, make_optimiser, train_step
from vbc.codec.research.run import Row, Setting
from vbc.codec.research.systems.patch_vae import claims, global_vae, tables
from vbc.codec.research.systems.patch_vae.model import (
    BATCH,
    CONTROLS,
    THESIS,
    PatchVAE,
    form,
    loss_of,
    random_patches,
    rates,
    reconstruct,
    trained,
)


def pictures(n: int, side: int, channels: int = 3) -> Tensor:
    """Smooth pictures: uint8 [n, channels, side, side]."""
    noise = torch.rand((n, channels, 3, 3), generator=torch.Generator().manual_seed(n))
    return (torch.nn.functional.interpolate(noise, (side, side), mode="bilinear") * 255).to(torch.uint8)


def model_of(name: str, std: float = 0.1) -> PatchVAE:
    """A model whose maps depend on z and on the pixels."""
    torch.manual_seed(0)
    model = PatchVAE(form(name))
    for parameter in model.decoder.pixels.parameters():
        if not parameter.any() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.mark.parametrize("name", ["3|1", "9|1", "15|1"])
def test_codes_of_a_whole_image_are_those_of_its_patches(name: str) -> None:
    model, x = model_of(name), pictures(1, 20)
    side = model.form.patch
    with torch.no_grad():
        whole = model.encoder(x)
        assert whole.mean.shape == (1, model.latents, 21 - side, 21 - side)
        for top, left in ((0, 0), (2, 5), (20 - side, 20 - side)):
            one = model.encode(x[..., top : top + side, left : left + side])
            for part, known in zip(whole, one, strict=True):
                torch.testing.assert_close(part[..., top, left], known)


@pytest.mark.parametrize("name", ["9|1", "9|1 colour", "9|3"])
def test_samples_are_likeliest_under_the_code_that_drew_them(name: str) -> None:
    """Fewer nats than under another code, and fewer than noise."""
    model = model_of(name)
    z, other = torch.randn(2, 1, model.latents).expand(-1, 100, -1)
    x = model.decoder.sample(z, torch.Generator().manual_seed(1))
    assert x.shape == (100, 3, 9, 9)
    noise = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    with torch.no_grad():
        nats = model.decoder.nats(x, z)
        for more in (model.decoder.nats(x, other), model.decoder.nats(noise, z)):
            error = math.hypot(nats.std().item(), more.std().item()) / 10
            assert (more.mean() - nats.mean()).item() > 5 * error


def test_independent_channels_are_charged_one_by_one() -> None:
    """|1 without coefficients: what one channel says changes nothing about the others."""
    model, z = model_of("9|1"), torch.randn(1, 64)
    x = pictures(1, 9)
    other = x.clone()
    other[:, 1] = 0
    third = other.clone()
    third[:, 2] = 255
    fourth = x.clone()
    fourth[:, 2] = 255
    with torch.no_grad():
        a, b, c, d = (model.decoder.nats(y, z).item() for y in (x, other, third, fourth))
    assert b - a == pytest.approx(c - d, abs=1e-2)
    assert abs(b - a) > 1


def test_expected_pixels_are_the_mean_of_samples() -> None:
    for name in ("3|1", "9|3"):
        model = model_of(name, std=0.01)  # means far from the range's edge, which would pull samples inwards
        z = torch.randn(1, model.latents)
        mean, spread = model.decoder.expected(z, 16, torch.Generator().manual_seed(1))
        draws = model.decoder.sample(z.expand(200, -1), torch.Generator().manual_seed(2)).float()
        allowed = 5 * (draws.var(0) / 200 + spread).sqrt() + 4
        assert ((mean - draws.mean(0)).abs() < allowed).all()
        assert bool((spread > 0).any()) == (name == "9|3")


@pytest.mark.parametrize("name", [*THESIS, *CONTROLS])
def test_every_form_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCH, form(name).patch, 4)
    log: list[str] = []
    setting = Setting(tmp_path, tmp_path, 0.05, emit=log.append)
    model = trained(form(name), pictures(6, 20), 0.02, setting, f"set {name}")
    figures = rates(model, random_patches(pictures(3, 20), model.form.patch, 4, 0)(0), 1)
    assert 0 < figures["CE"] < 12
    assert figures["total"] == pytest.approx(figures["CE"] + figures["z"] / model.dimensions)
    assert log
    assert not model.training


def test_the_weight_of_kl_rises() -> None:
    """At step 0 only likelihood counts, later the whole bound."""
    model, x = model_of("3|1"), pictures(64, 3)
    loss = loss_of(model, Plan(steps=100, batch=64, rate=1e-3))
    torch.manual_seed(0)
    nats, rate = (t.mean().item() for t in model.terms(x))
    for step, weight in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        torch.manual_seed(0)
        assert loss(x, step)[0].item() == pytest.approx((nats + weight * rate) / 27, rel=1e-5)


def test_patches_are_drawn_uniformly() -> None:
    at = torch.arange(7 * 6).view(1, 1, 7, 6).to(torch.uint8)
    found = random_patches(at, 3, 4000, 1)(0)
    corner = found[:, 0, 0, 0].long()
    counts = torch.bincount(corner, minlength=42).view(7, 6)
    assert counts[5:].sum() == 0
    assert counts[:, 4:].sum() == 0
    assert counts[:5, :4].min() > 130  # 200 expected
    assert torch.equal(found[:, 0, 2, 1].long(), corner + 13)
    assert not torch.equal(found, random_patches(at, 3, 4000, 1)(1))


def test_reconstructions_put_patches_where_they_were() -> None:
    model, x = model_of("3|1"), pictures(2, 10)
    blocks = to_blocks(x[..., :9, :9].contiguous(), 3)
    (same,) = reconstruct(model, x, lambda z: (blocks,), torch.Generator().manual_seed(0))
    assert torch.equal(same, x[..., :9, :9])


@pytest.mark.parametrize("kind", global_vae.THESIS)
def test_global_codes_train(kind: global_vae.GlobalForm) -> None:
    torch.manual_seed(0)
    model, x = global_vae.GlobalVAE(kind, 16), pictures(4, 16)
    plan = global_vae.plan_of(1, 10)
    loss = global_vae.loss_of(model, plan)
    optimiser = make_optimiser(model, plan)
    first, *_, last = (train_step(model, loss, lambda step: x, plan, optimiser, n, "cpu") for n in range(4))
    assert last["loss"] < first["loss"]
    assert model.log_var.requires_grad == (kind.beta == 1)
    model.eval()
    layers = model.layers(x)
    assert len(layers) == len(global_vae.LAYERS)
    assert torch.equal(layers[-1], model.encode(x).mean)
    assert global_vae.code_bits(model, x) > 0


def test_claims_follow_the_figures() -> None:
    """On the thesis' own figures every claim that they can decide is found; on equal figures none is."""
    patch = {name: {"z": z, "CE": ce} for name, (_, (z, ce)) in tables.FIGURES.items()}
    for n, name in enumerate(("15|5", "9|3", "15|3", "15|1", "9|1", "3|1")):
        patch[name]["PSNR of E[x|z]"] = 15.0 + n
    patch |= {f"{p}|1 colour": patch[f"{p}|1"] | {"CE": patch[f"{p}|1"]["CE"] - 0.2} for p in (3, 9, 15)}
    whole = {name: {"z": celeba} for name, (celeba, _) in tables.GLOBAL_BITS.items()}
    found = claims.tables_2_and_3("CIFAR", patch, whole)
    assert [effect.found for effect in found] == [True] * len(found)
    flat = {name: {"z": form(name).patch ** 2.0, "CE": 4.0, "PSNR of E[x|z]": 20.0} for name in patch}
    none = claims.tables_2_and_3("CIFAR", flat, {name: {"z": 100.0} for name in whole})
    assert not any(effect.found for effect in none)
    slow = Row(
        "9|3", {"steps": 9.0, "parallel": 5.0, "raster steps": 3600.0, "raster": 4.0, "times faster": 0.8}
    )
    assert not claims.decoding_speed("CIFAR", [slow]).found


def test_speed_is_measured_in_steps_and_time() -> None:
    figures = tables.speed_row(model_of("9|3"), pictures(1, 20)).figures
    assert figures["steps"] == 9
    assert figures["raster steps"] == 18 * 18
    assert figures["times faster"] > 0
