"""The exact integer convolution: every path equals the int64 definition."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from vbc.kernels import conv as conv_module
from vbc.kernels import dispatch
from vbc.kernels.conv import (
    NARROW,
    IntConv,
    conv_int,
    conv_int_cpu,
    conv_int_float64,
    conv_int_reference,
    conv_int_triton,
)

SHAPES = [
    # n, i, o, k, height, width
    (1, 1, 1, 1, 1, 1),
    (2, 15, 48, 3, 3, 3),
    (1, 9, 9, 3, 33, 17),
    (2, 48, 9, 1, 7, 5),
    (1, 96, 40, 3, 4, 6),
    (1, 3, 17, 5, 6, 65),
    (1, 84, 70, 3, 11, 13),
    (3, 33, 64, 1, 9, 11),
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


@pytest.mark.parametrize("wrong", ["onednn", "both", "all"])
def test_wrong_fast_path_is_left(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(*args: Tensor | None) -> Tensor:
        return conv_int_reference(args[0], weight, bias, shift) ^ 1

    weight, bias, shift = layer(4, 6, 3)
    x = image(1, 4, 5, NARROW + 3)
    monkeypatch.setattr(dispatch, "_KNOWN", {})
    paths = ["onednn", "float32", "float64"][: {"onednn": 1, "both": 2, "all": 3}[wrong]]
    for path in paths:
        monkeypatch.setitem(conv_module._RUN, path, off_by_one)
    with pytest.warns(RuntimeWarning, match="known-answer") as record:
        y = IntConv(weight, bias, shift)(x)
    assert len(record) == len(paths)
    assert torch.equal(y, conv_int_reference(x, weight, bias, shift))
    assert list(dispatch._KNOWN.values()) == [*([False] * len(paths)), True][:3]


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


def test_settings_of_a_program_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast, a default dtype and a precision of float32 that are set after the known-answer tests ran."""
    weight, bias, shift = layer(48, 24, 3)
    convs = [IntConv(weight, bias, shift, head) for head in (False, True)]
    images = [image(1, 48, 6, width, extreme=True) for width in (NARROW, 40)]

    def check() -> None:
        for conv in convs:
            for x in images:
                assert torch.equal(conv(x), conv_int_reference(x, weight, bias, shift, conv.head))

    check()
    with torch.autocast("cpu", torch.bfloat16):
        check()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            check()
        finally:
            torch.set_default_dtype(torch.float32)
    for settings in precisions():
        with settings:
            check()


def precisions() -> Iterator[AbstractContextManager[None]]:
    """The ways to let torch round the factors of float32 convolutions, as far as this torch has them."""

    @contextmanager
    def changed(what: Any, name: str, value: str) -> Iterator[None]:
        before = getattr(what, name)
        setattr(what, name, value)
        try:
            yield
        finally:
            setattr(what, name, before)

    @contextmanager
    def matmul() -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            if hasattr(backends.mkldnn, "conv"):  # which otherwise stays at "ieee"
                backends.mkldnn.matmul.fp32_precision = "none"
                backends.cuda.matmul.fp32_precision = "none"

    backends: Any = torch.backends
    yield matmul()
    if hasattr(backends.mkldnn, "conv"):  # since torch 2.9
        yield changed(backends.mkldnn.conv, "fp32_precision", "bf16")
        yield changed(backends.mkldnn.conv, "fp32_precision", "tf32")
        yield changed(backends, "fp32_precision", "bf16")


def test_float32_is_tested_for_every_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution that rounds its factors is left while it does, in layers that were called before, too."""
    monkeypatch.setattr(dispatch, "_KNOWN", {})
    real = conv_module._RUN["float32"]
    usual = conv_module.float32_settings()

    def rounding(x: Tensor, *rest: Any) -> Tensor:
        y: Tensor = real(x, *rest)
        return y if conv_module.float32_settings() == usual else y ^ 1

    monkeypatch.setitem(conv_module._RUN, "float32", rounding)
    weight, bias, shift = layer(4, 6, 3)
    conv, x = IntConv(weight, bias, shift), image(1, 4, 5, NARROW)
    want = conv_int_reference(x, weight, bias, shift)
    assert torch.equal(conv(x), want)
    for settings in precisions():
        with settings:
            monkeypatch.setattr(dispatch, "_KNOWN", {k: v for k, v in dispatch._KNOWN.items() if v})
            assert conv_module.float32_settings() != usual
            with pytest.warns(RuntimeWarning, match="float32 convolution"):
                y = conv(x)
        assert torch.equal(y, want)
        assert torch.equal(conv(x), want), "and back"


def test_the_bias_keeps_its_half() -> None:
    """oneDNN gets bias + 1/2 in float32, which is exact below 2^23; sums that cancel it show the half."""
    edge = (1 << 23) - 1
    weight = torch.full((8, 60, 3, 3), 122, dtype=torch.int8)
    weight.view(8, -1)[:, :171] += (
        1  # 127 * sum|W| is 130 below the largest bias: as much as the bound allows
    )
    weight[1::2] *= -1
    bias = torch.tensor([-edge, edge] * 4, dtype=torch.int32)
    shift = torch.arange(8) // 2 % 3 + 1
    x = torch.full((1, 60, 3, NARROW + 4), 127, dtype=torch.uint8)
    x[0, 30, 1] -= torch.arange(NARROW + 4, dtype=torch.uint8) % 2
    want = conv_int_reference(x, weight, bias, shift)
    assert 0 < int(want[:, 1::2].min()) <= int(want[:, 1::2].max()) <= 127
    assert torch.equal(conv_int_cpu(x, weight, bias, shift), want)
    assert torch.equal(IntConv(weight, bias, shift)(x), want)
    for over in (edge + 1, -edge - 1):
        with pytest.raises(ValueError, match=r"2\^23"):
            IntConv(weight[:1] * 0, torch.tensor([over], dtype=torch.int32), shift[:1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head", [False, True])
def test_float64_is_the_definition(shape: tuple[int, ...], head: bool) -> None:
    n, i, o, k, height, width = shape
    args = (image(n, i, height, width, True), *layer(i, o, k, True), head)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_int_float64(*args)
    assert y.dtype == (torch.int32 if head else torch.uint8)
    assert torch.equal(y, conv_int_reference(*args))
    if not head:
        added = image(n, o, height - k + 1, width - k + 1)
        assert torch.equal(conv_int_float64(*args, added), conv_int_reference(*args, added))


def test_without_its_kernel_a_layer_stays_on_the_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """The definition, which is worked out on the host, is left for a device without float64."""
    weight, bias, shift = (t.to(device) for t in layer(9, 12, 3))
    x = image(1, 9, 6, 7).to(device)
    want = conv_int_reference(x, weight, bias, shift)

    def broken(*args: object) -> Tensor:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(dispatch, "_KNOWN", {})
    monkeypatch.setattr(conv_module, "conv_int_triton", broken)
    called = []
    monkeypatch.setattr(conv_module, "conv_int_float64", lambda *a: called.append(1) or conv_int_float64(*a))
    with pytest.warns(RuntimeWarning, match="Triton convolution"):
        assert torch.equal(IntConv(weight, bias, shift)(x), want)
    assert called
    monkeypatch.setattr(conv_module, "conv_int_float64", broken)
    monkeypatch.setattr(dispatch, "_KNOWN", {})
    with pytest.warns(RuntimeWarning) as record:
        assert torch.equal(IntConv(weight, bias, shift)(x), want)
    assert ["float64" in str(warning.message) for warning in record] == [False, True]


def test_packing_fills_channels_with_zeros() -> None:
    weight, _, _ = layer(15, 8, 3)
    packed = conv_module.pack_triton(weight, torch.int8)
    assert packed.shape == (8, 3, 3, 16)
    assert packed.is_contiguous()
    assert torch.equal(packed[..., :15].permute(0, 3, 1, 2), weight)
    assert not packed[..., 15:].any()
    x = image(1, 48, 4, 5).contiguous(memory_format=torch.channels_last)
    assert conv_module._as_rows(x).data_ptr() == x.data_ptr(), "no copy where nothing is to do"


def test_too_many_positions_for_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_module, "MAX_POSITIONS", 8)
    with pytest.raises(ValueError, match="9 positions"):
        conv_int_triton(image(1, 4, 5, 5), *layer(4, 6, 3))


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
