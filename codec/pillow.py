"""The Pillow plugin: after `import vbc.codec.pillow` Pillow, and what uses it, opens and saves .vbc files.

Opening reads the header and the metadata alone; torch is loaded when pixels are wanted or a picture is saved.
"""

import zlib
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageFile

from vbc.bitstream import container
from vbc.bitstream.container import ALPHA, EXIF, ICC, XMP, Header
from vbc.bitstream.errors import Corrupt, FormatError
from vbc.bitstream.source import read_up_to
from vbc.codec import api
from vbc.codec.files.image_io import UnsupportedImage, make_metadata
from vbc.codec.files.reading import read_header, read_vbc
from vbc.codec.files.tiff_tags import EXIF_PREFIX

if TYPE_CHECKING:
    from PIL._imaging import PixelAccess

FORMAT = "VBC"
MIME = "image/x-vbc"
EXTENSION = ".vbc"
MODES = {
    (1, False, 8): "L",
    (1, True, 8): "LA",
    (3, False, 8): "RGB",
    (3, True, 8): "RGBA",
    (1, False, 16): "I;16",
}
"""Pillow's mode for (channels, alpha, bit depth); it has none for the other pictures of 16 bits."""
SAVE_OPTIONS = (
    *("levels", "quality", "lossless", "effort", "tune", "max_bytes", "model"),
    *("roi", "roi_quality", "roi_first", "refinements"),
)
"""Of `Image.save`, with the meaning they have for `vbc.codec.encode`; icc_profile, exif and xmp besides."""


class VbcImageFile(ImageFile.ImageFile):
    """An open .vbc file.

    A bad header is a SyntaxError, by which Pillow tells that a file is not of this kind; a fault behind the
    header is an OSError when the pixels are loaded. `ImageFile.LOAD_TRUNCATED_IMAGES` accepts a truncated
    file, `draft` makes Pillow's thumbnails from the first levels alone.
    """

    format = FORMAT
    format_description = "vbc, progressive from lossy to lossless"

    _header: Header
    _native: int | None = None
    """How many levels to decode at their own size, where `draft` has asked for a small picture."""
    _loaded = False

    def _open(self) -> None:
        stream = self._stream()
        try:
            header = container.unpack_header(read_header(stream))
        except FormatError as e:
            raise SyntaxError(str(e)) from e
        kind = (header.channels, header.has(ALPHA), header.bit_depth)
        if kind not in MODES:
            raise OSError("Pillow has no mode for 16-bit colour; vbc.codec.decode_image gives a tensor")
        self._header = header
        self._mode = MODES[kind]
        self._size = (header.width, header.height)
        for i, (name, prefix) in {
            ICC: ("icc_profile", b""),
            EXIF: ("exif", EXIF_PREFIX),
            XMP: ("xmp", b""),
        }.items():
            with suppress(Corrupt):  # a damaged one is for `load` to judge
                if (payload := self._metadata(stream, i)) is not None:
                    self.info[name] = prefix + payload

    def _stream(self) -> IO[bytes]:
        if self.fp is None:
            raise OSError("the file is closed")
        self.fp.seek(0)
        return self.fp

    def _metadata(self, stream: IO[bytes], unit: int) -> bytes | None:
        """The payload of a metadata packet, None where there is none. Raises Corrupt where it is damaged."""
        i = self._header.find(unit)
        if i is None:
            return None
        start, end = self._header.span(i)
        stream.seek(start)
        payload = read_up_to(stream, end - start)
        if zlib.crc32(payload) != self._header.packets[i].crc32:
            raise Corrupt(f"checksum of packet {i}")
        return payload

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Choose the smallest picture that is stored and not smaller than `size`: 1/4, 1/2 or full size.

        The mode stays. Returns it and the box of the picture in its new size, or None where nothing changes.
        """
        if size is None or self._loaded or self._native or self.mode == "I;16":
            return None
        width, height = self._size
        levels = container.level_ends(self._header)
        for level, scale in ((1, 4), (2, 2)):
            small = (-(-width // scale), -(-height // scale))
            if level in levels and small[0] >= size[0] and small[1] >= size[1]:
                self._native = level
                self._size = small
                return self.mode, (0, 0, width / scale, height / scale)
        return None

    def load(self) -> "PixelAccess | None":
        """Decode the pixels. Raises OSError where they cannot be decoded."""
        if not self._loaded:
            native = self._native is not None
            try:
                decoded = api.decode(
                    read_vbc(self._stream()),
                    levels=self._native,
                    native=native,
                    allow_partial=ImageFile.LOAD_TRUNCATED_IMAGES,
                )
            except FormatError as e:
                raise OSError(str(e)) from e
            decoded.load()
            self.im = decoded.im
            self._mode = decoded.mode
            self._size = decoded.size
            self._loaded = True
            if self._exclusive_fp:
                self._close_fp()
            self.fp = None
        return Image.Image.load(self)

    def load_seek(self, pos: int) -> None:
        """Nothing: `load` reads the file itself."""


def accept(prefix: bytes) -> bool:
    """Whether a file that begins so may be ours."""
    return prefix.startswith(container.MAGIC)


def save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """What `Image.save` calls. Raises OSError for pictures that cannot be encoded, ValueError for options."""
    given = im.encoderinfo
    icc, exif, xmp = (given.get(name, im.info.get(name)) for name in ("icc_profile", "exif", "xmp"))
    options = {name: given[name] for name in SAVE_OPTIONS if name in given}
    try:
        fp.write(api.encode(im, metadata=make_metadata(icc, exif, xmp), **options))
    except (FormatError, UnsupportedImage) as e:
        raise OSError(f"cannot write mode {im.mode} as {FORMAT}: {e}") from e


def register() -> None:
    """Make the plugin known to Pillow, which importing this module does: a hook for worker processes."""
    Image.register_open(FORMAT, VbcImageFile, accept)
    Image.register_save(FORMAT, save)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)


register()
