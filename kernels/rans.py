"""Decoder of many lanes at once, as `constriction`'s default `AnsCoder` writes them.

Asymmetric numeral systems (Duda 2013, arXiv:1311.2540). A lane is a stack of 32-bit words and a state of up
to 64 bits. Decoding a symbol of a table whose frequencies f total 2^24: ``q = state mod 2^24``; the symbol s
has ``c_s <= q < c_{s+1}``, c the cumulative frequencies; ``state = (state >> 24) * f_s + q - c_s``; and a
state below 2^32 takes the last word left, ``state = state << 32 | word``. A lane opens with its last two
words as state (the last one on top). What was encoded last is decoded first, and within one `encode_reverse`
the first symbol comes first. On the CPU `constriction` itself is faster; this is for CUDA, and for proving
the two alike.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from vbc.kernels.dispatch import (
    Pointer,
    Value,
    check_same_device,
    check_tensor,
    constexpr,
    jit,
    known_answer,
    on_device,
    tl,
    use_triton,
)

TOTAL = 1 << 24
"""What the frequencies of a table add up to."""
MAX_SYMBOLS = 4096
"""Symbols of a table: one program holds a table in registers."""
MAX_LANE_BITS = 30
"""Positions are counted in 32 bits."""

CHANGING = ("remaining", "state", "next_escape", "escapes_left", "decoded")
"""The parts of `Lanes` that decoding changes."""


@dataclass
class Lanes:
    """Open lanes of N groups, those of a group one after the other.

    words: int32, the bits of all lanes' 32-bit words. escapes: int16, the values of all lanes' escapes. All
    others are int64 [L]. group, rank: the group of a lane, and its number there. bits: its chunks have 2^bits
    positions. offset: where its words start. remaining: how many of them are not yet taken. state: the bits
    of its 64-bit state. next_escape, escapes_left: place of its next escape, and how many are left; below 0
    where it needed more than it has. decoded: how many symbols it has given.

    Decoding changes the last five (CHANGING) in place, so that the next step goes on where this one stopped.
    """

    words: Tensor
    escapes: Tensor
    group: Tensor
    rank: Tensor
    bits: Tensor
    offset: Tensor
    remaining: Tensor
    state: Tensor
    next_escape: Tensor
    escapes_left: Tensor
    decoded: Tensor

    def to(self, device: torch.device | str) -> "Lanes":
        """The same lanes on another device, in three transfers; a copy in any case."""
        words, escapes = (x.to(device, copy=True) for x in (self.words, self.escapes))
        return Lanes(words, escapes, *torch.stack(self._by_lane()).to(device).unbind())

    def _by_lane(self) -> list[Tensor]:
        fixed = [self.group, self.rank, self.bits, self.offset]
        return [*fixed, *(getattr(self, name) for name in CHANGING)]

    def finished(self) -> Tensor:
        """Bool [L]: the lane was used, and all that was encoded has been read, neither less nor more."""
        at_home = (self.state == 0) & (self.remaining == 0)
        return at_home & (self.escapes_left == 0) & (self.decoded > 0)


def open_lanes(
    words: Tensor,
    n_words: Tensor,
    escapes: Tensor,
    n_escapes: Tensor,
    n_lanes: Tensor,
    lane_bits: Tensor,
) -> Lanes:
    """Open lanes from their words and escapes, one lane after the other.

    words: uint32 or int32 (the same bits) [sum of n_words]. escapes: int16 [sum of n_escapes]. n_words,
    n_escapes: int64 [L], of each lane, 0 for one without. n_lanes, lane_bits: int64 [N], of each group; the
    chunks of its lanes have 2^lane_bits positions, 0 <= lane_bits <= 30. Raises ValueError where they do not
    fit together. (That check waits for a device; open on the CPU and use `Lanes.to`.)
    """
    check_tensor("words", words, (torch.uint32, torch.int32), (None,))
    check_tensor("escapes", escapes, (torch.int16,), (None,))
    check_tensor("n_lanes", n_lanes, (torch.int64,), (None,))
    check_tensor("lane_bits", lane_bits, (torch.int64,), tuple(n_lanes.shape))
    per_lane = {"n_words": n_words, "n_escapes": n_escapes}
    check_same_device(words, escapes=escapes, n_lanes=n_lanes, lane_bits=lane_bits, **per_lane)
    for name, counts in per_lane.items():
        check_tensor(name, counts, (torch.int64,), (None,))
    for name, counts, total in (
        ("n_words", n_words, words.numel()),
        ("n_escapes", n_escapes, escapes.numel()),
        ("n_lanes", n_lanes, n_words.numel()),
    ):
        if bool((counts < 0).any()) or int(counts.sum()) != total:
            raise ValueError(f"{name} must be at least 0 and add up to {total}")
    if n_escapes.shape != n_words.shape or bool(((lane_bits < 0) | (lane_bits > MAX_LANE_BITS)).any()):
        raise ValueError("n_escapes must be as many as n_words, and lane_bits must be 0..30")
    group = torch.repeat_interleave(n_lanes)
    rank = torch.arange(group.numel(), device=group.device) - (n_lanes.cumsum(0) - n_lanes)[group]
    words = words.view(torch.int32)
    offset = n_words.cumsum(0) - n_words
    # one zero word in front makes the reads of empty lanes harmless
    padded = torch.cat((words.new_zeros(1), words)).long() & 0xFFFFFFFF
    top = torch.where(n_words >= 1, padded[offset + n_words], 0)
    low = padded[(offset + n_words - 1).clamp_min(0)]
    return Lanes(
        words=words,
        escapes=escapes,
        group=group,
        rank=rank,
        bits=lane_bits[group],
        offset=offset,
        remaining=(n_words - 2).clamp_min(0),
        state=torch.where(n_words >= 2, (top << 32) | low, top),
        next_escape=n_escapes.cumsum(0) - n_escapes,
        escapes_left=n_escapes.clone(),
        decoded=torch.zeros_like(n_words),
    )


def cumulative_tables(frequencies: Tensor) -> Tensor:
    """Cumulative frequencies int32 [T, A + 1], 0 to 2^24 in every row, of integer frequencies [T, A].

    Raises ValueError unless they are at least 0 and add up to 2^24 in every table. (That check waits for a
    device.)
    """
    check_tensor("frequencies", frequencies, (torch.int32, torch.int64), (None, None))
    n_tables, n_symbols = frequencies.shape
    if n_tables < 1 or not 1 <= n_symbols <= MAX_SYMBOLS:
        raise ValueError(f"frequencies must hold tables of 1..{MAX_SYMBOLS} symbols")
    f = frequencies.long()
    if bool((f < 0).any()) or bool((f.sum(1) != TOTAL).any()):
        raise ValueError(f"frequencies must be at least 0 and add up to {TOTAL} in every table")
    return torch.cat((f.new_zeros((n_tables, 1)), f.cumsum(1)), 1).to(torch.int32)


def decode_step(lanes: Lanes, tables: Tensor, order: Tensor, count: Tensor, cumulative: Tensor) -> Tensor:
    """Decode one step of N groups: position i of a group's coding order is in its lane ``i >> bits``.

    tables: int16 [N, n], the table of each position of the coding order; tables outside 0..T-1 are taken as
    the nearest of them. order: int64 [N, n], where each of them belongs in the result, 0..n-1. count: int64
    [N]; of each group only the positions before it are coded. cumulative: `cumulative_tables`. Returns int16
    [N, n]: values, and 0 for positions that are not coded or whose lane is not there.
    Changes lanes. Never waits for the device. Damaged words give wrong values, never an error, and nothing
    outside a lane's words and escapes is read. Raises ValueError for wrong shapes and dtypes.
    """
    _check(lanes, tables, order, count, cumulative)
    if use_triton(tables) and _triton_agrees(tables.device):
        return decode_step_triton(lanes, tables, order, count, cumulative)
    return decode_step_reference(lanes, tables, order, count, cumulative)


def decode_step_reference(
    lanes: Lanes, tables: Tensor, order: Tensor, count: Tensor, cumulative: Tensor
) -> Tensor:
    """The definition, in Python integers."""
    n, escape = tables.shape[1], cumulative.shape[1] - 2
    words, escapes = lanes.words.tolist(), lanes.escapes.tolist()
    wanted = tables.clamp(0, cumulative.shape[0] - 1).tolist()
    rows = {t: cumulative[t].tolist() for t in set(chain.from_iterable(wanted))}
    places, n_coded = order.tolist(), count.clamp(0, n).tolist()
    values = [[0] * n for _ in wanted]
    for lane, (group, rank, bits, base) in enumerate(
        zip(*(x.tolist() for x in (lanes.group, lanes.rank, lanes.bits, lanes.offset)), strict=True)
    ):
        state, left = int(lanes.state[lane]) & (2**64 - 1), int(lanes.remaining[lane])
        next_escape, escapes_left = int(lanes.next_escape[lane]), int(lanes.escapes_left[lane])
        chunk = range(rank << bits, min(n_coded[group], (rank + 1) << bits))
        for i in chunk:
            c = rows[wanted[group][i]]
            q = state & 0xFFFFFF
            # of symbols with equal bounds the last one has a frequency; the others are never drawn
            s = bisect_right(c, q) - 1
            state = (state >> 24) * (c[s + 1] - c[s]) + q - c[s]
            if state < 1 << 32 and left:
                left -= 1
                state = state << 32 | words[base + left] & 0xFFFFFFFF
            value = s - ((escape + 1) // 2 - 1)
            if s == escape:
                value = escapes[next_escape] if escapes_left > 0 else 0
                next_escape += 1
                escapes_left -= 1
            values[group][places[group][i]] = value
        lanes.state[lane] = state - (1 << 64) if state >> 63 else state
        lanes.remaining[lane] = left
        lanes.next_escape[lane], lanes.escapes_left[lane] = next_escape, escapes_left
        lanes.decoded[lane] += len(chunk)
    return torch.tensor(values, dtype=torch.int16, device=tables.device).reshape(tables.shape)


def decode_step_triton(
    lanes: Lanes, tables: Tensor, order: Tensor, count: Tensor, cumulative: Tensor
) -> Tensor:
    """One warp a lane: a run's table stays in registers, a symbol costs two reductions over it."""
    out = torch.zeros(tables.shape, dtype=torch.int16, device=tables.device)
    n_symbols = cumulative.shape[1] - 1
    if lanes.state.numel() and tables.numel():
        with on_device(tables.device):
            _decode_kernel[(lanes.state.numel(),)](
                lanes.words,
                lanes.escapes,
                lanes.group,
                lanes.rank,
                lanes.bits,
                lanes.offset,
                lanes.remaining,
                lanes.state,
                lanes.next_escape,
                lanes.escapes_left,
                lanes.decoded,
                tables.contiguous(),
                order.contiguous(),
                count.contiguous(),
                cumulative.contiguous(),
                out,
                tables.shape[1],
                cumulative.shape[0],
                n_symbols,
                SIZE=max(32, 1 << (n_symbols - 1).bit_length()),
                num_warps=1,
            )
    return out


def _triton_agrees(device: torch.device) -> bool:
    """The known-answer test of the kernel, once per process and device: noise decodes as the definition says.

    Three tables, two groups with lanes of different lengths, one of them read past its end, escapes for some;
    two steps.
    """

    def check() -> bool:
        noise = [(i * 2654435761 + 12345) >> 3 & 0x7FFFFFFF for i in range(3 * 256 + 60)]
        weights = torch.tensor(noise[: 3 * 256]).view(3, 256) % 211
        weights[2, :200] = 0
        scaled = weights * (TOTAL - 256) // weights.sum(1, keepdim=True)
        scaled[:, 255] += TOTAL - scaled.sum(1)
        cumulative = cumulative_tables(scaled)
        start = open_lanes(
            torch.tensor(noise[3 * 256 :], dtype=torch.int32),
            torch.tensor([20, 1, 19, 20]),
            torch.tensor([300, -4000, 32767, -32768, 128], dtype=torch.int16),
            torch.tensor([2, 0, 3, 0]),
            torch.tensor([3, 1]),
            torch.tensor([5, 6]),
        )
        here, there = start.to("cpu"), start.to(device)
        for n, coded in ((70, (70, 64)), (60, (51, 0))):
            tables = torch.arange(n).mul(3).floor_divide(n).short().repeat(2, 1)
            args = (tables, torch.stack((torch.arange(n).flip(0), torch.arange(n))), torch.tensor(coded))
            want = decode_step_reference(here, *args, cumulative)
            have = decode_step_triton(there, *(x.to(device) for x in (*args, cumulative)))
            if not torch.equal(have.cpu(), want):
                return False
        pairs = zip(there._by_lane(), here._by_lane(), strict=True)
        return all(torch.equal(a.cpu(), b) for a, b in pairs)

    return known_answer("the Triton lane decoder", (str(device),), check)


# Checks


def _check(lanes: Lanes, tables: Tensor, order: Tensor, count: Tensor, cumulative: Tensor) -> None:
    check_tensor("tables", tables, (torch.int16,), (None, None))
    check_tensor("order", order, (torch.int64,), tuple(tables.shape))
    check_tensor("count", count, (torch.int64,), (tables.shape[0],))
    check_tensor("cumulative", cumulative, (torch.int32,), (None, None))
    check_same_device(lanes.words, tables=tables, order=order, count=count, cumulative=cumulative)
    if cumulative.shape[0] < 1 or not 1 <= cumulative.shape[1] - 1 <= MAX_SYMBOLS:
        raise ValueError(f"cumulative must hold tables of 1..{MAX_SYMBOLS} symbols")
    if tables.shape[1] >= 1 << MAX_LANE_BITS:
        raise ValueError(f"a step must have fewer than 2^{MAX_LANE_BITS} positions")


# Triton kernel


@jit
def _decode_kernel(
    words: Pointer,
    escapes: Pointer,
    group: Pointer,
    rank: Pointer,
    bits: Pointer,
    offset: Pointer,
    remaining: Pointer,
    state: Pointer,
    next_escape: Pointer,
    escapes_left: Pointer,
    decoded: Pointer,
    tables: Pointer,
    order: Pointer,
    count: Pointer,
    cumulative: Pointer,
    out: Pointer,
    n: Value,
    n_tables: Value,
    n_symbols: Value,
    SIZE: constexpr,
) -> None:
    lane = tl.program_id(0)
    row = tl.load(group + lane)
    shift = tl.load(bits + lane)
    start = tl.load(rank + lane) << shift
    coded = tl.minimum(tl.maximum(tl.load(count + row), 0), n)
    first = tl.minimum(start, coded).to(tl.int32)
    last = tl.minimum(start + (1 << shift), coded).to(tl.int32)
    s = tl.load(state + lane).to(tl.uint64, bitcast=True)
    left = tl.load(remaining + lane)
    escape = tl.load(next_escape + lane)
    n_escapes = tl.load(escapes_left + lane)
    base = words + tl.load(offset + lane)
    tables += row * n
    order += row * n
    out += row * n
    middle = n_symbols // 2 - 1
    symbol = tl.arange(0, SIZE)
    open_table = tl.full((), -1, tl.int32)
    lower = tl.full((SIZE,), 16777216, tl.int32)
    for i in range(first, last):
        table = tl.load(tables + i).to(tl.int32)
        table = tl.minimum(tl.maximum(table, 0), n_tables - 1)
        if table != open_table:
            bounds = cumulative + table.to(tl.int64) * (n_symbols + 1)
            lower = tl.load(bounds + symbol, mask=symbol < n_symbols, other=16777216)
            open_table = table
        q = (s & 0xFFFFFF).to(tl.int32)
        # Of symbols with equal bounds the last one has a frequency; the others are never drawn.
        below = lower <= q
        found = tl.max(tl.where(below, lower.to(tl.int64) * SIZE + symbol, 0), 0)
        low = (found // SIZE).to(tl.int32)
        high = tl.min(tl.where(below, 16777216, lower), 0)
        rest = (q - low).to(tl.uint64)
        s = (s >> 24) * (high - low).to(tl.uint64) + rest
        take = ((s >> 32) == 0) & (left > 0)
        left -= take.to(tl.int64)
        word = tl.load(base + left, mask=take, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
        s = tl.where(take, (s << 32) | word, s)
        drawn = (found % SIZE).to(tl.int32)
        escaped = drawn == n_symbols - 1
        listed = tl.load(escapes + escape, mask=escaped & (n_escapes > 0), other=0).to(tl.int32)
        escape += escaped.to(tl.int64)
        n_escapes -= escaped.to(tl.int64)
        value = tl.where(escaped, listed, drawn - middle)
        tl.store(out + tl.load(order + i), value.to(tl.int16))
    tl.store(state + lane, s.to(tl.int64, bitcast=True))
    tl.store(remaining + lane, left)
    tl.store(next_escape + lane, escape)
    tl.store(escapes_left + lane, n_escapes)
    tl.store(decoded + lane, tl.load(decoded + lane) + (last - first))
