"""Lanes: the entropy-coded symbols of one packet, in independent rANS streams (docs/format.md, section 7).

A packet codes its symbols in steps. A step's coded positions are sorted by their tables and cut into chunks
of 2^k; chunk j of every step goes to lane j. What the lanes hold does not depend on what codes them:
`constriction` one run of a table at a time here, or a warp a lane on a device (kernels/rans.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from .errors import Corrupt
from .tables import ALPHABET, COST_UNIT, ESCAPE, NO_TABLE, SYMBOL_MAX, TableSet
from .varint import pack_varints, unpack_varints

MIN_LANE_BITS, MAX_LANE_BITS = 8, 20
"""The lengths 2^k of lanes that a payload may have."""

WRITTEN_LANE_BITS = 10
"""The shortest lanes that the encoder writes: a device decodes lanes side by side, and so few symbols of each
in no time."""

LANE_BYTES = 8192
"""The encoder's lanes are long enough to have so many bytes on average, or there is only one. A lane costs
some seven bytes: with 2560 files of photographs are 0.13 % larger, with 16384 0.03 % smaller."""

SAMPLED = 1024
"""Of a step's symbols in coding order, at least so many, evenly spaced, stand for all where the encoder
estimates what a packet takes: one percent is near enough for a choice between powers of two."""


@dataclass(frozen=True)
class _Runs:
    """The runs of a step's tables in its coding order.

    size: how many positions are coded. starts, tables: where the run of each table starts, and the table.
    """

    size: int
    starts: NDArray[np.int64]
    tables: NDArray[np.int16]

    def in_lanes(self, lane_bits: int) -> list[tuple[int, int, int, int]]:
        """Runs (lane, table, start, end) of one table inside one chunk, in coding order."""
        size = self.size
        if not size:
            return []
        starts = np.concatenate((self.starts, np.arange(1 << lane_bits, size, 1 << lane_bits)))
        starts.sort()
        starts = starts[np.append(starts[1:] != starts[:-1], True)]
        tables = self.tables[np.searchsorted(self.starts, starts, "right") - 1]
        columns = (starts >> lane_bits, tables, starts, np.append(starts[1:], size))
        return list(zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class _Step:
    """A step to be written.

    letters: uint8 [n] in coding order. escaped, escapes: the places of escapes in that order, their values.
    """

    runs: _Runs
    letters: NDArray[np.uint8]
    escaped: NDArray[np.int64]
    escapes: NDArray[np.int16]


class LaneEncoder:
    """Collects the steps of a packet, then writes them, last symbol first. Inverse: LaneDecoder."""

    def __init__(self, tables: TableSet) -> None:
        self._tables = tables
        self._steps: list[_Step] = []
        self._cost = 0

    def put(self, index: NDArray[np.int16], symbol: NDArray[np.int16]) -> None:
        """Add one step. index: int16 [n], the table of each position, or NO_TABLE. symbol: int16 [n].

        Raises ValueError for other shapes, types and ranges.
        """
        if symbol.dtype != np.int16 or symbol.shape != index.shape:
            raise ValueError(f"symbols must be int16 {index.shape}, not {symbol.dtype} {symbol.shape}")
        order, ordered = _sort_step(index, self._tables)
        starts = _run_starts(ordered)
        runs = _Runs(ordered.size, starts, ordered[starts])
        # wraps around above 32640, to values that are still above 254
        shifted = symbol.take(order).view(np.uint16) + np.uint16(SYMBOL_MAX)
        escaped = np.flatnonzero(shifted >= ESCAPE)
        escapes = (shifted[escaped] - np.uint16(SYMBOL_MAX)).view(np.int16)
        shifted[escaped] = ESCAPE
        self._cost += self._estimate(ordered, shifted)
        self._steps.append(_Step(runs, shifted.astype(np.uint8), escaped, escapes))

    def _estimate(self, ordered: NDArray[np.int16], letters: NDArray[np.uint16]) -> int:
        """About how many 1/2048 bits a step takes. ordered, letters: table and letter, in coding order."""
        if not letters.size:
            return 0
        stride = slice(0, None, max(1, letters.size // SAMPLED))
        costs = self._tables.costs.take(ordered[stride].astype(np.int32) * ALPHABET + letters[stride])
        return int(costs.sum(dtype=np.int64)) * letters.size // costs.size

    def finish(self) -> bytes:
        """The payload of all steps put so far."""
        lane_bits, n_lanes = self._lanes()
        coders = [constriction.stream.stack.AnsCoder() for _ in range(n_lanes)]
        model = self._tables.model
        for step in reversed(self._steps):
            letters = step.letters.astype(np.int32)
            for lane, table, start, end in reversed(step.runs.in_lanes(lane_bits)):
                coders[lane].encode_reverse(letters[start:end], model(table))
        words = [coder.get_compressed().astype("<u4") for coder in coders]
        lanes = np.concatenate([np.empty(0, np.int64), *(step.escaped >> lane_bits for step in self._steps)])
        escapes = np.concatenate([np.empty(0, np.int16), *(step.escapes for step in self._steps)])
        escapes = escapes[np.argsort(lanes, kind="stable")].astype("<i2")
        counts = [sum(step.letters.size for step in self._steps), n_lanes, escapes.size]
        if escapes.size:
            counts += np.bincount(lanes, minlength=n_lanes).tolist()
        counts += [lane.size for lane in words]
        head = bytes([lane_bits]) + pack_varints(counts)
        return b"".join([head, escapes.tobytes(), *(lane.tobytes() for lane in words)])

    def _lanes(self) -> tuple[int, int]:
        """The shortest lanes worth their cost: k and how many there are."""
        longest = max((step.letters.size for step in self._steps), default=0)
        n_bytes = self._cost // (8 * COST_UNIT)
        for lane_bits in range(WRITTEN_LANE_BITS, MAX_LANE_BITS + 1):
            n_lanes = _n_chunks(longest, lane_bits)
            if n_lanes <= 1 or n_bytes >= n_lanes * LANE_BYTES:
                break
        return lane_bits, n_lanes


@dataclass(frozen=True)
class LanePayload:
    """The parts of a lane payload.

    lane_bits: k. n_symbols: of all steps. escapes: int16, words: uint32, those of lane 0 first. n_escapes,
    n_words: int64 [lanes], how many of them each lane has.
    """

    lane_bits: int
    n_symbols: int
    escapes: NDArray[np.int16]
    n_escapes: NDArray[np.int64]
    words: NDArray[np.uint32]
    n_words: NDArray[np.int64]


def unpack_lanes(payload: bytes | memoryview, max_symbols: int) -> LanePayload:
    """Check the layout of a payload; what this allocates is bounded by the payload's length alone.

    max_symbols: the most that the packet can have. Raises Corrupt.
    """
    data = memoryview(payload)
    if not data or not MIN_LANE_BITS <= data[0] <= MAX_LANE_BITS:
        raise Corrupt("a payload without a length of its lanes")
    lane_bits = data[0]
    (n_symbols, n_lanes, n_escapes), at = unpack_varints(data, 3, 1)
    if n_symbols > max_symbols:
        raise Corrupt(f"{n_symbols} symbols where there can be {max_symbols}")
    if n_escapes > n_symbols or n_lanes > _n_chunks(n_symbols, lane_bits) or (n_symbols and not n_lanes):
        raise Corrupt("lane counts contradict each other")
    # every count takes a byte, so a wrong n_lanes ends here within the payload
    lane_escapes, at = unpack_varints(data, n_lanes, at) if n_escapes else ([0] * n_lanes, at)
    lane_words, at = unpack_varints(data, n_lanes, at)
    if sum(lane_escapes) != n_escapes or at + 2 * n_escapes + 4 * sum(lane_words) != len(data):
        raise Corrupt("lane lengths do not add up to the payload")
    escapes = np.frombuffer(data, "<i2", n_escapes, at).astype(np.int16)
    if (np.abs(escapes.astype(np.int32)) <= SYMBOL_MAX).any():
        raise Corrupt("an escape holds a value that needs none")
    words = np.frombuffer(data, "<u4", sum(lane_words), at + 2 * n_escapes).astype(np.uint32)
    n_words = np.array(lane_words, np.int64)
    last = np.cumsum(n_words)[n_words > 0] - 1
    if (words[last] == 0).any():
        raise Corrupt("a lane ends with a zero word")
    return LanePayload(lane_bits, n_symbols, escapes, np.array(lane_escapes, np.int64), words, n_words)


class LaneDecoder:
    """Reads what LaneEncoder wrote, step by step. The only error a payload can cause is Corrupt."""

    def __init__(self, tables: TableSet, payload: bytes | memoryview, max_symbols: int) -> None:
        """Checks the layout of the payload; see `unpack_lanes`."""
        self._tables = tables
        self._parts = parts = unpack_lanes(payload, max_symbols)
        self._word_ends = np.cumsum(parts.n_words).tolist()
        self._escape_ends = np.cumsum(parts.n_escapes)
        self._next_escape = self._escape_ends - parts.n_escapes
        self._symbols_left = parts.n_symbols
        self._coders: list[Any] = []
        """Of the lanes that a step has needed: what a payload claims beyond them costs nothing."""

    def get(self, index: NDArray[np.int16]) -> NDArray[np.int16]:
        """The symbols of the next step. index: int16 [n], as given to the encoder.

        Returns int16 [n], 0 for NO_TABLE. Raises Corrupt where the payload has no such step, ValueError for
        an index of another shape or range.
        """
        order, ordered = _sort_step(index, self._tables)
        size = order.size
        self._symbols_left -= size
        self._open(_n_chunks(size, self._parts.lane_bits))
        out = np.zeros(index.size, np.int16)
        if size:
            out[order] = self._values(self._letters(ordered))
        return out

    def _letters(self, ordered: NDArray[np.int16]) -> NDArray[np.int32]:
        """The letters of a step whose tables are given in coding order, one or more."""
        bits = self._parts.lane_bits
        starts = _run_starts(ordered, 1 << bits)
        lanes, tables = (starts >> bits).tolist(), ordered.take(starts).tolist()
        lengths = [*(starts[1:] - starts[:-1]).tolist(), ordered.size - int(starts[-1])]
        coders, model = self._coders, self._tables.model
        with _coder_faults():
            runs = [
                coders[lane].decode(model(table), length)
                for lane, table, length in zip(lanes, tables, lengths, strict=True)
            ]
        return np.concatenate(runs)

    def _open(self, n_lanes: int) -> None:
        """Open the first lanes, as many as a step needs."""
        if self._symbols_left < 0 or n_lanes > len(self._word_ends):
            raise Corrupt("a step needs more symbols or lanes than there are")
        with _coder_faults():
            for lane in range(len(self._coders), n_lanes):
                start = self._word_ends[lane - 1] if lane else 0
                words = self._parts.words[start : self._word_ends[lane]]
                self._coders.append(constriction.stream.stack.AnsCoder(words))

    def _values(self, letters: NDArray[np.int32]) -> NDArray[np.int16]:
        """The values of a step's letters in coding order; escapes are taken from their lanes' lists."""
        values = (letters - SYMBOL_MAX).astype(np.int16)
        where = np.flatnonzero(letters == ESCAPE)
        if where.size:
            lanes = where >> self._parts.lane_bits
            counts = np.bincount(lanes, minlength=self._escape_ends.size)
            nth = np.arange(where.size) - (np.cumsum(counts) - counts)[lanes]
            place = self._next_escape[lanes] + nth
            self._next_escape = self._next_escape + counts
            if (self._next_escape > self._escape_ends).any():
                raise Corrupt("more escapes than values for them")
            values[where] = self._parts.escapes[place]
        return values

    def is_finished(self) -> bool:
        """Whether the steps have used up all symbols, escapes and lanes to the last bit."""
        escapes_left = (self._next_escape != self._escape_ends).any()
        if self._symbols_left or escapes_left or len(self._coders) != len(self._word_ends):
            return False
        # decoding past the end yields symbols without an error; a state that did not come home tells
        return all(coder.is_empty() for coder in self._coders)

    def finish(self) -> None:
        """Raises Corrupt unless `is_finished`."""
        if not self.is_finished():
            raise Corrupt("symbols, escapes, lanes or bits are left over")


def _n_chunks(n_symbols: int, lane_bits: int) -> int:
    return -(-n_symbols >> lane_bits)


def _sort_step(index: NDArray[np.int16], tables: TableSet) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """The coded positions of a step in coding order, and the table of each."""
    if index.ndim != 1 or index.dtype != np.int16:
        raise ValueError(f"indices must be int16 [n], not {index.dtype} {index.shape}")
    is_coded = index != NO_TABLE
    if np.count_nonzero(is_coded) == index.size:
        order = index.argsort(kind="stable")
    else:  # in lossy levels few are coded: sorting the others too would take longer than all the rest
        coded = np.flatnonzero(is_coded)
        order = coded[index.take(coded).argsort(kind="stable")]
    ordered = index.take(order)
    if ordered.size and (ordered[0] < 0 or ordered[-1] >= len(tables)):
        raise ValueError(f"a table outside 0..{len(tables) - 1}")
    return order, ordered


def _run_starts(ordered: NDArray[np.int16], lane_length: int | None = None) -> NDArray[np.int64]:
    """Where runs of one table, and with `lane_length` the chunks of that length, start: ascending."""
    is_start = np.empty(ordered.size, np.bool_)
    is_start[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_start[1:])
    if lane_length is not None:
        is_start[::lane_length] = True
    return np.flatnonzero(is_start)


@contextmanager
def _coder_faults() -> Iterator[None]:
    """Turn what constriction raises into Corrupt; its panics are no Exception, few handlers catch them."""
    try:
        yield
    except BaseException as fault:
        if isinstance(fault, ValueError) or type(fault).__name__ == "PanicException":
            raise Corrupt(f"the entropy decoder stopped: {fault}") from fault
        raise
