"""Container: inverses, order and needs of packets, prefixes, sources, every damage of header and index."""

import copy
import io
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checks import bit_flips, check_cheap, check_format_error, check_inverse, truncations

from vbc.bitstream import container
from vbc.bitstream.container import (
    ALPHA,
    ANCILLARY,
    ARCHIVAL,
    BOUND_SHIFT,
    EXIF,
    FIXED_BYTES,
    ICC,
    LOSSLESS,
    LOW,
    PIXEL_HASH,
    XMP,
    Header,
    Limits,
    Packet,
    byte_ranges,
    complete_levels,
    header_end,
    level_ends,
    levels_present,
    pack_header,
    read_packet,
    unpack_header,
    usable,
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
from vbc.bitstream.geometry import Geometry, Sides, is_bins, is_lossy, is_value, stage_of
from vbc.bitstream.source import FileSource, MemorySource, as_source
from vbc.bitstream.varint import pack_varints
from vbc.codec.files.reading import read_vbc

FIELDS: dict[str, Any] = {
    "width": 33,
    "height": 17,
    "channels": 3,
    "quality": 60,
    "flags": LOSSLESS,
    "model_hash": b"model..8",
    "tables_hash": b"tables.8",
}
# 33 x 17 has the levels 1 to 3 and x_3 = 5 x 3 to x_0 = 33 x 17 in levels 4 to 7, each of one group
PAYLOADS = [
    (ICC, 0, b"profile"),
    (ALPHA, 0, b"alpha"),
    (1, 1, b"one"),
    (2, 1, b""),
    (3, 1, b"three"),
    (EXIF, 0, b"exif"),
    (XMP, 0, b"<xmp/>"),
    (4, 1, b"four"),
    (5, 0, b"shared"),
    (5, 1, b"five"),
    (6, 1, b"six"),
    (7, 0, b""),
    (7, 1, b"seven"),
    (PIXEL_HASH, 0, b"12345678"),
]
FILE = write_file(PAYLOADS, **FIELDS)
HEADER = unpack_header(FILE)
HEADER_BYTES = FILE[: HEADER.header_bytes]

LEVEL_UNITS = {*range(1, 64), *range(71, 99)}
BOUNDS = [bound << BOUND_SHIFT for bound in range(16)]
"""In the flags; up to 8 there are."""

TINY = Sides(lossy=(2, 1, 1), refined=(2, 1, 1), exact=(8, 4, 2))
"""Sides that give a small picture many groups."""


def entry(unit: int, part: int | None = None, length: int = 8) -> tuple[int, int, int, int]:
    """(unit, part, length, CRC); part: by default that of the first group of a level."""
    return (unit, (1 if unit in LEVEL_UNITS else 0) if part is None else part, length, 0)


EXACT = [entry(level) for level in (4, 5, 6, 7)]
WHOLE = [entry(1), entry(2), entry(3), *EXACT]
BINS = [entry(level) for level in (71, 72, 73)]
BINNED = [*WHOLE[:4], *BINS, *EXACT[1:]]
"""With a bound of 2."""


def index_of(entries: Sequence[tuple[int, int, int, int]]) -> bytes:
    """An index with a run for each packet, but one for those of a level that follow each other."""
    out, before = b"", None
    runs: list[list[tuple[int, int, int, int]]] = []
    for unit, part, length, crc in entries:
        if before == (unit, part - 1) and unit in LEVEL_UNITS:
            runs[-1].append((unit, part, length, crc))
        else:
            runs.append([(unit, part, length, crc)])
        before = (unit, part)
    for run in runs:
        unit, part = run[0][:2]
        out += bytes([unit])
        if unit in LEVEL_UNITS:
            out += pack_varints([part, len(run)])
        for _, _, length, crc in run:
            out += pack_varints([length], 63) + struct.pack("<I", crc)
    return out


def packed(**changes: Any) -> bytes:
    """Header and index, valid or not, under correct CRCs. entries: (unit, part, length, crc) each."""
    rest = {"flags": 0, "bit_depth": 8, "colour": 0, "major": 2, "minor": 0, "entries": WHOLE}
    field = FIELDS | rest | changes
    index = field["index"] if "index" in field else index_of(field["entries"])
    body = container.MAGIC + struct.pack("<BBH", field["major"], field["minor"], field["flags"])
    body += struct.pack("<IIBBBB", *(field[name] for name in ("width", "height", "channels")),
                        field["bit_depth"], field["colour"], field["quality"])  # fmt: skip
    body += field["model_hash"] + field["tables_hash"] + struct.pack("<I", field.get("n_index", len(index)))
    return body + struct.pack("<I", zlib.crc32(body)) + index + struct.pack("<I", zlib.crc32(index))


def many_groups(
    width: int, height: int, flags: int, *, shared: bool = True, refinements: int = 0
) -> list[tuple[int, int, bytes]]:
    """Payloads of all groups of a size in the default order: level, part, a few bytes of their own."""
    bound = flags >> BOUND_SHIFT
    geometry = Geometry(width, height, refinements=refinements, binned=bound > 0)
    out = []
    for level in geometry.levels:
        if is_lossy(level) and (flags & ARCHIVAL or stage_of(level)[0] > refinements):
            continue
        if is_value(level) and bound not in (0, 2):
            continue
        shares = shared and (is_bins(level) if bound else is_value(level))
        for part in range(0 if shares else 1, geometry.n_groups(level) + 1):
            out.append((level, part, bytes([level, part % 256]) * (part % 3 + 1)))
    return out


# inverses


def test_header_inverse() -> None:
    assert check_inverse(pack_header, unpack_header, HEADER) == HEADER_BYTES
    entries = [(p.unit, p.part, p.length, p.crc32) for p in HEADER.packets]
    assert packed(flags=LOSSLESS, entries=entries) == HEADER_BYTES
    gray = replace(HEADER, channels=1, width=1, height=65_535, quality=0, flags=0, packets=(), minor=255)
    assert len(check_inverse(pack_header, unpack_header, gray)) == FIXED_BYTES + 4 == 52
    archival = replace(HEADER, flags=LOSSLESS | ARCHIVAL, packets=HEADER.packets[:2] + HEADER.packets[5:])
    check_inverse(pack_header, unpack_header, archival)
    for bound in range(1, 9):
        near = replace(gray, flags=BOUNDS[bound])
        data = check_inverse(pack_header, unpack_header, near)
        assert data[10:12] == bytes([0, bound])
        assert (near.bound, near.lossless, near.archival, near.has_values) == (bound, False, False, False)


def test_layout() -> None:
    """docs/format.md section 1, by hand."""
    assert HEADER_BYTES[:16] == b"\x89VBC\r\n\x1a\n" + bytes([2, 0, 1, 0, 33, 0, 0, 0])
    assert HEADER_BYTES[16:24] == bytes([17, 0, 0, 0, 3, 8, 0, 60])
    assert HEADER_BYTES[24:44] == b"model..8tables.8" + struct.pack("<I", HEADER.index_bytes)
    assert HEADER_BYTES[44:48] == struct.pack("<I", zlib.crc32(HEADER_BYTES[:44]))
    index = HEADER_BYTES[48:-4]
    assert index[:6] == bytes([65, 7]) + struct.pack("<I", zlib.crc32(b"profile"))
    # the run of level 5: parts 0 and 1
    assert bytes([5, 0, 2, 6]) + struct.pack("<I", zlib.crc32(b"shared")) + bytes([4]) in index
    assert HEADER_BYTES[-4:] == struct.pack("<I", zlib.crc32(index))
    assert FILE[len(HEADER_BYTES) :] == b"".join(body for _, _, body in PAYLOADS)


def test_file_inverse() -> None:
    assert [
        (p.unit, p.part, bytes(read_packet(FILE, HEADER, i))) for i, p in enumerate(HEADER.packets)
    ] == PAYLOADS
    assert HEADER.file_bytes == len(FILE)
    for view in (bytearray(FILE), memoryview(FILE)):
        assert unpack_header(view) == HEADER
        assert read_packet(view, HEADER, 0) == b"profile"
    assert HEADER.find(5, 0) == 8
    assert HEADER.find(5, 2) is None
    assert [HEADER.has(unit) for unit in (ICC, ALPHA, LOW)] == [True, True, False]
    assert [p.level for p in HEADER.packets][1:4] == [0, 1, 2]
    assert levels_present(HEADER) == (1, 2, 3, 4, 5, 6, 7)
    assert (HEADER.lossless, HEADER.archival) == (True, False)


def test_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, whatever the order: as long as they can be, and the packets come back in it."""
    monkeypatch.setattr("vbc.bitstream.geometry.SIDES", TINY)
    for flags, shared, refinements in (
        (0, True, 0),
        (0, True, 2),
        (LOSSLESS, False, 0),
        (LOSSLESS, True, 3),
        (LOSSLESS | ARCHIVAL, True, 0),
        (LOSSLESS | BOUNDS[2], True, 1),
        (LOSSLESS | ARCHIVAL | BOUNDS[2], False, 0),
        (BOUNDS[7], True, 0),
    ):
        payloads = many_groups(61, 47, flags, shared=shared, refinements=refinements)
        data = write_file(payloads, **FIELDS | {"width": 61, "height": 47, "flags": flags})
        header = unpack_header(data)
        assert check_inverse(pack_header, unpack_header, header) == data[: header.header_bytes]
        assert [
            (p.unit, p.part, bytes(read_packet(data, header, i))) for i, p in enumerate(header.packets)
        ] == (payloads)
        n_levels = len({level for level, _, _ in payloads})
        assert header.index_bytes < 3 * n_levels + 6 * len(payloads)


# prefixes and sources


def test_prefixes() -> None:
    """At every truncation point exactly the packets that are complete can be read."""
    ends = level_ends(HEADER)
    assert list(ends) == [1, 2, 3, 4, 5, 6, 7]
    assert ends[1] == HEADER.header_bytes + len(b"profile" + b"alpha" + b"one") == ends[2]
    assert ends[7] == len(FILE) - 8
    for n_bytes in range(HEADER.header_bytes, len(FILE)):
        prefix = FILE[:n_bytes]
        assert unpack_header(prefix) == HEADER
        complete = tuple(level for level in ends if ends[level] <= n_bytes)
        assert complete_levels(HEADER, usable(HEADER, n_bytes)) == complete
        for i, (_, _, body) in enumerate(PAYLOADS):
            if HEADER.ends[i] <= n_bytes:
                assert read_packet(prefix, HEADER, i) == body
                continue
            error = check_format_error(lambda p=prefix, i=i: read_packet(p, HEADER, i), Truncated)
            assert (error.need, error.have) == (HEADER.ends[i], n_bytes)
            assert error.levels_available == complete


def test_sources(tmp_path: Path) -> None:
    """A file on a disk gives what bytes give, and is read where it is needed only."""
    path = tmp_path / "file"
    path.write_bytes(FILE)
    with path.open("rb") as file:
        source = FileSource(file)
        assert unpack_header(source) == HEADER
        assert [bytes(read_packet(source, HEADER, i)) for i in (13, 0, 9)] == [
            b"12345678",
            b"profile",
            b"five",
        ]
        assert as_source(source) is source

    class Watched(MemorySource):
        read_from: list[tuple[int, int]]

        def read(self, start: int, end: int) -> memoryview:
            self.read_from.append((start, end))
            return super().read(start, end)

    watched = Watched(FILE)
    watched.read_from = []
    header = unpack_header(watched)
    assert read_packet(watched, header, 9) == b"five"
    assert watched.read_from == [(0, 48), (48, header.header_bytes), header.span(9)]
    for short in (MemorySource(FILE[:-3]), FileSource(io.BytesIO(FILE[:-3]))):
        assert short.read(1, 4) == FILE[1:4]
        error = check_format_error(lambda s=short: s.read(2, len(FILE)), Truncated)
        assert (error.need, error.have) == (len(FILE), len(FILE) - 3)


def test_file_that_shrinks() -> None:
    file = io.BytesIO(FILE)
    source = FileSource(file)
    header = unpack_header(source)
    file.truncate(len(FILE) - 1)
    assert read_packet(source, header, 0) == b"profile"
    check_format_error(lambda: read_packet(source, header, 13), Truncated)


def test_byte_ranges() -> None:
    start = HEADER.header_bytes
    assert byte_ranges(HEADER, []) == [(0, start)]
    assert byte_ranges(HEADER, [0]) == [(0, start + 7)]
    assert byte_ranges(HEADER, [13, 2, 13, 3]) == [(0, start), (start + 12, start + 15), HEADER.span(13)]
    assert byte_ranges(HEADER, range(14)) == [(0, len(FILE))]
    assert byte_ranges(HEADER, [4, 3, 5]) == [(0, start), (start + 15, start + 24)]
    holes = bytearray(len(FILE))
    for first, end in byte_ranges(HEADER, [1, 9]):
        holes[first:end] = FILE[first:end]
    header = unpack_header(holes)
    assert read_packet(holes, header, 1) == b"alpha"
    assert read_packet(holes, header, 9) == b"five"


class OneByteAtATime(io.BytesIO):
    """A stream that gives less than was asked for, and counts."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size > 0
        data = super().read(1)
        self.taken += len(data)
        return data


def test_reading_stops_where_the_header_says(tmp_path: Path) -> None:
    stream = OneByteAtATime(FILE + b"more" * 100)
    assert read_vbc(stream) == FILE + b"m"
    assert stream.taken == len(FILE) + 1
    for n_bytes in (0, 9, 47, 48, 60, HEADER.header_bytes, len(FILE) - 1, len(FILE)):
        assert read_vbc(io.BytesIO(FILE[:n_bytes])) == FILE[:n_bytes]
    (tmp_path / "file").write_bytes(FILE)
    assert read_vbc(tmp_path / "file") == FILE
    # a bad header ends it before the index, a bad index before the packets
    for bad, taken in ((packed(quality=101), HEADER.header_bytes), (packed(n_index=1 << 31), 48)):
        stream = OneByteAtATime(bad + FILE)
        check_format_error(lambda s=stream: read_vbc(s))
        assert stream.taken <= taken
    flipped = bytearray(FILE)
    flipped[50] ^= 1
    stream = OneByteAtATime(flipped)
    check_format_error(lambda: read_vbc(stream), Corrupt)
    assert stream.taken == HEADER.header_bytes


# what is usable


def usable_by_hand(header: Header, there: Sequence[bool]) -> list[bool]:
    """The definition: round after round, until nothing more falls away."""
    good, geometry = list(there), header.geometry
    while True:
        before = list(good)
        for i, packet in enumerate(header.packets):
            if not packet.level or not packet.part:
                continue
            needed = [(packet.level, 0)] if header.find(packet.level) is not None else []
            for other, rectangle in geometry.needs(packet.level, packet.part - 1, header.archival).items():
                needed += [(other, group + 1) for group in geometry.numbers(other, rectangle)]
            good[i] = good[i] and all(good[header.places[key]] for key in needed)
        if good == before:
            return good


@pytest.mark.parametrize("flags", [0, ARCHIVAL, BOUNDS[2], ARCHIVAL | BOUNDS[2]])
def test_usable(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbc.bitstream.geometry.SIDES", TINY)
    payloads = many_groups(61, 47, flags)
    data = write_file(payloads, **FIELDS | {"width": 61, "height": 47, "flags": flags | LOSSLESS})
    header = unpack_header(data)
    n = len(payloads)
    rng = random.Random(flags)
    lost = [
        [],
        range(n),
        *([i] for i in rng.sample(range(n), 30)),
        *(rng.sample(range(n), 5) for _ in range(20)),
    ]
    by_level = {level: [i for i in range(n) if payloads[i][0] == level] for level, _, _ in payloads}
    lost += [by_level[level][:1] for level in by_level] + [by_level[max(by_level)]]
    for places in lost:
        there = [i not in places for i in range(n)]
        found = usable(header, there.__getitem__)
        assert list(found) == usable_by_hand(header, there)
        whole = [level for level in by_level if all(found[i] for i in by_level[level])]
        assert list(complete_levels(header, found)) == whole
    for n_bytes in rng.sample(range(header.header_bytes, len(data)), 30):
        there = [end <= n_bytes for end in header.ends]
        assert list(usable(header, n_bytes)) == usable_by_hand(header, there) == there
    assert sum(usable(header, lambda i: i != 0)) < n
    assert all(usable(header, len(data)))


REFINED = [*WHOLE[:3], *(entry(level) for level in range(33, 39)), *EXACT]


def test_refinements() -> None:
    """Levels in their order; exact levels are told the last quality."""
    for refinements in range(4):
        header = unpack_header(
            packed(entries=[*WHOLE[:3], *REFINED[3 : 3 + 3 * min(refinements, 2)], *EXACT])
        )
        assert header.geometry.refinements == min(refinements, 2)
        assert header.final_quality == (60, 85, 100, 100)[refinements]
    assert levels_present(header) == (1, 2, 3, *range(33, 39), 4, 5, 6, 7)
    assert tuple(level_ends(header)) == levels_present(header)
    assert complete_levels(header, usable(header, header.ends[3])) == (1, 2, 3, 33)
    # level 1 alone refined, twice
    header = unpack_header(packed(entries=[WHOLE[0], entry(33), entry(36)]))
    assert levels_present(header) == (1, 33, 36)
    assert header.geometry.refinements == 2
    # exact levels first: they need none of the refinements as long as there is none of their own
    header = unpack_header(packed(entries=[*WHOLE[:3], entry(4), *REFINED[3:9], *EXACT[1:]]))
    assert levels_present(header) == (1, 2, 3, *range(33, 39), 4, 5, 6, 7)
    good = usable(header, lambda i: header.packets[i].unit != 34)
    assert [p.unit for p, is_good in zip(header.packets, good, strict=True) if is_good] == [
        1,
        2,
        3,
        4,
        33,
        36,
    ]


@pytest.mark.parametrize(
    ("what", "entries"),
    [
        ("before what it refines", [entry(33), *WHOLE]),
        ("without what it refines", [*WHOLE[:1], entry(34)]),
        ("the second one alone", [*WHOLE[:3], entry(36)]),
        ("the second one of level 2 before the first", [*WHOLE[:3], entry(33), entry(36), entry(37)]),
        ("of level 3 without that of level 2", [*WHOLE[:3], entry(33), entry(35)]),
        ("exact levels without its level 3", [*WHOLE[:3], entry(33), entry(34), *EXACT]),
        ("exact levels before it", [*WHOLE, entry(33), entry(34), entry(35)]),
        ("a fourth one", [*REFINED[:9], *(entry(level) for level in range(39, 43))]),
        ("a part that the size has not", [*WHOLE[:3], entry(33, 2)]),
        ("twice", [*WHOLE[:3], entry(33), entry(33)]),
    ],
)
def test_refinements_refused(what: str, entries: list[tuple[int, int, int, int]]) -> None:
    check_format_error(lambda: unpack_header(packed(entries=entries)), Corrupt)


def test_what_refinements_do_not_have() -> None:
    check_format_error(lambda: unpack_header(packed(entries=[*WHOLE[:3], entry(33, 0)])), UnsupportedVersion)
    archival = [*EXACT, entry(33)]
    check_format_error(lambda: unpack_header(packed(flags=ARCHIVAL, entries=archival)), Corrupt)


def test_bins() -> None:
    """Levels in their order; a group of values falls with its bins."""
    header = unpack_header(packed(flags=LOSSLESS | BOUNDS[2], entries=BINNED))
    assert (header.bound, header.lossless, header.archival, header.has_values) == (2, True, False, True)
    assert header.geometry.binned
    levels = (1, 2, 3, 4, 71, 72, 73, 5, 6, 7)
    assert levels_present(header) == tuple(level_ends(header)) == levels
    assert [p.level for p in header.packets] == list(levels)
    assert complete_levels(header, usable(header, header.ends[5])) == levels[:6]
    for lost, left in (
        (72, (1, 2, 3, 4, 71, 5)),
        (5, (1, 2, 3, 4, 71, 72, 73)),
        (73, (1, 2, 3, 4, 71, 72, 5, 6)),
        (4, (1, 2, 3)),
        (3, (1, 2, 4)),
    ):
        good = usable(header, lambda i, lost=lost: header.packets[i].unit != lost)
        assert complete_levels(header, good) == left
    # each level of bins before its values
    places = [0, 1, 2, 3, 4, 7, 5, 8, 6, 9]
    mixed = unpack_header(packed(flags=LOSSLESS | BOUNDS[2], entries=[BINNED[i] for i in places]))
    assert levels_present(mixed) == levels
    near = unpack_header(packed(flags=ARCHIVAL | BOUNDS[8], entries=[EXACT[0], *BINS]))
    assert (near.bound, near.has_values, levels_present(near)) == (8, False, (4, 71, 72, 73))


@pytest.mark.parametrize(
    ("what", "flags", "entries"),
    [
        ("without a bound", 0, [*WHOLE[:4], BINS[0]]),
        ("that the size has not", BOUNDS[2], [*WHOLE[:4], *BINS, entry(74)]),
        ("a part that the size has not", BOUNDS[2], [*WHOLE[:4], entry(71, 2)]),
        ("twice", BOUNDS[2], [*WHOLE[:4], BINS[0], BINS[0]]),
        ("without level 4", BOUNDS[2], [*WHOLE[:3], BINS[0]]),
        ("a part 0 without level 4", BOUNDS[2], [*WHOLE[:3], entry(71, 0)]),
        ("before level 4", BOUNDS[2], [*WHOLE[:3], BINS[0], EXACT[0]]),
        ("without coarser ones", BOUNDS[2], [*WHOLE[:4], BINS[1]]),
        ("a part 0 without coarser ones", BOUNDS[2], [*WHOLE[:4], entry(72, 0)]),
        ("before coarser ones", BOUNDS[2], [*WHOLE[:4], BINS[1], BINS[0]]),
        ("a part 0 behind them", BOUNDS[2], [*WHOLE[:4], BINS[0], entry(71, 0)]),
        ("without a lossy picture", BOUNDS[2], [EXACT[0], BINS[0]]),
        ("a part 0 without a lossy picture", BOUNDS[2], [EXACT[0], entry(71, 0)]),
        ("before the lossy picture", BOUNDS[2], [EXACT[0], BINS[0], *WHOLE[:3]]),
        ("before the last refinement", BOUNDS[2], [*WHOLE[:4], BINS[0], entry(33), entry(34), entry(35)]),
        ("with a lossy picture in an archival file", ARCHIVAL | BOUNDS[2], BINNED),
        ("values without any", BOUNDS[2], WHOLE),
        ("values without theirs", BOUNDS[2], [*WHOLE[:4], BINS[0], *EXACT[1:3]]),
        ("values before theirs", BOUNDS[2], [*WHOLE[:4], BINS[0], *EXACT[1:3], BINS[1]]),
        ("values without coarser ones", BOUNDS[2], [*WHOLE[:4], *BINS, EXACT[2]]),
        ("values before coarser ones", BOUNDS[2], [*WHOLE[:4], *BINS, EXACT[2], EXACT[1]]),
        ("values after a bound of 1", BOUNDS[1], BINNED),
        ("values after a bound of 3", ARCHIVAL | BOUNDS[3], [EXACT[0], BINS[0], EXACT[1]]),
        ("lossless without values", LOSSLESS | BOUNDS[2], BINNED[:7]),
        ("lossless without the last values", LOSSLESS | BOUNDS[2], BINNED[:-1]),
        ("lossless with another bound", LOSSLESS | BOUNDS[1], BINNED[:7]),
        ("after the pixel hash", BOUNDS[2], [*WHOLE[:4], entry(PIXEL_HASH), BINS[0]]),
        ("before ALPHA", ARCHIVAL | BOUNDS[2], [EXACT[0], BINS[0], entry(ALPHA)]),
    ],
)
def test_bins_refused(what: str, flags: int, entries: list[tuple[int, int, int, int]]) -> None:
    check_format_error(lambda: unpack_header(packed(flags=flags, entries=entries)), Corrupt)


def test_values_after_bins_share_nothing() -> None:
    """A part 0 is one of the bins; the header says so before any packet is looked at."""
    shared = [*BINNED[:7], entry(5, 0), *BINNED[7:]]
    check_format_error(lambda: unpack_header(packed(flags=BOUNDS[2], entries=shared)), UnsupportedVersion)
    shared = [*BINNED[:4], entry(71, 0), *BINNED[4:]]
    header = unpack_header(packed(flags=BOUNDS[2], entries=shared))
    good = usable(header, lambda i: header.packets[i].part > 0)
    assert complete_levels(header, good) == (1, 2, 3, 4)


def test_parts_of_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have some groups of a level only: the level is present, but never complete."""
    monkeypatch.setattr("vbc.bitstream.geometry.SIDES", TINY)
    geometry = Geometry(61, 47)
    last = geometry.last_level
    payloads = [p for p in many_groups(61, 47, ARCHIVAL) if p[0] != last or p[1] in (3, 1, 9)]
    data = write_file(payloads, **FIELDS | {"width": 61, "height": 47, "flags": ARCHIVAL})
    header = unpack_header(data)
    assert levels_present(header) == tuple(range(4, last + 1))
    assert tuple(level_ends(header)) == tuple(range(4, last))
    assert complete_levels(header, usable(header, len(data))) == tuple(range(4, last))
    with pytest.raises(Corrupt, match="lossless"):
        write_file(payloads, **FIELDS | {"width": 61, "height": 47, "flags": ARCHIVAL | LOSSLESS})


# order and needs


@pytest.mark.parametrize("bound", [0, 2])
def test_region_first(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    """What a region needs may stand first, level by level or group by group, and nothing needed later."""
    monkeypatch.setattr("vbc.bitstream.geometry.SIDES", TINY)
    size = {"width": 61, "height": 47, "flags": ARCHIVAL | LOSSLESS | BOUNDS[bound]}
    geometry = Geometry(61, 47, binned=bound > 0)
    payloads = many_groups(61, 47, ARCHIVAL | BOUNDS[bound])
    region = geometry.region_groups((3, 20, 9, 5), geometry.last_level, archival=True)
    first = [p for p in payloads if p[1] == 0 or p[1] - 1 in region.get(p[0], [])]
    rest = [p for p in payloads if p not in first]
    assert len(first) < len(payloads) / 2
    data = write_file(first + rest, **FIELDS | size)
    header = unpack_header(data)
    good = usable(header, header.ends[len(first) - 1])
    assert good == (True,) * len(first) + (False,) * len(rest)
    assert check_inverse(pack_header, unpack_header, header) == data[: header.header_bytes]
    # one packet that the region's last group needs, moved behind it
    levels = {level for level, _, _ in payloads} - {geometry.last_level}
    assert len(levels) == (geometry.top * 2 if bound else geometry.top)
    for level in levels:
        moved = next(p for p in first if p[0] == level and p[1])
        others = [p for p in first if p != moved]
        with pytest.raises(Corrupt):
            write_file([*others, moved, *rest], **FIELDS | size)


@pytest.mark.parametrize(
    ("flags", "refinements"), [(0, 0), (0, 1), (ARCHIVAL, 0), (BOUNDS[2], 1), (ARCHIVAL | BOUNDS[2], 0)]
)
def test_every_need_is_checked(flags: int, refinements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two neighbours in the file change places: refused exactly where one needs the other."""
    monkeypatch.setattr(
        "vbc.bitstream.geometry.SIDES", Sides(lossy=(2, 1, 1), refined=(1, 1, 1), exact=(8, 8, 4))
    )
    payloads = many_groups(40, 30, flags, refinements=refinements)
    fields = FIELDS | {"width": 40, "height": 30, "flags": flags}
    header = unpack_header(write_file(payloads, **fields))
    geometry = header.geometry
    outcomes = set()
    for i in range(len(payloads) - 1):
        for j in range(i + 1, min(i + 12, len(payloads))):
            # packet j goes before packet i: it must need none of those it passes
            order = [*payloads[:i], payloads[j], *payloads[i:j], *payloads[j + 1 :]]
            level, part, _ = payloads[j]
            passed = {(unit, p) for unit, p, _ in payloads[i:j]}
            needed = {(level, 0)} if part else set()
            if part:
                for other, rectangle in geometry.needs(level, part - 1, header.archival).items():
                    needed |= {(other, group + 1) for group in geometry.numbers(other, rectangle)}
            if needed & passed:
                check_format_error(lambda o=order: write_file(o, **fields), Corrupt)
            else:
                write_file(order, **fields)
            outcomes.add(bool(needed & passed))
    assert outcomes == {True, False}


@pytest.mark.parametrize("flags", [0, ARCHIVAL, BOUNDS[2], BOUNDS[3], ARCHIVAL | BOUNDS[2]])
def test_missing_needs(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a packet that another needs a file is refused; what nothing needs may be left out."""
    monkeypatch.setattr("vbc.bitstream.geometry.SIDES", TINY)
    payloads = many_groups(30, 40, flags)
    fields = FIELDS | {"width": 30, "height": 40, "flags": flags}
    last = payloads[-1][0]
    for i, (level, part, _) in enumerate(payloads):
        rest = payloads[:i] + payloads[i + 1 :]
        if level == last or part == 0:
            write_file(rest, **fields)
        else:
            check_format_error(lambda r=rest: write_file(r, **fields), Corrupt)


def test_damaged_payload() -> None:
    for i, (_, _, body) in enumerate(PAYLOADS):
        start = HEADER.ends[i] - len(body)
        for flipped in bit_flips(FILE, range(8 * start, 8 * (start + len(body)))):
            check_format_error(lambda f=flipped, i=i: read_packet(f, HEADER, i), Corrupt)
    check_format_error(lambda: unpack_header(FILE + b"\0"), Corrupt)
    check_format_error(lambda: read_packet(FILE + b"\0", HEADER, 0), Corrupt)


# damage of header and index


def test_truncated_header() -> None:
    for prefix in truncations(HEADER_BYTES):
        error = check_format_error(lambda p=prefix: unpack_header(p), Truncated)
        assert error.have == len(prefix)
        assert error.need == (48 if len(prefix) < 48 else HEADER.header_bytes)
        if len(prefix) < 48:
            check_format_error(lambda p=prefix: header_end(p), Truncated)
        else:
            assert header_end(prefix) == HEADER.header_bytes


def test_flipped_header() -> None:
    seen = {type(check_format_error(lambda f=f: unpack_header(f))) for f in bit_flips(HEADER_BYTES)}
    assert seen == {NotVbc, UnsupportedVersion, Corrupt}


def test_flipped_header_under_right_checksums() -> None:
    """What the checksums would catch, without them: an error of the family or a valid header."""
    fields, index = HEADER_BYTES[:44], HEADER_BYTES[48:-4]
    outcomes = set()
    for flipped in bit_flips(fields + index):
        body, rest = flipped[:44], flipped[44:]
        data = body + struct.pack("<I", zlib.crc32(body)) + rest + struct.pack("<I", zlib.crc32(rest))
        try:
            header = unpack_header(data)
        except FormatError as error:
            outcomes.add(type(error))
            continue
        assert pack_header(header) == data
        outcomes.add(Header)
    assert outcomes == {NotVbc, UnsupportedVersion, Truncated, Corrupt, LimitExceeded, Header}


def test_truncated_index_under_right_checksums() -> None:
    index = HEADER_BYTES[48:-4]
    ends = {
        len(index_of([(p.unit, p.part, p.length, p.crc32) for p in HEADER.packets[:i]])) for i in range(15)
    }
    for cut in truncations(index):
        if len(cut) not in ends:
            check_format_error(lambda c=cut: unpack_header(packed(index=c)), Corrupt)


def test_random_indices() -> None:
    rng = random.Random(3)
    for n_bytes in range(600):
        index = rng.randbytes(n_bytes % 300)
        if n_bytes % 2:
            index = bytes([rng.choice([4, 5, 65, 66, 71, 128])]) + bytes([1]) * (n_bytes % 7) + index
        try:
            header = unpack_header(packed(index=index, flags=BOUNDS[n_bytes % 4 // 2]))
        except FormatError:
            continue
        assert pack_header(header)[48:-4] == index


def test_not_vbc() -> None:
    for data in (b"\x89PNG\r\n\x1a\n" + bytes(60), b"x", bytes(1000), b"\x89VBC\n\x1a\n" + bytes(60)):
        check_format_error(lambda d=data: unpack_header(d), NotVbc)


def test_format_1_files_are_told_apart() -> None:
    error = check_format_error(
        lambda: unpack_header(container.MAGIC + b"\1\0" + bytes(2)), UnsupportedVersion
    )
    assert (error.major, error.minor) == (1, 0)


def test_empty_input() -> None:
    assert check_format_error(lambda: unpack_header(b""), Truncated).need == 48


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
        (UnsupportedVersion, {"major": 1}),
        (UnsupportedVersion, {"major": 3}),
        (UnsupportedVersion, {"channels": 0}),
        (UnsupportedVersion, {"channels": 2}),
        (UnsupportedVersion, {"channels": 4}),
        (UnsupportedVersion, {"bit_depth": 12}),
        (UnsupportedVersion, {"colour": 1}),
        (UnsupportedVersion, {"flags": 4}),
        (UnsupportedVersion, {"flags": 0x80}),
        (UnsupportedVersion, {"flags": BOUNDS[9]}),
        (UnsupportedVersion, {"flags": BOUNDS[15] | ARCHIVAL, "entries": EXACT}),
        (UnsupportedVersion, {"flags": 0x1000 | BOUNDS[2], "entries": BINNED}),
        (UnsupportedVersion, {"flags": 0x8000 | LOSSLESS}),
        # what goes together
        (Corrupt, {"bit_depth": 16, "flags": LOSSLESS}),
        (Corrupt, {"bit_depth": 16, "entries": [*WHOLE, entry(LOW)]}),
        (Corrupt, {"bit_depth": 8, "flags": LOSSLESS, "entries": [*WHOLE, entry(LOW)]}),
        (Corrupt, {"entries": [], "flags": LOSSLESS}),
        (Corrupt, {"entries": WHOLE[:3], "flags": LOSSLESS}),
        (Corrupt, {"entries": WHOLE[:-1], "flags": LOSSLESS}),
        (Corrupt, {"entries": [*WHOLE[:-1], entry(7, 0)], "flags": LOSSLESS}),
        (Corrupt, {"flags": ARCHIVAL}),
        (Corrupt, {"flags": ARCHIVAL, "entries": [entry(1)]}),
        # units, levels and parts
        (UnsupportedVersion, {"entries": [entry(0, 0)]}),
        (UnsupportedVersion, {"entries": [entry(64)]}),
        (UnsupportedVersion, {"entries": [entry(99)]}),
        (UnsupportedVersion, {"entries": [entry(127)]}),
        (Corrupt, {"entries": [*WHOLE, entry(8)]}),
        (Corrupt, {"entries": [entry(63)]}),
        (Corrupt, {"entries": [entry(1, 2)]}),
        (Corrupt, {"entries": [entry(1, 2**32 - 1)]}),
        (UnsupportedVersion, {"entries": [entry(1, 0)]}),
        (UnsupportedVersion, {"entries": [entry(4, 0)]}),
        (Corrupt, {"entries": [entry(1), entry(1)]}),
        (Corrupt, {"entries": [*WHOLE, entry(7)]}),
        (Corrupt, {"entries": [entry(ICC), entry(ICC)]}),
        (Corrupt, {"entries": [entry(EXIF), *WHOLE, entry(EXIF)]}),
        # order and needs
        (Corrupt, {"entries": [entry(2)]}),
        (Corrupt, {"entries": [entry(2), entry(1)]}),
        (Corrupt, {"entries": [entry(1), entry(3)]}),
        (Corrupt, {"entries": EXACT}),
        (Corrupt, {"entries": [entry(1), entry(2), *EXACT]}),
        (Corrupt, {"entries": [*WHOLE[:4], *WHOLE[5:]]}),
        (Corrupt, {"entries": [*EXACT[:3], *WHOLE[:3], EXACT[3]]}),
        (Corrupt, {"entries": [*WHOLE, entry(7, 0)]}),
        (Corrupt, {"entries": [*WHOLE, entry(ICC)]}),
        (Corrupt, {"entries": [entry(1), entry(ALPHA), *WHOLE[1:]]}),
        (Corrupt, {"entries": [entry(ALPHA), entry(ICC), *WHOLE]}),
        (Corrupt, {"entries": [entry(PIXEL_HASH), *WHOLE]}),
        (Corrupt, {"entries": [*WHOLE[:-1], entry(PIXEL_HASH), WHOLE[-1]]}),
        (
            Corrupt,
            {"entries": [*WHOLE, entry(PIXEL_HASH), entry(LOW)], "flags": LOSSLESS, "bit_depth": 16},
        ),
        # lengths
        (Corrupt, {"entries": [*WHOLE, entry(PIXEL_HASH, 0, 7)]}),
        (Corrupt, {"entries": [*WHOLE, entry(PIXEL_HASH, 0, 33)]}),
        (LimitExceeded, {"entries": [entry(ICC, 0, 2**20 + 1), *WHOLE]}),
        (LimitExceeded, {"entries": [entry(EXIF, 0, 2**24 + 1), *WHOLE]}),
        (LimitExceeded, {"entries": [entry(EXIF, 0, 2**23), entry(XMP, 0, 2**23 + 1)]}),
        (LimitExceeded, {"entries": [entry(1, 1, 2**62 - 1)]}),
        (LimitExceeded, {"entries": [entry(1, 1, 2**61), entry(2, 1, 2**61)]}),
        (Corrupt, {"entries": [entry(1, 1, 2**62)]}),
        # the index itself
        (LimitExceeded, {"n_index": 1024 + 32 * 32 + 1}),
        (LimitExceeded, {"n_index": 1024 + 32 * 38 + 1, "flags": BOUNDS[2]}),
        (LimitExceeded, {"n_index": 2**32 - 1}),
        (LimitExceeded, {"entries": [entry(ANCILLARY)] * 400}),
        (Corrupt, {"index": b"\1"}),
        (Corrupt, {"index": b"\1\1"}),
        (Corrupt, {"index": b"\1\1\0"}),  # no packets
        (Corrupt, {"index": b"\1\1\1"}),
        (Corrupt, {"index": b"\1\1\1\3abc"}),
        (Corrupt, {"index": b"\1\1\2\3abcd"}),
        (Corrupt, {"index": b"\1\1" + b"\xff\xff\xff\xff\x0f" + b"\3abcd"}),
        (Corrupt, {"index": b"\1\1" + b"\x80" * 9 + b"\1\3abcd"}),
        (Corrupt, {"index": b"\1\x81\0\1\3abcd"}),  # not the shortest form
        (Corrupt, {"index": b"\1\1\x81\0\3abcd"}),
        (Corrupt, {"index": b"\1\1\1\x83\0abcd"}),
        (Corrupt, {"index": b"\x80" + b"\x80" * 9 + b"\1abcd"}),
    ],
)
def test_refused_header(error: type[FormatError], changes: dict[str, Any]) -> None:
    """Under correct CRCs, each with the error of its cause, in little processor time and little memory."""
    data = packed(**changes)
    check_cheap(lambda: check_format_error(lambda: unpack_header(data), error), 0.05, 1 << 20)


def test_a_run_is_as_long_as_it_can_be() -> None:
    """So that there is one index for given packets."""
    (first, second) = (pack_varints([part, 1]) + b"\3abcd" for part in (0, 1))
    split = index_of([*WHOLE[:4]]) + b"\5" + first + b"\5" + second
    whole = index_of([*WHOLE[:4]]) + b"\5\0\2" + 2 * b"\3abcd"
    assert len(unpack_header(packed(index=whole)).packets) == 6
    check_format_error(lambda: unpack_header(packed(index=split)), Corrupt)


def test_index_is_judged_before_it_is_read() -> None:
    """By the header alone, so that a reader asks for no more than the size can need."""
    limit = 1024 + 32 * Geometry(33, 17, binned=True).n_parts
    assert Geometry(33, 17, binned=True).n_parts == 14 + 18 + 6
    assert header_end(packed(n_index=limit, flags=BOUNDS[1])[:48]) == 48 + limit + 4
    check_format_error(lambda: header_end(packed(n_index=limit)[:48]), LimitExceeded)
    limit = 1024 + 32 * Geometry(33, 17).n_parts
    assert Geometry(33, 17).n_parts == 14 + 18
    assert header_end(packed(n_index=limit)[:48]) == 48 + limit + 4
    error = check_format_error(lambda: header_end(packed(n_index=limit + 1)[:48]), LimitExceeded)
    assert (error.what, error.value, error.limit) == ("index bytes", limit + 1, limit)
    for changes in ({"width": 0}, {"width": 65_536}):
        check_format_error(lambda c=changes: header_end(packed(**c)[:48]))
    wide = Limits(max_side=2**32 - 1, max_pixels=2**64)
    error = check_format_error(
        lambda: header_end(packed(width=2**32 - 1, height=2**32 - 1), wide), LimitExceeded
    )
    assert error.what == "parts"
    assert header_end(packed(width=200_000, height=200_000)[:48], wide) > 48


def test_extremes_accepted() -> None:
    """What stands right at a limit is a valid header; an unknown ancillary packet may stand anywhere."""
    coded = 2**20 + 32 * 40 * 24
    whole = entry(255, 0, 9)
    for changes in (
        {"width": 65_535, "height": 2_730, "entries": []},
        {"entries": [entry(ICC, 0, 2**20), entry(EXIF, 0, 2**24 - 2**20), entry(1, 1, coded)]},
        {"entries": [whole, WHOLE[0], entry(129), *WHOLE[1:], entry(129), entry(129)]},
        {"entries": [entry(XMP), entry(ICC), entry(ALPHA), WHOLE[0], entry(EXIF), *WHOLE[1:]]},
        {"entries": [*WHOLE, entry(PIXEL_HASH, 0, 32), entry(EXIF), entry(XMP)]},
        {"bit_depth": 16, "flags": LOSSLESS, "entries": [*WHOLE, entry(LOW), entry(PIXEL_HASH)]},
        {"flags": LOSSLESS | ARCHIVAL, "entries": EXACT},
        {"flags": ARCHIVAL, "entries": EXACT[:2]},
        {"entries": [EXACT[0]]},  # level 4 needs nothing
        {"entries": [*WHOLE[:4], entry(5, 0)]},
        {"entries": []},
        {"width": 1, "height": 1, "flags": LOSSLESS, "entries": [EXACT[0]]},
        {"flags": LOSSLESS | BOUNDS[2], "entries": BINNED},
        {"flags": LOSSLESS | ARCHIVAL | BOUNDS[2], "entries": BINNED[3:]},
        {"flags": LOSSLESS | BOUNDS[8], "entries": WHOLE[:4]},  # level 4 may be the whole picture
        *({"flags": ARCHIVAL | BOUNDS[bound], "entries": [EXACT[0], *BINS]} for bound in range(1, 9)),
        {"flags": BOUNDS[1], "entries": [*WHOLE[:4], entry(71, 0), BINS[0]]},
        {"flags": BOUNDS[2], "entries": [*BINNED[:5], EXACT[1], *BINNED[5:7], *BINNED[8:]]},
        {"width": 1, "height": 1, "flags": LOSSLESS | BOUNDS[2], "entries": [EXACT[0]]},
        {"minor": 200},
    ):
        data = packed(**changes)
        assert pack_header(unpack_header(data)) == data


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


def test_packets_are_bounded_by_the_size() -> None:
    """A picture of 33 x 17 pixels cannot make a reader hold more than its levels can have."""
    fits = 2**20 + 32 * 40 * 24
    for entries in ([entry(1, 1, fits + 1)], [entry(1, 1, fits), entry(129, 0, 1)]):
        error = check_format_error(lambda e=entries: unpack_header(packed(entries=e)), LimitExceeded)
        assert (error.value, error.limit) == (fits + 1, fits)


def test_header_is_valid_or_nothing() -> None:
    for changes in (
        {"width": 0},
        {"height": 2**32},
        {"quality": -1},
        {"minor": 256},
        {"model_hash": b"short"},
        {"packets": (Packet(256, 0, 0, 0),)},
        {"packets": (Packet(ANCILLARY, 1, 0, 0),)},
        {"packets": (Packet(1, -1, 0, 0),)},
        {"packets": (Packet(ANCILLARY, 0, -1, 0),)},
        {"packets": (Packet(ANCILLARY, 0, 0, 2**32),)},
    ):
        check_format_error(lambda c=changes: replace(HEADER, **{"flags": 0, **c}), Corrupt)
    many = tuple(Packet(ANCILLARY, 0, 0, 0) for _ in range(1 << 16))
    check_format_error(lambda: replace(HEADER, flags=0, packets=many), LimitExceeded)


def test_thousand_packets_are_quick() -> None:
    """Measured: 4.5 ms to parse, 1.4 ms to see what is usable of some 1,200 packets."""
    payloads = many_groups(8192, 8192, 0)
    data = write_file(payloads, **FIELDS | {"width": 8192, "height": 8192})
    check_cheap(lambda: usable(unpack_header(data), len(data)), 0.1)
    header = unpack_header(data)
    good = usable(header, len(data))
    assert len(good) == len(payloads) == 1203
    assert header.index_bytes < 6000 + len(payloads)


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
