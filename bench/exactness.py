"""Same bytes in, same pixels out: one mismatch fails.

Hashes of every level across threads, batches, concurrent decoding, block sizes, slower paths, Triton's
kernels and the devices at hand.
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
from vbc.codec import api, pipeline
from vbc.codec import payloads as levels
from vbc.codec.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.exact import grids as exact_levels
from vbc.codec.lossy import coding as lossy_levels
from vbc.kernels import conv, dispatch

if TYPE_CHECKING:
    from vbc.codec.model import Model

THREADS = (1, 2, 4)
BATCH = 8
CONCURRENT = 4
SYNTHESIS_BLOCKS = (5, 16, 128)
"""Sides of the blocks that synthesis works in, in 8x8 blocks; the default is 64."""
EXACT_BLOCKS = (7, 64)
"""Likewise of the exact levels, in positions of the coarse grid; the default is 512."""
REFERENCE_SIDE = 96
"""Side of the crop for the int64 reference, which is a hundred times slower."""
INTERPRETED_SIDE = 24
"""Side of the crop for Triton's interpreter, which is slower still."""
PATHS = ("float32", "int64")
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


def in_blocks(files: dict[str, bytes], model: "Model") -> Iterator[tuple[str, Hashes]]:
    """Synthesis and the exact levels' networks in blocks of other sizes; the hashes name what they are of."""
    data = files["layered"]
    info = api.read_info(data)
    size = (info.height, info.width)
    with torch.no_grad():
        payloads = pipeline.read_levels(data, container.unpack_header(data), 3, False)
        latents = levels.decode_lossy(list(payloads.values()), model, size, info.quality)
        for block in SYNTHESIS_BLOCKS:
            rgb = lossy_levels.synthesise(model.lossy, latents, size, 3, info.quality, block)
            yield f"synthesis in blocks of {block}", {"layered 3 levels": digest(rgb[0])}
        sizes = exact_levels.grid_sizes(*size)
        coarse = rgb_to_ycocg(levels.grid(rgb, 1))
        for block in (exact_levels.BLOCK_SIDE, *EXACT_BLOCKS):
            coded = exact_levels.code_step(
                model.exact, levels.Means(), coarse, sizes[0], 1, None, rgb, info.quality, block=block
            )
            picture = ycocg_to_rgb(exact_levels.assemble(coarse, coded.pixels, sizes[0]))
            yield f"exact levels in blocks of {block}", {"predictions of the last step": digest(picture[0])}


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
    if "cuda" not in api.DEVICES or not torch.cuda.is_available():
        say("note: no CUDA device that the networks can run on, left out")
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
            every = [with_threads, in_batches, concurrently, in_blocks, on_devices]
            for variants in every:
                check(photo.name, reference, variants(files, model))
            for side, variants_of in ((REFERENCE_SIDE, slow_paths), (INTERPRETED_SIDE, interpreted)):
                if i == 0:  # slow ones see a crop of one image
                    crop = coded_files(np.ascontiguousarray(photo.rgb[:side, :side]), model)
                    check(
                        f"{photo.name} {side}x{side}",
                        level_hashes(crop, model),
                        variants_of(crop, args.model),
                    )
        results.add("summary", n_hashes=n_checked, n_mismatches=n_wrong)
        say(f"{n_checked} hashes, {n_wrong} mismatches")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
