"""Decoder of many lanes at once, as `constriction`'s default `AnsCoder` writes them.

Asymmetric numeral systems (Duda 2013, arXiv:1311.2540). A lane is a stack of 32-bit words and a state of up
to 64 bits. Decoding a symbol of a table whose frequencies f total 2^16, at a precision of 24 bits: ``q =
state mod 2^24``; the symbol s has ``c_s << 8 <= q < c_{s+1} << 8``, c the cumulative frequencies; ``state =
(state >> 24) * (f_s << 8) + q - (c_s << 8)``; and a state below 2^32 takes the last word left, ``state =
state << 32 | word``. A lane opens with its last two words as state (the last one on top). What was encoded
last is decoded first, and within one `encode_reverse` the first symbol comes first. On the CPU
`constriction` itself is faster; this is for CUDA, and for proving the two alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.kernels.dispatch import (
    Pointer,
    Value,
    check_same_device,
    check_tensor,
    constexpr,
    jit,
    tl,
    use_triton,
)

TOTAL = 1 << 16
"""What the frequencies of a table add up to."""
MAX_SYMBOLS = 4096
"""Symbols of a table: one program holds a table in registers."""


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

    def finished(self) -> Tensor:
        """Bool [L]: all that was encoded has been read. A lane cut short or read too far is not finished."""
        return (self.state == 0) & (self.remaining == 0)


def open_lanes(words: Tensor, lengths: Tensor) -> Lanes:
    """Open lanes from their words, one lane after the other.

    words: uint32 or int32 (the same bits) [sum of lengths]. lengths: int32 or int64 [L], 0 for a lane
    without symbols. Raises ValueError where they do not fit together.
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


def decode_lanes(lanes: Lanes, runs: Tensor, starts: Tensor, cumulative: Tensor) -> Tensor:
    """Decode the next symbols of every lane.

    runs: int32 [R, 2], table and number of symbols, all lanes' one after the other. starts: int32 [L + 1],
    the first run of each lane and R at the end. cumulative: int32 [T, A + 1], each table's cumulative
    frequencies from 0 to 2^16. Returns int16, the symbols 0..A-1 of all runs one after the other. Changes
    lanes. Damaged words give wrong symbols, never an error. Raises ValueError for wrong shapes, dtypes and
    run lists, and for tables that do not rise from 0 to 2^16.
    """
    _check(lanes, runs, starts, cumulative)
    if use_triton(lanes.words):
        return decode_lanes_triton(lanes, runs, starts, cumulative)
    return decode_lanes_reference(lanes, runs, starts, cumulative)


def decode_lanes_reference(lanes: Lanes, runs: Tensor, starts: Tensor, cumulative: Tensor) -> Tensor:
    """The definition, in Python integers."""
    symbols: list[int] = []
    words = [w & 0xFFFFFFFF for w in lanes.words.tolist()]
    tables, run_list, bounds = cumulative.tolist(), runs.tolist(), starts.tolist()
    for lane in range(len(bounds) - 1):
        state, left = int(lanes.state[lane]) & (2**64 - 1), int(lanes.remaining[lane])
        base = int(lanes.offset[lane])
        for table, count in run_list[bounds[lane] : bounds[lane + 1]]:
            c = tables[table]
            for _ in range(count):
                q = state & 0xFFFFFF
                s = max(i for i in range(len(c) - 1) if c[i] <= q >> 8)
                state = (state >> 24) * ((c[s + 1] - c[s]) << 8) + q - (c[s] << 8)
                if state < 1 << 32 and left:
                    left -= 1
                    state = state << 32 | words[base + left]
                symbols.append(s)
        lanes.state[lane] = state - (1 << 64) if state >> 63 else state
        lanes.remaining[lane] = left
    return torch.tensor(symbols, dtype=torch.int16, device=lanes.words.device)


def decode_lanes_triton(lanes: Lanes, runs: Tensor, starts: Tensor, cumulative: Tensor) -> Tensor:
    """One warp per lane: a run's table stays in registers, a symbol costs two reductions over it."""
    counts = torch.cat((runs.new_zeros(1), runs[:, 1])).long().cumsum(0)
    out = torch.empty(int(counts[-1]), dtype=torch.int16, device=runs.device)
    n_lanes, n_symbols = lanes.state.numel(), cumulative.shape[1] - 1
    if n_lanes:
        _decode_kernel[(n_lanes,)](
            lanes.words,
            lanes.offset,
            lanes.remaining,
            lanes.state,
            runs.contiguous(),
            starts,
            cumulative.contiguous(),
            out,
            counts[starts.long()],
            n_symbols,
            SIZE=max(32, 1 << (n_symbols - 1).bit_length()),
            num_warps=1,
        )
    return out


# Checks


def _check(lanes: Lanes, runs: Tensor, starts: Tensor, cumulative: Tensor) -> None:
    check_tensor("runs", runs, (torch.int32,), (None, 2))
    check_tensor("starts", starts, (torch.int32,), (lanes.state.numel() + 1,))
    check_tensor("cumulative", cumulative, (torch.int32,), (None, None))
    check_same_device(lanes.words, runs=runs, starts=starts, cumulative=cumulative)
    n_tables, n_symbols = cumulative.shape[0], cumulative.shape[1] - 1
    if n_tables < 1 or not 1 <= n_symbols <= MAX_SYMBOLS:
        raise ValueError(f"cumulative must hold tables of 1..{MAX_SYMBOLS} symbols")
    rising = (cumulative[:, 1:] >= cumulative[:, :-1]).all()
    whole = (cumulative[:, 0] == 0).all() & (cumulative[:, -1] == TOTAL).all()
    known = ((runs[:, 0] >= 0) & (runs[:, 0] < n_tables) & (runs[:, 1] >= 0)).all()
    in_order = (starts[1:] >= starts[:-1]).all() & (starts[0] == 0) & (starts[-1] == runs.shape[0])
    good = torch.stack((rising & whole, known, in_order)).tolist()  # one wait for the device
    if not good[0]:
        raise ValueError(f"cumulative must rise from 0 to {TOTAL} in every table")
    if not good[1]:
        raise ValueError(f"runs must name tables 0..{n_tables - 1} and counts of at least 0")
    if not good[2]:
        raise ValueError("starts must rise from 0 to the number of runs")


# Triton kernel


@jit
def _decode_kernel(
    words: Pointer,
    offset: Pointer,
    remaining: Pointer,
    state: Pointer,
    runs: Pointer,
    starts: Pointer,
    cumulative: Pointer,
    out: Pointer,
    out_start: Pointer,
    n_symbols: Value,
    SIZE: constexpr,
) -> None:
    lane = tl.program_id(0)
    s = tl.load(state + lane).to(tl.uint64, bitcast=True)
    left = tl.load(remaining + lane)
    base = words + tl.load(offset + lane)
    to = out + tl.load(out_start + lane)
    symbol = tl.arange(0, SIZE)
    for run in range(tl.load(starts + lane), tl.load(starts + lane + 1)):
        table = tl.load(runs + run * 2).to(tl.int64)
        count = tl.load(runs + run * 2 + 1)
        lower = tl.load(cumulative + table * (n_symbols + 1) + symbol, mask=symbol < n_symbols, other=65536)
        for _ in range(count):
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
            tl.store(to, (found % SIZE).to(tl.int16))
            to += 1
    tl.store(state + lane, s.to(tl.int64, bitcast=True))
    tl.store(remaining + lane, left)
