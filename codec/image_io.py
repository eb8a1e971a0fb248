"""Images in and out of files: pixels through Pillow, metadata byte for byte, writing that is whole or not at
all."""

import io
import os
import secrets
import struct
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from vbc.bitstream import container

BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
)
"""What Pillow raises on broken files."""
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "PPM", "BMP", "GIF")
"""What Pillow may open. Left out are formats whose deeper samples Pillow reduces to 8 bits without saying so
(AVIF, JPEG 2000)."""
INPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".bmp", ".gif")
OUTPUT_FORMATS = {
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
LIMITS = container.DEFAULT_LIMITS
"""An image is refused where the file made from it would be; the number of pixels is also where Pillow itself
refuses."""
EXIF_PREFIX = b"Exif\x00\x00"
XMP_KEYWORD = b"XML:com.adobe.xmp"
TIFF_XMP_TAG = 700
TIFF_TEXT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
"""Description, make, model, software, date, artist, copyright: the tags of a TIFF's directory that are not
about its layout."""
TIFF_SUB_DIRECTORIES = (0x8769, 0x8825)
"""EXIF and GPS."""

unfinished: set[Path] = set()
"""Temporary files of `write_atomic` that are not in place yet: what a process that is told to stop has to
remove."""


class UnsupportedImage(ValueError):
    """The input or output picture is of a kind this codec does not handle; the message names the reason."""


@dataclass(frozen=True)
class Metadata:
    """What travels beside the pixels, byte for byte. `exif` is a TIFF structure without the prefix that JPEG
    puts before it."""

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None

    def n_bytes(self) -> dict[str, int]:
        """Sizes of the parts that are there."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: len(part) for name, part in parts.items() if part is not None}


@dataclass(frozen=True)
class Picture:
    """An image as the codec sees it. rgb: uint8 [H, W, 3]; the three planes are equal where `gray` is set."""

    rgb: NDArray[np.uint8]
    gray: bool
    metadata: Metadata

    def to_pillow(self) -> Image.Image:
        """A Pillow image of mode L or RGB with the metadata in `info`, where Pillow's own readers put it."""
        im = Image.fromarray(np.ascontiguousarray(self.rgb[..., 1] if self.gray else self.rgb))
        meta = self.metadata
        named = {"icc_profile": meta.icc, "exif": meta.exif and EXIF_PREFIX + meta.exif, "xmp": meta.xmp}
        im.info.update({k: v for k, v in named.items() if v is not None})
        return im


def read_picture(data: bytes) -> Picture:
    """Parse an image file. Raises UnsupportedImage for whatever is no plain 8-bit gray or RGB picture, and
    says why."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as im:
            check_size(*im.size)
            assert isinstance(im, ImageFile.ImageFile)  # what opening always gives
            _check_kind(im)
            im.load()  # PNG may have metadata behind its pixels
            return from_pillow(im)
    except UnsupportedImage:
        raise
    except UnidentifiedImageError:
        raise UnsupportedImage(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except BROKEN as e:
        raise UnsupportedImage(f"broken image: {e}") from e
    except Image.DecompressionBombError:
        raise UnsupportedImage(f"more than {LIMITS.max_pixels} pixels") from None


def from_pillow(im: Image.Image) -> Picture:
    """Pixels and metadata of an open Pillow image. Raises UnsupportedImage as `read_picture` does."""
    check_size(*im.size)
    if im.has_transparency_data:
        raise UnsupportedImage("transparency (an alpha channel or a transparent colour) is not supported")
    if im.mode not in ("RGB", "L", "1", "P"):
        deep = im.mode.startswith(("I", "F"))
        raise UnsupportedImage(
            f"{'more than 8 bits a sample' if deep else 'colour mode'} ({im.mode}) is not supported"
        )
    gray = im.mode in ("L", "1")
    mode = "L" if gray else "RGB"
    plane = np.array(im if im.mode == mode else im.convert(mode))
    rgb = np.repeat(plane[..., None], 3, axis=2) if gray else plane
    return Picture(rgb, gray, _read_metadata(im))


def write_picture(picture: Picture, suffix: str, exact: bool) -> bytes:
    """The picture as an image file of the kind `suffix` names, with its metadata where the format has room
    for it (PPM has none).

    `exact` says that the pixels are the original's, and makes WebP lossless. Raises UnsupportedImage where
    the format cannot hold
    the picture.
    """
    if suffix.lower() not in OUTPUT_FORMATS:
        raise UnsupportedImage(
            f"cannot write {suffix or 'a file without ending'}; endings: {' '.join(OUTPUT_FORMATS)}"
        )
    kind = OUTPUT_FORMATS[suffix.lower()]
    im = picture.to_pillow()
    meta = {k: im.info.pop(k) for k in ("icc_profile", "exif", "xmp") if k in im.info}
    out = io.BytesIO()
    try:
        if kind == "PNG":
            info = PngImagePlugin.PngInfo()
            if "xmp" in meta:  # as raw bytes: add_itxt would encode a str anew
                info.add(b"iTXt", XMP_KEYWORD + b"\x00\x00\x00\x00\x00" + meta.pop("xmp"))
            im.save(out, kind, pnginfo=info, **meta)
        elif kind == "WEBP":
            im.save(out, kind, lossless=exact, exact=exact, quality=80 if exact else 95, **meta)
        elif kind == "TIFF":
            tags = Image.Exif()  # a TIFF has no block of EXIF: its tags are the file's own
            tags.load(meta.pop("exif", None) or b"")
            if "xmp" in meta:
                tags[TIFF_XMP_TAG] = meta.pop("xmp")
            im.save(out, kind, exif=tags, **meta)  # uncompressed: libtiff cannot write EXIF directories
        elif kind == "JPEG":
            im.save(out, kind, quality=95, subsampling=0, **meta)
        else:
            im.save(out, kind)
    except (ValueError, OSError) as e:
        raise UnsupportedImage(f"cannot write this picture as {kind}: {e}") from e
    return out.getvalue()


def write_atomic(path: Path, data: bytes) -> None:
    """Put a file under its name: whole, or not at all. A symbolic link is followed; a device or pipe is
    written to directly."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    unfinished.add(temporary)
    try:
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        unfinished.discard(temporary)
    if sys.platform != "win32":  # the new name itself survives a power cut only once its folder is written
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_size(width: int, height: int) -> None:
    """Raise UnsupportedImage unless a file can hold a picture of this many pixels."""
    if min(width, height) < 1 or max(width, height) > LIMITS.max_side or width * height > LIMITS.max_pixels:
        limits = f"a side may have 1 to {LIMITS.max_side}, the picture {LIMITS.max_pixels}"
        raise UnsupportedImage(f"{width}x{height} pixels: {limits}")


def _check_kind(im: ImageFile.ImageFile) -> None:
    """Refuse what Pillow would silently reduce: several frames, deep samples, extra channels. Call before the
    pixels are loaded."""
    n_frames = getattr(im, "n_frames", 1)
    if n_frames > 1:
        raise UnsupportedImage(
            f"the file holds {n_frames} frames; animations and multi-page files are not supported"
        )
    raw = [str(a) for tile in im.tile for a in (tile.args if isinstance(tile.args, tuple) else (tile.args,))]
    deep = any(";16" in a for a in raw)
    if im.format == "PPM":
        deep |= any(a.isdecimal() and int(a) > 255 for a in raw)
    if im.format == "TIFF":
        tags = im.tag_v2  # type: ignore[attr-defined]
        deep |= any(bits > 8 for bits in tags.get(258, (1,)))
        if tags.get(277, 1) not in (1, 3) and im.mode == "RGB":
            raise UnsupportedImage(f"{tags[277]} samples a pixel are not supported")
    if deep:
        raise UnsupportedImage("more than 8 bits a sample are not supported")


def _read_metadata(im: Image.Image) -> Metadata:
    exif = im.info.get("exif") or _tiff_exif(im)
    if (
        exif is None and "Raw profile type exif" in im.info
    ):  # how ImageMagick wrote EXIF before PNG had a chunk for it
        exif = bytes.fromhex("".join(im.info["Raw profile type exif"].split("\n")[3:]))
    meta = Metadata(
        im.info.get("icc_profile") or None,
        exif and exif.removeprefix(EXIF_PREFIX),
        im.info.get("xmp") or None,
    )
    if len(meta.icc or b"") > container.MAX_ICC:
        raise UnsupportedImage(f"an ICC profile of more than {container.MAX_ICC} bytes")
    if sum(meta.n_bytes().values()) > LIMITS.max_metadata:
        raise UnsupportedImage(f"more than {LIMITS.max_metadata} bytes of metadata")
    return meta


def _tiff_exif(im: Image.Image) -> bytes | None:
    """A TIFF has its EXIF spread over its directories, so it is gathered into a block of its own; None where
    there is none."""
    if im.format != "TIFF":
        return None
    source, gathered = im.getexif(), Image.Exif()
    for tag in TIFF_TEXT_TAGS:
        if tag in source:
            gathered[tag] = source[tag]
    for tag in TIFF_SUB_DIRECTORIES:
        if directory := source.get_ifd(tag):
            gathered.get_ifd(tag).update(directory)
            gathered[tag] = directory
    return gathered.tobytes() if len(gathered) else None
