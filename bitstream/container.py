"""The container: a checked header, an index of packets, the packets (docs/format.md, sections 2, 3 and 5).

A packet is what a file is cut into: one group of one level, what the groups of a level share, or a whole
like the ICC profile. Any prefix of a file is good for the packets that are complete in it.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

from .errors import Corrupt, LimitExceeded, NotVbc, Truncated, UnsupportedVersion
from .geometry import (
    LOSSY_LEVELS,
    Geometry,
    is_bins,
    is_level,
    is_lossy,
    is_value,
    rank,
    refinements_of,
)
from .source import Buffer, Source, as_source
from .varint import pack_varints, unpack_varint

MAGIC = b"\x89VBC\r\n\x1a\n"
"""Like PNG's: a non-ASCII byte, both line endings and a Ctrl-Z, so a transfer in text mode shows at once."""

VERSION = (2, 0)
"""A reader accepts every minor version of its major version."""

LOSSLESS = 1
"""Flag: all groups of all exact levels of the picture are in the index, or level 4 alone, which then has the
whole picture, packed."""

ARCHIVAL = 2
"""Flag: the exact levels are coded without a lossy picture, and there are no lossy levels."""

BOUND_SHIFT, MAX_BOUND, VALUES_BOUND = 8, 8, 2
"""Where the bound stands in the flags: 0 for none, or by how much samples of the bins may differ from the
picture's. Values can follow bins of one bound alone."""

MAX_QUALITY = 100

REFINEMENT_QUALITY = 25
"""Units of quality that a refinement, a third of the step, adds: a unit is a sixteenth of an octave."""

ICC, ALPHA, EXIF, XMP, LOW, PIXEL_HASH = range(65, 71)
"""Units that are no level and have one packet. LOW: the low bytes of 16-bit samples."""

ANCILLARY = 0x80
"""Set in a unit that a reader may skip."""

MAX_PARTS = 1 << 22
"""Parts of all levels of a picture, for each of which a reader keeps a number: 65,535 x 65,535 pixels have
340,000. So the last exact level is below the first refinement."""

MAX_ICC = 1 << 20
"""A profile precedes the first level and so delays the first picture; those of displays have a few kB."""

MAX_FILE = 1 << 62
"""The sum of all lengths and offsets fits a signed 64-bit integer."""

LENGTH_BITS = 62
"""Lengths of packets are below 2^62."""

INDEX_BASE, INDEX_PER_PART = 1024, 32
"""Bytes that an index may have: a packet in a run of its own takes 25 at most, and what is no level, or
ancillary, has the base."""

CODED_BASE, CODED_PER_PIXEL = 1 << 20, 32
"""Packets other than metadata may have 1 MiB and 32 bytes for each pixel of whole 8x8 blocks: a symbol costs
at most 4 bytes, lossy levels have 3 for each such pixel, everything else is stored raw before it grows. So
what a file of a declared size can make a reader read and hold is bounded."""

DECODE_BASE, DECODE_PER_PIXEL = 384 << 20, 40
"""Measured with room to spare: docs/reliability.md, row 6."""

LATENT_BYTES_PER_PIXEL = 6
"""A refinement keeps a plane of latents of its own, and in some orders of packets all of them are needed."""

BINS_BYTES_PER_PIXEL = 16
"""Where values follow bins both grids are kept, and what the bins were predicted with."""

FIELDS = struct.Struct("<8sBBHIIBBBB8s8sI")
"""Magic, major, minor, flags, width, height, channels, bit depth, colour, quality, model hash, tables hash,
bytes of the index."""

CRC = struct.Struct("<I")

FIXED_BYTES = FIELDS.size + CRC.size
"""The fields and their CRC: all that is needed to know how long the header with its index is."""

VERSION_BYTES = 10
"""The magic and the version: enough to say what a file is."""

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a reader will take on. The defaults: twice Pillow's warning, 16-bit sides, 16 MiB of metadata.

    max_memory: bytes that a decode may take by the estimate of `decode_memory`; None: no limit.
    """

    max_pixels: int = 178_956_970
    max_side: int = 65_535
    max_metadata: int = 16 << 20
    max_memory: int | None = None


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Packet:
    """One entry of the index.

    unit: 1..63 and 71..98 a level, ICC to PIXEL_HASH, or ancillary. part: 0 is what the groups of a level
    share, g + 1 is group g; 0 for what is no level. length: bytes. crc32: of the payload.
    """

    unit: int
    part: int
    length: int
    crc32: int

    @property
    def is_ancillary(self) -> bool:
        """Whether a reader may skip it."""
        return self.unit >= ANCILLARY

    @property
    def level(self) -> int:
        """The level it belongs to, or 0."""
        return self.unit if is_level(self.unit) else 0


@dataclass(frozen=True)
class Header:
    """A valid header with its index; making one raises a FormatError where they do not go together.

    width, height: pixels, >= 1. channels: 1 (gray) or 3 (RGB). quality: 0..100. flags: of LOSSLESS and
    ARCHIVAL, and the bound times 2^BOUND_SHIFT. model_hash, tables_hash: 8 bytes. packets: in the order of
    the file. bit_depth: 8, or 16 where there is a LOW packet. colour: 0, as in sRGB unless an ICC packet says
    otherwise. minor: the minor version of the file.
    """

    width: int
    height: int
    channels: int
    quality: int
    flags: int
    model_hash: bytes
    tables_hash: bytes
    packets: tuple[Packet, ...]
    bit_depth: int = 8
    colour: int = 0
    minor: int = VERSION[1]

    def __post_init__(self) -> None:
        _check_size(self.width, self.height)
        if not 0 <= self.quality <= MAX_QUALITY:
            raise Corrupt(f"quality is {self.quality}")
        if not 0 <= self.minor <= 255:
            raise Corrupt(f"minor version is {self.minor}")
        if len(self.model_hash) != 8 or len(self.tables_hash) != 8:
            raise Corrupt("a hash has not 8 bytes")
        for name, value, known in (
            ("channels", self.channels, (1, 3)),
            ("bit depth", self.bit_depth, (8, 16)),
            ("colour", self.colour, (0,)),
            ("flags", self.flags & (1 << BOUND_SHIFT) - 1, range(4)),
            ("bound", self.bound, range(MAX_BOUND + 1)),
        ):
            if value not in known:
                raise UnsupportedVersion(VERSION[0], self.minor, f"{name} {value}")
        _check_packets(self)

    @property
    def archival(self) -> bool:
        """Whether exact levels are coded without a lossy picture."""
        return bool(self.flags & ARCHIVAL)

    @property
    def lossless(self) -> bool:
        """Whether all groups of all exact levels are in the index."""
        return bool(self.flags & LOSSLESS)

    @property
    def bound(self) -> int:
        """How far a sample of the bins can be from the picture's, 1 to 8; 0 in a file without bins."""
        return self.flags >> BOUND_SHIFT

    @property
    def has_values(self) -> bool:
        """Whether the file has packets of exact levels above level 4."""
        return any(is_value(packet.level) for packet in self.packets)

    @cached_property
    def geometry(self) -> Geometry:
        """Grids and groups of the picture, with the refinements and bins of the file."""
        refinements = refinements_of(levels_present(self))
        return Geometry(self.width, self.height, refinements=refinements, binned=self.bound > 0)

    @property
    def final_quality(self) -> int:
        """The quality of all refinements together, which exact levels are told."""
        return min(self.quality + REFINEMENT_QUALITY * self.geometry.refinements, MAX_QUALITY)

    @cached_property
    def places(self) -> dict[tuple[int, int], int]:
        """(unit, part) -> place in `packets`; of ancillary ones of a unit, the last."""
        return {(packet.unit, packet.part): i for i, packet in enumerate(self.packets)}

    def find(self, unit: int, part: int = 0) -> int | None:
        """The place of a packet in `packets`, or None."""
        return self.places.get((unit, part))

    def has(self, unit: int) -> bool:
        """Whether there is a packet of this unit, which is no level."""
        return (unit, 0) in self.places

    @cached_property
    def index_bytes(self) -> int:
        """Length of the index, without its CRC."""
        return len(_pack_index(self.packets))

    @property
    def header_bytes(self) -> int:
        """Length of header and index with their CRCs: the offset of the first packet."""
        return FIXED_BYTES + self.index_bytes + CRC.size

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The offset of the byte after each packet."""
        ends = accumulate((packet.length for packet in self.packets), initial=self.header_bytes)
        return tuple(ends)[1:]

    def span(self, i: int) -> tuple[int, int]:
        """The offsets of packet i and of the byte after it."""
        return self.ends[i] - self.packets[i].length, self.ends[i]

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.ends[-1] if self.ends else self.header_bytes


def pack_header(header: Header) -> bytes:
    """The bytes of a header and its index. Inverse: unpack_header."""
    index = _pack_index(header.packets)
    fields = FIELDS.pack(
        MAGIC,
        VERSION[0],
        header.minor,
        header.flags,
        header.width,
        header.height,
        header.channels,
        header.bit_depth,
        header.colour,
        header.quality,
        header.model_hash,
        header.tables_hash,
        len(index),
    )
    return fields + CRC.pack(zlib.crc32(fields)) + index + CRC.pack(zlib.crc32(index))


def packed_bytes(packets: Sequence[Packet]) -> int:
    """The length of a file of these packets, valid or not."""
    return FIXED_BYTES + len(_pack_index(packets)) + CRC.size + sum(packet.length for packet in packets)


def header_end(start: Buffer, limits: Limits = DEFAULT_LIMITS) -> int:
    """How many bytes header and index take, by the first 48 bytes of a file.

    Looks at no more than those. Raises a FormatError unless they are known, covered by their CRC and within
    the limits; Truncated where there are fewer.
    """
    index_bytes: int = _unpack_fields(start, limits)[-1]
    return FIXED_BYTES + index_bytes + CRC.size


def unpack_header(data: Buffer | Source, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Read header and index at the start of a file or of a prefix of one.

    Looks at nothing else but the length of `data`. Raises a FormatError unless all is known, consistent,
    covered by its CRC and within the limits.
    """
    source = as_source(data)
    fields = _unpack_fields(source.read(0, min(FIXED_BYTES, source.n_bytes)), limits)
    _, _, minor, flags, width, height, channels, bit_depth, colour, quality, *hashes, index_bytes = fields
    end = FIXED_BYTES + index_bytes
    body = source.read(FIXED_BYTES, end + CRC.size)
    index = bytes(body[:index_bytes])
    if CRC.unpack_from(body, index_bytes)[0] != zlib.crc32(index):
        raise Corrupt("index checksum")
    header = Header(
        width=width,
        height=height,
        channels=channels,
        quality=quality,
        flags=flags,
        model_hash=hashes[0],
        tables_hash=hashes[1],
        packets=tuple(_unpack_index(index)),
        bit_depth=bit_depth,
        colour=colour,
        minor=minor,
    )
    check_limits(header, limits)
    _check_end(source, header)
    return header


def _unpack_fields(start: Buffer, limits: Limits) -> tuple[Any, ...]:
    """The values of FIELDS, as far as they can be judged without the index."""
    head = bytes(start[:FIXED_BYTES])
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise NotVbc
    if len(head) >= VERSION_BYTES and head[len(MAGIC)] != VERSION[0]:
        raise UnsupportedVersion(head[len(MAGIC)], head[len(MAGIC) + 1])
    if len(head) < FIXED_BYTES:
        raise Truncated(FIXED_BYTES, len(head))
    if CRC.unpack_from(head, FIELDS.size)[0] != zlib.crc32(head[: FIELDS.size]):
        raise Corrupt("header checksum")
    fields = FIELDS.unpack_from(head)
    width, height, index_bytes = fields[4], fields[5], fields[-1]
    _check_size(width, height)
    _check_pixels(width, height, limits)
    _check_index_bytes(index_bytes, Geometry(width, height, binned=fields[3] >> BOUND_SHIFT > 0))
    return fields


def _pack_index(packets: Sequence[Packet]) -> bytes:
    """Runs as long as they can be. Inverse: _unpack_index."""
    out = bytearray()
    for run in _runs(packets):
        out.append(run[0].unit)
        if run[0].level:
            out += pack_varints((run[0].part, len(run)))
        for packet in run:
            out += pack_varints((packet.length,), LENGTH_BITS)
            out += CRC.pack(packet.crc32)
    return bytes(out)


def _unpack_index(data: bytes) -> Iterator[Packet]:
    """What its entries say. Raises Corrupt where they are cut off or written as no writer does.

    Makes no more packets than a fifth of the bytes.
    """
    at, before = 0, (0, 0)
    while at < len(data):
        unit, first, count = data[at], 0, 1
        at += 1
        if is_level(unit):
            first, at = unpack_varint(data, at)
            count, at = unpack_varint(data, at)
            if count == 0 or (unit, first) == before:
                raise Corrupt(f"the run of level {unit} from part {first} is empty or two in one")
            before = (unit, first + count)
        else:
            before = (0, 0)
        for part in range(first, first + count):
            length, at = unpack_varint(data, at, LENGTH_BITS)
            if at + CRC.size > len(data):
                raise Corrupt("the index ends inside an entry")
            yield Packet(unit, part, length, int.from_bytes(data[at : at + CRC.size], "little"))
            at += CRC.size


def _runs(packets: Sequence[Packet]) -> Iterator[Sequence[Packet]]:
    start = 0
    for i in range(1, len(packets) + 1):
        goes_on = i < len(packets) and (
            packets[i].level != 0
            and packets[i].unit == packets[i - 1].unit
            and packets[i].part == packets[i - 1].part + 1
        )
        if not goes_on:
            yield packets[start:i]
            start = i


def write_file(
    payloads: Sequence[tuple[int, int, Buffer]],
    *,
    width: int,
    height: int,
    channels: int,
    quality: int,
    flags: int,
    model_hash: bytes,
    tables_hash: bytes,
    bit_depth: int = 8,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """A whole file. payloads: (unit, part, bytes) of each packet, in their order. Inverse: read_packet.

    Raises a FormatError for a file that `unpack_header` with the same limits would refuse.
    """
    header = Header(
        width=width,
        height=height,
        channels=channels,
        quality=quality,
        flags=flags,
        model_hash=model_hash,
        tables_hash=tables_hash,
        packets=tuple(Packet(unit, part, len(body), zlib.crc32(body)) for unit, part, body in payloads),
        bit_depth=bit_depth,
    )
    check_limits(header, limits)
    return b"".join([pack_header(header), *(body for _, _, body in payloads)])


def read_packet(data: Buffer | Source, header: Header, i: int) -> memoryview:
    """The payload of packet i, checked against its CRC; not copied where the data are in memory.

    data: the file or a prefix of it. Raises Truncated where the prefix ends before the packet does, Corrupt
    where the CRC differs.
    """
    source = as_source(data)
    _check_end(source, header)
    start, end = header.span(i)
    if source.n_bytes < end:
        levels = complete_levels(header, usable(header, source.n_bytes))
        raise Truncated(end, source.n_bytes, levels)
    payload = source.read(start, end)
    packet = header.packets[i]
    if zlib.crc32(payload) != packet.crc32:
        raise Corrupt(f"checksum of packet {i} (unit {packet.unit}, part {packet.part})")
    return payload


# what is there


def levels_present(header: Header) -> tuple[int, ...]:
    """The levels with packets in the index, in their order (`geometry.rank`)."""
    return tuple(sorted({packet.level for packet in header.packets if packet.level}, key=rank))


def usable(header: Header, there: int | Callable[[int], bool]) -> tuple[bool, ...]:
    """For each packet whether it can be decoded: it is there, and all that it needs can be decoded.

    there: how many bytes of the file there are, or for the place of a packet in the index whether it is there
    and sound.
    """
    if isinstance(there, int):
        n_bytes = there
        good = [end <= n_bytes for end in header.ends]
    else:
        good = [there(i) for i in range(len(header.packets))]
    geometry, groups = header.geometry, _level_places(header.packets, header.geometry, header.minor)
    sound: dict[int, list[bool]] = {}
    for level in sorted(groups, key=rank):
        shared = header.find(level)
        own = [i is not None and good[i] and (shared is None or good[shared]) for i in groups[level]]
        for other in geometry.needed_levels(level, header.archival):
            needed = _fold_needs(geometry, level, other, sound[other], min)
            own = [a and b for a, b in zip(own, needed, strict=True)]
        sound[level] = own
        for i, is_sound in zip(groups[level], own, strict=True):
            if i is not None:
                good[i] = is_sound
    return tuple(good)


def complete_levels(header: Header, good: Sequence[bool]) -> tuple[int, ...]:
    """The levels of which all groups are in the index, and all packets usable; in their order.

    good: for each packet whether it is usable, as `usable` tells.
    """
    broken = {p.level for p, is_good in zip(header.packets, good, strict=True) if not is_good}
    return tuple(level for level in level_ends(header) if level not in broken)


def level_ends(header: Header) -> dict[int, int]:
    """Level -> how many bytes of the file are needed to decode all of it, levels in their order.

    Levels of which groups are missing in the index are left out. What a packet needs stands before it, so
    these are the ends of the levels' last packets.
    """
    ends: dict[int, int] = {}
    n_groups: dict[int, int] = {}
    for packet, end in zip(header.packets, header.ends, strict=True):
        if packet.level:
            ends[packet.level] = end
            n_groups[packet.level] = n_groups.get(packet.level, 0) + (packet.part > 0)
    whole = (level for level in sorted(ends, key=rank) if n_groups[level] == header.geometry.n_groups(level))
    return {level: ends[level] for level in whole}


def byte_ranges(header: Header, packets: Iterable[int]) -> list[tuple[int, int]]:
    """The bytes to fetch for these packets (places in the index): (start, end) each, merged and ascending.

    Header and index are in the first.
    """
    ranges = [(0, header.header_bytes)]
    for start, end in sorted(header.span(i) for i in set(packets)):
        if start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


# limits


def check_limits(header: Header, limits: Limits) -> None:
    """Raises LimitExceeded where the header is above a limit. Metadata: ICC, EXIF and XMP together."""
    _check_pixels(header.width, header.height, limits)
    metadata = sum(packet.length for packet in header.packets if packet.unit in (ICC, EXIF, XMP))
    for what, value, limit in (
        ("metadata bytes", metadata, limits.max_metadata),
        ("bytes of all other packets", header.file_bytes - header.header_bytes - metadata, max_coded(header)),
        ("bytes of memory", decode_memory(header), limits.max_memory),
    ):
        _check_limit(what, value, limit)


def max_coded(header: Header) -> int:
    """The most bytes that packets other than metadata may have together: what no encoder comes near."""
    padded = (header.width + 7 & ~7) * (header.height + 7 & ~7)
    return CODED_BASE + CODED_PER_PIXEL * padded


def max_index(geometry: Geometry) -> int:
    """The most bytes that an index may have."""
    return INDEX_BASE + INDEX_PER_PART * geometry.n_parts


def decode_memory(header: Header) -> int:
    """An upper estimate of the memory that decoding takes, in bytes, above that of the loaded model.

    docs/reliability.md has the measurements.
    """
    per_pixel = DECODE_PER_PIXEL + LATENT_BYTES_PER_PIXEL * header.geometry.refinements
    per_pixel += BINS_BYTES_PER_PIXEL * (header.bound > 0)
    return DECODE_BASE + per_pixel * header.width * header.height + header.file_bytes


def _check_limit(what: str, value: int, limit: int | None) -> None:
    if limit is not None and value > limit:
        raise LimitExceeded(what, value, limit)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    _check_limit("width", width, limits.max_side)
    _check_limit("height", height, limits.max_side)
    _check_limit("pixels", width * height, limits.max_pixels)


# checks


def _check_size(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if not 1 <= side < 1 << 32:
            raise Corrupt(f"{name} is {side}")
    _check_limit("parts", Geometry(width, height).n_parts, MAX_PARTS)


def _check_index_bytes(n_bytes: int, geometry: Geometry) -> None:
    _check_limit("index bytes", n_bytes, max_index(geometry))


def _check_end(source: Source, header: Header) -> None:
    if source.n_bytes > header.file_bytes:
        raise Corrupt(f"{source.n_bytes - header.file_bytes} bytes after the last packet")


def _check_packets(header: Header) -> None:
    packets, geometry = header.packets, header.geometry
    # before anything grows with their number
    _check_limit("packets", len(packets), max_index(geometry))
    for packet in packets:
        _check_packet(packet, header.minor)
    _check_limit("file bytes", sum(p.length for p in packets) + max_index(geometry), MAX_FILE)
    _check_index_bytes(header.index_bytes, geometry)
    n_distinct = sum(not p.is_ancillary for p in packets)
    if len({(p.unit, p.part) for p in packets if not p.is_ancillary}) != n_distinct:
        raise Corrupt("a packet is there twice")
    _check_order(packets)
    places = _level_places(packets, geometry, header.minor)
    if header.archival and any(is_lossy(level) for level in places):
        raise Corrupt("an archival file has lossy levels")
    if header.bound not in (0, VALUES_BOUND) and header.has_values:
        raise Corrupt(f"values after bins of a bound of {header.bound}")
    _check_needs(header, places)
    # level 4 alone may hold the whole picture, packed; whoever decodes it sees
    if header.lossless and max(places, key=rank, default=0) != LOSSY_LEVELS + 1:
        for level in range(LOSSY_LEVELS + 1, geometry.last_level + 1):
            if None in places.get(level, [None]):
                raise Corrupt(f"the file says lossless but level {level} is not whole")
    if (header.bit_depth == 16) != header.has(LOW) or (header.has(LOW) and not header.lossless):
        raise Corrupt("16 bits, low bytes and lossless do not go together")


def _check_packet(packet: Packet, minor: int) -> None:
    unit, part, length = packet.unit, packet.part, packet.length
    in_range = 0 <= unit < 1 << 8 and 0 <= part < 1 << 32 and 0 <= packet.crc32 < 1 << 32
    if not (in_range and 0 <= length < 1 << LENGTH_BITS):
        raise Corrupt(f"{packet}")
    if not (is_level(unit) or ICC <= unit <= PIXEL_HASH or packet.is_ancillary):
        raise UnsupportedVersion(VERSION[0], minor, f"unit {unit}")
    if part and not packet.level:
        raise Corrupt(f"unit {unit} with part {part}")
    if unit == ICC and length > MAX_ICC:
        raise LimitExceeded("ICC bytes", length, MAX_ICC)
    if unit == PIXEL_HASH and not 8 <= length <= 32:
        raise Corrupt(f"a pixel hash of {length} bytes")


def _check_order(packets: Sequence[Packet]) -> None:
    """What a viewer needs first comes first; EXIF and XMP, like ancillary packets, may stand anywhere."""
    rank = {ICC: 0, ALPHA: 1, LOW: 3, PIXEL_HASH: 4}
    ranks = [
        2 if packet.level else rank[packet.unit] for packet in packets if packet.level or packet.unit in rank
    ]
    if ranks != sorted(ranks):
        raise Corrupt("packets are out of order")


def _level_places(packets: Sequence[Packet], geometry: Geometry, minor: int) -> dict[int, list[int | None]]:
    """Level -> for each of its groups the place of its packet, or None. Levels with packets only.

    Raises Corrupt for levels and parts that the size does not have, UnsupportedVersion for a part 0 of a
    level whose groups share nothing.
    """
    places: dict[int, list[int | None]] = {}
    known = set(geometry.levels)
    for i, packet in enumerate(packets):
        level, part = packet.level, packet.part
        if not level:
            continue
        if level not in places:
            if level not in known:
                raise Corrupt(f"level {level}, which a picture of this size does not have")
            places[level] = [None] * geometry.n_groups(level)
        if part > len(places[level]):
            raise Corrupt(f"part {part} of level {level}, which has {len(places[level])} groups")
        if part:
            places[level][part - 1] = i
        elif is_lossy(level) or level == LOSSY_LEVELS + 1 or (geometry.binned and not is_bins(level)):
            raise UnsupportedVersion(VERSION[0], minor, f"part 0 of level {level}")
    return places


def _check_needs(header: Header, places: dict[int, list[int | None]]) -> None:
    """Raises Corrupt unless what a packet needs is in the index, before it."""
    never = len(header.packets)
    for level, groups in places.items():
        shared = header.find(level)
        own = [never if i is None else i for i in groups]
        if shared is not None and min(own) < shared:
            raise Corrupt(f"a group of level {level} stands before what its groups share")
        for other in header.geometry.needed_levels(level, header.archival):
            if other not in places:
                raise Corrupt(f"level {level} needs level {other}, which is not there")
            stands = [never if i is None else i for i in places[other]]
            last = _fold_needs(header.geometry, level, other, stands, max)
            if any(a < b for a, b in zip(own, last, strict=True)):
                raise Corrupt(f"a group of level {level} stands before one of level {other} that it needs")


def _fold_needs(
    geometry: Geometry, level: int, other: int, values: Sequence[T], fold: Callable[..., T]
) -> list[T]:
    """For each group of a level, `fold` (min or max) of the values of the other level's groups it needs.

    values: one for each group of the other level. Rows first, then columns: a group needs a rectangle.
    """
    width = geometry.group_counts(other)[1]
    rows = [values[i : i + width] for i in range(0, len(values), width)]
    columns = geometry.axis_needs(level, other, 1)
    out: list[T] = []
    for span in geometry.axis_needs(level, other, 0):
        column = rows[span.start] if len(span) == 1 else list(map(fold, *rows[span.start : span.stop]))
        out += [fold(column[c.start : c.stop]) for c in columns]
    return out
