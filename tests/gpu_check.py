"""Check the codec on CUDA: `python tests/gpu_check.py [PICTURES] [-k NAMES]`; one JSON line per check.

Needs a CUDA device and the packages of pyproject.toml, but no installation of the checkout. Runs the kernel
tests on the device; decodes the golden files there; writes pictures on the CPU and decodes every level on
CUDA, and the other way round, comparing SHA-256; decodes regions; damages files; decodes lists of files, as
one batch and one by one; then times lossless pictures, one large one and many at a time. PICTURES is a folder
of images; without one, generated pictures are used. The first line names the machine. Exit status 1 where a
check failed, 4 where there is no CUDA device.

`--device cpu` tries the checks themselves where there is no such device: torch runs the device's path on
the CPU, small numbers of everything, without the kernel tests.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# the kernels are defined for a device when they are imported
os.environ["VBC_KERNEL_DEVICE"] = "cpu" if {"cpu", "--device=cpu"} & {*sys.argv} else "cuda"
os.environ.pop("TRITON_INTERPRET", None)
# triton 3.9 warns where it is unset; warnings are errors
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import checkout  # before vbc
import numpy as np
import pytest
import torch
from checks import decode_answer, decoded_hash
from torch import Tensor
from torture.material import rewritten

from vbc.bitstream import container
from vbc.bitstream.errors import FormatError
from vbc.codec import api
from vbc.codec.example import make_example
from vbc.codec.flow import decode_list
from vbc.codec.model import Model, load_model, place
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings

HERE = checkout.ROOT / "tests"
TINY = HERE / "golden" / "tiny.safetensors"
DEVICE = os.environ["VBC_KERNEL_DEVICE"]
DRY = DEVICE == "cpu"
SIZES = (
    ((40, 530), (1, 1), (1, 90))
    if DRY
    else (
        (512, 768),
        (301, 517),
        (1100, 1203),
        (1, 1),
        (1, 90),
        (64, 3),
        (40, 2100),
    )
)
"""Of generated pictures: one group a level and several, odd sides, the smallest."""
REGIONS = 3 if DRY else 16
"""Random regions of each file."""
DAMAGED = 10 if DRY else 200
LARGE_SIDE = 128 if DRY else 4096
"""Of the one picture whose decoding is timed."""
BATCH, SIDE, STREAMS = (2, 64, 2) if DRY else (32, 1024, 8)
"""Many pictures: how many, how large, and how many at a time."""
LIST_SIZES = ((4, 40, 50),) if DRY else ((256, 64, 64), (64, 301, 517))
"""Of lists of pictures: how many, and their height and width."""
REPEATS = 1 if DRY else 3
KINDS = {
    "archival": EncodeSettings(levels=0, lossless=True),
    "tuned": EncodeSettings(levels=0, lossless=True, effort=2),
    "layered": EncodeSettings(lossless=True),
    "lossy": EncodeSettings(quality=80),
    "refined": EncodeSettings(quality=80, refinements=1),
}
TIMED = {
    f"{kind} effort {effort}": EncodeSettings(levels=levels, lossless=True, effort=effort)
    for kind, levels in (("archival", 0), ("layered", 3))
    for effort in (0, 1)
}

failed: list[str] = []


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def check(name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Run one check and print its line; an exception is a failure."""
    started = time.perf_counter()
    line: dict[str, Any] = {"check": name}
    try:
        line |= {"outcome": "passed"} | work()
    except Exception as e:  # one failed check stops no other
        line |= {"outcome": "failed", "error": f"{type(e).__name__}: {e}"[-2000:]}
        failed.append(name)
    say(**line, time_s=round(time.perf_counter() - started, 3))


def demand(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


class Lines:
    """A pytest plugin that prints each test's outcome as it ends, in place of pytest's own report."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Take pytest's reporter out."""
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line per call, and one for a set-up or tear-down that went wrong or skipped."""
        if report.when != "call" and report.passed:
            return
        line = {
            "check": report.nodeid.rsplit("/", 1)[-1],
            "outcome": report.outcome,
            "time_s": round(report.duration, 3),
        }
        if report.failed:
            line["error"] = str(report.longrepr)[-2000:]
        elif report.skipped and isinstance(report.longrepr, tuple):
            line["reason"] = report.longrepr[2]
        print(json.dumps(line), flush=True)


def on_device(model: Model) -> Model:
    """The model where the checks run."""
    return place(model, torch.device("cpu")) if DRY else model.to(DEVICE)


def wait() -> None:
    """Until the device has done what it was given."""
    if not DRY:
        torch.cuda.synchronize()


def kernel_tests() -> None:
    """All of tests/kernels on CUDA."""
    files = sorted(str(p) for p in (HERE / "kernels").glob("test_*.py"))
    options = ["--tb=short", "-p", "no:cacheprovider", f"--rootdir={HERE.parent}"]
    if not files or pytest.main([*options, *files], plugins=[Lines()]):
        failed.append("kernel tests")


def golden_files() -> None:
    """Every answer of every golden file, by the tiny model.

    Dry, of every fifth one: tests/codec/test_device.py has them all.
    """
    model = on_device(load_model(TINY))
    known = json.loads((TINY.parent / "answers.json").read_text())
    for name, answers in list(known.items())[:: 5 if DRY else 1]:

        def work(name: str = name, answers: dict[str, str] = answers) -> dict[str, Any]:
            data = (TINY.parent / name).read_bytes()
            for answer, want in answers.items():
                decoded = decode_answer(data, model, answer)
                demand(decoded.rgb.device.type == DEVICE, "decoded elsewhere")
                demand(decoded_hash(decoded) == want, f"{answer} differs")
            return {"answers": len(answers)}

        check(f"golden {name}", work)


def pictures(folder: Path | None) -> Iterator[tuple[str, Tensor]]:
    """uint8 [3, H, W] each."""
    if folder is None:
        for h, w in SIZES:
            whole = make_example(max(64, w), max(64, h))
            yield f"{w}x{h}", torch.from_numpy(whole[:h, :w].copy()).permute(2, 0, 1)
        return
    from vbc.codec.files.image_io import INPUT_SUFFIXES, read_picture

    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in INPUT_SUFFIXES):
        yield path.name, torch.from_numpy(read_picture(path.read_bytes()).rgb.copy()).permute(2, 0, 1)


def both_ways(name: str, rgb: Tensor) -> None:
    """Written here and read there, level by level, and the other way round, by the shipped model."""
    cpu = load_model()
    models = {"cpu": cpu, "device": on_device(cpu)}
    for kind, settings in KINDS.items():
        for writer, reader in (("cpu", "device"), ("device", "cpu")):

            def work(
                settings: EncodeSettings = settings, writer: str = writer, reader: str = reader
            ) -> dict[str, Any]:
                data = encode_image(rgb, model=models[writer], settings=settings)
                count = len(container.levels_present(container.unpack_header(data)))
                for n in range(1, count + 1):
                    a, b = (decode_image(data, model=models[m], levels=n) for m in (writer, reader))
                    demand(decoded_hash(a) == decoded_hash(b), f"level {n} of {count} differs")
                if settings.lossless:
                    demand(torch.equal(b.rgb.cpu(), rgb), "not lossless")
                return {"n_bytes": len(data), "levels": count}

            check(f"{kind} {name} {writer} to {reader}", work)


def regions(name: str, rgb: Tensor) -> None:
    """Regions decoded on the device are parts of the picture that the CPU decodes."""
    cpu = load_model()
    device = on_device(cpu)
    height, width = rgb.shape[1:]
    rng = np.random.default_rng(2)
    for kind, settings in KINDS.items():

        def work(settings: EncodeSettings = settings) -> dict[str, Any]:
            data = encode_image(rgb, model=cpu, settings=settings)
            count = len(container.levels_present(container.unpack_header(data)))
            for i in range(REGIONS):
                levels = count if i % 2 else int(rng.integers(1, count + 1))
                whole = decode_image(data, model=cpu, levels=levels).rgb
                (x, end_x), (y, end_y) = (
                    sorted(rng.choice(size + 1, 2, replace=False).tolist()) for size in (width, height)
                )
                region = (x, y, end_x - x, end_y - y)
                part = decode_image(data, model=device, levels=levels, region=region).rgb
                same = torch.equal(part.cpu(), whole[:, y:end_y, x:end_x])
                demand(same, f"region {region} of {levels} levels differs")
            return {"regions": REGIONS}

        check(f"regions {kind} {name}", work)


def damage() -> None:
    """Files with right checksums and wrong payloads have the same outcome on both devices, and so have files
    of which packets are missing."""
    cpu = load_model(TINY)
    models = (cpu, on_device(cpu))
    rgb = torch.from_numpy(make_example(530, 530)[:60].copy()).permute(2, 0, 1)
    rng = np.random.default_rng(1)

    def outcome(broken: bytes, model: Model, **options: Any) -> str:
        try:
            return decoded_hash(decode_image(broken, model=model, **options))
        except FormatError as e:
            return type(e).__name__

    def work(settings: EncodeSettings) -> dict[str, Any]:
        data = encode_image(rgb, model=cpu, settings=settings)
        header = container.unpack_header(data)
        seen: dict[str, int] = {}
        for i in range(DAMAGED):
            parts = [
                (packet.unit, packet.part, bytearray(data[slice(*header.span(j))]))
                for j, packet in enumerate(header.packets)
            ]
            part = parts[rng.integers(0, len(parts))][2]
            part[rng.integers(0, len(part))] ^= int(rng.integers(1, 256))
            packed = rewritten(header, [(unit, number, bytes(body)) for unit, number, body in parts])
            # with the old checksums the changed packet counts as missing
            missing = data[: header.header_bytes] + packed[len(packed) - len(data) + header.header_bytes :]
            broken, options = (packed, {}) if i % 2 else (missing, {"allow_partial": True})
            want, have = (outcome(broken, model, **options) for model in models)
            demand(want == have, f"{want} on the CPU, {have} on the device")
            key = want if len(want) < 64 else "a picture"
            seen[key] = seen.get(key, 0) + 1
        return {"outcomes": seen}

    for kind in ("archival", "layered"):
        check(f"damaged payloads, {kind}", lambda settings=KINDS[kind]: work(settings))


def lists(device_name: str) -> None:
    """Files that are decoded together give what each gives on the CPU; how long both ways take on the
    device."""
    cpu = load_model()
    model = on_device(cpu)
    for n, height, width in LIST_SIZES:
        whole = make_example(width + n, height + n)
        pictures = [
            torch.from_numpy(whole[i : i + height, i : i + width].copy()).permute(2, 0, 1) for i in range(n)
        ]
        for kind, settings in KINDS.items():

            def work(
                settings: EncodeSettings = settings, pictures: list[Tensor] = pictures
            ) -> dict[str, Any]:
                files = [encode_image(rgb, model=cpu, settings=settings) for rgb in pictures]
                ways = {
                    "together": lambda: api.decode_images(files, DEVICE, model=model),
                    "one_by_one": lambda: [api.decode_image(data, DEVICE, model=model) for data in files],
                }
                times = {}
                for name, decode in ways.items():
                    decode()  # kernels are compiled and tested
                    wait()
                    started = time.perf_counter()
                    decoded = decode()
                    wait()
                    times[f"{name}_s"] = round(time.perf_counter() - started, 4)
                    for data, rgb in zip(files, decoded, strict=True):
                        demand(rgb.device.type == DEVICE, "decoded elsewhere")
                        demand(torch.equal(rgb.cpu(), decode_image(data, model=cpu).rgb), f"{name} differs")
                batches = decode_list.batches([container.unpack_header(data) for data in files])
                demand(len(batches) < len(files), "nothing goes together")
                return {"device": device_name, "images": len(files), "batches": len(batches), **times}

            check(f"lists {kind} {n} of {width}x{height}", work)


def throughput(device_name: str) -> None:
    """Lossless pictures, encoded with their check, and decoded: bytes of pixels a second.

    One large one; and many of a megapixel, one after the other, and on several threads with a stream each.
    """
    model = on_device(load_model())
    whole = make_example(SIDE + BATCH, SIDE + BATCH)
    many = [torch.from_numpy(whole[i : i + SIDE, i : i + SIDE].copy()).permute(2, 0, 1) for i in range(BATCH)]
    repeats = -(-LARGE_SIDE // whole.shape[0])
    large = torch.from_numpy(np.tile(whole, (repeats, repeats, 1))[:LARGE_SIDE, :LARGE_SIDE].copy())
    sets = {
        "one picture": ([large.permute(2, 0, 1)], 1),
        "many pictures": (many, 1),
        f"many pictures, {STREAMS} at a time": (many, STREAMS),
    }

    def on_stream(work: Callable[[Any], Any], item: Any) -> Any:
        if DRY:
            return work(item)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            result = work(item)
        stream.synchronize()
        return result

    def timed(work: Callable[[Any], Any], items: list[Any], threads: int) -> tuple[float, list[Any]]:
        wait()
        started = time.perf_counter()
        if threads == 1:
            results = [work(item) for item in items]
        else:
            with ThreadPoolExecutor(threads) as pool:
                results = list(pool.map(lambda item: on_stream(work, item), items))
        wait()
        return time.perf_counter() - started, results

    for kind, settings in TIMED.items():

        def encode(rgb: Tensor, settings: EncodeSettings = settings) -> bytes:
            return encode_image(rgb, model=model, settings=settings)

        def decode(data: bytes) -> Tensor:
            return decode_image(data, model=model).rgb

        for name, (pictures, threads) in sets.items():

            def work(
                encode: Callable[[Tensor], bytes] = encode,
                pictures: list[Tensor] = pictures,
                threads: int = threads,
            ) -> dict[str, Any]:
                images = [picture.to(model.device) for picture in pictures]
                decode(encode(images[0]))  # kernels are compiled and tested
                encode_s, files = timed(encode, images, threads)
                runs = [timed(decode, files, threads) for _ in range(REPEATS)]
                for _, decoded in runs:
                    same = all(torch.equal(a, b) for a, b in zip(decoded, images, strict=True))
                    demand(same, "not lossless")
                n_bytes = sum(image.numel() for image in images)
                return {
                    "device": device_name,
                    "images": len(images),
                    "side": images[0].shape[1],
                    "bpsp": round(8 * sum(map(len, files)) / n_bytes, 4),
                    "encode_MB_s": round(n_bytes / 1e6 / encode_s, 2),
                    "decode_MB_s": round(n_bytes / 1e6 / min(seconds for seconds, _ in runs), 2),
                }

            check(f"throughput {kind}, {name}", work)


def main() -> int:
    """Run all checks, or those of the groups named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="?", type=Path, help="folder of images; else generated ones")
    groups = ("kernels", "golden", "pictures", "regions", "damage", "lists", "throughput")
    parser.add_argument(
        "-k",
        "--only",
        nargs="+",
        choices=groups,
        default=groups[1:] if DRY else groups,
        help="groups of checks",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the checks, no result"
    )
    options = parser.parse_args()
    if options.pictures is not None and not options.pictures.is_dir():
        parser.error(f"{options.pictures} is no folder")
    if DRY:
        say(device="cpu", torch=torch.__version__, dry_run=True)
        name = "cpu"
    elif torch.cuda.is_available():
        import triton

        name = torch.cuda.get_device_name()
        say(device=name, torch=torch.__version__, triton=triton.__version__)
    else:
        say(error=f"torch {torch.__version__} sees no CUDA device")
        return 4
    if "kernels" in options.only:
        kernel_tests()
    if "golden" in options.only:
        golden_files()
    for title, rgb in pictures(options.pictures):
        if "pictures" in options.only:
            both_ways(title, rgb)
        if "regions" in options.only:
            regions(title, rgb)
    if "damage" in options.only:
        damage()
    if "lists" in options.only:
        lists(name)
    if "throughput" in options.only:
        throughput(name)
    say(done=True, failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
