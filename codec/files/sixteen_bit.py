"""16-bit samples that Pillow cannot hold (colour, or with alpha): PNG and TIFF read by imagecodecs, PPM here;
all are written here.

`imagecodecs` is the extra `deep`; without it `read_deep` raises ImportError. Samples are uint16 [H, W, C].
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from vbc.codec.files.tiff_tags import EXIF_PREFIX, spread_exif

Samples = NDArray[np.uint16]

PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
PNG_SUB = 1
"""The filter of every row: a sample minus its left neighbour, byte by byte."""
XMP_KEYWORD = b"XML:com.adobe.xmp"
TIFF_ICC, TIFF_XMP = 34675, 700


def read_deep(data: bytes, kind: str) -> Samples:
    """The samples of a PNG or TIFF file whose header Pillow has read; kind: PNG or TIFF.

    Raises ImportError without imagecodecs, ValueError for a file that it cannot read.
    """
    import imagecodecs

    try:
        samples = imagecodecs.png_decode(data) if kind == "PNG" else imagecodecs.tiff_decode(data)
    except RuntimeError as e:  # the base of its errors
        raise ValueError(str(e)) from e
    if samples.dtype != np.uint16 or samples.ndim != 3:
        raise ValueError(f"samples of type {samples.dtype} and shape {samples.shape}")
    return np.ascontiguousarray(samples)


def read_ppm(data: bytes, start: int, height: int, width: int) -> Samples:
    """The samples of a binary PPM file (P6) with a maximum of 65535, which begin at byte `start`.

    Raises ValueError where they are not all there.
    """
    big_endian = np.frombuffer(data, ">u2", height * width * 3, start)
    return big_endian.astype(np.uint16).reshape(height, width, 3)


def write_ppm(samples: Samples) -> bytes:
    """Inverse of `read_ppm`: the whole file."""
    height, width, _ = samples.shape
    return b"P6\n%d %d\n65535\n" % (width, height) + samples.astype(">u2").tobytes()


def write_png(samples: Samples, icc: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A 16-bit PNG with 1 to 4 channels."""
    height, width, n_channels = samples.shape
    step = 2 * n_channels
    raw = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.full((height, 1 + step * width), PNG_SUB, np.uint8)
    rows[:, 1:] = raw
    rows[:, 1 + step :] -= raw[:, :-step]
    head = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR_TYPES[n_channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (
            (b"IHDR", head),
            (b"iCCP", icc and b"ICC Profile\x00\x00" + zlib.compress(icc)),
            (b"eXIf", exif),
            (b"iTXt", xmp and XMP_KEYWORD + b"\x00\x00\x00\x00\x00" + xmp),
            (b"IDAT", zlib.compress(rows.data)),
            (b"IEND", b""),
        )
        if body is not None
    )


def write_tiff(samples: Samples, icc: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """An uncompressed 16-bit TIFF of RGB or RGBA: an EXIF block is a TIFF, so its directory gets the tags of
    a picture, and the samples follow. Of EXIF it has what `spread_exif` gives."""
    height, width, n_channels = samples.shape
    tags = spread_exif(exif)
    layout = {256: width, 257: height, 258: (16,) * n_channels, 259: 1, 262: 2, 277: n_channels, 278: height}
    tags.update(layout | {273: 0, 279: samples.nbytes, 284: 1})  # Pillow adds the directory's size to 273
    if n_channels == 4:
        tags[338] = 2  # alpha that is not multiplied in
    for tag, part in ((TIFF_ICC, icc), (TIFF_XMP, xmp)):
        if part is not None:
            tags[tag] = part
    block = tags.tobytes().removeprefix(EXIF_PREFIX)
    return block + samples.astype("<u2" if block.startswith(b"II") else ">u2").tobytes()
