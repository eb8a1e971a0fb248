"""Speed: every stage of encoder and decoder by image size, threads and device, peak memory, start-up.

JPEG XL and PNG are measured in the same run. Without DIR the pictures are generated; with it they are mosaics
of the folder's photographs. `--photos` measures the photographs as they are instead: our coding beside JPEG
XL e7, taking turns, medians. Each size, number of threads and device runs in a process of its own.

Totals are of the codec as it is. Stages are of one more pass, in which what the codec does on threads of its
own is done in turn instead, so that they add up to that pass; it takes longer than the total.
"""

import argparse
import importlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

from bench import common, rivals
from bench.common import Results, Rgb, Row, say
from bench.rivals import Codec

SIZES = (256, 512, 1024, 2048, 4096, 8192)
QUICK_SIZES = (256, 512)
ONE_THREAD_UP_TO = 1024
RIVALS_UP_TO = 2048
REPEATS = 5
BUDGET_S = 8.0
"""No repetition beyond this many seconds for one number."""
MODES: dict[str, dict[str, Any]] = {
    "lossy": {},
    "archival": {"lossless": True, "levels": 0},
    "layered": {"lossless": True},
}
"""From the least memory to the most: on systems other than Linux a process's peak never falls."""
RIVAL_OF = {"lossy": "e7 lossy d1"}
"""The setting of JPEG XL that a mode of ours, or PNG, is compared with, where it is not the lossless one."""
LOSSLESS_RIVAL = "e7 lossless"
LARGE = 8192
LARGE_MODES = ("lossy", "archival")
STAGES = {
    "colour": (
        "pixels.colour:rgb_to_ycocg",
        "pixels.colour:ycocg_to_rgb",
        "pixels.colour:rgb_to_opponent",
        "pixels.colour:opponent_to_rgb",
    ),
    "analysis": ("lossy.analysis:analyse",),
    "rate-distortion rounding": ("lossy.analysis:rdo_round", "lossy.analysis:wanted_moves"),
    "network inputs": (
        "exact.features:phase_inputs",
        "pixels.borders:extend",
        "exact.planes:cut_with_halo",
        "exact.planes:lossy_planes",
        "lossy.features:context_planes",
        "lossy.features:prior_planes",
        "lossy.features:neighbour_planes",
        "lossy.features:enhance_planes",
    ),
    "networks": ("nets.int_nets:IntChain.__call__", "nets.int_nets:IntPhase.__call__"),
    "parameters": (
        "exact.groups:GroupBatch.code",
        "/kernels/predict:ChannelPredictor.tables",
        "/kernels/predict:ChannelPredictor.learn",
        "lossy.coding:code_groups",
        "lossy.coding:code_latents",
        "lossy.coding:refine_latents",
        "lossy.coding:prior_parameters",
        "lossy.coding:neighbour_parameters",
    ),
    "transform": ("lossy.synthesis:inverse_transform", "lossy.synthesis:synthesise"),
    "tuning": ("exact.tuning_fit:fit_tuning", "exact.tuning:code_tuning"),
    "graphics": ("extra.packed_picture:encode_packed", "extra.packed_picture:decode_packed"),
    "entropy coding": (
        "/bitstream/ans:LaneEncoder.put",
        "/bitstream/ans:LaneEncoder.finish",
        "/bitstream/ans:LaneDecoder.__init__",
        "/bitstream/ans:LaneDecoder.get",
        "/bitstream/ans:LaneDecoder.finish",
        "entropy.tensor_coder:TensorReader.__init__",
        "entropy.tensor_coder:TensorReader.code",
        "entropy.tensor_coder:TensorReader.finish",
        "entropy.tensor_coder:TensorWriter.code",
        "entropy.tensor_coder:TensorWriter.finish",
    ),
    "planes": ("exact.level:put_group", "exact.groups:phase_pixels"),
    "container": (
        "/bitstream/container:write_file",
        "/bitstream/container:unpack_header",
        "/bitstream/container:read_packet",
        "extra.carried:pixel_hash",
    ),
}
"""The functions of each stage, in vbc.codec unless a package is named. Time inside a stage that a nested
stage spends is the nested one's."""
SELF_CHECK = "self-check"
"""The encoder's own decode of a lossless file, with all stages inside."""
REST = "rest"
"""What no stage covers: taking groups apart and together, threads and files."""


# Stages


class Stopwatch:
    """Seconds of each stage, exclusive of the stages inside it, so that all add up to the total.

    settle: waits for what a device has been given to do.
    """

    def __init__(self, settle: Callable[[], Any] = lambda: None) -> None:
        self.times: dict[str, float] = {}
        self._settle = settle
        self._stack: list[list[float]] = []
        self._closed = False

    def wrap(self, stage: str, f: Callable[..., Any], closed: bool = False) -> Callable[..., Any]:
        """f, timed. closed: stages inside count as this one."""

        @wraps(f)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._closed or threading.current_thread() is not threading.main_thread():
                return f(*args, **kwargs)
            self._settle()
            self._closed = closed
            self._stack.append([0.0])
            started = time.perf_counter()
            try:
                return f(*args, **kwargs)
            finally:
                self._settle()
                spent = time.perf_counter() - started
                (inside,) = self._stack.pop()
                self.times[stage] = self.times.get(stage, 0.0) + spent - inside
                if self._stack:
                    self._stack[-1][0] += spent
                self._closed = False

        return timed

    def run(self, f: Callable[[], Any]) -> tuple[Any, float]:
        """The result of f and its whole time in seconds, of which what no stage takes is `REST`."""
        self.times = {}
        return common.timed(self.wrap(REST, f))


class InTurn(Executor):
    """Stands in for a pool of threads: a call is made when it is handed in."""

    def __init__(self, max_workers: int | None = None) -> None:
        pass

    def submit(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """A future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(f(*args, **kwargs))
        except BaseException as e:  # as a thread would: whoever asks for the result gets it
            future.set_exception(e)
        return future


def resolve(name: str) -> tuple[Any, str, Callable[..., Any]]:
    """Owner, attribute and function of a name in `STAGES`.

    Raises AttributeError or ImportError where there is none.
    """
    module, path = name.split(":")
    package = "vbc" + module.replace("/", ".") if module.startswith("/") else f"vbc.codec.{module}"
    owner: Any = importlib.import_module(package)
    *classes, attribute = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, attribute, getattr(owner, attribute)


@contextmanager
def watched(watch: Stopwatch, encoding: bool) -> Iterator[None]:
    """Time the stages' functions wherever the codec's modules hold them, until the end of the block.

    Meanwhile the codec has no threads of its own.
    """
    named = [(stage, name, False) for stage, names in STAGES.items() for name in names]
    if encoding:
        named.append((SELF_CHECK, "pipeline:decode_image", True))
    undo: list[tuple[Any, str, Any]] = []

    def replace(f: Any, by: Any, places: Iterable[tuple[Any, str]] = ()) -> None:
        """In all modules that hold it under whatever name."""
        modules = [m for n, m in list(sys.modules.items()) if n.startswith("vbc.")]
        held = [(m, key) for m in modules for key, value in list(vars(m).items()) if value is f]
        for place, key in places or held:
            undo.append((place, key, f))
            setattr(place, key, by)

    try:
        for stage, name, closed in named:
            try:
                owner, attribute, f = resolve(name)
            except (AttributeError, ImportError):
                say(f"note: no {name}; its time counts as {REST}")
                continue
            method = [(owner, attribute)] if isinstance(owner, type) else ()
            replace(f, watch.wrap(stage, f, closed), method)
        replace(ThreadPoolExecutor, InTurn)
        yield
    finally:
        for place, key, f in undo:
            setattr(place, key, f)


# One size, in a process of its own


def picture(size: int, folder: Path | None) -> Rgb:
    """A square picture: generated, or photographs side by side. uint8 [size, size, 3]."""
    if folder is None:
        from vbc.codec.example import make_example

        side = min(size, 1024)
        part = make_example(side, side)
        return np.ascontiguousarray(np.tile(part, (-(-size // side), -(-size // side), 1))[:size, :size])
    out = np.empty((size, size, 3), np.uint8)
    photos = [common.load_photo(f).rgb for f in common.image_files(folder)]
    y = n = 0
    while y < size:
        x = 0
        height = min(p.shape[0] for p in photos)
        while x < size:
            part = photos[n % len(photos)][:height, : size - x][: size - y]
            out[y : y + part.shape[0], x : x + part.shape[1]] = part
            x, n = x + part.shape[1], n + 1
        y += height
    return out


def forget_peak() -> None:
    """Have `peak_mb` count from now on, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Peak memory of this process since `forget_peak`, or since it began, in MB."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def devices() -> list[str]:
    """Where the networks can run on this machine."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def measure_size(args: argparse.Namespace) -> Iterator[Row]:
    """Every mode and the rivals at one size: times, stages, peak memory. Runs in a process of its own."""
    import torch

    from vbc.codec import api

    size, threads = args.one
    torch.set_num_threads(threads)
    settle = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    model = api.load(args.model)
    rgb = picture(size, args.folder)
    warm = rgb[:64, :64]
    modes = LARGE_MODES if size >= LARGE else tuple(MODES)
    repeats = 1 if args.quick else REPEATS
    for mode in modes:
        codec = rivals.ours(model, mode, device=args.device, **MODES[mode])
        codec.decode(codec.encode(warm))
        data = b""
        for way in ("encode", "decode"):
            work = partial(codec.encode, rgb) if way == "encode" else partial(codec.decode, data)
            forget_peak()
            start_mb = peak_mb()
            result, time_s = common.timed(work, repeats, BUDGET_S)
            memory = {"start_mb": start_mb, "peak_mb": peak_mb()}
            data = result if way == "encode" else data
            watch = Stopwatch(settle)
            with watched(watch, way == "encode"):
                _, watched_s = watch.run(work)
            stages = sorted(watch.times.items(), key=lambda t: -t[1])
            about = {"codec": rivals.OURS, "setting": mode, "way": way, "size": size}
            about |= {"threads": threads, "device": args.device}
            timing = {"stages_s": {k: round(v, 6) for k, v in stages}, "watched_s": watched_s}
            yield about | speed_row(rgb, data, time_s) | timing | memory
    if size <= RIVALS_UP_TO and args.rivals:
        for codec in speed_rivals():
            yield from both_ways(codec, rgb, repeats, {"size": size, "threads": 1, "device": "cpu"})


def speed_rivals() -> list[Codec]:
    """What ours is compared with in the same run, one thread."""
    return [
        rivals.jxl("jpeg_xl", LOSSLESS_RIVAL, lossless=True, effort=7),
        rivals.jxl("jpeg_xl", RIVAL_OF["lossy"], distance=1.0, effort=7),
        rivals.pillow("png", "optimize", "PNG", optimize=True),
    ]


def both_ways(codec: Codec, rgb: Rgb, repeats: int, about: Row) -> Iterator[Row]:
    """Encoding and decoding of one picture."""
    about = {"codec": codec.name, "setting": codec.setting} | about
    data, time_s = common.timed(partial(codec.encode, rgb), repeats, BUDGET_S)
    yield about | {"way": "encode"} | speed_row(rgb, data, time_s)
    _, time_s = common.timed(partial(codec.decode, data), repeats, BUDGET_S)
    yield about | {"way": "decode"} | speed_row(rgb, data, time_s)


def speed_row(rgb: Rgb, data: bytes, time_s: float) -> Row:
    """Time, throughput and rate."""
    n_pixels = rgb.shape[0] * rgb.shape[1]
    return {
        "n_pixels": n_pixels,
        "n_bytes": len(data),
        "rate_bpp": 8 * len(data) / n_pixels,
        "time_s": time_s,
        "speed_mps": n_pixels / time_s / 1e6,
    }


def each_size(args: argparse.Namespace) -> Iterator[Row]:
    """All sizes, smallest first: with one thread, with as many as asked for, on each other device."""
    for size in args.sizes:
        threads_of = {"cpu": sorted({1, args.threads} if size <= ONE_THREAD_UP_TO else {args.threads})}
        runs = [(n, d) for d in args.devices for n in threads_of.get(d, [args.threads])]
        for i, (threads, device) in enumerate(runs):
            command = [sys.executable, "-m", "bench.speed", "--one", str(size), str(threads)]
            command += ["--device", device]
            command += ["--model", str(args.model)] if args.model else []
            command += ["--quick"] if args.quick else []
            command += ["--rivals"] if i == 0 else []
            command += [str(args.folder)] if args.folder else []
            say(f"{size} x {size}, {threads} threads, {device}")
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                for line in child.stdout:
                    yield json.loads(line)
            if child.returncode:
                about = {"size": size, "threads": threads, "device": device}
                yield {"error": f"exit code {child.returncode}"} | about


def ratios(rows: list[Row]) -> Iterator[Row]:
    """How many times as fast as JPEG XL e7 of the same kind and as PNG ours is, size by size."""
    speeds = {(r["codec"], r["setting"], r["size"], r["way"]): r["speed_mps"] for r in rows}
    for r in rows:
        rival = speeds.get(("jpeg_xl", RIVAL_OF.get(r["setting"], LOSSLESS_RIVAL), r["size"], r["way"]))
        png = speeds.get(("png", "optimize", r["size"], r["way"]))
        if r["codec"] == rivals.OURS and rival and png:
            about = {key: r[key] for key in ("setting", "way", "size", "threads", "device")}
            speed = r["speed_mps"]
            yield about | {"ratio_to_jpeg_xl_e7": speed / rival, "ratio_to_png": speed / png}


def scaling(rows: list[Row]) -> Iterator[Row]:
    """How time grows with pixels, for each mode and way.

    The slope of log time over log pixels, 1 being linear.
    """
    keys = ("codec", "setting", "way", "threads", "device")
    for values, found in common.group(rows, *keys).items():
        if len(found) > 1:
            x, y = (np.log([r[key] for r in found]) for key in ("n_pixels", "time_s"))
            slope = float(np.polyfit(x, y, 1)[0])
            about = dict(zip(keys, values, strict=True))
            yield about | {"exponent": slope, "sizes": [r["size"] for r in found]}


# Photographs as they are


def measure_photos(
    photos: list[common.Photo], model_path: Path | None, device: str, repeats: int
) -> Iterator[Row]:
    """Our modes and JPEG XL in turns on each photograph: median time of each image and way."""
    from vbc.codec import api

    model = api.load(model_path)
    codecs = [rivals.ours(model, mode, device=device, **options) for mode, options in MODES.items()]
    codecs += speed_rivals()
    for codec in codecs:
        codec.decode(codec.encode(photos[0].rgb[:64, :64]))
    for photo in photos:
        coded = [codec.encode(photo.rgb) for codec in codecs]
        times: dict[tuple[int, str], list[float]] = {}
        for _ in range(repeats):
            for i, codec in enumerate(codecs):
                for way, work in (
                    ("encode", partial(codec.encode, photo.rgb)),
                    ("decode", partial(codec.decode, coded[i])),
                ):
                    times.setdefault((i, way), []).append(common.timed(work)[1])
        for (i, way), found in times.items():
            about = {"codec": codecs[i].name, "setting": codecs[i].setting, "way": way, "image": photo.name}
            yield about | speed_row(photo.rgb, coded[i], statistics.median(found))


def summarise_photos(rows: list[Row], threads: int, device: str) -> Iterator[Row]:
    """Pixels over seconds of all photographs, and how many times as fast as JPEG XL e7 of the same kind."""
    speeds = {}
    for key, found in common.group(rows, "codec", "setting", "way").items():
        speeds[key] = sum(r["n_pixels"] for r in found) / sum(r["time_s"] for r in found) / 1e6
    for (codec, setting, way), found in common.group(rows, "codec", "setting", "way").items():
        rival = speeds[
            "jpeg_xl", setting if codec == "jpeg_xl" else RIVAL_OF.get(setting, LOSSLESS_RIVAL), way
        ]
        speed = speeds[codec, setting, way]
        yield {
            "codec": codec,
            "setting": setting,
            "way": way,
            "threads": threads if codec == rivals.OURS else 1,
            "device": device if codec == rivals.OURS else "cpu",
            "n_images": len(found),
            "speed_mps": speed,
            "rate_bpp": common.mean(r["rate_bpp"] for r in found),
            "ratio_to_jpeg_xl_e7": speed / rival,
            "ratio_to_png": speed / speeds["png", "optimize", way],
        }


# Start-up


def startup(model: Path | None, repeats: int) -> Iterator[Row]:
    """Seconds of whole processes: help, info, and the decoding of a small file.

    The decoding loads torch and the weights.
    """
    from vbc.codec import api

    rgb = picture(64, None)
    with tempfile.TemporaryDirectory() as folder:
        coded = Path(folder, "small.vbc")
        coded.write_bytes(api.encode(rgb, model=model))
        weights = ["--model", str(model)] if model else []
        commands = {
            "codec --help": ["--help"],
            "codec info": ["info", str(coded)],
            "codec decode": ["decode", str(coded), "-o", str(Path(folder, "small.png")), *weights],
        }
        for name, words in commands.items():
            run = partial(
                subprocess.run, [sys.executable, "-m", "vbc.codec", *words], check=True, capture_output=True
            )
            run()  # leaves compiled modules behind
            _, time_s = common.timed(run, repeats, math.inf)
            yield {"command": name, "time_s": time_s, "repeats": repeats}


def report_row(row: Row) -> None:
    """One line for people, and the stages below it."""
    if "error" in row:
        say(f"  {row['error']}")
        return
    peak = f"  peak {row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
    say(f"  {row['codec']:8} {row['setting']:12} {row['way']}  {row['speed_mps']:8.3f} MP/s{peak}")
    for stage, time_s in row.get("stages_s", {}).items():
        share = time_s / row["watched_s"]
        say(f"      {stage:25} {1000 * time_s:10.1f} ms {share:6.1%} {'#' * round(40 * share)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a size fails."""
    p = common.parser("speed", __doc__, folder=False)
    p.add_argument("--threads", type=int, default=2, help="of our codec [default: %(default)s]")
    p.add_argument("--sizes", type=int, nargs="+", help="sides of the square pictures")
    p.add_argument("--photos", action="store_true", help="measure the photographs of DIR as they are")
    p.add_argument(
        "--repeats", type=int, default=REPEATS, help="for photographs and start-up [default: %(default)s]"
    )
    p.add_argument(
        "--device", help="of our codec's networks [default: each that is there; for photographs the CPU]"
    )
    p.add_argument("--one", type=int, nargs=2, metavar=("SIZE", "THREADS"), help=argparse.SUPPRESS)
    p.add_argument("--rivals", action="store_true", help=argparse.SUPPRESS)
    args = common.parse(p, argv)
    if args.one:
        args.device = args.device or "cpu"
        for row in measure_size(args):
            print(json.dumps(row), flush=True)
        return 0
    if args.photos and args.folder is None:
        p.error("--photos needs DIR")
    if args.quick:
        args.repeats = 1
    args.sizes = args.sizes or (QUICK_SIZES if args.quick else SIZES)
    if args.device not in (None, *devices()):
        p.error(f"no {args.device} here; there is {', '.join(devices())}")
    args.devices = [args.device] if args.device else devices()
    import torch

    torch.set_num_threads(args.threads)
    failed = False
    with Results(args.out, "speed_photos" if args.photos else "speed", args) as results:
        for row in startup(args.model, args.repeats):
            results.add("startup", **row)
            say(f"{row['command']:14} {row['time_s']:.3f} s")
        rows = []
        if args.photos:
            photos = [common.load_photo(f) for f in common.image_files(args.folder, args.images)]
            for row in measure_photos(photos, args.model, args.device or "cpu", args.repeats):
                rows.append(results.add("row", **row))
            for row in summarise_photos(rows, args.threads, args.device or "cpu"):
                results.add("summary", **row)
                ratio = row["ratio_to_jpeg_xl_e7"]
                say(
                    f"{row['codec']:8} {row['setting']:12} {row['way']} {row['speed_mps']:8.3f} MP/s  "
                    f"{ratio:7.2f} x JPEG XL e7"
                )
            return 0
        for row in each_size(args):
            failed |= "error" in row
            results.add("error" if "error" in row else "summary", **row)
            rows += [] if "error" in row else [row]
            report_row(row)
        for row in ratios(rows):
            results.add("ratio", **row)
            say(
                f"{row['setting']:12} {row['way']} {row['size']:5} {row['threads']} threads {row['device']} "
                f"{row['ratio_to_jpeg_xl_e7']:7.2f} x JPEG XL e7, {row['ratio_to_png']:7.2f} x PNG"
            )
        for row in scaling(rows):
            results.add("scaling", **row)
            say(
                f"{row['codec']:8} {row['setting']:12} {row['way']} "
                f"time ~ pixels^{row['exponent']:.3f}, {row['threads']} threads, {row['device']}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
