"""What is fuzzed: functions of bytes that must return.

`scripts/fuzz` runs them, tests/test_torture.py replays the seeds through them.
"""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image, ImageFile

import vbc.codec.pillow as plugin
from torture.material import (
    GOLDEN,
    META,
    SMALL_LIMITS,
    TESTS,
    TINY,
    grouped_files,
    loosen,
    pack_index,
    small_files,
)
from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt, FormatError, Truncated
from vbc.bitstream.geometry import LOSSY_LEVELS, is_level
from vbc.bitstream.varint import unpack_varint, unpack_varints
from vbc.codec import api
from vbc.codec.incremental import IncrementalReader

SEEDS = TESTS / "seeds"


def header(data: bytes) -> None:
    """Header and index: parsed, and packed again to the same bytes; with their checksums repaired as well."""
    for candidate in (data, repaired(data)):
        try:
            parsed = container.unpack_header(candidate)
        except FormatError:
            continue
        end = parsed.header_bytes
        assert container.header_end(candidate[: container.FIXED_BYTES]) == end
        assert container.pack_header(parsed) == candidate[:end]
        info = api.read_info(candidate[:end], parsed.file_bytes)
        assert info.n_packets == len(parsed.packets)
        with contextlib.suppress(FormatError):  # of a file without levels
            corner = api.read_info(candidate[:end], region=(parsed.width - 1, parsed.height - 1, 1, 1))
            assert corner.ranges[0][0] == 0
            assert corner.ranges[-1][1] <= parsed.file_bytes


def metadata(data: bytes) -> None:
    """Metadata of a picture: first byte, how much of the rest is ICC, second, how much is EXIF; then XMP."""
    if len(data) < 2:
        return
    n_icc, n_exif, rest = data[0], data[1], data[2:]
    parts = (rest[:n_icc], rest[n_icc : n_icc + n_exif], rest[n_icc + n_exif :])
    pixel = loosen(PIXEL)
    pixel.fields["flags"] = 0
    levels = [packet for packet in pixel.packets if 1 <= packet[0] <= LOSSY_LEVELS]
    pixel.packets = [(container.ICC, 0, parts[0]), *levels]
    pixel.packets += [(container.EXIF, 0, parts[1]), (container.XMP, 0, parts[2])]
    file = pixel.pack()
    meta = api.read_metadata(file, container.unpack_header(file))
    assert (meta.icc, meta.exif, meta.xmp) == parts
    im = plugin.VbcImageFile(io.BytesIO(file))
    assert isinstance(im, ImageFile.ImageFile)
    assert im.info["xmp"] == parts[2]


def file(data: bytes) -> None:
    """A whole file, as it is and with its checksums repaired: decoded, also a region of it, shown in pieces,
    opened by Pillow."""
    for candidate in (data, repaired(data)):
        try:
            decoded = api.decode_picture(candidate, allow_partial=True, limits=SMALL_LIMITS, model=TINY)
            parsed = container.unpack_header(candidate)
            assert decoded.picture.samples().shape[:2] == (parsed.height, parsed.width)
            region = (
                parsed.width // 3,
                parsed.height // 2,
                (parsed.width + 2) // 3,
                (parsed.height + 1) // 2,
            )
            part = api.decode_picture(
                candidate, region=region, allow_partial=True, limits=SMALL_LIMITS, model=TINY
            )
            assert part.picture.samples().shape[:2] == region[:1:-1]
        except FormatError:
            pass
        reader = IncrementalReader(limits=SMALL_LIMITS, model=TINY)
        try:
            for at in range(0, len(candidate), 100):
                reader.feed(candidate[at : at + 100])
                if at % 1000 == 0:
                    with contextlib.suppress(Truncated):
                        reader.picture()
            reader.finish()
        except FormatError:
            pass
        try:
            with Image.open(io.BytesIO(candidate), formats=[plugin.FORMAT]) as im:
                assert im.size
        except (OSError, Image.DecompressionBombError):
            pass


def repaired(data: bytes) -> bytes:
    """The bytes with magic, version, hashes, length of the index and all checksums put right, as far as they
    go.

    The index is taken to end where its entries do no longer make sense, or where it says. The last packet
    gets all that is left.
    """
    if len(data) < container.FIXED_BYTES:
        return data
    fields = list(container.FIELDS.unpack_from(data))
    tiny = api.load(TINY)
    index, payloads = data[container.FIXED_BYTES :][: fields[-1]], data[container.FIXED_BYTES + fields[-1] :]
    payloads = payloads[container.CRC.size :]
    entries = list(read_entries(index))
    at = 0
    for i, (unit, part, length, _) in enumerate(entries):
        left = len(payloads) - at
        length = min(length, left) if i < len(entries) - 1 else left
        entries[i] = (unit, part, length, zlib.crc32(payloads[at : at + length]))
        at += length
    index = pack_index(entries)
    fields[:2] = container.MAGIC, container.VERSION[0]
    fields[-3:] = tiny.hash, tiny.tables.digest, len(index)
    head = container.FIELDS.pack(*fields)
    checked = [head, container.CRC.pack(zlib.crc32(head)), index, container.CRC.pack(zlib.crc32(index))]
    return b"".join(checked) + payloads[:at]


def read_entries(index: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Unit, part, length and CRC32 of the packets of an index, as far as it makes sense; at most 1000."""
    at = n = 0
    try:
        while at < len(index) and n < 1000:
            unit, first, count = index[at], 0, 1
            at += 1
            if is_level(unit):
                (first, count), at = unpack_varints(memoryview(index), 2, at)
            for part in range(first, first + min(count, 1000 - n)):
                length, at = unpack_varint(index, at, container.LENGTH_BITS)
                (crc32,) = container.CRC.unpack_from(index, at)
                at += container.CRC.size
                n += 1
                yield unit, part, length, crc32
    except (Corrupt, struct.error):
        return


TARGETS: dict[str, Callable[[bytes], None]] = {"header": header, "metadata": metadata, "file": file}
PIXEL = (GOLDEN / "one-pixel.vbc").read_bytes()


def seeds(target: str) -> dict[str, bytes]:
    """Where fuzzing starts: earlier findings, and valid inputs."""
    kept = {p.name: p.read_bytes() for p in sorted((SEEDS / target).glob("*"))}
    if target == "metadata":
        parts = [META.icc or b"", META.exif or b"", META.xmp or b""]
        return {**kept, "valid": bytes([len(parts[0]), len(parts[1])]) + b"".join(parts)}
    valid = {f"valid {name}": data for name, data in small_files().items()}
    if target == "header":
        valid |= {f"valid {name}": data for name, data in grouped_files().items()}
        valid = {name: data[: container.unpack_header(data).header_bytes] for name, data in valid.items()}
    return kept | valid
