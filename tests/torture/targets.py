"""What is fuzzed: functions of bytes that must return.

`scripts/fuzz` runs them, tests/test_torture.py replays the seeds through them.
"""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image, ImageFile

import vbc.codec.pillow as plugin
from torture.material import GOLDEN, META, SMALL_LIMITS, TESTS, TINY, small_files
from vbc.bitstream import container
from vbc.bitstream.errors import FormatError
from vbc.codec import api
from vbc.codec.incremental import IncrementalReader

SEEDS = TESTS / "seeds"


def header(data: bytes) -> None:
    """A header: parsed, and packed again to the same bytes; with its checksum repaired as well."""
    for candidate in (data, repaired(data)):
        try:
            parsed = container.unpack_header(candidate)
        except FormatError:
            continue
        assert container.pack_header(parsed) == candidate[: parsed.header_bytes]
        api.read_info(candidate[: parsed.header_bytes], parsed.file_bytes)


def metadata(data: bytes) -> None:
    """Metadata of a picture: first byte, how much of the rest is ICC, second, how much is EXIF; then XMP."""
    if len(data) < 2:
        return
    n_icc, n_exif, rest = data[0], data[1], data[2:]
    parts = (rest[:n_icc], rest[n_icc : n_icc + n_exif], rest[n_icc + n_exif :])
    pixel = container.unpack_header(PIXEL)
    chunks = [
        (chunk.kind, chunk.number, bytes(container.read_chunk(PIXEL, pixel, i)))
        for i, chunk in enumerate(pixel.chunks)
    ]
    levels = [chunk for chunk in chunks if chunk[0] == container.LEVEL and chunk[1] <= container.LOSSY_LEVELS]
    file = container.write_file(
        [(container.ICC, 0, parts[0]), *levels, (container.EXIF, 0, parts[1]), (container.XMP, 0, parts[2])],
        width=pixel.width,
        height=pixel.height,
        channels=pixel.channels,
        quality=pixel.quality,
        flags=0,
        model_hash=pixel.model_hash,
        tables_hash=pixel.tables_hash,
    )
    meta = api.read_metadata(file, container.unpack_header(file))
    assert (meta.icc, meta.exif, meta.xmp) == parts
    im = plugin.VbcImageFile(io.BytesIO(file))
    assert isinstance(im, ImageFile.ImageFile)
    assert im.info["xmp"] == parts[2]


def file(data: bytes) -> None:
    """A whole file, as it is and with its checksums repaired: decoded, shown in pieces, opened by Pillow."""
    for candidate in (data, repaired(data)):
        try:
            decoded = api.decode_picture(candidate, allow_partial=True, limits=SMALL_LIMITS, model=TINY)
            parsed = container.unpack_header(candidate)
            assert decoded.picture.samples().shape[:2] == (parsed.height, parsed.width)
        except FormatError:
            pass
        reader = IncrementalReader(limits=SMALL_LIMITS, model=TINY)
        try:
            for at in range(0, len(candidate), 100):
                reader.feed(candidate[at : at + 100])
            reader.finish()
        except FormatError:
            pass
        try:
            with Image.open(io.BytesIO(candidate), formats=[plugin.FORMAT]) as im:
                assert im.size
        except (OSError, Image.DecompressionBombError):
            pass


def repaired(data: bytes) -> bytes:
    """The bytes with magic, version, length of the header and all checksums put right, as far as they go."""
    out = bytearray(data)
    prefix, fields, entry = container.PREFIX, container.FIELDS, container.ENTRY
    if len(out) < container.MIN_HEADER:
        return data
    n_chunks = min(out[prefix.size + fields.size - 2], (len(out) - container.MIN_HEADER) // entry.size)
    end = container.MIN_HEADER + entry.size * n_chunks
    prefix.pack_into(out, 0, container.MAGIC, 1, out[9], end)
    struct.pack_into("<H", out, prefix.size + fields.size - 2, n_chunks)
    tiny = api.load(TINY)
    struct.pack_into("<8s8s", out, prefix.size + 14, tiny.hash, tiny.tables.digest)
    at = end
    for i in range(n_chunks):
        place = prefix.size + fields.size + entry.size * i
        kind, number, length, _ = entry.unpack_from(out, place)
        length = min(length, len(out) - at) if i < n_chunks - 1 else len(out) - at
        entry.pack_into(out, place, kind, number, length, zlib.crc32(out[at : at + length]))
        at += length
    struct.pack_into("<I", out, end - 4, zlib.crc32(out[: end - 4]))
    return bytes(out)


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
        valid = {name: data[: container.unpack_header(data).header_bytes] for name, data in valid.items()}
    return kept | valid
