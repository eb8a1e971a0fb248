"""Generators against discriminators: each learns from its own part of the loss, and a run can be resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vbc.codec.research.parts import adversarial
from vbc.codec.research.parts.adversarial import (
    Adversaries,
    Discriminator,
    Generator,
    adversarial_loss,
    fit_generator,
    freeze,
    frozen,
)
from vbc.codec.research.parts.loop import Plan, random_batch, train
from vbc.codec.research.parts.picture_vae import Decoder, Encoder, Form, to_unit
from vbc.codec.research.run import Setting

FORM = Form(1, 8, 3, (4, 8))
DATA = torch.randint(0, 256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
PLAN = Plan(steps=6, batch=4, rate=1e-3, log_every=2, save_minutes=0.0)


def pair(spectral: bool = False) -> Adversaries:
    torch.manual_seed(0)
    return Adversaries(Generator(FORM, None), Discriminator(FORM, spectral))


def encoder() -> Encoder:
    torch.manual_seed(1)
    return freeze(Encoder(FORM))


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("spectral", [False, True])
def test_each_network_learns_from_its_own_part(spectral: bool) -> None:
    torch.manual_seed(2)
    z, real = torch.randn(4, 3), to_unit(DATA[:4])
    together, apart = pair(spectral), pair(spectral)
    q = encoder().posterior
    torch.autograd.backward(adversarial_loss(together, real, z, q, 0.5)[0])
    made = apart.generator(z)
    odds = apart.discriminator(real), apart.discriminator(made.detach())
    judge = -torch.sigmoid(odds[0]).log().mean() - (1 - torch.sigmoid(odds[1])).log().mean()
    torch.autograd.backward(judge)
    wanted = [p.clone() for p in gradients(apart.discriminator)]
    for found, expected in zip(gradients(together.discriminator), wanted, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    maker = -torch.sigmoid(apart.discriminator(made)).log().mean() - 0.5 * q(made).log_prob(z).mean()
    torch.autograd.backward(maker)
    for found, expected in zip(gradients(together.generator), gradients(apart.generator), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_frozen_for_a_while_and_for_good() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with frozen(network):
        assert not any(p.requires_grad for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == [True, False]
    assert not any(p.requires_grad for p in freeze(network).parameters())


def test_a_generator_starts_as_the_decoder_it_is_given() -> None:
    decoder, z = Decoder(FORM).eval(), torch.randn(5, 3)
    assert torch.equal(Generator(FORM, decoder).eval()(z), decoder(z))
    assert not torch.equal(Generator(FORM, None).eval()(z), decoder(z))


@pytest.mark.parametrize("spectral", [False, True])
def test_starts(spectral: bool) -> None:
    network = adversarial.orthogonal_start(Discriminator(FORM, spectral))
    last = network[-1]
    raw = last.parametrizations.weight.original if spectral else last.weight
    assert torch.allclose(raw @ raw.T, torch.eye(1), atol=1e-5)
    second = [layer for layer in adversarial.dcgan_start(network) if isinstance(layer, nn.Conv2d)][1]
    raw = second.parametrizations.weight.original if spectral else second.weight
    assert raw.std().item() == pytest.approx(adversarial.FIRST_DEVIATION, rel=0.3)


def test_spectral_norm_bounds_the_discriminator() -> None:
    network = adversarial.orthogonal_start(Discriminator(FORM, spectral=True)).train()
    for _ in range(30):
        network(torch.randn(2, 1, 8, 8))
    assert torch.linalg.matrix_norm(network[-1].weight, 2).item() == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("spectral", [False, True])
def test_an_interrupted_run_ends_alike(spectral: bool, tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int | None = None) -> Adversaries:
        folder.mkdir(exist_ok=True)
        model, q = pair(spectral), encoder().posterior

        def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
            if step == stop_at:
                raise KeyboardInterrupt
            return adversarial_loss(model, to_unit(x), torch.randn(len(x), 3), q, 1.0)

        setting = Setting(folder, folder, 1.0, emit=list[str]().append)
        train(model, loss, random_batch(DATA, 4, 1), PLAN, folder / "gan.safetensors", setting)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 5)
    resumed = run(tmp_path / "parts")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_code_guides_the_generator(tmp_path: Path) -> None:
    """With a heavy second term, what the encoder reads from pictures nears the codes they were made of."""
    setting = Setting(tmp_path, tmp_path, 1.0, emit=list[str]().append)
    q = encoder().posterior
    errors = {}
    z = torch.randn(64, 3, generator=torch.Generator().manual_seed(5))
    for weight in (0.0, 50.0):
        plan = replace(PLAN, steps=60, rate=5e-3)
        batches = random_batch(DATA, 12, 1)
        made = fit_generator(pair, q, weight, 3, batches, plan, 100.0, setting, f"weight {weight:g}")
        errors[weight] = (q(made(z)).mean - z).square().mean().item()
        assert not any(p.requires_grad for p in made.parameters())
    assert errors[50.0] < 0.9 * errors[0.0]
