"""Pixel likelihoods: masses sum to one and agree with the nats; samples and modes have the right shape."""

import math

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.likelihoods import ColourMixture

LIKELIHOODS = [ColourMixture(3, 10), ColourMixture(3, 1), ColourMixture(1, 10)]


def case(likelihood: ColourMixture) -> tuple[Tensor, Tensor]:
    """Maps that differ everywhere and a picture with edge values."""
    g = torch.Generator().manual_seed(3)
    maps = torch.randn(2, likelihood.n_maps, 3, 5, generator=g)
    x = torch.randint(0, 256, (2, likelihood.channels, 3, 5), generator=g)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 255
    return maps, x.to(torch.uint8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_masses_sum_to_one_and_make_the_nats(likelihood: ColourMixture) -> None:
    maps, x = case(likelihood)
    nats = torch.zeros(2, dtype=torch.float64)
    for channel in range(likelihood.channels):
        masses = likelihood.masses(maps, x, channel)
        assert torch.allclose(masses.sum(-1), torch.ones(2, 3, 5).double(), atol=1e-12)
        own = masses.gather(-1, x[:, channel, ..., None].long()).squeeze(-1)
        nats -= own.log().sum((1, 2))
    assert torch.allclose(likelihood.nats(maps, x).double(), nats, rtol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_masked_pixels_cost_nothing(likelihood: ColourMixture) -> None:
    maps, x = case(likelihood)
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[:, 1:, 2:] = True
    part = likelihood.nats(maps[..., 1:, 2:].contiguous(), x[..., 1:, 2:].contiguous())
    assert torch.allclose(likelihood.nats(maps, x, mask), part, rtol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
def test_samples_have_the_masses(likelihood: ColourMixture) -> None:
    """Frequencies of the first channel's values in 20,000 samples; five standard errors at most."""
    n = 20000
    maps, x = case(likelihood)
    one = maps[:1, :, :1, :1].expand(1, -1, 100, n // 100).contiguous()
    drawn = likelihood.sample(one, torch.Generator().manual_seed(5))
    want = likelihood.masses(maps[:1, :, :1, :1], x[:1, :, :1, :1], 0).flatten()
    have = torch.bincount(drawn[:, 0].flatten().long(), minlength=len(want)) / n
    error = (want * (1 - want) / n).sqrt()
    assert ((have - want).abs() <= 5 * error + 1 / n).all()


def test_mode_is_the_mean_of_the_likeliest_component() -> None:
    likelihood = ColourMixture(3, 2)
    maps = torch.zeros(1, likelihood.n_maps, 1, 1)
    maps[0, :2, 0, 0] = torch.tensor([0.0, 1.0])
    maps[0, 2:8, 0, 0] = torch.tensor([0.9, -0.5, 0.9, 0.25, 0.9, 0.0])
    maps[0, 14:, 0, 0] = torch.atanh(torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0, 0.2]))
    red = -0.5
    green = 0.25 + 0.5 * red
    want = [math.floor((v + 1) * 127.5 + 0.5) for v in (red, green, 0.2 * green)]
    assert likelihood.mode(maps).flatten().tolist() == want


def test_four_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or 3"):
        ColourMixture(4)
