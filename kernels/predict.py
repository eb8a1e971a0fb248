"""From a phase network's output to the table and the rounded mean of one colour channel, in one pass.

The entropy parameters of the exact levels (docs/format.md, "Exact levels"): later channels follow the
residuals of earlier ones through integer coefficients, and how surprising those were moves their scale.
All arithmetic is in int32. On the CPU the codec does the same in numpy; this is for CUDA.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.kernels.dispatch import (
    Pointer,
    Value,
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

LOG_SCALE_MIN, LOG_SCALE_MAX = -64, 96
"""Sixteenths of an octave."""
COEFFICIENT_MAX = 127
MISS_MAX = 127
N_SURPRISE = 9
N_KEYS = (LOG_SCALE_MAX - LOG_SCALE_MIN + 1) * 16
"""Pairs of a log-scale and a sixteenth of the mean."""
LOW_CHROMA = -255
"""Smallest value of Co and Cg; Y starts at 0, and all end at 255."""
BLOCK = 256


@dataclass(frozen=True)
class PredictMaps:
    """A phase's look-up tables.

    log2_residual: int16 [R], sixteenths of an octave of a residual's size. surprise: int16 [2, 9], what the
    classes add to the scales of Co and Cg. tables: int16 [3, N_KEYS], the table of each channel and key.
    """

    log2_residual: Tensor
    surprise: Tensor
    tables: Tensor


@dataclass(frozen=True)
class Corrections:
    """What output layers tuned to an image add, at P positions.

    linear: int32 [P, 6], to the means (sixteenths) and scales (sixteenths of an octave). moves: int32 [P, 3],
    256ths of sixteenths to the means, rounding constant included. before: int32 [2, 3, 2], slopes in 256ths
    by which a channel's mean follows the residuals of the channels before it, and its scale their ratios to
    their scales.
    """

    linear: Tensor
    moves: Tensor
    before: Tensor


def channel_tables(
    base: Tensor, out: Tensor, tuned: Corrections | None, values: Tensor, channel: int, maps: PredictMaps
) -> tuple[Tensor, Tensor]:
    """Table and rounded mean of a channel at every position, once the channels before it are known.

    base: int16 [P, 3], pixel values. out: int32 [P, 9]: mean offsets (sixteenths), log2 scales (sixteenths of
    an octave), coefficients (64ths). tuned: corrections, or None. values: int16 [P, 3]; only channels below
    `channel` (0..2) are looked at. Returns tables int16 [P] and means int16 [P]. Raises ValueError for other
    shapes, dtypes and devices.
    """
    _check(base, out, tuned, values, channel, maps)
    if use_triton(out) and _triton_agrees(out.device):
        return channel_tables_triton(base, out, tuned, values, channel, maps)
    return channel_tables_reference(base, out, tuned, values, channel, maps)


def channel_tables_reference(
    base: Tensor, out: Tensor, tuned: Corrections | None, values: Tensor, channel: int, maps: PredictMaps
) -> tuple[Tensor, Tensor]:
    """The definition, in int32."""
    mean, scale, residuals, ratios = _predict(base, out, values, channel, maps)
    if tuned is not None:
        move, change = tuned.moves[:, channel], torch.full_like(mean, 128)
        for i, (r, ratio) in enumerate(zip(residuals, ratios, strict=True)):
            move = move + tuned.before[0, channel, i] * r
            change = change + tuned.before[1, channel, i] * ratio
        mean = mean + tuned.linear[:, channel] + (move >> 8)
        scale = scale + tuned.linear[:, 3 + channel] + (change >> 8)
    mean = mean.clamp(16 * LOW_CHROMA if channel else 0, 16 * 255)
    rounded = (mean + 8) >> 4
    key = ((scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX) - LOG_SCALE_MIN) << 4) + (mean - (rounded << 4) + 8)
    return maps.tables[channel, key.long()], rounded.to(torch.int16)


def misses(base: Tensor, out: Tensor, values: Tensor, maps: PredictMaps) -> Tensor:
    """What the predictions without corrections missed: int8 [P, 3], quarters of a pixel value, -127..127.

    Arguments as in `channel_tables`, all three channels known. Tensor operations on every device.
    """
    mean, _, residuals, _ = _predict(base, out, values, 2, maps)
    residuals.append(16 * values[:, 2].int() - mean)
    return ((torch.stack(residuals, 1) + 2) >> 2).clamp_(-MISS_MAX, MISS_MAX).to(torch.int8)


def _predict(
    base: Tensor, out: Tensor, values: Tensor, channel: int, maps: PredictMaps
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Mean and scale of a channel before corrections; of the channels before it residuals and ratios."""
    residuals: list[Tensor] = []
    ratios: list[Tensor] = []
    seen: list[Tensor] = []
    for c in range(channel + 1):
        mean = 16 * base[:, c].int() + out[:, c]
        for i, r in enumerate(residuals):
            k = out[:, 5 + c + i].clamp(-COEFFICIENT_MAX, COEFFICIENT_MAX)
            mean = mean + ((k * r + 32) >> 6)
        scale = out[:, 3 + c].clamp(LOG_SCALE_MIN, LOG_SCALE_MAX)
        if c:
            worst = seen[0] if c == 1 else torch.maximum(*seen)
            scale = scale + maps.surprise[c - 1, worst.long()].int()
        if c == channel:
            break
        r = 16 * values[:, c].int() - mean
        ratio = maps.log2_residual[r.abs().clamp_max(maps.log2_residual.numel() - 1).long()].int() - scale
        residuals.append(r)
        ratios.append(ratio)
        seen.append((((ratio + 8) >> 4) + 4).clamp(0, N_SURPRISE - 1))
    return mean, scale, residuals, ratios


def channel_tables_triton(
    base: Tensor, out: Tensor, tuned: Corrections | None, values: Tensor, channel: int, maps: PredictMaps
) -> tuple[Tensor, Tensor]:
    """The Triton kernel."""
    n = out.shape[0]
    out = out.contiguous()
    index = torch.empty(n, dtype=torch.int16, device=out.device)
    rounded = torch.empty_like(index)
    if n:
        with on_device(out.device):
            _predict_kernel[(ceil_div(n, BLOCK),)](
                base.contiguous(),
                out,
                *(
                    (out, out, out)
                    if tuned is None
                    else (tuned.linear.contiguous(), tuned.moves.contiguous(), tuned.before)
                ),
                values.contiguous(),
                maps.log2_residual.contiguous(),
                maps.surprise.contiguous(),
                maps.tables[channel].contiguous(),
                index,
                rounded,
                n,
                maps.log2_residual.numel(),
                CHANNEL=channel,
                TUNED=tuned is not None,
                SIZE=BLOCK,
            )
    return index, rounded


def _triton_agrees(device: torch.device) -> bool:
    """The known-answer test of the kernel, once per process and device: fixed noise, all channels."""

    def check() -> bool:
        n = 300
        # a fixed sequence: no generator's state changes
        noise = ((torch.arange(n * 27 + N_KEYS * 3) * 2654435761) >> 7) % 4093
        part = noise[: n * 27].view(n, 27)
        base = (part[:, :3] % 511 - 255).short()
        out = (part[:, 3:12] - 2046).int()
        out[:, 3:] = out[:, 3:] % 361 - 180
        values = (part[:, 12:15] % 511 - 255).short()
        values[::7] = (part[::7, 15:18] * 16 - 32768).short()  # what damaged lanes may give
        moves, before = (part[:, 21:24] * 97 - 190_000).int(), (part[0, :12] % 255 - 127).int().view(2, 3, 2)
        tuned = Corrections((part[:, 18:24] % 301 - 150).int(), moves, before)
        size = 16 * torch.log2(torch.arange(8192).double() / 16 + 0.25)
        surprise = (part[:2, 18:27] % 81 - 40).short()
        maps = PredictMaps(size.round().short(), surprise, noise[n * 27 :].view(3, -1).short())
        there = PredictMaps(*(x.to(device) for x in (maps.log2_residual, maps.surprise, maps.tables)))
        for channel in (0, 1, 2):
            for t in (None, tuned):
                want = channel_tables_reference(base, out, t, values, channel, maps)
                moved = (
                    None if t is None else Corrections(*(x.to(device) for x in (t.linear, t.moves, t.before)))
                )
                args = (base.to(device), out.to(device), moved, values.to(device), channel, there)
                for a, b in zip(channel_tables_triton(*args), want, strict=True):
                    if not torch.equal(a.cpu(), b):
                        return False
        return True

    return known_answer("the Triton channel predictor", (str(device),), check)


# Checks


def _check(
    base: Tensor, out: Tensor, tuned: Corrections | None, values: Tensor, channel: int, maps: PredictMaps
) -> None:
    n = out.shape[0]
    check_tensor("out", out, (torch.int32,), (None, 9))
    check_tensor("base", base, (torch.int16,), (n, 3))
    check_tensor("values", values, (torch.int16,), (n, 3))
    check_tensor("log2_residual", maps.log2_residual, (torch.int16,), (None,))
    check_tensor("surprise", maps.surprise, (torch.int16,), (2, N_SURPRISE))
    check_tensor("tables", maps.tables, (torch.int16,), (3, N_KEYS))
    check_same_device(out, base=base, values=values, maps=maps.tables)
    if tuned is not None:
        check_tensor("linear", tuned.linear, (torch.int32,), (n, 6))
        check_tensor("moves", tuned.moves, (torch.int32,), (n, 3))
        check_tensor("before", tuned.before, (torch.int32,), (2, 3, 2))
        check_same_device(out, linear=tuned.linear, moves=tuned.moves, before=tuned.before)
    if channel not in (0, 1, 2) or not maps.log2_residual.numel():
        raise ValueError(f"channel must be 0..2 and log2_residual not empty, not {channel}")


# Triton kernels


@jit
def _ratio(r: Value, scale: Value, log2_residual: Pointer, n_residuals: Value) -> Value:
    """A residual over its scale, sixteenths of an octave."""
    return tl.load(log2_residual + tl.minimum(tl.abs(r), n_residuals - 1)).to(tl.int32) - scale


@jit
def _surprise_class(ratio: Value) -> Value:
    """A ratio in whole octaves, plus 4, within 0..8."""
    return tl.minimum(tl.maximum(((ratio + 8) >> 4) + 4, 0), 8)


@jit
def _follow(k: Value, r: Value) -> Value:
    """What a residual adds to a later channel's mean; k is limited to -127..127."""
    return (tl.minimum(tl.maximum(k, -127), 127) * r + 32) >> 6


@jit
def _predict_kernel(
    base: Pointer,
    out: Pointer,
    linear: Pointer,
    moves: Pointer,
    before: Pointer,
    values: Pointer,
    log2_residual: Pointer,
    surprise: Pointer,
    tables: Pointer,
    index: Pointer,
    rounded: Pointer,
    n: Value,
    n_residuals: Value,
    CHANNEL: constexpr,
    TUNED: constexpr,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = i < n
    o = out + i * 9
    b = base + i * 3
    v = values + i * 3
    mean = 16 * tl.load(b, mask=inside, other=0).to(tl.int32) + tl.load(o, mask=inside, other=0)
    scale = tl.minimum(tl.maximum(tl.load(o + 3, mask=inside, other=0), -64), 96)
    if CHANNEL > 0:
        r_y = 16 * tl.load(v, mask=inside, other=0).to(tl.int32) - mean
        ratio_y = _ratio(r_y, scale, log2_residual, n_residuals)
        seen = _surprise_class(ratio_y)
        mean = 16 * tl.load(b + 1, mask=inside, other=0).to(tl.int32) + tl.load(o + 1, mask=inside, other=0)
        mean += _follow(tl.load(o + 6, mask=inside, other=0), r_y)
        scale = tl.minimum(tl.maximum(tl.load(o + 4, mask=inside, other=0), -64), 96)
        scale += tl.load(surprise + seen).to(tl.int32)
        if CHANNEL > 1:
            r_co = 16 * tl.load(v + 1, mask=inside, other=0).to(tl.int32) - mean
            ratio_co = _ratio(r_co, scale, log2_residual, n_residuals)
            seen = tl.maximum(seen, _surprise_class(ratio_co))
            mean = 16 * tl.load(b + 2, mask=inside, other=0).to(tl.int32)
            mean += tl.load(o + 2, mask=inside, other=0)
            mean += _follow(tl.load(o + 7, mask=inside, other=0), r_y)
            mean += _follow(tl.load(o + 8, mask=inside, other=0), r_co)
            scale = tl.minimum(tl.maximum(tl.load(o + 5, mask=inside, other=0), -64), 96)
            scale += tl.load(surprise + 9 + seen).to(tl.int32)
    if TUNED:
        mean += tl.load(linear + i * 6 + CHANNEL, mask=inside, other=0)
        scale += tl.load(linear + i * 6 + 3 + CHANNEL, mask=inside, other=0)
        move = tl.load(moves + i * 3 + CHANNEL, mask=inside, other=0)
        if CHANNEL > 0:
            slopes = before + 2 * CHANNEL
            move += tl.load(slopes) * r_y
            change = tl.load(slopes + 6) * ratio_y + 128
            if CHANNEL > 1:
                move += tl.load(slopes + 1) * r_co
                change += tl.load(slopes + 7) * ratio_co
            scale += change >> 8
        mean += move >> 8
    low = 0 if CHANNEL == 0 else -4080
    mean = tl.minimum(tl.maximum(mean, low), 4080)
    scale = tl.minimum(tl.maximum(scale, -64), 96)
    m = (mean + 8) >> 4
    key = ((scale + 64) << 4) + (mean - (m << 4) + 8)
    tl.store(index + i, tl.load(tables + key), mask=inside)
    tl.store(rounded + i, m.to(tl.int16), mask=inside)
