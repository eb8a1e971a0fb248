"""The float model's pieces, and that the integers follow it (lossy levels: test_lossy_net.py)."""

import math

import numpy as np
import pytest
import torch
from pictures import photo

from vbc.codec.colour import opponent_to_rgb, rgb_to_opponent, rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.entropy.coder import Counter
from vbc.codec.exact import networks as exact
from vbc.codec.exact import tuning
from vbc.codec.exact.grids import code_step
from vbc.codec.exact.networks import ExactNet, training_bits
from vbc.codec.model import build_model
from vbc.codec.nets.qconv import QConv, set_quantise, weight_shift
from vbc.codec.train.export import export_model
from vbc.codec.train.export_nets import export_conv
from vbc.codec.train.frequency_tables import initial_tables, logistic_table
from vbc.codec.train.likelihood import logistic_nll
from vbc.codec.train.lossy_net import LossyNet


def test_ycocg_is_reversible_for_every_extreme_and_many_colours() -> None:
    corners = torch.tensor(
        [[r, g, b] for r in (0, 1, 127, 128, 254, 255) for g in (0, 128, 255) for b in (0, 1, 255)]
    )
    many = torch.randint(0, 256, (20_000, 3), generator=torch.Generator().manual_seed(1))
    x = torch.cat((corners, many)).to(torch.uint8).T.reshape(1, 3, 1, -1)
    y = rgb_to_ycocg(x)
    assert torch.equal(ycocg_to_rgb(y), x)
    assert y[:, 0].min() >= 0
    assert y.abs().max() <= 255


def test_opponent_space_inverts() -> None:
    x = torch.randint(0, 256, (1, 3, 5, 7)).double()
    torch.testing.assert_close(opponent_to_rgb(rgb_to_opponent(x)), x)


@pytest.mark.parametrize("log2_scale", [-4.0, -1.0, 0.3, 3.0, 6.0])
@pytest.mark.parametrize("mean", [0.0, 0.25, -0.5, 40.0])
def test_logistic_nll_is_the_mass_of_the_bin(log2_scale: float, mean: float) -> None:
    x = torch.arange(-30, 31).double()
    bits = logistic_nll(x - mean, torch.tensor(log2_scale, dtype=torch.float64))
    s = 2**log2_scale
    upper, lower = torch.sigmoid((x - mean + 0.5) / s), torch.sigmoid((x - mean - 0.5) / s)
    mass = upper - lower
    sure = mass > 1e-9  # where the plain difference still has digits
    torch.testing.assert_close(bits[sure], -torch.log2(mass[sure]), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(bits).all()


def test_logistic_tables_sum_to_one() -> None:
    for scale in (-4.0, 0.0, 6.0):
        table = logistic_table(0.3, scale)
        assert table.sum() == pytest.approx(1)
        assert (table >= 0).all()


def test_initial_tables_cover_every_parameter() -> None:
    tensors, prior = initial_tables()
    index = tensors["exact.table_index"]
    assert len(prior) <= 1024
    assert index.min() == 0
    assert set(index.flatten().tolist()) == set(range(int(tensors["lossy.first_table"])))
    assert (tensors["tables"].long().sum(1) == 1 << 16).all()


def test_export_drops_bits_where_the_bound_would_break() -> None:
    torch.manual_seed(0)
    layer = QConv(400, 4, 3)
    with torch.no_grad():
        layer.weight[:2] = 1.0
    weight, shift, bias, _ = export_conv(layer, 64)
    peak = 127 * weight.long().abs().sum((1, 2, 3)) + bias.abs() + (1 << shift.long())
    assert (peak < 1 << 24).all()
    assert shift[0] < weight_shift(layer.weight)[0]


def test_quantised_training_rounds_as_the_integers_do() -> None:
    torch.manual_seed(2)
    layer = QConv(5, 7, 3)
    layer.quantise = True
    x = torch.randint(0, 128, (1, 5, 6, 6))
    weight, shift, bias, _ = export_conv(layer, 0)
    acc = torch.nn.functional.conv2d(x.double(), weight.double()) + bias.view(1, -1, 1, 1)
    want = torch.floor(acc / 2.0 ** shift.view(1, -1, 1, 1) + 0.5).clamp(0, 127)
    got = layer(x.float() / 16) * 16
    assert (got - want).abs().max() <= 1
    assert (got == want).float().mean() > 0.9


def test_integer_exact_levels_follow_the_float_network() -> None:
    """Quantised training form against the coder's integers: within 1 % even on one small picture."""
    torch.manual_seed(3)
    net, other = ExactNet(width=16), LossyNet()
    with torch.no_grad():
        for phase in net.nets.values():
            phase.surprise.uniform_(-0.3, 0.3)
    set_quantise(net, True)
    x = photo(96, 96)[None].contiguous(memory_format=torch.channels_last)
    model = build_model(export_model(net, other, None))
    with torch.no_grad():
        bits = training_bits(net, rgb_to_ycocg(x), 0).item()
        counter = Counter(len(model.tables))
        code_step(model.exact, counter, rgb_to_ycocg(x[..., ::2, ::2]), (96, 96), 1, x)
    assert counter.bits(model.tables.frequencies) == pytest.approx(bits, rel=0.01)


def test_tuning_scores_are_derivatives() -> None:
    r = torch.linspace(-6, 6, 25, dtype=torch.float64).expand(2, -1).clone().requires_grad_()
    s = torch.linspace(-2, 3, 50, dtype=torch.float64).view(2, 25).requires_grad_()
    nats = logistic_nll(r, s).sum(1) * math.log(2)
    by_r, by_s = torch.autograd.grad(nats.sum(), (r, s))
    cost, (mean_score, scale_score) = tuning.logistic_cost(r.detach(), s.detach())
    inside = logistic_nll(r, s) * math.log(2) < -math.log(tuning.SMALLEST_PROBABILITY)
    assert 0 < (~inside).sum() < 10
    most = tuning.SCORE_MAX
    torch.testing.assert_close(mean_score, by_r.clamp(-most, most))  # the mean moves against the residual
    torch.testing.assert_close(scale_score, -by_s.clamp(-most, most))
    capped = (logistic_nll(r, s) * math.log(2)).clamp_max(-math.log(tuning.SMALLEST_PROBABILITY)).sum(1)
    torch.testing.assert_close(cost, capped)


def test_tuning_finds_what_is_linear() -> None:
    """Residuals whose mean and scale follow features and others: the fit comes near the true code length."""
    rng = torch.Generator().manual_seed(3)
    x = torch.rand((6000, 5), generator=rng)
    followed = torch.rand((2, 3, 2, 6000), generator=rng)
    truth = 2 * torch.randn((2, 3, 7), generator=rng)
    uniform = torch.rand((3, 6000), generator=rng).clamp(1e-4, 1 - 1e-4)
    mean, scale = torch.einsum("np,kcp->kcn", x, truth[..., :5]) + (truth[..., 5:, None] * followed).sum(2)
    residual = torch.round(mean + torch.exp2(scale + 1) * torch.logit(uniform))
    start = tuning.logistic_cost(residual, torch.ones_like(scale))[0].sum()
    best = tuning.logistic_cost(residual - mean, scale + 1)[0].sum()
    delta, gain = tuning.fit_channels(x, followed, residual, torch.ones_like(scale))
    assert delta.shape == truth.shape
    assert 0.9 * (start - best) < gain < 1.1 * (start - best)


def test_slopes_are_coded_where_there_are_any() -> None:
    for around in (1, 2, 3):
        used = tuning.used_slopes(around)
        assert used.sum() == 3 * around + 6
        assert not used[1, :, :around].any()
        assert not used[:, 0, around:].any()
        assert used[:, 1, around].all()
        assert not used[:, 1, around + 1].any()
        assert used[:, 2, around:].all()


@pytest.mark.parametrize(("n", "samples"), [(1, 10), (10, 10), (98_304, 7000), (262_144, 7000), (7001, 7000)])
def test_sample_positions_are_spread(n: int, samples: int) -> None:
    at = tuning.sample_positions(n, samples)
    assert len(at) == min(n, samples)
    assert int(at.min()) >= 0
    assert int(at.max()) < n
    assert torch.equal(at, at.sort().values)
    for width in (w for w in (256, 384, 512) if n > 50_000):  # no column of a picture is left out
        assert len((at % width).unique()) == width


def test_sample_windows_stay_inside() -> None:
    for size in ((1, 9000), (48, 48), (300, 2000), (2000, 50), (1024, 1024)):
        for rows, cols in tuning.sample_windows(*size, 14_000):
            assert 0 <= rows.start < rows.stop <= size[0]
            assert 0 <= cols.start < cols.stop <= size[1]
        total = sum((r.stop - r.start) * (c.stop - c.start) for r, c in tuning.sample_windows(*size, 14_000))
        assert 0 < total <= 1.5 * 14_000


def test_surprise_sees_octaves() -> None:
    r = torch.tensor([0.0, 1.0, 4.0, 100.0])
    assert exact.surprise_class(r, torch.zeros(4)).tolist() == [2, 4, 6, 8]
    assert np.all(np.diff(exact.surprise_class(r, torch.full((4,), 3.0)).numpy()) >= 0)
