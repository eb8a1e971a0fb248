"""One traversal serves encoder, decoder and measurement.

The levels call `code` once a step, for a batch of N groups that go through the same steps. The coder writes,
reads or counts, and the levels go on with what it returns. Here are the coders of the host, and those that
take tensors anywhere; `tensor_coder` has the twins of Writer and Reader for models on a device.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.ans import LaneDecoder, LaneEncoder
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import ALPHABET, ESCAPE, NO_TABLE, SYMBOL_MAX, TOTAL_BITS, TableSet

ESCAPE_BITS = 16
"""What an escape costs beside its symbol."""


class Coder(Protocol):
    """What a level needs of an entropy coder: one step of symbols under tables, for N groups."""

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Code one step.

        index: int16 [N, n], the table of each position of each group, or NO_TABLE where nothing is coded.
        symbols: int16 [N, n]; a decoder ignores them and may be given None. Returns int16 [N, n], 0 where
        nothing is coded.
        """


class Decoder(Coder, Protocol):
    """A coder that reads."""

    def verdict(self) -> Tensor:
        """Bool [N], where the symbols are: whether all symbols, escapes and lanes of a group are used to the
        last bit."""

    def finish(self) -> None:
        """Raises Corrupt unless `verdict` is true for all groups. Waits for the device."""


def finish_all(readers: Sequence[Decoder]) -> None:
    """Raises Corrupt unless `verdict` is true for all groups of all readers of one device.

    Waits for the device, once.
    """
    if not readers:
        return
    sound = torch.cat([reader.verdict() for reader in readers]).tolist()
    bad = [i for i, good in enumerate(sound) if not good]
    if bad:
        raise Corrupt(f"the lanes of groups {bad} of a batch are not used to the last bit")


class Writer:
    """Encodes each group into a lane payload of its own.

    worker: sorts a step while the next one is predicted, in the order of the steps; the tensors given must
    stay as they are until `finish`. They are on the host.
    """

    def __init__(self, tables: TableSet, n_groups: int, worker: ThreadPoolExecutor | None = None):
        self._groups = [LaneEncoder(tables) for _ in range(n_groups)]
        self._worker = worker
        self._steps: list[Future[None]] = []

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Append a step."""
        assert symbols is not None
        if self._worker is None:
            self._put(index.numpy(), symbols.numpy())
        else:
            self._steps.append(self._worker.submit(self._put, index.numpy(), symbols.numpy()))
        return only_coded(index, symbols)

    def _put(self, index: NDArray[np.int16], symbols: NDArray[np.int16]) -> None:
        for lanes, row, values in zip(self._groups, index, symbols, strict=True):
            lanes.put(row, values)

    def finish(self) -> list[bytes]:
        """The lane payload of each group. Raises ValueError for steps of another shape, type or range."""
        for step in self._steps:
            step.result()
        return [lanes.finish() for lanes in self._groups]


class Reader:
    """Decodes each group from its lane payload.

    max_symbols: the most that a group can have, over all steps. Raises Corrupt for a payload of another
    layout.
    """

    def __init__(self, tables: TableSet, payloads: Sequence[bytes | memoryview], max_symbols: int):
        self._groups = [LaneDecoder(tables, payload, max_symbols) for payload in payloads]

    def code(self, index: Tensor, symbols: Tensor | None = None) -> Tensor:
        """Take a step. Raises Corrupt where the lanes end too soon."""
        out = torch.empty(index.shape, dtype=torch.int16)
        for lanes, row, values in zip(self._groups, index.numpy(), out.numpy(), strict=True):
            values[:] = lanes.get(row)
        return out

    def verdict(self) -> Tensor:
        """Bool [N]: whether all symbols, escapes and lanes of a group are used to the last bit."""
        return torch.tensor([lanes.is_finished() for lanes in self._groups])

    def finish(self) -> None:
        """Raises Corrupt unless `verdict` is true for all groups."""
        for lanes in self._groups:
            lanes.finish()


class Counter:
    """Counts how often each symbol meets each table, to refit tables and to estimate sizes.

    counts: int64 [T, 256].
    """

    def __init__(self, n_tables: int):
        self.counts = np.zeros((n_tables, ALPHABET), np.int64)

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Count a step."""
        assert symbols is not None
        coded = index != NO_TABLE
        letter = symbols[coded].long() + SYMBOL_MAX
        letter[(letter < 0) | (letter >= ESCAPE)] = ESCAPE
        key = index[coded].long() * ALPHABET + letter
        counts = torch.bincount(key, minlength=self.counts.size)
        self.counts += counts.cpu().numpy().reshape(self.counts.shape)
        return only_coded(index, symbols)

    def bits(self, frequencies: NDArray[np.uint32]) -> float:
        """Ideal code length of all that was counted, in bits.

        Under tables of total 2^24, escapes with their raw bits.
        """
        cost = TOTAL_BITS - np.log2(frequencies.astype(np.float64))
        return float((self.counts * cost).sum() + ESCAPE_BITS * self.counts[:, ESCAPE].sum())


class Means:
    """Stands in for a decoder where groups are missing: every residual is zero."""

    def code(self, index: Tensor, symbols: Tensor | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros_like(index)


class Discard:
    """Keeps nothing: the encoder's traversal without its output."""

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """The symbols."""
        assert symbols is not None
        return only_coded(index, symbols)


class PseudoRandom:
    """Symbols from a fixed function in place of a file, to pin what the decoder makes of them.

    Every group gets the same ones, so that the number of groups in a batch makes no difference.
    """

    def __init__(self) -> None:
        self._step = 0

    def code(self, index: Tensor, symbols: Tensor | None = None) -> Tensor:
        """Residuals of -3..3, by step and position; 1 for a lone position, the flag of a tuned phase."""
        self._step += 1
        n = index.shape[1]
        if n == 1:
            values = torch.ones(1, dtype=torch.int64, device=index.device)
        else:
            values = torch.arange(n, device=index.device) + (self._step << 24)
            for _ in range(2):
                values = ((values >> 16) ^ values) * 0x45D9F3B & 0xFFFFFFFF
            values = (values >> 8) % 7 - 3
        return only_coded(index, values.to(torch.int16).expand(index.shape))


def only_coded(index: Tensor, symbols: Tensor) -> Tensor:
    """The symbols, 0 where nothing is coded: what a decoder would have."""
    return symbols.masked_fill(index == NO_TABLE, 0)
