"""Masked convolution: causal orders, gradients, exact integers, and how much is computed."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from vbc.kernels.research.masked_conv import (
    CHECKERBOARD,
    RASTER,
    IntMaskedConv,
    Order,
    interlaced,
    masked_conv,
    masked_conv_int,
    masked_conv_int_gather,
    masked_conv_reference,
    n_products,
    patches,
    plan,
)

ORDERS = {
    "raster": (RASTER, 3),
    "raster 5": (RASTER, 5),
    "checkerboard": (CHECKERBOARD, 5),
    "interlaced": (interlaced(), 3),
    "interlaced 2": (interlaced(2), 5),
    "3|1": (patches(1), 3),
    "9|3": (patches(3), 9),
    "15|5": (patches(5), 15),
    "3 with neighbours": (patches(3, independent=False), 5),
}
FLOAT_CASES = [
    *((name, size) for name in ORDERS if name != "15|5" for size in ((1, 1, 1, 1, 1), (2, 3, 5, 7, 6))),
    ("15|5", (1, 2, 3, 4, 6)),
    *((name, (1, 17, 33, 3, 8)) for name in ("raster", "checkerboard", "interlaced")),
]
"""Order and n, c, o, height, width; few of the large ones, the interpreter is slow."""


def layer(c: int, o: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(c + 10 * o + 100 * k)
    return (torch.randn(o, c, k, k, generator=g) / (c * k)).to(dtype), torch.randn(o, generator=g).to(dtype)


def int_layer(c: int, o: int, k: int, x_max: int = 127) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(c + 10 * o + 100 * k)
    peak = min(127, ((1 << 24) - (1 << 17)) // (x_max * c * k * k))
    weight = torch.randint(-peak, peak + 1, (o, c, k, k), dtype=torch.int8, generator=g)
    bias = torch.randint(-30000, 30000, (o,), dtype=torch.int32, generator=g)
    return weight, bias, torch.randint(1, 17, (o,), generator=g)


def image(n: int, c: int, h: int, w: int) -> Tensor:
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(h * w + c))


def test_masks_of_the_orders() -> None:
    """The active taps, drawn: raster A is PixelCNN's mask; a checkerboard's second phase reads four."""

    def drawn(order: Order, k: int, kind: str, cell: int) -> str:
        taps = {t[2] for t in plan(order, k, kind).cells[cell].taps}
        return "/".join("".join("x" if k * i + j in taps else "." for j in range(k)) for i in range(k))

    assert drawn(RASTER, 3, "A", 0) == "xxx/x../..."
    assert drawn(RASTER, 3, "B", 0) == "xxx/xx./..."
    assert drawn(CHECKERBOARD, 3, "A", 0) == ".../.../..."
    assert drawn(CHECKERBOARD, 3, "B", 0) == "x.x/.x./x.x"
    assert drawn(CHECKERBOARD, 3, "A", 1) == ".x./x.x/.x."
    assert drawn(CHECKERBOARD, 3, "B", 1) == "xxx/xxx/xxx"
    assert drawn(interlaced(), 3, "A", 3) == "x.x/.../x.x"
    assert drawn(interlaced(), 3, "A", 1) == ".x./x.x/.x."
    assert drawn(interlaced(), 3, "A", 2) == "xxx/x.x/xxx"
    assert drawn(patches(3), 5, "A", 4) == "...../.xxx./.x.../...../....."
    assert drawn(patches(3), 3, "A", 0) == ".../.../..."
    assert drawn(patches(1), 3, "A", 0) == ".../.../..."
    assert interlaced(2).phases == ((0, 5, 2, 5), (6, 4, 6, 4), (3, 5, 1, 5), (6, 4, 6, 4))


@pytest.mark.parametrize("name", ORDERS)
def test_nothing_sees_the_future(name: str) -> None:
    """The Jacobian of a type A layer: positions near and decoded before are read, no others."""
    order, k = ORDERS[name]
    h, w = min(2 * order.period, 6), 5
    weight, bias = torch.ones(1, 1, k, k, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    jacobian: Any = torch.autograd.functional.jacobian(
        lambda x: masked_conv(x, weight, bias, order, "A").flatten(),
        torch.ones(1, 1, h, w, dtype=torch.float64),
    )
    reads = jacobian.view(h * w, h * w) != 0
    p = order.period
    rank = torch.tensor([order.phases[i % p][j % p] for i in range(h) for j in range(w)])
    if order.raster:
        rank = torch.arange(h * w)
    assert not (reads & (rank[None] >= rank[:, None])).any()
    near = torch.tensor(
        [
            [
                max(abs(i - u), abs(j - v)) <= k // 2
                and (not order.independent or (i // p, j // p) == (u // p, v // p))
                for u, v in itertools.product(range(h), range(w))
            ]
            for i, j in itertools.product(range(h), range(w))
        ]
    )
    assert torch.equal(reads, near & (rank[None] < rank[:, None]))


def with_gradients(x: Tensor, weight: Tensor, bias: Tensor, order: Order, kind: str) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = masked_conv(leaves[0], leaves[1], leaves[2], order, kind)
    factor = torch.arange(y.numel(), device=y.device).view(y.shape) % 5 - 1.5
    (y * factor).sum().backward()
    return [y.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in leaves)]


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("kind", ["A", "B"])
def test_torch_path_is_the_definition(name: str, kind: str) -> None:
    order, k = ORDERS[name]
    weight, bias = layer(2, 3, k, torch.float64)
    x = image(2, 2, 5, 7).double()
    want = masked_conv_reference(x, weight, bias, order, kind)
    assert torch.allclose(masked_conv(x, weight, bias, order, kind), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_reference_gradients(kind: str) -> None:
    order, k = ORDERS["interlaced"]
    leaves = [t.double().requires_grad_() for t in (image(1, 2, 3, 3), *layer(2, 2, k))]
    assert torch.autograd.gradcheck(lambda *t: masked_conv(*t, order, kind), leaves)


@pytest.mark.parametrize(("name", "size"), FLOAT_CASES)
def test_float_and_gradients(name: str, size: tuple[int, ...], device: str) -> None:
    """float32 within 2e-5 of float64 (gradients: of the largest)."""
    order, k = ORDERS[name]
    n, c, o, h, w = size
    args = (image(n, c, h, w), *layer(c, o, k))
    for kind in "A" if k > 9 else "AB":
        want = with_gradients(*(t.double() for t in args), order, kind)
        have = with_gradients(*(t.to(device) for t in args), order, kind)
        for a, b in zip(have, want, strict=True):
            assert a.dtype == torch.float32
            assert float((a.cpu().double() - b).abs().max()) <= 2e-5 * (1 + float(b.abs().max()))


def test_half_precision(device: str) -> None:
    args = (image(1, 20, 9, 9).half(), *layer(20, 18, 3, torch.float16))
    want = with_gradients(*(t.double() for t in args), CHECKERBOARD, "B")
    have = with_gradients(*(t.to(device) for t in args), CHECKERBOARD, "B")
    for a, b in zip(have, want, strict=True):
        assert a.dtype == torch.float16
        assert float((a.cpu().double() - b).abs().max()) <= 2e-3 * (1 + float(b.abs().max()))


@pytest.mark.parametrize(
    ("name", "head"),
    [*((name, False) for name in ORDERS), ("raster", True), ("checkerboard", True), ("9|3", True)],
)
def test_integers(name: str, head: bool, device: str) -> None:
    order, k = ORDERS[name]
    for n, c, o, h, w in ((1, 5, 18, 6, 7),) if k > 5 else ((1, 1, 1, 1, 1), (2, 5, 18, 6, 7)):
        weight, bias, shift = int_layer(c, o, k)
        x = torch.randint(0, 128, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        for kind in "AB":
            acc = masked_conv_reference(x.long(), weight.long(), bias.long(), order, kind)
            s = shift.view(1, -1, 1, 1)
            want = (acc + (1 << (s - 1))) >> s
            want = want.int() if head else want.clamp(0, 127).to(torch.uint8)
            have = masked_conv_int(*(t.to(device) for t in (x, weight, bias, shift)), order, kind, head)
            assert have.dtype == want.dtype
            assert torch.equal(have.cpu(), want)
            cells = plan(order, k, kind).cells
            out = torch.full_like(want, 99)
            masked_conv_int_gather(x, weight, bias, shift, cells, order.period, head, out)
            assert torch.equal(out, want)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("head", [False, True])
def test_prepared_layer(name: str, head: bool) -> None:
    """On the CPU's fast path, with its own bias and another, phase by phase into a poisoned output."""
    order, k = ORDERS[name]
    weight, bias, shift = int_layer(3, 18, k)
    other = bias.flip(0)
    x = torch.randint(0, 128, (2, 3, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(8))
    for kind in "AB":
        layer = IntMaskedConv(weight, bias, shift, order, kind, head)
        want = masked_conv_int(x, weight, bias, shift, order, kind, head)
        assert torch.equal(layer(x), want)
        want = masked_conv_int(x, weight, other, shift, order, kind, head)
        out = torch.full_like(want, 77)
        for phase in range(order.n_phases):
            layer(x, other, phase, out)
        assert torch.equal(out, want)


def test_prepared_layer_as_a_kernel(device: str) -> None:
    weight, bias, shift = (t.to(device) for t in int_layer(3, 18, 3))
    x = torch.randint(0, 128, (1, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(8)).to(
        device
    )
    layer = IntMaskedConv(weight, bias, shift, CHECKERBOARD, "A")
    assert torch.equal(layer(x), masked_conv_int(x, weight, bias, shift, CHECKERBOARD, "A"))
    with pytest.raises(ValueError, match=r"2\^24"):
        layer(x, torch.full_like(bias, 1 << 24))


def test_signed_carrier(device: str) -> None:
    weight, bias, shift = int_layer(4, 6, 3, 2047)
    x = torch.randint(
        -2047, 2048, (1, 4, 9, 7), dtype=torch.int16, generator=torch.Generator().manual_seed(4)
    )
    acc = masked_conv_reference(x.long(), weight.long(), bias.long(), CHECKERBOARD, "A")
    s = shift.view(1, -1, 1, 1)
    have = masked_conv_int(*(t.to(device) for t in (x, weight, bias, shift)), CHECKERBOARD, "A", head=True)
    assert torch.equal(have.cpu().long(), (acc + (1 << (s - 1))) >> s)


@pytest.mark.parametrize("name", ["checkerboard", "interlaced 2", "9|3"])
def test_phase_by_phase(name: str, device: str) -> None:
    """One phase writes its own positions and reads earlier ones: poison elsewhere changes nothing."""
    order, k = ORDERS[name]
    n, c, o, h, w = 1, 3, 17, 7, 9
    args = [t.to(device) for t in int_layer(c, o, k)]
    x = torch.randint(0, 128, (n, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)).to(
        device
    )
    whole = masked_conv_int(x, *args, order, "A")
    rows = torch.arange(h) % order.period
    cols = torch.arange(w) % order.period
    phases = torch.tensor(order.phases)[rows][:, cols].to(device)
    out = torch.full_like(whole, 211)
    for phase in range(order.n_phases):
        known = torch.where(phases < phase, x, torch.full_like(x, 101))
        before = out.clone()
        masked_conv_int(known, *args, order, "A", phase=phase, out=out)
        assert torch.equal(out, torch.where(phases == phase, whole, before))


def test_inactive_taps_are_never_read(device: str) -> None:
    weight, bias = layer(3, 4, 3)
    weight[:, :, 2], weight[:, :, 1, 1:] = float("nan"), float("nan")
    leaves = [t.to(device).requires_grad_() for t in (image(1, 3, 4, 5), weight, bias)]
    masked_conv(leaves[0], leaves[1], leaves[2], RASTER, "A").sum().backward()
    for t in leaves:
        assert t.grad is not None
        assert torch.isfinite(t.grad).all()
    assert leaves[1].grad is not None
    assert (leaves[1].grad[:, :, 2] == 0).all()


@pytest.mark.parametrize("name", ["raster 5", "checkerboard", "interlaced", "9|3"])
def test_work_done(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter sees the products of the plan, and the plan has those that the masks leave."""
    if device != "cpu":
        pytest.skip("only the interpreter can be watched")
    from triton.runtime import interpreter

    order, k = ORDERS[name]
    n, c, o, h, w = 1, 32, 16, 48, 48  # cells of a multiple of 64 positions: no program is partly idle
    cells = plan(order, k, "A").cells
    brute = sum(
        any(t[2] == tap for t in cells[(i % order.period) * order.period + j % order.period].taps)
        for i, j, tap in itertools.product(range(h), range(w), range(k * k))
    )
    assert n_products(cells, order.period, h, w) == brute
    done = 0
    dot = interpreter.InterpreterBuilder.create_dot

    def counting(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        nonlocal done
        done += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
        return dot(self, a, b, d, *rest)

    args = [t.to(device) for t in int_layer(c, o, k)]
    x = torch.zeros(n, c, h, w, dtype=torch.uint8, device=device)
    masked_conv_int(x, *args, order, "A")
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", counting)
    masked_conv_int(x, *args, order, "A")
    assert done == brute * c * o
    assert done < 0.51 * h * w * k * k * c * o


@pytest.mark.parametrize(
    ("phases", "match"),
    [(((0, 1),), "square"), (((0, 2), (2, 0)), "none left out"), (((),), "square|left out")],
)
def test_wrong_orders(phases: tuple[tuple[int, ...], ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Order(phases)


def test_wrong_arguments() -> None:
    weight, bias = layer(3, 4, 3)
    x = image(1, 3, 4, 5)
    for wrong in (
        lambda: masked_conv(x, weight, bias, RASTER, "C"),
        lambda: masked_conv(x, weight[..., :2, :2], bias, RASTER, "A"),
        lambda: masked_conv(x[:, :2], weight, bias, RASTER, "A"),
        lambda: masked_conv(x.double(), weight, bias, RASTER, "A"),
        lambda: masked_conv_int(x, weight, bias, bias, RASTER, "A"),
        lambda: masked_conv_int(
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8), *int_layer(3, 4, 3), RASTER, "A", phase=1
        ),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()
