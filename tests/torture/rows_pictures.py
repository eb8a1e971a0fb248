"""Rows about pictures: the same everywhere, exact, with the right weights only, checked by the encoder."""

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from torture.material import GOLDEN, TINY, Samples, decoded_key, deep, key, level_keys, small_files
from torture.rows_bytes import attempt, python
from torture.rows_images import silence, write_everywhere
from torture.tally import Slice, Tally
from vbc.bitstream.errors import ModelMissing
from vbc.codec import api, pipeline
from vbc.codec import jobs as batch
from vbc.codec.example import make_example
from vbc.codec.files.image_io import Metadata, Picture, write_picture
from vbc.codec.pipeline import Decoded, SelfCheckFailed
from vbc.codec.settings import EncodeSettings

OTHER_PYTHON = "VBC_OTHER_PYTHON"
"""Environment variable with an interpreter that has another version of torch; scripts/torture --python."""
FOREIGN = """
import sys
from pathlib import Path
import torch
from torture.material import TINY, level_keys
from vbc.codec import api, example
print("torch", torch.__version__)
folder, small = Path(sys.argv[1]), sys.argv[2] == "small"
for path in sorted(folder.glob("*.vbc")):
    model = None if path.stem.startswith("shipped") else TINY
    print(path.name, *level_keys(path.read_bytes(), model))
image = example.make_example(64, 64)[:9, :7] if small else example.make_example(300, 260)
sets = [{"quality": 40}, {"lossless": True}, {"lossless": True, "levels": 0, "effort": 2}]
for i, options in enumerate(sets[: 1 if small else 3]):
    for model in [TINY] if small else [TINY, None]:
        data = api.encode(image, model=model, **options)
        path = folder / f"{'tiny' if model else 'shipped'}-{i}.back"
        path.write_bytes(data)
        print(path.name, *level_keys(data, model))
"""
"""What another interpreter does with the files of a folder: the keys of all levels, then files of its own."""
RSS_GROWTH = 48 << 20
"""Bytes by which row 15 may grow after its first fifth: fragmentation, no leak (a leak of one picture in a
hundred decodes would be more)."""


def devices(todo: Slice) -> Tally:
    """Row 10: all levels alike for 1, 2 and 4 threads, alone and in lists, interpreted kernels and CPU, and
    with another version of torch where there is one."""
    tally = Tally()
    if not todo.first:
        return tally
    files = dict(small_files())
    files["larger"] = api.encode(make_example(300, 260), lossless=True, effort=0, model=TINY)
    if todo.quick:
        files = {name: files[name] for name in ("layered.vbc", "RGBA 16 bits", "larger")}
    before = torch.get_num_threads()
    wanted: dict[str, list[str]] = {}
    try:
        for n_threads in (1, 2, 4):
            torch.set_num_threads(n_threads)
            for name, data in files.items():
                with tally.case(f"row 10 {name}, {n_threads} threads", seconds=120):
                    got = level_keys(data, TINY)
                    tally.check(got == wanted.setdefault(name, got), f"row 10 {name}, {n_threads} threads")
    finally:
        torch.set_num_threads(before)
    chosen = list(files.values())[:8]
    with tally.case("row 10 a list of eight"):
        together = api.decode_image(chosen, "cpu", model=TINY)
        alone = [api.decode_image(data, "cpu", model=TINY) for data in reversed(chosen)][::-1]
        same = all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
        tally.check(same, "row 10: a list gives other pictures")
    if not todo.quick:  # a minute; tests/test_device.py has it in the suite
        names = ("one-pixel.vbc", "one-row.vbc")
        few = {name: files[name] for name in names}
        across(tally, "interpreted kernels", few, sys.executable, small=True, TRITON_INTERPRET="1")
    if other := os.environ.get(OTHER_PYTHON):
        shipped = api.encode(make_example(300, 260), lossless=True)
        across(tally, "another torch", files | {"shipped.vbc": shipped}, other)
    return tally


def across(
    tally: Tally,
    what: str,
    files: dict[str, bytes],
    interpreter: str,
    small: bool = False,
    **environment: str,
) -> None:
    """Files of this process decoded in another one and the other way round, all levels.

    small: the other one is slow, so that it encodes little.
    """
    with tempfile.TemporaryDirectory() as path, tally.case(f"row 10 {what}", seconds=600):
        folder = Path(path)
        for i, (name, data) in enumerate(files.items()):
            (folder / (name if name.endswith(".vbc") else f"{i}.vbc")).write_bytes(data)
        size = "small" if small else "all"
        result = python("-c", FOREIGN, path, size, interpreter=interpreter, **environment)
        said = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
        tally.notes[f"{what}: torch"] = " ".join(said.pop("torch", ["?"]))
        wanted = {p.name for p in folder.iterdir()}
        tally.check(set(said) == wanted, f"row 10 {what}: {result.stderr[-300:]}")
        for file, keys in said.items():
            with tally.case(f"row 10 {what}: {file}", seconds=600):
                model = None if file.startswith("shipped") else TINY
                here = level_keys((folder / file).read_bytes(), model)
                tally.check(here == keys, f"row 10 {what}: {file} differs")


def golden(todo: Slice) -> Tally:
    """Row 11: golden files give the pixels that their answers name."""
    from checks import decode_answer, decoded_hash
    from test_golden import ANSWERS

    tally = Tally()
    tally.check(len(ANSWERS) >= 12, "row 11: fewer than 12 golden files")
    model = api.load(TINY)
    for name in todo.some(ANSWERS)[todo.part :: todo.parts]:
        answers = ANSWERS[name]
        data = (GOLDEN / name).read_bytes()
        for answer, want in answers.items():
            with tally.case(f"row 11 {name} {answer}"):
                decoded = decode_answer(data, model, answer)
                tally.check(decoded_hash(decoded) == want, f"row 11 {name}: other pixels at {answer}")
    return tally


def missing_model(todo: Slice) -> Tally:
    """Row 12: other weights give ModelMissing, by whatever door; the encoder's own tensors do not count."""
    tally = Tally()
    data = small_files()["layered.vbc"]
    tensors = load_file(TINY)
    names = sorted(tensors)
    with tempfile.TemporaryDirectory() as folder:
        path, file = Path(folder, "w.safetensors"), Path(folder, "a.vbc")
        file.write_bytes(data)
        for n in todo:
            rng = np.random.default_rng((12, n))
            name = names[int(rng.integers(0, len(names)))]
            changed = {k: v.clone() for k, v in tensors.items()}
            flat = changed[name].view(-1).numpy()  # torch has hardly any arithmetic on uint16
            at = int(rng.integers(0, len(flat)))
            down = flat[at] > 0
            flat[at] = flat[at] - 1 if down else flat[at] + 1
            if name == "tables":  # a row keeps its sum
                other = at - 1 if at % 256 else at + 1
                flat[other] = flat[other] + 1 if down else flat[other] - 1
            save_file(changed, path)
            with tally.case(f"row 12 case {n} ({name})"):
                try:
                    model = pipeline_model(path)
                except ValueError:
                    continue  # the change broke an invariant of the weights, and loading says so
                outcome = attempt(lambda m=model: api.decode_picture(data, model=m))
                if name.startswith("analysis."):
                    tally.check(isinstance(outcome, api.DecodedPicture), f"row 12 case {n}: {outcome!r}")
                else:
                    tally.check(isinstance(outcome, ModelMissing), f"row 12 case {n} ({name}): {outcome!r}")
                    outcome = attempt(lambda m=model: api.verify(data, model=m))
                    tally.check(isinstance(outcome, ModelMissing), f"row 12 case {n} ({name}): verify")
        if todo.first:
            with tally.case("row 12 shipped weights"):
                failure = batch.attempt(
                    lambda job: batch.verify_file(job, "cpu", None), batch.Job(str(file), "")
                )
                refused = isinstance(failure, batch.Failure) and failure.exit_code == batch.UNSUPPORTED
                tally.check(refused, f"row 12 shipped weights: {failure}")
            with tally.case("row 12 no weights"):
                try:
                    api.decode(data, model=Path(folder, "none.safetensors"))
                    tally.check(False, "row 12: decodes without weights")
                except OSError:
                    pass
    return tally


def pipeline_model(path: Path) -> "api.Weights":
    """The model in a file that changes between calls: around the cache."""
    from vbc.codec.model import load_model

    return load_model.__wrapped__(path)


# Generated images


SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 64)


def generate(n: int) -> tuple[Samples, dict[str, int | bool], Metadata]:
    """Image n, options to encode it with, and its metadata."""
    rng = np.random.default_rng((14, n))
    height, width = (int(x) for x in rng.choice(SIDES, 2))
    if n % 10 == 0:
        height, width = 1, int(rng.integers(1, 300))
    elif n % 10 == 1:
        height, width = int(rng.integers(1, 300)), 1
    elif n % 100 == 2:
        height, width = (int(x) for x in rng.integers(180, 260, 2))  # tuned output layers
    channels = int(rng.integers(1, 5))
    y, x = np.mgrid[:height, :width]
    planes = []
    for _ in range(channels):
        match int(rng.integers(0, 7)):
            case 0:
                plane = rng.integers(0, 256, (height, width))
            case 1:
                plane = np.full((height, width), rng.integers(0, 256))
            case 2:
                plane = y * int(rng.integers(-9, 10)) + x * int(rng.integers(-9, 10))
            case 3:
                plane = (y + x) % 2 * 255
            case 4:
                plane = np.where((y // 3 + x // 5) % 2, 255, int(rng.integers(0, 256)))
            case 5:
                plane = np.clip(rng.normal(128, 20, (height, width)), 0, 255)
            case _:
                side = max(height, width, 64)
                plane = make_example(side, side)[-height:, -width:, int(rng.integers(0, 3))]
        planes.append(np.asarray(plane).astype(np.int64).astype(np.uint8))
    samples: Samples = np.stack(planes, axis=2)
    if n % 3 == 0:
        samples = samples.astype(np.uint16) * 257 if n % 2 else deep(samples, n)
    options: dict[str, int | bool] = {
        "levels": int(rng.choice([0, 3])),
        "lossless": True,
        "quality": int(rng.choice([0, 20, 60, 100])),
        "effort": int(rng.integers(0, 3)),
        "progressive": bool(rng.integers(0, 2)),
    }
    sizes = (int(rng.choice([0, 1, 500])) for _ in range(3))
    meta = Metadata(*(rng.bytes(size) if size else None for size in sizes))
    return samples, options, meta


def largest_error(samples: Samples, original: Samples) -> int:
    """How far a sample is from the original's upper byte; 255 where alpha differs."""
    wanted = original if original.dtype == np.uint8 else (original >> 8).astype(np.uint8)
    if samples.shape[2] in (2, 4) and not np.array_equal(samples[..., -1], wanted[..., -1]):
        return 255
    return int(np.abs(samples.astype(np.int64) - wanted).max())


def generated(todo: Slice) -> Tally:
    """Row 14: exact, metadata the same, and no larger than raw + 1 % + 1 KiB, layered, archival or
    progressive; what is decoded can be written as an image file, its metadata (random bytes) with it where
    there is room. Near-lossless, no sample is further off than the bound, and alpha is exact."""
    tally = Tally()
    for n in todo:
        samples, options, meta = generate(n)
        name = f"row 14 image {n} {samples.dtype}{list(samples.shape)} {options}"
        with tally.case(name, seconds=60):
            picture = Picture.from_samples(samples, meta)
            data = api.encode(picture, model=TINY, **options)  # type: ignore[arg-type]
            decoded = api.decode_picture(data, model=TINY)
            same = decoded.exact and key(decoded.picture.samples()) == key(samples)
            tally.check(same, f"{name}: other pixels")
            tally.check(decoded.picture.metadata == meta, f"{name}: other metadata")
            with silence(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of what is no EXIF
                write_everywhere(decoded.picture, name, tally)
            tensor = api.decode_image(data, "cpu", model=TINY)
            tally.check(key(tensor.permute(1, 2, 0).numpy()) == key(samples), f"{name}: another tensor")
            size = len(data) - sum(meta.n_bytes().values())
            bound = samples.nbytes * 1.01 + 1024
            tally.check(size <= bound, f"{name}: {size} bytes, {samples.nbytes} raw")
            near = 1 + n % 8
            data = api.encode(picture, model=TINY, near=near, levels=int(options["levels"]))
            error = largest_error(api.decode_picture(data, model=TINY).picture.samples(), samples)
            tally.check(error <= near, f"{name}: off by {error}, {near} allowed")
            over = (size - samples.nbytes) / (samples.nbytes * 0.01 + 1024)
            tally.notes["largest growth over the bound"] = round(
                max(over, float(tally.notes.get("largest growth over the bound", -9.0))), 3
            )
    return tally


# Threads


def n_pixels(data: bytes) -> int:
    """Pixels of a file's picture."""
    info = api.read_info(data)
    return info.width * info.height


def resident() -> int:
    """Bytes of memory that this process has now."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096


def threads(todo: Slice) -> Tally:
    """Row 15: eight threads decode at once; the same pictures, and memory does not grow."""
    tally = Tally()
    if not todo.first:
        return tally
    # what a decode takes for a moment must be small against what eight threads may not grow by
    files = [(name, data) for name, data in small_files().items() if n_pixels(data) < 5000]
    wanted = [decoded_key(data) for _, data in files]
    has_statm = Path("/proc/self/statm").exists()
    sizes: list[int] = []
    lock = threading.Lock()
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait()
        for n in range(todo.n):
            i = (seed * 5 + n) % len(files)
            mine = Tally()
            with mine.case(f"row 15 thread {seed}: {files[i][0]}", seconds=1e9):
                mine.check(decoded_key(files[i][1]) == wanted[i], f"row 15: {files[i][0]} differs")
            with lock:
                tally.add(mine)
                if has_statm and seed == 0 and n >= todo.n // 5:
                    sizes.append(resident())

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if sizes:
        growth = max(sizes) - sizes[0]
        tally.notes["MiB grown"] = round(growth / 2**20, 1)
        tally.check(growth < RSS_GROWTH, f"row 15: memory grew by {growth >> 20} MiB")
    tally.check(tally.cases == 8 * todo.n, "row 15: a thread has ended early")
    return tally


# Self-check


@contextmanager
def faulty(change: Callable[[Decoded], Decoded]) -> Iterator[None]:
    """The decoder of this process gives `change` of what it should."""
    real = pipeline.decode_image
    pipeline.decode_image = lambda *a, **k: change(real(*a, **k))
    try:
        yield
    finally:
        pipeline.decode_image = real


def self_check(todo: Slice) -> Tally:
    """Row 17: a decoder that errs in one sample is noticed before anything is written."""
    tally = Tally()
    image = np.concatenate((make_example(64, 64)[:12, :17], make_example(64, 64)[:12, :17, :1]), axis=2)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.png"), Path(folder, "out.vbc")
        source.write_bytes(write_picture(Picture.from_samples(image, Metadata()), ".png", exact=True))
        for n in todo:
            rng = np.random.default_rng((17, n))
            part = ("rgb", "alpha", "low")[n % 3]

            def change(decoded: Decoded, part: str = part, rng: np.random.Generator = rng) -> Decoded:
                plane = getattr(decoded, part).clone()
                flat = plane.view(-1) if plane.is_contiguous() else plane.permute(1, 2, 0).reshape(-1)
                flat[int(rng.integers(0, len(flat)))] ^= 1 << int(rng.integers(0, 8))
                if not plane.is_contiguous():
                    plane = flat.view(*plane.shape[1:], plane.shape[0]).permute(2, 0, 1)
                return Decoded(**{**vars(decoded), part: plane})

            with tally.case(f"row 17 case {n} ({part})"), faulty(change):
                try:
                    api.encode(deep(image), lossless=True, levels=3 * (n % 2), model=TINY)
                    tally.check(False, f"row 17 case {n} ({part}): not noticed")
                except SelfCheckFailed:
                    pass
                if n % 20 == 0 and part != "low":
                    options = batch.EncodeOptions(EncodeSettings(lossless=True, effort=0), True, "cpu", TINY)
                    job = batch.Job(str(source), str(target))
                    outcome = batch.attempt(lambda j, o=options: batch.encode_file(j, o), job)
                    failed = isinstance(outcome, batch.Failure) and outcome.kind == "SelfCheckFailed"
                    tally.check(failed and not target.exists(), f"row 17 case {n}: {outcome}")
    return tally
