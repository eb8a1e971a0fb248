"""Exact integer convolution, stride 1, no padding: ``y = clamp((W*x + b + 2^(s-1)) >> s, 0, 127)``.

The shift s is one per output channel. A head is the same without the clamp, as int32. Every path gives the
same integers: `conv_int_reference` is the definition, the CPU path is oneDNN's int8 convolution, CUDA runs
the Triton kernel. The bound ``x_max * sum|W| + |b| + 2^(s-1) < 2^24`` makes every partial sum exact in
float32 too, whatever the order of summation; `IntConv` proves it once, when it is made.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    tl,
    use_triton,
)

ACTIVATION_MAX = 127
"""Hidden activations are 0..127: sums of two products then fit 16 bits, all that CPUs without VNNI have."""
CARRIER_MAX = 2047
"""Largest |value| of an int16 input: GPUs multiply these as float16, which holds integers up to 2048."""
ACCUMULATOR_LIMIT = 1 << 24
"""float32 holds every integer up to here."""
CPU_PATHS = ("onednn", "float32")
"""The fastest first."""
NARROW, NARROW_PATHS = 7, ("float32",)
"""Up to seven positions a row oneDNN's int8 convolution takes 0.75 ms for 48 channels, however few rows."""
MAX_SHIFT = 16
"""Accumulators over 2^23, where float32 has no halves, still exceed 127 after this shift: clamped anyway."""


@dataclass(frozen=True, eq=False)
class IntConv:
    """A convolution layer with its integers packed for the device.

    weight: int8 [O, I, k, k]. bias: int32 [O]. shift: int32 or int64 [O], 1..16. head: int32 without the
    clamp. Raises ValueError where 127 * sum|W| + |b| + 2^(s-1) reaches 2^24 in a channel.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    head: bool = False
    _packed: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_layer(self.weight, self.bias, self.shift)
        object.__setattr__(self, "shift", self.shift.to(torch.int32))
        self._check_bias(self.bias)

    @classmethod
    def trusted(cls, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False) -> "IntConv":
        """A layer whose bound the caller has proved; shift: int32. Its making never waits for a device."""
        layer = object.__new__(cls)
        fields = {"weight": weight, "bias": bias, "shift": shift, "head": head, "_packed": {}}
        for name, value in fields.items():
            object.__setattr__(layer, name, value)
        return layer

    def __call__(
        self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, proven: bool = False
    ) -> Tensor:
        """Convolve x: uint8 [N, I, H, W], 0..127 (not checked), best channels-last.

        bias: int32 [O] in place of the layer's own. residual: uint8 [N, O, H-k+1, W-k+1], added after the
        shift and before the clamp; hidden layers only. proven: `bias` is one of those that `check_biases` has
        seen. Returns channels-last [N, O, H-k+1, W-k+1]: uint8 0..127, or int32 for a head. Raises ValueError
        for other shapes or dtypes, and where the bias breaks the bound. (On CUDA that check of `bias` waits
        for the device.)
        """
        if bias is None:
            bias = self.bias
        elif not proven:
            self._check_bias(bias)
        _check_input(x, self.weight, residual, self.head)
        check_same_device(x, weight=self.weight)
        if use_triton(x):
            return self._on_triton(x, bias, residual)
        if x.device.type == "cpu":
            return self._on_cpu(x, bias, residual)
        return conv_int_reference(x, self.weight, bias, self.shift, self.head, residual)

    def to(self, device: torch.device | str) -> "IntConv":
        """The layer on another device, packed for it: threads with streams of their own may share it."""
        if torch.device(device) == self.weight.device:
            return self
        layer = IntConv.trusted(
            self.weight.to(device), self.bias.to(device), self.shift.to(device), self.head
        )
        if layer.weight.is_cuda:
            layer._packed["triton"] = pack_triton(layer.weight, torch.int8)
        return layer

    def check_biases(self, biases: Tensor) -> None:
        """Check at once all biases int32 [..., O] that the layer will be called with.

        Raises ValueError where one breaks the bound.
        """
        room = headroom(self.weight, self.shift, ACTIVATION_MAX)
        check_bound(biases.abs().amax(tuple(range(biases.dim() - 1))), room)

    def _check_bias(self, bias: Tensor) -> None:
        check_tensor("bias", bias, (torch.int32,), (self.weight.shape[0],))
        check_same_device(self.weight, bias=bias, shift=self.shift)
        if "headroom" not in self._packed:
            self._packed["headroom"] = headroom(self.weight, self.shift, ACTIVATION_MAX)
        check_bound(bias, self._packed["headroom"])

    def _on_cpu(self, x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        paths = NARROW_PATHS if x.shape[-1] - self.weight.shape[-1] < NARROW else CPU_PATHS
        if paths[0] not in self._packed:
            path = _cpu_path(self.weight.shape, self.head, paths)
            self._packed[paths[0]] = (_RUN[path], _PACK[path](self.weight, self.shift))
        run, packed = self._packed[paths[0]]
        y: Tensor = run(x, packed, bias, self.head, residual)
        return y

    def _on_triton(self, x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        if not _triton_agrees(x.device, self.weight.shape, self.head):
            return conv_int_reference(x, self.weight, bias, self.shift, self.head, residual)
        if "triton" not in self._packed:
            self._packed["triton"] = pack_triton(self.weight, torch.int8)
        return _launch(x, self._packed["triton"], bias, self.shift, self.head, residual)


def conv_int(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """One convolution without a prepared layer; arguments as in `IntConv`, and x may be int16 -2047..2047.

    Raises ValueError for wrong shapes and dtypes and where a partial sum could reach 2^24.
    """
    check_layer(weight, bias, shift)
    _check_input(x, weight, residual, head, (torch.uint8, torch.int16))
    check_same_device(x, weight=weight, bias=bias, shift=shift)
    check_bound(bias, headroom(weight, shift, ACTIVATION_MAX if x.dtype == torch.uint8 else CARRIER_MAX))
    if use_triton(x):
        return conv_int_triton(x, weight, bias, shift, head, residual)
    if x.device.type == "cpu":
        return _run_float(x, _pack_float(weight, shift), bias, head, residual)
    return conv_int_reference(x, weight, bias, shift, head, residual)


def conv_int_reference(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """The definition, in int64; every other path equals it bit for bit. Arguments as in `conv_int`."""
    if x.device.type != "cpu":  # int64 matrix products exist on the CPU only
        added = None if residual is None else residual.cpu()
        y = conv_int_reference(x.cpu(), weight.cpu(), bias.cpu(), shift.cpu(), head, added)
        return y.to(x.device)
    k = weight.shape[-1]
    h, w = x.shape[2] - k + 1, x.shape[3] - k + 1
    nhwc, taps = x.long().permute(0, 2, 3, 1), weight.long()
    acc = bias.long().expand(x.shape[0], h, w, -1)
    for dy in range(k):
        for dx in range(k):
            acc = acc + nhwc[:, dy : dy + h, dx : dx + w] @ taps[:, :, dy, dx].T
    s = shift.long()
    y = (acc + (1 << (s - 1))) >> s
    y = y.permute(0, 3, 1, 2)
    if head:
        return y.int()
    return (y if residual is None else y + residual.long()).clamp(0, ACTIVATION_MAX).to(torch.uint8)


def conv_int_cpu(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """oneDNN's int8 convolution, without the known-answer test. x: uint8; the rest as in `conv_int`."""
    return _run_onednn(x, _pack_onednn(weight, shift), bias, head, residual)


def conv_int_triton(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """The Triton kernel: int8 products summed in int32 for uint8 input, float16 in float32 for int16."""
    dtype = torch.int8 if x.dtype == torch.uint8 else torch.float16
    return _launch(x, pack_triton(weight, dtype), bias, shift.to(torch.int32), head, residual)


# CPU paths. Each packs (weight, shift) once and runs (x, packed, bias, head, residual).


@dataclass(frozen=True)
class _Packed:
    """Weights in a path's own form, and 2^-s and 2^(s-1) per channel as float32."""

    weight: Tensor
    scale: Tensor
    half: Tensor
    zero_point: Tensor


def _pack_float(weight: Tensor, shift: Tensor) -> _Packed:
    s = shift.float()
    w = weight.float().contiguous(memory_format=torch.channels_last)
    return _Packed(w, torch.exp2(-s), torch.exp2(s - 1), torch.zeros_like(shift, dtype=torch.int64))


def _pack_onednn(weight: Tensor, shift: Tensor) -> _Packed:
    p = _pack_float(weight, shift)
    w = torch.ops.onednn.qconv_prepack(weight, p.scale, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    return _Packed(w, p.scale, p.half, p.zero_point)


def _run_onednn(x: Tensor, p: _Packed, bias: Tensor, head: bool, residual: Tensor | None) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    if head or residual is not None:
        y = _qconv(x, p, (bias + p.half) * p.scale, torch.float32, "none")
        return _finish(y, head, residual)
    # oneDNN rounds to nearest. (acc + 1/2) / 2^s is no tie for s >= 1, so that is floor((acc + 2^(s-1)) /
    # 2^s).
    return _qconv(x, p, (bias + 0.5) * p.scale, torch.int8, "relu").view(torch.uint8)


def _qconv(x: Tensor, p: _Packed, bias: Tensor, dtype: torch.dtype, post: str) -> Tensor:
    one = [1, 1]
    y: Tensor = torch.ops.onednn.qconv2d_pointwise(
        x, 1.0, 0, p.weight, p.scale, p.zero_point, bias, one, [0, 0], one, 1, 1.0, 0, dtype, post, [], ""
    )
    return y


def _run_float(x: Tensor, p: _Packed, bias: Tensor, head: bool, residual: Tensor | None) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        acc = F.conv2d(x.float().contiguous(memory_format=torch.channels_last), p.weight, bias + p.half)
        return _finish(acc.mul_(p.scale.view(1, -1, 1, 1)), head, residual)


def _finish(y: Tensor, head: bool, residual: Tensor | None) -> Tensor:
    """From (acc + 2^(s-1)) / 2^s in float32, exact, to the result."""
    y = y.floor_()
    if head:
        return y.to(torch.int32)
    return (y if residual is None else y.add_(residual)).clamp_(0, ACTIVATION_MAX).to(torch.uint8)


def _pack_int64(weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight, shift


def _run_int64(
    x: Tensor, p: tuple[Tensor, Tensor], bias: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    return conv_int_reference(x, p[0], bias, p[1], head, residual)


_PACK: dict[str, Any] = {"onednn": _pack_onednn, "float32": _pack_float, "int64": _pack_int64}
_RUN: dict[str, Any] = {"onednn": _run_onednn, "float32": _run_float, "int64": _run_int64}


def _cpu_path(shape: torch.Size, head: bool, paths: tuple[str, ...]) -> str:
    """The first of these paths that passes the known-answer test for this layer shape, once per process."""
    for path in paths:
        check = partial(_agrees, partial(_run_path, path), shape, head, "cpu")
        if known_answer(f"the {path} convolution", (tuple(shape), head), check):
            return path
    return "int64"


def _run_path(
    path: str, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    y: Tensor = _RUN[path](x, _PACK[path](weight, shift), bias, head, residual)
    return y


def _triton_agrees(device: torch.device, shape: torch.Size, head: bool) -> bool:
    """The known-answer test of the Triton kernel for this layer shape, once per process and device."""
    check = partial(_agrees, conv_int_triton, shape, head, device)
    return known_answer("the Triton convolution", (str(device), tuple(shape), head), check)


def _agrees(run: Callable[..., Tensor], shape: torch.Size, head: bool, device: torch.device | str) -> bool:
    """Compare with the reference: full-range weights and inputs, every shift, an awkward width."""
    o, i, k, _ = shape
    n = shape.numel()
    # A fixed sequence: no generator's state changes.
    noise = (torch.arange(n + 2 * i * (k + 1) * (k + 16)) * 2654435761) >> 9
    peak = min(127, (ACCUMULATOR_LIMIT - (1 << 17)) // (ACTIVATION_MAX * i * k * k))
    weight = (noise[:n] % (2 * peak + 1) - peak).to(torch.int8).view(o, i, k, k)
    weight[::2] = weight[::2].sign() * peak  # the largest sums of pairs
    x = noise[n:] % 192
    x = torch.where(x > 127, torch.where(x > 159, 127, 0), x).to(torch.uint8).view(2, i, k + 1, k + 16)
    shift = torch.arange(o, dtype=torch.int32) % MAX_SHIFT + 1
    bias = torch.arange(o, dtype=torch.int32) * 7919 % 50021 - 25010
    added = (torch.arange(2 * o * 2 * 17) * 37 % 128).to(torch.uint8).view(2, o, 2, 17)
    for residual in (None,) if head else (None, added):
        want = conv_int_reference(x, weight, bias, shift, head, residual)
        moved = None if residual is None else residual.to(device)
        y = run(x.to(device), weight.to(device), bias.to(device), shift.to(device), head, moved)
        if y.dtype != want.dtype or not torch.equal(y.cpu(), want):
            return False
    return True


# Triton launcher


def pack_triton(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[O, I, k, k] to [k, k, I, O], int8 or float16."""
    return weight.permute(2, 3, 1, 0).contiguous().to(dtype)


def _launch(
    x: Tensor, packed: Tensor, bias: Tensor, shift: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    n, c, height, width = x.shape
    k, o = packed.shape[0], packed.shape[3]
    h, w = height - k + 1, width - k + 1
    x = x.contiguous(memory_format=torch.channels_last)
    x = x.view(torch.int8) if x.dtype == torch.uint8 else x.to(torch.float16)
    y = torch.empty(
        (n, o, h, w),
        dtype=torch.int32 if head else torch.uint8,
        device=x.device,
        memory_format=torch.channels_last,
    )
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    n_positions = n * h * w
    rows, cols = block(n_positions, 16, 128), block(o, 16, 64)
    _conv_kernel[(ceil_div(n_positions, rows), ceil_div(o, cols))](
        x,
        packed,
        bias,
        shift,
        y if residual is None else residual,
        y,
        n_positions,
        height,
        width,
        c,
        o,
        K=k,
        HEAD=head,
        RESIDUAL=residual is not None,
        CARRIER=x.dtype == torch.float16,
        ROWS=rows,
        COLS=cols,
        DEPTH=block(c, 32, 64),
    )
    return y


# Checks


def headroom(weight: Tensor, shift: Tensor, x_max: int) -> Tensor:
    """Largest |bias| that keeps every partial sum below 2^24: int64 [O], negative where none does."""
    s = shift.long()
    return ACCUMULATOR_LIMIT - 1 - x_max * weight.long().abs().sum((1, 2, 3)) - (1 << (s - 1))


def check_bound(bias: Tensor, room: Tensor) -> None:
    over = bias.long().abs() > room
    if bool(over.any()):
        worst = int(over.nonzero()[0])
        raise ValueError(
            f"channel {worst}: x_max * sum|W| + |b| + 2^(s-1) reaches 2^24, float32 sums would round"
        )


def check_layer(weight: Tensor, bias: Tensor, shift: Tensor) -> None:
    check_tensor("weight", weight, (torch.int8,), (None, None, None, None))
    if weight.shape[2] != weight.shape[3] or 0 in weight.shape:
        raise ValueError(f"weight must be [O, I, k, k], not {list(weight.shape)}")
    check_tensor("bias", bias, (torch.int32,), (weight.shape[0],))
    check_tensor("shift", shift, (torch.int32, torch.int64), (weight.shape[0],))
    if not bool(((shift >= 1) & (shift <= MAX_SHIFT)).all()):
        raise ValueError(f"shift must be 1..{MAX_SHIFT}")


def _check_input(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    head: bool,
    dtypes: tuple[torch.dtype, ...] = (torch.uint8,),
) -> None:
    o, i, k, _ = weight.shape
    check_tensor("x", x, dtypes, (None, i, None, None))
    if x.shape[0] < 1 or min(x.shape[2:]) < k:
        raise ValueError(f"x must hold at least one {k}x{k} window, not {list(x.shape)}")
    if residual is not None:
        if head:
            raise ValueError("a head takes no residual")
        size = (x.shape[0], o, x.shape[2] - k + 1, x.shape[3] - k + 1)
        check_tensor("residual", residual, (torch.uint8,), size)
        check_same_device(x, residual=residual)


# Triton kernel


@jit
def _conv_kernel(
    x: Pointer,  # [N, H, W, C]: int8 0..127, or float16 integers
    weight: Pointer,  # [K, K, C, O], the same dtype
    bias: Pointer,
    shift: Pointer,
    residual: Pointer,
    y: Pointer,  # [N, H-K+1, W-K+1, O]
    n_positions: Value,
    height: Value,
    width: Value,
    c_in: Value,
    c_out: Value,
    K: constexpr,
    HEAD: constexpr,
    RESIDUAL: constexpr,
    CARRIER: constexpr,
    ROWS: constexpr,
    COLS: constexpr,
    DEPTH: constexpr,
) -> None:
    """An implicit matrix product: a program gives ROWS positions of COLS channels, tap by tap."""
    position = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * COLS + tl.arange(0, COLS)
    h_out = height - K + 1
    w_out = width - K + 1
    row = position // w_out  # never negative: truncation is floor
    col = position - row * w_out
    image = row // h_out
    corner = ((image * height + (row - image * h_out)) * width + col) * c_in
    inside = position < n_positions
    if CARRIER:
        acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
    else:
        acc = tl.zeros((ROWS, COLS), dtype=tl.int32)
    for tap in range(K * K):
        dy = tap // K
        offset = (dy * width + tap - dy * K) * c_in
        for first in range(0, c_in, DEPTH):
            c = first + tl.arange(0, DEPTH)
            a = tl.load(
                x + corner[:, None] + (offset + c)[None, :],
                mask=inside[:, None] & (c < c_in)[None, :],
                other=0,
            )
            b = tl.load(
                weight + (tap * c_in + c)[:, None] * c_out + o[None, :],
                mask=(c < c_in)[:, None] & (o < c_out)[None, :],
                other=0,
            )
            if CARRIER:
                acc = tl.dot(a, b, acc)
            else:
                acc = tl.dot(a, b, acc, out_dtype=tl.int32)
    s = tl.load(shift + o, mask=o < c_out, other=1)
    total = acc.to(tl.int32) + tl.load(bias + o, mask=o < c_out, other=0)[None, :]
    total = (total + (1 << (s - 1))[None, :]) >> s[None, :]
    where = position[:, None] * c_out + o[None, :]
    valid = inside[:, None] & (o < c_out)[None, :]
    if HEAD:
        tl.store(y + where, total, mask=valid)
    else:
        if RESIDUAL:
            total += tl.load(residual + where, mask=valid, other=0).to(tl.int32)
        tl.store(y + where, tl.minimum(tl.maximum(total, 0), 127).to(tl.uint8), mask=valid)
