"""Images in and out: what is accepted, what is refused and why, metadata byte for byte, writing that is whole
or not at all."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from vbc.codec import image_io
from vbc.codec.example import make_example
from vbc.codec.image_io import Metadata, Picture, UnsupportedImage, read_picture, write_atomic, write_picture

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


REFUSED = {
    "alpha": (saved(Image.fromarray(RGB).convert("RGBA"), "PNG"), "transparency"),
    "gray alpha": (saved(Image.fromarray(RGB).convert("LA"), "PNG"), "transparency"),
    "transparent palette": (saved(Image.fromarray(RGB).quantize(16), "PNG", transparency=3), "transparency"),
    "transparent colour": (saved(Image.fromarray(RGB), "PNG", transparency=(1, 2, 3)), "transparency"),
    "16-bit gray": (saved(Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), "PNG"), "8 bits"),
    "16-bit RGB": (png(2, 1, 16, 2, b"\0" + bytes(range(12))), "8 bits"),
    "16-bit PPM": (b"P6 1 1 65535\n" + bytes(6), "8 bits"),
    "10-bit PGM": (b"P5 1 1 1023\n" + bytes(2), "8 bits"),
    "float": (saved(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "8 bits"),
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


def test_too_much_metadata_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="ICC"):
        read_picture(saved(Image.fromarray(RGB), "JPEG", icc_profile=bytes(1 << 20) + b"x"))


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
