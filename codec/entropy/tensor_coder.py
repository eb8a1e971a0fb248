"""Entropy coding on tensors that stay where the networks run: the coders of the device path.

Twins of Writer and Reader in `coder`, for a model that was placed on a device (`model.Model.to`). A batch of
groups is decoded with one launch a step and without waiting for the device; what was wrong with it is found
out at its end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream.ans import LaneEncoder, LanePayload, unpack_lanes
from vbc.bitstream.tables import TableSet
from vbc.codec.entropy.coder import finish_all, only_coded
from vbc.kernels.rans import Lanes, cumulative_tables, decode_step, open_lanes


class TensorWriter:
    """Encodes each group into a lane payload of its own.

    Steps are gathered on the device, and the tensors given must stay as they are; constriction gets them at
    the end.
    """

    def __init__(self, tables: TableSet, n_groups: int):
        self._groups = [LaneEncoder(tables) for _ in range(n_groups)]
        self._steps: list[tuple[Tensor, Tensor]] = []

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Append a step."""
        assert symbols is not None
        self._steps.append((index, symbols))
        return only_coded(index, symbols)

    def finish(self) -> list[bytes]:
        """The lane payload of each group. Waits for the device."""
        if self._steps:
            sizes = [index.shape[1] for index, _ in self._steps]
            index, symbols = (
                torch.split(torch.cat(part, 1).cpu(), sizes, 1) for part in zip(*self._steps, strict=True)
            )
            for tables, values in zip(index, symbols, strict=True):
                for lanes, row, given in zip(self._groups, tables.numpy(), values.numpy(), strict=True):
                    lanes.put(row, given)
        return [lanes.finish() for lanes in self._groups]


class TensorReader:
    """Decodes each group from its lane payload, where the tables are.

    cumulative: int32 [T, 257], as `device_tables`. max_symbols: the most that a group can have, over all
    steps. Raises Corrupt for a payload of another layout.
    """

    def __init__(self, cumulative: Tensor, payloads: Sequence[bytes | memoryview], max_symbols: int):
        parts = [unpack_lanes(payload, max_symbols) for payload in payloads]
        self._cumulative = cumulative
        self._lanes = _open(parts).to(cumulative.device)
        n_symbols = [part.n_symbols for part in parts]
        self._expected = torch.tensor(n_symbols, dtype=torch.int64).to(cumulative.device)
        self._asked = torch.zeros_like(self._expected)

    def code(self, index: Tensor, symbols: Tensor | None = None) -> Tensor:
        """Take a step. A damaged payload gives wrong symbols here; `verdict` and `finish` tell."""
        tables, order = torch.sort(index, dim=1, stable=True)
        # nothing is coded behind the largest table: NO_TABLE is above all
        count = (index < self._cumulative.shape[0]).sum(1)
        self._asked += count
        return decode_step(self._lanes, tables, order, count, self._cumulative)

    def verdict(self) -> Tensor:
        """Bool [N] on the device: whether all symbols, escapes and lanes of a group are used to the last bit.

        Does not wait for the device: `finish_all` waits once for many readers.
        """
        by_lane = torch.stack((self._lanes.decoded, (~self._lanes.finished()).long()))
        by_group = self._asked.new_zeros(2, self._asked.numel())
        by_group.index_add_(1, self._lanes.group, by_lane)
        sound = (by_group[1] == 0) & (by_group[0] == self._expected)
        return sound & (self._asked == self._expected)

    def finish(self) -> None:
        """Raises Corrupt unless `verdict` is true for all groups. Waits for the device."""
        finish_all([self])


def device_tables(tables: TableSet, device: torch.device) -> Tensor:
    """Cumulative frequencies int32 [T, 257] for `TensorReader`."""
    return cumulative_tables(torch.from_numpy(tables.frequencies.astype(np.int64))).to(device)


def _open(parts: Sequence[LanePayload]) -> Lanes:
    """The lanes of all groups, on the host."""

    def joined(arrays: list[np.ndarray], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.concatenate([np.empty(0, dtype), *arrays]))

    return open_lanes(
        joined([part.words.view(np.int32) for part in parts], np.int32),
        joined([part.n_words for part in parts], np.int64),
        joined([part.escapes for part in parts], np.int16),
        joined([part.n_escapes for part in parts], np.int64),
        torch.tensor([part.n_words.size for part in parts], dtype=torch.int64),
        torch.tensor([part.lane_bits for part in parts], dtype=torch.int64),
    )
