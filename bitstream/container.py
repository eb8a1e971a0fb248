"""The container: a checked header with a table of chunks, then chunks (docs/format.md, sections 2, 3)."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .errors import Corrupt, LimitExceeded, NotVbc, Truncated, UnsupportedVersion

MAGIC = b"\x89VBC\r\n\x1a\n"
"""Like PNG's: a non-ASCII byte, both line endings and a Ctrl-Z, so a transfer in text mode shows at once."""

VERSION = (1, 0)
"""A reader accepts every minor version of its major version."""

LOSSLESS = 1
"""Flag: all exact levels of the image are in the chunk table."""

ICC, ALPHA, LEVEL, EXIF, XMP, PIXEL_HASH, LOW = range(1, 8)
"""Kinds of chunks. LOW: the low bytes of 16-bit samples."""

LOSSY_LEVELS = 3
"""Levels 1 to 3 are lossy, 4 and above exact."""

ANCILLARY = 0x80
"""Set in the kind of a chunk that a reader may skip."""

MAX_CHUNKS = 64
"""Three lossy levels, at most 15 exact ones at a side of 65,535, six others, and room for ancillary ones."""

MAX_ICC = 1 << 20
"""A profile precedes the first level and so delays the first picture; those of displays have a few kB."""

MAX_FILE = 1 << 62
"""The sum of all lengths and offsets fits a signed 64-bit integer."""

CODED_BASE, CODED_PER_PIXEL = 1 << 20, 32
"""Chunks other than metadata may have 1 MiB and 32 bytes for each pixel of whole 8x8 blocks: a symbol costs
at most 4 bytes, lossy levels have 3 for each such pixel, everything else is stored raw before it grows. So
what a file of a declared size can make a reader read and hold is bounded."""

DECODE_BASE, DECODE_PER_PIXEL = 384 << 20, 40
"""Measured with room to spare: docs/reliability.md, row 6."""

PREFIX = struct.Struct("<8sBBH")
"""Magic, major, minor, length of the header from the magic to its CRC inclusive."""

FIELDS = struct.Struct("<IIBBBBH8s8sH")
"""Width, height, channels, bit depth, colour, quality, flags, model hash, tables hash, number of chunks."""

ENTRY = struct.Struct("<BBQI")
"""Kind, number, length, CRC32 of one chunk."""

CRC = struct.Struct("<I")

MIN_HEADER = PREFIX.size + FIELDS.size + CRC.size
MAX_HEADER = MIN_HEADER + MAX_CHUNKS * ENTRY.size

Buffer = bytes | bytearray | memoryview


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


@dataclass(frozen=True)
class Chunk:
    """One entry of the chunk table. number: the level, or 0. length: bytes. crc32: of the payload."""

    kind: int
    number: int
    length: int
    crc32: int

    @property
    def is_ancillary(self) -> bool:
        return self.kind >= ANCILLARY


@dataclass(frozen=True)
class Header:
    """A valid header; making one raises a FormatError where the fields do not go together.

    width, height: pixels, >= 1. channels: 1 (gray) or 3 (RGB). quality: 0..100. flags: LOSSLESS or 0.
    model_hash, tables_hash: 8 bytes. bit_depth: 8, or 16 where there is a LOW chunk. colour: 0, as in sRGB
    unless an ICC chunk says otherwise. minor: the minor version of the file.
    """

    width: int
    height: int
    channels: int
    quality: int
    flags: int
    model_hash: bytes
    tables_hash: bytes
    chunks: tuple[Chunk, ...]
    bit_depth: int = 8
    colour: int = 0
    minor: int = VERSION[1]

    def __post_init__(self) -> None:
        for name, side in (("width", self.width), ("height", self.height)):
            if not 1 <= side < 1 << 32:
                raise Corrupt(f"{name} is {side}")
        if not 0 <= self.quality <= 100:
            raise Corrupt(f"quality is {self.quality}")
        if not 0 <= self.minor <= 255:
            raise Corrupt(f"minor version is {self.minor}")
        if len(self.model_hash) != 8 or len(self.tables_hash) != 8:
            raise Corrupt("a hash has not 8 bytes")
        for name, value, known in (
            ("channels", self.channels, (1, 3)),
            ("bit depth", self.bit_depth, (8, 16)),
            ("colour", self.colour, (0,)),
            ("flags", self.flags, (0, LOSSLESS)),
        ):
            if value not in known:
                raise UnsupportedVersion(VERSION[0], self.minor, f"{name} {value}")
        _check_chunks(self.chunks, self.minor)
        has_exact = any(chunk.kind == LEVEL and chunk.number > LOSSY_LEVELS for chunk in self.chunks)
        if self.flags & LOSSLESS and not has_exact:
            raise Corrupt("the file says lossless but has no exact level")
        if (self.bit_depth == 16) != self.has(LOW) or (self.has(LOW) and not self.flags & LOSSLESS):
            raise Corrupt("16 bits, low bytes and lossless do not go together")

    def has(self, kind: int) -> bool:
        """Whether there is a chunk of this kind."""
        return any(chunk.kind == kind for chunk in self.chunks)

    @property
    def header_bytes(self) -> int:
        """Length of the header: the offset of the first chunk."""
        return MIN_HEADER + ENTRY.size * len(self.chunks)

    @property
    def chunk_ends(self) -> tuple[int, ...]:
        """The offset of the byte after each chunk."""
        ends = accumulate((chunk.length for chunk in self.chunks), initial=self.header_bytes)
        return tuple(ends)[1:]

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.header_bytes + sum(chunk.length for chunk in self.chunks)


def pack_header(header: Header) -> bytes:
    """The bytes of a header. Inverse: unpack_header."""
    body = PREFIX.pack(MAGIC, VERSION[0], header.minor, header.header_bytes)
    body += FIELDS.pack(
        header.width,
        header.height,
        header.channels,
        header.bit_depth,
        header.colour,
        header.quality,
        header.flags,
        header.model_hash,
        header.tables_hash,
        len(header.chunks),
    )
    for chunk in header.chunks:
        body += ENTRY.pack(chunk.kind, chunk.number, chunk.length, chunk.crc32)
    return body + CRC.pack(zlib.crc32(body))


def unpack_header(data: Buffer, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Read the header at the start of a file or of a prefix of one.

    Looks at no more than the first 944 bytes and the length of `data`. Raises a FormatError unless all of the
    header is known, consistent, covered by its CRC and within the limits.
    """
    start = bytes(data[: PREFIX.size])
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise NotVbc
    if len(start) < PREFIX.size:
        raise Truncated(PREFIX.size, len(start))
    _, major, minor, header_bytes = PREFIX.unpack(start)
    if major != VERSION[0]:
        raise UnsupportedVersion(major, minor)
    if header_bytes > MAX_HEADER:
        raise LimitExceeded("header bytes", header_bytes, MAX_HEADER)
    if header_bytes < MIN_HEADER:
        raise Corrupt(f"the header has {header_bytes} bytes")
    if len(data) < header_bytes:
        raise Truncated(header_bytes, len(data))
    body = bytes(data[: header_bytes - CRC.size])
    if CRC.unpack_from(data, header_bytes - CRC.size)[0] != zlib.crc32(body):
        raise Corrupt("header checksum")
    fields = FIELDS.unpack_from(body, PREFIX.size)
    width, height, channels, bit_depth, colour, quality, flags, model_hash, tables_hash, n_chunks = fields
    if header_bytes != MIN_HEADER + ENTRY.size * n_chunks:
        raise Corrupt(f"a header of {header_bytes} bytes with {n_chunks} chunks")
    header = Header(
        width=width,
        height=height,
        channels=channels,
        quality=quality,
        flags=flags,
        model_hash=model_hash,
        tables_hash=tables_hash,
        chunks=tuple(Chunk(*entry) for entry in ENTRY.iter_unpack(body[PREFIX.size + FIELDS.size :])),
        bit_depth=bit_depth,
        colour=colour,
        minor=minor,
    )
    check_limits(header, limits)
    _check_end(data, header)
    return header


def write_file(
    payloads: Sequence[tuple[int, int, bytes]],
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
    """A whole file. payloads: (kind, number, bytes) of each chunk, in their order. Inverse: read_chunk.

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
        chunks=tuple(Chunk(kind, number, len(body), zlib.crc32(body)) for kind, number, body in payloads),
        bit_depth=bit_depth,
    )
    check_limits(header, limits)
    return b"".join([pack_header(header), *(body for _, _, body in payloads)])


def read_chunk(data: Buffer, header: Header, i: int) -> memoryview:
    """The payload of chunk i, checked against its CRC, without a copy. data: the file or a prefix of it.

    Raises Truncated where the prefix ends before the chunk does, Corrupt where the CRC differs.
    """
    _check_end(data, header)
    end = header.chunk_ends[i]
    chunk = header.chunks[i]
    if len(data) < end:
        raise Truncated(end, len(data), available_levels(len(data), header))
    payload = memoryview(data)[end - chunk.length : end]
    if zlib.crc32(payload) != chunk.crc32:
        raise Corrupt(f"checksum of chunk {i} (kind {chunk.kind}, number {chunk.number})")
    return payload


def level_ends(header: Header) -> dict[int, int]:
    """Level number -> how many bytes of the file are needed to decode it, in the order of the file."""
    ends = zip(header.chunks, header.chunk_ends, strict=True)
    return {chunk.number: end for chunk, end in ends if chunk.kind == LEVEL}


def available_levels(n_bytes: int, header: Header) -> tuple[int, ...]:
    """The levels that are complete in the first n_bytes of the file."""
    return tuple(level for level, end in level_ends(header).items() if end <= n_bytes)


def check_limits(header: Header, limits: Limits) -> None:
    """Raises LimitExceeded where the header is above a limit. Metadata: ICC, EXIF and XMP together."""
    metadata = sum(chunk.length for chunk in header.chunks if chunk.kind in (ICC, EXIF, XMP))
    for what, value, limit in (
        ("width", header.width, limits.max_side),
        ("height", header.height, limits.max_side),
        ("pixels", header.width * header.height, limits.max_pixels),
        ("metadata bytes", metadata, limits.max_metadata),
        ("bytes of all other chunks", header.file_bytes - header.header_bytes - metadata, max_coded(header)),
        ("bytes of memory", decode_memory(header), limits.max_memory),
    ):
        if limit is not None and value > limit:
            raise LimitExceeded(what, value, limit)


def max_coded(header: Header) -> int:
    """The most bytes that chunks other than metadata may have together: what no encoder comes near."""
    padded = (header.width + 7 & ~7) * (header.height + 7 & ~7)
    return CODED_BASE + CODED_PER_PIXEL * padded


def decode_memory(header: Header) -> int:
    """An upper estimate of the memory that decoding takes, in bytes, above that of the loaded model.

    docs/reliability.md has the measurements.
    """
    return DECODE_BASE + DECODE_PER_PIXEL * header.width * header.height + header.file_bytes


def _check_chunks(chunks: tuple[Chunk, ...], minor: int) -> None:
    if len(chunks) > MAX_CHUNKS:
        raise LimitExceeded("chunks", len(chunks), MAX_CHUNKS)
    for chunk in chunks:
        if not (0 <= chunk.kind < 256 and 0 <= chunk.number < 256 and 0 <= chunk.length < 1 << 64):
            raise Corrupt(f"chunk {chunk}")
        if not chunk.is_ancillary and not ICC <= chunk.kind <= LOW:
            raise UnsupportedVersion(VERSION[0], minor, f"critical chunk of kind {chunk.kind}")
        if not chunk.is_ancillary and (chunk.kind == LEVEL) != (chunk.number > 0):
            raise Corrupt(f"a chunk of kind {chunk.kind} with number {chunk.number}")
        if chunk.kind == ICC and chunk.length > MAX_ICC:
            raise LimitExceeded("ICC bytes", chunk.length, MAX_ICC)
        if chunk.kind == PIXEL_HASH and not 8 <= chunk.length <= 32:
            raise Corrupt(f"a pixel hash of {chunk.length} bytes")
    # one key a chunk, strictly increasing: fixes the order and forbids what is there twice
    keys = [_place(chunk) for chunk in chunks if not chunk.is_ancillary]
    if any(one >= two for one, two in pairwise(keys)):
        raise Corrupt("chunks are out of order or there twice")
    total = MAX_HEADER + sum(chunk.length for chunk in chunks)
    if total > MAX_FILE:
        raise LimitExceeded("file bytes", total, MAX_FILE)


def _place(chunk: Chunk) -> tuple[int, int]:
    """What a viewer needs first comes first.

    Lossy levels, then texts about the image, then exact levels, then what 16 bits add to them.
    """
    if chunk.kind == LEVEL:
        return (2 if chunk.number <= LOSSY_LEVELS else 5, chunk.number)
    return ({ICC: 0, ALPHA: 1, EXIF: 3, XMP: 4, LOW: 6, PIXEL_HASH: 7}[chunk.kind], 0)


def _check_end(data: Buffer, header: Header) -> None:
    if len(data) > header.file_bytes:
        raise Corrupt(f"{len(data) - header.file_bytes} bytes after the last chunk")
