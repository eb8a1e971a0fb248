"""Entropy coding on tensors that stay where the networks run: the coders of the device path.

Twins of the coders in `coder`, for a model that was placed on a device (`model.Model.to`). Here the number of
symbols of a step need not be known to the host: positions that are not coded are marked in the index. So
a level is decoded without waiting for the device once; what was wrong with it is found out at its end.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream.ans import LANE_SYMBOLS, LaneEncoder, unpack_lanes
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import ESCAPE, MAX_TABLES, SYMBOL_MAX, TableSet
from vbc.kernels.rans import cumulative_tables, decode_step, open_lanes

NO_TABLE = MAX_TABLES
"""Marks a position of a step that is not coded."""


class TensorCoder(ABC):
    """What a level needs of an entropy coder on a device: one step of symbols under tables."""

    @abstractmethod
    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Code one step.

        index: int16 [n], the table of each position, or `NO_TABLE` where none is coded. symbols: int16 [n] in
        an encoder. Returns int16 [n], 0 where none is coded.
        """


class TensorWriter(TensorCoder):
    """Encodes into lanes. Steps are gathered on the device; constriction gets them at the end."""

    def __init__(self, tables: TableSet):
        self._lanes = LaneEncoder(tables)
        self._steps: list[tuple[Tensor, Tensor]] = []

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Append a step."""
        assert symbols is not None
        self._steps.append((index, symbols))
        return symbols

    def finish(self) -> bytes:
        """The lanes' bytes. Waits for the device."""
        for index, symbols in self._steps:
            tables, values = index.cpu().numpy(), symbols.cpu().numpy()
            coded = tables < NO_TABLE
            self._lanes.put(tables[coded].astype(np.uint16), values[coded])
        return self._lanes.finish()


class TensorReader(TensorCoder):
    """Decodes from lanes where the tables are; the symbols given are ignored.

    cumulative: int32 [T, 257], as `device_tables`. Raises Corrupt for a payload of another layout.
    """

    def __init__(self, cumulative: Tensor, payload: bytes | memoryview):
        parts = unpack_lanes(payload)
        device = cumulative.device
        self._cumulative = cumulative
        words = torch.from_numpy(parts.words.view(np.int32))
        self._lanes = open_lanes(words, torch.tensor(parts.n_words, dtype=torch.int64)).to(device)
        self._expected = (parts.n_symbols, parts.escapes.size, len(parts.n_words))
        # one more, so that there is something to look at behind the last
        self._escapes = torch.from_numpy(np.append(parts.escapes, np.int16(0))).to(device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self._symbols_used, self._escapes_used, self._lanes_used = zero, zero, zero

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Take a step. A damaged payload gives wrong symbols here and an error in `finish`."""
        ordered, order = torch.sort(index, stable=True)
        count = (index < self._cumulative.shape[0]).sum()
        self._symbols_used = self._symbols_used + count
        n_chunks = (count + (LANE_SYMBOLS - 1)) >> (LANE_SYMBOLS.bit_length() - 1)
        self._lanes_used = torch.maximum(self._lanes_used, n_chunks)
        letters = decode_step(self._lanes, ordered, count, self._cumulative, LANE_SYMBOLS)
        values = torch.where(letters < 0, 0, letters - SYMBOL_MAX)
        escaped = letters == ESCAPE
        if self._escapes.numel() > 1:
            place = (escaped.cumsum(0) + (self._escapes_used - 1)).clamp_(0, self._escapes.numel() - 1)
            values = torch.where(escaped, self._escapes[place], values)
        self._escapes_used = self._escapes_used + escaped.sum()
        return torch.empty_like(values).scatter_(0, order, values)

    def finish(self) -> None:
        """Raises Corrupt unless all symbols, escapes and lanes are used to the last bit.

        Waits for the device.
        """
        unfinished = (~self._lanes.finished()).sum()
        used = (self._symbols_used, self._escapes_used, self._lanes_used, unfinished)
        *counts, n_unfinished = torch.stack(used).tolist()
        if tuple(counts) != self._expected:
            raise Corrupt(f"{counts} symbols, escapes and lanes are used of {list(self._expected)}")
        if n_unfinished:
            raise Corrupt(f"{n_unfinished} lanes do not end in their initial state")


class TensorMeans(TensorCoder):
    """Stands in for a decoder where a level is missing: every residual is zero."""

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Zeros."""
        return torch.zeros_like(index)


def device_tables(tables: TableSet, device: torch.device) -> Tensor:
    """Cumulative frequencies int32 [T, 257] for `TensorReader`."""
    return cumulative_tables(torch.from_numpy(tables.frequencies.astype(np.int64))).to(device)


assert LANE_SYMBOLS & (LANE_SYMBOLS - 1) == 0, "chunks are counted with a shift"
