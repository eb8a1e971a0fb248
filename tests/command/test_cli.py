"""The command and the Python functions from end to end, with the shipped weights; exit codes and messages."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

import vbc.codec
from vbc.bitstream import container
from vbc.bitstream.errors import FormatError, Truncated
from vbc.codec import jobs as batch
from vbc.codec.cli import app
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata, Picture, UnsupportedImage, write_picture
from vbc.codec.jobs import Job

Pixels = NDArray[np.uint8]
RGB = make_example(43, 29)
META = Metadata(icc=b"profile", exif=b"MM\0*\0\0\0\x08\0\0", xmp=b"<xmp/>")


def codec(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, catch_exceptions=False)


def codec_process(*arguments: object) -> "subprocess.Popen[bytes]":
    """The command in a process group of its own.

    A shell that runs the tests in the background has them ignore SIGINT, and what they start inherits that.
    """
    command = [sys.executable, "-m", "vbc.codec", *map(str, arguments)]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if sys.platform != "win32" else None
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def saved(path: Path, rgb: Pixels = RGB, gray: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_picture(Picture(rgb, gray, META), path.suffix, exact=True))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return saved(tmp_path / "image.png")


@pytest.fixture(scope="session")
def lossy() -> bytes:
    return vbc.codec.encode(RGB)


@pytest.fixture(scope="session")
def lossless() -> bytes:
    return vbc.codec.encode(RGB, lossless=True)


def pixels(path: Path) -> Pixels:
    with Image.open(path) as im:
        return np.asarray(im)


# from file to file


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("gray", [False, True])
def test_lossless_round_trip_with_metadata(tmp_path: Path, levels: int, gray: bool) -> None:
    rgb = np.repeat(RGB[..., :1], 3, axis=2) if gray else RGB
    image = saved(tmp_path / "in.png", rgb, gray)
    assert codec("encode", image, "-o", tmp_path / "a.vbc", "--lossless", "--levels", levels).exit_code == 0
    assert codec("verify", tmp_path / "a.vbc").exit_code == 0
    assert codec("decode", tmp_path / "a.vbc", "-o", tmp_path / "out.png").exit_code == 0
    assert (tmp_path / "out.png").read_bytes() == image.read_bytes()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_lossy_levels(image: Path, tmp_path: Path, levels: int) -> None:
    encoded, decoded = tmp_path / "a.vbc", tmp_path / "out.png"
    result = codec("encode", image, "-o", encoded, "--levels", levels, "--refinements", 0, "--json")
    assert json.loads(result.stdout)["levels"] == list(range(1, levels + 1))
    assert json.loads(result.stdout)["n_bytes"] == encoded.stat().st_size
    assert codec("decode", encoded, "-o", decoded).exit_code == 0
    assert pixels(decoded).shape == RGB.shape
    assert np.abs(pixels(decoded).astype(int) - RGB).mean() < 30
    scale = {1: 4, 2: 2, 3: 1}[levels]
    assert codec("decode", encoded, "-o", decoded, "--native").exit_code == 0
    assert pixels(decoded).shape == (-(-29 // scale), -(-43 // scale), 3)


def test_metadata_none_drops_it(image: Path, tmp_path: Path) -> None:
    codec("encode", image, "-o", tmp_path / "a.vbc", "--metadata", "none", "--levels", 1)
    assert vbc.codec.read_info((tmp_path / "a.vbc").read_bytes()).metadata_bytes == {}
    codec("encode", image, "-o", tmp_path / "a.vbc", "--levels", 1)
    info = vbc.codec.read_info((tmp_path / "a.vbc").read_bytes())
    assert info.metadata_bytes == META.n_bytes()


def test_same_input_same_bytes(image: Path, tmp_path: Path) -> None:
    for name in ("a.vbc", "b.vbc"):
        codec("encode", image, "-o", tmp_path / name)
    assert (tmp_path / "a.vbc").read_bytes() == (tmp_path / "b.vbc").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".webp", ".ppm", ".tiff"])
def test_exact_pixels_in_every_lossless_format(tmp_path: Path, lossless: bytes, suffix: str) -> None:
    (tmp_path / "a.vbc").write_bytes(lossless)
    assert codec("decode", tmp_path / "a.vbc", "-o", tmp_path / f"out{suffix}").exit_code == 0
    assert np.array_equal(pixels(tmp_path / f"out{suffix}"), RGB)


def test_standard_streams(image: Path) -> None:
    encoded = codec("encode", "-", "-o", "-", "--lossless", "--json", stdin=image.read_bytes())
    assert encoded.exit_code == 0
    assert json.loads(encoded.stderr)["output"] == "-"
    decoded = codec("decode", "-", "-o", "-", "--format", "ppm", "--quiet", stdin=encoded.stdout_bytes)
    assert decoded.stderr == ""
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(decoded.stdout_bytes))), RGB)


# prefixes and broken files


def test_truncation(tmp_path: Path, lossy: bytes) -> None:
    ends = vbc.codec.read_info(lossy).level_ends
    cut, out = tmp_path / "cut.vbc", tmp_path / "out.png"
    cut.write_bytes(lossy[: ends[2] + 1])
    result = codec("decode", cut, "-o", out)
    assert result.exit_code == 3
    assert "complete levels: 1, 2" in result.stderr
    assert not out.exists()
    result = codec("decode", cut, "-o", out, "--allow-partial", "--json")
    assert json.loads(result.stdout)["levels"] == [1, 2]
    whole = vbc.codec.decode(lossy, levels=2)
    assert np.array_equal(pixels(out), np.asarray(whole))
    with pytest.raises(Truncated) as error:
        vbc.codec.decode(lossy[: ends[2]])
    assert error.value.levels_available == (1, 2)


def changed(header: container.Header, **fields: object) -> bytes:
    """Header and index with other fields."""
    return container.pack_header(replace(header, **fields))  # type: ignore[arg-type]


def broken(data: bytes) -> dict[str, tuple[bytes, int]]:
    header = container.unpack_header(data)
    first = header.header_bytes
    flipped = data[:first] + bytes([data[first] ^ 1]) + data[first + 1 :]
    foreign = changed(header, model_hash=b"strange!")
    huge = changed(header, width=60_000, height=60_000, packets=header.packets[:1])
    body = data[header.header_bytes :]
    return {
        "empty": (b"", 3),
        "text": (b"hello, world, this is no image", 3),
        "flipped": (flipped, 3),
        "trailing": (data + b"x", 3),
        "version": (data[:8] + b"\x09" + data[9:], 4),
        "model": (foreign + body, 4),
        "huge": (huge + body, 5),
    }


@pytest.mark.parametrize("name", ["empty", "text", "flipped", "trailing", "version", "model", "huge"])
def test_exit_codes_of_broken_files(tmp_path: Path, lossy: bytes, name: str) -> None:
    data, exit_code = broken(lossy)[name]
    path = tmp_path / "a.vbc"
    path.write_bytes(data)
    for command in (("verify", path), ("decode", path, "-o", tmp_path / "out.png")):
        result = codec(*command)
        assert result.exit_code == exit_code, result.stderr
        assert str(path) in result.stderr
        assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["a.vbc"]
    with pytest.raises(FormatError):
        vbc.codec.verify(data)


# arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ("--levels", "0"),
        ("--levels", "1", "--lossless"),
        ("--levels", "2", "--lossless"),
        ("--levels", "4"),
        ("--quality", "101"),
        ("--effort", "9"),
        ("--tune", "ear"),
        ("--metadata", "some"),
        ("--model", "nowhere.safetensors"),
        ("-j", "0"),
    ],
)
def test_usage_errors(image: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert codec("encode", image, "-o", tmp_path / "a.vbc", *arguments).exit_code == 2
    assert not (tmp_path / "a.vbc").exists()


def test_more_usage_errors(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert codec().exit_code == 2
    assert codec("encode", image).exit_code == 2
    assert codec("decode", image, "-o", tmp_path / "a.xyz").exit_code == 2
    assert codec("decode", image, "-o", image).exit_code == 2
    assert codec("encode", image, "-", "-o", tmp_path).exit_code == 2
    assert codec("encode", image, image, "-o", "-").exit_code == 2
    assert codec("eval", tmp_path / "nowhere").exit_code == 2
    (tmp_path / "empty").mkdir()
    assert codec("encode", tmp_path / "empty", "-o", tmp_path / "out").exit_code == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert codec("verify", image, "--device", "cuda").exit_code == 2


@pytest.mark.parametrize(
    "region", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,-3,4", "1.5,0,3,3", "", "0,0,0,5", "0,0,5,0", "1;2;3;4"]
)
def test_regions_that_are_none(tmp_path: Path, lossy: bytes, region: str) -> None:
    path = tmp_path / "a.vbc"
    path.write_bytes(lossy)
    for command in (("decode", path, "-o", tmp_path / "out.png"), ("info", path)):
        result = codec(*command, "--region", region)
        assert result.exit_code == 2
        assert "--region" in result.stderr
    assert os.listdir(tmp_path) == ["a.vbc"]


def test_a_region_outside_the_picture(tmp_path: Path, lossy: bytes) -> None:
    """Only the file says so: an error of this input, not of its bytes."""
    path = tmp_path / "a.vbc"
    path.write_bytes(lossy)
    for command in (("decode", path, "-o", tmp_path / "out.png"), ("info", path)):
        result = codec(*command, "--region", "40,20,4,4")
        assert result.exit_code == 2
        assert "region 40,20,4,4 is not inside the picture of 43 x 29" in result.stderr
        assert "Traceback" not in result.stderr
    assert codec("decode", path, "-o", tmp_path / "out.png", "--region", "1,1,2,2", "--native").exit_code == 2
    assert os.listdir(tmp_path) == ["a.vbc"]


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "CUDA", "cuda:0:1", "meta"])
def test_devices_that_are_none(image: Path, tmp_path: Path, device: str) -> None:
    result = codec("encode", image, "-o", tmp_path / "a.vbc", "--device", device)
    assert result.exit_code == 2
    assert f"not on {device}" in result.stderr
    assert not (tmp_path / "a.vbc").exists()
    with pytest.raises(ValueError, match="cpu, cuda and cuda:N"):
        vbc.codec.encode(RGB, device=device)


def test_unsupported_image(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.tif")
    result = codec("encode", tmp_path / "a.tif", "-o", tmp_path / "a.vbc")
    assert result.exit_code == 4
    assert "CMYK" in result.stderr


def test_missing_input(tmp_path: Path) -> None:
    result = codec("encode", tmp_path / "none.png", "-o", tmp_path / "a.vbc")
    assert result.exit_code == 1
    assert "none.png" in result.stderr


# many files


def test_plan_keeps_the_structure_of_folders(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/deep/b.PNG", "in/deep/notes.txt", "c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    jobs = batch.plan(
        [str(tmp_path / "in"), str(tmp_path / "c.jpg")], str(tmp_path / "out"), (".png", ".jpg"), ".vbc"
    )
    targets = [str(Path(job.target).relative_to(tmp_path / "out")) for job in jobs]
    assert targets == ["a.vbc", "deep/b.vbc", "c.vbc"]
    (tmp_path / "in/a.jpg").touch()
    with pytest.raises(batch.UsageError, match=r"a\.vbc"):
        batch.plan([str(tmp_path / "in")], str(tmp_path / "out"), (".png", ".jpg"), ".vbc")
    with pytest.raises(batch.UsageError, match="overwritten"):
        batch.plan([str(tmp_path / "c.jpg")], str(tmp_path / "c.jpg"), (".jpg",), ".vbc")
    assert batch.plan(["-"], "-", (".png",), ".vbc") == [Job("-", "-")]


@pytest.mark.parametrize("jobs", [1, 2])
def test_folder_with_bad_files(tmp_path: Path, jobs: int) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    good = [
        saved(source / name, make_example(20 + i, 13))
        for i, name in enumerate(("a.png", "deep/b.png", "z.webp"))
    ]
    (source / "bad.png").write_bytes(b"no image")
    result = codec("encode", source, "-o", out, "--lossless", "-j", jobs, "--json")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["input"] for line in lines if "error" in line] == [str(source / "bad.png")]
    assert len(lines) == 4
    again = tmp_path / "again"
    assert codec("decode", out, "-o", again, "-j", jobs).exit_code == 0
    for path in good:
        decoded = (again / path.relative_to(source)).with_suffix(".png")
        assert np.array_equal(pixels(decoded), pixels(path))


def test_finished_outputs_are_left_alone(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "image.vbc").write_bytes(b"done before")
    other = saved(tmp_path / "other.png")
    arguments = ("encode", image, other, "-o", out, "--levels", 1)
    lines = [json.loads(line) for line in codec(*arguments, "--json").stdout.splitlines()]
    assert [(line["input"], line.get("skipped", False)) for line in lines] == [
        (str(image), True),
        (str(other), False),
    ]
    assert (out / "image.vbc").read_bytes() == b"done before"
    again = codec(*arguments)
    assert again.exit_code == 0
    assert "2 of 2 are done already" in again.stderr
    assert codec(*arguments, "--quiet").stderr == ""
    assert codec(*arguments, "--overwrite").exit_code == 0
    assert vbc.codec.read_info((out / "image.vbc").read_bytes()).levels == (1,)


def test_a_resumed_batch_still_fails_as_a_batch(image: Path, tmp_path: Path) -> None:
    """One bad file is left over: exit 1 as in the first run, not the code of that file."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    for _ in range(2):
        result = codec("encode", image, tmp_path / "bad.png", "-o", tmp_path / "out", "--levels", 1)
        assert result.exit_code == 1
        assert "bad.png" in result.stderr


def test_a_single_output_is_replaced(image: Path, tmp_path: Path) -> None:
    (tmp_path / "a.vbc").write_bytes(b"old")
    assert codec("encode", image, "-o", tmp_path / "a.vbc", "--levels", 1).exit_code == 0
    assert (tmp_path / "a.vbc").read_bytes() != b"old"


def die_on_bad(job: Job) -> batch.Report:
    """What a crash in a library looks like."""
    if "bad" in job.source:
        os._exit(7)
    return {"input": job.source}


def test_a_crash_stops_none_of_the_others() -> None:
    jobs = [Job(name, "") for name in ("a", "bad1", "b", "c", "bad2", "d")]
    results = {job.source: result for job, result in batch.run(die_on_bad, jobs, 2)}
    assert sorted(results) == sorted(job.source for job in jobs)
    failed = {name for name, result in results.items() if isinstance(result, batch.Failure)}
    assert failed == {"bad1", "bad2"}
    assert all(r.kind == "BrokenProcessPool" for r in results.values() if isinstance(r, batch.Failure))


def test_a_panic_is_a_failure() -> None:
    class PanicException(BaseException):
        """As Rust libraries raise it."""

    def work(job: Job) -> batch.Report:
        raise PanicException("unwrap on None")

    ((_, failure),) = batch.run(work, [Job("a", "")])
    assert isinstance(failure, batch.Failure)
    assert (failure.kind, failure.exit_code) == ("PanicException", 1)
    assert failure.trace is not None


def test_limits(tmp_path: Path, lossy: bytes) -> None:
    path = tmp_path / "a.vbc"
    path.write_bytes(lossy)
    for command in (("verify", path), ("decode", path, "-o", tmp_path / "out.png")):
        assert codec(*command, "--max-pixels", 43 * 29, "--max-memory", 4096).exit_code == 0
        for limit in (("--max-pixels", 43 * 29 - 1), ("--max-memory", 1)):
            result = codec(*command, *limit)
            assert result.exit_code == 5, result.stderr


def test_input_without_end_is_not_read_for_ever(lossy: bytes) -> None:
    """Zeros after a whole file, a header that promises more than the size allows, no image at all."""
    header = container.unpack_header(lossy)
    n_whole = sum(packet.level < 3 for packet in header.packets if packet.level)
    huge = changed(header, packets=(*header.packets[:n_whole], container.Packet(3, 1, 1 << 40, 0)))
    for command, head, exit_code in (
        (["verify", "-"], lossy, 3),
        (["decode", "-", "-o", os.devnull, "--format", "ppm"], huge, 5),
        (["info", "-"], b"\0", 3),
    ):
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "vbc.codec", *command], stdin=reading, stderr=subprocess.DEVNULL
        )
        os.close(reading)
        n_written = os.write(writing, head)
        try:
            while n_written < 64 << 20:
                n_written += os.write(writing, bytes(1 << 16))
        except BrokenPipeError:
            pass
        os.close(writing)
        assert process.wait(60) == exit_code
        assert n_written < 64 << 20


def test_image_file_without_end(tmp_path: Path) -> None:
    from vbc.bitstream.errors import LimitExceeded
    from vbc.codec.files.reading import read_image

    with pytest.raises(LimitExceeded):
        read_image(io.BytesIO(bytes(101)), max_bytes=100)
    assert len(read_image(io.BytesIO(bytes(100)), max_bytes=100)) == 100


def test_names_that_are_no_text(tmp_path: Path, lossy: bytes) -> None:
    name = os.fsdecode(b"caf\xe9.vbc")
    (tmp_path / name).write_bytes(lossy)
    command = [sys.executable, "-m", "vbc.codec", "info", str(tmp_path / name)]
    result = subprocess.run(command, capture_output=True, check=True)
    assert b"43x29" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors as POSIX does")
def test_closed_standard_streams(image: Path, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m vbc.codec'
    for line, exit_code in (
        (f'{command} encode "{image}" -o - >&-', 2),
        (f"{command} verify - <&-", 1),
        (f'{command} info "{image}" >&-', 3),
    ):
        result = subprocess.run(line, shell=True, stderr=subprocess.PIPE, check=False)
        assert result.returncode == exit_code, result.stderr
        assert b"Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_workers_follow_a_killed_parent(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for i in range(300):
        saved(source / f"{i:03}.ppm", make_example(160, 120))
    process = codec_process("encode", source, "-o", out, "--levels", 1, "-j", 2, "--quiet")
    deadline = time.monotonic() + 180
    while not list(out.glob("*.vbc")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)  # its pipes end only when the workers have gone
    assert 0 < len(os.listdir(out)) < 300


# info, eval, processes


def test_refinements(image: Path, tmp_path: Path, tiny_path: Path) -> None:
    """Levels are counted in their order; `info` says what they are."""
    out, shown = tmp_path / "out.vbc", tmp_path / "shown.png"
    options = ("--quality", 80, "--refinements", 2, "--model", tiny_path)
    assert codec("encode", image, "-o", out, *options).exit_code == 0
    text = codec("info", out).stdout
    assert "lossy, quality 30, 80 with 2 refinements" in text
    assert "level 36  lossy, refinement 2 of level 1  ends at byte" in text
    assert [line.split()[1] for line in text.splitlines()[2:]][:9] == [
        *("1", "2", "3"),
        *map(str, range(33, 39)),
    ]
    errors = []
    for levels in (3, 6, 9):
        assert codec("decode", out, "-o", shown, "--levels", levels, "--model", tiny_path).exit_code == 0
        errors.append(np.square(pixels(shown).astype(float) - RGB).mean())
    assert errors == sorted(errors, reverse=True)
    assert codec("encode", image, "-o", out, "--levels", 2, "--refinements", 1).exit_code == 2
    assert codec("encode", image, "-o", out, "--refinements", 4).exit_code == 2


def test_info(tmp_path: Path, lossless: bytes) -> None:
    path = tmp_path / "a.vbc"
    path.write_bytes(lossless)
    info = json.loads(codec("info", path, "--json").stdout)
    assert (info["width"], info["height"], info["lossless"]) == (43, 29, True)
    assert info["levels"][:4] == [1, 2, 3, 4]
    assert info["n_bytes"] == info["n_bytes_complete"] == len(lossless)
    assert codec("info", "-", "--json", stdin=lossless[:1000]).exit_code == 0
    path.write_bytes(lossless[: info["level_ends"]["2"]])
    text = codec("info", path).stdout
    assert text.count("(missing)") == len(info["levels"]) - 2
    path.write_bytes(lossless + b"x")
    assert codec("info", path).exit_code == 3


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_info_of_a_named_pipe(tmp_path: Path, lossless: bytes) -> None:
    """As `codec info <(...)` has it: the size is known only once all is read."""
    pipe, wanted = tmp_path / "pipe", vbc.codec.read_info(lossless)
    os.mkfifo(pipe)
    for data, levels in ((lossless, wanted.levels), (lossless[: wanted.level_ends[2]], (1, 2))):
        command = [sys.executable, "-m", "vbc.codec", "info", str(pipe), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        pipe.write_bytes(data)
        out, _ = process.communicate(timeout=60)
        info = json.loads(out)
        assert (info["n_bytes"], tuple(info["levels"])) == (len(data), levels)


def test_a_region_from_file_to_file(tmp_path: Path, lossless: bytes, lossy: bytes) -> None:
    for data in (lossless, lossy):
        path, out = tmp_path / "a.vbc", tmp_path / "out.png"
        path.write_bytes(data)
        assert codec("decode", path, "-o", out, "--region", "5,7,20,11").exit_code == 0
        assert np.array_equal(pixels(out), np.asarray(vbc.codec.decode(data))[7:18, 5:25])
        result = codec("decode", path, "-o", out, "--region", "5,7,20,11", "--levels", 2, "--json")
        assert json.loads(result.stdout)["levels"] == [1, 2]
        assert np.array_equal(pixels(out), np.asarray(vbc.codec.decode(data, levels=2))[7:18, 5:25])
        decoded = codec("decode", "-", "-o", "-", "--region", "5,7,20,11", "--format", "ppm", stdin=data)
        assert Image.open(io.BytesIO(decoded.stdout_bytes)).size == (20, 11)


def test_info_names_the_bytes_of_a_region(tmp_path: Path) -> None:
    """Of a picture that is wider than a group."""
    data = vbc.codec.encode(make_example(1100, 16), lossless=True)
    path = tmp_path / "a.vbc"
    path.write_bytes(data)
    info = json.loads(codec("info", path, "--region", "0,0,30,16", "--json").stdout)
    ranges = [tuple(span) for span in info["ranges"]]
    assert ranges == list(vbc.codec.read_info(data, region=(0, 0, 30, 16)).ranges)
    needed = sum(end - start for start, end in ranges)
    assert info["header_bytes"] < needed < 0.8 * len(data)
    text = codec("info", path, "--region", "0,0,30,16").stdout
    assert f"{needed} bytes are needed: 0-" in text
    assert "bytes are needed" not in codec("info", path).stdout
    few = json.loads(codec("info", path, "--region", "0,0,30,16", "--levels", 1, "--json").stdout)
    assert few["ranges"] == [[0, info["level_ends"]["1"]]]
    cut = data[: info["header_bytes"]]
    assert (
        json.loads(codec("info", "-", "--region", "0,0,30,16", "--json", stdin=cut).stdout)["ranges"]
        == info["ranges"]
    )


def first_mode(data: bytes) -> int:
    """First byte of level 1: 1 where a map of qualities is there."""
    return data[container.unpack_header(data).ends[0] - container.unpack_header(data).packets[0].length]


def test_tune(tmp_path: Path) -> None:
    """What the lossy levels please; the default is the eye."""
    image = saved(tmp_path / "a.png", make_example(90, 60))
    files = {}
    for tune in ("eye", "psnr", None):
        options = () if tune is None else ("--tune", tune)
        assert codec("encode", image, "-o", tmp_path / "a.vbc", "--metadata", "none", *options).exit_code == 0
        files[tune] = (tmp_path / "a.vbc").read_bytes()
    assert files[None] == files["eye"] != files["psnr"]
    assert (first_mode(files["eye"]), first_mode(files["psnr"])) == (1, 0)
    for tune in ("eye", "psnr"):
        row = json.loads(codec("eval", image, "--tune", tune, "--json").stdout.splitlines()[0])
        assert row["n_bytes"] == len(files[tune])


def test_eval(image: Path, tmp_path: Path) -> None:
    result = codec("eval", tmp_path, "--quality", 20, "--quality", 60, "--json")
    assert result.exit_code == 0
    low, low_all, high, high_all = map(json.loads, result.stdout.splitlines())
    assert low["n_bytes"] < high["n_bytes"]
    assert low["psnr_db"] < high["psnr_db"]
    assert (low_all["n_bytes"], high_all["psnr_db"]) == (low["n_bytes"], high["psnr_db"])
    exact = json.loads(codec("eval", image, "--lossless", "--json").stdout.splitlines()[0])
    assert exact["psnr_db"] is None
    assert exact["n_exact"] == 1
    assert "exact" in codec("eval", image, "--lossless", "--levels", 0).stdout


def test_help_and_info_leave_torch_and_rich_alone(tmp_path: Path, lossy: bytes) -> None:
    path = tmp_path / "a.vbc"
    path.write_bytes(lossy)
    for arguments in (["--help"], ["encode", "--help"], ["info", str(path)], ["info", str(path), "--json"]):
        command = [sys.executable, "-X", "importtime", "-m", "vbc.codec", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
        assert "typer" in loaded
        assert not loaded & {"torch", "rich", "numpy", "PIL", "constriction", "triton"}


@pytest.mark.parametrize("words", ["codec enc", "codec encode --loss", "codec decode --max-m"])
def test_shell_completion(words: str) -> None:
    code = "import sys; sys.argv = ['codec']; from vbc.codec.cli import main; main()"
    environment = {
        **os.environ,
        "_CODEC_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.split()
    assert all(word.startswith(words.split()[-1]) for word in result.stdout.split())


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_a_folder_hides_is_named(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to nothing, a folder that may not be read; a link back up is not followed, a pipe left out."""
    source = tmp_path / "in"
    (source / "closed").mkdir(parents=True)
    (source / "a.png").write_bytes(image.read_bytes())
    (source / "gone.png").symlink_to("nowhere.png")
    (source / "up").symlink_to("..")
    os.mkfifo(source / "pipe.png")
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    jobs = batch.plan([str(source)], str(tmp_path / "out"), (".png",), ".vbc")
    assert [Path(job.source).relative_to(source).as_posix() for job in jobs] == [
        "a.png",
        "closed",
        "gone.png",
    ]
    outcomes = [batch.attempt(lambda job: {"n": len(Path(job.source).read_bytes())}, job) for job in jobs]
    assert [isinstance(outcome, batch.Failure) for outcome in outcomes] == [False, True, True]


class Slow(io.RawIOBase):
    """Takes seven bytes at a time, as an unbuffered stream may; None where it would block."""

    def __init__(self, blocks: bool) -> None:
        self.taken, self.blocks = b"", blocks

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int | None:  # type: ignore[override]
        if self.blocks and self.taken:
            return None
        self.taken += bytes(data[:7])
        return len(data[:7])


@pytest.mark.parametrize("blocks", [False, True])
def test_standard_output_that_takes_little_at_a_time(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Slow(blocks)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream))
    data = bytes(range(100))
    if blocks:
        with pytest.raises(BlockingIOError):
            batch.write_output("-", data)
    else:
        batch.write_output("-", data)
        assert stream.taken == data


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["info", "FILE", "--json"], ["--help"]])
def test_a_full_disk_behind_what_is_said(arguments: list[str], unbuffered: str) -> None:
    golden = Path(__file__).parents[1] / "golden" / "gray.vbc"
    command = [sys.executable, "-m", "vbc.codec", *(str(golden) if a == "FILE" else a for a in arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    assert result.returncode == 1
    assert result.stderr == b"codec: No space left on device\n"


def test_closed_pipe_says_nothing(image: Path) -> None:
    process = codec_process("encode", image, "-o", "-", "--quiet")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_interrupt_leaves_whole_files_only(tmp_path: Path, number: signal.Signals, jobs: int) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    picture = make_example(160, 120)
    for i in range(400):
        saved(source / f"{i:03}.ppm", picture)
    process = codec_process("encode", source, "-o", out, "--levels", 1, "-j", jobs)
    deadline = time.monotonic() + 180
    while not list(out.glob("*.vbc")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert b"Traceback" not in said
    names = os.listdir(out)
    assert 0 < len(names) < 400
    assert all(name.endswith(".vbc") for name in names)
    for name in names:
        info = vbc.codec.read_info((out / name).read_bytes())
        assert info.n_bytes == info.n_bytes_complete


# the Python functions


def test_python_functions(lossless: bytes, tmp_path: Path) -> None:
    im = Image.fromarray(RGB)
    im.info["icc_profile"] = b"profile"
    data = vbc.codec.encode(im, lossless=True, levels=0)
    decoded = vbc.codec.decode(data)
    assert np.array_equal(np.asarray(decoded), RGB)
    assert decoded.info["icc_profile"] == b"profile"
    assert vbc.codec.read_info(vbc.codec.encode(im, levels=1, metadata=Metadata())).metadata_bytes == {}
    path = tmp_path / "a.vbc"
    path.write_bytes(lossless)
    one, two = vbc.codec.decode_image([str(path), lossless], device="cpu")
    assert torch.equal(one, torch.from_numpy(RGB.copy()).permute(2, 0, 1))
    assert torch.equal(one, two)
    assert torch.equal(one, vbc.codec.decode_image(path, device="cpu"))


def test_gray_stays_gray() -> None:
    gray = RGB[..., 0]
    data = vbc.codec.encode(gray, lossless=True)
    assert data == vbc.codec.encode(torch.from_numpy(gray.copy())[None], lossless=True)
    decoded = vbc.codec.decode(data)
    assert decoded.mode == "L"
    assert np.array_equal(np.asarray(decoded), gray)
    assert vbc.codec.decode_image(data, device="cpu").shape == (1, 29, 43)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5, 5), (5,), (1, 1, 1, 3)])
def test_unsupported_arrays(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedImage):
        vbc.codec.encode(np.zeros(shape, np.uint8))
    with pytest.raises(UnsupportedImage):
        vbc.codec.encode(np.zeros((5, 5, 3), np.float32))  # type: ignore[arg-type]


def test_options_that_do_not_go_together() -> None:
    for options in (
        {"levels": 0},
        {"levels": 4},
        {"levels": 1, "lossless": True},
        {"quality": -1},
        {"effort": 7},
    ):
        with pytest.raises(ValueError, match=r"\d"):
            vbc.codec.encode(RGB, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eye or psnr"):
        vbc.codec.encode(RGB, tune="ear")  # type: ignore[arg-type]
