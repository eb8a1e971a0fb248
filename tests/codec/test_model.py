"""The float model's pieces, that the integers follow it, and the fit of tuned corrections.

The lossy levels have files of their own.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from pictures import photo
from torch import Tensor

from vbc.codec.entropy.coder import Counter
from vbc.codec.exact import features, level, tuning, tuning_fit
from vbc.codec.exact.features import HALO
from vbc.codec.exact.groups import GridStep, GroupBatch, Surroundings, moves
from vbc.codec.exact.level import encode_level
from vbc.codec.exact.model import NEIGHBOURS, TAPS, Tuning, n_around, used_slopes
from vbc.codec.lossy.model import LossyModel
from vbc.codec.model import Model, WeightsError, build_model
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import opponent_to_rgb, rgb_to_opponent, rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train import exact_net
from vbc.codec.train.exact_net import ExactNet, training_bits
from vbc.codec.train.export import export_model
from vbc.codec.train.export_nets import export_conv
from vbc.codec.train.frequency_tables import initial_tables, logistic_table
from vbc.codec.train.integer_runs import code_exact
from vbc.codec.train.likelihood import logistic_nll
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.qconv import QConv, set_quantise, weight_shift
from vbc.kernels.conv import IntConv


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
    assert len(prior) <= 2048
    of_bins = tensors["exact.bins_table_index"]
    assert index.min() == 0
    assert of_bins.min() == index.max() + 1
    both = torch.cat((index, of_bins)).flatten().tolist()
    assert set(both) == set(range(int(tensors["lossy.first_table"])))
    assert (tensors["tables"].long().sum(1) == 1 << 24).all()


def test_companding() -> None:
    """Slope 1 up to 32, then 1/4 rounded down, within the inputs' range; it never falls."""
    d = torch.arange(-511, 512, dtype=torch.int16)
    folded = features.compand(d)
    assert folded.dtype == torch.int16
    assert folded[511 - 32 : 511 + 33].tolist() == list(range(-32, 33))
    assert folded[511 + 36] == 33
    assert folded[511 - 33] == -33
    assert (folded.min(), folded.max()) == (-64, 63)
    assert (folded.diff() >= 0).all()


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
        for phase in PHASES:
            net.surprise[phase].uniform_(-0.3, 0.3)
            for level_class in (1, 2):
                net.net(phase, level_class).load_state_dict(net.net(phase, 0).state_dict())
    set_quantise(net, True)
    x = photo(96, 96)[None].contiguous(memory_format=torch.channels_last)
    model = build_model(export_model(net, other, None))
    with torch.no_grad():
        bits = training_bits(net, rgb_to_ycocg(x), 0).item()
        counter = Counter(len(model.tables))
        code_exact(model, counter, x, None, 0)
        whole = counter.bits(model.tables.frequencies)
        counter = Counter(len(model.tables))
        code_exact(model, counter, x[..., ::2, ::2].contiguous(memory_format=torch.channels_last), None, 0)
    # the last step alone: all of them less those of the coarser grid
    assert whole - counter.bits(model.tables.frequencies) == pytest.approx(bits, rel=0.01)


def test_tuning_scores_are_derivatives() -> None:
    r = torch.linspace(-6, 6, 25, dtype=torch.float64).expand(2, -1).clone().requires_grad_()
    s = torch.linspace(-2, 3, 50, dtype=torch.float64).view(2, 25).requires_grad_()
    nats = logistic_nll(r, s).sum(1) * math.log(2)
    by_r, by_s = torch.autograd.grad(nats.sum(), (r, s))
    cost, (mean_score, scale_score) = tuning_fit.logistic_cost(r.detach(), s.detach())
    inside = logistic_nll(r, s) * math.log(2) < -math.log(tuning_fit.SMALLEST_PROBABILITY)
    assert 0 < (~inside).sum() < 10
    most = tuning_fit.SCORE_MAX
    torch.testing.assert_close(mean_score, by_r.clamp(-most, most))  # the mean moves against the residual
    torch.testing.assert_close(scale_score, -by_s.clamp(-most, most))
    capped = (logistic_nll(r, s) * math.log(2)).clamp_max(-math.log(tuning_fit.SMALLEST_PROBABILITY)).sum(1)
    torch.testing.assert_close(cost, capped)


def test_tuning_finds_what_is_linear() -> None:
    """Residuals whose mean and scale follow features: the fit comes near the true code length, its symbols
    included, and nearer than coarser or finer symbols do."""
    rng = torch.Generator().manual_seed(3)
    x, followed = torch.rand((6000, 5), generator=rng), torch.rand((2, 3, 2, 6000), generator=rng)
    features = torch.cat((x.T.expand(2, 3, -1, -1), followed), 2)
    truth = torch.tensor([2.0, 0.3]).view(2, 1, 1) * torch.randn((2, 3, 7), generator=rng)
    uniform = torch.rand((3, 6000), generator=rng).clamp(1e-4, 1 - 1e-4)
    mean, scale = (truth[:, :, None] @ features)[:, :, 0]
    residual = torch.round(mean + torch.exp2(scale + 1) * torch.logit(uniform))
    octaves = torch.full((2, 3, 7), 0.2)

    def bits(steps: Tensor) -> float:
        moved = (steps[:, :, None] @ features)[:, :, 0]
        return float(tuning_fit.logistic_cost(residual - moved[0], 1 + moved[1])[0].sum()) / math.log(2)

    def side(symbols: Tensor, fineness: Tensor) -> float:
        return float(tuning_fit.symbol_bits(symbols, octaves + fineness).sum())

    one_by_one = torch.eye(7).expand(2, 3, 7, 7)
    flags, symbols = tuning_fit.fit_channels(
        x, followed, residual, torch.ones((3, 6000)), one_by_one, octaves, 1.0
    )
    assert (flags > 0).all()
    fineness = flags[..., None] - 1
    found = symbols / 2.0**fineness
    total = bits(found) + side(symbols, fineness)
    plain = bits(torch.zeros_like(truth))
    assert total < plain - 0.85 * (plain - bits(truth))
    for other in (-2, 2):
        coarser = (found * 2.0 ** (fineness + other)).round()
        assert total < bits(coarser / 2.0 ** (fineness + other)) + side(coarser, fineness + other) + 2


def test_features_that_cannot_be_told_apart_are_left_alone() -> None:
    same = torch.rand((200, 1), generator=torch.Generator().manual_seed(1)).expand(200, 6)
    x, followed = 1e4 * same * torch.linspace(1, 1 + 1e-6, 6), torch.zeros((2, 3, 0, 200))
    residual, no_prior = torch.ones((3, 200)), torch.full((2, 3, 6), 40.0)
    vectors = torch.eye(6).expand(2, 3, 6, 6)
    flags, symbols = tuning_fit.fit_channels(
        x, followed, residual, torch.full((3, 200), -4.0), vectors, no_prior, 1.0
    )
    assert not flags.any()
    assert not symbols.any()


def test_steps_that_save_nothing_are_not_coded() -> None:
    steps = torch.tensor([1.0, 0.5]).expand(2, 3, 2)
    curvature = torch.zeros((2, 3, 2, 2))
    curvature[0, 1] = 1e4 * torch.eye(2)
    flags, symbols = tuning_fit.round_steps(steps, curvature, torch.zeros((2, 3, 2)))
    assert flags.tolist() == [[0, 2, 0], [0, 0, 0]]
    assert symbols[0, 1].tolist() == [2, 1]
    assert symbols.count_nonzero() == 2


@pytest.mark.parametrize("fineness", [0, 3, 6])
def test_corrections_are_rounded_sums_along_directions(fineness: int) -> None:
    """By hand in Python's integers, at extremes: nothing overflows."""
    rng = np.random.default_rng(fineness)
    vectors = rng.choice([-32768, -7, 0, 1, 32767], (6, 9, 64))
    vectors[0, 0], vectors[0, 1] = -32768, 32767
    symbols = rng.choice([-2000, -1023, -1, 0, 3, 1023, 5000], (2, 6, 64))
    symbols[:, 0] = [[1023], [-1023]]
    got = tuning.corrections(
        torch.from_numpy(vectors).int(),
        torch.from_numpy(symbols).to(torch.int16),
        torch.full((2, 6, 1), fineness, dtype=torch.int16),
    )
    shift = 6 + fineness
    for b in range(2):
        for n in range(6):
            for p in range(9):
                total = sum(
                    int(v) * max(-1023, min(1023, int(s)))
                    for v, s in zip(vectors[n, p], symbols[b, n], strict=True)
                )
                want = max(-127, min(127, (total + (1 << (shift - 1))) >> shift))
                assert got[b, n, p] == want
    assert got.dtype == torch.int32


def test_slopes_are_used_where_there_are_any() -> None:
    for around in (1, 2, 3):
        used = used_slopes(around)
        assert used.sum() == 3 * around + 6
        assert not used[1, :, :around].any()
        assert not used[:, 0, around:].any()
        assert used[:, 1, around].all()
        assert not used[:, 1, around + 1].any()
        assert used[:, 2, around:].all()


@pytest.mark.parametrize("bound", [0, 2])
@pytest.mark.parametrize("phase", PHASES)
def test_tuned_means_follow_what_is_around(phase: str, bound: int) -> None:
    """By hand in Python's integers, of two pictures with slopes of their own, at extremes: errors next
    to a position, and the known pixels within four (of D) or two pixels of the finer grid."""
    rng = np.random.default_rng(len(phase) + bound)
    n, h, w = 4, 3, 5  # two windows of each picture

    def planes(low: int, high: int, halo: int, dtype: torch.dtype) -> dict[str, Tensor]:
        shape = (n, 3, h + 2 * halo, w + 2 * halo)
        return {
            p: torch.from_numpy(rng.integers(low, high, shape)).to(dtype, memory_format=torch.channels_last)
            for p in "ADH"
        }

    seen = Surroundings(planes(-765, 766, HALO, torch.int16), planes(-127, 128, 1, torch.int8))
    base = torch.from_numpy(rng.integers(-32768, 32768, (n, 3, h, w)).astype(np.int16))
    slopes = torch.from_numpy(rng.choice([-127, 1, 127], (2, n_around(phase), 3)).astype(np.int32))
    layer = IntConv(torch.zeros((6, 1, 1, 1), dtype=torch.int8), *torch.ones((2, 6), dtype=torch.int32))
    tunings = [Tuning(layer, s, torch.zeros((2, 3, 2), dtype=torch.int32)) for s in slopes]
    have = moves(phase, tunings, seen.around(phase, base, bound))
    assert have.dtype == torch.int32
    for b in (0, 1):
        alone = Surroundings(
            {p: x[b::2] for p, x in seen.planes.items()}, {p: x[b::2] for p, x in seen.errors.items()}
        )
        mine = moves(phase, tunings[b : b + 1], alone.around(phase, base[b::2], bound))
        assert torch.equal(have[b::2], mine)
    places = {"A": (0, 0), "D": (1, 1), "H": (0, 1), "V": (1, 0)}
    known = "A" + "DHV"[: "DHV".index(phase)]
    at, reach = places[phase], 4.2 if phase == "D" else 2.3
    near = [
        (p, dy, dx)
        for p in known
        for dy in range(-3, 4)
        for dx in range(-3, 4)
        if math.hypot(2 * dy + places[p][0] - at[0], 2 * dx + places[p][1] - at[1]) < reach
    ]
    assert list(TAPS[phase]) == near
    for g, c, i, j in product(range(n), range(3), range(h), range(w)):
        slope = slopes[g % 2, :, c].tolist()
        want, n_groups = 128, len(NEIGHBOURS[phase])
        for s, group in zip(slope[:n_groups], NEIGHBOURS[phase], strict=True):
            want += sum(4 * s * int(seen.errors[p][g, c, i + dy + 1, j + dx + 1]) for p, dy, dx in group)
        for s, (p, dy, dx) in zip(slope[n_groups:], near, strict=True):
            y, co, cg = (int(v) for v in seen.planes[p][g, :, i + dy + HALO, j + dx + HALO])
            middle = y - (cg >> 1)
            blue = middle - (co >> 1)
            pixel = (cg + middle, blue + co, blue) if bound else (y, co, cg)
            want += 8 * s * (pixel[c] - int(base[g, c, i, j]))
        assert int(have[g, c, i, j]) == want


@pytest.mark.parametrize(("n", "samples"), [(1, 10), (10, 10), (98_304, 7000), (262_144, 7000), (7001, 7000)])
def test_sample_positions_are_spread(n: int, samples: int) -> None:
    at = tuning_fit.sample_positions(n, samples)
    assert len(at) == min(n, samples)
    assert int(at.min()) >= 0
    assert int(at.max()) < n
    assert torch.equal(at, at.sort().values)
    for width in (w for w in (256, 384, 512) if n > 50_000):  # no column of a picture is left out
        assert len((at % width).unique()) == width


def test_sample_windows_stay_inside() -> None:
    for size in ((1, 9000), (48, 48), (300, 2000), (2000, 50), (1024, 1024)):
        for rows, cols in tuning_fit.sample_windows(*size, 14_000):
            assert 0 <= rows.start < rows.stop <= size[0]
            assert 0 <= cols.start < cols.stop <= size[1]
        total = sum(
            (r.stop - r.start) * (c.stop - c.start) for r, c in tuning_fit.sample_windows(*size, 14_000)
        )
        assert 0 < total <= 1.5 * 14_000


def test_error_classes_are_octaves() -> None:
    r = torch.tensor([0.0, 1.0, 4.0, 100.0])
    assert exact_net.error_class(r, torch.zeros(4)).tolist() == [2, 4, 6, 8]
    assert np.all(np.diff(exact_net.error_class(r, torch.full((4,), 3.0)).numpy()) >= 0)


# what the fit is worth


def step_of(model: Model, x: Tensor, layered: bool) -> GridStep:
    return GridStep(model.exact, rgb_to_ycocg(x[..., ::2, ::2]), None, x.flip(-1) if layered else None, 0, 60)


@pytest.mark.parametrize("layered", [False, True])
def test_tuning_pays_for_itself(tiny: Model, layered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one group and in many, looking at positions and at windows: smaller by about the same, side
    information included."""
    x = photo(240, 256)[None].contiguous(memory_format=torch.channels_last)
    step = step_of(tiny, x, layered)

    def size(side: int, effort: int, keep: int = 1 << 20) -> int:
        monkeypatch.setattr(level, "KEEP_POSITIONS", keep)
        windows: list[Window] = [
            (slice(top, min(240, top + side)), slice(left, min(256, left + side)))
            for top in range(0, 240, side)
            for left in range(0, 256, side)
        ]
        encoded = encode_level(tiny, step, windows, x, 3, effort, False)
        assert (encoded.shared is not None) == (effort > 0)
        return len(encoded.shared or b"") + sum(map(len, encoded.groups))

    plain = size(512, 0)
    for side in (512, 64):
        best = size(side, 2)
        assert best < 0.97 * plain
        assert size(side, 1) < 1.02 * best
        assert size(side, 1, keep=0) < 1.03 * best, "samples in windows"


def test_sampling_does_not_mind_what_is_seen_meanwhile(tiny: Model) -> None:
    """The fit runs on a thread of its own, while some batches have seen the phase already and others not."""
    x = photo(64, 70)[None].contiguous(memory_format=torch.channels_last)
    step = step_of(tiny, x, False)
    batches = [GroupBatch(step, [(slice(t, t + 32), slice(0, 70))]) for t in (0, 32)]
    targets = [level.phase_pixels(x, batch.windows, "D") for batch in batches]
    want = tuning_fit.look_at_windows("D", batches, targets, 500)
    batches[0].see("D", targets[0])
    got = tuning_fit.look_at_windows("D", batches, targets, 500)
    for name in ("base", "out", "features", "around", "pixels"):
        assert torch.equal(getattr(got, name), getattr(want, name))


def test_what_does_not_pay_is_left_out(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    x = photo(220, 220)[None].contiguous(memory_format=torch.channels_last)
    windows: list[Window] = [(slice(0, 220), slice(0, 220))]
    monkeypatch.setattr(tuning_fit, "SIDE_BITS", 1e9)
    encoded = encode_level(tiny, step_of(tiny, x, False), windows, x, 3, 1, False)
    assert encoded.shared is None
    assert encoded.groups[0][0] == level.CODED


def test_few_positions_are_not_tuned(tiny: Model) -> None:
    x = photo(63, 63)[None].contiguous(memory_format=torch.channels_last)
    windows: list[Window] = [(slice(0, 63), slice(0, 63))]
    assert encode_level(tiny, step_of(tiny, x, False), windows, x, 3, 2, False).shared is None


def test_samples_in_windows_are_those_at_positions(tiny: Model) -> None:
    """All positions of all groups, run anew in windows or kept: the same samples, in another order."""
    x = photo(64, 70)[None].contiguous(memory_format=torch.channels_last)
    step = step_of(tiny, x, True)
    windows: list[Window] = [
        (slice(t, t + 32), slice(c, min(70, c + 32))) for t in (0, 32) for c in (0, 32, 64)
    ]
    batches = [batch for _, batch in level.make_batches(step, windows)]
    targets = [level.phase_pixels(x, batch.windows, "D") for batch in batches]
    known = [batch.parameters("D") for batch in batches]
    n = sum(t.numel() // 3 for t in targets)
    at = tuning_fit.look_at_positions("D", batches, targets, known, torch.arange(n))
    anew = tuning_fit.look_at_windows("D", batches, targets, 100 * n)
    for name in ("base", "out", "around", "pixels"):
        a, b = (getattr(s, name).long() for s in (at, anew))
        assert a.shape == b.shape
        assert torch.equal(a.sort(1).values, b.sort(1).values), name
    assert torch.equal(at.features.long().sort(0).values, anew.features.long().sort(0).values)
    rows = [torch.cat((s.base.long(), s.out.long(), s.pixels.long())).T.tolist() for s in (at, anew)]
    assert sorted(rows[0]) == sorted(rows[1])


def test_a_model_needs_all_its_tensors() -> None:
    """Each missing or broken tensor is a WeightsError that names what is wrong."""
    torch.manual_seed(0)
    tensors = export_model(ExactNet(8), LossyNet(), None)
    assert isinstance(build_model(tensors).lossy, LossyModel)
    needed = [n for n in tensors if not n.startswith("analysis.")]
    for name in needed[::23]:
        with pytest.raises(WeightsError, match="not the weights"):
            build_model({n: t for n, t in tensors.items() if n != name})
    for name in ("lossy.first_table", "lossy.map_table", "exact.values_table"):
        for moved in (-1, len(tensors["tables"])):
            with pytest.raises(WeightsError, match="beyond"):
                build_model({**tensors, name: torch.tensor([moved], dtype=torch.int32)})
    for name in ("exact.D.tuning.vectors", "exact.V.tuning.scales"):
        with pytest.raises(WeightsError, match="tuning of phase"):
            build_model({**tensors, name: tensors[name][..., 1:, :]})
    broken = tensors["tables"].int()
    broken[0, 0] += 1
    with pytest.raises(WeightsError, match="sum"):
        build_model({**tensors, "tables": broken})
