"""Rows that need processes of their own: bombs, fuzzing, kills, bad folders; and weights that carry code."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from torture.material import FIELDS, TESTS, TINY, Loose, loosen, pack_index, small_files
from torture.rows_bytes import HIGH_WATER, python
from torture.tally import Slice, Tally
from vbc.bitstream import container
from vbc.bitstream.varint import pack_varints
from vbc.codec import api
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata, Picture, write_picture
from vbc.codec.model import WeightsError

ROOT = TESTS.parent
BOMB_SECONDS = 0.05
BOMB_BYTES = 32 << 20

REFUSE = (
    HIGH_WATER
    + """
import sys, time, tracemalloc
from pathlib import Path
from vbc.bitstream.errors import FormatError
from vbc.codec import api, incremental
from vbc.codec import jobs as batch
from vbc.codec.files import reading
entries = {
    "read_info": lambda data, path: api.read_info(data),
    "decode": lambda data, path: api.decode(data),
    "decode_image": lambda data, path: api.decode_image(path, "cpu"),
    "verify": lambda data, path: api.verify(data),
    "info": lambda data, path: batch.info_file(batch.Job(path, "")),
    "read_vbc": lambda data, path: reading.read_vbc(path),
    "feed": lambda data, path: incremental.IncrementalReader().feed(data),
}
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    for name, call in entries.items():
        before = high_water()
        times = []
        for attempt in range(5):  # the shortest: another process may be in the way
            tracemalloc.start()
            started = time.process_time()
            try:
                call(data, str(path))
                outcome = "accepted"
            except FormatError as e:
                outcome = type(e).__name__
            except BaseException as e:
                outcome = f"escape {e!r}"
            times.append(time.process_time() - started)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        taken = max(peak, high_water() - before)
        print(path.name, name, outcome.replace(" ", "_"), min(times), taken)
print("torch" in sys.modules)
"""
)


def bomb_files() -> dict[str, bytes]:
    """Small files whose headers ask for what no reader should give."""
    base = small_files()["metadata"]
    bombs: dict[str, bytes] = {}
    for name, value in (("width", 0), ("height", 0), ("width", 2**32 - 1), ("height", 2**32 - 1)):
        loose = loosen(base)
        loose.fields[name] = value
        bombs[f"{name}-{value}"] = loose.pack()
    for width, height in ((2**32 - 1, 2**32 - 1), (65_536, 65_536), (65_535, 65_535), (65_535, 2_731)):
        loose = loosen(base)
        loose.fields |= {"width": width, "height": height}
        bombs[f"size-{width}x{height}"] = loose.pack()
    for n_bytes in (2**32 - 1, 1 << 24):
        loose = loosen(base)
        loose.index_bytes = n_bytes
        bombs[f"index-of-{n_bytes}"] = loose.pack()
    for name, index in index_bombs().items():
        fields = {name: loosen(base).fields[name] for name in FIELDS}
        bombs[f"index-{name}"] = Loose(fields, [], index=index).pack()
    for unit, part, length in (
        (container.ICC, 0, (1 << 20) + 1),
        (container.ICC, 0, 1 << 61),
        (container.EXIF, 0, (16 << 20) + 1),
        (container.XMP, 0, 1 << 40),
        (1, 1, 1 << 61),
        (1, 1, (1 << 62) - 1),
        (1, 1, 1 << 30),
        (container.PIXEL_HASH, 0, 1 << 20),
        (0x90, 0, 1 << 50),
    ):
        bombs[f"length-{unit}-{length}"] = with_length(base, unit, part, length)
    return bombs


def index_bombs() -> dict[str, bytes]:
    """Indices that promise more than there is."""
    entry = pack_varints((0,)) + bytes(4)
    run = [(1, 1 + i, 0, 0) for i in range(200)]
    return {
        "of-many-groups": bytes([1]) + pack_varints((1, 2**32 - 1)) + entry,
        "of-a-far-group": bytes([1]) + pack_varints((2**32 - 1, 1)) + entry,
        "beyond-all-groups": bytes([1]) + pack_varints((2**32 - 1, 2**32 - 1)) + 2 * entry,
        "of-no-group": bytes([1]) + pack_varints((1, 0)),
        "of-level-63": pack_index([(63, 1, 0, 0)]),
        "of-more-groups-than-there-are": pack_index(run),
        "twice-the-same": pack_index([(1, 1, 0, 0), (1, 1, 0, 0)]),
        "of-ancillary-packets": (bytes([0x81]) + entry) * 200,
        "of-unknown-units": (bytes([64]) + entry) * 200,
        "length-of-2^63": bytes([1]) + pack_varints((1, 1)) + pack_varints((1 << 63,), 70) + bytes(4),
        "length-without-end": bytes([1]) + pack_varints((1, 1)) + b"\xff" * 500,
        "lengths-of-2^64-together": b"".join(
            bytes([unit]) + pack_varints(((1 << 62) - 1,), 62) + bytes(4) for unit in range(0x80, 0x85)
        ),
        "in-long-form": bytes([1, 0x81, 0x00, 1]) + entry,
    }


def with_length(data: bytes, unit: int, part: int, length: int) -> bytes:
    """A header whose one packet announces `length` bytes, and nothing behind it."""
    fields = {name: loosen(data).fields[name] for name in FIELDS}
    return Loose(fields, [], index=pack_index([(unit, part, length, 0)])).pack()


def bombs(todo: Slice) -> Tally:
    """Row 4: refused in under 50 ms and 32 MiB by every entry point, without torch."""
    tally = Tally()
    if not todo.first:
        return tally
    with tempfile.TemporaryDirectory() as folder:
        for name, data in bomb_files().items():
            Path(folder, name).write_bytes(data)
        result = python("-c", REFUSE, folder)
    lines = result.stdout.splitlines()
    tally.check(
        lines[-1:] == ["False"], f"row 4: torch was loaded, or the process died: {result.stderr[-300:]}"
    )
    for line in lines[:-1]:
        name, entry, outcome, spent, taken = line.split(" ")
        with tally.case(f"row 4 {name} {entry}"):
            known = outcome in ("LimitExceeded", "Corrupt", "UnsupportedVersion")
            tally.check(known, f"row 4 {name} {entry}: {outcome}")
            tally.check(float(spent) < BOMB_SECONDS, f"row 4 {name} {entry}: {spent} s")
            tally.check(int(taken) < BOMB_BYTES, f"row 4 {name} {entry}: {taken} bytes")
        tally.notes["slowest, ms"] = max(
            round(float(spent) * 1000, 2), float(tally.notes.get("slowest, ms", 0.0))
        )
    return tally


def fuzzing(todo: Slice) -> Tally:
    """Row 3: scripts/fuzz on every target for n / 3 seconds each, in `parts` slices."""
    tally = Tally()
    targets = ("header", "metadata", "file")
    for target in targets[todo.part :: todo.parts]:
        with tally.case(f"row 3 {target}"):
            command = [sys.executable, str(ROOT / "scripts" / "fuzz"), target, "--seconds", str(todo.n // 3)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode == 4:
                tally.check(False, "row 3 NOT RUN: atheris is not installed")
                continue
            tally.check(result.returncode == 0, f"row 3 {target}: {(result.stdout + result.stderr)[-500:]}")
            done = [line for line in result.stderr.splitlines() if line.startswith("Done ")]
            tally.notes[target] = done[-1] if done else "no summary"
    return tally


# Interruptions


def codec_command(*arguments: object) -> list[str]:
    """The command as a user runs it."""
    return [sys.executable, "-m", "vbc.codec", *map(str, arguments)]


def interruptions(todo: Slice) -> Tally:
    """Row 9: under the final name there is nothing, the old file, or a whole new one."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.ppm"), Path(folder, "out.vbc")
        image = make_example(120, 90)
        source.write_bytes(write_picture(Picture.from_samples(image, Metadata()), ".ppm", exact=True))
        command = codec_command("encode", source, "-o", target, "--lossless", "--quiet", "--model", TINY)
        started = time.monotonic()
        subprocess.run(command, check=True)
        duration = time.monotonic() - started
        whole = target.read_bytes()
        for n in todo:
            rng = np.random.default_rng((9, n))
            old = b"an older file" if n % 2 else None
            target.unlink(missing_ok=True)
            if old is not None:
                target.write_bytes(old)
            with tally.case(f"row 9 kill {n}", seconds=1e9):
                process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                # most of the time goes into loading; what matters lies at the end
                time.sleep(duration * float(rng.beta(4, 1.2)))
                process.kill()
                process.wait()
                found = target.read_bytes() if target.exists() else None
                kind = "new" if found == whole else "nothing" if found is None else "old"
                tally.count(f"left: {kind}")
                tally.check(found in (whole, old), f"row 9 kill {n}: {len(found or b'')} bytes of something")
        if todo.first:
            full_disk(tally, source, target)
            closed_pipe(tally, source)
    return tally


def full_disk(tally: Tally, source: Path, target: Path) -> None:
    """Writing fails halfway: exit 1, the old file stays, nothing is left over."""

    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    for old in (None, b"an older file"):
        with tally.case(f"row 9 full disk, {old!r}", seconds=1e9):
            target.unlink(missing_ok=True)
            if old is not None:
                target.write_bytes(old)
            before = set(target.parent.iterdir())  # a kill may have left its temporary file
            command = codec_command("encode", source, "-o", target, "--lossless", "--model", TINY)
            process = subprocess.run(
                command, preexec_fn=small_files_only, capture_output=True, text=True, check=False
            )
            found = target.read_bytes() if target.exists() else None
            check_write_error(tally, "row 9 full disk", process)
            tally.check(found == old, "row 9 full disk: the old file is gone")
            left = set(target.parent.iterdir()) - before
            tally.check(not left, f"row 9 full disk: {left} is left over")
    for unbuffered in ("", "1"):
        with tally.case(f"row 9 full disk behind standard output {unbuffered}", seconds=1e9):
            command = codec_command("encode", source, "-o", "-", "--lossless", "--model", TINY)
            with open(target, "wb") as out:
                process = subprocess.run(
                    command,
                    preexec_fn=small_files_only,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                    text=True,
                    check=False,
                )
            check_write_error(tally, f"row 9 full disk behind standard output {unbuffered}", process)
    with tally.case("row 9 full device", seconds=1e9):
        if os.path.exists("/dev/full"):
            command = codec_command("encode", source, "-o", "-", "--model", TINY)
            with open("/dev/full", "wb") as full:
                process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            check_write_error(tally, "row 9 full device", process)


def check_write_error(tally: Tally, what: str, process: "subprocess.CompletedProcess[str]") -> None:
    """The command has said what is wrong, in its own words."""
    tally.check(process.returncode == 1, f"{what}: exit {process.returncode}")
    tally.check("Traceback" not in process.stderr, f"{what}: {process.stderr[-300:]}")


def closed_pipe(tally: Tally, source: Path) -> None:
    """The reader of standard output has gone: silence and exit 1."""
    with tally.case("row 9 closed pipe", seconds=1e9):
        command = codec_command("encode", source, "-o", "-", "--quiet", "--model", TINY)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        code = process.wait()
        tally.check(code == 1 and said == b"", f"row 9 closed pipe: exit {code}, {said!r}")


def bad_files(todo: Slice) -> Tally:
    """Row 16: of n files 5 % are bad; the others are done, the bad ones named, exit 1; both directions."""
    tally = Tally()
    if not todo.first:
        return tally
    with tempfile.TemporaryDirectory() as folder:
        source, files, back = Path(folder, "in"), Path(folder, "files"), Path(folder, "back")
        bad: set[str] = set()
        kinds = (b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff\xe0" + bytes(100))
        for n in range(todo.n):
            path = source / f"{n % 7}" / f"{n:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Picture.from_samples(make_example(20 + n % 9, 20), Metadata())
            data = write_picture(picture, ".png", exact=True)
            if n % 20 == 7:
                bad.add(str(path))
                data = data[: len(data) // 2] if n % 40 == 7 else kinds[n // 40 % len(kinds)]
            path.write_bytes(data)
        common = ("-j", 2, "--json", "--model", TINY)
        with tally.case("row 16 encode", seconds=1e9):
            command = codec_command("encode", source, "-o", files, "--lossless", *common)
            check_batch(tally, command, bad, todo.n)
        damaged = sorted(str(p) for p in files.rglob("*.vbc"))[3::20]
        for name in damaged:
            data = bytearray(Path(name).read_bytes())
            data[len(data) // 2] ^= 1
            Path(name).write_bytes(data)
        with tally.case("row 16 decode", seconds=1e9):
            command = codec_command("decode", files, "-o", back, *common)
            check_batch(tally, command, set(damaged), todo.n - len(bad))
    return tally


def check_batch(tally: Tally, command: list[str], bad: set[str], n: int) -> None:
    """Run a batch that must fail for the bad files alone."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    reports = [json.loads(line) for line in process.stdout.splitlines()]
    failed = {report["input"] for report in reports if "error" in report}
    tally.check(process.returncode == 1, f"row 16: exit {process.returncode}: {process.stderr[-300:]}")
    tally.check(failed == bad, f"row 16: {failed ^ bad} named or not named")
    tally.check(len(reports) == n, f"row 16: {len(reports)} reports for {n} files")
    done = [report["output"] for report in reports if "error" not in report]
    tally.check(all(Path(name).stat().st_size for name in done), "row 16: an output is missing")


# Weights


def no_pickle(todo: Slice) -> Tally:
    """Row 13: nothing unpickles; weights files that are none, or damaged, are refused and run nothing."""
    tally = Tally()
    if todo.first:
        from test_packaging import SOURCES, test_import_rules, test_no_pickle_behind_a_loader

        for path in SOURCES:
            with tally.case(f"row 13 {path.name}"):
                test_import_rules(path)
                test_no_pickle_behind_a_loader(path)
    genuine = TINY.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        marker, path = Path(folder, "marker"), Path(folder, "w.safetensors")
        call = b"cos\nsystem\n(S'touch " + os.fsencode(marker) + b"'\ntR."
        hostile = [
            call,
            b"\x80\x02" + call,
            b"",
            b"\xff" * 8,
            (1 << 63).to_bytes(8, "little"),
            (10).to_bytes(8, "little") + b'{"a":',
            (2).to_bytes(8, "little") + b"{}",
            (8).to_bytes(8, "little") + b"[" * 8,
        ]
        for n in todo:
            rng = np.random.default_rng((13, n))
            if n < len(hostile):
                data = hostile[n]
            else:
                head = 8 + int.from_bytes(genuine[:8], "little")
                changed = bytearray(genuine)
                for _ in range(int(rng.integers(1, 4))):
                    changed[int(rng.integers(0, head))] = int(rng.integers(32, 127))
                data = bytes(changed[: int(rng.integers(0, len(changed)))] if n % 4 == 0 else changed)
            path.write_bytes(data)
            with tally.case(f"row 13 case {n}"), contextlib.suppress(WeightsError):
                load_uncached(path)
            tally.check(not marker.exists(), f"row 13 case {n}: code has run")
    return tally


def load_uncached(path: Path) -> "api.Weights":
    """The model in a file that changes between calls."""
    from vbc.codec.model import load_model

    return load_model.__wrapped__(path)
