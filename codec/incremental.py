"""A file that arrives piece by piece, as viewers get it from a network."""

from typing import TYPE_CHECKING

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, Chunk, Header, Limits
from vbc.bitstream.errors import Corrupt, FormatError, Truncated
from vbc.codec import api

if TYPE_CHECKING:
    from vbc.codec.api import DecodedPicture, Weights


class IncrementalReader:
    """Takes the bytes of a file in pieces of any size and decodes the best picture there is so far.

    The outcome depends on the bytes alone, not on how they were cut. Once `feed` has raised, it raises the
    same error for every further piece; what was complete before can still be decoded. Not for use by several
    threads at once.
    """

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS, model: "Weights" = None) -> None:
        self.header: Header | None = None
        """None until the header is complete."""
        self.levels: tuple[int, ...] = ()
        """Levels that are complete and match their checksums."""
        self._limits = limits
        self._model = model
        self._data = bytearray()
        self._checked: list[Chunk] = []
        self._error: FormatError | None = None
        self._decoded: dict[bool, DecodedPicture] = {}

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[int, ...]:
        """Take the next bytes; returns the levels that they complete.

        Raises a FormatError (but never Truncated) as soon as the bytes cannot be those of a valid file: where
        the header is bad or above the limits, where a chunk differs from its checksum, where bytes follow
        the last chunk.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._take(data)
        except FormatError as e:
            self._error = e
            raise

    def _take(self, data: bytes | bytearray | memoryview) -> tuple[int, ...]:
        self._data += data
        if self.header is None:
            try:
                self.header = container.unpack_header(self._header_bytes(), self._limits)
            except Truncated:
                return ()
        header = self.header
        there = memoryview(self._data)[: header.file_bytes]
        new: tuple[int, ...] = ()
        try:
            for i in range(len(self._checked), len(header.chunks)):
                if header.chunk_ends[i] > len(there):
                    break
                container.read_chunk(there, header, i).release()
                self._checked.append(header.chunks[i])
                self._decoded.clear()
                if header.chunks[i].kind == container.LEVEL:
                    new = (*new, header.chunks[i].number)
        finally:
            self.levels += new
        if len(self._data) > header.file_bytes:
            raise Corrupt(f"{len(self._data) - header.file_bytes} bytes after the last chunk")
        return new

    @property
    def complete(self) -> bool:
        """Whether the whole file is there."""
        return self.header is not None and len(self._data) == self.header.file_bytes

    def picture(self, *, native: bool = False) -> "DecodedPicture":
        """The best picture of the complete levels, as `decode_picture` gives it; kept until a chunk is added.

        native: at the size of the last lossy level. Raises Truncated where no level is complete.
        """
        if not self.levels or native not in self._decoded:
            self._decoded[native] = api.decode_picture(
                self._sound(), native=native, allow_partial=True, limits=self._limits, model=self._model
            )
        return self._decoded[native]

    def finish(self) -> None:
        """Raises Truncated, with the complete levels, unless the whole file is there."""
        if self._error is not None:
            raise self._error
        header = container.unpack_header(self._header_bytes(), self._limits)
        if len(self._data) < header.file_bytes:
            raise Truncated(header.file_bytes, len(self._data), self.levels)

    def _header_bytes(self) -> bytes:
        """What is there of the header alone: bytes after the last chunk are no fault of the header."""
        start = bytes(self._data[: container.PREFIX.size])
        if len(start) < container.PREFIX.size:
            return start
        announced = container.PREFIX.unpack(start)[3]
        return bytes(self._data[: max(container.PREFIX.size, min(announced, container.MAX_HEADER))])

    def _sound(self) -> bytes:
        """The header and the chunks that have passed their checks; what there is where no header is."""
        if self.header is None:
            return bytes(self._data)
        return bytes(self._data[: self.header.header_bytes + sum(chunk.length for chunk in self._checked)])
