"""Check the codec on CUDA: `python tests/gpu_check.py [PICTURES] [-k NAMES]`; one JSON line per check.

Needs a CUDA device and the packages of pyproject.toml, but no installation of the checkout. Runs the kernel
tests on the device; decodes the golden files there; writes pictures on the CPU and decodes every level on
CUDA, and the other way round, comparing SHA-256; damages files; then times whole images. PICTURES is a
folder of images; without one, generated pictures are used. The first line names the machine. Exit status 1
where a check failed, 4 where there is no CUDA device.
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

os.environ["VBC_KERNEL_DEVICE"] = "cuda"
os.environ.pop("TRITON_INTERPRET", None)
# triton 3.9 warns where it is unset; warnings are errors
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import checkout  # before vbc
import numpy as np
import pytest
import torch
from checks import decoded_hash, rebuild
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import FormatError
from vbc.codec.example import make_example

HERE = checkout.ROOT / "tests"
SIZES = ((512, 768), (301, 517), (1100, 1203), (1, 1), (1, 90), (64, 3))
"""Of generated pictures: one block and several, odd sides, the smallest."""
BATCH, SIDE, STREAMS = 32, 1024, 8
KINDS: dict[str, dict[str, Any]] = {
    "archival": {"levels": 0, "lossless": True},
    "layered": {"levels": 3, "lossless": True},
    "lossy": {"levels": 3, "quality": 80},
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


def kernel_tests() -> None:
    """All tests/test_kernel_*.py on CUDA."""
    files = sorted(str(p) for p in HERE.glob("test_kernel_*.py"))
    options = ["--tb=short", "-p", "no:cacheprovider", f"--rootdir={HERE.parent}"]
    if pytest.main([*options, *files], plugins=[Lines()]):
        failed.append("kernel tests")


def golden_files() -> None:
    """Every level of every golden file, by the tiny model."""
    from vbc.codec.model import load_model
    from vbc.codec.pipeline import decode_image

    folder = HERE / "golden"
    model = load_model(folder / "tiny.safetensors").to("cuda")
    for name, answers in json.loads((folder / "answers.json").read_text()).items():

        def work(name: str = name, answers: dict[str, str] = answers) -> dict[str, Any]:
            data = (folder / name).read_bytes()
            for n, want in answers.items():
                decoded = decode_image(data, model=model, levels=int(n))
                demand(decoded.rgb.is_cuda, "decoded elsewhere")
                demand(decoded_hash(decoded) == want, f"level {n} differs")
            return {"levels": len(answers)}

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
    from vbc.codec.model import load_model
    from vbc.codec.pipeline import decode_image, encode_image

    cpu = load_model()
    models = {"cpu": cpu, "cuda": cpu.to("cuda")}
    for kind, options in KINDS.items():
        for writer, reader in (("cpu", "cuda"), ("cuda", "cpu")):

            def work(
                options: dict[str, Any] = options, writer: str = writer, reader: str = reader
            ) -> dict[str, Any]:
                data = encode_image(rgb, model=models[writer], **options)
                count = len(container.level_ends(container.unpack_header(data)))
                for n in range(1, count + 1):
                    a, b = (decode_image(data, model=models[m], levels=n) for m in (writer, reader))
                    demand(decoded_hash(a) == decoded_hash(b), f"level {n} of {count} differs")
                if options.get("lossless"):
                    demand(torch.equal(b.rgb.cpu(), rgb), "not lossless")
                return {"n_bytes": len(data), "levels": count}

            check(f"{kind} {name} {writer} to {reader}", work)


def damage() -> None:
    """Files with right checksums and wrong payloads have the same outcome on both devices."""
    from vbc.codec.model import load_model
    from vbc.codec.pipeline import decode_image, encode_image

    cpu = load_model(HERE / "golden" / "tiny.safetensors")
    models = (cpu, cpu.to("cuda"))
    rgb = torch.from_numpy(make_example(150, 120).copy()).permute(2, 0, 1)
    data = encode_image(rgb, model=cpu, lossless=True)
    header = container.unpack_header(data)
    rng = np.random.default_rng(1)

    def outcome(broken: bytes, model: Any) -> str:
        try:
            return decoded_hash(decode_image(broken, model=model))
        except FormatError as e:
            return type(e).__name__

    def work() -> dict[str, Any]:
        seen: dict[str, int] = {}
        for _ in range(100):
            parts = [bytearray(container.read_chunk(data, header, i)) for i in range(len(header.chunks))]
            part = parts[rng.integers(0, len(parts))]
            part[rng.integers(0, len(part))] ^= int(rng.integers(1, 256))
            broken = rebuild(header, parts)
            want, have = (outcome(broken, m) for m in models)
            demand(want == have, f"{want} on the CPU, {have} on CUDA")
            key = want if len(want) < 64 else "a picture"
            seen[key] = seen.get(key, 0) + 1
        return {"outcomes": seen}

    check("damaged payloads", work)


def throughput(device_name: str) -> None:
    """Whole lossless images of a megapixel, encoded with their check, and decoded: bytes of pixels a second.

    One after the other, and on several threads with a CUDA stream each.
    """
    from vbc.codec.model import load_model
    from vbc.codec.pipeline import decode_image, encode_image

    model = load_model().to("cuda")
    whole = make_example(SIDE + BATCH, SIDE + BATCH)
    images = [
        torch.from_numpy(whole[i : i + SIDE, i : i + SIDE].copy()).permute(2, 0, 1).cuda()
        for i in range(BATCH)
    ]
    n_bytes = BATCH * 3 * SIDE * SIDE

    def on_stream(work: Callable[[Any], Any], item: Any) -> Any:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            result = work(item)
        stream.synchronize()
        return result

    def rate(work: Callable[[Any], Any], items: list[Any], threads: int) -> tuple[float, list[Any]]:
        torch.cuda.synchronize()
        started = time.perf_counter()
        if threads == 1:
            results = [work(item) for item in items]
        else:
            with ThreadPoolExecutor(threads) as pool:
                results = list(pool.map(lambda item: on_stream(work, item), items))
        torch.cuda.synchronize()
        return n_bytes / 1e6 / (time.perf_counter() - started), results

    for kind in ("archival", "layered"):
        for effort in (0, 1):
            options = KINDS[kind] | {"effort": effort}

            def encode(rgb: Tensor, options: dict[str, Any] = options) -> bytes:
                return encode_image(rgb, model=model, **options)

            def decode(data: bytes) -> Tensor:
                return decode_image(data, model=model).rgb

            decode(encode(images[0]))  # kernels are compiled and tested
            for threads in (1, STREAMS):

                def work(
                    encode: Callable[[Tensor], bytes] = encode, threads: int = threads
                ) -> dict[str, Any]:
                    encode_rate, files = rate(encode, images, threads)
                    decode_rate, decoded = rate(decode, files, threads)
                    same = all(torch.equal(a, b) for a, b in zip(decoded, images, strict=True))
                    demand(same, "not lossless")
                    return {
                        "device": device_name,
                        "images": BATCH,
                        "bpsp": round(8 * sum(map(len, files)) / n_bytes, 4),
                        "encode_MB_s": round(encode_rate, 2),
                        "decode_MB_s": round(decode_rate, 2),
                    }

                check(f"throughput {kind} effort {effort} threads {threads}", work)


def main() -> int:
    """Run all checks, or those of the groups named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="?", type=Path, help="folder of images; else generated ones")
    groups = ("kernels", "golden", "pictures", "damage", "throughput")
    parser.add_argument("-k", "--only", nargs="+", choices=groups, default=groups, help="groups of checks")
    options = parser.parse_args()
    if options.pictures is not None and not options.pictures.is_dir():
        parser.error(f"{options.pictures} is no folder")
    if not torch.cuda.is_available():
        say(error=f"torch {torch.__version__} sees no CUDA device")
        return 4
    import triton

    name = torch.cuda.get_device_name()
    say(device=name, torch=torch.__version__, triton=triton.__version__)
    if "kernels" in options.only:
        kernel_tests()
    if "golden" in options.only:
        golden_files()
    if "pictures" in options.only:
        for title, rgb in pictures(options.pictures):
            both_ways(title, rgb)
    if "damage" in options.only:
        damage()
    if "throughput" in options.only:
        throughput(name)
    say(done=True, failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
