"""The weights file, its hashes and the frequency tables (docs/format.md, section 6)."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "U16": "<u2", "F32": "<f4"}
ENCODER_ONLY = "analysis."

Array = NDArray[Any]


class Weights:
    """The tensors of a weights file by name, and what the coder needs of the tables.

    starts: for each table the 256 numbers start[t][a] and 2^24, as lists, for bisection.
    """

    def __init__(self, data: bytes):
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        self.tensors: dict[str, Array] = {}
        for name, entry in entries.items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                flat = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
                self.tensors[name] = flat.reshape(entry["shape"])
        self.model_hash = self._hash_tensors()
        frequencies = self.tensors["tables"].astype("<u4")
        self.tables_hash = hashlib.sha256(frequencies.tobytes()).digest()[:8]
        starts = np.zeros((len(frequencies), 257), np.int64)
        np.cumsum(frequencies, axis=1, out=starts[:, 1:])
        self.starts: list[list[int]] = starts.tolist()

    def _hash_tensors(self) -> bytes:
        digest = hashlib.sha256()
        for name in sorted(self.tensors, key=str.encode):
            if name != "tables" and not name.startswith(ENCODER_ONLY):
                tensor = self.tensors[name]
                digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
                digest.update(tensor.tobytes())
        return digest.digest()[:8]

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]

    def integers(self, name: str) -> Array:
        """A tensor as int32."""
        return self.tensors[name].astype(np.int32)

    def number(self, name: str) -> int:
        """A tensor of one element."""
        return int(self.tensors[name][0])
