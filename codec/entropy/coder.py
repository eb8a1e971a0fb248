"""One traversal serves encoder, decoder and measurement.

The levels call `code`, and the coder writes, reads or counts. `index` is a uint16 array of table indices,
`symbols` an int array of the same size, or None in a decoder. `code` returns the symbols.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vbc.bitstream.ans import LaneDecoder, LaneEncoder
from vbc.bitstream.tables import ESCAPE, MAX_TABLES, SYMBOL_MAX, TableSet

Index = NDArray[np.uint16]
Symbols = NDArray[np.int16]
ESCAPE_BITS = 16
NO_TABLE = MAX_TABLES
"""Marks a position of a step that is not coded."""


class Coder(Protocol):
    """What a level needs of an entropy coder: one step of symbols under tables."""

    def code(self, index: Index, symbols: Symbols | None) -> Symbols:
        """Code one step. Both arrays are flat and of one size."""


class Writer:
    """Encodes into lanes, on a thread of its own: sorting one step goes on while the next is predicted."""

    def __init__(self, tables: TableSet):
        self._lanes = LaneEncoder(tables)
        self._worker = ThreadPoolExecutor(1)
        self._steps: list[Future[None]] = []

    def code(self, index: Index, symbols: Symbols | None) -> Symbols:
        """Append a step."""
        assert symbols is not None
        self._steps.append(self._worker.submit(self._lanes.put, index, symbols))
        return symbols

    def finish(self) -> bytes:
        """The lanes' bytes."""
        with self._worker:
            for step in self._steps:
                step.result()
        return self._lanes.finish()


class Reader:
    """Decodes from lanes; the symbols given are ignored."""

    def __init__(self, tables: TableSet, payload: bytes | memoryview):
        self._lanes = LaneDecoder(tables, payload)

    def code(self, index: Index, symbols: Symbols | None) -> Symbols:
        """Take a step. Raises Corrupt where the lanes end too soon."""
        return self._lanes.get(index)

    def finish(self) -> None:
        """Raises Corrupt unless every lane is used up."""
        self._lanes.finish()


class Counter:
    """Counts how often each symbol meets each table, to refit tables and to estimate sizes."""

    def __init__(self, n_tables: int):
        self.counts = np.zeros((n_tables, 256), np.int64)

    def code(self, index: Index, symbols: Symbols | None) -> Symbols:
        """Count a step."""
        assert symbols is not None
        letter = symbols.astype(np.int64) + SYMBOL_MAX
        letter[(letter < 0) | (letter >= ESCAPE)] = ESCAPE
        key = index.astype(np.int64) * 256 + letter
        self.counts += np.bincount(key, minlength=self.counts.size).reshape(self.counts.shape)
        return symbols

    def bits(self, frequencies: NDArray[np.uint32]) -> float:
        """Ideal code length of all that was counted, in bits.

        Under tables of total 2^16, escapes with their raw bits.
        """
        cost = 16 - np.log2(frequencies.astype(np.float64))
        return float((self.counts * cost).sum() + ESCAPE_BITS * self.counts[:, ESCAPE].sum())
