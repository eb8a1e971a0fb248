"""Images in and out of files: pixels through Pillow, metadata byte for byte, writing that is whole or not at
all."""

import io
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from vbc.bitstream import container
from vbc.codec.files import sixteen_bit as deep
from vbc.codec.files.tiff_tags import EXIF_PREFIX, gather_exif, spread_exif

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "PPM", "BMP", "GIF")
"""What Pillow may open. Left out are formats whose deeper samples Pillow reduces to 8 bits without saying so
(AVIF, JPEG 2000)."""
DEEP_FORMATS = ("PNG", "TIFF", "PPM")
"""What can be written with 16 bits a sample."""
ALPHA_FORMATS = ("PNG", "TIFF", "WEBP")
TIFF_TURNS = {
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (1, True),
    6: (3, False),
    7: (3, True),
    8: (1, False),
}
"""Orientation tag -> quarter turns, counterclockwise, of the stored picture; whether it is mirrored first."""
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
PACKED_16_BITS = ("BGR;16", "RGB;16")
"""Pillow's names for pixels of 5, 6 and 5 bits; other names with ";16" in them mean samples of 16 bits."""

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


Samples: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class Picture:
    """An image as the codec sees it.

    rgb: uint8 [H, W, 3], of 16-bit samples the upper bytes; the three planes are equal where `gray` is set.
    alpha: uint8 [H, W], likewise, or None. low: uint8 [C, H, W], the low bytes of 16-bit samples (gray or
    RGB, then alpha), or None.
    """

    rgb: NDArray[np.uint8]
    gray: bool
    metadata: Metadata
    alpha: NDArray[np.uint8] | None = None
    low: NDArray[np.uint8] | None = None

    @classmethod
    def from_samples(cls, samples: Samples, metadata: Metadata) -> "Picture":
        """From uint8 or uint16 [H, W, C]: gray, gray and alpha, RGB, or RGBA. Inverse of `samples`."""
        gray, has_alpha = samples.shape[2] < 3, samples.shape[2] % 2 == 0
        is_deep = samples.dtype == np.uint16
        upper = (samples >> 8).astype(np.uint8) if is_deep else samples.astype(np.uint8, copy=False)
        return cls(
            np.repeat(upper[..., :1], 3, axis=2) if gray else np.ascontiguousarray(upper[..., :3]),
            gray,
            metadata,
            np.ascontiguousarray(upper[..., -1]) if has_alpha else None,
            np.ascontiguousarray(samples.astype(np.uint8).transpose(2, 0, 1)) if is_deep else None,
        )

    def samples(self) -> "Samples":
        """uint8 or uint16 [H, W, C], C = 1..4."""
        upper = self.rgb[..., 1:2] if self.gray else self.rgb
        if self.alpha is not None:
            upper = np.concatenate((upper, self.alpha[..., None]), axis=2)
        if self.low is None:
            return upper
        samples = upper.astype(np.uint16)
        samples <<= 8
        samples |= self.low.transpose(1, 2, 0)
        return samples

    def to_pillow(self) -> Image.Image:
        """A Pillow image of mode L, LA, RGB, RGBA or I;16, the metadata in `info`, where Pillow's own readers
        put it. Raises UnsupportedImage for 16 bits with colour or alpha."""
        samples = self.samples()
        if self.low is not None and samples.shape[2] > 1:
            raise UnsupportedImage(
                "Pillow has no mode for 16-bit colour or alpha; decode_image gives it as a tensor, "
                "levels or a prefix of the file its upper bytes"
            )
        im = Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))
        meta = self.metadata
        named = {"icc_profile": meta.icc, "exif": meta.exif and EXIF_PREFIX + meta.exif, "xmp": meta.xmp}
        im.info.update({k: v for k, v in named.items() if v is not None})
        return im


def read_picture(data: bytes) -> Picture:
    """Parse an image file.

    Raises UnsupportedImage for whatever is no gray or RGB picture of 8 or 16 bits, with or without alpha, and
    says why.
    """
    with _unsupported("broken image"), Image.open(io.BytesIO(data), formats=FORMATS) as im:
        check_size(*im.size)
        assert isinstance(im, ImageFile.ImageFile)  # what opening always gives
        _check_frames(im)
        _check_samples(im)
        _prepare_info(im)
        tags = im.tag_v2 if im.format == "TIFF" else {}  # type: ignore[attr-defined]
        orientation, planar = tags.get(0x0112, 1), tags.get(284, 1) == 2
        is_deep, start = _is_reduced(im), im.tile[0].offset if im.tile else 0
        im.load()  # PNG may have metadata behind its pixels
        return _read_deep(data, im, orientation, planar, start) if is_deep else from_pillow(im)


def from_pillow(im: Image.Image) -> Picture:
    """Pixels and metadata of an open Pillow image, loaded or not.

    Raises UnsupportedImage as `read_picture` does, for metadata that cannot be read and a truncated file too.
    """
    check_size(*im.size)
    with _unsupported("broken image"):
        if isinstance(im, ImageFile.ImageFile) and im.tile:  # not loaded yet
            _check_samples(im)
            _prepare_info(im)
            if _is_reduced(im):
                raise UnsupportedImage(
                    "Pillow reduces these 16-bit samples to 8 bits; encode takes uint16 arrays"
                )
        return Picture.from_samples(_samples(im), _read_metadata(im))


@contextmanager
def _unsupported(what: str) -> Iterator[None]:
    """Turn every error of reading or writing a picture into UnsupportedImage("what: why").

    Every one, since Pillow and the libraries below it promise no kinds: damaged files have given OSError,
    SyntaxError, struct.error, zlib.error, TypeError, AttributeError and more. What says nothing about the
    picture goes through: a lack of memory, an interrupt.
    """
    try:
        yield
    except (UnsupportedImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnsupportedImage(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise UnsupportedImage(f"more than {LIMITS.max_pixels} pixels") from None
    except Exception as e:
        raise UnsupportedImage(f"{what}: {str(e) or type(e).__name__}") from e


def write_picture(picture: Picture, suffix: str, exact: bool) -> bytes:
    """The picture as an image file of the kind `suffix` names, with its metadata where the format has room
    for it: PPM has none, TIFF for those tags of EXIF that can be parsed and do not describe another file.

    `exact` says that the pixels are the original's, and makes WebP lossless. Raises UnsupportedImage where
    the format cannot hold the picture.
    """
    if suffix.lower() not in OUTPUT_FORMATS:
        raise UnsupportedImage(
            f"cannot write {suffix or 'a file without ending'}; endings: {' '.join(OUTPUT_FORMATS)}"
        )
    kind = OUTPUT_FORMATS[suffix.lower()]
    if picture.alpha is not None and kind not in ALPHA_FORMATS:
        raise UnsupportedImage(f"{kind} has no transparency; it fits into {', '.join(ALPHA_FORMATS)}")
    if picture.low is not None and kind not in DEEP_FORMATS:
        raise UnsupportedImage(f"16 bits a sample fit into {', '.join(DEEP_FORMATS)}, not into {kind}")
    with _unsupported(f"cannot write this picture as {kind}"):
        if picture.low is not None and (picture.alpha is not None or not picture.gray):
            return _write_deep(picture, kind)
        return _write_with_pillow(picture, kind, exact)


def _write_with_pillow(picture: Picture, kind: str, exact: bool) -> bytes:
    """8 bits a sample, or 16 in gray. Raises whatever Pillow raises."""
    im = picture.to_pillow()
    meta = {k: im.info.pop(k) for k in ("icc_profile", "exif", "xmp") if k in im.info}
    out = io.BytesIO()
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        if "xmp" in meta:  # as raw bytes: add_itxt would encode a str anew
            info.add(b"iTXt", deep.XMP_KEYWORD + b"\x00\x00\x00\x00\x00" + meta.pop("xmp"))
        im.save(out, kind, pnginfo=info, **meta)
    elif kind == "WEBP":
        im.save(out, kind, lossless=exact, exact=exact, quality=80 if exact else 95, **meta)
    elif kind == "TIFF":
        meta.pop("exif", None)
        tags = spread_exif(picture.metadata.exif)
        if "xmp" in meta:
            tags[deep.TIFF_XMP] = meta.pop("xmp")
        im.save(out, kind, exif=tags, **meta)  # uncompressed: libtiff cannot write EXIF directories
    elif kind == "JPEG":
        im.save(out, kind, quality=95, subsampling=0, **meta)
    else:
        im.save(out, kind)
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


def _samples(im: Image.Image) -> Samples:
    """uint8 or uint16 [H, W, C] of a Pillow image; transparent colours become an alpha channel."""
    if im.mode in ("P", "PA"):
        return np.array(im.convert("RGBA" if im.has_transparency_data else "RGB"))
    planes = np.array(im.convert("L") if im.mode == "1" else im)
    if im.mode in ("I;16", "I;16L", "I;16B") or (im.mode == "I" and not (planes >> 16).any()):
        planes = planes.astype(np.uint16)
    elif im.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        raise UnsupportedImage(
            f"{'samples' if im.mode[0] in 'IF' else 'colours'} of kind {im.mode} are not supported"
        )
    planes = planes.reshape(im.height, im.width, -1)
    key = im.info.get("transparency")
    return planes if key is None or im.mode in ("LA", "RGBA") else _add_alpha(planes, key)


def _add_alpha(samples: Samples, key: int | tuple[int, ...]) -> Samples:
    """An alpha channel that is 0 where all channels equal the transparent colour, else full."""
    if np.asarray(key).dtype.kind not in "iu" or np.size(key) != samples.shape[2]:
        raise UnsupportedImage(f"{key!r} is no transparent colour of {samples.shape[2]} channels")
    alpha = (samples.astype(np.int64) != key).any(axis=2, keepdims=True) * np.iinfo(samples.dtype).max
    return np.concatenate((samples, alpha.astype(samples.dtype)), axis=2)


def _read_deep(data: bytes, im: ImageFile.ImageFile, orientation: int, planar: bool, start: int) -> Picture:
    """The picture of a file whose 16-bit samples Pillow reduces; the metadata is Pillow's.

    orientation: the TIFF tag. planar: whether a TIFF's channels are stored one after the other. start: where
    a PPM's samples begin.
    """
    assert im.format
    if im.format == "PPM":
        return Picture.from_samples(deep.read_ppm(data, start, im.height, im.width), Metadata())
    try:
        samples: Samples = deep.read_deep(data, im.format)
    except ImportError:
        raise UnsupportedImage(
            "16 bits a sample in colour or with alpha need the package imagecodecs: "
            "pip install 'vbc-codec[deep]'"
        ) from None
    if planar:
        samples = np.moveaxis(samples, 0, 2)
    if orientation in TIFF_TURNS:  # as Pillow does
        turns, mirrored = TIFF_TURNS[orientation]
        samples = np.rot90(samples[:, ::-1] if mirrored else samples, turns)
    key = im.info.get("transparency")
    if key is not None and samples.shape[2] == 3:
        samples = _add_alpha(samples, key)
    if samples.shape[:2] != (im.height, im.width) or not 2 <= samples.shape[2] <= 4:
        raise UnsupportedImage(f"16-bit samples of shape {samples.shape} are not supported")
    return Picture.from_samples(samples, _read_metadata(im))


def _write_deep(picture: Picture, kind: str) -> bytes:
    """16-bit colour, or with alpha."""
    samples, meta = picture.samples().astype(np.uint16, copy=False), picture.metadata
    if kind == "PNG":
        return deep.write_png(samples, meta.icc, meta.exif, meta.xmp)
    if kind == "PPM":
        return deep.write_ppm(samples)
    if samples.shape[2] == 2:
        raise UnsupportedImage("16-bit gray with alpha fits into PNG, not into TIFF")
    return deep.write_tiff(samples, meta.icc, meta.exif, meta.xmp)


def _raw_modes(im: ImageFile.ImageFile) -> list[str]:
    """What Pillow says of the samples in a file that it has not loaded yet."""
    return [str(a) for tile in im.tile for a in (tile.args if isinstance(tile.args, tuple) else (tile.args,))]


def _is_reduced(im: ImageFile.ImageFile) -> bool:
    """Whether Pillow would reduce 16-bit samples to 8 bits."""
    return (_has_16_bits(im) and im.mode[0] != "I") or _is_deep_ppm(im)


def _has_16_bits(im: ImageFile.ImageFile) -> bool:
    """Whether the file's samples have 16 bits.

    By Pillow's name for them; in a TIFF by its own word, as Pillow takes planes of 16 bits for planes of 8.
    """
    if im.format == "TIFF":
        return 16 in im.tag_v2.get(258, ())  # type: ignore[attr-defined]
    return any(";16" in a and a not in PACKED_16_BITS for a in _raw_modes(im))


def _is_deep_ppm(im: ImageFile.ImageFile) -> bool:
    """Whether this is a binary PPM with samples up to 65535, in colour."""
    return [(t.codec_name, t.args) for t in im.tile] == [("ppm", ("RGB", 65535))]


def _prepare_info(im: ImageFile.ImageFile) -> None:
    """Make `info` fit before the pixels are loaded.

    Gray of 2 or 4 bits is scaled to 8 by Pillow; so must be its transparent value, which is not. XMP that a
    TIFF calls text is decoded by Pillow, which then fails to look for an orientation in it.
    """
    if im.format == "TIFF" and isinstance(im.info.get("xmp"), str):
        im.info["xmp"] = im.info["xmp"].encode("latin-1")
    scales = {"L;2": 85, "L;4": 17}
    for raw in _raw_modes(im):
        if raw in scales and isinstance(im.info.get("transparency"), int):
            im.info["transparency"] *= scales.pop(raw)


def _check_frames(im: ImageFile.ImageFile) -> None:
    """Refuse several frames."""
    n_frames = getattr(im, "n_frames", 1)
    if n_frames > 1:
        raise UnsupportedImage(
            f"the file holds {n_frames} frames; animations and multi-page files are not supported"
        )


def _check_samples(im: ImageFile.ImageFile) -> None:
    """Refuse samples and channels that Pillow would silently change. Call before the pixels are loaded."""
    raw = _raw_modes(im)
    n_bits = 16 if _has_16_bits(im) else 8
    if im.format == "PPM":
        n_bits = max([n_bits, *(int(a).bit_length() for a in raw if a.isdecimal())])
        known = n_bits == 8 or (im.mode == "I" and "I;16B" in raw) or _is_deep_ppm(im)
    elif im.format == "TIFF":
        tags = im.tag_v2  # type: ignore[attr-defined]
        n_bits = max(tags.get(258, (1,)))
        extra = tags.get(338, (2,))
        if tags.get(277, 1) != len(im.getbands()):
            raise UnsupportedImage(f"{tags.get(277)} samples a pixel are not supported")
        if im.mode in ("RGBA", "LA") and extra[0] == 1:
            raise UnsupportedImage("colours multiplied by alpha are not supported")
        unsigned = set(tags.get(339, (1,))) == {1}
        known = unsigned and (n_bits <= 8 or (n_bits == 16 and tags.get(262) in (1, 2)))
    else:
        known = n_bits == 8 or im.format == "PNG"
    if not known:
        raise UnsupportedImage(f"{n_bits}-bit samples of this kind ({im.mode}) are not supported")


def _read_metadata(im: Image.Image) -> Metadata:
    exif = im.info.get("exif") or (gather_exif(im) if im.format == "TIFF" else None)
    if exif is None and "Raw profile type exif" in im.info:
        # how ImageMagick wrote EXIF before PNG had a chunk for it
        exif = bytes.fromhex("".join(im.info["Raw profile type exif"].split("\n")[3:]))
    return make_metadata(
        im.info.get("icc_profile"), exif, im.info.get("xmp"), "latin-1" if im.format == "TIFF" else "utf-8"
    )


def make_metadata(icc: object, exif: object, xmp: object, encoding: str = "utf-8") -> Metadata:
    """Metadata of what Pillow and its users put into `info`: bytes, text, Image.Exif, None. Empty is None.

    encoding: of text; "latin-1" gives back the bytes of a TIFF's tag of type ASCII, which Pillow has decoded.
    Raises UnsupportedImage for other types and where there is too much of it.
    """
    parts = (_as_bytes(*part, encoding) for part in (("ICC profile", icc), ("EXIF", exif), ("XMP", xmp)))
    meta = Metadata(*parts)
    if len(meta.icc or b"") > container.MAX_ICC:
        raise UnsupportedImage(f"an ICC profile of more than {container.MAX_ICC} bytes")
    if sum(meta.n_bytes().values()) > LIMITS.max_metadata:
        raise UnsupportedImage(f"more than {LIMITS.max_metadata} bytes of metadata")
    return meta


def _as_bytes(what: str, value: object, encoding: str) -> bytes | None:
    """A part of the metadata as bytes without EXIF's prefix, None where it is empty."""
    match value:
        case None:
            return None
        case Image.Exif():
            data = value.tobytes()
        case str():
            data = value.encode(encoding)
        case bytes() | bytearray() | memoryview():
            data = bytes(value)
        case _:
            raise UnsupportedImage(f"the {what} is a {type(value).__name__}, not bytes")
    return (data.removeprefix(EXIF_PREFIX) if what == "EXIF" else data) or None
