"""Header, index and packets (docs/format.md, sections 2, 3 and 5)."""

import struct
import zlib
from dataclasses import dataclass

from reference.errors import Corrupt, LimitExceeded, NotVbc, Truncated, UnsupportedVersion
from reference.geometry import (
    BIN_LEVELS,
    FIRST_EXACT,
    LOSSY_LEVELS,
    REFINED_LEVELS,
    VALUE_LEVELS,
    Geometry,
    order,
    stage,
)

MAGIC = b"\x89VBC\r\n\x1a\n"
MAJOR = 2
HEADER = struct.Struct("<8sBBHIIBBBB8s8sI")
HEADER_BYTES = HEADER.size + 4
LOSSLESS, ARCHIVAL = 1, 2
BOUND_SHIFT, MAX_BOUND = 8, 8
"""Bits 8 to 11 of the flags are the bound."""
VALUES_BOUND = 2
"""The only bound whose bins values can follow."""
LEVEL_UNITS = (*range(1, 64), *BIN_LEVELS)
ICC, ALPHA, EXIF, XMP, LOW, PIXEL_HASH = range(65, 71)
FIRST_ANCILLARY = 128
MAX_SIDE, MAX_PIXELS = 65_535, 178_956_970
MAX_ICC, MAX_METADATA = 1 << 20, 16 << 20
MAX_LENGTH = (1 << 62) - 1


@dataclass(frozen=True)
class Packet:
    """An entry of the index; part is 0 for a unit that is no level, offset counts from the file's start."""

    unit: int
    part: int
    offset: int
    length: int
    crc: int


@dataclass(frozen=True)
class Header:
    """The fields of a file's header."""

    flags: int
    width: int
    height: int
    channels: int
    bit_depth: int
    colour: int
    quality: int
    model_hash: bytes
    tables_hash: bytes

    @property
    def archival(self) -> bool:
        """Whether the file has no lossy levels."""
        return bool(self.flags & ARCHIVAL)

    @property
    def bound(self) -> int:
        """How far a sample of the bins can be from the picture; 0 without bins."""
        return self.flags >> BOUND_SHIFT & 15


class Cursor:
    """Reads fields of bytes that are there; Corrupt beyond their end."""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if n > len(self.data) - self.at:
            raise Corrupt("a field runs past the end")
        self.at += n
        return self.data[self.at - n : self.at]

    def u8(self) -> int:
        """A byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Four bytes."""
        return int.from_bytes(self.take(4), "little")

    def varint(self, limit: int = (1 << 32) - 1) -> int:
        """A varint in its shortest form, at most `limit`."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= 70:
                raise Corrupt("a number of more than ten bytes")
        if value > limit or (byte == 0 and shift > 7):
            raise Corrupt("a number is too large or not in its shortest form")
        return value

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.data) - self.at)


class File:
    """A checked header and index of the bytes of a file, or of a prefix of one."""

    def __init__(self, data: bytes):
        self.data = data
        self.header, index_bytes = read_header(data)
        self.geometry = Geometry(self.header.height, self.header.width, self.header.bound > 0)
        if index_bytes > 1024 + 32 * self.geometry.n_parts():
            raise LimitExceeded(f"an index of {index_bytes} bytes")
        end = HEADER_BYTES + index_bytes
        if len(data) < end + 4:
            raise Truncated(f"{end + 4} bytes needed for the index, {len(data)} there")
        if int.from_bytes(data[end : end + 4], "little") != zlib.crc32(data[HEADER_BYTES:end]):
            raise Corrupt("the index's checksum")
        self.packets = read_index(data[HEADER_BYTES:end], end + 4)
        units = {p.unit for p in self.packets}
        self.geometry.refinements = max(stage(n)[0] for n in (3, *units.intersection(REFINED_LEVELS)))
        check_index(self.packets, self.header, self.geometry)
        self.end = end + 4 + sum(p.length for p in self.packets)
        if len(data) > self.end:
            raise Corrupt("bytes after the last payload")
        self.level_packets = {(p.unit, p.part): p for p in self.packets if p.unit in LEVEL_UNITS}
        self.levels = sorted({level for level, _ in self.level_packets}, key=order)
        self.final_quality = min(self.header.quality + 25 * self.geometry.refinements, 100)
        """What exact levels are told."""

    def payload(self, packet: Packet) -> bytes:
        """The checked payload of a packet. Raises Truncated, Corrupt."""
        end = packet.offset + packet.length
        if len(self.data) < end:
            raise Truncated(f"{end} bytes needed for {packet}, {len(self.data)} there")
        payload = self.data[packet.offset : end]
        if zlib.crc32(payload) != packet.crc:
            raise Corrupt(f"the checksum of {packet}")
        return payload

    def single(self, unit: int) -> Packet | None:
        """The packet of a unit that is no level."""
        return next((p for p in self.packets if p.unit == unit), None)

    def needs(self, level: int, part: int) -> list[tuple[int, int]]:
        """(level, part) of all that a packet of a level needs at first hand."""
        needs = self.geometry.needs(level, part, self.header.archival)
        return needs + ([(level, 0)] if part and (level, 0) in self.level_packets else [])

    def usable(self, levels: list[int], partial: bool) -> dict[tuple[int, int], bytes]:
        """Payloads of the usable packets of these levels, by (level, part).

        partial: leave out what is cut off or damaged; otherwise, and where no group is left, that raises
        Truncated or Corrupt.
        """
        found: dict[tuple[int, int], bytes] = {}
        faults: list[Truncated | Corrupt] = []
        for (level, part), packet in self.level_packets.items():  # a packet stands behind what it needs
            if level in levels and all(need in found for need in self.needs(level, part)):
                try:
                    found[level, part] = self.payload(packet)
                except (Truncated, Corrupt) as fault:
                    if not partial:
                        raise
                    faults.append(fault)
        if not any(part for _, part in found):
            raise next((fault for fault in faults if isinstance(fault, Corrupt)), faults[0])
        return found


def read_header(data: bytes) -> tuple[Header, int]:
    """The checked header, and the length of the index."""
    start = data[: len(MAGIC)]
    if start != MAGIC[: len(start)]:
        raise NotVbc("the magic is missing")
    if len(data) > len(MAGIC) + 1 and data[len(MAGIC)] != MAJOR:
        raise UnsupportedVersion(f"major version {data[len(MAGIC)]}")
    if len(data) < HEADER_BYTES:
        raise Truncated(f"a header has {HEADER_BYTES} bytes, {len(data)} are there")
    if int.from_bytes(data[HEADER.size : HEADER_BYTES], "little") != zlib.crc32(data[: HEADER.size]):
        raise Corrupt("the header's checksum")
    fields = HEADER.unpack_from(data)
    flags, width, height, channels, bit_depth, colour, quality, model_hash, tables_hash, index_bytes = fields[
        3:
    ]
    if not width or not height:
        raise Corrupt("an empty picture")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise LimitExceeded(f"{width} x {height} pixels")
    header = Header(flags, width, height, channels, bit_depth, colour, quality, model_hash, tables_hash)
    return header, index_bytes


def read_index(index: bytes, offset: int) -> list[Packet]:
    """The packets of an index; the first payload lies at `offset`."""
    cursor = Cursor(index)
    packets: list[Packet] = []
    while cursor.at < len(index):
        unit = cursor.u8()
        is_level = unit in LEVEL_UNITS
        first, count = (cursor.varint(), cursor.varint()) if is_level else (0, 1)
        last = packets[-1] if packets else None
        if not count or (is_level and last and (last.unit, last.part + 1) == (unit, first)):
            raise Corrupt("a run without packets, or two runs that are one")
        for part in range(first, first + count):
            length = cursor.varint(MAX_LENGTH)
            packets.append(Packet(unit, part, offset, length, cursor.u32()))
            offset += length
    return packets


def check_index(packets: list[Packet], header: Header, geometry: Geometry) -> None:
    """Raises an error where the fields of the header or the index break a rule of sections 2 and 3."""
    if header.quality > 100:
        raise Corrupt(f"quality {header.quality}")
    known = header.channels in (1, 3) and header.bit_depth in (8, 16) and header.colour == 0
    if not known or header.flags & ~(LOSSLESS | ARCHIVAL | 15 << BOUND_SHIFT) or header.bound > MAX_BOUND:
        raise UnsupportedVersion("channels, bit depth, colour or flags")
    units = [p.unit for p in packets if p.unit < FIRST_ANCILLARY]
    for unit in units:
        if not (unit in LEVEL_UNITS or ICC <= unit <= PIXEL_HASH):
            raise UnsupportedVersion(f"unit {unit}")
    singles = [unit for unit in units if unit not in LEVEL_UNITS]
    if len(set(singles)) < len(singles):
        raise Corrupt("a unit is there twice")
    parts = [(p.unit, p.part) for p in packets if p.unit in LEVEL_UNITS]
    if len(set(parts)) < len(parts):
        raise Corrupt("a part of a level is there twice")
    # by their places: before all levels, levels, after all levels; EXIF and XMP anywhere
    place = {ICC: 0, ALPHA: 1, LOW: 3, PIXEL_HASH: 4}
    places = [2 if unit in LEVEL_UNITS else place[unit] for unit in units if unit not in (EXIF, XMP)]
    if places != sorted(places):
        raise Corrupt("units are out of order")
    for level, part in parts:
        if level not in geometry.levels or part > geometry.n_groups(level):
            raise Corrupt(f"the size has no part {part} of level {level}")
        shares = level in (geometry.bin_levels or geometry.value_levels)
        if not part and not shares:
            raise UnsupportedVersion(f"part 0 of level {level}")
    levels = {level for level, _ in parts}
    if header.bound not in (0, VALUES_BOUND) and levels.intersection(VALUE_LEVELS):
        raise Corrupt(f"values after bins of a bound of {header.bound}")
    for level in levels:  # also where there is nothing but its part 0
        if not levels.issuperset(geometry.needed_levels(level, header.archival)):
            raise Corrupt(f"level {level} needs levels that are not there")
    seen: set[tuple[int, int]] = set()
    for level, part in parts:
        needs = geometry.needs(level, part, header.archival)
        if part and (level, 0) in parts:
            needs.append((level, 0))
        if not seen.issuperset(needs):
            raise Corrupt(f"what part {part} of level {level} needs does not stand before it")
        seen.add((level, part))
    if header.archival and any(level in LOSSY_LEVELS for level, _ in seen):
        raise Corrupt("a lossy level in an archival file")
    exact = {key for key in seen if key[0] in (FIRST_EXACT, *VALUE_LEVELS) and key[1]}
    every = sum(geometry.n_groups(n) for n in (FIRST_EXACT, *geometry.value_levels))
    alone = max((level for level, _ in seen), key=order, default=0) == FIRST_EXACT
    if header.flags & LOSSLESS and not alone and len(exact) < every:
        raise Corrupt("a lossless file lacks exact packets")
    if (header.bit_depth == 16) != (LOW in units) or (LOW in units and not header.flags & LOSSLESS):
        raise Corrupt("bit depth, LOW and LOSSLESS do not go together")
    check_lengths(packets, header)


def check_lengths(packets: list[Packet], header: Header) -> None:
    """Raises Corrupt or LimitExceeded where payloads are too long or too short."""
    metadata = sum(p.length for p in packets if p.unit in (ICC, EXIF, XMP))
    total = sum(p.length for p in packets)
    padded = (header.width + 7 & ~7) * (header.height + 7 & ~7)
    if any(p.unit == PIXEL_HASH and not 8 <= p.length <= 32 for p in packets):
        raise Corrupt("the length of the pixel hash")
    if (
        any(p.unit == ICC and p.length > MAX_ICC for p in packets)
        or metadata > MAX_METADATA
        or total - metadata > (1 << 20) + 32 * padded
        or total > MAX_LENGTH
    ):
        raise LimitExceeded("bytes of payloads")
