"""Exact integer convolution, stride 1, no padding: ``y = clamp((W*x + b + 2^(s-1)) >> s, 0, 127)``.

The shift s is one per output channel. A head is the same without the clamp, as int32. Every path gives the
same integers: `conv_int_reference` is the definition, the CPU path is oneDNN's int8 convolution, CUDA runs
the Triton kernel. The bounds ``x_max * sum|W| + |b| + 2^(s-1) < 2^24`` and ``|b| < 2^23`` make every partial
sum, and the bias with its half, exact in float32 too, whatever the order of summation; `IntConv` proves them
once, when it is made.
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
    jit_for_any,
    known_answer,
    on_device,
    tl,
    use_triton,
)

ACTIVATION_MAX = 127
"""Hidden activations are 0..127: sums of two products then fit 16 bits, all that CPUs without VNNI have."""
CARRIER_MAX = 2047
"""Largest |value| of an int16 input: GPUs multiply these as float16, which holds integers up to 2048."""
ACCUMULATOR_LIMIT = 1 << 24
"""float32 holds every integer up to here."""
BIAS_LIMIT = 1 << 23
"""float32 holds every integer plus 1/2 below here; oneDNN gets the bias in that form."""
CPU_PATHS = ("onednn", "float32", "float64")
"""The fastest first."""
NARROW, NARROW_PATHS = 7, ("float32", "float64")
"""Up to seven positions a row oneDNN's int8 convolution takes 0.75 ms for 48 channels, however few rows."""
ALIGNMENT = 16
"""Channels that the Triton kernel reads at once: 16 bytes, the widest load there is."""
LONG_SUM = 256
"""Factors of a sum from which on the Triton kernel takes 64 at once, not 32: less than a fifth is padding."""
FEW_POSITIONS = 64
"""Up to so many positions a program of the Triton kernel gives 16, else 128; each is compiled on its own."""
MAX_POSITIONS = (1 << 31) - 128
"""Positions that one launch of the Triton kernel numbers in int32."""
MAX_SHIFT = 16
"""Accumulators over 2^23, where float32 has no halves, still exceed 127 after this shift: clamped anyway."""


@dataclass(frozen=True, eq=False)
class IntConv:
    """A convolution layer with its integers packed for the device.

    weight: int8 [O, I, k, k]. bias: int32 [O]. shift: int32 or int64 [O], 1..16. head: int32 without the
    clamp. Raises ValueError where 127 * sum|W| + |b| + 2^(s-1) reaches 2^24 or |b| reaches 2^23 in a channel.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    head: bool = False
    _packed: dict[Any, Any] = field(default_factory=dict, repr=False)

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
        return _run_slowly(x, self.weight, bias, self.shift, self.head, residual)

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
        chosen = self._packed.get(paths[0])
        if chosen is None:  # oneDNN's path holds for good, another one for these settings of torch
            key = (paths[0], float32_settings())
            chosen = self._packed.get(key)
            if chosen is None:
                path = _cpu_path(self.weight.shape, self.head, paths)
                chosen = (_RUN[path], _PACK[path](self.weight, self.shift))
                self._packed[paths[0] if path == "onednn" else key] = chosen
        run, packed = chosen
        y: Tensor = run(x, packed, bias, self.head, residual)
        return y

    def _on_triton(self, x: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        if not _triton_agrees(x.device, self.weight.shape, self.head):
            return _run_slowly(x, self.weight, bias, self.shift, self.head, residual)
        if "triton" not in self._packed:
            self._packed["triton"] = pack_triton(self.weight, torch.int8)
        return _launch(x, self._packed["triton"], bias, self.shift, self.head, residual)


def conv_int(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """One convolution without a prepared layer; arguments as in `IntConv`, and x may be int16 -2047..2047.

    Where no Triton kernel runs it is slower than a layer. Raises ValueError for wrong shapes and dtypes and
    where a partial sum could reach 2^24 or a bias 2^23.
    """
    check_layer(weight, bias, shift)
    _check_input(x, weight, residual, head, (torch.uint8, torch.int16))
    check_same_device(x, weight=weight, bias=bias, shift=shift)
    check_bound(bias, headroom(weight, shift, ACTIVATION_MAX if x.dtype == torch.uint8 else CARRIER_MAX))
    if use_triton(x):
        return conv_int_triton(x, weight, bias, shift, head, residual)
    return _run_slowly(x, weight, bias, shift, head, residual)


def conv_int_reference(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """The definition, in int64; every other path equals it bit for bit. Arguments as in `conv_int`."""
    if x.device.type != "cpu":  # int64 matrix products exist on the CPU only
        added = None if residual is None else residual.cpu()
        y = conv_int_reference(x.cpu(), weight.cpu(), bias.cpu(), shift.cpu(), head, added)
        return y.to(x.device)
    return _by_taps(x, weight, bias, shift, head, residual, torch.int64)


def conv_int_float64(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool = False, residual: Tensor | None = None
) -> Tensor:
    """The definition with sums in float64, exact below 2^53: on the device of x, by matrix products alone.

    No setting of torch lowers the precision of float64. Arguments as in `conv_int`.
    """
    with torch.no_grad():
        return _by_taps(x, weight, bias, shift, head, residual, torch.float64)


def _by_taps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    head: bool,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """A matrix product for each position of the window, summed in dtype: int64 or float64."""
    k = weight.shape[-1]
    h, w = x.shape[2] - k + 1, x.shape[3] - k + 1
    nhwc, taps = x.to(dtype).permute(0, 2, 3, 1), weight.to(dtype)
    acc = bias.to(dtype).expand(x.shape[0], h, w, -1)
    for dy in range(k):
        for dx in range(k):
            acc = acc + nhwc[:, dy : dy + h, dx : dx + w] @ taps[:, :, dy, dx].T
    s = shift.long()
    y = (acc.long() + (1 << (s - 1))) >> s
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
    # (`bias.float()`, as an integer plus 0.5 would have torch's default dtype, which a program may change.)
    return _qconv(x, p, (bias.float() + 0.5) * p.scale, torch.int8, "relu").view(torch.uint8)


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


def float32_settings() -> tuple[object, ...]:
    """What lets torch round the factors of float32 convolutions; a program may change it at any time.

    (bfloat16 holds all factors of 8 bits, so that rounding would do no harm; this does not rely on it.)
    """
    if _PRECISIONS is None:
        return (torch.get_float32_matmul_precision(),)
    return tuple(operation.fp32_precision for operation in _PRECISIONS)


_MKLDNN: Any = torch.backends.mkldnn
_PRECISIONS = (_MKLDNN.conv, _MKLDNN.matmul) if hasattr(_MKLDNN, "conv") else None
"""Where torch has those settings since version 2.9; before there was one for all matrix products."""


def _run_int64(
    x: Tensor, p: tuple[Tensor, Tensor], bias: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    return conv_int_reference(x, p[0], bias, p[1], head, residual)


def _run_float64(
    x: Tensor, p: tuple[Tensor, Tensor], bias: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    return conv_int_float64(x, p[0], bias, p[1], head, residual)


def _as_they_are(weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return weight, shift


_PACK: dict[str, Any] = {
    "onednn": _pack_onednn,
    "float32": _pack_float,
    "float64": _as_they_are,
    "int64": _as_they_are,
}
_RUN: dict[str, Any] = {
    "onednn": _run_onednn,
    "float32": _run_float,
    "float64": _run_float64,
    "int64": _run_int64,
}


def _cpu_path(shape: torch.Size, head: bool, paths: tuple[str, ...]) -> str:
    """The first of these paths that passes the known-answer test for this layer shape.

    Once per process; of float32 once for each of torch's settings of its precision.
    """
    for path in paths:
        settings = float32_settings() if path == "float32" else ()
        check = partial(_agrees, partial(_run_path, path), shape, head, "cpu")
        if known_answer(f"the {path} convolution", (tuple(shape), head, *settings), check):
            return path
    return "int64"


def _run_slowly(
    x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    """Where there is no fast path: float64 where x is, or, where that fails its test, the definition."""
    check = partial(_agrees, conv_int_float64, weight.shape, head, x.device)
    if known_answer("the float64 convolution", (str(x.device), tuple(weight.shape), head), check):
        return conv_int_float64(x, weight, bias, shift, head, residual)
    return conv_int_reference(x, weight, bias, shift, head, residual)


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
    # One-sided sums, and a bias that nearly cancels them: the largest biases, results that no clamp hides.
    weight[3::4] = weight[3::4].abs().clamp(max=peak // 2)
    weight[7::8] *= -1
    first = (weight.long() * x[0, :, :k, :k].long()).sum((1, 2, 3))
    bias[3::4] = (5 - first)[3::4].clamp(1 - BIAS_LIMIT, BIAS_LIMIT - 1).int()
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
    """[O, I, k, k] to [O, k, k, I'], int8 or float16: zeros fill the channels up to a multiple of 16.

    The kernel's sum runs over the last three axes as one, which lies in memory as the tensor cores want it.
    """
    return _fill(weight.permute(0, 2, 3, 1).to(dtype))


def _as_rows(x: Tensor) -> Tensor:
    """Activations [N, C, H, W] as [N, H, W, C'], int8 or float16: zeros fill C up to a multiple of 16."""
    return _fill((x.view(torch.int8) if x.dtype == torch.uint8 else x.to(torch.float16)).permute(0, 2, 3, 1))


def _fill(x: Tensor) -> Tensor:
    """Zeros up to a multiple of 16 along the last axis; contiguous, and x itself where nothing is to do."""
    missing = -x.shape[-1] % ALIGNMENT
    return F.pad(x, (0, missing)).contiguous() if missing else x.contiguous()


def _launch(
    x: Tensor, packed: Tensor, bias: Tensor, shift: Tensor, head: bool, residual: Tensor | None
) -> Tensor:
    n, _, height, width = x.shape
    o, k, _, channels = packed.shape
    h, w = height - k + 1, width - k + 1
    y = torch.empty(
        (n, o, h, w),
        dtype=torch.int32 if head else torch.uint8,
        device=x.device,
        memory_format=torch.channels_last,
    )
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    n_positions = n * h * w
    if n_positions > MAX_POSITIONS:
        raise ValueError(f"{n_positions} positions at once; the kernel counts to {MAX_POSITIONS}")
    rows = 16 if n_positions <= FEW_POSITIONS else 128
    cols = block(o, 16, 64)
    with on_device(x.device):
        _conv_kernel[(ceil_div(n_positions, rows), ceil_div(o, cols))](
            _as_rows(x),
            packed,
            bias,
            shift,
            y if residual is None else residual,
            y,
            n_positions,
            height,
            width,
            o,
            C=channels,
            K=k,
            HEAD=head,
            RESIDUAL=residual is not None,
            CARRIER=packed.dtype == torch.float16,
            ROWS=rows,
            COLS=cols,
            DEPTH=64 if k * k * channels >= LONG_SUM else 32,
        )
    return y


# Checks


def headroom(weight: Tensor, shift: Tensor, x_max: int) -> Tensor:
    """Largest |bias| below 2^23 that keeps every partial sum below 2^24: int64 [O], negative for none."""
    room = ACCUMULATOR_LIMIT - 1 - x_max * weight.long().abs().sum((1, 2, 3)) - (1 << (shift.long() - 1))
    return room.clamp(max=BIAS_LIMIT - 1)


def check_bound(bias: Tensor, room: Tensor) -> None:
    over = bias.long().abs() > room
    if bool(over.any()):
        worst = int(over.nonzero()[0])
        raise ValueError(
            f"channel {worst}: x_max * sum|W| + |b| + 2^(s-1) reaches 2^24 or |b| 2^23, float32 would round"
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


@jit_for_any("n_positions", "height", "width")
def _conv_kernel(
    x: Pointer,  # [N, H, W, C]: int8 0..127, or float16 integers
    weight: Pointer,  # [c_out, K, K, C], the same dtype
    bias: Pointer,
    shift: Pointer,
    residual: Pointer,
    y: Pointer,  # [N, H-K+1, W-K+1, c_out]
    n_positions: Value,
    height: Value,
    width: Value,
    c_out: Value,
    C: constexpr,
    K: constexpr,
    HEAD: constexpr,
    RESIDUAL: constexpr,
    CARRIER: constexpr,
    ROWS: constexpr,
    COLS: constexpr,
    DEPTH: constexpr,
) -> None:
    """An implicit matrix product: a program gives ROWS positions of COLS channels.

    Its sum over window and input channels is one axis of K * K * C factors, DEPTH of them at a time: a single
    loop, whose loads the compiler can start before the products of the previous round are done.
    """
    position = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * COLS + tl.arange(0, COLS)
    h_out = height - K + 1
    w_out = width - K + 1
    row = position // w_out  # never negative: truncation is floor
    col = position - row * w_out
    image = row // h_out
    top = image.to(tl.int64) * height + (row - image * h_out)
    corner = (top * width + col) * C
    inside = position < n_positions
    if CARRIER:
        acc = tl.zeros((ROWS, COLS), dtype=tl.float32)
    else:
        acc = tl.zeros((ROWS, COLS), dtype=tl.int32)
    for first in range(0, K * K * C, DEPTH):
        i = first + tl.arange(0, DEPTH)
        tap = i // C
        dy = tap // K
        offset = (dy * width + (tap - dy * K)) * C + (i - tap * C)
        known = i < K * K * C
        a = tl.load(x + corner[:, None] + offset[None, :], mask=inside[:, None] & known[None, :], other=0)
        b = tl.load(
            weight + o[:, None] * (K * K * C) + i[None, :],
            mask=(o < c_out)[:, None] & known[None, :],
            other=0,
        )
        if CARRIER:
            acc = tl.dot(a, tl.trans(b), acc)
        else:
            acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
    s = tl.load(shift + o, mask=o < c_out, other=1)
    total = acc.to(tl.int32) + tl.load(bias + o, mask=o < c_out, other=0)[None, :]
    total = (total + (1 << (s - 1))[None, :]) >> s[None, :]
    where = position.to(tl.int64)[:, None] * c_out + o[None, :]
    valid = inside[:, None] & (o < c_out)[None, :]
    if HEAD:
        tl.store(y + where, total, mask=valid)
    else:
        if RESIDUAL:
            total += tl.load(residual + where, mask=valid, other=0).to(tl.int32)
        tl.store(y + where, tl.minimum(tl.maximum(total, 0), 127).to(tl.uint8), mask=valid)
