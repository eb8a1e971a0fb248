"""Masked convolution of a PixelCNN, for any periodic causal order.

Generalises van den Oord et al. 2016 (arXiv:1606.05328). An order is a map of phases: position (i, j) is
decoded in phase ``phases[i mod P][j mod P]``, all positions of a phase at once. A tap reads a neighbour; it
is active where the neighbour's phase is lower (type A), or lower or equal (type B). So all positions of one
cell of the map share one list of active taps, and the work is one dense matrix product per cell over those
taps: nothing is multiplied by a mask's zero. Outside the image the input is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vbc.kernels.conv import (
    ACTIVATION_MAX,
    CARRIER_MAX,
    IntConv,
    check_bound,
    check_layer,
    conv_int_reference,
    headroom,
)
from vbc.kernels.dispatch import (
    Pointer,
    Value,
    block,
    ceil_div,
    check_same_device,
    check_tensor,
    constexpr,
    jit,
    known_answer,
    on_device,
    tl,
    use_triton,
)

WEIGHT_SPLITS = 64
"""Partial sums of the weight gradient, added in a fixed order: with no atomic additions a run repeats."""


@dataclass(frozen=True)
class Order:
    """A causal order. phases: P x P, from 0. raster: positions of equal phase follow each other line by line.

    independent: taps never leave the P x P patch of the position. Raises ValueError where the map is not
    square or a phase is missing.
    """

    phases: tuple[tuple[int, ...], ...]
    raster: bool = False
    independent: bool = False

    def __post_init__(self) -> None:
        if not self.phases or any(len(row) != len(self.phases) for row in self.phases):
            raise ValueError("phases must be a square map")
        if {p for row in self.phases for p in row} != set(range(self.n_phases)):
            raise ValueError("phases must be 0, 1, 2, ... with none left out")

    @property
    def period(self) -> int:
        """P, the side of the map."""
        return len(self.phases)

    @property
    def n_phases(self) -> int:
        """How many steps a decoder takes (in raster order: times the number of positions)."""
        return max(p for row in self.phases for p in row) + 1


RASTER = Order(((0,),), raster=True)
CHECKERBOARD = Order(((0, 1), (1, 0)))


def patches(side: int, independent: bool = True) -> Order:
    """All patches in parallel, line by line within each; independent ones see nothing of their neighbours."""
    rows = tuple(tuple(range(i * side, (i + 1) * side)) for i in range(side))
    return Order(rows, independent=independent)


def interlaced(n_levels: int = 1) -> Order:
    """The coarse grid of stride 2^n_levels, then per level the positions diagonal, beside and below."""
    period = 1 << n_levels
    phases = [[0] * period for _ in range(period)]
    for level in range(n_levels):
        step = period >> (level + 1)
        for number, (dy, dx) in enumerate(((step, step), (0, step), (step, 0))):
            for i in range(dy, period, 2 * step):
                for j in range(dx, period, 2 * step):
                    phases[i][j] = 3 * level + number + 1
    return Order(tuple(tuple(row) for row in phases))


def masked_conv(x: Tensor, weight: Tensor, bias: Tensor, order: Order, kind: str) -> Tensor:
    """The convolution in float, with gradients for x, weight and bias.

    x: float32 or float16 [N, C, H, W]. weight: [O, C, k, k], k odd; inactive taps are never read and their
    gradient is 0. bias: [O]. kind: "A" or "B". Returns [N, O, H, W] of x's dtype. float32 is never rounded
    to TF32. Raises ValueError for other shapes and dtypes.
    """
    _check(x, weight, bias, (torch.float32, torch.float16, torch.float64))
    if use_triton(x) and x.dtype != torch.float64:
        return _masked_triton(x, weight, bias, order, kind)
    return masked_conv_gather(x, weight, bias, order, kind)


def masked_conv_int(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    order: Order,
    kind: str,
    head: bool = False,
    phase: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The exact convolution, ``clamp((W*x + b + 2^(s-1)) >> s, 0, 127)``; a head is int32 and not clamped.

    x: uint8 [N, C, H, W] 0..127, or int16 -2047..2047. weight: int8 [O, C, k, k]. bias: int32 [O]. shift:
    [O], 1..16. Computes the positions of one phase, or all; the others stay as they are in out (uint8, or
    int32 for a head, [N, O, H, W], channels-last), or 0 where out is not given. Returns out. Raises
    ValueError for other shapes and dtypes and where a partial sum could reach 2^24.
    """
    _check(x, weight, bias, (torch.uint8, torch.int16))
    _check_int(weight, bias, shift, ACTIVATION_MAX if x.dtype == torch.uint8 else CARRIER_MAX)
    cells = plan(order, weight.shape[-1], kind).of_phase(phase)
    out = _output(out, x, weight, head)
    if use_triton(x) and _triton_agrees(x, weight, order, kind, head):
        return masked_conv_int_triton(x, weight, bias, shift, cells, order.period, head, out)
    return masked_conv_int_gather(x, weight, bias, shift, cells, order.period, head, out)


@dataclass(frozen=True, eq=False)
class IntMaskedConv:
    """The exact layer with its integers packed once; arguments and errors as in `masked_conv_int`.

    On the CPU the active taps of a cell are gathered and go through one `IntConv` of kernel size 1.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    order: Order
    kind: str
    head: bool = False
    _packed: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        _check_int(self.weight, self.bias, self.shift, ACTIVATION_MAX)
        plan(self.order, self.weight.shape[-1], self.kind)

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, phase: int | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Convolve x: uint8 [N, C, H, W], 0..127.

        bias: int32 [O] in place of the layer's own. phase and out are those of `masked_conv_int`.
        """
        if bias is not None:
            check_tensor("bias", bias, (torch.int32,), (self.weight.shape[0],))
            check_bound(bias, headroom(self.weight, self.shift, ACTIVATION_MAX))
        _check(x, self.weight, self.bias if bias is None else bias, (torch.uint8,))
        cells = plan(self.order, self.weight.shape[-1], self.kind).of_phase(phase)
        out = _output(out, x, self.weight, self.head)
        bias = self.bias if bias is None else bias
        if not use_triton(x):
            run = self._on_cpu if x.device.type == "cpu" else self._gather
            return run(x, bias, cells, out)
        if not _triton_agrees(x, self.weight, self.order, self.kind, self.head):
            return self._gather(x, bias, cells, out)
        if "triton" not in self._packed:
            self._packed["triton"] = _pack(self.weight, torch.int8)
        packed = self._packed["triton"]
        return _launch_int(x, packed, bias, self.shift, cells, self.order.period, out)

    def _gather(self, x: Tensor, bias: Tensor, cells: "tuple[Cell, ...]", out: Tensor) -> Tensor:
        period = self.order.period
        return masked_conv_int_gather(x, self.weight, bias, self.shift, cells, period, self.head, out)

    def _on_cpu(self, x: Tensor, bias: Tensor, cells: "tuple[Cell, ...]", out: Tensor) -> Tensor:
        period = self.order.period
        for cell, columns in _columns(x, cells, self.weight.shape[-1], period):
            there = out[:, :, cell.a :: period, cell.b :: period]
            if not cell.taps:  # nothing but the bias
                none = self.weight.new_zeros((self.weight.shape[0], 1, 1, 1))
                there.copy_(conv_int_reference(x[:, :1, :1, :1], none, bias, self.shift, self.head))
                continue
            if cell.taps not in self._packed:
                chosen = self.weight.flatten(2)[:, :, [t[2] for t in cell.taps]]
                taps = chosen.transpose(1, 2).flatten(1)[:, :, None, None].contiguous()
                self._packed[cell.taps] = IntConv(taps, self.bias, self.shift, self.head)
            there.copy_(self._packed[cell.taps](columns.permute(0, 3, 1, 2), bias))
        return out


# The definition


def active(order: Order, cell: tuple[int, int], tap: tuple[int, int], kind: str) -> bool:
    """True where a position of that cell may read the neighbour at offset tap."""
    (a, b), (dy, dx), p = cell, tap, order.period
    if order.independent and not (0 <= a + dy < p and 0 <= b + dx < p):
        return False
    here, there = order.phases[a][b], order.phases[(a + dy) % p][(b + dx) % p]
    if here != there:
        return there < here
    if order.raster:
        return (dy, dx) < (0, 0) or (kind == "B" and tap == (0, 0))
    return kind == "B"


def masked_conv_reference(x: Tensor, weight: Tensor, bias: Tensor, order: Order, kind: str) -> Tensor:
    """The definition, position by position, in x's dtype; every other path is compared with it."""
    n, _, h, w = x.shape
    k = weight.shape[-1]
    y = bias.view(1, -1, 1, 1).expand(n, -1, h, w).clone()
    for i in range(h):
        for j in range(w):
            for dy in range(-(k // 2), k // 2 + 1):
                for dx in range(-(k // 2), k // 2 + 1):
                    cell = (i % order.period, j % order.period)
                    if 0 <= i + dy < h and 0 <= j + dx < w and active(order, cell, (dy, dx), kind):
                        taps = weight[:, :, dy + k // 2, dx + k // 2]
                        y[:, :, i, j] += (taps * x[:, None, :, i + dy, j + dx]).sum(2)
    return y


# The plan: which taps each cell of the map reads


@dataclass(frozen=True)
class Cell:
    """Positions (a + P*u, b + P*v) and their active taps: offset and index dy' * k + dx' in the kernel."""

    a: int
    b: int
    phase: int
    taps: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """All cells of an order for one kernel size and type; back: the same, seen from the input's gradient."""

    cells: tuple[Cell, ...]
    back: tuple[Cell, ...]
    k: int

    def of_phase(self, phase: int | None) -> tuple[Cell, ...]:
        """The cells of one phase, or all. Raises ValueError where there is no such phase."""
        if phase is None:
            return self.cells
        found = tuple(c for c in self.cells if c.phase == phase)
        if not found:
            raise ValueError(f"phase must be one of the order's, not {phase}")
        return found


@lru_cache(maxsize=64)
def plan(order: Order, k: int, kind: str) -> Plan:
    """Work out the active taps. Raises ValueError for an even k or another kind than A and B."""
    if kind not in ("A", "B") or k % 2 == 0:
        raise ValueError(f"kind must be A or B and k odd, not {kind!r} and {k}")
    p, half = order.period, k // 2
    offsets = [(dy, dx) for dy in range(-half, half + 1) for dx in range(-half, half + 1)]
    cells, back = [], []
    for a in range(p):
        for b in range(p):
            reads, feeds = [], []
            for index, (dy, dx) in enumerate(offsets):
                if active(order, (a, b), (dy, dx), kind):
                    reads.append((dy, dx, index))
                if active(order, ((a - dy) % p, (b - dx) % p), (dy, dx), kind) and (
                    not order.independent or (0 <= a - dy < p and 0 <= b - dx < p)
                ):
                    feeds.append((-dy, -dx, index))
            cells.append(Cell(a, b, order.phases[a][b], tuple(reads)))
            back.append(Cell(a, b, order.phases[a][b], tuple(feeds)))
    return Plan(tuple(cells), tuple(back), k)


def n_products(cells: tuple[Cell, ...], period: int, height: int, width: int) -> int:
    """Multiplications per image and pair of channels, those with the zeros around the image included."""
    return sum(len(c.taps) * ceil_div(height - c.a, period) * ceil_div(width - c.b, period) for c in cells)


# Torch path: gather the active taps, one matrix product per cell


def masked_conv_gather(x: Tensor, weight: Tensor, bias: Tensor, order: Order, kind: str) -> Tensor:
    """The float form in torch operations; autograd gives its gradients."""
    y = x.new_zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for cell, columns in _columns(
        x, plan(order, weight.shape[-1], kind).cells, weight.shape[-1], order.period
    ):
        taps = weight.flatten(2)[:, :, [t[2] for t in cell.taps]].permute(2, 1, 0).flatten(0, 1)
        y[:, :, cell.a :: order.period, cell.b :: order.period] = (columns @ taps + bias).permute(0, 3, 1, 2)
    return y


def masked_conv_int_gather(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    cells: tuple[Cell, ...],
    period: int,
    head: bool,
    out: Tensor,
) -> Tensor:
    """The exact form in torch operations: float64 products and sums below 2^24, so exact on every device."""
    s = shift.long()
    taps = weight.double().flatten(2)
    for cell, columns in _columns(x.double(), cells, weight.shape[-1], period):
        chosen = taps[:, :, [t[2] for t in cell.taps]].permute(2, 1, 0).flatten(0, 1)
        acc = (columns @ chosen).long() + bias.long()
        y = ((acc + (1 << (s - 1))) >> s).permute(0, 3, 1, 2)
        out[:, :, cell.a :: period, cell.b :: period] = (y if head else y.clamp(0, ACTIVATION_MAX)).to(
            out.dtype
        )
    return out


def _columns(x: Tensor, cells: tuple[Cell, ...], k: int, period: int) -> Any:
    """Per cell that has positions: what its taps read, [N, rows, cols, taps * C]."""
    half = k // 2
    n, _, h, w = x.shape
    padded = torch.nn.functional.pad(x, (half, half, half, half)).permute(0, 2, 3, 1)
    for cell in cells:
        if cell.a >= h or cell.b >= w:
            continue
        rows, cols = ceil_div(h - cell.a, period), ceil_div(w - cell.b, period)
        if not cell.taps:
            yield cell, x.new_zeros((n, rows, cols, 0))
            continue
        read = [
            padded[
                :, cell.a + half + dy : h + half + dy : period, cell.b + half + dx : w + half + dx : period
            ]
            for dy, dx, _ in cell.taps
        ]
        yield cell, torch.cat(read, 3)


# Triton launchers


@lru_cache(maxsize=256)
def _tables(cells: tuple[Cell, ...], device: str) -> tuple[Tensor, Tensor]:
    """Cells [n, 4]: a, b, first tap, end; taps [m, 3]: dy, dx, index. Both int32."""
    rows: list[tuple[int, ...]] = []
    taps: list[tuple[int, int, int]] = []
    for c in cells:
        rows.append((c.a, c.b, len(taps), len(taps) + len(c.taps)))
        taps.extend(c.taps)
    table = torch.tensor(taps or [(0, 0, 0)], dtype=torch.int32, device=device)
    return torch.tensor(rows, dtype=torch.int32, device=device), table


@lru_cache(maxsize=64)
def _cells_of_taps(p: Plan, device: str) -> tuple[Tensor, Tensor]:
    """The cells that read each tap, list after list, and where each list starts; int32."""
    lists = [[n for n, c in enumerate(p.cells) if any(t[2] == i for t in c.taps)] for i in range(p.k**2)]
    starts = [0]
    for cells in lists:
        starts.append(starts[-1] + len(cells))
    flat = [n for cells in lists for n in cells] or [0]
    return (
        torch.tensor(flat, dtype=torch.int32, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
    )


def _pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I, k, k] to [k * k, I, O], int8 or float16."""
    return weight.permute(2, 3, 1, 0).contiguous().to(dtype).flatten(0, 1)


def _launch(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    y: Tensor,
    cells: tuple[Cell, ...],
    period: int,
    form: str,
) -> None:
    """Run the kernel. x, y: channels-last. packed: [taps, C, O]. form: float, int8 or float16."""
    n, c, h, w = x.shape
    o = packed.shape[2]
    cell_table, tap_table = _tables(cells, str(x.device))
    largest = n * ceil_div(h, period) * ceil_div(w, period)
    rows, cols = block(largest, 16, 64), block(o, 16, 64)
    with on_device(x.device):
        _masked_kernel[(ceil_div(largest, rows), ceil_div(o, cols), len(cells))](
            x,
            packed,
            packed if bias is None else bias,
            packed if shift is None else shift,
            y,
            cell_table,
            tap_table,
            n,
            h,
            w,
            c,
            o,
            period,
            FORM=form,
            BIAS=bias is not None,
            HEAD=y.dtype == torch.int32,
            ROWS=rows,
            COLS=cols,
            DEPTH=block(c, 32 if form == "int8" else 16, 64 if form == "int8" else 32),
        )


def masked_conv_int_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    cells: tuple[Cell, ...],
    period: int,
    head: bool,
    out: Tensor,
) -> Tensor:
    """The exact form as a Triton kernel: int8 products for uint8 input, float16 products for int16."""
    packed = _pack(weight, torch.int8 if x.dtype == torch.uint8 else torch.float16)
    return _launch_int(x, packed, bias, shift, cells, period, out)


def _launch_int(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    shift: Tensor,
    cells: tuple[Cell, ...],
    period: int,
    out: Tensor,
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    x = x.view(torch.int8) if x.dtype == torch.uint8 else x.to(torch.float16)
    form = "int8" if x.dtype == torch.int8 else "float16"
    y = out.contiguous(memory_format=torch.channels_last)
    _launch(x, packed, bias, shift.to(torch.int32), y, cells, period, form)
    return out if y is out else out.copy_(y)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, order: Order, kind: str) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        p = plan(order, weight.shape[-1], kind)
        y = torch.empty(
            (x.shape[0], weight.shape[0], *x.shape[2:]),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        packed = weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()
        _launch(x, packed, bias.float(), None, y, p.cells, order.period, "float")
        ctx.save_for_backward(x, weight)
        ctx.plan, ctx.period, ctx.bias_dtype = p, order.period, bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            d_x = torch.empty_like(x)
            packed = weight.permute(2, 3, 0, 1).flatten(0, 1).contiguous()
            _launch(g, packed, None, None, d_x, ctx.plan.back, ctx.period, "float")
        if ctx.needs_input_grad[1]:
            d_weight = _weight_gradient(x, g, ctx.plan, ctx.period).to(weight.dtype)
        return d_x, d_weight, g.float().sum((0, 2, 3)).to(ctx.bias_dtype), None, None


_masked_triton: Callable[[Tensor, Tensor, Tensor, Order, str], Tensor] = _Masked.apply


def _weight_gradient(x: Tensor, g: Tensor, p: Plan, period: int) -> Tensor:
    """Gradient [O, C, k, k], float32, of channels-last x and g."""
    n, c, h, w = x.shape
    o = g.shape[1]
    largest = n * ceil_div(h, period) * ceil_div(w, period)
    rows = block(largest, 16, 64)
    splits = min(WEIGHT_SPLITS, ceil_div(largest, rows))
    out = torch.empty((splits, p.k * p.k, c, o), device=x.device)
    cells, _ = _tables(p.cells, str(x.device))
    numbers, starts = _cells_of_taps(p, str(x.device))
    size_c, size_o = block(c, 16, 64), block(o, 16, 64)
    blocks_c = ceil_div(c, size_c)
    with on_device(x.device):
        _weight_kernel[(p.k * p.k, blocks_c * ceil_div(o, size_o), splits)](
            x,
            g,
            out,
            cells,
            numbers,
            starts,
            n,
            h,
            w,
            c,
            o,
            period,
            splits,
            blocks_c,
            K=p.k,
            ROWS=rows,
            SIZE_C=size_c,
            SIZE_O=size_o,
        )
    return out.sum(0).view(p.k, p.k, c, o).permute(3, 2, 0, 1)


# Checks


def _check(x: Tensor, weight: Tensor, bias: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    check_tensor(
        "weight", weight, (torch.int8,) if torch.uint8 in dtypes else dtypes, (None, None, None, None)
    )
    o, c, k, other = weight.shape
    if k != other or 0 in weight.shape:
        raise ValueError(f"weight must be [O, C, k, k], not {list(weight.shape)}")
    check_tensor("x", x, dtypes if torch.uint8 in dtypes else (weight.dtype,), (None, c, None, None))
    if 0 in x.shape:
        raise ValueError(f"x must hold at least one position, not {list(x.shape)}")
    check_tensor("bias", bias, (torch.int32,) if torch.uint8 in dtypes else dtypes, (o,))
    check_same_device(x, weight=weight, bias=bias)


def _check_int(weight: Tensor, bias: Tensor, shift: Tensor, x_max: int) -> None:
    check_layer(weight, bias, shift)
    check_same_device(weight, bias=bias, shift=shift)
    check_bound(bias, headroom(weight, shift, x_max))


def _output(out: Tensor | None, x: Tensor, weight: Tensor, head: bool) -> Tensor:
    """The output to write into: out if it fits (ValueError where not), zeros where none is given."""
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    dtype = torch.int32 if head else torch.uint8
    if out is None:
        empty = torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        return empty.zero_()
    check_tensor("out", out, (dtype,), size)
    check_same_device(x, out=out)
    return out


def _triton_agrees(x: Tensor, weight: Tensor, order: Order, kind: str, head: bool) -> bool:
    """The known-answer test of the kernel for this layer shape and order, once per process and device."""
    o, c, k, _ = weight.shape

    def agrees() -> bool:
        p, top = order.period, ACTIVATION_MAX if x.dtype == torch.uint8 else CARRIER_MAX
        h, w = p + k // 2 + 1, 2 * p + 3
        noise = (torch.arange(c * h * w + weight.numel()) * 2654435761) >> 9  # a fixed sequence
        values = noise[: c * h * w].view(1, c, h, w) % (top + 1)
        peak = min(127, ((1 << 24) - (1 << 17)) // (top * c * k * k))
        taps = (noise[c * h * w :] % (2 * peak + 1) - peak).to(torch.int8).view(weight.shape)
        bias = (torch.arange(o, dtype=torch.int32) * 7919) % 50021 - 25010
        shift = torch.arange(o, dtype=torch.int32) % 16 + 1
        cells = plan(order, k, kind).cells
        empty = torch.zeros((1, o, h, w), dtype=torch.int32 if head else torch.uint8)

        def run(path: Callable[..., Tensor], device: torch.device | str) -> Tensor:
            args = [t.to(device) for t in (values.to(x.dtype), taps, bias, shift)]
            return path(*args, cells, p, head, empty.clone().to(device)).cpu()

        return torch.equal(run(masked_conv_int_triton, x.device), run(masked_conv_int_gather, "cpu"))

    key = (str(x.device), tuple(weight.shape), x.dtype, order, kind, head)
    return known_answer("the Triton masked convolution", key, agrees)


# Triton kernels


@jit
def _masked_kernel(
    x: Pointer,  # [N, H, W, C]
    weight: Pointer,  # [taps, C, O]
    bias: Pointer,
    shift: Pointer,
    y: Pointer,  # [N, H, W, O]
    cells: Pointer,  # int32 [n, 4]
    taps: Pointer,  # int32 [m, 3]
    n_images: Value,
    height: Value,
    width: Value,
    c_in: Value,
    c_out: Value,
    period: Value,
    FORM: constexpr,
    BIAS: constexpr,
    HEAD: constexpr,
    ROWS: constexpr,
    COLS: constexpr,
    DEPTH: constexpr,
) -> None:
    """A program gives ROWS positions of one cell of the phase map, COLS channels."""
    cell = cells + tl.program_id(2) * 4
    a = tl.load(cell).to(tl.int64)
    b = tl.load(cell + 1).to(tl.int64)
    first = tl.load(cell + 2)
    end = tl.load(cell + 3)
    n_rows = (height - a + period - 1) // period  # 0 where the cell starts below the image; never negative
    n_cols = (width - b + period - 1) // period
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = m < n_images * n_rows * n_cols
    line = m // tl.maximum(n_cols, 1)
    image = line // tl.maximum(n_rows, 1)
    i = a + period * (line - image * n_rows)
    j = b + period * (m - line * n_cols)
    if FORM == "int8":
        acc = tl.zeros((ROWS, COLS), dtype=tl.int32)
    else:
        acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
    for t in range(first, end):
        si = i + tl.load(taps + t * 3)
        sj = j + tl.load(taps + t * 3 + 1)
        row_of_weight = tl.load(taps + t * 3 + 2) * c_in
        here = inside & (si >= 0) & (si < height) & (sj >= 0) & (sj < width)
        source = ((image * height + si) * width + sj) * c_in
        for start in range(0, c_in, DEPTH):
            c = start + tl.arange(0, DEPTH)
            left = tl.load(
                x + source[:, None] + c[None, :], mask=here[:, None] & (c < c_in)[None, :], other=0
            )
            right = tl.load(
                weight + (row_of_weight + c)[:, None] * c_out + o[None, :],
                mask=(c < c_in)[:, None] & (o < c_out)[None, :],
                other=0,
            )
            if FORM == "int8":
                acc = tl.dot(left, right, acc, out_dtype=tl.int32)
            else:
                acc = tl.dot(left, right, acc, input_precision="ieee")
    where = ((image * height + i) * width + j)[:, None] * c_out + o[None, :]
    valid = inside[:, None] & (o < c_out)[None, :]
    if FORM == "float":
        if BIAS:
            acc += tl.load(bias + o, mask=o < c_out, other=0.0)[None, :]
        tl.store(y + where, acc, mask=valid)
    else:
        s = tl.load(shift + o, mask=o < c_out, other=1)
        total = acc.to(tl.int32) + tl.load(bias + o, mask=o < c_out, other=0)[None, :]
        total = (total + (1 << (s - 1))[None, :]) >> s[None, :]
        if HEAD:
            tl.store(y + where, total, mask=valid)
        else:
            tl.store(y + where, tl.minimum(tl.maximum(total, 0), 127).to(tl.uint8), mask=valid)


@jit
def _weight_kernel(
    x: Pointer,  # [N, H, W, C]
    g: Pointer,  # [N, H, W, O]
    out: Pointer,  # float32 [splits, K*K, C, O]
    cells: Pointer,  # int32 [n, 4]
    numbers: Pointer,  # int32, the cells that read each tap
    starts: Pointer,  # int32 [K*K + 1]
    n_images: Value,
    height: Value,
    width: Value,
    c_in: Value,
    c_out: Value,
    period: Value,
    splits: Value,
    blocks_c: Value,
    K: constexpr,
    ROWS: constexpr,
    SIZE_C: constexpr,
    SIZE_O: constexpr,
) -> None:
    """A program sums one tap's gradient over its share of the positions of all cells that read it."""
    tap = tl.program_id(0)
    c = tl.program_id(1) % blocks_c * SIZE_C + tl.arange(0, SIZE_C)
    o = tl.program_id(1) // blocks_c * SIZE_O + tl.arange(0, SIZE_O)
    split = tl.program_id(2)
    dy = tap // K - K // 2
    dx = tap % K - K // 2
    acc = tl.zeros((SIZE_C, SIZE_O), dtype=tl.float32)
    for entry in range(tl.load(starts + tap), tl.load(starts + tap + 1)):
        cell = cells + tl.load(numbers + entry) * 4
        a = tl.load(cell).to(tl.int64)
        b = tl.load(cell + 1).to(tl.int64)
        n_rows = (height - a + period - 1) // period
        n_cols = (width - b + period - 1) // period
        n_positions = n_images * n_rows * n_cols
        for start in range(split.to(tl.int64) * ROWS, n_positions, splits * ROWS):
            m = start + tl.arange(0, ROWS)
            line = m // tl.maximum(n_cols, 1)
            image = line // tl.maximum(n_rows, 1)
            i = a + period * (line - image * n_rows)
            j = b + period * (m - line * n_cols)
            inside = (m < n_positions) & (i + dy >= 0) & (i + dy < height) & (j + dx >= 0) & (j + dx < width)
            at = (image * height + i) * width + j
            source = at + dy * width + dx
            left = tl.load(
                x + source[None, :] * c_in + c[:, None], mask=inside[None, :] & (c < c_in)[:, None], other=0.0
            )
            right = tl.load(
                g + at[:, None] * c_out + o[None, :], mask=inside[:, None] & (o < c_out)[None, :], other=0.0
            )
            acc = tl.dot(left, right, acc, input_precision="ieee")
    where = ((split * K * K + tap).to(tl.int64) * c_in + c[:, None]) * c_out + o[None, :]
    tl.store(out + where, acc, mask=(c < c_in)[:, None] & (o < c_out)[None, :])
