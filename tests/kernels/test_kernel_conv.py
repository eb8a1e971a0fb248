"""The exact integer convolution: every path equals the int64 definition."""

import pytest
import torch
from torch import Tensor

from vbc.kernels import conv as conv_module
from vbc.kernels import dispatch
from vbc.kernels.conv import NARROW, IntConv, conv_int, conv_int_cpu, conv_int_reference, conv_int_triton

SHAPES = [
    # n, i, o, k, height, width
    (1, 1, 1, 1, 1, 1),
    (2, 15, 48, 3, 3, 3),
    (1, 9, 9, 3, 33, 17),
    (2, 48, 9, 1, 7, 5),
    (1, 96, 40, 3, 4, 6),
    (1, 3, 17, 5, 6, 65),
]


def layer(i: int, o: int, k: int, extreme: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias, shift; extreme: the largest magnitudes that the bound allows."""
    g = torch.Generator().manual_seed(i * 1000 + o * 10 + k)
    peak = min(127, ((1 << 24) - (1 << 17)) // (127 * i * k * k))
    weight = torch.randint(-peak, peak + 1, (o, i, k, k), dtype=torch.int8, generator=g)
    if extreme:
        weight = torch.where(weight >= 0, peak, -peak).to(torch.int8)
        weight[0], weight[-1] = peak, -peak
    bias = torch.randint(-90000, 90000, (o,), dtype=torch.int32, generator=g)
    shift = torch.randint(1, 17, (o,), generator=g)
    return weight, bias, shift


def image(n: int, i: int, height: int, width: int, extreme: bool = False) -> Tensor:
    """Activations 0..127; extreme: only the two ends."""
    g = torch.Generator().manual_seed(height * width)
    x = torch.randint(0, 128, (n, i, height, width), generator=g)
    return (torch.where(x > 30, 127, 0) if extreme else x).to(torch.uint8)


def by_hand(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool) -> Tensor:
    """The formula in Python integers, for a 1-position output."""
    out = []
    for o in range(weight.shape[0]):
        acc = sum(a * b for a, b in zip(x[0].flatten().tolist(), weight[o].flatten().tolist(), strict=True))
        s = int(shift[o])
        y = (acc + int(bias[o]) + (1 << (s - 1))) >> s
        out.append(y if head else min(max(y, 0), 127))
    return torch.tensor(out).view(1, -1, 1, 1)


@pytest.mark.parametrize("head", [False, True])
def test_reference_is_the_formula(head: bool) -> None:
    weight, bias, shift = layer(7, 5, 3)
    x = image(1, 7, 3, 3)
    y = conv_int_reference(x, weight, bias, shift, head)
    assert y.dtype == (torch.int32 if head else torch.uint8)
    assert torch.equal(y.long(), by_hand(x, weight, bias, shift, head))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("extreme", [False, True])
def test_paths_agree(shape: tuple[int, ...], head: bool, extreme: bool, device: str) -> None:
    n, i, o, k, height, width = shape
    args = (image(n, i, height, width, extreme), *layer(i, o, k, extreme), head)
    want = conv_int_reference(*args)
    assert torch.equal(conv_int_cpu(*args), want)
    moved = [a.to(device) if isinstance(a, Tensor) else a for a in args]
    assert torch.equal(conv_int(*moved).cpu(), want)
    assert torch.equal(IntConv(*moved[1:])(moved[0]).cpu(), want)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_on_the_cpu(shape: tuple[int, ...]) -> None:
    n, i, o, k, height, width = shape
    weight, bias, shift = layer(i, o, k)
    x, other = image(n, i, height, width), bias.flip(0)
    conv = IntConv(weight, bias, shift)
    want = conv_int_reference(x, weight, other, shift)
    assert torch.equal(conv(x, other), want)
    conv.check_biases(torch.stack((bias, other)))
    assert torch.equal(conv(x, other, proven=True), want)
    assert torch.equal(IntConv.trusted(weight, other, shift.int())(x), want)
    assert torch.equal(conv(x), conv_int_reference(x, weight, bias, shift))
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


def test_residual_is_added_before_the_clamp(device: str) -> None:
    weight, bias, shift = layer(12, 20, 3)
    shift = shift.clamp_min(12)
    x = image(1, 12, 9, 7)
    added = image(1, 20, 7, 5)
    want = conv_int_reference(x, weight, bias, shift, residual=added)
    assert not torch.equal(want, conv_int_reference(x, weight, bias, shift))
    assert torch.equal(IntConv(weight, bias, shift)(x, residual=added), want)
    args = [t.to(device) for t in (x, weight, bias, shift)]
    assert torch.equal(conv_int_triton(*args, residual=added.to(device)).cpu(), want)


def test_signed_carrier(device: str) -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randint(-2047, 2048, (1, 3, 12, 18), dtype=torch.int16, generator=g)
    x[0, :, :3, :3] = 2047
    weight, bias, shift = layer(3, 6, 3)
    want = conv_int_reference(x, weight, bias, shift, head=True)
    assert torch.equal(
        conv_int_triton(*(t.to(device) for t in (x, weight, bias, shift)), head=True).cpu(), want
    )
    assert torch.equal(conv_module._run_path("float32", x, weight, bias, shift, True, None), want)


def test_channels_last_and_sliced_inputs() -> None:
    weight, bias, shift = layer(15, 8, 3)
    x = image(2, 15, 9, 8)
    want = conv_int_reference(x[:, :, 1:, ::2], weight, bias, shift)
    conv = IntConv(weight, bias, shift)
    assert torch.equal(conv(x[:, :, 1:, ::2]), want)
    assert torch.equal(conv(x[:, :, 1:, ::2].contiguous(memory_format=torch.channels_last)), want)


@pytest.mark.parametrize("wrong", ["onednn", "both"])
def test_wrong_fast_path_is_left(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(*args: Tensor | None) -> Tensor:
        return conv_int_reference(args[0], weight, bias, shift) ^ 1

    weight, bias, shift = layer(4, 6, 3)
    x = image(1, 4, 5, NARROW + 3)
    monkeypatch.setattr(dispatch, "_KNOWN", {})
    paths = ["onednn"] if wrong == "onednn" else ["onednn", "float32"]
    for path in paths:
        monkeypatch.setitem(conv_module._RUN, path, off_by_one)
    with pytest.warns(RuntimeWarning, match="known-answer") as record:
        y = IntConv(weight, bias, shift)(x)
    assert len(record) == len(paths)
    assert torch.equal(y, conv_int_reference(x, weight, bias, shift))
    assert list(dispatch._KNOWN.values()) == ([False, True] if wrong == "onednn" else [False, False])


def test_missing_operator_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(dispatch, "_KNOWN", {})
    monkeypatch.setitem(conv_module._RUN, "onednn", missing)
    weight, bias, shift = layer(4, 6, 1)
    narrow, x = image(1, 4, 3, NARROW), image(1, 4, 3, NARROW + 1)
    conv = IntConv(weight, bias, shift)
    assert torch.equal(conv(narrow), conv_int_reference(narrow, weight, bias, shift)), "not asked for"
    with pytest.warns(RuntimeWarning, match="onednn"):
        y = conv(x)
    assert torch.equal(y, conv_int_reference(x, weight, bias, shift))


def test_bound_is_exact() -> None:
    weight = torch.full((1, 115, 3, 3), 127, dtype=torch.int8)
    weight[0, 0, 0, 0] = 9
    shift = torch.tensor([4])
    room = (1 << 24) - 1 - 127 * int(weight.long().sum()) - 8
    conv = IntConv(weight, torch.tensor([room], dtype=torch.int32), shift, head=True)
    x = torch.full((1, 115, 3, 3), 127, dtype=torch.uint8)
    assert int(conv(x)) == ((1 << 24) - 1) >> 4
    over = torch.tensor([room + 1], dtype=torch.int32)
    every = torch.stack((over - 1, -over, over - 2)).view(3, 1, 1)
    conv.check_biases(every[::2])
    for make in (
        lambda: IntConv(weight, over, shift),
        lambda: conv(x, over),
        lambda: conv.check_biases(every),
    ):
        with pytest.raises(ValueError, match=r"2\^24"):
            make()


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.zeros(6, 4, 3, 1, dtype=torch.int8)},
        {"weight": torch.zeros(6, 4, 3, 3)},
        {"bias": torch.zeros(5, dtype=torch.int32)},
        {"bias": torch.zeros(6, dtype=torch.int64)},
        {"shift": torch.zeros(6, dtype=torch.int32)},
        {"shift": torch.full((6,), 17)},
        {"x": torch.zeros(1, 3, 5, 5, dtype=torch.uint8)},
        {"x": torch.zeros(1, 4, 2, 5, dtype=torch.uint8)},
        {"x": torch.zeros(1, 4, 5, 5)},
        {"residual": torch.zeros(1, 6, 5, 5, dtype=torch.uint8)},
    ],
)
def test_wrong_arguments(change: dict[str, Tensor]) -> None:
    weight, bias, shift = layer(4, 6, 3)
    args = {"x": image(1, 4, 5, 5), "weight": weight, "bias": bias, "shift": shift} | change
    with pytest.raises(ValueError, match="must"):
        conv_int(**args)
