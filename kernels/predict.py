"""From a phase network's output to the table and the rounded mean of each colour channel, in int32.

The entropy parameters of the exact levels (docs/format.md, "Exact levels"): later channels follow the
residuals of earlier ones through integer coefficients, and how large those were against their scales moves
the later ones' scales. One predictor serves the host and CUDA, where one kernel a channel does the work.
"""

from dataclasses import dataclass
from functools import cached_property

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
"""Sixteenths of an octave of a pixel value."""
COEFFICIENT_MAX = 127
ERROR_MAX = 127
"""Of a prior error: what the untuned prediction missed, in quarters of a pixel value."""
N_ERROR_CLASSES = 9
FRACTIONS = 16
N_KEYS = (LOG_SCALE_MAX - LOG_SCALE_MIN + 1) * FRACTIONS
"""Pairs of a log-scale and a sixteenth of the mean."""
LOW_CHROMA = -255
"""Smallest value of Co and Cg; Y starts at 0, and all end at 255."""
BLOCK = 256


@dataclass(frozen=True)
class PredictMaps:
    """A phase's look-up tables.

    log2_residual: int16 [R], sixteenths of an octave of a residual's size (sixteenths of a pixel value).
    surprise: int16 [2, 9], what the error classes of the channels before add to the scales of Co and Cg.
    tables: int16 [3, N_KEYS], the frequency table of each channel and key.
    """

    log2_residual: Tensor
    surprise: Tensor
    tables: Tensor

    def to(self, device: torch.device) -> "PredictMaps":
        """The same maps on another device."""
        return PredictMaps(*(x.to(device) for x in (self.log2_residual, self.surprise, self.tables)))


@dataclass(frozen=True)
class Corrections:
    """What output layers tuned to an image add, at P positions.

    linear: int32 [6, P], to the means (sixteenths) and scales (sixteenths of an octave). moves: int32 [3, P],
    256ths of sixteenths to the means, rounding constant included. before: int32 [2, 3, 2], slopes in 256ths
    by which a channel's mean follows the residuals of the channels before it, and its scale their ratios to
    their scales; or [B, 2, 3, 2] of several pictures. picture: then which of them each position belongs to,
    int32 [P], 0..B - 1, not checked.
    """

    linear: Tensor
    moves: Tensor
    before: Tensor
    picture: Tensor | None = None

    @cached_property
    def _slopes(self) -> tuple[Tensor, ...]:
        """The parts of `before`, in its order: scalars, or int32 [B]."""
        return self.before.flatten(-3).unbind(-1)

    def slope(self, kind: int, channel: int, earlier: int) -> Tensor:
        """What `channel` follows `earlier` by, its mean (kind 0) or scale (1): a scalar, or int32 [P]."""
        slope = self._slopes[6 * kind + 2 * channel + earlier]
        return slope if self.picture is None else slope.index_select(0, self.picture)

    def to(self, device: torch.device) -> "Corrections":
        """The same on another device."""
        picture = None if self.picture is None else self.picture.to(device)
        return Corrections(self.linear.to(device), self.moves.to(device), self.before.to(device), picture)


class ChannelPredictor:
    """Tables and rounded means of Y, Co, Cg at P positions, each channel once those before it are known.

    base: int16 [3, P], pixel values. out: int32 [9, P]: mean offsets (sixteenths), log2 scales (sixteenths of
    an octave), coefficients (64ths). tuned: corrections, or None. For each channel call `tables`, then
    `learn`. Raises ValueError for other shapes, dtypes and devices. Never waits for a device.
    """

    def __init__(self, base: Tensor, out: Tensor, tuned: Corrections | None, maps: PredictMaps):
        _check(base, out, tuned, maps)
        self._base, self._out, self._tuned, self._maps = base, out, tuned, maps
        self._values: list[Tensor] = []
        self._untuned: list[tuple[Tensor, Tensor]] = []
        """Mean and log2 scale before corrections, of the channels that are known and of the next."""
        self._residuals: list[Tensor] = []
        self._ratios: list[Tensor] = []

    lows: tuple[int, int, int] = (0, LOW_CHROMA, LOW_CHROMA)
    """The smallest value of each channel; the largest is 255."""

    def symbols(self, wanted: Tensor, rounded: Tensor) -> Tensor:
        """What is coded of values int16 [P], given their rounded means."""
        return wanted - rounded

    def values(self, rounded: Tensor, symbols: Tensor) -> Tensor:
        """What symbols int16 [P] stand for. Inverse: symbols."""
        return rounded + symbols

    def learn(self, values: Tensor) -> None:
        """Take the values of the next channel: int16 [P]. Later channels follow its residual."""
        self._values.append(values)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Table and rounded mean of the next channel: int16 [P] each."""
        if use_triton(self._out) and _triton_agrees(self._out.device):
            return channel_tables_triton(self._base, self._out, self._tuned, self._values, self._maps)
        return self.tables_reference()

    def tables_reference(self) -> tuple[Tensor, Tensor]:
        """The definition of `tables`."""
        mean, scale = self.predict()
        mean += 8
        rounded = mean >> 4
        key = mean.bitwise_and_(FRACTIONS - 1).add_(scale, alpha=FRACTIONS).sub_(LOG_SCALE_MIN * FRACTIONS)
        return self._maps.tables[len(self._values)].index_select(0, key), rounded.to(torch.int16)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Mean (sixteenths of a pixel value) and log2 scale (sixteenths of an octave) of the next channel.

        int32 [P] each, corrections included, limited to their ranges.
        """
        self._measure()
        c = len(self._values)
        mean, scale = self._untuned[c]
        if self._tuned is not None:
            move = self._tuned.moves[c]
            for i, residual in enumerate(self._residuals):
                move = torch.addcmul(move, self._tuned.slope(0, c, i), residual)
            mean = (move >> 8).add_(mean).add_(self._tuned.linear[c])
            scale = scale + self._tuned.linear[3 + c]
            if c:
                change = torch.full_like(mean, 128)
                for i, ratio in enumerate(self._ratios):
                    change.addcmul_(self._tuned.slope(1, c, i), ratio)
                scale += change.bitwise_right_shift_(8)
        return mean.clamp(16 * self.lows[c], 16 * 255), scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX)

    def seen(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the channels learnt: residuals (sixteenths) and their ratios to their scales, int32 [P] each."""
        self._measure()
        self._compare()
        return self._residuals, self._ratios

    def prior_errors(self) -> Tensor:
        """By how much the predictions without corrections missed: int8 [3, P], quarters of a pixel value."""
        self._measure()
        errors = torch.stack(self._residuals).add_(2).bitwise_right_shift_(2)
        return errors.clamp_(-ERROR_MAX, ERROR_MAX).to(torch.int8)

    def _measure(self) -> None:
        """Residuals of the channels that are known, and the untuned prediction of the next."""
        for c in range(len(self._residuals), 3):
            if len(self._untuned) == c:
                self._untuned.append(self._predict_untuned(c))
            if len(self._values) == c:
                return
            self._residuals.append(self._values[c].int().mul_(16).sub_(self._untuned[c][0]))

    def _predict_untuned(self, c: int) -> tuple[Tensor, Tensor]:
        """Takes over a row of `_offsets` and of `_scales`."""
        mean, scale = self._offsets[c], self._scales[c]
        for i, residual in enumerate(self._residuals):
            mean += (self._coefficients[c - 1 + i] * residual).add_(32).bitwise_right_shift_(6)
        if c:
            self._compare()
            # the larger of two ratios is of the larger class
            worst = self._ratios[0] if c == 1 else torch.maximum(*self._ratios)
            error_class = ((worst + 8) >> 4).add_(4).clamp_(0, N_ERROR_CLASSES - 1)
            scale += self._maps.surprise[c - 1].index_select(0, error_class)
        return mean, scale

    def _compare(self) -> None:
        """Ratios of the residuals to their channels' untuned scales, sixteenths of an octave."""
        log2 = self._maps.log2_residual
        for c in range(len(self._ratios), len(self._residuals)):
            place = self._residuals[c].abs().clamp_(max=log2.numel() - 1)
            self._ratios.append(log2.index_select(0, place).int().sub_(self._untuned[c][1]))

    @cached_property
    def _offsets(self) -> Tensor:
        """What the means are before they follow other channels: int32 [3, P], sixteenths."""
        return self._base.int().mul_(16).add_(self._out[:3])

    @cached_property
    def _scales(self) -> Tensor:
        """Log2 scales before any surprise: int32 [3, P]."""
        return self._out[3:6].clamp(LOG_SCALE_MIN, LOG_SCALE_MAX)

    @cached_property
    def _coefficients(self) -> Tensor:
        """By which Co follows Y, Cg follows Y and Cg follows Co: int32 [3, P], 64ths."""
        return self._out[6:].clamp(-COEFFICIENT_MAX, COEFFICIENT_MAX)


def channel_tables_triton(
    base: Tensor, out: Tensor, tuned: Corrections | None, values: list[Tensor], maps: PredictMaps
) -> tuple[Tensor, Tensor]:
    """The Triton kernel: as `ChannelPredictor.tables` with so many channels learnt, all worked out anew."""
    channel, n = len(values), out.shape[1]
    index = torch.empty(n, dtype=torch.int16, device=out.device)
    rounded = torch.empty_like(index)
    known = [v.contiguous() for v in values] + [index] * (2 - channel)  # what is not known is not looked at
    if n:
        corrections, picture = (out, out, out), None
        if tuned is not None:
            corrections = (tuned.linear.contiguous(), tuned.moves.contiguous(), tuned.before.contiguous())
            picture = tuned.picture
        with on_device(out.device):
            _predict_kernel[(ceil_div(n, BLOCK),)](
                base.contiguous(),
                out.contiguous(),
                *corrections,
                out if picture is None else picture.contiguous(),
                *known[:2],
                maps.log2_residual.contiguous(),
                maps.surprise.contiguous(),
                maps.tables[channel].contiguous(),
                index,
                rounded,
                n,
                maps.log2_residual.numel(),
                CHANNEL=channel,
                TUNED=tuned is not None,
                PICTURES=picture is not None,
                SIZE=BLOCK,
            )
    return index, rounded


def _triton_agrees(device: torch.device) -> bool:
    """The known-answer test of the kernel, once per process and device: fixed noise, all channels."""

    def check() -> bool:
        n = 300
        # a fixed sequence: no generator's state changes
        noise = ((torch.arange(n * 27 + N_KEYS * 3) * 2654435761) >> 7) % 4093
        part = noise[: n * 27].view(27, n)
        base = (part[:3] % 511 - 255).short()
        out = (part[3:12] - 2046).int()
        out[3:] = out[3:] % 361 - 180
        values = (part[12:15] % 511 - 255).short()
        values[:, ::7] = (part[15:18, ::7] * 16 - 32768).short()  # what damaged lanes may give
        before = (part[:12, 0] % 255 - 127).int().view(2, 3, 2)
        linear, moves = (part[18:24] % 301 - 150).int(), (part[21:24] * 97 - 190_000).int()
        several = torch.stack((before, -before, before.flip(1)))
        tunings = (
            None,
            Corrections(linear, moves, before),
            Corrections(linear, moves, several, part[0].int() % 3),
        )
        size = 16 * torch.log2(torch.arange(8192).double() / 16 + 0.25)
        surprise = (part[18:27, :2].T % 81 - 40).short().contiguous()
        maps = PredictMaps(size.round().short(), surprise, noise[n * 27 :].view(3, -1).short())
        for t in tunings:
            there = None if t is None else t.to(device)
            predictor = ChannelPredictor(base, out, t, maps)
            for channel in range(3):
                known = [v.to(device) for v in values[:channel]]
                args = (base.to(device), out.to(device), there, known, maps.to(device))
                for a, b in zip(channel_tables_triton(*args), predictor.tables_reference(), strict=True):
                    if not torch.equal(a.cpu(), b):
                        return False
                predictor.learn(values[channel])
        return True

    return known_answer("the Triton channel predictor", (str(device),), check)


# Checks


def _check(base: Tensor, out: Tensor, tuned: Corrections | None, maps: PredictMaps) -> None:
    n = out.shape[-1]
    check_tensor("out", out, (torch.int32,), (9, None))
    check_tensor("base", base, (torch.int16,), (3, n))
    check_tensor("log2_residual", maps.log2_residual, (torch.int16,), (None,))
    check_tensor("surprise", maps.surprise, (torch.int16,), (2, N_ERROR_CLASSES))
    check_tensor("tables", maps.tables, (torch.int16,), (3, N_KEYS))
    check_same_device(out, base=base, maps=maps.tables)
    if tuned is not None:
        check_tensor("linear", tuned.linear, (torch.int32,), (6, n))
        check_tensor("moves", tuned.moves, (torch.int32,), (3, n))
        several = () if tuned.picture is None else (None,)
        check_tensor("before", tuned.before, (torch.int32,), (*several, 2, 3, 2))
        check_same_device(out, linear=tuned.linear, moves=tuned.moves, before=tuned.before)
        if tuned.picture is not None:
            check_tensor("picture", tuned.picture, (torch.int32,), (n,))
            check_same_device(out, picture=tuned.picture)
    if not maps.log2_residual.numel():
        raise ValueError("log2_residual must not be empty")


# Triton kernels


@jit
def _ratio(r: Value, scale: Value, log2_residual: Pointer, n_residuals: Value) -> Value:
    """A residual over its scale, sixteenths of an octave."""
    return tl.load(log2_residual + tl.minimum(tl.abs(r), n_residuals - 1)).to(tl.int32) - scale


@jit
def _error_class(ratio: Value) -> Value:
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
    picture: Pointer,
    first: Pointer,
    second: Pointer,
    log2_residual: Pointer,
    surprise: Pointer,
    tables: Pointer,
    index: Pointer,
    rounded: Pointer,
    n: Value,
    n_residuals: Value,
    CHANNEL: constexpr,
    TUNED: constexpr,
    PICTURES: constexpr,
    SIZE: constexpr,
) -> None:
    i = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = i < n
    # planes of n positions: base and out by channel, the values of Y (first) and Co (second)
    m0 = tl.load(base + i, mask=inside, other=0).to(tl.int32)
    mean = 16 * m0 + tl.load(out + i, mask=inside, other=0)
    scale = tl.minimum(tl.maximum(tl.load(out + 3 * n + i, mask=inside, other=0), -64), 96)
    if CHANNEL > 0:
        r_y = 16 * tl.load(first + i, mask=inside, other=0).to(tl.int32) - mean
        ratio_y = _ratio(r_y, scale, log2_residual, n_residuals)
        seen = _error_class(ratio_y)
        mean = 16 * tl.load(base + n + i, mask=inside, other=0).to(tl.int32)
        mean += tl.load(out + n + i, mask=inside, other=0)
        mean += _follow(tl.load(out + 6 * n + i, mask=inside, other=0), r_y)
        scale = tl.minimum(tl.maximum(tl.load(out + 4 * n + i, mask=inside, other=0), -64), 96)
        scale += tl.load(surprise + seen).to(tl.int32)
        if CHANNEL > 1:
            r_co = 16 * tl.load(second + i, mask=inside, other=0).to(tl.int32) - mean
            ratio_co = _ratio(r_co, scale, log2_residual, n_residuals)
            seen = tl.maximum(seen, _error_class(ratio_co))
            mean = 16 * tl.load(base + 2 * n + i, mask=inside, other=0).to(tl.int32)
            mean += tl.load(out + 2 * n + i, mask=inside, other=0)
            mean += _follow(tl.load(out + 7 * n + i, mask=inside, other=0), r_y)
            mean += _follow(tl.load(out + 8 * n + i, mask=inside, other=0), r_co)
            scale = tl.minimum(tl.maximum(tl.load(out + 5 * n + i, mask=inside, other=0), -64), 96)
            scale += tl.load(surprise + 9 + seen).to(tl.int32)
    if TUNED:
        mean += tl.load(linear + CHANNEL * n + i, mask=inside, other=0)
        scale += tl.load(linear + (3 + CHANNEL) * n + i, mask=inside, other=0)
        move = tl.load(moves + CHANNEL * n + i, mask=inside, other=0)
        if CHANNEL > 0:
            slopes = before + 2 * CHANNEL
            if PICTURES:
                slopes += 12 * tl.load(picture + i, mask=inside, other=0)
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
