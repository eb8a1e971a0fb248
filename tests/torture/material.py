"""Files and pictures that the rows work on, and ways to damage them."""

import functools
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from checks import every_refinement
from numpy.typing import NDArray

from vbc.bitstream import container
from vbc.bitstream.container import ANCILLARY, LOSSLESS, Header, Packet
from vbc.bitstream.geometry import is_level
from vbc.bitstream.varint import pack_varints
from vbc.codec import api
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = TESTS / "golden"
TINY = GOLDEN / "tiny.safetensors"
META = Metadata(icc=b"a profile", exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0", xmp=b"<xmp/>")
SMALL_LIMITS = container.Limits(max_pixels=1 << 16, max_side=1 << 12, max_metadata=1 << 16)
"""For files whose size is an attacker's choice: what is accepted is then decoded in a moment."""

Samples = NDArray[np.uint8] | NDArray[np.uint16]


def key(samples: Samples) -> str:
    """Hash of a picture: type, shape, values."""
    h = hashlib.sha256(f"{samples.dtype} {samples.shape}".encode())
    h.update(np.ascontiguousarray(samples).data)
    return h.hexdigest()


def decoded_key(data: bytes, **options: object) -> str:
    """Hash of what a file decodes to under the tiny model."""
    return key(api.decode_picture(data, model=TINY, **options).picture.samples())  # type: ignore[arg-type]


def level_keys(data: bytes, model: "api.Weights") -> list[str]:
    """Hash of what the first n levels of a file decode to, for every n."""
    count = len(container.levels_present(container.unpack_header(data)))
    pictures = (api.decode_picture(data, levels=n, model=model) for n in range(1, count + 1))
    return [key(p.picture.samples()) for p in pictures]


def deep(samples: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint16]:
    """16 bits a sample with these upper bytes."""
    low = np.random.default_rng(seed).integers(0, 256, samples.shape)
    return (samples.astype(np.uint16) << 8) + low.astype(np.uint16)


@functools.cache
def small_files() -> dict[str, bytes]:
    """Valid files of every kind: golden ones below 8 kB, and others with metadata, alpha, 16 bits."""
    files = {p.name: p.read_bytes() for p in sorted(GOLDEN.glob("*.vbc")) if p.stat().st_size < 8192}
    rgb = make_example(64, 64)[:23, :31]
    rgba = np.concatenate((rgb, rgb[::-1, :, :1]), axis=2)
    for name, image, options in (
        ("metadata", rgb, {"lossless": True}),
        ("metadata lossy", rgb, {"quality": 80}),
        ("RGBA", rgba, {"lossless": True}),
        ("RGBA lossy", rgba, {"levels": 2}),
        ("gray alpha 16 bits", deep(rgba[..., 2:]), {"lossless": True, "levels": 0}),
        ("RGBA 16 bits", deep(rgba), {"lossless": True}),
    ):
        files[name] = api.encode(image, metadata=META, model=TINY, **options)  # type: ignore[arg-type]
    return files


@functools.cache
def grouped_files() -> dict[str, bytes]:
    """Valid files of several groups a level, lying and standing, of every kind that groups differ in.

    Of 530 x 70 pixels levels 2, 3 and the last three exact ones have two groups each, of 2120 x 10 five, of
    which the first and the last have nothing to do with each other.
    """
    lying = make_example(530, 530)[100:170]
    rng = np.random.default_rng(19)
    mixed = lying.copy()
    mixed[:, :512] = rng.integers(0, 256, mixed[:, :512].shape)  # a group that is stored plain
    alpha = np.full((70, 530, 1), 255, np.uint8)
    alpha[20:50, 490:] = 90
    long = np.concatenate([lying[10 * i : 10 * i + 10] for i in range(4)], 1)
    files = {}
    for name, image, options in (
        ("lossy of groups", lying, {"quality": 90}),
        ("layered of groups", lying, {"lossless": True}),
        ("archival of groups", lying.transpose(1, 0, 2), {"lossless": True, "levels": 0}),
        ("tuned groups", make_example(530, 530)[100:194], {"lossless": True, "levels": 0, "effort": 2}),
        ("groups, one plain", mixed, {"lossless": True, "levels": 0, "effort": 0}),
        ("five groups", long, {"lossless": True, "effort": 0}),
        ("five gray groups", long[..., 1], {"lossless": True, "levels": 0, "effort": 0}),
        ("RGBA groups", np.concatenate((lying, alpha), 2), {"lossless": True, "effort": 0}),
        ("16 bits in groups", deep(long), {"lossless": True, "effort": 0, "levels": 0}),
        ("refined groups", lying, {"quality": 90, "refinements": 2}),
        ("layered refined groups", long, {"lossless": True, "effort": 0, "refinements": 1}),
        ("near groups", long, {"near": 2, "levels": 0}),
        ("layered near groups", lying, {"near": 5, "refinements": 1, "effort": 0}),
        ("progressive groups", long, {"lossless": True, "progressive": True, "effort": 0}),
    ):
        with every_refinement():
            files[name] = api.encode(
                np.ascontiguousarray(image),
                metadata=META,
                model=TINY,
                **options,  # type: ignore[arg-type]
            )
    return files


@functools.cache
def interest_files() -> dict[str, bytes]:
    """Valid files of several groups that were made for regions of interest, of every kind that those differ
    in."""
    lying = make_example(530, 530)[100:170]
    long = np.concatenate([lying[10 * i : 10 * i + 10] for i in range(4)], 1)
    right, far = (500, 10, 20, 30), [(1500, 0, 9, 10), (2100, 3, 20, 5)]
    files = {}
    for name, image, options in (
        ("lossy with a region", lying, {"quality": 40, "roi": right, "roi_quality": 80}),
        (
            "refined, a region first",
            lying,
            {"quality": 60, "refinements": 1, "roi": right, "roi_first": True},
        ),
        ("layered, regions first", long, {"lossless": True, "effort": 0, "roi": far, "roi_first": True}),
        ("16 bits with regions", deep(long), {"lossless": True, "effort": 0, "levels": 0, "roi": far}),
    ):
        files[name] = api.encode(image, metadata=META, model=TINY, **options)  # type: ignore[arg-type]
    return files


def all_files() -> dict[str, bytes]:
    """Small files and those of several groups, but those of regions of interest."""
    return small_files() | grouped_files()


def file_named(name: str) -> bytes:
    """One of `all_files` or `interest_files`."""
    return all_files()[name] if name in all_files() else interest_files()[name]


# What is left of a file


def subset(data: bytes, keep: Sequence[bool]) -> bytes:
    """A file of its own of some packets of another one, in their order.

    keep: for each packet whether it stays; one whose needs go must go too. The file does not say that it is
    lossless any more where a packet of a level or the low bytes are left out; then the low bytes go too.
    """
    header = container.unpack_header(data)
    levels = {
        packet.level for packet, stays in zip(header.packets, keep, strict=True) if stays and packet.part
    }
    kept = [i for i, p in enumerate(header.packets) if keep[i] and (not p.level or p.level in levels)]
    dropped = [packet for packet, stays in zip(header.packets, keep, strict=True) if not stays]
    whole = header.lossless and not any(packet.level or packet.unit == container.LOW for packet in dropped)
    kept = [i for i in kept if whole or header.packets[i].unit != container.LOW]
    entries = [
        (header.packets[i].unit, header.packets[i].part, bytes(data[slice(*header.span(i))])) for i in kept
    ]
    return rewritten(
        header,
        entries,
        flags=header.flags if whole else header.flags & ~LOSSLESS,
        bit_depth=header.bit_depth if whole else 8,
    )


def rewritten(header: Header, payloads: list[tuple[int, int, bytes]], **changes: int) -> bytes:
    """A file with these packets and the other fields of a header. Raises a FormatError where that is none."""
    packets = tuple(Packet(unit, part, len(body), zlib.crc32(body)) for unit, part, body in payloads)
    index = container.pack_header(replace(header, packets=packets, **changes))
    return index + b"".join(body for _, _, body in payloads)


def usable_packets(header: Header, there: int | Callable[[int], bool]) -> tuple[bool, ...]:
    """`container.usable`, by looking at each packet and all that it needs, one by one: slow, and plain."""
    sound: dict[int, bool] = {}

    def is_sound(i: int) -> bool:
        if i not in sound:
            good = header.ends[i] <= there if isinstance(there, int) else there(i)
            sound[i] = good and all(j is not None and is_sound(j) for j in needed_packets(header, i))
        return sound[i]

    return tuple(is_sound(i) for i in range(len(header.packets)))


def needed_packets(header: Header, i: int) -> list[int | None]:
    """Places of the packets that packet i needs itself; None for one that is not in the index."""
    packet, geometry = header.packets[i], header.geometry
    if not packet.level or not packet.part:
        return []
    shared = header.find(packet.level)
    needs = geometry.needs(packet.level, packet.part - 1, header.archival)
    groups = [
        header.find(level, 1 + n) for level, area in needs.items() for n in geometry.numbers(level, area)
    ]
    return groups if shared is None else [shared, *groups]


@functools.cache
def picture_key(name: str, keep: tuple[bool, ...]) -> str:
    """Hash of the picture that these packets of a file (`file_named`) give, made into a file of their own."""
    return decoded_key(subset(file_named(name), keep), allow_partial=True)


def shows_group(header: Header, keep: Sequence[bool]) -> bool:
    """Whether a group of a level is among the packets kept: without one there is no picture."""
    return any(good and p.level and p.part for p, good in zip(header.packets, keep, strict=True))


# Damage


def mutate(data: bytes, rng: np.random.Generator, pool: list[bytes]) -> bytes:
    """A random change, often several: bits, bytes, runs, lengths, parts of other files."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(out) + 1))
        n = int(rng.geometric(0.1))
        match int(rng.integers(0, 9)):
            case 0 if at < len(out):
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 1 if at < len(out):
                out[at] = int(rng.integers(0, 256))
            case 2:
                out[at : at + n] = rng.bytes(len(out[at : at + n]))
            case 3:
                del out[at:]
            case 4:
                del out[at : at + n]
            case 5:
                out[at:at] = rng.bytes(n)
            case 6:
                out[at:at] = out[at : at + n]
            case 7:
                other = pool[int(rng.integers(0, len(pool)))]
                out[at : at + n] = other[at : at + n]
            case _:
                value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
                out[at : at + n] = bytes([value]) * len(out[at : at + n])
    return bytes(out)


Entry = tuple[int, int, bytes]
"""Unit, part and payload of a packet."""


@dataclass
class Loose:
    """A file in parts that need not go together; `pack` repairs lengths and checksums.

    index: bytes in place of the index of the packets. index_bytes: what the header says of its length instead
    of the truth.
    """

    fields: dict[str, int | bytes]
    packets: list[Entry]
    major: int = 2
    minor: int = 0
    index: bytes | None = None
    index_bytes: int | None = None

    def pack(self) -> bytes:
        """The bytes, every length and checksum right."""
        index = self.index
        if index is None:
            index = pack_index([(unit, part, len(p), zlib.crc32(p)) for unit, part, p in self.packets])
        values = [self.fields[name] for name in FIELDS]
        n_bytes = len(index) if self.index_bytes is None else self.index_bytes
        head = container.FIELDS.pack(container.MAGIC, self.major, self.minor, *values, n_bytes)
        parts = [head, container.CRC.pack(zlib.crc32(head)), index, container.CRC.pack(zlib.crc32(index))]
        return b"".join([*parts, *(p for _, _, p in self.packets)])


def pack_index(entries: Sequence[tuple[int, int, int, int]]) -> bytes:
    """An index of (unit, part, length, CRC32) in runs as long as they can be, valid or not."""
    out = bytearray()
    after = (0, 0)
    counts: list[int] = []
    for unit, part, *_ in entries:
        if is_level(unit) and (unit, part) == after:
            counts[-1] += 1
        else:
            counts.append(1)
        after = (unit, part + 1)
    at = 0
    for count in counts:
        unit, part, *_ = entries[at]
        out.append(unit)
        if is_level(unit):
            out += pack_varints((part, count))
        for _, _, length, crc32 in entries[at : at + count]:
            out += pack_varints((length,), 70) + container.CRC.pack(crc32)
        at += count
    return bytes(out)


FIELDS = (
    "flags",
    "width",
    "height",
    "channels",
    "bit_depth",
    "colour",
    "quality",
    "model_hash",
    "tables_hash",
)
EXTREMES = {
    "width": (0, 1, 2, 7, 8, 9, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1),
    "height": (0, 1, 2, 7, 8, 9, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1),
    "channels": (0, 1, 2, 3, 4, 255),
    "bit_depth": (0, 1, 8, 9, 16, 255),
    "colour": (0, 1, 255),
    "quality": (0, 1, 99, 100, 101, 255),
    "flags": (0, 1, 2, 3, 4, 0x8000, 0xFFFF),
}
UNITS = (*range(1, 13), 63, 64, *range(container.ICC, container.PIXEL_HASH + 2), ANCILLARY, 255)
PARTS = (0, 1, 2, 3, 255, 256, 2**31, 2**32 - 1)


def loosen(data: bytes) -> Loose:
    """A valid file in parts."""
    header = container.unpack_header(data)
    packets = [
        (packet.unit, packet.part, bytes(container.read_packet(data, header, i)))
        for i, packet in enumerate(header.packets)
    ]
    return Loose({name: getattr(header, name) for name in FIELDS}, packets, minor=header.minor)


def mutate_repaired(data: bytes, rng: np.random.Generator, pool: list[bytes]) -> bytes:
    """A random change of payloads, header fields, index or the order of packets, with right lengths and
    checksums."""
    loose = loosen(data)
    packets = loose.packets
    for _ in range(int(rng.integers(1, 4))):
        i = int(rng.integers(0, len(packets))) if packets else 0
        match int(rng.integers(0, 18)):
            case 0:
                name = str(rng.choice(list(EXTREMES)))
                loose.fields[name] = int(rng.choice(EXTREMES[name]))
            case 1:
                for name in ("width", "height"):
                    loose.fields[name] = int(rng.integers(1, 300))
            case 2 if packets:
                packets[i] = (int(rng.choice(UNITS)), packets[i][1], packets[i][2])
            case 3 if packets:
                packets[i] = (packets[i][0], int(rng.choice(PARTS)), packets[i][2])
            case 4 if packets:
                del packets[i]
            case 5 if packets:
                j = int(rng.integers(0, len(packets)))
                packets[i], packets[j] = packets[j], packets[i]
            case 6:
                other = loosen(pool[int(rng.integers(0, len(pool)))])
                packets[i:i] = other.packets[i : i + 1]
            case 7:
                index = pack_index([(unit, part, len(p), zlib.crc32(p)) for unit, part, p in packets])
                loose.index = mutate(index, rng, [index])
            case 8 if packets:
                # without what a level needs, or with another picture's
                level = packets[i][0]
                loose.packets = packets = [p for p in packets if p[0] != level]
            case _ if packets:
                unit, part, payload = packets[i]
                bodies = [p for _, _, p in packets]
                packets[i] = (unit, part, mutate(payload, rng, bodies))
            case _:
                loose.minor = int(rng.integers(0, 256))
    return loose.pack()
