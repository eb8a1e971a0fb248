"""A file that arrives piece by piece, as viewers get it from a network."""

from typing import TYPE_CHECKING

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, FIXED_BYTES, Header, Limits
from vbc.bitstream.errors import Corrupt, FormatError, Truncated
from vbc.bitstream.source import MemorySource
from vbc.codec import api

if TYPE_CHECKING:
    from vbc.codec.api import DecodedPicture, Device, Weights
    from vbc.codec.flow.decode_state import DecodeState


class IncrementalReader:
    """Takes the bytes of a file in pieces of any size and decodes the best picture there is so far.

    Every packet is decoded once, so that showing the picture of each level as it arrives costs less than
    twice one decode of the whole file. The outcome depends on the bytes alone, not on how they were cut. Once
    `feed` has raised, it raises the same error for every further piece; what was complete before can still be
    decoded. Not for use by several threads at once.
    """

    def __init__(
        self, *, limits: Limits = DEFAULT_LIMITS, model: "Weights" = None, device: "Device" = "cpu"
    ) -> None:
        """limits, model, device: as `api.decode`; raises as `api.check_device`."""
        api.check_device(device)
        self.header: Header | None = None
        """None until header and index are complete."""
        self.levels: tuple[int, ...] = ()
        """Levels that are complete and match their checksums."""
        self.n_packets = 0
        """Packets that are complete and match their checksums."""
        self._limits = limits
        self._model = model
        self._device = device
        self._data = bytearray()
        self._error: FormatError | None = None
        self._state: DecodeState | None = None
        self._n_decoded = 0
        self._shown: dict[bool, DecodedPicture] = {}

    def feed(self, data: bytes | bytearray | memoryview) -> tuple[int, ...]:
        """Take the next bytes; returns the levels that they complete.

        Raises a FormatError (but never Truncated) as soon as the bytes cannot be those of a valid file: where
        the header is bad or above the limits, where a packet differs from its checksum, where bytes follow
        the last packet.
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
        header, before = self.header, self.levels
        try:
            with memoryview(self._data)[: header.file_bytes] as there:
                while self.n_packets < len(header.packets) and header.ends[self.n_packets] <= len(there):
                    container.read_packet(there, header, self.n_packets).release()
                    self.n_packets += 1
                    self._shown.clear()
        finally:
            good = [i < self.n_packets for i in range(len(header.packets))]
            self.levels = container.complete_levels(header, good)
        if len(self._data) > header.file_bytes:
            raise Corrupt(f"{len(self._data) - header.file_bytes} bytes after the last packet")
        return tuple(level for level in self.levels if level not in before)

    @property
    def complete(self) -> bool:
        """Whether the whole file is there."""
        return self.header is not None and len(self._data) == self.header.file_bytes

    def picture(self, *, native: bool = False) -> "DecodedPicture":
        """The best picture of the packets that are there, as `decode_picture` gives it; kept until one is
        added.

        native: at the size of the last lossy level. Raises Truncated where no group of a level is there.
        """
        if native not in self._shown:
            header = self.header or container.unpack_header(self._header_bytes(), self._limits)
            state = self._decode_arrived(header)
            from vbc.codec import pipeline
            from vbc.codec.flow.decode_plan import make_plan

            source = MemorySource(memoryview(self._data)[: header.ends[self.n_packets - 1]])
            plan = make_plan(header, None, None)
            decoded = pipeline.finish(state, plan, source, native=native, allow_partial=True)
            picture = api.picture_of(decoded, api.read_metadata(source, header))
            self._shown[native] = api.DecodedPicture(picture, decoded.levels, decoded.exact)
        return self._shown[native]

    def _decode_arrived(self, header: Header) -> "DecodeState":
        """Decode the packets that have arrived since the last time. Raises Truncated where none belongs to a
        level."""
        arrived = range(self._n_decoded, self.n_packets)
        if self._state is None:
            if not any(header.packets[i].level and header.packets[i].part for i in arrived):
                groups = (i for i, packet in enumerate(header.packets) if packet.level and packet.part)
                need = min((header.ends[i] for i in groups), default=header.file_bytes)
                raise Truncated(need, len(self._data), ())
            from vbc.codec.flow.decode_state import DecodeState

            self._state = DecodeState(api.load(self._model, self._device, header), header)
        with memoryview(self._data) as data:
            for level, parts in runs(header, arrived):
                shared = header.find(level)
                packets = {part - 1: data[slice(*header.span(i))] for part, i in parts.items() if part}
                together = None if shared is None else data[slice(*header.span(shared))]
                self._state = self._state.advance(level, packets, together)
        self._n_decoded = self.n_packets
        return self._state

    def finish(self) -> None:
        """Raises Truncated, with the complete levels, unless the whole file is there."""
        if self._error is not None:
            raise self._error
        header = container.unpack_header(self._header_bytes(), self._limits)
        if len(self._data) < header.file_bytes:
            raise Truncated(header.file_bytes, len(self._data), self.levels)

    def _header_bytes(self) -> bytes:
        """What is there of the header alone: bytes after the last packet are no fault of the header."""
        start = bytes(self._data[:FIXED_BYTES])
        if len(start) < FIXED_BYTES:
            return start
        return bytes(self._data[: container.header_end(start, self._limits)])


def runs(header: Header, places: range) -> list[tuple[int, dict[int, int]]]:
    """Packets of one level that follow each other: the level, and part -> place. Others are left out."""
    found: list[tuple[int, dict[int, int]]] = []
    for i in places:
        packet = header.packets[i]
        if not packet.level:
            continue
        if not found or found[-1][0] != packet.level:
            found.append((packet.level, {}))
        found[-1][1][packet.part] = i
    return found
