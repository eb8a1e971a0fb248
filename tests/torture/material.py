"""Files and pictures that the rows work on, and ways to damage them."""

import functools
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vbc.bitstream import container
from vbc.codec import api
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata

TESTS = Path(__file__).resolve().parent.parent
GOLDEN = TESTS / "golden"
TINY = GOLDEN / "tiny.safetensors"
META = Metadata(icc=b"a profile", exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0", xmp=b"<xmp/>")
SMALL_LIMITS = container.Limits(max_pixels=1 << 15, max_side=1 << 12, max_metadata=1 << 16)
"""For files whose size is an attacker's choice: what is accepted is then decoded in a moment."""

Samples = NDArray[np.uint8] | NDArray[np.uint16]


def tiny() -> "api.Weights":
    """The tiny frozen model."""
    return TINY


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
    count = len(container.level_ends(container.unpack_header(data)))
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
def prefix_keys(name: str) -> dict[tuple[int, ...], set[str]]:
    """Levels -> hashes of the pictures that a prefix of a small file with these levels decodes to.

    There are two where low bytes follow the last level.
    """
    data = small_files()[name]
    header = container.unpack_header(data)
    keys: dict[tuple[int, ...], set[str]] = {}
    for end in header.chunk_ends:
        if levels := container.available_levels(end, header):
            keys.setdefault(levels, set()).add(decoded_key(data[:end], allow_partial=True))
    return keys


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


@dataclass
class Loose:
    """A file in parts that need not go together; `pack` repairs lengths and checksums."""

    fields: dict[str, int | bytes]
    chunks: list[tuple[int, int, bytes]]
    major: int = 1
    minor: int = 0

    def pack(self) -> bytes:
        """The bytes, every length and checksum right."""
        values = [self.fields[name] for name in FIELDS]
        body = container.PREFIX.pack(
            container.MAGIC,
            self.major,
            self.minor,
            container.MIN_HEADER + container.ENTRY.size * len(self.chunks) & 0xFFFF,
        )
        body += container.FIELDS.pack(*values, len(self.chunks))
        for kind, number, payload in self.chunks:
            body += container.ENTRY.pack(kind, number, len(payload), zlib.crc32(payload))
        return b"".join([body, struct.pack("<I", zlib.crc32(body)), *(p for _, _, p in self.chunks)])


FIELDS = (
    "width",
    "height",
    "channels",
    "bit_depth",
    "colour",
    "quality",
    "flags",
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
    "flags": (0, 1, 2, 3, 0x8000, 0xFFFF),
}


def loosen(data: bytes) -> Loose:
    """A valid file in parts."""
    header = container.unpack_header(data)
    chunks = [
        (chunk.kind, chunk.number, bytes(container.read_chunk(data, header, i)))
        for i, chunk in enumerate(header.chunks)
    ]
    return Loose({name: getattr(header, name) for name in FIELDS}, chunks, minor=header.minor)


def mutate_repaired(data: bytes, rng: np.random.Generator, pool: list[bytes]) -> bytes:
    """A random change of payloads, header fields or the order of chunks, with right lengths and checksums."""
    loose = loosen(data)
    chunks = loose.chunks
    for _ in range(int(rng.integers(1, 4))):
        i = int(rng.integers(0, len(chunks))) if chunks else 0
        match int(rng.integers(0, 10)):
            case 0:
                name = str(rng.choice(list(EXTREMES)))
                loose.fields[name] = int(rng.choice(EXTREMES[name]))
            case 1:
                for name in ("width", "height"):
                    loose.fields[name] = int(rng.integers(1, 300))
            case 2 if chunks:
                chunks[i] = (int(rng.integers(0, 256)), chunks[i][1], chunks[i][2])
            case 3 if chunks:
                chunks[i] = (chunks[i][0], int(rng.integers(0, 256)), chunks[i][2])
            case 4 if chunks:
                del chunks[i]
            case 5 if chunks:
                j = int(rng.integers(0, len(chunks)))
                chunks[i], chunks[j] = chunks[j], chunks[i]
            case 6:
                other = loosen(pool[int(rng.integers(0, len(pool)))])
                chunks[i:i] = other.chunks[i : i + 1]
            case _ if chunks:
                kind, number, payload = chunks[i]
                bodies = [p for _, _, p in chunks]
                chunks[i] = (kind, number, mutate(payload, rng, bodies))
            case _:
                loose.minor = int(rng.integers(0, 256))
    return loose.pack()
