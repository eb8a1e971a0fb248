"""Decoder of many lanes at once, as `constriction`'s default `AnsCoder` writes them.

Asymmetric numeral systems (Duda 2013, arXiv:1311.2540). A lane is a stack of 32-bit words and a state of up
to 64 bits. Decoding a symbol of a table whose frequencies f total 2^16, at a precision of 24 bits: ``q =
state mod 2^24``; the symbol s has ``c_s << 8 <= q < c_{s+1} << 8``, c the cumulative frequencies; ``state =
(state >> 24) * (f_s << 8) + q - (c_s << 8)``; and a state below 2^32 takes the last word left, ``state =
state << 32 | word``. A lane opens with its last two words as state (the last one on top). What was encoded
last is decoded first, and within one `encode_reverse` the first symbol comes first. On the CPU
`constriction` itself is faster; this is for CUDA, and for proving the two alike.
"""

from bisect import bisect_right
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
    tl,
    use_triton,
)

TOTAL = 1 << 16
"""What the frequencies of a table add up to."""
MAX_SYMBOLS = 4096
"""Symbols of a table: one program holds a table in registers."""
NOTHING = -1
"""What a position holds for which nothing was decoded."""


@dataclass
class Lanes:
    """Open lanes.

    words: int32, the bits of all lanes' 32-bit words. offset: int64 [L], where each lane's words start.
    remaining: int32 [L], words of each lane not yet taken. state: int64 [L], the bits of the 64-bit states.
    Decoding changes the last two in place, so that a level's next step goes on where this one stopped.
    """

    words: Tensor
    offset: Tensor
    remaining: Tensor
    state: Tensor

    def to(self, device: torch.device | str) -> "Lanes":
        """The same lanes on another device; a copy in any case."""
        parts = (self.words, self.offset, self.remaining, self.state)
        return Lanes(*(x.to(device, copy=True) for x in parts))

    def finished(self) -> Tensor:
        """Bool [L]: all that was encoded has been read. A lane cut short or read too far is not finished."""
        return (self.state == 0) & (self.remaining == 0)


def open_lanes(words: Tensor, lengths: Tensor) -> Lanes:
    """Open lanes from their words, one lane after the other.

    words: uint32 or int32 (the same bits) [sum of lengths]. lengths: int32 or int64 [L], 0 for a lane
    without symbols. Raises ValueError where they do not fit together. (That check waits for a device; open
    on the CPU and use `Lanes.to`.)
    """
    check_tensor("words", words, (torch.uint32, torch.int32), (None,))
    check_tensor("lengths", lengths, (torch.int32, torch.int64), (None,))
    check_same_device(words, lengths=lengths)
    n_words = lengths.long()
    if bool((n_words < 0).any()) or int(n_words.sum()) != words.numel():
        raise ValueError(f"lengths must be at least 0 and add up to the {words.numel()} words")
    words = words.view(torch.int32)
    offset = n_words.cumsum(0) - n_words
    # One zero word in front makes the reads of empty lanes harmless.
    padded = torch.cat((words.new_zeros(1), words)).long() & 0xFFFFFFFF
    top = torch.where(n_words >= 1, padded[offset + n_words.clamp_min(0)], 0)
    low = padded[(offset + n_words - 1).clamp_min(0)]
    state = torch.where(n_words >= 2, (top << 32) | low, top)
    return Lanes(words, offset, (n_words - 2).clamp_min(0).to(torch.int32), state)


def cumulative_tables(frequencies: Tensor) -> Tensor:
    """Cumulative frequencies int32 [T, A + 1], 0 to 2^16 in every row, of integer frequencies [T, A].

    Raises ValueError unless they are at least 0 and add up to 2^16 in every table. (That check waits for a
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


def decode_step(lanes: Lanes, tables: Tensor, count: Tensor, cumulative: Tensor, chunk: int) -> Tensor:
    """Decode one step: the symbol at position i of the coding order is in lane ``i // chunk``.

    tables: int16 [n], the table of each position; tables outside 0..T-1 are taken as the nearest of them.
    count: int64 scalar tensor; only the positions before it are coded. cumulative: `cumulative_tables`.
    Returns int16 [n]: symbols 0..A-1, and -1 for positions that are not coded or whose lane is not there.
    Changes lanes. Never waits for the device. Damaged words give wrong symbols, never an error, and nothing
    outside a lane's words is read. Raises ValueError for wrong shapes and dtypes.
    """
    _check(lanes, tables, count, cumulative, chunk)
    if use_triton(tables) and _triton_agrees(tables.device):
        return decode_step_triton(lanes, tables, count, cumulative, chunk)
    return decode_step_reference(lanes, tables, count, cumulative, chunk)


def decode_step_reference(
    lanes: Lanes, tables: Tensor, count: Tensor, cumulative: Tensor, chunk: int
) -> Tensor:
    """The definition, in Python integers."""
    n_coded = min(max(int(count), 0), tables.numel())
    words = lanes.words.tolist()
    wanted = tables[:n_coded].clamp(0, cumulative.shape[0] - 1).tolist()
    rows = {t: cumulative[t].tolist() for t in set(wanted)}
    symbols = [NOTHING] * tables.numel()
    for lane in range(min(lanes.state.numel(), ceil_div(n_coded, chunk))):
        state, left = int(lanes.state[lane]) & (2**64 - 1), int(lanes.remaining[lane])
        base = int(lanes.offset[lane])
        for i in range(lane * chunk, min(n_coded, (lane + 1) * chunk)):
            c = rows[wanted[i]]
            q = state & 0xFFFFFF
            # of symbols with equal bounds the last one has a frequency; the others are never drawn
            s = bisect_right(c, q >> 8) - 1
            state = (state >> 24) * ((c[s + 1] - c[s]) << 8) + q - (c[s] << 8)
            if state < 1 << 32 and left:
                left -= 1
                state = state << 32 | words[base + left] & 0xFFFFFFFF
            symbols[i] = s
        lanes.state[lane] = state - (1 << 64) if state >> 63 else state
        lanes.remaining[lane] = left
    return torch.tensor(symbols, dtype=torch.int16, device=tables.device)


def decode_step_triton(lanes: Lanes, tables: Tensor, count: Tensor, cumulative: Tensor, chunk: int) -> Tensor:
    """One warp per lane: a run's table stays in registers, a symbol costs two reductions over it."""
    n, n_symbols = tables.numel(), cumulative.shape[1] - 1
    out = torch.full((n,), NOTHING, dtype=torch.int16, device=tables.device)
    n_lanes = min(lanes.state.numel(), ceil_div(n, chunk))
    if n_lanes:
        _decode_kernel[(n_lanes,)](
            lanes.words,
            lanes.offset,
            lanes.remaining,
            lanes.state,
            tables.contiguous(),
            count,
            cumulative.contiguous(),
            out,
            n,
            chunk,
            cumulative.shape[0],
            n_symbols,
            SIZE=max(32, 1 << (n_symbols - 1).bit_length()),
            num_warps=1,
        )
    return out


def _triton_agrees(device: torch.device) -> bool:
    """The known-answer test of the kernel, once per process and device: noise decodes as the definition says.

    Three tables, three lanes of which one is read past its end, two steps.
    """

    def check() -> bool:
        noise = [(i * 2654435761 + 12345) >> 3 & 0x7FFFFFFF for i in range(3 * 256 + 40)]
        weights = torch.tensor(noise[: 3 * 256]).view(3, 256) % 211
        weights[2, :200] = 0
        scaled = weights * (TOTAL - 256) // weights.sum(1, keepdim=True)
        scaled[:, 255] += TOTAL - scaled.sum(1)
        cumulative = cumulative_tables(scaled)
        words = torch.tensor(noise[3 * 256 :], dtype=torch.int32)
        start = open_lanes(words, torch.tensor([20, 1, 19]))
        here, there = start.to("cpu"), start.to(device)
        for n, coded in ((70, 70), (60, 51)):
            tables, count = torch.arange(n).mul(3).floor_divide(n).short(), torch.tensor(coded)
            want = decode_step_reference(here, tables, count, cumulative, 26)
            args = (tables.to(device), count.to(device), cumulative.to(device), 26)
            if not torch.equal(decode_step_triton(there, *args).cpu(), want):
                return False
        return torch.equal(there.state.cpu(), here.state) and torch.equal(
            there.remaining.cpu(), here.remaining
        )

    return known_answer("the Triton lane decoder", (str(device),), check)


# Checks


def _check(lanes: Lanes, tables: Tensor, count: Tensor, cumulative: Tensor, chunk: int) -> None:
    check_tensor("tables", tables, (torch.int16,), (None,))
    check_tensor("count", count, (torch.int64,), ())
    check_tensor("cumulative", cumulative, (torch.int32,), (None, None))
    check_same_device(lanes.words, tables=tables, count=count, cumulative=cumulative)
    if cumulative.shape[0] < 1 or not 1 <= cumulative.shape[1] - 1 <= MAX_SYMBOLS:
        raise ValueError(f"cumulative must hold tables of 1..{MAX_SYMBOLS} symbols")
    if chunk < 1 or tables.numel() >= 1 << 31:
        raise ValueError(f"chunk must be at least 1 and there must be fewer than 2^31 positions, not {chunk}")


# Triton kernel


@jit
def _decode_kernel(
    words: Pointer,
    offset: Pointer,
    remaining: Pointer,
    state: Pointer,
    tables: Pointer,
    count: Pointer,
    cumulative: Pointer,
    out: Pointer,
    n: Value,
    chunk: Value,
    n_tables: Value,
    n_symbols: Value,
    SIZE: constexpr,
) -> None:
    lane = tl.program_id(0)
    s = tl.load(state + lane).to(tl.uint64, bitcast=True)
    left = tl.load(remaining + lane)
    base = words + tl.load(offset + lane)
    symbol = tl.arange(0, SIZE)
    coded = tl.minimum(tl.maximum(tl.load(count), 0), n).to(tl.int32)
    first = lane * chunk
    last = tl.minimum(coded, first + chunk)
    open_table = tl.full((), -1, tl.int32)
    lower = tl.full((SIZE,), 65536, tl.int32)
    for i in range(first, last):
        table = tl.load(tables + i).to(tl.int32)
        table = tl.minimum(tl.maximum(table, 0), n_tables - 1)
        if table != open_table:
            row = cumulative + table.to(tl.int64) * (n_symbols + 1)
            lower = tl.load(row + symbol, mask=symbol < n_symbols, other=65536)
            open_table = table
        q = ((s >> 8) & 0xFFFF).to(tl.int32)
        # Of symbols with equal bounds the last one has a frequency; the others are never drawn.
        below = lower <= q
        found = tl.max(tl.where(below, lower * SIZE + symbol, 0), 0)
        low = found // SIZE
        high = tl.min(tl.where(below, 65536, lower), 0)
        rest = (s & 0xFFFFFF) - (low << 8).to(tl.uint64)
        s = (s >> 24) * ((high - low) << 8).to(tl.uint64) + rest
        take = ((s >> 32) == 0) & (left > 0)
        left -= take.to(tl.int32)
        word = tl.load(base + left, mask=take, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)
        s = tl.where(take, (s << 32) | word, s)
        tl.store(out + i, (found % SIZE).to(tl.int16))
    tl.store(state + lane, s.to(tl.int64, bitcast=True))
    tl.store(remaining + lane, left)
