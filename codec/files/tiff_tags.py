"""EXIF in TIFF files. A TIFF has no block of EXIF: its tags lie in the directories of the file, beside those
that describe the layout of the pixels. Here they are gathered into a block, and spread out again."""

from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

EXIF_PREFIX = b"Exif\x00\x00"
"""Stands before the block in JPEG, and in what Pillow gives and takes."""
TEXT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
"""Description, make, model, software, date, artist, copyright: the tags of a TIFF's first directory that are
not about its layout."""
WRITTEN_TAGS = (*TEXT_TAGS, 0x0112, 0x011A, 0x011B, 0x0128)
"""Of a block's first directory, what goes into a TIFF: text, orientation, resolution and its unit. All others
(compression, strips, samples ...) describe another file; they would give the written one another meaning."""
SUB_DIRECTORIES = (0x8769, 0x8825)
"""EXIF and GPS."""


def gather_exif(im: Image.Image) -> bytes | None:
    """The EXIF of an open TIFF as a block with its prefix; None where there is none.

    Orientation is left out: Pillow turns the pixels upright. Tags that cannot be written are left out.
    """
    tags = _copy(im.getexif(), TEXT_TAGS)
    return tags.tobytes() if len(tags) else None


def spread_exif(block: bytes | None) -> Image.Exif:
    """The tags that a block of EXIF without its prefix gives a TIFF.

    Empty where the block cannot be parsed; tags that cannot be read or written are left out.
    """
    source = Image.Exif()
    try:
        source.load(block or b"")
    except Exception:  # arbitrary bytes, and Pillow's parser promises no kind of error
        return Image.Exif()
    return _copy(source, WRITTEN_TAGS)


def _copy(source: Image.Exif, names: Iterable[int]) -> Image.Exif:
    """Those of the named tags and of the sub-directories that can be read and written."""
    copied = Image.Exif()
    copied.endian = source.endian
    for tag in names:
        try:
            value = source.get(tag)
        except Exception:  # a value that its type cannot hold
            continue
        if value is not None and _writable({tag: value}):
            copied[tag] = value
    for tag in SUB_DIRECTORIES:
        try:
            directory = source.get_ifd(tag)
        except Exception:  # an offset to nowhere, a value that its type cannot hold
            continue
        if not _writable({tag: directory}):
            directory = {t: value for t, value in directory.items() if _writable({tag: {t: value}})}
        if directory:
            copied.get_ifd(tag).update(directory)
            copied[tag] = directory
    return copied


def _writable(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow can write these tags: it takes the type of a known tag, whatever the value is."""
    alone = Image.Exif()
    try:
        alone.update(tags)
        alone.tobytes()
    except Exception:  # what the value makes of struct, of arithmetic, of Pillow
        return False
    return True
