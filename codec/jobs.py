"""The command line's jobs: from arguments to files, coding one file to another, many of them in processes.

Which output belongs to which input is decided here too.
"""

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any

from vbc.bitstream.container import DEFAULT_LIMITS, Limits, unpack_header
from vbc.bitstream.errors import FormatError, LimitExceeded, ModelMissing, UnsupportedVersion
from vbc.bitstream.source import FileSource, MemorySource, Source
from vbc.codec import api
from vbc.codec.files.cutting import NothingLeft
from vbc.codec.files.reading import read_header, read_image, read_vbc
from vbc.codec.regions import Region, RegionError, Roi
from vbc.codec.settings import EncodeSettings

OK, SOME_FAILED, USAGE, CORRUPT, UNSUPPORTED, LIMIT = range(6)
"""Exit codes."""
STANDARD = "-"
"""The name of standard input and output."""
ENDING = ".vbc"

PANIC = "PanicException"
"""What a fault inside a library written in Rust raises; it is no Exception."""

Report = dict[str, Any]
Work = Callable[["Job"], Report]


@dataclass(frozen=True)
class Job:
    """One input and where its output goes; either may be `-`. into_folder: whether OUT is a folder."""

    source: str
    target: str
    into_folder: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a job failed, in a form that passes between processes. trace: only for faults that are not the
    input's."""

    kind: str
    message: str
    exit_code: int
    trace: str | None = None


@dataclass(frozen=True)
class EncodeOptions:
    """Arguments of `api.encode_with`; `keep_metadata` is what `--metadata` says."""

    settings: EncodeSettings
    keep_metadata: bool
    device: api.Device
    model: Path | None


@dataclass(frozen=True)
class DecodeOptions:
    """Arguments of `api.decode`; `suffix` is the kind of image where the target's name does not say it."""

    levels: int | None
    region: Region | None
    native: bool
    allow_partial: bool
    suffix: str
    device: api.Device
    model: Path | None
    limits: Limits = DEFAULT_LIMITS


class UsageError(ValueError):
    """The arguments do not name a possible set of jobs."""


def encode_file(job: Job, options: EncodeOptions, progress: api.Progress | None = None) -> Report:
    """Encode an image file and put the result in place. Returns what there is to say about it."""
    from vbc.codec.files import image_io

    api.load(options.model, options.device, tune=options.settings.tune)  # not what the time is to tell
    started = time.perf_counter()
    with open_input(job.source) as f:
        picture = image_io.read_picture(read_image(f))
    data = api.encode_with(
        options.settings,
        picture,
        metadata=None if options.keep_metadata else image_io.Metadata(),
        device=options.device,
        model=options.model,
        progress=progress,
    )
    write_output(job.target, data)
    info = api.read_info(data)
    return report_of_file(job, info, started, quality=info.quality)


def report_of_file(job: Job, info: api.FileInfo, started: float, **more: Any) -> Report:
    """What there is to say about a file that was written. more: beside what all such files have."""
    return {
        "input": job.source,
        "output": job.target,
        "width": info.width,
        "height": info.height,
        "n_bytes": info.n_bytes,
        "rate_bpp": round(8 * info.n_bytes / (info.width * info.height), 4),
        "levels": list(info.levels),
        **more,
        "exact": info.lossless,
        "time_s": round(time.perf_counter() - started, 3),
    }


def decode_file(job: Job, options: DecodeOptions, progress: api.Progress | None = None) -> Report:
    """Decode a file and put the image in place. Returns what there is to say about it."""
    from vbc.codec.files import image_io

    api.load(options.model, options.device)  # not what the time is to tell
    started = time.perf_counter()
    with open_input(job.source) as f:
        # of a region no more is read than it needs
        at_hand = options.region is not None and f.seekable()
        decoded = api.decode_picture(
            FileSource(f) if at_hand else read_vbc(f, options.limits),
            levels=options.levels,
            region=options.region,
            native=options.native,
            allow_partial=options.allow_partial,
            limits=options.limits,
            device=options.device,
            model=options.model,
            progress=progress,
        )
    suffix = options.suffix if job.target == STANDARD else Path(job.target).suffix or options.suffix
    write_output(job.target, image_io.write_picture(decoded.picture, suffix, decoded.exact))
    height, width = decoded.picture.rgb.shape[:2]
    return {
        "input": job.source,
        "output": job.target,
        "width": width,
        "height": height,
        "levels": list(decoded.levels),
        "exact": decoded.exact,
        "time_s": round(time.perf_counter() - started, 3),
    }


def cut_file(job: Job, max_bytes: int | None, stage: int | None, limits: Limits = DEFAULT_LIMITS) -> Report:
    """Put a shorter file in place, made from another without decoding it. Arguments as `api.cut`."""
    started = time.perf_counter()
    with open_input(job.source) as f:
        source = source_of(f, limits)
        data = api.cut(source, max_bytes=max_bytes, stage=stage, limits=limits)
    write_output(job.target, data)
    return report_of_file(job, api.read_info(data), started)


def evaluate_file(job: Job, options: EncodeOptions) -> Report:
    """Encode and decode an image in memory and measure both.

    psnr_db: over all subpixels of 8-bit RGB, None where nothing differs.
    """
    import numpy as np

    from vbc.codec.files import image_io

    api.load(options.model, options.device, tune=options.settings.tune)  # not what the times are to tell
    with open_input(job.source) as f:
        picture = image_io.read_picture(read_image(f))
    started = time.perf_counter()
    data = api.encode_with(
        options.settings,
        picture,
        metadata=image_io.Metadata(),
        device=options.device,
        model=options.model,
    )
    encoded = time.perf_counter()
    decoded = api.decode_picture(data, device=options.device, model=options.model)
    ended = time.perf_counter()
    error = np.mean((decoded.picture.rgb.astype(np.float64) - picture.rgb) ** 2)
    n_pixels = picture.rgb.shape[0] * picture.rgb.shape[1]
    return {
        "input": job.source,
        "quality": options.settings.asked_quality,
        "n_pixels": n_pixels,
        "n_bytes": len(data),
        "rate_bpp": 8 * len(data) / n_pixels,
        "rate_bpsp": 8 * len(data) / picture.samples().size,
        "psnr_db": float(10 * np.log10(255**2 / error)) if error > 0 else None,
        "n_exact": int(np.array_equal(decoded.picture.samples(), picture.samples())),
        "encode_s": encoded - started,
        "decode_s": ended - encoded,
    }


def mean_report(reports: list[Report]) -> Report:
    """Totals of a folder.

    Pixels, bytes and seconds are sums, bits per pixel are of those sums; bits per subpixel are the mean over
    the images, PSNR the mean over those that are not exact (None where all are).
    """
    sums = {
        key: sum(r[key] for r in reports)
        for key in ("n_pixels", "n_bytes", "n_exact", "encode_s", "decode_s")
    }
    psnr = [r["psnr_db"] for r in reports if r["psnr_db"] is not None]
    return {
        "input": f"all {len(reports)}",
        "quality": reports[0]["quality"],
        **sums,
        "rate_bpp": 8 * sums["n_bytes"] / sums["n_pixels"],
        "rate_bpsp": sum(r["rate_bpsp"] for r in reports) / len(reports),
        "psnr_db": sum(psnr) / len(psnr) if psnr else None,
    }


def verify_file(job: Job, device: api.Device, model: Path | None, limits: Limits = DEFAULT_LIMITS) -> Report:
    """Verify a file completely."""
    with open_input(job.source) as f:
        data = read_vbc(f, limits)
    api.verify(data, device=device, limits=limits, model=model)
    return {"input": job.source, "n_bytes": len(data), "levels": list(api.read_info(data).levels), "ok": True}


def strip_file(job: Job, roi: Roi, keep_metadata: bool, limits: Limits = DEFAULT_LIMITS) -> Report:
    """Put a file in place without the packets that regions do not need. Of a file on disk only the others are
    read.

    n_left_out: how many packets those are; 0 where a picture is so small that every region needs them all.
    """
    started = time.perf_counter()
    with open_input(job.source) as f:
        source = source_of(f, limits)
        before = unpack_header(source, limits)
        stripped = api.strip(source, roi, keep_metadata=keep_metadata, limits=limits)
    write_output(job.target, stripped)
    info = api.read_info(stripped)
    return {
        "input": job.source,
        "output": job.target,
        "n_bytes_before": source.n_bytes,
        "n_bytes": len(stripped),
        "n_left_out": len(before.packets) - info.n_packets,
        "levels": list(info.levels),
        "time_s": round(time.perf_counter() - started, 3),
    }


def info_file(job: Job, levels: int | None = None, region: Region | None = None) -> Report:
    """What the header of a file says; of a file no more than the header and its index are read.

    Of a pipe what comes is read, since only that tells its size. levels, region: as `api.decode`; `ranges`
    then names the bytes that they need.
    """
    from dataclasses import asdict

    with open_input(job.source) as f:
        head = read_header(f) if f.seekable() else read_vbc(f)
        n_bytes = f.seek(0, os.SEEK_END) if f.seekable() else len(head)
    return {"input": job.source, **asdict(api.read_info(head, n_bytes, levels=levels, region=region))}


def plan(sources: list[str], output: str, input_suffixes: tuple[str, ...], output_suffix: str) -> list[Job]:
    """One job for every file.

    Several sources, or a folder, go into the folder `output`, which keeps the sources' structure. Raises
    UsageError where outputs collide with each other or with an input.
    """
    into_folder = len(sources) > 1 or Path(output).is_dir() or any(Path(s).is_dir() for s in sources)
    if not into_folder:
        jobs = [Job(sources[0], output)]
    else:
        if output == STANDARD or STANDARD in sources:
            raise UsageError("standard input and output go with one file only")
        if Path(output).exists() and not Path(output).is_dir():
            raise UsageError(f"{output} is not a folder, and several outputs need one")
        files = [pair for source in sources for pair in files_below(Path(source), input_suffixes)]
        jobs = [
            Job(str(file), str(Path(output, place).with_suffix(output_suffix)), into_folder=True)
            for file, place in files
        ]
    targets: dict[str, str] = {}
    inputs = {os.path.realpath(job.source) for job in jobs if job.source != STANDARD}
    for job in jobs:
        if job.target == STANDARD:
            continue
        target = os.path.realpath(job.target)
        if target in inputs:
            raise UsageError(f"{job.target} is an input and would be overwritten")
        if target in targets:
            raise UsageError(f"{targets[target]} and {job.source} would both be written to {job.target}")
        targets[target] = job.source
    return jobs


def files_below(source: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """The files that a source stands for, each with its place in the output folder.

    Links to folders are not followed; pipes, sockets and devices are left out. Links to nothing and folders
    that cannot be read are among them, so that they fail and are named.
    """
    if not source.is_dir():
        yield source, Path(source.name)
        return
    found: list[Path] = []
    for folder, _, names in os.walk(source, onerror=lambda e: found.append(Path(e.filename))):
        files = (Path(folder, name) for name in names if Path(name).suffix.lower() in suffixes)
        found.extend(file for file in files if file.is_file() or not file.exists())
    for file in sorted(found):
        yield file, file.relative_to(source)


def not_done(jobs: list[Job]) -> list[Job]:
    """The jobs whose output is not there. Outputs are put in place whole, so one that is there is done."""
    return [job for job in jobs if job.target == STANDARD or not Path(job.target).exists()]


def run(
    work: Work, jobs: list[Job], processes: int = 1, threads: int | None = None
) -> Iterator[tuple[Job, Report | Failure]]:
    """Do the jobs; a failure stops none of the others. Results come in the order of the jobs.

    threads: of each process; None: torch's choice for one process, an equal share of the cores for several.
    Where a process dies (memory, a crash), jobs that had no result are done again, the first of them alone,
    so that the one at fault is known; their results come late.
    """
    if processes == 1 or len(jobs) < 2:
        if threads is not None:
            _set_threads(threads)
        for job in jobs:
            yield job, attempt(work, job)
        return
    share = threads or max(1, (os.cpu_count() or 1) // processes)
    left = jobs
    while left:
        orphans = yield from _run_pool(work, left, processes, share)
        if orphans:
            dead = yield from _run_pool(work, orphans[:1], 1, share)
            for job in dead:
                message = "the process that did this died; perhaps memory ran out"
                yield job, Failure("BrokenProcessPool", message, SOME_FAILED)
        left = orphans[1:]


def _run_pool(
    work: Work, jobs: list[Job], processes: int, threads: int
) -> Generator[tuple[Job, Report | Failure], None, list[Job]]:
    """Do jobs in processes; returns those that have no result because a process died."""
    # spawn: a forked copy of torch's thread pools hangs
    pool = ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    )
    orphans = []
    try:
        with _signals_wait():
            futures = [pool.submit(attempt, work, job) for job in jobs]
        for job, future in zip(jobs, futures, strict=True):
            try:
                yield job, future.result()
            except BrokenProcessPool:
                orphans.append(job)
    finally:
        pool.shutdown(cancel_futures=True)
    return orphans


def attempt(work: Work, job: Job) -> Report | Failure:
    """Do one job and turn what goes wrong into data."""
    try:
        return work(job)
    except BrokenPipeError:
        raise
    except Exception as e:
        return failure_of(e, job.source)
    except BaseException as e:
        if type(e).__name__ != PANIC:
            raise
        return failure_of(e, job.source)


def failure_of(error: BaseException, source: str = "") -> Failure:
    """The exit code and message for an error. source: the input, which whoever shows the message names."""
    kind, message = type(error).__name__, str(error)
    if isinstance(error, LimitExceeded):
        return Failure(kind, message, LIMIT)
    if isinstance(error, UnsupportedVersion | ModelMissing):
        return Failure(kind, message, UNSUPPORTED)
    if isinstance(error, FormatError):
        return Failure(kind, message, CORRUPT)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename and error.filename != source else ""
        return Failure(kind, f"{error.strerror or message}{where}", SOME_FAILED)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in message:  # torch says it in its own way
        return Failure(kind, "memory ran out", SOME_FAILED)
    if isinstance(error, RegionError | NothingLeft):
        return Failure(kind, message, USAGE)
    from vbc.codec.files.image_io import UnsupportedImage
    from vbc.codec.model import WeightsError

    if isinstance(error, UnsupportedImage | WeightsError):
        return Failure(kind, message, UNSUPPORTED)
    return Failure(kind, message, SOME_FAILED, "".join(traceback.format_exception(error)))


def exit_code(failures: Iterable[Failure], n_jobs: int) -> int:
    """The code of the one failed job, where there was one job; else 1 if any failed."""
    codes = [f.exit_code for f in failures]
    return OK if not codes else codes[0] if n_jobs == 1 else SOME_FAILED


@contextmanager
def open_input(source: str) -> Iterator[IO[bytes]]:
    """A file or standard input, open for reading."""
    if source != STANDARD:
        with open(source, "rb") as f:
            yield f
    elif sys.stdin is None:  # the caller has closed it
        raise OSError("standard input is closed")
    else:
        yield sys.stdin.buffer


def source_of(file: IO[bytes], limits: Limits) -> Source:
    """A .vbc file to read parts of; of a pipe all that comes, as far as the header goes.

    Raises a FormatError where it is a pipe and its header is bad or above the limits.
    """
    return FileSource(file) if file.seekable() else MemorySource(read_vbc(file, limits))


def write_output(target: str, data: bytes) -> None:
    """Write a file atomically, or to standard output."""
    if target == STANDARD:
        rest = memoryview(data)
        while rest:  # unbuffered (PYTHONUNBUFFERED), a full disk or a pipe may take a part and say no more
            n_written = sys.stdout.buffer.write(rest)
            if n_written is None:
                raise BlockingIOError(errno.EAGAIN, "standard output does not wait for its reader")
            rest = rest[n_written:]
        sys.stdout.buffer.flush()
        return
    from vbc.codec.files.image_io import write_atomic

    Path(target).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(Path(target), data)


def _set_threads(n: int) -> None:
    import torch

    torch.set_num_threads(n)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back interrupts.

    Processes started meanwhile hold them back until `_start_worker` is ready for them.
    """
    if sys.platform == "win32":
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _start_worker(threads: int) -> None:
    from vbc.codec.files import image_io

    def stop(number: int, frame: object = None) -> None:
        for path in list(image_io.unfinished):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        os._exit(128 + number)

    def follow() -> None:
        parent = parent_process()
        assert parent is not None
        wait([parent.sentinel])
        stop(signal.SIGTERM)

    # a parent that is killed outright tells nobody, and its workers would wait for work for ever
    threading.Thread(target=follow, daemon=True).start()

    # an interrupt reaches every process of the group: the worker removes its unfinished file and goes
    # silently
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    _set_threads(threads)
