"""Images in and out: what is accepted, what is refused and why, metadata byte for byte, writing that is whole
or not at all."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

import vbc.codec
from vbc.codec.example import make_example
from vbc.codec.files import image_io
from vbc.codec.files.image_io import (
    Metadata,
    Picture,
    Samples,
    UnsupportedImage,
    read_picture,
    write_atomic,
    write_picture,
)

RGB = make_example(29, 17)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">\xc3\xa9 \xff not UTF-8</x:xmpmeta>'


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x829A] = (1, 250)
    return exif.tobytes().removeprefix(image_io.EXIF_PREFIX)


META = Metadata(ICC, exif_block(), XMP)


def saved(im: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    im.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), *extra, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP"])
def test_rgb_is_read_as_it_is(kind: str) -> None:
    picture = read_picture(saved(Image.fromarray(RGB), kind))
    assert np.array_equal(picture.rgb, RGB)
    assert picture.rgb.dtype == np.uint8
    assert not picture.gray


@pytest.mark.parametrize("mode", ["L", "1"])
def test_gray_has_three_equal_planes(mode: str) -> None:
    im = Image.fromarray(RGB).convert(mode)
    picture = read_picture(saved(im, "PNG"))
    assert picture.gray
    assert np.array_equal(picture.rgb, np.repeat(np.asarray(im.convert("L"))[..., None], 3, axis=2))
    assert picture.to_pillow().mode == "L"


def test_palette_is_expanded() -> None:
    im = Image.fromarray(RGB).quantize(16)
    picture = read_picture(saved(im, "PNG"))
    assert np.array_equal(picture.rgb, np.asarray(im.convert("RGB")))
    assert not picture.gray


def frames(kind: str) -> bytes:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    return saved(first, kind, save_all=True, append_images=[second])


def tiff(samples: NDArray[Any], **tags: Any) -> bytes:
    """An uncompressed TIFF written by hand, for what Pillow does not write; tags by their number: t262=0."""
    height, width, n_channels = samples.shape
    bits = 8 * samples.itemsize
    layout = {256: width, 257: height, 258: (bits,) * n_channels, 259: 1, 262: 2 if n_channels > 2 else 1}
    layout |= {273: 0, 277: n_channels, 278: height, 279: samples.nbytes}
    directory = Image.Exif()
    directory.endian = "<"
    directory.update(layout | {int(name[1:]): value for name, value in tags.items()})
    return directory.tobytes().removeprefix(image_io.EXIF_PREFIX) + samples.tobytes()


def png_tiff_samples(kind: str, samples: Samples) -> bytes:
    """A file of the kind with uint8 or uint16 [H, W, C]."""
    return write_picture(Picture.from_samples(samples, META), kind, exact=True)


def noise(n_channels: int, dtype: type = np.uint8) -> Samples:
    rng = np.random.default_rng(n_channels)
    return rng.integers(0, np.iinfo(dtype).max + 1, (7, 12, n_channels)).astype(dtype)


GRAY = RGB[..., 0]
REFUSED = {
    "16-bit plain PPM": (b"P3 1 1 65535\n1 2 3\n", "16-bit samples"),
    "12-bit PPM": (b"P6 1 1 4095\n" + bytes(6), "12-bit samples"),
    "truncated 16-bit PPM": (b"P6 1 1 65535\n" + bytes(5), "broken"),
    "10-bit PGM": (b"P5 1 1 1023\n" + bytes(2), "10-bit samples"),
    "12-bit TIFF": (tiff(noise(1, np.uint16), t258=12), "12-bit samples"),
    "16-bit TIFF, white is zero": (tiff(noise(1, np.uint16), t262=0), "16-bit samples"),
    "signed 16-bit TIFF": (tiff(noise(1, np.uint16), t339=2), "16-bit samples"),
    "signed 8-bit TIFF": (tiff(noise(1), t339=2), "8-bit samples of this kind"),
    "32-bit TIFF": (saved(Image.fromarray(GRAY.astype(np.int32) << 20), "TIFF"), "32-bit samples"),
    "premultiplied TIFF": (tiff(noise(4), t338=1), "multiplied by alpha"),
    "premultiplied 16-bit TIFF": (tiff(noise(4, np.uint16), t338=1), "multiplied by alpha"),
    "four colours": (tiff(noise(4), t338=0), "4 samples"),
    "gray and an unknown channel": (tiff(noise(2), t338=0), "2 samples"),
    "five channels": (tiff(noise(5), t338=(2, 0)), "5 samples"),
    "float": (saved(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), "32-bit samples"),
    "broken 16-bit RGB": (png(2, 1, 16, 2, b"\7" + bytes(range(12))), "broken"),
    "CMYK": (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "CMYK"),
    "CMYK TIFF": (saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), "CMYK"),
    "LAB": (saved(Image.fromarray(RGB).convert("LAB"), "TIFF"), "LAB"),
    "animated PNG": (frames("PNG"), "2 frames"),
    "animated GIF": (frames("GIF"), "2 frames"),
    "animated WebP": (frames("WEBP"), "2 frames"),
    "multi-page TIFF": (frames("TIFF"), "2 frames"),
    "empty": (b"", "not an image"),
    "text": (b"hello", "not an image"),
    "too wide": (png(65_536, 1, 8, 0, b"\0"), "65536x1"),
    "too large": (png(65_000, 65_000, 8, 0, b"\0"), "pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Image size")
def test_refused_with_its_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(UnsupportedImage, match=reason):
        read_picture(data)


def test_every_truncation_is_typed() -> None:
    whole = saved(Image.fromarray(RGB), "PNG", icc_profile=ICC, exif=image_io.EXIF_PREFIX + exif_block())
    for n_bytes in range(
        0, len(whole) - 22, 7
    ):  # after that all pixels are there: an end chunk and checksums are not
        with pytest.raises(UnsupportedImage):
            read_picture(whole[:n_bytes])


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
@pytest.mark.parametrize("gray", [False, True])
def test_metadata_and_pixels_round_trip(suffix: str, gray: bool) -> None:
    rgb = np.repeat(RGB[..., :1], 3, axis=2) if gray else RGB
    again = read_picture(write_picture(Picture(rgb, gray, META), suffix, exact=True))
    assert again.metadata.icc == META.icc
    assert again.metadata.xmp == META.xmp
    if suffix == ".tif":  # its EXIF lies in its own directories
        exif = Image.Exif()
        exif.load(again.metadata.exif or b"")
        assert exif[0x010F] == "Maker"
        assert exif.get_ifd(0x8769)[0x829A] == (1, 250)
    else:
        assert again.metadata.exif == META.exif
    if suffix == ".tif":  # reading one turns it upright, as its orientation says
        rgb = np.rot90(rgb, -1)
    assert again.rgb.shape == rgb.shape
    if suffix != ".jpg":
        assert np.array_equal(again.rgb, rgb)
    assert again.gray == (gray and suffix != ".webp")  # WebP knows no gray


def test_no_metadata_stays_none() -> None:
    picture = read_picture(write_picture(Picture(RGB, False, Metadata()), ".png", exact=True))
    assert picture.metadata == Metadata()
    assert picture.metadata.n_bytes() == {}


def test_metadata_behind_the_pixels_is_found() -> None:
    block = exif_block()
    data = png(1, 1, 8, 0, b"\0\x80", (b"eXIf", block))
    assert read_picture(data).metadata == Metadata(exif=block)


def test_old_png_exif_is_found() -> None:
    block = exif_block()
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "Raw profile type exif", f"\nexif\n{len(block):8}\n{(image_io.EXIF_PREFIX + block).hex()}\n"
    )
    assert read_picture(saved(Image.fromarray(RGB), "PNG", pnginfo=info)).metadata.exif == block


BROKEN_EXIF = (b"garbage", b"II*\0", b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"II+\0\x08\0\0\0")


@pytest.mark.parametrize("suffix", image_io.OUTPUT_FORMATS)
@pytest.mark.parametrize("block", BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of corrupt EXIF
def test_any_bytes_for_exif_can_be_written(suffix: str, block: bytes) -> None:
    """Formats with a block of EXIF keep it byte for byte, TIFF leaves out what cannot be parsed."""
    dtypes = (
        (np.uint8, np.uint16) if image_io.OUTPUT_FORMATS[suffix] in image_io.DEEP_FORMATS else (np.uint8,)
    )
    for dtype in dtypes:
        samples = noise(3, dtype)
        picture = Picture.from_samples(samples, Metadata(ICC, block, XMP))
        again = read_picture(write_picture(picture, suffix, exact=True))
        if suffix not in (".jpg", ".jpeg"):
            assert np.array_equal(again.samples(), samples)
        kind = image_io.OUTPUT_FORMATS[suffix]
        kept = None if kind in ("TIFF", "PPM") else block or None
        assert again.metadata == (Metadata() if kind == "PPM" else Metadata(ICC, kept, XMP))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.filterwarnings("ignore")  # Pillow's, of tags with too many values
def test_exif_cannot_change_the_pixels_of_a_tiff(dtype: type) -> None:
    """Tags of another file's layout are left out, as are values that their types cannot hold."""
    layout = {
        256: 3,
        258: (4, 4, 4),
        259: 6,
        262: 0,
        266: 2,
        273: 9,
        278: 2,
        284: 2,
        317: 2,
        322: 16,
        323: 16,
    }
    layout |= {320: (1, 2, 3), 330: 8, 338: 1, 339: 3, 347: b"tables", 34675: b"profile", 700: b"<other/>"}
    exif = Image.Exif()
    exif.update(layout | {0x010F: "Maker", 0x0128: 3})
    exif.get_ifd(0x8769).update({0x829A: (1, 250), 0x9286: b"comment"})
    block = bytearray(exif.tobytes().removeprefix(image_io.EXIF_PREFIX))
    at = block.index(struct.pack(">HH", 0x0128, 3))
    block[at : at + 4] = struct.pack(">HH", 0x0112, 2)  # an orientation that is text
    for n_channels in (1, 3, 4):
        samples = noise(n_channels, dtype)
        picture = Picture.from_samples(samples, Metadata(None, bytes(block), None))
        again = read_picture(write_picture(picture, ".tif", exact=True))
        assert np.array_equal(again.samples(), samples)
        assert (again.metadata.icc, again.metadata.xmp) == (None, None)
        found = Image.Exif()
        found.load(again.metadata.exif or b"")
        assert found[0x010F] == "Maker"
        assert found.get_ifd(0x8769) == {0x829A: (1, 250), 0x9286: b"comment"}


def test_text_where_pillow_promises_bytes() -> None:
    """A TIFF may call its ICC profile and XMP text, and programs put text into `info`."""
    text = b"pro\xe9file"
    data = tiff(noise(3), t34675=text, t700=b"<long/>")
    for tag, kind in ((34675, 7), (700, 1)):  # from bytes to text
        data = data.replace(struct.pack("<HH", tag, kind), struct.pack("<HH", tag, 2))
    assert isinstance(Image.open(io.BytesIO(data)).info["icc_profile"], str)
    assert read_picture(data).metadata == Metadata(text, None, b"<long/>")
    im = Image.fromarray(RGB)
    im.info.update(icc_profile=bytearray(b"profile"), xmp="<\xe9/>", exif=Image.Exif())
    metadata = image_io.from_pillow(im).metadata
    assert (metadata.icc, metadata.xmp) == (b"profile", "<\xe9/>".encode())


BAD_INFO = {
    "ICC of numbers": {"icc_profile": (1, 2, 3)},
    "XMP of another type": {"xmp": 7},
    "EXIF of another type": {"exif": [b"II"]},
    "lone surrogates": {"xmp": "\ud800"},
    "old EXIF, no hexadecimal": {"Raw profile type exif": "\nexif\n  2\nzz\n"},
    "old EXIF, half a byte": {"Raw profile type exif": "\nexif\n  2\n123\n"},
    "old EXIF of another type": {"Raw profile type exif": 9},
    "transparency of another type": {"transparency": "red"},
}


@pytest.mark.parametrize("name", BAD_INFO)
def test_bad_metadata_of_a_pillow_image_is_named(name: str) -> None:
    im = Image.fromarray(RGB)
    im.info.update(BAD_INFO[name])
    with pytest.raises(UnsupportedImage):
        vbc.codec.encode(im)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_truncated_pillow_images_are_typed(kind: str) -> None:
    """Opened by the caller, so that the fault shows when the codec loads the pixels."""
    whole = saved(Image.fromarray(noise(3)).convert("P" if kind == "GIF" else "RGB"), kind)
    for n_missing in range(30, 150, 17):
        try:
            im = Image.open(io.BytesIO(whole[:-n_missing]))
        except (OSError, SyntaxError):
            continue  # what Pillow says itself
        with pytest.raises(UnsupportedImage):
            vbc.codec.encode(im)
    closed = Image.open(io.BytesIO(whole))
    closed.close()
    with pytest.raises(UnsupportedImage):
        vbc.codec.encode(closed)


def test_a_lack_of_memory_is_not_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_io, "_samples", fail)
    with pytest.raises(MemoryError):
        read_picture(saved(Image.fromarray(RGB), "PNG"))


def bmp(n_bits: int, masks: tuple[int, ...], rows: bytes, width: int, height: int, head: int = 40) -> bytes:
    """A BMP with bit fields, written by hand."""
    body = struct.pack("<IiiHHIIiiII", head, width, height, 1, n_bits, 3, len(rows), 0, 0, 0, 0)
    body += struct.pack(f"<{len(masks)}I", *masks)
    body += bytes(max(0, head - len(body)))
    start = 14 + len(body)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + body + rows


@pytest.mark.parametrize(
    ("masks", "widths"), [((0xF800, 0x7E0, 0x1F), (5, 6, 5)), ((0x7C00, 0x3E0, 0x1F), (5, 5, 5))]
)
def test_bmp_of_16_bits_a_pixel(masks: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Its samples have 5 or 6 bits, which Pillow scales to 8."""
    values = np.array([[0, 0xFFFF], [0x1234, 0x8421]], np.uint16)
    picture = read_picture(bmp(16, masks, values[::-1].astype("<u2").tobytes(), 2, 2))
    with Image.open(io.BytesIO(bmp(16, masks, values[::-1].astype("<u2").tobytes(), 2, 2))) as im:
        assert np.array_equal(picture.rgb, np.asarray(im))
    shifts = (widths[1] + widths[2], widths[2], 0)
    for c, (n, shift) in enumerate(zip(widths, shifts, strict=True)):
        top = (1 << n) - 1
        want = ((values >> shift) & top).astype(float) * 255 / top
        assert np.abs(picture.rgb[..., c] - want).max() <= 1
    assert picture.low is None
    with Image.open(io.BytesIO(bmp(16, masks, values.tobytes(), 2, 2))) as im:
        assert image_io.from_pillow(im).rgb.shape == (2, 2, 3), "not loaded yet"


def test_bmp_of_32_bits_with_alpha() -> None:
    samples = noise(4)[:, :5]
    rows = np.ascontiguousarray(samples[::-1, :, [2, 1, 0, 3]]).tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    assert np.array_equal(read_picture(bmp(32, masks, rows, 5, 7, head=124)).samples(), samples)


def test_too_much_metadata_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="ICC"):
        read_picture(saved(Image.fromarray(RGB), "JPEG", icc_profile=bytes(1 << 20) + b"x"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_samples_and_metadata_come_back(suffix: str, n_channels: int, dtype: type) -> None:
    """Written, then read: every channel and every bit, or a refusal by name."""
    samples = noise(n_channels, dtype)
    if n_channels % 2 == 0:
        samples[:3, ..., -1] = 0  # what full transparency hides is kept
    meta = Metadata(ICC, None, XMP)
    deep = dtype is np.uint16
    if deep and (suffix == ".webp" or (suffix == ".tif" and n_channels == 2)):
        with pytest.raises(UnsupportedImage, match="16"):
            write_picture(Picture.from_samples(samples, meta), suffix, exact=True)
        return
    again = read_picture(write_picture(Picture.from_samples(samples, meta), suffix, exact=True))
    if suffix == ".webp" and n_channels < 3:  # WebP knows no gray
        samples = np.concatenate((np.repeat(samples[..., :1], 3, axis=2), samples[..., 1:]), axis=2)
    assert again.samples().dtype == dtype
    assert np.array_equal(again.samples(), samples)
    assert again.metadata == meta


def test_exif_of_16_bit_files() -> None:
    """A PNG keeps it byte for byte; a TIFF has its tags, and is turned upright by whoever reads it."""
    samples = noise(3, np.uint16)
    assert read_picture(png_tiff_samples(".png", samples)).metadata == META
    again = read_picture(png_tiff_samples(".tif", samples))
    exif = Image.Exif()
    exif.load(again.metadata.exif or b"")
    assert exif[0x010F] == "Maker"
    assert exif.get_ifd(0x8769)[0x829A] == (1, 250)
    assert np.array_equal(again.samples(), np.rot90(samples, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiffs_are_alike_in_8_and_16_bits(orientation: int) -> None:
    samples = noise(3)
    plain = read_picture(tiff(samples, t274=orientation)).samples()
    deep = read_picture(tiff(samples.astype(np.uint16) * 257, t274=orientation)).samples()
    assert np.array_equal(deep, plain.astype(np.uint16) * 257)


@pytest.mark.parametrize("n_channels", [3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_tiff_of_separate_planes(n_channels: int, dtype: type, orientation: int) -> None:
    """Pillow takes planes of 16 bits for planes of 8, and would give other pixels."""
    samples = noise(n_channels, dtype)
    planes = np.ascontiguousarray(samples.transpose(2, 0, 1))
    data = tiff(
        samples, t284=2, t273=(0,) * n_channels, t279=(planes[0].nbytes,) * n_channels, t274=orientation
    )
    start = len(data) - samples.nbytes
    # `tiff` has all strips begin where the samples do
    at = data.index(struct.pack("<L", start) * n_channels)
    offsets = struct.pack(f"<{n_channels}L", *(start + i * planes[0].nbytes for i in range(n_channels)))
    data = data[:at] + offsets + data[at + len(offsets) : start] + planes.tobytes()
    wanted = np.rot90(samples, -1) if orientation == 6 else samples
    assert np.array_equal(read_picture(data).samples(), wanted)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_kept_and_the_pixels_are_not_turned(kind: str) -> None:
    data = saved(Image.fromarray(RGB), kind, exif=image_io.EXIF_PREFIX + exif_block())
    picture = read_picture(data)
    assert picture.rgb.shape == RGB.shape
    exif = Image.Exif()
    exif.load(picture.metadata.exif or b"")
    assert exif[0x0112] == 6


def test_palette_with_transparency_is_expanded() -> None:
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6) % 5
    im = Image.fromarray(indices).convert("P")
    im.putpalette(list(range(15)))
    colours = np.arange(15, dtype=np.uint8).reshape(5, 3)[indices]
    for given, alpha in ((3, [255, 255, 255, 0, 255]), (bytes([0, 9, 255, 77, 1]), [0, 9, 255, 77, 1])):
        picture = read_picture(saved(im, "PNG", transparency=given))
        assert np.array_equal(picture.rgb, colours)
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, np.array(alpha, np.uint8)[indices])


TRANSPARENT = {
    "gray": (8, 0, bytes([0, 7, 3, 200, 3]), b"\0\3", 1),
    "gray of 2 bits": (2, 0, bytes([0, 0b00_10_11_10]), b"\0\2", 1),
    "gray of 1 bit": (1, 0, bytes([0, 0b0101_0000]), b"\0\1", 1),
    "RGB": (8, 2, bytes([0, *range(9), 3, 4, 5]), b"\0\3\0\4\0\5", 3),
    "16-bit gray": (16, 0, bytes([0, 1, 2, 3, 4, 1, 3, 3, 4]), b"\3\4", 1),
    "16-bit RGB": (16, 2, bytes([0, *range(18), *range(6, 12)]), bytes(range(6, 12)), 3),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_a_transparent_colour_becomes_alpha(name: str) -> None:
    """Positions 1 and 3 of four have the colour."""
    depth, colour, row, key, n_colours = TRANSPARENT[name]
    head, tail = png(4, 1, depth, colour, row).split(b"IDAT", 1)
    chunk = b"tRNS" + key
    trns = struct.pack(">I", len(key)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    samples = read_picture(head[:-4] + trns + head[-4:] + b"IDAT" + tail).samples()
    full = np.iinfo(samples.dtype).max
    assert samples.dtype == (np.uint16 if depth == 16 else np.uint8)
    assert samples.shape == (1, 4, n_colours + 1)
    assert samples[0, :, -1].tolist() == [full, 0, full, 0]
    assert np.array_equal(samples[0, 1], samples[0, 3])


def test_16_bit_ppm() -> None:
    samples = noise(3, np.uint16)
    body = samples.astype(">u2").tobytes()
    for head in (b"P6 12 7 65535\n", b"P6\n# by a camera\n12 # columns\n7\n65535 "):
        assert np.array_equal(read_picture(head + body).samples(), samples)
    for given in (samples, samples[..., :1]):
        data = write_picture(Picture.from_samples(given, META), ".ppm", exact=True)
        assert np.array_equal(read_picture(data).samples(), given)


def test_16_bit_gray_from_every_side() -> None:
    gray = noise(1, np.uint16)[..., 0]
    im = Image.fromarray(gray)
    for data in (
        saved(im, "PNG"),
        saved(im, "TIFF"),
        b"P5 12 7 65535\n" + gray.astype(">u2").tobytes(),
        tiff(gray[..., None]),
    ):
        assert np.array_equal(read_picture(data).samples()[..., 0], gray)
    for mode in (im, Image.fromarray(gray.astype(np.int32))):
        assert np.array_equal(image_io.from_pillow(mode).samples()[..., 0], gray)
    back = image_io.from_pillow(im).to_pillow()
    assert back.mode == "I;16"
    assert np.array_equal(np.asarray(back), gray)
    for out_of_range in (-1, 1 << 16):
        with pytest.raises(UnsupportedImage, match="kind I"):
            image_io.from_pillow(Image.fromarray(np.full((2, 2), out_of_range, np.int32)))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_pillow_modes_with_alpha(mode: str) -> None:
    im = Image.fromarray(noise(4)).convert(mode)
    picture = image_io.from_pillow(im)
    assert picture.gray == (mode == "LA")
    wanted = im.convert("RGBA") if mode == "PA" else im
    assert np.array_equal(np.asarray(picture.to_pillow()), np.asarray(wanted))


def test_pillow_modes_that_are_refused() -> None:
    for mode in ("RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB", "F"):
        with pytest.raises(UnsupportedImage, match=mode):
            image_io.from_pillow(Image.new(mode, (3, 2)))
    with pytest.raises(UnsupportedImage, match="decode_image"):
        Picture.from_samples(noise(3, np.uint16), Metadata()).to_pillow()
    data = png_tiff_samples(".png", noise(3, np.uint16))
    with Image.open(io.BytesIO(data)) as im, pytest.raises(UnsupportedImage, match="reduces"):
        image_io.from_pillow(im)


def test_16_bit_colour_without_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is named; writing needs nothing."""
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    data = png_tiff_samples(".png", noise(4, np.uint16))
    with pytest.raises(UnsupportedImage, match=r"vbc-codec\[deep\]"):
        read_picture(data)
    assert read_picture(saved(Image.fromarray(noise(1, np.uint16)[..., 0]), "PNG")).low is not None


def test_truncated_16_bit_files_are_typed() -> None:
    samples = noise(4, np.uint16)
    for suffix in (".png", ".tif"):
        whole = png_tiff_samples(suffix, samples)
        for n_missing in range(23, samples.nbytes, 23):  # a PNG's last bytes are an end chunk and checksums
            with pytest.raises(UnsupportedImage):
                read_picture(whole[:-n_missing])


@pytest.mark.parametrize("suffix", [".jpg", ".ppm"])
def test_formats_without_transparency(suffix: str) -> None:
    for n_channels in (2, 4):
        with pytest.raises(UnsupportedImage, match="no transparency"):
            write_picture(Picture.from_samples(noise(n_channels), META), suffix, exact=True)


def test_unknown_output_kind() -> None:
    with pytest.raises(UnsupportedImage, match=r"\.xyz"):
        write_picture(Picture(RGB, False, Metadata()), ".xyz", exact=True)


def test_what_a_format_cannot_hold() -> None:
    wide = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(UnsupportedImage, match="WEBP"):
        write_picture(Picture(wide, False, Metadata()), ".webp", exact=True)


def test_write_atomic(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]
    link = tmp_path / "link"
    link.symlink_to(path)
    write_atomic(link, b"three")
    assert link.is_symlink()
    assert path.read_bytes() == b"three"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], call: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        assert image_io.unfinished
        raise stop

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(stop):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
    assert not image_io.unfinished


def test_example_is_deterministic_and_photographic() -> None:
    one, two = make_example(96, 64), make_example(96, 64)
    assert np.array_equal(one, two)
    assert one.shape == (64, 96, 3)
    assert one.std() > 20
    assert not np.array_equal(one, make_example(96, 64, seed=2))
    assert make_example(1, 1).shape == (1, 1, 3)
