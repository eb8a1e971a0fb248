"""The fused channel predictor: equal to the host's numpy arithmetic, extremes included."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.codec.exact import block as exact_block
from vbc.codec.exact.block import (
    AROUND,
    VALUE_RANGE,
    BlockPredictor,
    Parameters,
    Tuning,
    around_moves,
    table_index,
)
from vbc.codec.exact.networks import N_SURPRISE
from vbc.codec.model import Model, place
from vbc.kernels import predict
from vbc.kernels.predict import Corrections, PredictMaps, channel_tables, channel_tables_reference, misses

SHAPES = [(1, 1), (1, 7), (33, 17)]


def parameters(h: int, w: int, extreme: bool) -> tuple[Parameters, Tensor, Tensor]:
    """Parameters of a block, corrections [1, 6, h, w] and values [1, 3, h, w], channels last in memory."""
    g = torch.Generator().manual_seed(h * w + extreme)
    size = 1 << 20 if extreme else 300

    def planes(n: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
        x = torch.randint(low, high, (1, n, h, w), generator=g, dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last)

    out = planes(9, -size, size, torch.int32)
    base = planes(3, -255, 256, torch.int16)
    values = planes(3, -32768, 32767, torch.int16) if extreme else planes(3, -255, 256, torch.int16)
    return Parameters(base, out, torch.zeros(1, 1, h, w)), planes(6, -400, 400, torch.int32), values


def tuning(phase: str, linear: Tensor) -> tuple[Tuning, Tensor]:
    """Corrections with slopes up to the extremes, and misses around [1, 3 K, h, w]."""
    g = torch.Generator().manual_seed(linear.numel())
    n = len(AROUND[phase])
    around = torch.randint(-508, 509, (1, 3 * n, *linear.shape[-2:]), generator=g, dtype=torch.int16)
    slopes = [torch.randint(-127, 128, size, generator=g, dtype=torch.int32) for size in ((n, 3), (2, 3, 2))]
    layer: Any = lambda features: linear  # noqa: E731
    around = around.contiguous(memory_format=torch.channels_last)
    return Tuning(layer, slopes[0], slopes[1].numpy()), around


def host(
    model: Model, phase: str, p: Parameters, tuned: Tensor | None, values: Tensor
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Table and rounded mean of each channel, and the misses, as `exact_block` has them."""
    corrections = (None, None) if tuned is None else tuning(phase, tuned)
    predictor = BlockPredictor(model.exact, phase, p, *corrections)
    found = []
    for c in range(3):
        found.append(table_index(model.exact, c, *predictor.predict(c)))
        predictor.learn(values[0, c].contiguous().numpy().ravel())
    return found, predictor.misses()


def on_device(phase: str, linear: Tensor | None, device: str) -> Corrections | None:
    if linear is None:
        return None
    t, around = tuning(phase, linear)
    before = torch.from_numpy(t.before).to(device)
    moves = around_moves(around, t.around)[0].T.contiguous().to(device)
    return Corrections(rows(linear, device), moves, before)


def rows(x: Tensor, device: str) -> Tensor:
    return exact_block.by_position(x).to(device)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(("h", "w"), SHAPES)
@pytest.mark.parametrize("with_tuned", [False, True])
def test_equals_the_host(tiny: Model, h: int, w: int, extreme: bool, with_tuned: bool, device: str) -> None:
    p, corrections, values = parameters(h, w, extreme)
    tuned = corrections if with_tuned else None
    maps = place(tiny, torch.device(device)).exact.maps
    assert maps is not None
    for phase in "DV":
        wanted, missed = host(tiny, phase, p, tuned, values)
        of_all = rows(p.base, device), rows(p.out, device), rows(values, device)
        assert misses(*of_all, maps[phase]).T.tolist() == missed.tolist()
        for c, (index, mean) in enumerate(wanted):
            moved = on_device(phase, tuned, device)
            arguments = (
                rows(p.base, device),
                rows(p.out, device),
                moved,
                rows(values, device),
                c,
                maps[phase],
            )
            for function in (channel_tables, channel_tables_reference):
                have = function(*arguments)
                assert have[0].dtype == have[1].dtype == torch.int16
                assert have[0].tolist() == index.tolist()
                assert have[1].tolist() == mean.tolist()


def test_later_channels_are_not_looked_at(tiny: Model, device: str) -> None:
    """What the memory of an undecoded channel holds makes no difference."""
    p, _, values = parameters(9, 5, False)
    maps = place(tiny, torch.device(device)).exact.maps
    assert maps is not None
    for c in (0, 1, 2):
        poisoned = values.clone()
        poisoned[:, c:] = -32768
        have = [
            channel_tables(rows(p.base, device), rows(p.out, device), None, rows(v, device), c, maps["H"])
            for v in (values, poisoned)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*have, strict=True))


def test_constants_are_those_of_the_codec() -> None:
    names = ("LOG_SCALE_MIN", "LOG_SCALE_MAX", "COEFFICIENT_MAX", "MISS_MAX")
    assert [getattr(predict, n) for n in names] == [getattr(exact_block, n) for n in names]
    assert predict.N_SURPRISE == N_SURPRISE
    assert VALUE_RANGE == ((0, 255), (predict.LOW_CHROMA, 255), (predict.LOW_CHROMA, 255))


def test_wrong_arguments(tiny: Model) -> None:
    p, tuned, values = parameters(2, 3, False)
    maps = place(tiny, torch.device("cpu")).exact.maps
    assert maps is not None
    corrections = on_device("D", tuned, "cpu")
    assert corrections is not None
    short = Corrections(corrections.linear[:-1], corrections.moves, corrections.before)
    good = [rows(p.base, "cpu"), rows(p.out, "cpu"), corrections, rows(values, "cpu"), 0, maps["D"]]
    bad_maps = PredictMaps(maps["D"].log2_residual, maps["D"].surprise, maps["D"].tables[:2])
    for i, wrong in (
        (0, good[0].int()),
        (1, good[1][:, :8]),
        (2, short),
        (3, good[3][:-1]),
        (4, 3),
        (5, bad_maps),
    ):
        with pytest.raises(ValueError, match="must"):
            channel_tables(*good[:i], wrong, *good[i + 1 :])
