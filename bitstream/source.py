"""Bytes that can be read in ranges: a file in memory, or one on a disk of which only parts are wanted."""

import os
from typing import IO, Protocol

from .errors import Truncated

PIECE = 1 << 20
"""Bytes read at a time: memory is taken for what is there, not for what a length says."""

Buffer = bytes | bytearray | memoryview


class Source(Protocol):
    """The bytes of a file, or of as much of it as there is."""

    @property
    def n_bytes(self) -> int:
        """How many bytes there are."""

    def read(self, start: int, end: int) -> memoryview:
        """Bytes start..end - 1, with 0 <= start <= end. Raises Truncated where there are fewer."""


class MemorySource:
    """Bytes in memory; `read` does not copy them."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)

    @property
    def n_bytes(self) -> int:
        """Length of the bytes."""
        return len(self._data)

    def read(self, start: int, end: int) -> memoryview:
        """A view of bytes start..end - 1. Raises Truncated where there are fewer."""
        if end > len(self._data):
            raise Truncated(end, len(self._data))
        return self._data[start:end]


class FileSource:
    """An open file that can be read at any place; it stays the caller's to close. Not for several threads.

    Raises OSError where the file cannot be read or has no places.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._n_bytes = file.seek(0, os.SEEK_END)

    @property
    def n_bytes(self) -> int:
        """Length of the file when it was handed over."""
        return self._n_bytes

    def read(self, start: int, end: int) -> memoryview:
        """Bytes start..end - 1. Raises Truncated where there are fewer, also if the file shrank since."""
        if end > self._n_bytes:
            raise Truncated(end, self._n_bytes)
        self._file.seek(start)
        data = read_up_to(self._file, end - start)
        if len(data) < end - start:
            raise Truncated(end, start + len(data))
        return memoryview(data)


def as_source(data: Buffer | Source) -> Source:
    """The bytes as a source; a source stays what it is."""
    return MemorySource(data) if isinstance(data, Buffer) else data


def read_up_to(stream: IO[bytes], n_bytes: int) -> bytes:
    """The next n bytes, fewer where the stream ends. Memory is taken for what is there, not for n."""
    pieces = []
    while n_bytes > 0:
        piece = stream.read(min(PIECE, n_bytes))
        if not piece:
            break
        pieces.append(piece)
        n_bytes -= len(piece)
    return b"".join(pieces)
