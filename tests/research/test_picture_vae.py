"""VAEs of small pictures: a loss that is a message length."""

import math

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts import picture_vae
from vbc.codec.research.parts.picture_vae import (
    Form,
    PictureVae,
    codes_of,
    loss_of,
    message_nats,
    pictures_of,
)

SMALL = Form(3, 16, 4, (4, 8), hidden=8)


def pictures(n: int = 8, channels: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    smooth = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(smooth, (side, side), mode="bilinear")
    return (255 * large).to(torch.uint8)


def test_values_and_units_are_inverse() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(picture_vae.to_bytes(picture_vae.to_unit(values)), values)


def test_the_gradient_is_that_of_squared_error_over_its_variance() -> None:
    x, y = pictures(), (0.5 * torch.randn(8, 3, 16, 16)).requires_grad_()
    torch.autograd.backward(message_nats(x, y))
    assert y.grad is not None
    variance = picture_vae.squared_error(x, y).mean().item() + picture_vae.ROUNDING
    again = y.detach().clone().requires_grad_()
    per_picture = picture_vae.squared_error(x, again).flatten(1).sum(1).mean()
    torch.autograd.backward(per_picture / (2 * variance))
    assert torch.allclose(y.grad, again.grad, rtol=1e-4)


def test_a_message_of_known_noise_has_its_entropy() -> None:
    x = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    noise = 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y = (x + noise) / 127.5 - 1
    entropy = 0.5 * math.log(2 * math.pi * math.e * 20**2) * 3 * 64 * 64
    assert message_nats(x, y).item() == pytest.approx(entropy, rel=1e-3)
    exact = message_nats(x, picture_vae.to_unit(x)).item()
    assert exact == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 12) * 3 * 64 * 64, rel=1e-3)


@pytest.mark.parametrize("residual", [False, True])
def test_it_learns(residual: bool) -> None:
    torch.manual_seed(0)
    model, x = PictureVae(Form(3, 16, 4, (4, 8), hidden=8, residual=residual)), pictures()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    nats = []
    for _ in range(60):
        loss, log = loss_of(model, x)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        nats.append(log["nats"])
    assert nats[-1] < nats[0] - 150  # the variance of the errors is then two thirds or less


def test_beta_prices_the_code() -> None:
    torch.manual_seed(0)
    model, x, losses = PictureVae(SMALL), pictures(), []
    for beta in (1.0, 3.0):
        torch.manual_seed(1)
        value, log = loss_of(model, x, beta)
        losses.append(value.item())
    assert losses[1] - losses[0] == pytest.approx(2 * log["kl"], rel=1e-2)


def test_many_pictures_are_coded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = PictureVae(SMALL).eval(), pictures(7)
    whole = codes_of(model.encoder, x)
    shown = pictures_of(model.decoder, whole.mean)
    monkeypatch.setattr(picture_vae, "CHUNK", 3)
    parts = codes_of(model.encoder, x)
    assert torch.allclose(parts.mean, whole.mean, atol=1e-5)
    difference = pictures_of(model.decoder, whole.mean).int() - shown.int()
    assert (shown.shape, shown.dtype, int(difference.abs().max()) <= 1) == (x.shape, torch.uint8, True)
