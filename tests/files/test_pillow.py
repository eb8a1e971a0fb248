"""The Pillow plugin: what is read at open and what at load, its errors, thumbnails, options of save."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, UnidentifiedImageError

import vbc.codec
import vbc.codec.pillow as plugin
from vbc.bitstream import container
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata, Picture

RGB = make_example(45, 30)
META = Metadata(icc=b"profile", exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0", xmp=b"<xmp/>")


@pytest.fixture(scope="module")
def lossless() -> bytes:
    return vbc.codec.encode(RGB, lossless=True, metadata=META)


@pytest.fixture
def truncated_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def saved(im: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    im.save(out, "VBC", **options)
    return out.getvalue()


def test_round_trip_keeps_pixels_and_metadata(lossless: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.vbc"
    path.write_bytes(lossless)
    with Image.open(path) as im:
        assert (im.format, im.mode, im.size) == ("VBC", "RGB", (45, 30))
        assert im.get_format_mimetype() == "image/x-vbc"
        assert im.info["icc_profile"] == META.icc
        assert im.info["exif"] == b"Exif\0\0" + (META.exif or b"")
        assert im.info["xmp"] == META.xmp
        assert np.array_equal(np.asarray(im), RGB)
        im.save(tmp_path / "b.vbc", lossless=True)
    assert (tmp_path / "b.vbc").read_bytes() == lossless


def test_gray_stays_gray() -> None:
    im = Image.fromarray(np.ascontiguousarray(RGB[..., 0]))
    again = opened(saved(im, lossless=True, levels=0))
    assert again.mode == "L"
    assert np.array_equal(np.asarray(again), np.asarray(im))


def test_save_takes_what_encode_takes() -> None:
    """They are those of `encode`."""
    im = Image.fromarray(make_example(90, 60))
    for options in ({"tune": "psnr"}, {"tune": "eye", "quality": 30}, {"levels": 1}):
        assert saved(im, **options) == vbc.codec.encode(im, **options)  # type: ignore[arg-type]
    assert saved(im) == saved(im, tune="eye") != saved(im, tune="psnr")
    with pytest.raises(ValueError, match="eye or psnr"):
        saved(im, tune="ear")


@pytest.mark.parametrize(("mode", "shape"), [("LA", (9, 14, 2)), ("RGBA", (9, 14, 4)), ("I;16", (9, 14))])
def test_alpha_and_depth(mode: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    im = Image.fromarray(pixels)
    assert im.mode == mode
    data = saved(im, lossless=True)
    again = opened(data)
    assert again.mode == mode, "told by the header alone"
    assert np.array_equal(np.asarray(again), pixels)
    assert again.mode == mode


def test_colour_of_16_bits_has_no_mode() -> None:
    data = vbc.codec.encode(np.full((4, 5, 3), 1000, np.uint16), lossless=True)
    with pytest.raises(OSError, match="decode_image"):
        opened(data)


def test_options_of_save() -> None:
    im = Image.fromarray(RGB)
    im.info["icc_profile"] = b"profile"
    assert saved(im, quality=30, levels=2) == vbc.codec.encode(im, quality=30, levels=2)
    info = vbc.codec.read_info(saved(im, icc_profile=None, exif=Image.Exif(), xmp="<x/>", levels=1))
    assert set(info.metadata_bytes) - {"exif"} == {"xmp"}
    with pytest.raises(ValueError, match="levels"):
        saved(im, levels=9)
    with pytest.raises(OSError, match="CMYK"):
        saved(im.convert("CMYK"))
    for bad in ({"xmp": 7}, {"exif": [1]}, {"icc_profile": (1, 2)}):
        with pytest.raises(OSError, match="not bytes"):
            saved(im, **bad)


def test_thumbnail_decodes_the_first_level_only(lossless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = plugin.api.decode

    def spy(data: bytes, **named: object) -> Image.Image:
        asked.append((named["levels"], named["native"]))
        return real(data, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(plugin.api, "decode", spy)
    for size, (levels, native), full in (
        ((8, 8), (1, True), (12, 8)),
        ((20, 15), (2, True), (23, 15)),
        ((40, 30), (None, False), (45, 30)),
    ):
        im = opened(lossless)
        im.draft(None, size)
        assert im.size == full
        im.load()
        assert im.size == full
        assert asked.pop() == (levels, native)
    im = opened(lossless)
    im.thumbnail((4, 4))
    assert im.size == (4, 3)
    assert asked.pop() == (1, True)
    archival = opened(vbc.codec.encode(RGB, lossless=True, levels=0))
    archival.draft("RGB", (8, 8))
    assert archival.size == (45, 30), "without lossy levels there is no smaller picture"


# errors


@pytest.mark.parametrize("cut", [0, 7, 11, 30, 70])
def test_bad_headers_are_not_ours(lossless: bytes, cut: int) -> None:
    with pytest.raises(SyntaxError):
        plugin.VbcImageFile(io.BytesIO(lossless[:cut]))
    with pytest.raises(UnidentifiedImageError):
        opened(lossless[:cut])
    flipped = lossless[:cut] + bytes([lossless[cut] ^ 4]) + lossless[cut + 1 :]
    with pytest.raises(UnidentifiedImageError):
        opened(flipped)


def test_a_bomb_is_refused_at_open() -> None:
    lossy = vbc.codec.encode(RGB, levels=1)
    header = container.unpack_header(lossy)
    huge = container.pack_header(replace(header, width=60_000, height=60_000))
    with pytest.raises(SyntaxError, match="limit"):
        plugin.VbcImageFile(io.BytesIO(huge + lossy[header.header_bytes :]))


def test_faults_behind_the_header_show_at_load(lossless: bytes) -> None:
    header = container.unpack_header(lossless)
    for at in range(header.header_bytes, len(lossless), 211):
        damaged = lossless[:at] + bytes([lossless[at] ^ 1]) + lossless[at + 1 :]
        im = opened(damaged)
        if header.ends[-2] <= at:  # the pixel hash: for `verify`
            continue
        with pytest.raises(OSError, match="checksum"):
            im.load()
    with pytest.raises(OSError, match="truncated"):
        opened(lossless[:-1]).load()
    with pytest.raises(OSError, match="after the last packet"):
        opened(lossless + b"x" * 2000).load()


@pytest.mark.usefixtures("truncated_allowed")
def test_truncated_files_where_pillow_allows_them(lossless: bytes) -> None:
    ends = vbc.codec.read_info(lossless).level_ends
    im = opened(lossless[: ends[2] + 1])
    assert np.array_equal(np.asarray(im), np.asarray(vbc.codec.decode(lossless, levels=2)))
    with pytest.raises(OSError, match="truncated"):
        opened(lossless[: ends[1] - 1]).load()


def test_a_closed_file_says_so(lossless: bytes) -> None:
    im = opened(lossless)
    im.close()
    with pytest.raises((OSError, ValueError)):
        im.load()


def test_opening_loads_no_torch(lossless: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.vbc").write_bytes(lossless)
    code = (
        "import sys, vbc.codec.pillow\nfrom PIL import Image\n"
        "im = Image.open(sys.argv[1]); assert im.size == (45, 30); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.vbc")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False\n"


def test_copies_and_tensors(lossless: bytes) -> None:
    im = opened(lossless)
    assert np.array_equal(np.asarray(im.copy().crop((3, 2, 9, 8))), RGB[2:8, 3:9])
    tensor = vbc.codec.decode_image(lossless, device="cpu")
    assert torch.equal(tensor, torch.from_numpy(RGB.copy()).permute(2, 0, 1))
    assert Picture(RGB, False, META).metadata == META
