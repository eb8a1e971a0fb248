"""The ssVAE: its bound by an independent formula, what its modes keep, importance sampling, a few steps of
training."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.blocks import Output, initialise_from_batch
from vbc.codec.research.parts.data_sets import Split
from vbc.codec.research.parts.importance import add_up, importance_nats, log_weights, mean_terms
from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.priors import RealNVP
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.ssvae.comparison import Entrant, train_equally
from vbc.codec.research.systems.ssvae.model import Sizes, SsVae
from vbc.codec.research.systems.ssvae.modes import (
    between,
    complete,
    generate,
    keep_codes,
    modes,
    posterior_codes,
)
from vbc.codec.research.systems.ssvae.representations import GRAY, HALVED, SKETCH, gray, halved, sketch
from vbc.codec.research.systems.ssvae.vae import LATENT_SHAPE, Size, n_halvings

TINY = Sizes(*[Size(2, 1)] * 2, None, *[Size(2, 1)] * 5)
LADDERS = {"vae": (), "srvae": (HALVED,), "3-level": (HALVED, HALVED), "gray": (GRAY,), "sketch": (SKETCH,)}


def pictures(n: int, side: int, seed: int = 1) -> Tensor:
    """Smooth colour pictures with noise: uint8 [n, 3, side, side]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth + 8 * torch.randn(n, 3, side, side, generator=g)).clamp(0, 255).to(torch.uint8)


def small_model(name: str) -> tuple[SsVae, Tensor]:
    """A model whose every output differs from its start, and pictures for it."""
    torch.manual_seed(2)
    ladder = LADDERS[name]
    side = 8 << sum(d.divisor == 2 for d in ladder)
    model = SsVae(side, ladder, TINY, RealNVP(LATENT_SHAPE, 2, 1), mixtures=2)
    for module in model.modules():
        if isinstance(module, Output):
            torch.nn.init.normal_(module.conv.weight, std=0.05)
    return model.eval(), pictures(2, side)


@pytest.mark.parametrize("name", LADDERS)
@torch.no_grad()
def test_terms_add_up_to_the_bound(name: str) -> None:
    """The bound from one sample, log p(x, codes) - log q, differs from the terms' sum only in the z, whose KL
    is closed: with the closed KL replaced by its sample the two are equal."""
    model, x = small_model(name)
    views = model.views(x)
    terms = model.terms(views, torch.Generator().manual_seed(7))
    posteriors = model.posteriors(views)
    g = torch.Generator().manual_seed(7)
    codes = [q.sample(g) for q in posteriors]
    joint = model.log_joint(views, codes)
    for k, z in enumerate(model.code_names()):
        sampled = posteriors[k].log_prob(codes[k]) - joint[z]
        if k == 0:
            assert torch.allclose(terms["KL_u"], sampled, atol=1e-2)
        terms[f"KL_{z}"] = sampled
    bound = add_up(joint) - torch.stack([q.log_prob(z) for q, z in zip(posteriors, codes, strict=True)]).sum(
        0
    )
    assert torch.allclose(add_up(terms), -bound, rtol=1e-4)


@torch.no_grad()
def test_one_level_is_section_four() -> None:
    """K = 1: RE_x + RE_y + KL_z + KL_u, written out for y = d(x) and the codes u and z."""
    model, x = small_model("srvae")
    y = halved(x)
    g = torch.Generator().manual_seed(11)
    u_posterior, z_posterior = model.base.posterior(y), model.level(1).posterior(x)
    u = u_posterior.mean + torch.exp(u_posterior.log_var / 2) * torch.randn(
        u_posterior.mean.shape, generator=g
    )
    z = z_posterior.mean + torch.exp(z_posterior.log_var / 2) * torch.randn(
        z_posterior.mean.shape, generator=g
    )
    pixels = ColourMixture(3, 2)
    re_y = pixels.nats(model.base.maps(u), y)
    re_x = pixels.nats(model.level(1).maps(y, z), x)
    m, s = z_posterior
    n, t = model.level(1).prior(y, u)
    kl_z = 0.5 * (t - s + (torch.exp(s) + (m - n) ** 2) / torch.exp(t) - 1).sum((1, 2, 3))
    density = -0.5 * ((u - u_posterior.mean) ** 2 / torch.exp(u_posterior.log_var) + u_posterior.log_var)
    log_q = (density - 0.5 * math.log(2 * math.pi)).sum((1, 2, 3))
    kl_u = log_q - model.base.prior.log_prob(u)
    have = model.terms(model.views(x), torch.Generator().manual_seed(11))
    for key, want in {"RE_x": re_x, "RE_y": re_y, "KL_z": kl_z, "KL_u": kl_u}.items():
        assert torch.allclose(have[key], want, rtol=1e-4), key
    assert len(have) == 4


@pytest.mark.parametrize("name", ["vae", "3-level"])
def test_bound_is_below_importance_sampling(name: str) -> None:
    """ELBO <= IW-512, both from the same samples and each against mean_terms within its noise."""
    model, x = small_model(name)
    x = x[:1]
    weights = log_weights(model, x, 512, torch.Generator().manual_seed(1), chunk=128)
    nll, negative_bound = importance_nats(weights), -weights.double().mean(1)
    assert (nll < negative_bound).all()
    assert (nll > -weights.max(1).values.double()).all()
    terms = mean_terms(model, x.repeat(64, 1, 1, 1), torch.Generator().manual_seed(2))
    error = float(weights.std()) * (1 / 64 + 1 / 512) ** 0.5
    assert terms["total"] == pytest.approx(float(negative_bound.mean()), abs=4 * error)


def test_importance_sampling_is_per_picture() -> None:
    """log-mean-exp over each picture's samples: two pictures with known weights."""
    weights = torch.tensor([[0.0, math.log(3.0)], [-100.0, -100.0]])
    assert torch.allclose(importance_nats(weights), torch.tensor([-math.log(2.0), 100.0]).double())


@torch.no_grad()
def test_conditional_reconstruction_with_true_y_is_the_training_term() -> None:
    """CR is p(x|y, z*) with the true y: its nats of x are RE_x, its picture is its mode."""
    model, x = small_model("srvae")
    views = model.views(x)
    codes = posterior_codes(model, x, torch.Generator().manual_seed(5))
    maps = model.level(1).maps(views[0], codes[1])
    terms = model.terms(views, torch.Generator().manual_seed(5))
    assert torch.allclose(model.level(1).likelihood.nats(maps, x), terms["RE_x"])
    shown = modes(model)["CR"](model, x, torch.Generator().manual_seed(5))
    assert torch.equal(shown, model.level(1).likelihood.mode(maps))


def test_modes_keep_what_they_say() -> None:
    model, x = small_model("3-level")
    assert sorted(modes(model)) == ["CR", "RS1", "RS2", "RS3", "SR"]
    views = model.views(x)
    codes = posterior_codes(model, x, torch.Generator().manual_seed(5))
    kept, drawn = complete(
        model, [None, views[1], None], [codes[0], None, codes[2]], 2, torch.Generator().manual_seed(6)
    )
    assert kept[1] is views[1]
    assert drawn[0] is codes[0]
    assert drawn[2] is codes[2]
    assert not torch.equal(drawn[1], codes[1])
    assert not torch.equal(kept[0], views[0])
    one = keep_codes(1)(model, x, torch.Generator().manual_seed(5))
    two = keep_codes(2)(model, x, torch.Generator().manual_seed(5))
    assert one.shape == x.shape
    assert not torch.equal(one, two)


def test_sampling_is_repeatable() -> None:
    model, x = small_model("sketch")
    a, b = (generate(model, 3, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (3, 3, 8, 8)
    assert between(model, x, 5, torch.Generator().manual_seed(1)).shape == (5, 3, 8, 8)


@pytest.mark.parametrize("make", [halved, gray, sketch])
def test_representations_are_whole_numbers_and_repeatable(make: Callable[[Tensor], Tensor]) -> None:
    x = pictures(2, 32)
    y = make(x)
    assert y.dtype == torch.uint8
    assert torch.equal(y, make(x.clone()))
    assert torch.equal(y[1:], make(x[1:]))
    assert torch.equal(make(x.flip(-1)), y.flip(-1))


def test_halving_is_the_antialiased_bicubic_filter() -> None:
    """As torch's away from the border, which it treats otherwise, to a rounding."""
    x = pictures(2, 32)
    want = torch.nn.functional.interpolate(
        x.double(), scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False
    )
    off = (halved(x).double() - want.clamp(0, 255))[..., 2:-2, 2:-2].abs()
    assert float(off.max()) <= 0.5 + 1e-6


def test_representations_of_flat_pictures() -> None:
    """A flat picture stays flat; its sketch is white paper, also where it is black or white."""
    for value in (0, 100, 255):
        x = torch.full((1, 3, 16, 16), value, dtype=torch.uint8)
        assert (halved(x) == value).all()
        assert (gray(x) == value).all()
        assert (sketch(x) == (255 if value else 0)).all()


def test_first_batch_gives_unit_outputs() -> None:
    """After the start every weight-normed layer has mean 0 and variance 1 on the first batch."""
    model, x = small_model("srvae")
    g = torch.Generator()

    def run() -> None:
        model.terms(model.views(x), g.manual_seed(1))

    initialise_from_batch(model, run)
    seen: list[Tensor] = []
    layer = model.level(1).decoder.layers[1]
    handle = layer.register_forward_hook(lambda module, args, y: seen.append(y))
    with torch.no_grad():
        run()
    handle.remove()
    assert torch.allclose(seen[0].mean((0, 2, 3)), torch.zeros(seen[0].shape[1]), atol=1e-3)
    assert torch.allclose(seen[0].std((0, 2, 3)), torch.ones(seen[0].shape[1]), atol=1e-2)


def test_trains_a_few_steps(tmp_path: Path) -> None:
    """Equally many steps for both; the bound falls."""
    lines: list[str] = []
    x = pictures(64, 16)
    setting = Setting(tmp_path, tmp_path, 3.0, emit=lines.append)
    entrants = [
        Entrant("vae", lambda: SsVae(16, (), TINY, RealNVP(LATENT_SHAPE, 2, 1), mixtures=2)),
        Entrant("ssvae", lambda: SsVae(16, (HALVED,), TINY, RealNVP(LATENT_SHAPE, 2, 1), mixtures=2)),
    ]
    trained = train_equally(entrants, Split(x[:48], x[48:56], x[56:]), setting, 8, 0.3)
    assert len({steps for _, steps in trained.values()}) == 1
    start = mean_terms(entrants[1].make(), x, torch.Generator().manual_seed(1))["total"]
    end = mean_terms(trained["ssvae"][0], x, torch.Generator().manual_seed(1))["total"]
    assert end < start
    assert any('"RE_y"' in line for line in lines)


def test_odd_sides_are_refused() -> None:
    assert n_halvings(64) == 3
    with pytest.raises(ValueError, match="power of two"):
        n_halvings(48)
