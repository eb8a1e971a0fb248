"""Same bytes in, same pixels out: one mismatch fails.

Hashes of every level across threads, batches, concurrent decoding, groups in other batches and orders, files
that arrive in pieces, regions, slower paths, Triton's kernels and the devices at hand.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from bench import common, rivals
from bench.common import Results, Rgb, say
from vbc.bitstream import container
from vbc.bitstream.source import MemorySource
from vbc.codec import api, pipeline
from vbc.codec.flow.decode_plan import make_plan, read_packets
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.incremental import IncrementalReader
from vbc.kernels import conv, dispatch

if TYPE_CHECKING:
    from vbc.codec.model import Model

THREADS = (1, 2, 4)
BATCH = 8
CONCURRENT = 4
ORDERS = 3
"""Random orders of groups, each level's own."""
REGIONS = 8
"""Random regions of each file, beside one pixel and all of it."""
PIECES = (7, 4099)
"""Bytes of the pieces in which files arrive."""
WIDE = (40, 1100)
"""Rows and columns of a picture that has several groups a level, made of the first image."""
REFERENCE_SIDE = 96
"""Side of the crop for the int64 reference, which is a hundred times slower."""
INTERPRETED_SIDE = 24
"""Side of the crop for Triton's interpreter, which is slower still."""
PATHS = ("float32", "int64")
DEVICE_SIDE = 64
"""Side of the crop for the device's path run by torch on the CPU."""
QUALITIES = (0, 100)
"""Of the lossy files; the layered one has the default."""
IMAGES = 4
"""Unless told otherwise: every hash is a decode, and there are about 200 an image."""
QUICK_SIDE = 160
"""Side of the crop of one image in a quick run."""

Hashes = dict[str, str]


def digest(picture: Rgb | torch.Tensor) -> str:
    """First 16 hexadecimal digits of SHA-256 over the shape and the samples.

    picture: uint8 [H, W, 3], or a tensor [C, H, W].
    """
    rgb = picture.permute(1, 2, 0).cpu().numpy() if isinstance(picture, torch.Tensor) else picture
    h = hashlib.sha256(repr(rgb.shape).encode())
    h.update(np.ascontiguousarray(rgb).tobytes())
    return h.hexdigest()[:16]


def level_hashes(files: dict[str, bytes], model: "Model") -> Hashes:
    """Hash of every level of each file, and of the native sizes of levels 1 and 2."""
    out = {}
    for name, data in files.items():
        n_levels = len(api.read_info(data).level_ends)
        for n in range(1, n_levels + 1):
            out[f"{name} {n} levels"] = digest(decode(data, model, levels=n))
        if name != "archival":
            for n in (1, 2):
                out[f"{name} level {n} native"] = digest(decode(data, model, levels=n, native=True))
    return out


def decode(data: bytes, model: "Model", **options: object) -> Rgb:
    """Our decoder with these options."""
    return rivals.decode_ours(data, model, **options)


def coded_files(rgb: Rgb, model: "Model") -> dict[str, bytes]:
    """An archival file, a layered one, and lossy ones of the lowest and highest quality."""
    return {
        "archival": api.encode(rgb, model=model, lossless=True, levels=0),
        "layered": api.encode(rgb, model=model, lossless=True),
        **{f"lossy q{q}": api.encode(rgb, model=model, quality=q) for q in QUALITIES},
    }


def wide(rgb: Rgb) -> Rgb:
    """A picture of the size `WIDE`: the rows of an image, repeated where they end.

    Without a little noise it would be packed whole.
    """
    rows, cols = WIDE
    repeated = np.tile(rgb, (-(-rows // rgb.shape[0]), -(-cols // rgb.shape[1]), 1))
    noise = np.random.default_rng(3).integers(0, 4, (rows, cols, 3), np.uint8)
    return repeated[:rows, :cols] ^ noise


# Variants. Each yields its name and hashes, which must equal the reference's under the same keys.


def with_threads(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """Other numbers of threads."""
    before = torch.get_num_threads()
    for n in THREADS:
        torch.set_num_threads(n)
        yield f"{n} threads", level_hashes(files, model)
    torch.set_num_threads(before)


def in_batches(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """A list of the same file, whole."""
    for name, data in files.items():
        n_levels = len(api.read_info(data).level_ends)
        pictures = api.decode_image([data] * BATCH, device="cpu", model=model)
        for picture in {digest(p): p for p in pictures}.values():
            yield f"batch of {BATCH}", {f"{name} {n_levels} levels": digest(picture)}


def concurrently(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """Several decoders at once in one process."""
    with ThreadPoolExecutor(CONCURRENT) as pool:
        for hashes in pool.map(lambda _: level_hashes(files, model), range(CONCURRENT)):
            yield f"{CONCURRENT} at once", hashes


def in_groups(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """Groups one by one, and in random orders and batches; the usual way is all of a level together."""
    rng = np.random.default_rng(0)
    one_by_one: Hashes = {}
    shuffled: list[Hashes] = [{} for _ in range(ORDERS)]
    for name, data in files.items():
        n_levels = len(api.read_info(data).level_ends)
        for n in range(1, n_levels + 1):
            key = f"{name} {n} levels"
            one_by_one[key] = digest(decode_in_batches(data, model, n, lambda order: [[i] for i in order]))
        for hashes in shuffled:
            whole = decode_in_batches(data, model, n_levels, lambda order: random_batches(order, rng))
            hashes[f"{name} {n_levels} levels"] = digest(whole)
    yield "groups one by one", one_by_one
    for hashes in shuffled:
        yield "groups in a random order", hashes


def random_batches(order: list[int], rng: np.random.Generator) -> list[list[int]]:
    """The numbers in another order, cut at random places."""
    cuts = np.flatnonzero(rng.random(len(order)) < 0.3)
    return [part.tolist() for part in np.split(rng.permutation(order), cuts) if part.size]


@torch.no_grad()
def decode_in_batches(
    data: bytes, model: "Model", levels: int, batches: Callable[[list[int]], list[list[int]]]
) -> torch.Tensor:
    """The picture uint8 [3, H, W] of the first levels. batches: which groups of a level go together."""
    source = MemorySource(data)
    header = container.unpack_header(data)
    plan = make_plan(header, levels, None)
    packets = read_packets(source, header, plan, allow_partial=False)
    state = DecodeState(model, header)
    for level in plan.levels:
        parts = packets[level]
        for batch in batches([part - 1 for part in parts if part]):
            state = state.advance(level, {n: parts[n + 1] for n in batch}, parts.get(0))
    return pipeline.finish(state, plan, source).rgb


def arriving(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """Files that arrive in pieces, the picture shown as each level is complete."""
    for size in PIECES:
        hashes: Hashes = {}
        for name, data in files.items():
            reader = IncrementalReader(model=model)
            at = 0
            for n, end in enumerate(api.read_info(data).level_ends.values(), 1):
                while at < end:
                    reader.feed(data[at : min(at + size, end)])
                    at = min(at + size, end)
                hashes[f"{name} {n} levels"] = digest(reader.picture().picture.rgb)
        yield f"in pieces of {size} bytes", hashes


def in_regions(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """Regions of each file against the same parts of the whole picture, after every number of levels."""
    rng = np.random.default_rng(1)
    wanted: Hashes = {}
    found: Hashes = {}
    for name, data in files.items():
        info = api.read_info(data)
        n_levels = len(info.level_ends)
        for i in range(REGIONS + 2):
            levels = n_levels if i < REGIONS // 2 else int(rng.integers(1, n_levels + 1))
            (x, end_x), (y, end_y) = (
                sorted(rng.choice(size + 1, 2, replace=False).tolist()) for size in (info.width, info.height)
            )
            if i == REGIONS:
                x, y, end_x, end_y = 0, 0, info.width, info.height
            elif i == REGIONS + 1:
                end_x, end_y = x + 1, y + 1
            key = f"{name} {levels} levels {x},{y} to {end_x},{end_y}"
            wanted[key] = digest(decode(data, model, levels=levels)[y:end_y, x:end_x])
            found[key] = digest(decode(data, model, levels=levels, region=(x, y, end_x - x, end_y - y)))
    yield "crops of the whole", wanted
    yield "regions", found


@contextmanager
def forced_path(path: str) -> Iterator[None]:
    """All convolutions on the CPU take this path, in models loaded inside."""
    chosen = conv._cpu_path
    conv._cpu_path = lambda shape, head, paths: path
    try:
        yield
    finally:
        conv._cpu_path = chosen


def slow_paths(files: dict[str, bytes], model_path: Path | None) -> Iterator[tuple[str, Hashes]]:
    """The float32 and the int64 convolution."""
    for path in PATHS:
        with forced_path(path):
            yield f"{path} convolutions", level_hashes(files, fresh_model(model_path))


def device_path(files: dict[str, bytes], model_path: Path | None) -> Iterator[tuple[str, Hashes]]:
    """What runs on a device, by torch on the CPU: symbols are coded there too."""
    from vbc.codec.model import place

    yield (
        "the device's path on the CPU",
        level_hashes(files, place(api.load(model_path), torch.device("cpu"))),
    )


def fresh_model(path: Path | None) -> "Model":
    """A model of its own: a loaded one keeps the weights packed for the path it took first."""
    from vbc.codec.model import load_model

    load_model.cache_clear()
    model = load_model(path)
    load_model.cache_clear()
    return model


def interpreted(files: dict[str, bytes], model_path: Path | None) -> Iterator[tuple[str, Hashes]]:
    """Triton's kernels on the CPU; in a process of its own, as they are defined on import."""
    if not dispatch.HAVE_TRITON:
        say("note: triton is not installed, its kernels are left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        command = [
            sys.executable,
            "-m",
            "bench.exactness",
            "--hash",
            *sorted(map(str, Path(folder).iterdir())),
        ]
        command += ["--model", str(model_path)] if model_path else []
        child = subprocess.run(
            command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
        )
    if child.returncode:
        say(child.stderr)
        raise RuntimeError("Triton's interpreter failed")
    yield "Triton's kernels, interpreted", json.loads(child.stdout)


def on_devices(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """The networks on other devices."""
    if not torch.cuda.is_available():
        say("note: no CUDA device, left out")
        return
    for name, data in files.items():
        for n in range(1, len(api.read_info(data).level_ends) + 1):
            yield "cuda", {f"{name} {n} levels": digest(decode(data, model, levels=n, device="cuda"))}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 for a mismatch, or where an encoder run twice writes different bytes."""
    p = common.parser("exactness", __doc__, folder=False)
    p.add_argument(
        "--hash", type=Path, nargs="+", metavar="FILE", help="print the hashes of .vbc files as JSON and end"
    )
    args = common.parse(p, argv)
    if args.hash:
        model = api.load(args.model)
        print(json.dumps(level_hashes({f.name: f.read_bytes() for f in args.hash}, model)))
        return 0
    if args.folder is None:
        p.error("DIR is missing")
    if args.quick:
        args.images = 1
    model = api.load(args.model)
    n_checked = n_wrong = 0
    with Results(args.out, "exactness", args) as results:

        def check(image: str, reference: Hashes, variants: Iterator[tuple[str, Hashes]]) -> None:
            nonlocal n_checked, n_wrong
            for variant, hashes in variants:
                wrong = sorted(k for k, h in hashes.items() if reference.setdefault(k, h) != h)
                n_checked += len(hashes)
                n_wrong += len(wrong)
                results.add("row", image=image, variant=variant, n_hashes=len(hashes), mismatches=wrong)
                say(
                    f"{image:20} {variant:32} {len(hashes):3} hashes "
                    f"{'equal' if not wrong else f'DIFFER: {wrong}'}"
                )

        for i, file in enumerate(common.image_files(args.folder, args.images or IMAGES)):
            photo = common.load_photo(file)
            if args.quick:
                photo = common.Photo(photo.name, np.ascontiguousarray(photo.rgb[:QUICK_SIDE, :QUICK_SIDE]))
            files = coded_files(photo.rgb, model)
            reference = level_hashes(files, model)
            results.add("reference", image=photo.name, hashes=reference)
            original = {
                f"{kind} {len(api.read_info(files[kind]).level_ends)} levels": digest(photo.rgb)
                for kind in ("archival", "layered")
            }
            check(photo.name, reference, iter([("the original", original)]))
            again = {k: digest(np.frombuffer(d, np.uint8)) for k, d in coded_files(photo.rgb, model).items()}
            once = {k: digest(np.frombuffer(d, np.uint8)) for k, d in files.items()}
            check(photo.name, once, iter([("bytes of a second encoding", again)]))
            every: list[Callable[[dict[str, bytes], Model], Iterator[tuple[str, Hashes]]]]
            in_parts = [in_groups, arriving, in_regions]
            every = [with_threads, in_batches, concurrently, *in_parts, on_devices]
            for variants in every:
                check(photo.name, reference, variants(files, model))
            if i:
                continue
            files = coded_files(wide(photo.rgb), model)
            reference = level_hashes(files, model)
            for variants in in_parts:
                check(f"{photo.name} repeated", reference, variants(files, model))
            slow = (
                (REFERENCE_SIDE, slow_paths),
                (DEVICE_SIDE, device_path),
                (INTERPRETED_SIDE, interpreted),
            )
            for side, variants_of in slow:  # they see a crop of one image
                crop = coded_files(np.ascontiguousarray(photo.rgb[:side, :side]), model)
                wanted = level_hashes(crop, model)
                check(f"{photo.name} {side}x{side}", wanted, variants_of(crop, args.model))
        results.add("summary", n_hashes=n_checked, n_mismatches=n_wrong)
        say(f"{n_checked} hashes, {n_wrong} mismatches")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
