"""What all benches share: images, metrics, timing, and results as JSON lines and CSV."""

import argparse
import csv
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vbc.codec import jobs as batch
from vbc.codec.files import image_io

Rgb = NDArray[np.uint8]
"""uint8 [H, W, 3]."""
Row = dict[str, Any]
Point = tuple[float, float]
"""Rate in bits per pixel, quality in dB or as a score."""
Range = tuple[float, float]
"""The least and the greatest value."""

LIBRARIES = (
    "vbc-codec",
    "torch",
    "numpy",
    "constriction",
    "pillow",
    "imagecodecs",
    "pytorch-msssim",
    "ssimulacra2",
    "bjontegaard",
)
DEFAULT_OUT = Path("runs/bench")
QUICK_IMAGES = 2
MSSSIM_SIDE = 161
"""Smallest side that five scales of an 11-tap window fit in."""
MIN_POINTS = 4
"""A curve with fewer points has no BD-rate."""
EVERYWHERE: Range = (-float("inf"), float("inf"))
SSIMULACRA2_SIDE = 8
"""Smallest side that the metric's first scale takes; below it the library finds everything equal."""
BUTTERAUGLI = "butteraugli_main"
"""The program of libjxl."""
THREE_NORM = re.compile(r"^3-norm: *([0-9.eE+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Photo:
    """An image of a folder. rgb: uint8 [H, W, 3]."""

    name: str
    rgb: Rgb

    @property
    def n_pixels(self) -> int:
        return self.rgb.shape[0] * self.rgb.shape[1]


def image_files(folder: Path, limit: int | None = None) -> list[Path]:
    """The images below a folder, or the one file; by name. Raises SystemExit where there is none."""
    files = [file for file, _ in batch.files_below(folder, image_io.INPUT_SUFFIXES)]
    if not files or not files[0].exists():
        raise SystemExit(f"no image in {folder}")
    return files[:limit]


def load_photo(file: Path) -> Photo:
    """Read an image as RGB. Raises UnsupportedImage."""
    return Photo(file.name, image_io.read_picture(file.read_bytes()).rgb)


def each_image(work: Callable[[Path], list[Row]], files: list[Path], jobs: int) -> Iterator[list[Row]]:
    """The rows of each image, in the order of the images; several images at a time, in processes."""
    if jobs == 1:
        yield from map(work, files)
        return
    # spawn: a forked copy of torch's thread pools hangs
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        yield from pool.map(work, files)


# Metrics


def psnr(a: Rgb, b: Rgb) -> float | None:
    """PSNR in dB over all subpixels; None where nothing differs. Raises ValueError for different shapes."""
    if a.shape != b.shape:
        raise ValueError(f"a picture of {b.shape} for one of {a.shape}")
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else None


def ms_ssim(a: Rgb, b: Rgb) -> float | None:
    """MS-SSIM of RGB, mean of the planes, 0..1; None for images with a side below 161."""
    if min(a.shape[:2]) < MSSSIM_SIDE:
        return None
    import pytorch_msssim
    import torch

    x, y = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() for p in (a, b))
    return float(pytorch_msssim.ms_ssim(x, y, data_range=255))


def decibel(similarity: float) -> float:
    """MS-SSIM in dB, -10 log10(1 - x); what equals to eight digits has 80."""
    return -10 * float(np.log10(max(1 - similarity, 1e-8)))


def ssimulacra2(original: Rgb, decoded: Rgb) -> float | None:
    """SSIMULACRA 2: 100 where nothing differs, 90 not seen, 70 hardly, 50 middling, 30 poor, below 0 ruined.

    None for pictures with a side below 8. Sides below 249 lack some of its six scales: its reference then
    gives the weights to other scales than they were fitted for, and such scores compare with those of
    pictures of the same size alone. Raises ValueError for different shapes.
    """
    if original.shape != decoded.shape:
        raise ValueError(f"a picture of {decoded.shape} for one of {original.shape}")
    if min(original.shape[:2]) < SSIMULACRA2_SIDE:
        return None
    from ssimulacra2 import compute_ssimulacra2

    # it reads files alone, which need not be on a disk
    return float(compute_ssimulacra2(*(io.BytesIO(pixels_file(p)) for p in (original, decoded))))


def butteraugli_3norm(original: Rgb, decoded: Rgb) -> float | None:
    """Butteraugli's distance by its 3-norm, 0 where nothing differs, 1 about where the eye begins to see it.

    None where libjxl's program is not installed. Raises CalledProcessError where it fails and ValueError
    where it tells no 3-norm.
    """
    if shutil.which(BUTTERAUGLI) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("original.ppm", "decoded.ppm")]
        for path, rgb in zip(paths, (original, decoded), strict=True):
            path.write_bytes(pixels_file(rgb))
        said = subprocess.run([BUTTERAUGLI, *map(str, paths)], check=True, capture_output=True, text=True)
    found = THREE_NORM.search(said.stdout)
    if found is None:
        raise ValueError(f"no 3-norm in {said.stdout!r}")
    return float(found[1])


def pixels_file(rgb: Rgb) -> bytes:
    """A PPM file of the pixels, which every program reads and none takes long for."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PPM")
    return out.getvalue()


# Curves


def bd_rate(
    anchor: Sequence[Point],
    test: Sequence[Point],
    method: str = "akima",
    within: Range = EVERYWHERE,
    least_span: float = 0.0,
    least_inside: int = 0,
) -> tuple[float, float, float] | None:
    """How many percent more bits `test` takes at the same quality, and over which range of quality.

    The first is the mean over the second: over what of `within` both curves cover, whose ends are
    interpolated; nothing is read beyond the ends of a curve. method: how log rate is interpolated over
    quality, akima or pchip. None where a curve has fewer than four points, or where they share a range no
    longer than `least_span` or one of them has fewer than `least_inside` points in it.
    """
    import bjontegaard

    a, t = rising(anchor), rising(test)
    if min(len(a), len(t)) < MIN_POINTS:
        return None
    low, high = max(a[0][1], t[0][1], within[0]), min(a[-1][1], t[-1][1], within[1])
    if high - low <= least_span or min(n_inside(a, low, high), n_inside(t, low, high)) < least_inside:
        return None
    (rate_a, quality_a), (rate_t, quality_t) = zip(*a, strict=True), zip(*t, strict=True)
    # the library's own range is all that the curves share: its interpolations are integrated over ours
    _, curve_a, curve_t = bjontegaard.bd_rate(
        rate_a,
        quality_a,
        rate_t,
        quality_t,
        method=method,
        require_matching_points=False,
        interpolators=True,
        min_overlap=0,
    )
    log10_change = (curve_t.integrate(low, high) - curve_a.integrate(low, high)) / (high - low)
    return 100 * (10 ** float(log10_change) - 1), low, high


def rate_at(points: Iterable[Point], quality: float) -> float | None:
    """The rate at which a curve has this quality: log rate over quality, interpolated by PCHIP.

    None beyond the ends of the curve, and where it has fewer than four points.
    """
    from scipy.interpolate import PchipInterpolator

    curve = rising(points)
    if len(curve) < MIN_POINTS or not curve[0][1] <= quality <= curve[-1][1]:
        return None
    rates, qualities = zip(*curve, strict=True)
    return float(2 ** PchipInterpolator(qualities, np.log2(rates))(quality))


def n_inside(points: Iterable[Point], low: float, high: float) -> int:
    """How many points have a quality from low to high, these included."""
    return sum(low <= quality <= high for _, quality in points)


def rising(points: Iterable[Point]) -> list[Point]:
    """The points by rate, without those that a cheaper one equals or beats."""
    out: list[Point] = []
    for rate, quality in sorted(points):
        if not out or (rate > out[-1][0] and quality > out[-1][1]):
            out.append((rate, quality))
    return out


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    there = [v for v in values if v is not None]
    return statistics.fmean(there) if there else None


# Timing


def timed(f: Callable[[], Any], repeats: int = 1, budget_s: float = 10.0) -> tuple[Any, float]:
    """The result and the median seconds of up to `repeats` calls.

    No further call once `budget_s` is spent.
    """
    times: list[float] = []
    while True:
        started = time.perf_counter()
        result = f()
        times.append(time.perf_counter() - started)
        if len(times) >= repeats or sum(times) > budget_s:
            return result, statistics.median(times)


# The command line and the results


def parser(module: str, doc: str | None, folder: bool = True) -> argparse.ArgumentParser:
    """The options that all benches have."""
    p = argparse.ArgumentParser(prog=f"python -m bench.{module}", description=doc)
    p.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        nargs=None if folder else "?",
        help="folder of images, or one image",
    )
    p.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help="folder of the results [default: %(default)s]"
    )
    p.add_argument("--model", type=Path, help="weights [default: the shipped ones]")
    p.add_argument("--images", type=int, help="only the first so many images")
    p.add_argument(
        "--quick", action="store_true", help="few images and rivals: a check that all runs, no result"
    )
    return p


def parse(p: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and keep the command for the results; a quick run is of two images unless told otherwise."""
    args = p.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    args.command = " ".join([p.prog, *(Path(w).name if os.sep in w else w for w in words)])
    if args.quick and args.images is None:
        args.images = QUICK_IMAGES
    return args


def say(message: str) -> None:
    """Progress, to standard error."""
    print(message, file=sys.stderr, flush=True)


class Results:
    """`<name>.jsonl`, written line by line as the results come, and `<name>.csv` with its summary.

    Every line has a `kind`: `run` (the first: date, machine, versions, command), `row` (one measurement),
    `summary`.
    """

    def __init__(self, out: Path, name: str, args: argparse.Namespace):
        out.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = out, name
        self._file = (out / f"{name}.jsonl").open("w", encoding="utf-8")
        self._summary: list[Row] = []
        self._started = time.perf_counter()
        self.add("run", command=args.command, quick=args.quick, **environment())

    def add(self, kind: str, **fields: Any) -> Row:
        """Write a line; a summary goes to the CSV too."""
        row = {k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}
        self._file.write(json.dumps({"kind": kind, **row}) + "\n")
        self._file.flush()
        if kind == "summary":
            self._summary.append(row)
        return row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.add("end", time_s=time.perf_counter() - self._started)
            write_csv(self.folder / f"{self.name}.csv", self._summary)
            say(f"{self.folder / self.name}.jsonl and .csv, {time.perf_counter() - self._started:.0f} s")
        self._file.close()


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line a row; the columns are all keys in the order they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_results(path: Path) -> list[Row]:
    """The lines of a results file; what a run in progress has not finished writing is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def group(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of these keys, in the order they first appear."""
    out: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        out.setdefault(tuple(row[k] for k in keys), []).append(row)
    return out


@cache
def environment() -> Row:
    """Date, machine and versions."""
    import torch

    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    from bench import rivals

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit(),
        "versions": versions | rivals.versions(),
    }


def machine() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Abbreviated commit of the checkout, with a plus sign where files differ from it.

    None outside of one.
    """
    try:
        ask = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
