"""Container: inverses, order and limits of chunks, prefixes, and every damage a header can take."""

import copy
import re
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import bit_flips, check_format_error, check_inverse, decode_lanes, truncations

from vbc.bitstream import container
from vbc.bitstream.container import (
    ALPHA,
    ANCILLARY,
    EXIF,
    ICC,
    LEVEL,
    LOSSLESS,
    LOW,
    PIXEL_HASH,
    XMP,
    Chunk,
    Header,
    Limits,
    available_levels,
    level_ends,
    pack_header,
    read_chunk,
    unpack_header,
    write_file,
)
from vbc.bitstream.errors import (
    Corrupt,
    FormatError,
    LimitExceeded,
    ModelMissing,
    NotVbc,
    Truncated,
    UnsupportedVersion,
)
from vbc.bitstream.tables import TableSet

FIELDS: dict[str, Any] = {
    "width": 33,
    "height": 17,
    "channels": 3,
    "quality": 60,
    "flags": LOSSLESS,
    "model_hash": b"model..8",
    "tables_hash": b"tables.8",
}
PAYLOADS = [
    (ICC, 0, b"profile"),
    (ALPHA, 0, b"alpha"),
    (LEVEL, 1, b"one"),
    (LEVEL, 2, b""),
    (LEVEL, 3, b"three"),
    (EXIF, 0, b"exif"),
    (XMP, 0, b"<xmp/>"),
    (LEVEL, 4, b"four"),
    (LEVEL, 9, b"nine"),
    (PIXEL_HASH, 0, b"12345678"),
]
FILE = write_file(PAYLOADS, **FIELDS)
HEADER = unpack_header(FILE)
HEADER_BYTES = FILE[: HEADER.header_bytes]


def packed(**changes: Any) -> bytes:
    """A header, valid or not, under a correct CRC. entries: (kind, number, length, crc) each."""
    rest = {"flags": 0, "bit_depth": 8, "colour": 0, "major": 1, "minor": 0, "entries": [(LEVEL, 4, 0, 0)]}
    field = FIELDS | rest | changes
    entries = field["entries"]
    length = field.get("length", 48 + 14 * len(entries))
    body = container.MAGIC + struct.pack("<BBH", field["major"], field["minor"], length)
    body += struct.pack("<IIBBBBH", *(field[name] for name in ("width", "height", "channels")),
                        field["bit_depth"], field["colour"], field["quality"], field["flags"])  # fmt: skip
    body += field["model_hash"] + field["tables_hash"] + struct.pack("<H", field.get("count", len(entries)))
    body += b"".join(struct.pack("<BBQI", *entry) for entry in entries)
    return body + struct.pack("<I", zlib.crc32(body))


def test_header_inverse() -> None:
    assert check_inverse(pack_header, unpack_header, HEADER) == HEADER_BYTES
    assert (
        packed(flags=LOSSLESS, entries=[(c.kind, c.number, c.length, c.crc32) for c in HEADER.chunks])
        == HEADER_BYTES
    )
    gray = replace(HEADER, channels=1, width=1, height=65_535, quality=0, flags=0, chunks=(), minor=255)
    assert len(check_inverse(pack_header, unpack_header, gray)) == container.MIN_HEADER == 48
    full = replace(HEADER, flags=0, chunks=tuple(Chunk(ANCILLARY, 0, 0, 0) for _ in range(64)))
    assert len(check_inverse(pack_header, unpack_header, full)) == container.MAX_HEADER == 944


def test_file_inverse() -> None:
    assert [
        (chunk.kind, chunk.number, bytes(read_chunk(FILE, HEADER, i)))
        for i, chunk in enumerate(HEADER.chunks)
    ] == PAYLOADS
    assert HEADER.file_bytes == len(FILE)
    for view in (bytearray(FILE), memoryview(FILE)):
        assert unpack_header(view) == HEADER
        assert read_chunk(view, HEADER, 0) == b"profile"


def test_prefixes() -> None:
    """At every truncation point exactly the chunks that are complete can be read."""
    ends = level_ends(HEADER)
    assert list(ends) == [1, 2, 3, 4, 9]
    assert ends[1] == HEADER.header_bytes + len(b"profile" + b"alpha" + b"one") == ends[2]
    assert ends[9] == len(FILE) - 8
    for n_bytes in range(HEADER.header_bytes, len(FILE)):
        prefix = FILE[:n_bytes]
        assert unpack_header(prefix) == HEADER
        complete = tuple(level for level in ends if ends[level] <= n_bytes)
        assert available_levels(n_bytes, HEADER) == complete
        for i, (_, _, body) in enumerate(PAYLOADS):
            if HEADER.chunk_ends[i] <= n_bytes:
                assert read_chunk(prefix, HEADER, i) == body
                continue
            error = check_format_error(lambda p=prefix, i=i: read_chunk(p, HEADER, i), Truncated)
            assert (error.need, error.have) == (HEADER.chunk_ends[i], n_bytes)
            assert error.levels_available == complete


def test_damaged_payload() -> None:
    for i, (_, _, body) in enumerate(PAYLOADS):
        start = HEADER.chunk_ends[i] - len(body)
        for flipped in bit_flips(FILE, range(8 * start, 8 * (start + len(body)))):
            check_format_error(lambda f=flipped, i=i: read_chunk(f, HEADER, i), Corrupt)
    check_format_error(lambda: unpack_header(FILE + b"\0"), Corrupt)
    check_format_error(lambda: read_chunk(FILE + b"\0", HEADER, 0), Corrupt)


def test_truncated_header() -> None:
    for prefix in truncations(HEADER_BYTES):
        error = check_format_error(lambda p=prefix: unpack_header(p), Truncated)
        assert error.have == len(prefix)
        assert error.need == (12 if len(prefix) < 12 else HEADER.header_bytes)


def test_flipped_header() -> None:
    seen = {type(check_format_error(lambda f=f: unpack_header(f))) for f in bit_flips(HEADER_BYTES)}
    assert seen == {NotVbc, UnsupportedVersion, Truncated, LimitExceeded, Corrupt}


def test_not_vbc() -> None:
    for data in (b"\x89PNG\r\n\x1a\n" + bytes(60), b"x", bytes(1000), b"\x89VBC\n\x1a\n" + bytes(60)):
        check_format_error(lambda d=data: unpack_header(d), NotVbc)


def entry(kind: int, number: int = 0, length: int = 8) -> tuple[int, int, int, int]:
    return (kind, number, length, 0)


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (Corrupt, {"width": 0}),
        (Corrupt, {"height": 0}),
        (LimitExceeded, {"width": 65_536}),
        (LimitExceeded, {"height": 2**32 - 1}),
        (LimitExceeded, {"width": 2**32 - 1, "height": 2**32 - 1}),
        (LimitExceeded, {"width": 65_535, "height": 2_731}),
        (Corrupt, {"quality": 101}),
        (UnsupportedVersion, {"major": 0}),
        (UnsupportedVersion, {"major": 2}),
        (UnsupportedVersion, {"channels": 0}),
        (UnsupportedVersion, {"channels": 2}),
        (UnsupportedVersion, {"channels": 4}),
        (UnsupportedVersion, {"bit_depth": 12}),
        (Corrupt, {"bit_depth": 16, "flags": LOSSLESS}),
        (Corrupt, {"bit_depth": 16, "entries": [entry(LEVEL, 4), entry(LOW)]}),
        (Corrupt, {"bit_depth": 8, "flags": LOSSLESS, "entries": [entry(LEVEL, 4), entry(LOW)]}),
        (UnsupportedVersion, {"colour": 1}),
        (UnsupportedVersion, {"flags": 2}),
        (UnsupportedVersion, {"flags": 0x8000 | LOSSLESS}),
        (Corrupt, {"entries": [], "flags": LOSSLESS}),
        (Corrupt, {"entries": [entry(LEVEL, 3)], "flags": LOSSLESS}),
        (Corrupt, {"length": 0}),
        (Corrupt, {"length": 47}),
        (Corrupt, {"count": 0}),
        (Corrupt, {"count": 65_535}),
        (LimitExceeded, {"length": 945}),
        (LimitExceeded, {"length": 65_535, "count": 65_535}),
        (LimitExceeded, {"entries": [entry(ANCILLARY)] * 65}),
        (UnsupportedVersion, {"entries": [entry(0)]}),
        (UnsupportedVersion, {"entries": [entry(8)]}),
        (UnsupportedVersion, {"entries": [entry(127)]}),
        (Corrupt, {"entries": [entry(LEVEL, 0)]}),
        (Corrupt, {"entries": [entry(ICC, 1)]}),
        (Corrupt, {"entries": [entry(LEVEL, 4), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(LEVEL, 5), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(ICC), entry(ICC), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(LEVEL, 4), entry(ICC)]}),
        (Corrupt, {"entries": [entry(ALPHA), entry(ICC), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(EXIF), entry(LEVEL, 3), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(LEVEL, 4), entry(EXIF)]}),
        (Corrupt, {"entries": [entry(XMP), entry(EXIF), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(PIXEL_HASH), entry(LEVEL, 4)]}),
        (Corrupt, {"entries": [entry(LEVEL, 4), entry(PIXEL_HASH), entry(LOW)]}),
        (Corrupt, {"entries": [entry(LEVEL, 4), entry(PIXEL_HASH, 0, 7)]}),
        (Corrupt, {"entries": [entry(LEVEL, 4), entry(PIXEL_HASH, 0, 33)]}),
        (LimitExceeded, {"entries": [entry(ICC, 0, 2**20 + 1), entry(LEVEL, 4)]}),
        (LimitExceeded, {"entries": [entry(EXIF, 0, 2**24 + 1), entry(LEVEL, 4)]}),
        (LimitExceeded, {"entries": [entry(EXIF, 0, 2**23), entry(XMP, 0, 2**23 + 1), entry(LEVEL, 4)]}),
        (LimitExceeded, {"entries": [entry(LEVEL, 4, 2**64 - 1)]}),
        (LimitExceeded, {"entries": [entry(LEVEL, 4, 2**63), entry(LEVEL, 5, 2**63)]}),
    ],
)
def test_refused_header(error: type[FormatError], changes: dict[str, Any]) -> None:
    """Under a correct CRC, each with the error of its cause; fast and in little memory."""
    data = packed(**changes)
    tracemalloc.start()
    start = time.perf_counter()
    check_format_error(lambda: unpack_header(data), error)
    elapsed_s = time.perf_counter() - start
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elapsed_s < 0.05
    assert peak_bytes < 1 << 20


def test_extremes_accepted() -> None:
    """What stands right at a limit is a valid header; so is an unknown ancillary chunk wherever it stands."""
    for changes in (
        {"width": 65_535, "height": 2_730},
        {
            "entries": [
                entry(ICC, 0, 2**20),
                entry(EXIF, 0, 2**24 - 2**20),
                entry(LEVEL, 4, 2**20 + 32 * 40 * 24),
            ]
        },
        {"entries": [entry(0xFF, 7), entry(LEVEL, 1), entry(0x81), entry(LEVEL, 255), entry(0x81)]},
        {"entries": [entry(LEVEL, 4), entry(PIXEL_HASH, 0, 32)]},
        {"bit_depth": 16, "flags": LOSSLESS, "entries": [entry(LEVEL, 4), entry(LOW), entry(PIXEL_HASH)]},
        {"minor": 200},
    ):
        unpack_header(packed(**changes))


def test_reader_limits() -> None:
    needed = container.decode_memory(HEADER)
    for what, limits in (
        ("width", Limits(max_side=32)),
        ("bytes of memory", Limits(max_memory=needed - 1)),
        ("pixels", Limits(max_pixels=33 * 17 - 1)),
        ("metadata bytes", Limits(max_metadata=len(b"profile" + b"exif" + b"<xmp/>") - 1)),
    ):
        error = check_format_error(lambda lim=limits: unpack_header(FILE, lim), LimitExceeded)
        assert (error.what, error.value) == (what, error.limit + 1)
        check_format_error(lambda lim=limits: write_file(PAYLOADS, **FIELDS, limits=lim), LimitExceeded)
    enough = Limits(max_side=33, max_pixels=33 * 17, max_metadata=17, max_memory=needed)
    assert unpack_header(FILE, enough) == HEADER


def test_chunks_are_bounded_by_the_size() -> None:
    """A picture of 33 x 17 pixels cannot make a reader hold more than its levels can have."""
    fits = 2**20 + 32 * 40 * 24
    for entries in ([entry(LEVEL, 4, fits + 1)], [entry(LEVEL, 4, fits), entry(0x81, 0, 1)]):
        error = check_format_error(lambda e=entries: unpack_header(packed(entries=e)), LimitExceeded)
        assert (error.value, error.limit) == (fits + 1, fits)


def test_header_is_valid_or_nothing() -> None:
    for changes in (
        {"width": 0},
        {"height": 2**32},
        {"quality": -1},
        {"minor": 256},
        {"model_hash": b"short"},
        {"chunks": (Chunk(256, 0, 0, 0),)},
        {"chunks": (Chunk(ANCILLARY, -1, 0, 0),)},
        {"chunks": (Chunk(ANCILLARY, 0, -1, 0),)},
    ):
        check_format_error(lambda c=changes: replace(HEADER, **c), Corrupt)
    many = tuple(Chunk(ANCILLARY, 0, 0, 0) for _ in range(65))
    check_format_error(lambda: replace(HEADER, flags=0, chunks=many), LimitExceeded)


def test_errors_carry_data() -> None:
    """Copying goes the way of pickling: errors come whole out of worker processes."""
    for error in (
        NotVbc(),
        UnsupportedVersion(2, 1),
        ModelMissing(b"\x01" * 8),
        Truncated(need=20, have=12, levels_available=(1, 2)),
        Corrupt("here"),
        LimitExceeded("pixels", 10, 5),
    ):
        other = copy.copy(error)
        assert type(other) is type(error)
        assert isinstance(other, ValueError)
        assert (vars(other), str(other)) == (vars(error), str(error))
    assert "0101010101010101" in str(ModelMissing(b"\x01" * 8))


def test_worked_example() -> None:
    """docs/format.md section 11, read from the document itself, decodes to what the text says."""
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```hex\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    data = bytes.fromhex("".join(re.split(r"  +", line)[0] for line in block.splitlines()))
    assert len(data) == 98
    frequencies = np.full((2, 256), 256, np.uint32)
    frequencies[1] = 1
    frequencies[1, 127] = 65281
    tables = TableSet(frequencies)
    header = unpack_header(data)
    assert header == Header(
        width=5,
        height=3,
        channels=3,
        quality=60,
        flags=0,
        model_hash=bytes.fromhex("0011223344556677"),
        tables_hash=tables.digest,
        chunks=(Chunk(LEVEL, 1, 14, 0x30623D52), Chunk(PIXEL_HASH, 0, 8, 0x88AA689F)),
    )
    assert level_ends(header) == {1: 90}
    assert read_chunk(data, header, 1) == bytes(range(8))
    steps = [np.array([1, 0, 1], np.uint16), np.array([0], np.uint16)]
    symbols = decode_lanes(tables, bytes(read_chunk(data, header, 0)), steps)
    assert [list(step) for step in symbols] == [[0, 5, 200], [-127]]
