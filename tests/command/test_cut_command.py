"""`codec cut` and `codec encode --max-bytes`: files, folders, streams, exit codes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import vbc.codec
import vbc.codec.pillow
from vbc.codec.cli import app
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata

RGB = make_example(75, 58)


def codec(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, catch_exceptions=False)


@pytest.fixture(scope="session")
def layered(tiny_path: Path) -> bytes:
    return vbc.codec.encode(RGB, lossless=True, effort=0, model=tiny_path, metadata=Metadata(icc=b"profile"))


@pytest.fixture
def path(tmp_path: Path, layered: bytes) -> Path:
    path = tmp_path / "in" / "a.vbc"
    path.parent.mkdir()
    path.write_bytes(layered)
    return path


# cut


def test_bytes_and_levels(path: Path, tmp_path: Path, layered: bytes, tiny_path: Path) -> None:
    out = tmp_path / "out.vbc"
    for options, want in (
        (("--bytes", 2000), vbc.codec.cut(layered, max_bytes=2000)),
        (("--stage", 2), vbc.codec.cut(layered, stage=2)),
        (("--stage", 5, "--bytes", 900), vbc.codec.cut(layered, stage=5, max_bytes=900)),
        (("--bytes", len(layered)), layered),
    ):
        result = codec("cut", path, "-o", out, *options, "--json")
        assert result.exit_code == 0, result.stderr
        assert out.read_bytes() == want
        report = json.loads(result.stdout)
        info = vbc.codec.read_info(want)
        assert (report["n_bytes"], report["levels"]) == (len(want), list(info.levels))
        assert report["exact"] == (want == layered)
        assert codec("verify", out, "--model", tiny_path).exit_code == 0
        assert codec("decode", out, "-o", tmp_path / "out.png", "--model", tiny_path).exit_code == 0
        with Image.open(tmp_path / "out.png") as im:
            assert im.size == (75, 58)
            assert im.info["icc_profile"] == b"profile"
    assert path.read_bytes() == layered


def test_streams(layered: bytes) -> None:
    result = codec("cut", "-", "-o", "-", "--bytes", 1500, "--json", stdin=layered)
    assert result.stdout_bytes == vbc.codec.cut(layered, max_bytes=1500)
    assert json.loads(result.stderr)["output"] == "-"
    quiet = codec("cut", "-", "-o", "-", "--stage", 1, "--quiet", stdin=layered)
    assert quiet.stderr == ""
    assert quiet.stdout_bytes == vbc.codec.cut(layered, stage=1)


def test_folders(path: Path, tmp_path: Path, layered: bytes) -> None:
    """The good ones are cut and keep their places, the bad ones are named; run again, it resumes."""
    (path.parent / "below").mkdir()
    (path.parent / "below" / "b.vbc").write_bytes(layered)
    (path.parent / "bad.vbc").write_bytes(layered[:60])
    (path.parent / "other.txt").write_text("no file of this kind")
    result = codec("cut", path.parent, "-o", tmp_path / "out", "--bytes", 3000)
    assert result.exit_code == 1
    assert "bad.vbc: truncated" in result.stderr
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert found == ["a.vbc", os.path.join("below", "b.vbc")]
    assert (tmp_path / "out" / "a.vbc").read_bytes() == vbc.codec.cut(layered, max_bytes=3000)
    (path.parent / "bad.vbc").write_bytes(layered)
    again = codec("cut", path.parent, "-o", tmp_path / "out", "--bytes", 500, "--json")
    assert [json.loads(line).get("skipped") for line in again.stdout.splitlines()] == [True, True, None]
    assert (tmp_path / "out" / "a.vbc").stat().st_size > 500
    assert (tmp_path / "out" / "bad.vbc").stat().st_size <= 500


@pytest.mark.parametrize(
    "arguments", [(), ("--bytes", 0), ("--stage", 0), ("--bytes", "many"), ("--bytes", -1), ("--stage", 1.5)]
)
def test_usage(path: Path, tmp_path: Path, arguments: tuple[object, ...]) -> None:
    result = codec("cut", path, "-o", tmp_path / "out.vbc", *arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "out.vbc").exists()
    assert codec("cut", path, "-o", path, "--stage", 1).exit_code == 2, "an input is no output"


def test_nothing_left(path: Path, tmp_path: Path, tiny_path: Path) -> None:
    result = codec("cut", path, "-o", tmp_path / "out.vbc", "--bytes", 60)
    assert result.exit_code == 2
    assert "nothing of the picture fits into 60 bytes" in result.stderr
    archival = vbc.codec.encode(RGB, lossless=True, levels=0, effort=0, model=tiny_path)
    path.write_bytes(archival)
    result = codec("cut", path, "-o", tmp_path / "out.vbc", "--stage", 3, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "NothingLeft"
    assert os.listdir(tmp_path) == ["in"]


def test_bad_files(path: Path, tmp_path: Path, layered: bytes) -> None:
    end = vbc.codec.read_info(layered).level_ends[1]
    damaged = layered[: end - 1] + bytes([layered[end - 1] ^ 1]) + layered[end:]
    for data, exit_code in (
        (damaged, 3),
        (layered[: end - 1], 3),
        (layered + b"x", 3),
        (b"no file", 3),
        (layered[:8] + b"\x09" + layered[9:], 4),
    ):
        path.write_bytes(data)
        result = codec("cut", path, "-o", tmp_path / "out.vbc", "--stage", 1)
        assert result.exit_code == exit_code
        assert str(path) in result.stderr
        assert "Traceback" not in result.stderr
    path.write_bytes(layered)
    assert codec("cut", path, "-o", tmp_path / "o.vbc", "--stage", 1, "--max-pixels", 99).exit_code == 5
    assert codec("cut", tmp_path / "nowhere.vbc", "-o", tmp_path / "o.vbc", "--stage", 1).exit_code == 1
    assert os.listdir(tmp_path) == ["in"]


def test_torch_is_left_alone(path: Path, tmp_path: Path) -> None:
    arguments = ["cut", str(path), "-o", str(tmp_path / "out.vbc"), "--bytes", "1000"]
    command = [sys.executable, "-X", "importtime", "-m", "vbc.codec", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "typer" in loaded
    assert not loaded & {"torch", "rich", "constriction", "triton"}


# encode


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(RGB).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_encode_to_a_number_of_bytes(image: Path, tmp_path: Path, tiny_path: Path) -> None:
    out = tmp_path / "a.vbc"
    result = codec("encode", image, "-o", out, "--max-bytes", 1000, "--model", tiny_path, "--json")
    report = json.loads(result.stdout)
    assert 970 <= report["n_bytes"] == out.stat().st_size <= 1000
    assert report["exact"] is False
    assert out.read_bytes() == vbc.codec.encode(RGB, max_bytes=1000, model=tiny_path)
    result = codec("encode", image, "-o", out, "--max-bytes", 3000, "--lossless", "--model", tiny_path)
    assert out.stat().st_size <= 3000
    assert "exact" not in result.stderr
    result = codec("encode", image, "-o", out, "--max-bytes", 10**6, "--lossless", "--model", tiny_path)
    assert "exact" in result.stderr
    assert np.array_equal(np.asarray(vbc.codec.decode(out.read_bytes(), model=tiny_path)), RGB)


def test_encode_what_does_not_fit_or_go_together(image: Path, tmp_path: Path, tiny_path: Path) -> None:
    out = tmp_path / "a.vbc"
    result = codec("encode", image, "-o", out, "--max-bytes", 90, "--model", tiny_path)
    assert result.exit_code == 2
    assert "nothing of the picture fits into 90 bytes" in result.stderr
    assert codec("encode", image, "-o", out, "--max-bytes", 900, "--quality", 60).exit_code == 2
    assert codec("encode", image, "-o", out, "--max-bytes", 0).exit_code == 2
    assert not out.exists()


def test_pillow_saves_to_a_number_of_bytes(tiny_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "VBC", max_bytes=1000, model=tiny_path)
    assert stream.getvalue() == vbc.codec.encode(RGB, max_bytes=1000, model=tiny_path)
    with pytest.raises(vbc.codec.NothingLeft):
        Image.fromarray(RGB).save(io.BytesIO(), "VBC", max_bytes=70, model=tiny_path)
