"""Bits-back coding: exact, and as small as the negative ELBO says."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.bits_back import (
    Coded,
    CodedModel,
    Density,
    FlowDensity,
    GaussianDensity,
    ImageLevel,
    LatentLevel,
    MixtureDensity,
    PixelSteps,
    by_channel,
    decode_images,
    encode_images,
)
from vbc.codec.research.parts.bits_back.images import Known, Level, plan_moves
from vbc.codec.research.parts.bits_back.stack import Stack, random_words

SIDE, N_LATENTS = 6, 8
VALUES = torch.arange(256, dtype=torch.float64)


class Normal(NamedTuple):
    mean: Tensor
    log_var: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        square = (z - self.mean) ** 2 / self.log_var.exp()
        out: Tensor = -0.5 * (square + self.log_var + math.log(2 * math.pi)).flatten(1).sum(1)
        return out


def weights(*shape: int, seed: int) -> Tensor:
    drawn: Tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return drawn / math.sqrt(shape[0])


def log_masses(mean: Tensor, spread: float = 9.0) -> Tensor:
    """A discretised logistic around means [...]: log of the masses of 256 values [..., 256]."""
    edges = (VALUES[1:] - 0.5 - mean.double().unsqueeze(-1)) / spread
    below = torch.sigmoid(edges)
    zero, one = torch.zeros_like(below[..., :1]), torch.ones_like(below[..., :1])
    return torch.cat((zero, below, one), -1).diff(dim=-1).clamp_min(1e-12).log()


def pixel_means(codes: list[Tensor], x: Tensor, seed: int) -> Tensor:
    """Means of every pixel given latents and smaller pictures; the second channel also sees the first."""
    n, channels, height, width = x.shape
    scaled = [(code.float() - 128) / 40 if code.dtype == torch.uint8 else code for code in codes]
    flat = torch.cat([code.flatten(1) for code in scaled], 1)
    mean = 128 + 8 * (flat @ weights(flat.shape[1], channels * height * width, seed=seed))
    mean = mean.view(n, channels, height, width)
    if channels > 1:
        mean = torch.cat((mean[:, :1], mean[:, 1:] + 0.5 * (x[:, :1].float() - 128)), 1)
    return mean


def picture(name: str, shape: tuple[int, int, int, int], given: tuple[str, ...], seed: int) -> ImageLevel:
    def pixels(known: Known) -> PixelSteps:
        codes = [known[k] for k in given]
        return by_channel(shape, lambda x, c: log_masses(pixel_means(codes, x, seed)[:, c]).exp())

    return ImageLevel(name, shape, pixels, given)


def log_p(x: Tensor, codes: list[Tensor], seed: int) -> Tensor:
    return log_masses(pixel_means(codes, x, seed)).gather(-1, x.long().unsqueeze(-1)).flatten(1).sum(1)


def normal_of(x: Tensor, seed: int, offset: float = 0.0, log_var: float = -2.0) -> Normal:
    """A posterior that looks at a picture, or a prior that looks at other parts."""
    out = (x.float().flatten(1) - offset) / 40 @ weights(x[0].numel(), 2 * N_LATENTS, seed=seed)
    mean, wider = out.chunk(2, 1)
    return Normal(mean, (0.5 * wider + log_var).clamp(-7, 7))


@dataclass
class Case:
    """A model for the coder, and one sample of its ELBO in nats for pictures [N, C, H, W]: float64 [N]."""

    model: CodedModel
    elbo: Callable[[Tensor], Tensor]
    channels: int = 1


Prior = tuple[Density, Callable[[Tensor], Tensor]]
"""For the coder, and log p(z) in nats."""


def normal_prior() -> Prior:
    zero = torch.zeros(1, N_LATENTS)
    return GaussianDensity(Normal(zero, zero)), Normal(zero, zero).log_prob


def mixture_prior() -> Prior:
    share = torch.tensor([0.5, 0.3, 0.2])
    mean, log_var = weights(3, N_LATENTS, seed=5), -weights(3, N_LATENTS, seed=6).abs()

    def log_prob(z: Tensor) -> Tensor:
        each = [Normal(mean[k : k + 1], log_var[k : k + 1]).log_prob(z) + share[k].log() for k in range(3)]
        return torch.logsumexp(torch.stack(each), 0)

    return MixtureDensity(share, mean, log_var), log_prob


def flow_prior() -> Prior:
    """Couplings that keep one half each."""

    def coupling(n: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        kept = (torch.arange(N_LATENTS) % 2 == n % 2).float()

        def look(z: Tensor) -> tuple[Tensor, Tensor]:
            out = torch.tanh((z * kept) @ weights(N_LATENTS, 2 * N_LATENTS, seed=20 + n))
            log_scale, shift = out.chunk(2, 1)
            return 0.5 * log_scale * (1 - kept), 0.5 * shift * (1 - kept)

        return look

    couplings = [coupling(n) for n in range(6)]

    def log_prob(z: Tensor) -> Tensor:
        log_det = torch.zeros(len(z))
        for look in couplings:
            log_scale, shift = look(z)
            z = (z - shift) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(1)
        return log_det + Normal(torch.zeros(1, N_LATENTS), torch.zeros(1, N_LATENTS)).log_prob(z)

    return FlowDensity(couplings), log_prob


def one_latent(prior: str) -> Case:
    density, log_prob = {"normal": normal_prior, "mixture": mixture_prior, "flow": flow_prior}[prior]()
    shape = (1, 1, SIDE, SIDE)
    levels: list[Level] = [
        LatentLevel("z", (1, N_LATENTS), lambda known: density, lambda known: normal_of(known["x"], 1, 128)),
        picture("x", shape, ("z",), 2),
    ]

    def elbo(x: Tensor) -> Tensor:
        q = normal_of(x, 1, 128)
        z = q.mean + (0.5 * q.log_var).exp() * torch.randn(q.mean.shape)
        return log_p(x, [z], 2) + log_prob(z).double() - q.log_prob(z).double()

    return Case(CodedModel(levels), elbo)


def smaller(x: Tensor) -> Tensor:
    return x[..., ::2, ::2].contiguous()


def four_levels() -> Case:
    """u, y, z, x, as a super-resolution VAE has them: q(u|y), q(z|x), p(y|u), p(z|y,u), p(x|y,z)."""
    flow, flow_log_prob = flow_prior()
    small, whole = (1, 2, SIDE // 2, SIDE // 2), (1, 2, SIDE, SIDE)

    def prior_of_z(y: Tensor, u: Tensor) -> Normal:
        # wide: far outside of a density a symbol costs no more than the 24 bits of the coder, ELBO or not
        return normal_of(torch.cat((y.float().flatten(1) - 128, 40 * u), 1), 3, log_var=1.0)

    levels: list[Level] = [
        LatentLevel(
            "u", (1, N_LATENTS), lambda known: flow, lambda known: normal_of(known["y"], 4, 128), (), ("y",)
        ),
        picture("y", small, ("u",), 7),
        LatentLevel(
            "z",
            (1, N_LATENTS),
            lambda known: GaussianDensity(prior_of_z(known["y"], known["u"])),
            lambda known: normal_of(known["x"], 1, 128),
            given=("u", "y"),
        ),
        picture("x", whole, ("y", "z"), 8),
    ]

    def elbo(x: Tensor) -> Tensor:
        y = smaller(x)
        q_u, q_z = normal_of(y, 4, 128), normal_of(x, 1, 128)
        u, z = (q.mean + (0.5 * q.log_var).exp() * torch.randn(q.mean.shape) for q in (q_u, q_z))
        nats = flow_log_prob(u) - q_u.log_prob(u) + prior_of_z(y, u).log_prob(z) - q_z.log_prob(z)
        return log_p(y, [u], 7) + log_p(x, [y, z], 8) + nats.double()

    return Case(CodedModel(levels, lambda x: {"x": x, "y": smaller(x)}), elbo, 2)


CASES: dict[str, Callable[[], Case]] = {
    "normal": partial(one_latent, "normal"),
    "mixture": partial(one_latent, "mixture"),
    "flow": partial(one_latent, "flow"),
    "four levels": four_levels,
}


def random_pictures(n: int, channels: int) -> Tensor:
    rng = torch.Generator().manual_seed(9)
    values = 128 + 25 * torch.randn(n, channels, SIDE, SIDE, generator=rng)
    values[:, 1:] += 0.5 * (values[:, :1] - 128)
    return values.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", list(CASES))
def test_bytes_are_the_negative_elbo(name: str) -> None:
    """60 pictures come back exactly and take, after the initial bits, what the ELBO says."""
    torch.manual_seed(0)
    case = CASES[name]()
    x = random_pictures(60, case.channels)
    coded = encode_images(case.model, x)
    assert torch.equal(decode_images(case.model, coded, len(x)), x)
    expected = -float(torch.stack([case.elbo(x).sum() for _ in range(20)]).mean()) / math.log(2)
    assert coded.net_bits == pytest.approx(expected, rel=0.02)
    assert sum(coded.n_bits.values()) == pytest.approx(coded.net_bits, abs=64)
    assert set(coded.n_bits) == {level.name for level in case.model.levels}
    assert coded.initial_bits < 2000


def test_every_level_has_its_bits() -> None:
    """A level's bits are its part of the ELBO: log p of a picture, log q - log p of a latent."""
    torch.manual_seed(0)
    case, x = one_latent("flow"), random_pictures(60, 1)
    coded = encode_images(case.model, x)
    q, (_, log_prob) = normal_of(x, 1, 128), flow_prior()
    kls, rates = [], []
    for _ in range(40):
        z = q.mean + (0.5 * q.log_var).exp() * torch.randn(q.mean.shape)
        kls.append((q.log_prob(z) - log_prob(z)).sum() / math.log(2))
        rates.append(-log_p(x, [z], 2).sum() / math.log(2))
    assert coded.n_bits["z"] == pytest.approx(float(torch.stack(kls).mean()), abs=60)
    assert coded.n_bits["x"] == pytest.approx(float(torch.stack(rates).mean()), rel=0.02)


def test_a_wrong_picture_shows() -> None:
    case, x = one_latent("normal"), random_pictures(3, 1)
    coded = encode_images(case.model, x)
    wrong = Coded(bytes([coded.data[0] ^ 1]) + coded.data[1:], coded.initial_bits, coded.n_bits)
    with pytest.raises(ValueError, match="initial bits"):
        decode_images(case.model, wrong, len(x))
    with pytest.raises(ValueError, match="initial bits"):
        decode_images(case.model, coded, len(x) - 1)


def test_flow_scales_from_tiny_to_huge() -> None:
    """A coupling is undone exactly whatever its scales, and costs log2 of them."""
    log_scale = torch.tensor([[0.0, -9.0, 9.0, -2.0, 0.5]])
    shift = torch.tensor([[0.0, 3.0, -100.0, 0.0, 0.001]])
    flow = FlowDensity([lambda z: (log_scale, shift)])
    stack = Stack(random_words(60))
    before, n_bits = stack.words(), stack.n_bits
    symbols = np.array([7, 384, -12800, 0, -9])
    flow.push(stack, symbols, (1, 5), 7)
    v = (torch.tensor([[7, 0, 0, 0, -9]]) / 128 - 0.001) * torch.exp(-log_scale * (log_scale.abs() < 2))
    ideal = float((v**2).sum() / 2 + 5 * math.log(math.sqrt(2 * math.pi) * 128)) / math.log(2)
    ideal += (math.log(2**20 / 2**12) * -1 + math.log(2**11) - 2 + 0.5) / math.log(2)
    assert stack.n_bits - n_bits == pytest.approx(ideal, abs=4)
    assert flow.pop(stack, (1, 5), 7).tolist() == symbols.tolist()
    assert np.array_equal(stack.words(), before)


def test_orders_that_cannot_be_decoded() -> None:
    levels = four_levels().model.levels
    moves = [(move.kind, move.level.name) for move in plan_moves(levels)]
    assert moves == [("draw", "z"), ("put", "x"), ("draw", "u"), ("put", "z"), ("put", "y"), ("put", "u")]
    u, y, z, x = levels
    assert isinstance(u, LatentLevel)
    assert isinstance(z, LatentLevel)
    with pytest.raises(ValueError, match="posterior of u looks at x"):
        plan_moves([replace(u, seen=("x",)), y, z, x])
    with pytest.raises(ValueError, match="posterior of z looks at u"):
        plan_moves([u, y, replace(z, seen=("u",)), x])
    with pytest.raises(ValueError, match="y is given"):
        plan_moves([u, replace(y, given=("z",)), z, x])


def test_latents_far_from_their_means() -> None:
    stack = Stack(random_words(50))
    before = stack.words()
    symbols = np.array([5, 1 << 20, -(1 << 38), -32768, 32767, 32768])
    mean, deviation = np.linspace(-1, 1, 6), np.ones(6)
    stack.push_gaussian(symbols, mean, deviation)
    assert stack.pop_gaussian(mean, deviation).tolist() == symbols.tolist()
    assert np.array_equal(stack.words(), before)
