"""The lossy levels that are trained in float, and that the integers which decode follow them."""

import numpy as np
import pytest
import torch
from lossy_tools import NO_TABLE, code_picture, many_qualities
from pictures import photo
from torch import Tensor

from vbc.bitstream.tables import TOTAL_BITS, TableSet
from vbc.codec.lossy.features import (
    FLOATS,
    INTEGERS,
    Numbers,
    compand,
    context_base,
    context_planes,
    enhance_planes,
    interlaced_passes,
    neighbour_planes,
    parity_places,
    prior_planes,
    quality_planes,
)
from vbc.codec.lossy.latents import (
    LEVEL_LATENTS,
    LEVEL_START,
    block_transform,
    inverse_block_transform,
    latent_basis,
    latent_order,
)
from vbc.codec.lossy.map_coding import on_blocks
from vbc.codec.lossy.model import LossyModel
from vbc.codec.lossy.synthesis import inverse_transform
from vbc.codec.pixels.borders import extend, window_with_halo
from vbc.codec.pixels.colour import rgb_to_opponent
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train import lossy_net
from vbc.codec.train.export_nets import export_lossy, integer_basis
from vbc.codec.train.frequency_tables import initial_tables
from vbc.codec.train.lossy_net import LossyNet, Widths, parity
from vbc.codec.train.random_maps import random_maps

CPU = torch.device("cpu")


def values(*shape: int) -> Tensor:
    """int32, of all magnitudes that int16 has, both extremes among them."""
    rng = torch.Generator().manual_seed(len(shape))
    x = torch.randint(-32768, 32768, shape, generator=rng)
    x = x >> torch.randint(0, 15, shape, generator=rng)
    x.view(-1)[:2] = torch.tensor([-32768, 32767])
    return x.int()


def all_qualities(*shape: int) -> Tensor:
    """int32 [N, 1, h, w], 0..100, both extremes among them."""
    x = torch.randint(0, 101, shape, generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    x.view(-1)[:2] = torch.tensor([0, 100])
    return x


def check_twins(whole: Tensor, real: Tensor) -> None:
    """An integer feature is the float one, rounded here and there; both are in -64..63.

    The last plane is the square of a rounded number, up to 64, over 32.
    """
    assert whole.dtype == torch.int8
    assert whole.shape == real.shape
    assert (int(whole.min()), int(whole.max())) == (-64, 63), "the test reaches the limits"
    error = (whole.double() - real).abs()
    assert error[:, :-1].max() <= 1
    assert error[:, -1].max() < 2.5


# Latents


def test_every_latent_has_its_place() -> None:
    order = latent_order()
    assert len(set(order)) == 192
    for level, side in ((1, 2), (2, 4), (3, 8)):
        part = order[: LEVEL_START[level]]
        assert sum(c == 0 for c, _, _ in part) == side * side
        assert max(max(u, v) for _, u, v in part) == side - 1


def test_dct_is_orthonormal_and_the_integers_are_near() -> None:
    basis = latent_basis().double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(192, dtype=torch.float64), atol=1e-6, rtol=0)
    for n in (2, 4, 8):
        k = integer_basis(n).double() / 4096
        torch.testing.assert_close(k @ k.T, torch.eye(n * n, dtype=torch.float64), atol=2e-3, rtol=0)


def test_block_transform_inverts() -> None:
    x = torch.randn(2, 3, 16, 24)
    basis = latent_basis()
    torch.testing.assert_close(
        inverse_block_transform(block_transform(x, basis), basis), x, atol=1e-4, rtol=0
    )


def test_integer_inverse_transform_follows_the_float_one() -> None:
    z = torch.randint(-4000, 4000, (1, 192, 3, 4))
    z[:, 12:] //= 10
    got = inverse_transform(integer_basis(8).double(), z.to(torch.int16))
    planes = inverse_block_transform(z.float() / 8, latent_basis())
    want = torch.nn.functional.pixel_unshuffle(planes, 2) * 16
    assert (got - want).abs().max() < 3


# Features: integers and floats


def test_quality_twins() -> None:
    """All qualities, as the format says, and apart from each other."""
    q = torch.arange(101, dtype=torch.int32).view(1, 1, 1, 101)
    whole = INTEGERS.planes(quality_planes(INTEGERS, q))
    check_twins(whole, FLOATS.planes(quality_planes(FLOATS, q.double())))
    assert whole[0, :, 0, [0, 50, 100]].tolist() == [[-64, -1, 63], [63, -64, 60]]
    ramp = whole[0, 0, 0].int()
    assert (ramp.diff() > 0).all()
    assert torch.equal(whole[0, 1, 0].int(), ((ramp * ramp >> 5) - 64).clamp(max=63))


def test_compand_twins() -> None:
    d = torch.arange(-511, 512, dtype=torch.int32)
    whole, real = compand(INTEGERS, d), compand(FLOATS, d.double())
    assert torch.equal(whole[511 - 32 : 511 + 33], d[511 - 32 : 511 + 33])
    assert 0 <= (real - whole).min()
    assert (real - whole).max() < 1


@pytest.mark.parametrize("channels", [6, 48])
def test_prior_twins(channels: int) -> None:
    below, quality = values(2, channels, 9, 11), all_qualities(2, 1, 7, 9)
    whole = prior_planes(INTEGERS, below, quality)
    check_twins(whole, prior_planes(FLOATS, below.double(), quality.double()))
    assert torch.equal(whole[:, -2:], INTEGERS.planes(quality_planes(INTEGERS, quality))), "they come last"


def test_context_twins() -> None:
    four = list(values(4, 2, 6, 9, 7).unbind())
    reals = [x.double() for x in four]
    base, real = context_base(INTEGERS, four), context_base(FLOATS, reals)
    assert (base - real).abs().max() <= 0.5
    assert not base[:, 1:4].any()
    quality = all_qualities(2, 1, 9, 7)
    whole = context_planes(INTEGERS, four, base, quality)
    check_twins(whole, context_planes(FLOATS, reals, real, quality.double()))
    assert torch.equal(whole[:, -2:], INTEGERS.planes(quality_planes(INTEGERS, quality)))


def test_neighbour_twins() -> None:
    symbols, relative = values(2, 42, 5, 6) >> 5, values(2, 42, 5, 6) >> 4
    quality = all_qualities(2, 1, 5, 6)
    whole = neighbour_planes(INTEGERS, symbols.to(torch.int16), relative, quality)
    check_twins(whole, neighbour_planes(FLOATS, symbols.double(), relative.double(), quality.double()))
    assert torch.equal(whole[:, -2:], INTEGERS.planes(quality_planes(INTEGERS, quality)))


def test_enhance_twins() -> None:
    cells = values(2, 12, 18, 22)
    quality = all_qualities(2, 1, 16, 20)
    seen = INTEGERS.planes(quality_planes(INTEGERS, quality))
    whole = enhance_planes(INTEGERS, cells, 5, seen)
    floats = enhance_planes(FLOATS, cells.double(), 5, quality_planes(FLOATS, quality.double()))
    check_twins(whole, floats)
    assert torch.equal(whole[:, -2:], seen)
    # cells of a block, counted from its first: edge, inside, inside, edge; the halo of 5 comes before
    assert whole[0, 12, 5:9, 3].tolist() == [32, -32, -32, 32]
    assert whole[0, 13, 3, 5:9].tolist() == [32, -32, -32, 32]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 5), (17, 6), (8, 8), (33, 64)])
@pytest.mark.parametrize("numbers", [INTEGERS, FLOATS])
def test_passes_cover_every_block_once(size: tuple[int, int], numbers: Numbers) -> None:
    """And what a pass is given comes from blocks that are known by then."""
    latents = torch.full((1, 6, *size), -1)
    latents = latents.int() if numbers is INTEGERS else latents.double()
    seen = torch.zeros(size, dtype=torch.int)
    quality = torch.arange(latents[0, 0].numel()).view(1, 1, *size) % 101
    quality = quality.int() if numbers is INTEGERS else quality.double()
    for order, part in enumerate(interlaced_passes(numbers, latents, quality)):
        here = seen[part.rows, part.cols]
        assert here.numel()
        here += 1
        assert (part.phase is None) == (order == 0)
        if part.base is not None and part.planes is not None:
            assert part.base.shape[-2:] == here.shape
            assert part.planes.shape[1:] == (32, here.shape[0] + 4, here.shape[1] + 4)
            inside = numbers.planes(quality_planes(numbers, quality[..., part.rows, part.cols]))
            padded = torch.nn.functional.pad(inside.double(), (2, 2, 2, 2), mode="replicate")
            assert torch.equal(part.planes[:, 30:].double(), padded), "the qualities of its blocks, repeated"
            assert (part.base[:, [0, 4, 5]] >= 0).all(), "-1 is unknown"
            assert part.use == (0 if part.rows.step == 2 else 1)
        latents[..., part.rows, part.cols] = 1000 * order
    assert (seen == 1).all()


@pytest.mark.parametrize("numbers", [INTEGERS, FLOATS])
def test_the_base_is_right_on_a_slope(numbers: Numbers) -> None:
    """On a plane the mean of the four nearest is the value between them, but for the border."""
    slope = 800 * torch.arange(40)[:, None] + 320 * torch.arange(56)
    truth = slope.expand(1, 6, -1, -1).to(torch.int32 if numbers is INTEGERS else torch.float64)
    latents = torch.zeros_like(truth)
    checked = 0
    for part in interlaced_passes(numbers, latents, truth[:, :1] % 101):
        here = truth[..., part.rows, part.cols]
        if part.base is not None:
            inner = part.base[:, [0, 4, 5], 1:-1, 1:-1]
            assert torch.equal(inner, here[:, [0, 4, 5], 1:-1, 1:-1])
            checked += inner[0, 0].numel()
        latents[..., part.rows, part.cols] = here
    assert checked > 1000


def test_flat_areas_give_zeros() -> None:
    """What is taken off is the mean itself: what stays is less than a unit."""
    for value in (-8000, -77, 1, 400, 12000):
        below = torch.full((1, 6, 5, 5), value, dtype=torch.int32)
        means = [0, 4, 5, 6, 10, 11]
        planes = prior_planes(INTEGERS, below, all_qualities(1, 1, 3, 3))
        assert not planes[:, means].any()
        assert planes[:, 1:4].any() == (abs(value) > 3)
        cells = torch.full((1, 12, 6, 6), value, dtype=torch.int32)
        assert not enhance_planes(INTEGERS, cells, 0, all_qualities(1, 2, 4, 4))[:, :12].any()


def test_borders_are_repeated() -> None:
    x = values(2, 3, 4, 5).to(torch.int16)
    padded = torch.nn.functional.pad(x.double(), (3, 3, 3, 3), mode="replicate")
    assert torch.equal(extend(x, 4, 5, 3).double(), padded)
    assert torch.equal(extend(x, 6, 5, 1)[..., 1:-1, 1:-1][..., 4:, :], x[..., 3:, :].expand(-1, -1, 2, -1))
    for rows in (slice(0, 4), slice(1, 2), slice(3, 4)):
        for cols in (slice(0, 5), slice(2, 4)):
            got = window_with_halo(x, (rows, cols), 3)
            want = padded[..., rows.start : rows.stop + 6, cols.start : cols.stop + 6]
            assert torch.equal(got.double(), want)


def test_gradients_pass_repeated_borders() -> None:
    x = values(2, 3, 4, 5).double().requires_grad_()
    weight = values(2, 3, 8, 8).double()
    (ours,) = torch.autograd.grad((extend(x, 4, 5, 2)[..., :8] * weight).sum(), x)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    (theirs,) = torch.autograd.grad((padded[..., :8] * weight).sum(), x)
    assert torch.equal(ours, theirs)


def test_places_of_a_parity() -> None:
    for h in range(1, 6):
        for w in range(1, 6):
            even = (torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0
            assert torch.equal(parity(h, w, CPU), even)
            for which in (True, False):
                want = (even == which).flatten().nonzero()[:, 0]
                assert torch.equal(parity_places(h, w, which, CPU), want)


# The networks


def test_levels_of_the_float_model_fit_together() -> None:
    torch.manual_seed(4)
    net = LossyNet()
    planes = rgb_to_opponent(photo(64, 64)[None].float() - 128)
    q = torch.full((1, 1, 8, 8), 100.0)
    with torch.no_grad():
        latents, bits = net(planes, q)
        assert [z.shape[1] for z in latents] == [6, 42, 144]
        assert all((b > 0).all() for b in bits)
        errors = []
        for n in (1, 2, 3):
            picture = net.synthesise(net.complete(latents[:n], q), q, n)
            errors.append((picture - planes).square().mean().item())
    assert errors[2] < errors[1]
    assert errors[2] < errors[0]
    assert errors[2] < 10, "untrained, it is a plain 8x8 DCT at a step of ten"


def test_the_rate_moves_every_network_that_it_depends_on() -> None:
    torch.manual_seed(5)
    net = shaken(LossyNet(Widths(8, 8, 8, 8, 8)))
    planes = rgb_to_opponent(torch.stack((photo(64, 64), photo(64, 80)[:, :, 16:])).float() - 128)
    q = torch.cat((many_qualities((8, 8)), torch.full((1, 1, 8, 8), 90))).float()
    latents, bits = net(planes, q)
    assert all(b.shape == (2, 8, 8) for b in bits)
    picture = net.synthesise(torch.cat(latents, 1), q, 3)
    (sum(b.sum() for b in bits) + picture.square().mean()).backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_random_maps() -> None:
    """Whole qualities, one for each square; of one kind constant maps; the same from the same seed."""
    luma = photo(128, 160)[None, :1].float().expand(64, -1, -1, -1)
    torch.manual_seed(3)
    maps = random_maps(luma)
    assert maps.shape == (64, 1, 16, 20)
    assert torch.equal(maps, maps.round())
    assert (maps.min(), maps.max()) == (0, 100), "mixtures reach the limits"
    squares = maps[..., ::2, ::2]
    assert torch.equal(on_blocks(squares, 16, 20), maps)
    n_constant = sum(one.unique().numel() == 1 for one in maps)
    assert 8 < n_constant < 40
    torch.manual_seed(3)
    assert torch.equal(random_maps(luma), maps)
    assert all(one.unique().numel() == 1 for one in random_maps(luma, constant=True))


def shaken(net: LossyNet) -> LossyNet:
    """The network with heads and biases that depend on everything, for it begins with zeros."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith(("head.weight", "analysis_out.weight", "coefficients", "use_bias")):
                p.add_(0.02 * torch.randn_like(p))
        net.first_scale.copy_(torch.tensor([8.0, 5, 5, 4, 6, 6]))
    return net


@pytest.mark.parametrize(("spread", "tolerance"), [(0, 0.01), (15, 0.015)])
def test_integer_levels_follow_the_float_network(
    monkeypatch: pytest.MonkeyPatch, spread: int, tolerance: float
) -> None:
    """Quantised training form against the coder's integers: each level's bits, within 1 % or so.

    With one quality, and with a map of many, at some of which scales are rounded less luckily than at 60.

    The noise of training is set to what rounding does, so that both code the same symbols; and scales are
    rounded to quarter octaves, as the tables' are (halves up: that alone is up to 4 % where most symbols are
    0, until tables are refit).
    """
    torch.manual_seed(6)
    net = shaken(LossyNet(Widths(8, 16, 16, 16, 8)))
    for module in net.modules():
        if hasattr(module, "quantise"):
            module.quantise = True
    with torch.no_grad():  # wide scales: no symbol may fall to the least probability that tables have
        for phase in PHASES:
            net.context_chain(phase).head.bias[6:] += 2
    plain = lossy_net.logistic_nll
    quarters = lambda log_scale: torch.floor(torch.round(16 * log_scale) / 4 + 0.5) / 4  # noqa: E731
    monkeypatch.setattr(lossy_net, "logistic_nll", lambda r, log_scale: plain(r, quarters(log_scale)))
    tensors, _ = initial_tables()
    tables = TableSet(tensors["tables"].numpy())
    x = photo(128, 160)[None].contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(lossy_net.torch, "rand_like", lambda r: torch.round(r) - r + 0.5)
    with torch.no_grad():
        model = LossyModel.load(export_lossy(net) | tensors, tables)
        planes = rgb_to_opponent(x.float() - 128)
        quality = many_qualities((16, 20), 60 - spread, 60 + spread)
        latents, bits = net(planes, quality.float())
        coded, recorders = code_picture(model, x, quality, optimise=False)
    for level, estimate in enumerate(bits, 1):
        (recorder,) = recorders[level - 1]
        actual = sum(code_length(tables, index, symbols) for index, symbols in recorder.steps)
        assert actual == pytest.approx(estimate.sum().item(), rel=tolerance), level
        z = coded[:, LEVEL_START[level - 1] : LEVEL_START[level]] / 8
        assert z.shape[1] == LEVEL_LATENTS[level - 1]
        assert ((z - latents[level - 1]).abs() < 1).float().mean() > 0.94, (
            "else a rounding fell the other way"
        )


def code_length(tables: TableSet, index: Tensor, symbols: Tensor) -> float:
    """Ideal bits of a step; its symbols stay inside the tables."""
    coded = index < NO_TABLE
    assert symbols.abs().max() <= 127
    letters = symbols[coded].long() + 127
    return float((TOTAL_BITS - np.log2(tables.frequencies[index[coded].long(), letters].astype(float))).sum())
