"""Regions of interest on the command line and in Pillow: options, masks, files without the rest."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import META, codec, pixels, saved

import vbc.codec
from vbc.bitstream import container
from vbc.codec.example import make_example

WIDE = make_example(1100, 40)
"""Wider than two groups of level 3, as high as one."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return saved(tmp_path / "wide.png", WIDE)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """Inside are the last ten columns."""
    inside = np.zeros(WIDE.shape[:2], np.uint8)
    inside[:, -10:] = 255
    Image.fromarray(inside).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_regions_and_masks_say_the_same(image: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.vbc"
    files = []
    for values in (("1090,0,10,40",), ("1090,0,10,20", "1095,20,5,20", "1090,15,6,25"), (mask,)):
        options = [option for value in values for option in ("--roi", value)]
        assert codec("encode", image, "-o", out, *options, "--roi-first", "--quality", 30).exit_code == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]
    function = vbc.codec.encode(
        WIDE, quality=30, roi=(1090, 0, 10, 40), roi_quality=50, roi_first=True, metadata=META
    )
    assert files[0] == function, "20 units better is the default"
    header = container.unpack_header(files[0])
    order = [(p.level, p.part) for p in header.packets if p.level]
    assert order == [(1, 1), (2, 1), (2, 2), (3, 3), (3, 1), (3, 2)]


def test_the_encoder_looks_for_regions(image: Path, tmp_path: Path) -> None:
    """The command says so as the function does, for each of several images; one without any is as it is."""
    flat = saved(tmp_path / "flat.png", np.full((64, 64, 3), 99, np.uint8))
    out = tmp_path / "out"
    assert codec("encode", image, flat, "-o", out, "--roi", "auto", "--roi-first").exit_code == 0
    for name, array in (("wide", WIDE), ("flat", np.full((64, 64, 3), 99, np.uint8))):
        found = vbc.codec.encode(array, roi="auto", roi_first=True, metadata=META)
        assert (out / f"{name}.vbc").read_bytes() == found
    assert found == vbc.codec.encode(array, metadata=META)


def test_several_images_take_the_same_regions(image: Path, mask: Path, tmp_path: Path) -> None:
    """One that is too small fails alone."""
    small = saved(tmp_path / "small.png", WIDE[:, :50])
    outside, other_size = "not inside the picture of 50 x 40", "the mask of 1100 x 40"
    for value, why in (("1090,0,10,40", outside), (str(mask), other_size)):
        result = codec("encode", image, small, "-o", tmp_path / "out", "--roi", value, "--overwrite")
        assert result.exit_code == 1
        assert why in result.stderr
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["wide.vbc"]
        result = codec("encode", small, "-o", tmp_path / "small.vbc", "--roi", value)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--roi", "1,2,3"),
        ("--roi", "1,2,0,3"),
        ("--roi", "nowhere.png"),
        ("--roi", ""),
        ("--roi", "."),
        ("--roi-quality", "80"),
        ("--roi-first",),
        ("--roi", "0,0,9,9", "--roi-quality", "101"),
        ("--roi", "0,0,9,9", "--roi-quality", "59"),
        ("--roi", "0,0,9,9", "--roi-quality", "80", "--lossless", "--levels", "0"),
        ("--roi", "0,0,9,9", "--roi", "black.png"),
        ("--roi", "colour.png"),
        ("--roi", "half.png"),
        ("--roi", "one.png", "--roi", "two.png"),
        ("--roi", "auto", "--roi", "0,0,9,9"),
    ],
    ids=" ".join,
)
def test_usage_errors(
    image: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (1100, 40), 127).save("black.png")
    Image.new("RGB", (1100, 40), (200, 0, 0)).save("colour.png")
    Image.new("L", (9, 9), 255).save("one.png")
    Image.new("L", (9, 8), 255).save("two.png")
    Path("half.png").write_bytes(Path("one.png").read_bytes()[:60])
    result = codec("encode", image, "-o", "a.vbc", *options)
    assert result.exit_code == 2
    assert "--roi" in result.stderr or "roi_" in result.stderr
    assert not Path("a.vbc").exists()


def test_regions_to_keep_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.vbc").write_bytes(vbc.codec.encode(WIDE[:, :40], levels=1))
    Image.new("L", (40, 40), 127).save(tmp_path / "black.png")
    for value in ("1,2,3", "1,2,0,3", "nowhere.png", "", str(tmp_path / "black.png")):
        result = codec("strip", tmp_path / "a.vbc", "-o", tmp_path / "b.vbc", "--outside-roi", value)
        assert result.exit_code == 2
        assert "--outside-roi" in result.stderr
    assert not (tmp_path / "b.vbc").exists()


def test_pillow_saves_with_regions() -> None:
    import vbc.codec.pillow

    assert vbc.codec.pillow.FORMAT == "VBC"
    out = io.BytesIO()
    Image.fromarray(WIDE).save(out, "VBC", quality=30, roi=(1090, 0, 10, 40), roi_first=True)
    assert out.getvalue() == vbc.codec.encode(WIDE, quality=30, roi=[(1090, 0, 10, 40)], roi_first=True)


# strip


def test_strip_from_file_to_file(tmp_path: Path, mask: Path) -> None:
    path, out, shown = tmp_path / "a.vbc", tmp_path / "b.vbc", tmp_path / "b.png"
    path.write_bytes(vbc.codec.encode(WIDE, lossless=True, levels=0, effort=0, metadata=META))
    result = codec("strip", path, "-o", out, "--outside-roi", mask, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["n_bytes_before"] == path.stat().st_size > report["n_bytes"] == out.stat().st_size
    before, after = (vbc.codec.read_info(file.read_bytes()).n_packets for file in (path, out))
    assert report["n_left_out"] == before - after
    assert codec("verify", out).exit_code == 0
    assert codec("decode", out, "-o", shown).exit_code == 0
    assert np.array_equal(pixels(shown)[:, -10:], WIDE[:, -10:])
    assert not np.array_equal(pixels(shown), WIDE)
    assert codec("decode", out, "-o", shown, "--region", "1090,0,10,40").exit_code == 0
    assert np.array_equal(pixels(shown), WIDE[:, -10:])
    assert out.read_bytes() == vbc.codec.strip(path.read_bytes(), (1090, 0, 10, 40))
    piped = codec("strip", "-", "-o", "-", "--outside-roi", "1090,0,10,40", stdin=path.read_bytes())
    assert piped.stdout_bytes == out.read_bytes()
    assert vbc.codec.read_info(out.read_bytes()).metadata_bytes == META.n_bytes()
    codec("strip", path, "-o", out, "--outside-roi", mask, "--metadata", "none")
    assert vbc.codec.read_info(out.read_bytes()).metadata_bytes == {}


def test_strip_of_a_folder(tmp_path: Path) -> None:
    """What is broken or too small fails alone; what is done is left alone."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    data = vbc.codec.encode(WIDE)
    (folder / "a.vbc").write_bytes(data)
    (folder / "b.vbc").write_bytes(vbc.codec.encode(WIDE[:, :70]))
    (folder / "c.vbc").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    arguments = ("strip", folder, "-o", out, "--outside-roi", "1090,0,10,40")
    result = codec(*arguments)
    assert result.exit_code == 1
    assert "b.vbc: region 1090,0,10,40 is not inside" in result.stderr
    assert "c.vbc: corrupt: checksum" in result.stderr
    assert [p.name for p in out.iterdir()] == ["a.vbc"]
    assert "1 of 3 are done already" in codec(*arguments).stderr
    for name, target, region, exit_code in (
        ("c.vbc", out / "c.vbc", "1090,0,10,40", 3),
        ("b.vbc", out / "b.vbc", "70,0,1,1", 2),
        ("a.vbc", folder / "a.vbc", "0,0,1,1", 2),
    ):
        assert codec("strip", folder / name, "-o", target, "--outside-roi", region).exit_code == exit_code
    assert codec("strip", folder / "a.vbc", "-o", out / "b.vbc").exit_code == 2
    for source, stdin in ((folder / "a.vbc", None), ("-", data)):
        arguments = ("strip", source, "-o", out / "d.vbc", "--outside-roi", "0,0,1,1", "--max-pixels", 43999)
        assert codec(*arguments, stdin=stdin).exit_code == 5
    assert [p.name for p in out.iterdir()] == ["a.vbc"]
