"""Bytes of files, read no further than their header allows. Light: no torch, numpy or Pillow."""

from os import PathLike
from typing import IO

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, FIXED_BYTES, Limits
from vbc.bitstream.errors import LimitExceeded, Truncated
from vbc.bitstream.source import read_up_to

MAX_IMAGE_FILE = 2 << 30
"""Bytes of an image file to encode: the largest picture allowed has 1.4 GB of plain samples (16-bit RGBA)."""


def read_vbc(source: str | PathLike[str] | IO[bytes], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """A .vbc file, or what is there of one.

    At most one byte more is read than the header announces, so that `decode` sees that there is more. Raises
    a FormatError where the header is bad or above the limits, before anything behind it is read, but not
    where bytes are missing; OSError where the source cannot be read.
    """
    if isinstance(source, str | PathLike):
        with open(source, "rb") as f:
            return read_vbc(f, limits)
    head = read_header(source, limits)
    try:
        header = container.unpack_header(head, limits)
    except Truncated:
        return head
    return head + read_up_to(source, header.file_bytes + 1 - len(head))


def read_header(source: IO[bytes], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The header of a .vbc file with its index, or what is there of it. Raises as `read_vbc`."""
    head = read_up_to(source, FIXED_BYTES)
    try:
        return head + read_up_to(source, container.header_end(head, limits) - len(head))
    except Truncated:
        return head


def read_image(source: IO[bytes], max_bytes: int = MAX_IMAGE_FILE) -> bytes:
    """An image file of any kind. Raises LimitExceeded where it goes on after `max_bytes`."""
    data = read_up_to(source, max_bytes + 1)
    if len(data) > max_bytes:
        raise LimitExceeded("bytes of the image file", len(data), max_bytes)
    return data
