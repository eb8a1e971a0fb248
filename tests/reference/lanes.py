"""Lanes: entropy-coded symbols (docs/format.md, section 7)."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

import numpy as np

from reference.container import Cursor
from reference.errors import Corrupt
from reference.weights import Array

NOTHING = 1 << 16
"""In place of a table's index: nothing is coded at this position."""
ESCAPE = 255
SYMBOL_MAX = 127

Say = Callable[[str], None]
"""Takes a line of the trace."""


class Coder(Protocol):
    """Where symbols come from."""

    def step(self, tables: Array) -> Array:
        """The symbols of a step, int32 of the shape of `tables` (indices or `NOTHING`, raster order)."""


class Zeros:
    """In place of the lanes of a missing group."""

    def step(self, tables: Array) -> Array:
        """Zeros."""
        return np.zeros(tables.shape, np.int32)


class Lane:
    """One lane: a stack of words, its escapes, its state."""

    def __init__(self, words: list[int], escapes: list[int]):
        if words and words[-1] == 0:
            raise Corrupt("a lane ends with a zero word")
        self.words, self.escapes, self.next_escape = words, escapes, 0
        self.state = words.pop() if words else 0
        if words:
            self.state = self.state << 32 | words.pop()

    def decode(self, starts: list[list[int]], tables: list[int]) -> list[int]:
        """The next symbols, one under each table."""
        state, words, out = self.state, self.words, []
        for table in tables:
            start = starts[table]
            q = state & 0xFFFFFF
            letter = bisect_right(start, q) - 1
            state = (state >> 24) * (start[letter + 1] - start[letter]) + q - start[letter]
            if state < 1 << 32 and words:
                state = state << 32 | words.pop()
            if letter == ESCAPE:
                if self.next_escape == len(self.escapes):
                    raise Corrupt("a lane has too few escapes")
                out.append(self.escapes[self.next_escape])
                self.next_escape += 1
            else:
                out.append(letter - SYMBOL_MAX)
        self.state = state
        return out

    @property
    def used_up(self) -> bool:
        """Whether nothing is left."""
        return not self.state and not self.words and self.next_escape == len(self.escapes)


class Lanes:
    """The lanes of a payload. Raises Corrupt."""

    def __init__(self, starts: list[list[int]], payload: bytes, max_symbols: int, say: Say):
        cursor = Cursor(payload)
        self.chunk_bits = cursor.u8()
        if not 8 <= self.chunk_bits <= 20:
            raise Corrupt(f"chunks of 2^{self.chunk_bits} symbols")
        self.symbols_left, n_lanes, n_escapes = (cursor.varint() for _ in range(3))
        if self.symbols_left > max_symbols or n_escapes > self.symbols_left:
            raise Corrupt("more symbols or escapes than there can be")
        if n_lanes > self._chunks(self.symbols_left) or (self.symbols_left and not n_lanes):
            raise Corrupt("the number of lanes")
        escapes = [cursor.varint() for _ in range(n_lanes)] if n_escapes else [0] * n_lanes
        words = [cursor.varint() for _ in range(n_lanes)]
        if sum(escapes) != n_escapes:
            raise Corrupt("the escapes of the lanes do not add up")
        values = [np.frombuffer(cursor.take(2 * n), "<i2").tolist() for n in escapes]
        stacks = [np.frombuffer(cursor.take(4 * n), "<u4").tolist() for n in words]
        if cursor.rest():
            raise Corrupt("bytes after the last word")
        if any(abs(value) <= SYMBOL_MAX for lane in values for value in lane):
            raise Corrupt("an escape that needs none")
        self.starts, self.say, self.lanes_used = starts, say, 0
        self.lanes = [Lane(stack, lane) for stack, lane in zip(stacks, values, strict=True)]
        say(f"  chunks of 2^{self.chunk_bits}, {self.symbols_left} symbols, {n_lanes} lanes")
        say(f"  states {' '.join(hex(lane.state) for lane in self.lanes[:4])}")

    def _chunks(self, symbols: int) -> int:
        return -(-symbols >> self.chunk_bits)

    def step(self, tables: Array) -> Array:
        """The symbols of a step, int32 of the shape of `tables`."""
        flat = tables.reshape(-1)
        order = np.argsort(flat, kind="stable")
        order = order[: np.count_nonzero(flat != NOTHING)]  # what is not coded sorts to the end
        self.symbols_left -= order.size
        self.lanes_used = max(self.lanes_used, self._chunks(order.size))
        if self.symbols_left < 0 or self.lanes_used > len(self.lanes):
            raise Corrupt("a step needs more symbols or lanes than there are")
        out = np.zeros(flat.size, np.int32)
        for j in range(self._chunks(order.size)):
            part = order[j << self.chunk_bits : (j + 1) << self.chunk_bits]
            out[part] = self.lanes[j].decode(self.starts, flat[part].tolist())
        if order.size:
            self.say(f"      in coding order: tables {brief(flat[order])}; symbols {brief(out[order])}")
            self.say(f"      states {' '.join(hex(lane.state) for lane in self.lanes[:4])}")
        return out.reshape(tables.shape)

    def finish(self) -> None:
        """Raises Corrupt unless all is used."""
        if self.symbols_left or self.lanes_used != len(self.lanes):
            raise Corrupt("symbols or lanes are left over")
        if not all(lane.used_up for lane in self.lanes):
            raise Corrupt("a lane does not end in state 0")


def brief(values: Array, n: int = 12) -> str:
    """The first values of an array, for the trace."""
    flat = np.asarray(values).reshape(-1)
    return " ".join(map(str, flat[:n].tolist())) + (" …" if flat.size > n else "")
