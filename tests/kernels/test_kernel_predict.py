"""The channel predictor: the kernel equals the definition, and the definition plain Python integers."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vbc.codec.model import Model
from vbc.codec.train import exact_net
from vbc.kernels import predict
from vbc.kernels.predict import (
    ChannelPredictor,
    Corrections,
    PredictMaps,
    channel_tables_triton,
)

SIZES = [1, 7, 561]
PHASES = ("D", "V")


@dataclass(frozen=True)
class Given:
    """What a predictor of P positions is given, and the values of the three channels, int16 [3, P]."""

    base: Tensor
    out: Tensor
    tuned: Corrections | None
    values: Tensor

    def to(self, device: str) -> "Given":
        tuned = self.tuned
        if tuned is not None:
            tuned = Corrections(tuned.linear.to(device), tuned.moves.to(device), tuned.before.to(device))
        return Given(self.base.to(device), self.out.to(device), tuned, self.values.to(device))

    def predictor(self, maps: PredictMaps, n_known: int) -> ChannelPredictor:
        """One that has learnt the first channels."""
        predictor = ChannelPredictor(self.base, self.out, self.tuned, maps)
        for c in range(n_known):
            predictor.learn(self.values[c])
        return predictor


def given(n: int, extreme: bool, tuned: bool) -> Given:
    """Pseudo-random parameters. extreme: far beyond what networks give, values that only damage brings."""
    g = torch.Generator().manual_seed(n + extreme)
    size = 1 << 20 if extreme else 300

    def planes(c: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(low, high, (c, n), generator=g, dtype=dtype)

    values = planes(3, -32768, 32768, torch.int16) if extreme else planes(3, -255, 256, torch.int16)
    corrections = None
    if tuned:
        moved = planes(3, -(1 << 23), 1 << 23, torch.int32)
        before = torch.randint(-127, 128, (2, 3, 2), generator=g, dtype=torch.int32)
        corrections = Corrections(planes(6, -400, 400, torch.int32), moved, before)
    return Given(planes(3, -255, 256, torch.int16), planes(9, -size, size, torch.int32), corrections, values)


def by_hand(x: Given, maps: PredictMaps, i: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Table and rounded mean of each channel at position i, and the prior errors: in Python's integers."""

    def clip(v: int, low: int, high: int) -> int:
        return min(max(v, low), high)

    log2_residual, surprise = maps.log2_residual.tolist(), maps.surprise.tolist()
    out, base, values = x.out[:, i].tolist(), x.base[:, i].tolist(), x.values[:, i].tolist()
    residuals: list[int] = []
    ratios: list[int] = []
    found = []
    for c in range(3):
        mean, scale = 16 * base[c] + out[c], clip(out[3 + c], -64, 96)
        for j, r in enumerate(residuals):
            mean += clip(out[5 + c + j], -127, 127) * r + 32 >> 6
        if c:
            scale += surprise[c - 1][max(clip((q + 8 >> 4) + 4, 0, 8) for q in ratios)]
        residuals_before, ratios_before = list(residuals), list(ratios)
        r = 16 * values[c] - mean
        residuals.append(r)
        ratios.append(log2_residual[min(abs(r), len(log2_residual) - 1)] - scale)
        if x.tuned is not None:
            move, change = int(x.tuned.moves[c, i]), 128
            for j, (r, q) in enumerate(zip(residuals_before, ratios_before, strict=True)):
                move += int(x.tuned.before[0, c, j]) * r
                change += int(x.tuned.before[1, c, j]) * q
            mean += int(x.tuned.linear[c, i]) + (move >> 8)
            scale += int(x.tuned.linear[3 + c, i]) + (change >> 8 if c else 0)
        mean, scale = clip(mean, 16 * -255 if c else 0, 16 * 255), clip(scale, -64, 96)
        rounded = mean + 8 >> 4
        key = (scale + 64) * 16 + mean + 8 - 16 * rounded
        found.append((int(maps.tables[c, key]), rounded))
    return found, [clip(r + 2 >> 2, -127, 127) for r in residuals]


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_the_definition_by_hand(tiny: Model, phase: str, tuned: bool, extreme: bool) -> None:
    x, maps = given(SIZES[-1], extreme, tuned), tiny.exact.maps[phase]
    tables = [x.predictor(maps, c).tables_reference() for c in range(3)]
    errors = x.predictor(maps, 3).prior_errors()
    assert errors.dtype == torch.int8
    for i in range(0, SIZES[-1], 17):
        want, missed = by_hand(x, maps, i)
        assert [(int(index[i]), int(mean[i])) for index, mean in tables] == want
        assert errors[:, i].tolist() == missed


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("tuned", [False, True])
def test_the_kernel_equals_the_definition(
    tiny: Model, n: int, extreme: bool, tuned: bool, device: str
) -> None:
    host = given(n, extreme, tuned)
    x = host.to(device)
    for phase in PHASES:
        maps = tiny.exact.maps[phase]
        there = maps.to(torch.device(device))
        for c in range(3):
            want = host.predictor(maps, c).tables_reference()
            known = list(x.values[:c])
            kernel = channel_tables_triton(x.base, x.out, x.tuned, known, there)
            for have in (kernel, x.predictor(there, c).tables()):
                for a, b in zip(have, want, strict=True):
                    assert a.dtype == torch.int16
                    assert torch.equal(a.cpu(), b)
        errors = x.predictor(there, 3).prior_errors()
        assert torch.equal(errors.cpu(), host.predictor(maps, 3).prior_errors())


def test_learning_step_by_step_equals_knowing_before(tiny: Model) -> None:
    """A predictor that is asked after each channel gives what fresh ones give, also when asked twice."""
    x, maps = given(33, False, True), tiny.exact.maps["H"]
    predictor = ChannelPredictor(x.base, x.out, x.tuned, maps)
    for c in range(3):
        want = x.predictor(maps, c).tables_reference()
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(predictor.tables(), want, strict=True))
        predictor.learn(x.values[c])
    assert torch.equal(predictor.prior_errors(), x.predictor(maps, 3).prior_errors())
    residuals, ratios = predictor.seen()
    assert len(residuals) == len(ratios) == 3
    assert residuals[0].dtype == ratios[0].dtype == torch.int32


def test_corrections_do_not_move_what_is_learnt(tiny: Model) -> None:
    """Prior errors, residuals and their classes are those of the prediction without corrections."""
    tuned = given(200, False, True)
    plain = Given(tuned.base, tuned.out, None, tuned.values)
    maps = tiny.exact.maps["D"]
    assert torch.equal(plain.predictor(maps, 3).prior_errors(), tuned.predictor(maps, 3).prior_errors())
    differ = [
        not torch.equal(plain.predictor(maps, c).tables()[1], tuned.predictor(maps, c).tables()[1])
        for c in range(3)
    ]
    assert all(differ)


def test_no_positions_at_all(tiny: Model, device: str) -> None:
    x, maps = given(1, False, True).to(device), tiny.exact.maps["D"].to(torch.device(device))
    assert x.tuned is not None
    none = Corrections(x.tuned.linear[:, :0], x.tuned.moves[:, :0], x.tuned.before)
    for tuned in (None, none):
        predictor = ChannelPredictor(x.base[:, :0], x.out[:, :0], tuned, maps)
        for c in range(3):
            assert [part.shape for part in predictor.tables()] == [(0,), (0,)]
            predictor.learn(x.values[c, :0])
        assert predictor.prior_errors().shape == (3, 0)


def test_views_of_other_layouts(tiny: Model, device: str) -> None:
    """Planes that are not contiguous, as slices of larger ones."""
    x, maps = given(60, False, True).to(device), tiny.exact.maps["V"].to(torch.device(device))
    assert x.tuned is not None

    def scattered(t: Tensor) -> Tensor:
        wide = torch.zeros((*t.shape[:-1], 3 * t.shape[-1]), dtype=t.dtype, device=t.device)
        wide[..., 1::3] = t
        return wide[..., 1::3]

    views = Given(
        scattered(x.base),
        scattered(x.out),
        Corrections(scattered(x.tuned.linear), scattered(x.tuned.moves), x.tuned.before),
        scattered(x.values),
    )
    for c in range(3):
        want = x.predictor(maps, c).tables()
        have = views.predictor(maps, c).tables()
        assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


def test_training_uses_the_same_ranges() -> None:
    assert exact_net.LOG_SCALE_RANGE == (predict.LOG_SCALE_MIN / 16, predict.LOG_SCALE_MAX / 16)


def test_wrong_arguments(tiny: Model) -> None:
    x, maps = given(6, False, True), tiny.exact.maps["D"]
    tuned = x.tuned
    assert tuned is not None
    good = [x.base, x.out, tuned, maps]
    for i, wrong in (
        (0, x.base.int()),
        (0, x.base[:, :5]),
        (0, x.base[:2]),
        (1, x.out[:8]),
        (1, x.out.short()),
        (2, Corrections(tuned.linear[:, :-1], tuned.moves, tuned.before)),
        (2, Corrections(tuned.linear, tuned.moves[:2], tuned.before)),
        (2, Corrections(tuned.linear, tuned.moves.long(), tuned.before)),
        (2, Corrections(tuned.linear, tuned.moves, tuned.before[:1])),
        (3, PredictMaps(maps.log2_residual, maps.surprise, maps.tables[:2])),
        (3, PredictMaps(maps.log2_residual, maps.surprise[:, :8], maps.tables)),
        (3, PredictMaps(maps.log2_residual[:0], maps.surprise, maps.tables)),
        (3, PredictMaps(maps.log2_residual.int(), maps.surprise, maps.tables)),
    ):
        with pytest.raises(ValueError, match="must"):
            ChannelPredictor(*good[:i], wrong, *good[i + 1 :])  # type: ignore[arg-type]
