"""Lanes: entropy-coded symbols of one level, in independent rANS streams (docs/format.md, section Lanes)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from .errors import Corrupt
from .tables import ESCAPE, SYMBOL_MAX, TableSet

LANE_SYMBOLS = 8192
"""Symbols per lane and step: the 4 to 8 bytes of a state are 0.2 % of a chunk at 3 bits a symbol, and a
step of a million symbols still gives 123 lanes."""

VARINT_BYTES = 5
"""Counts stay below 2^32: the largest image allowed has 2^30 subpixels."""


class LaneEncoder:
    """Collects the steps of a level, then writes them, last symbol first. Inverse: LaneDecoder."""

    def __init__(self, tables: TableSet) -> None:
        self._tables = tables
        self._steps: list[tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]] = []
        self._escapes: list[NDArray[np.int16]] = []
        self._n_symbols = 0
        self._n_lanes = 0

    def put(self, index: NDArray[np.uint16], symbol: NDArray[Any]) -> None:
        """Add one step. index: uint16 [n], the table of each symbol. symbol: integer [n], -32768..32767.

        Raises ValueError for other shapes, types and ranges.
        """
        symbol16 = _as_int16(symbol)
        if symbol16.shape != index.shape:
            raise ValueError(f"{symbol16.shape} symbols for {index.shape} indices")
        order, runs = _sort_step(index, self._tables)
        # wraps around above 32640, to values that are still above 254
        shifted = symbol16.take(order).view(np.uint16) + np.uint16(SYMBOL_MAX)
        if shifted.size and shifted.max() >= ESCAPE:
            escaped = shifted >= ESCAPE
            self._escapes.append((shifted[escaped] - np.uint16(SYMBOL_MAX)).view(np.int16))
            shifted[escaped] = ESCAPE
        self._steps.append((shifted.astype(np.uint8), runs))
        self._n_symbols += index.size
        self._n_lanes = max(self._n_lanes, _n_chunks(index.size))

    def finish(self) -> bytes:
        """The payload of all steps put so far."""
        coders = [constriction.stream.stack.AnsCoder() for _ in range(self._n_lanes)]
        for alphabet, runs in reversed(self._steps):
            symbols = alphabet.astype(np.int32)
            for lane, table, start, end in reversed(runs):
                coders[lane].encode_reverse(symbols[start:end], self._tables.model(table))
        words = [coder.get_compressed().astype("<u4") for coder in coders]
        escapes = np.concatenate([np.empty(0, np.int16), *self._escapes]).astype("<i2")
        counts = [self._n_symbols, escapes.size, self._n_lanes, *(lane.size for lane in words)]
        return b"".join([pack_varints(counts), escapes.tobytes(), *(lane.tobytes() for lane in words)])


@dataclass(frozen=True)
class LanePayload:
    """The parts of a lane payload. escapes: int16. words: uint32, of all lanes. n_words: of each lane."""

    n_symbols: int
    escapes: NDArray[np.int16]
    words: NDArray[np.uint32]
    n_words: list[int]


def unpack_lanes(payload: bytes | memoryview) -> LanePayload:
    """Check the layout of a payload; what this allocates is bounded by the payload's length alone.

    Raises Corrupt.
    """
    data = memoryview(payload)
    (n_symbols, n_escapes, n_lanes), at = unpack_varints(data, 3)
    if n_escapes > n_symbols or n_lanes > _n_chunks(n_symbols) or (n_symbols and not n_lanes):
        raise Corrupt("lane counts contradict each other")
    # every length takes a byte, so a wrong n_lanes ends here within the payload
    n_words, n_bytes = unpack_varints(data[at:], n_lanes)
    at += n_bytes
    if at + 2 * n_escapes + 4 * sum(n_words) != len(data):
        raise Corrupt("lane lengths do not add up to the payload")
    escapes = np.frombuffer(data, "<i2", n_escapes, at).astype(np.int16)
    if (np.abs(escapes.astype(np.int32)) <= SYMBOL_MAX).any():
        raise Corrupt("an escape holds a value that needs none")
    words = np.frombuffer(data, "<u4", sum(n_words), at + 2 * n_escapes).astype(np.uint32)
    last = np.cumsum(n_words, dtype=np.int64)[np.array(n_words, np.int64) > 0] - 1
    if (words[last] == 0).any():
        raise Corrupt("a lane ends with a zero word")
    return LanePayload(n_symbols, escapes, words, n_words)


class LaneDecoder:
    """Reads what LaneEncoder wrote, step by step. The only error a payload can cause is Corrupt."""

    def __init__(self, tables: TableSet, payload: bytes | memoryview) -> None:
        """Checks the layout of the payload; see `unpack_lanes`."""
        parts = unpack_lanes(payload)
        n_symbols, self._escapes = parts.n_symbols, parts.escapes
        lanes = np.split(parts.words, np.cumsum(parts.n_words)[:-1]) if parts.n_words else []
        with _coder_faults():
            self._coders = [constriction.stream.stack.AnsCoder(lane) for lane in lanes]
        self._tables = tables
        self._symbols_left = n_symbols
        self._escapes_used = 0
        self._lanes_used = 0

    def get(self, index: NDArray[np.uint16]) -> NDArray[np.int16]:
        """The symbols of the next step. index: uint16 [n], as given to the encoder. Returns int16 [n].

        Raises Corrupt where the payload has no such step, ValueError for an index of another shape or range.
        """
        order, runs = _sort_step(index, self._tables)
        self._symbols_left -= index.size
        self._lanes_used = max(self._lanes_used, _n_chunks(index.size))
        if self._symbols_left < 0 or self._lanes_used > len(self._coders):
            raise Corrupt("a step needs more symbols or lanes than there are")
        symbols = np.empty(index.size, np.int16)
        coders, model = self._coders, self._tables.model
        with _coder_faults():
            for lane, table, start, end in runs:
                symbols[start:end] = coders[lane].decode(model(table), end - start)
        if symbols.size and symbols.max() == ESCAPE:
            self._fill_escapes(symbols)
        else:
            symbols -= SYMBOL_MAX
        out = np.empty_like(symbols)
        out[order] = symbols
        return out

    def _fill_escapes(self, symbols: NDArray[np.int16]) -> None:
        where = np.flatnonzero(symbols == ESCAPE)
        values = self._escapes[self._escapes_used : self._escapes_used + where.size]
        self._escapes_used += where.size
        if values.size < where.size:
            raise Corrupt("more escapes than values for them")
        symbols -= SYMBOL_MAX
        symbols[where] = values

    def finish(self) -> None:
        """Raises Corrupt unless the steps have used up all symbols, escapes and lanes to the last bit."""
        escapes_left = self._escapes.size - self._escapes_used
        if self._symbols_left or escapes_left or self._lanes_used != len(self._coders):
            raise Corrupt("symbols, escapes or lanes are left over")
        # decoding past the end yields symbols without an error; a state that did not come home tells
        if not all(coder.is_empty() for coder in self._coders):
            raise Corrupt("a lane does not end in its initial state")


def pack_varints(values: list[int]) -> bytes:
    """Unsigned LEB128, one number after the other; each in 0..2^32-1. Inverse: unpack_varints."""
    out = bytearray()
    for value in values:
        if not 0 <= value < 1 << 32:
            raise ValueError(f"{value} is outside 0..2^32-1")
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def unpack_varints(data: memoryview, count: int) -> tuple[list[int], int]:
    """Read `count` numbers; returns them and the bytes taken. Raises Corrupt unless in shortest form."""
    values: list[int] = []
    at = 0
    for _ in range(count):
        value = 0
        for shift in range(0, 7 * VARINT_BYTES, 7):
            if at >= len(data):
                raise Corrupt("a number runs past the end")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if (byte == 0 and shift) or byte >= 0x80 or value >> 32:
            raise Corrupt("a number is not in its shortest form or above 2^32-1")
        values.append(value)
    return values, at


def _n_chunks(n_symbols: int) -> int:
    return -(-n_symbols // LANE_SYMBOLS)


def _sort_step(
    index: NDArray[np.uint16], tables: TableSet
) -> tuple[NDArray[np.int64], list[tuple[int, int, int, int]]]:
    """The coding order of a step and its runs (lane, table, start, end): one table, inside one chunk."""
    if index.ndim != 1 or index.dtype != np.uint16:
        raise ValueError(f"indices must be uint16 [n], not {index.dtype} {index.shape}")
    order = np.argsort(index, kind="stable")
    ordered = index.take(order)
    if not ordered.size:
        return order, []
    if ordered[-1] >= len(tables):
        raise ValueError(f"table {ordered[-1]} of {len(tables)}")
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = np.union1d(starts, np.arange(0, ordered.size, LANE_SYMBOLS))
    ends = np.append(starts[1:], ordered.size)
    runs = (starts // LANE_SYMBOLS, ordered[starts], starts, ends)
    return order, list(zip(*(column.tolist() for column in runs), strict=True))


def _as_int16(symbol: NDArray[Any]) -> NDArray[np.int16]:
    if symbol.dtype == np.int16:
        return symbol
    if symbol.dtype.kind not in "iu":
        raise ValueError(f"symbols must be integers, not {symbol.dtype}")
    if symbol.size and (symbol.min() < -32768 or symbol.max() > 32767):
        raise ValueError("a symbol lies outside -32768..32767")
    return symbol.astype(np.int16)


@contextmanager
def _coder_faults() -> Iterator[None]:
    """Turn what constriction raises into Corrupt; its panics are no Exception, few handlers catch them."""
    try:
        yield
    except BaseException as fault:
        if isinstance(fault, ValueError) or type(fault).__name__ == "PanicException":
            raise Corrupt(f"the entropy decoder stopped: {fault}") from fault
        raise
