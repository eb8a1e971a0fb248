"""Rows about the bytes of files: damage, limits, cost, prefixes, pieces."""

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from torture.material import (
    GOLDEN,
    META,
    SMALL_LIMITS,
    TESTS,
    TINY,
    all_files,
    decoded_key,
    deep,
    grouped_files,
    key,
    mutate,
    mutate_repaired,
    picture_key,
    shows_group,
    small_files,
    usable_packets,
)
from torture.tally import Slice, Tally
from vbc.bitstream import container
from vbc.bitstream.container import Limits
from vbc.bitstream.errors import FormatError, LimitExceeded, Truncated
from vbc.codec import api, pipeline
from vbc.codec.files.image_io import UnsupportedImage
from vbc.codec.files.reading import read_vbc
from vbc.codec.incremental import IncrementalReader

TIME_RATIO = 5.0
"""A damaged file may take so many times as long as a valid one of its size."""


def attempt(call: Callable[[], object]) -> object:
    """The result, or the FormatError in its place. Everything else gets out."""
    try:
        return call()
    except FormatError as e:
        return e


def mutations(todo: Slice) -> Tally:
    """Row 1: a change is an error or costs what needs the changed packets, and `verify` notices every one."""
    tally = Tally()
    files = all_files()
    names, pool = todo.some(files), list(files.values())
    for n in todo:
        rng = np.random.default_rng((1, n))
        name = names[n % len(names)]
        data = mutate(files[name], rng, pool)
        if data == files[name]:
            continue
        with tally.case(f"row 1 case {n} ({name})"):
            attempt(lambda d=data: api.read_info(d))
            strict = attempt(lambda d=data: api.decode_picture(d, model=TINY))
            if isinstance(strict, api.DecodedPicture):
                whole = key(strict.picture.samples()) == decoded_key(files[name])
                tally.check(whole, f"row 1 case {n} ({name}): another picture")
            partial = attempt(lambda d=data: api.decode_picture(d, model=TINY, allow_partial=True))
            wanted = picture_of_what_is_left(name, data)
            have = key(partial.picture.samples()) if isinstance(partial, api.DecodedPicture) else None
            tally.count("an error" if have is None else "a picture")
            tally.check(have == wanted, f"row 1 case {n} ({name}): not what is left of it, {partial!r:.200}")
            noticed = isinstance(attempt(lambda d=data: api.verify(d, model=TINY)), FormatError)
            tally.check(noticed, f"row 1 case {n} ({name}): verify says nothing")
    return tally


def picture_of_what_is_left(name: str, data: bytes) -> str | None:
    """Hash of the picture of a damaged one of `all_files`; None where there is none: the header is damaged,
    alpha or all groups are, or there are bytes too many."""
    original = all_files()[name]
    header = container.unpack_header(original)
    n = header.header_bytes
    if data[:n] != original[:n] or len(data) > len(original):
        return None
    keep = usable_packets(header, lambda i: data[slice(*header.span(i))] == original[slice(*header.span(i))])
    alpha = header.find(container.ALPHA)
    if not shows_group(header, keep) or (alpha is not None and not keep[alpha]):
        return None
    return picture_key(name, keep)


def repaired_mutations(todo: Slice) -> Tally:
    """Row 2: with right checksums, only FormatError or a picture of the declared size."""
    tally = Tally()
    files = all_files()
    names, pool = todo.some(files), list(files.values())
    for n in todo:
        rng = np.random.default_rng((2, n))
        name = names[n % len(names)]
        data = mutate_repaired(files[name], rng, pool)
        native, partial = n % 5 == 0, n % 3 == 0
        with tally.case(f"row 2 case {n} ({name})"):
            outcome = attempt(
                lambda d=data, native=native, partial=partial: api.decode_picture(
                    d, native=native, allow_partial=partial, limits=SMALL_LIMITS, model=TINY
                )
            )
            attempt(lambda d=data: api.verify(d, limits=SMALL_LIMITS, model=TINY))
            tally.count(type(outcome).__name__)
            if isinstance(outcome, api.DecodedPicture):
                header = container.unpack_header(data)
                scales = (1, 2, 4) if native else (1,)
                sizes = {(-(-header.height // scale), -(-header.width // scale)) for scale in scales}
                tally.check(outcome.picture.samples().shape[:2] in sizes, f"row 2 case {n}: another size")
    return tally


def limits(todo: Slice) -> Tally:
    """Row 5: every entry point takes limits, and refuses what is above them as LimitExceeded."""
    tally = Tally()
    if not todo.first:
        return tally
    image = np.zeros((11, 13, 3), np.uint8)
    data = api.encode(image, metadata=META, lossless=True, model=TINY)
    header = container.unpack_header(data)
    metadata = sum(META.n_bytes().values())
    region = (3, 2, 5, 4)
    tight = {
        "pixels": (Limits(max_pixels=143), Limits(max_pixels=142)),
        "side": (Limits(max_side=13), Limits(max_side=12)),
        "metadata": (Limits(max_metadata=metadata), Limits(max_metadata=metadata - 1)),
        "memory": (
            Limits(max_memory=container.decode_memory(header)),
            Limits(max_memory=container.decode_memory(header) - 1),
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.vbc")
        path.write_bytes(data)
        model = api.load(TINY)
        entries: dict[str, Callable[[Limits], object]] = {
            "unpack_header": lambda x: container.unpack_header(data, x),
            "read_vbc": lambda x: read_vbc(path, x),
            "read_info": lambda x: api.read_info(data, limits=x),
            "read_info(region)": lambda x: api.read_info(data, region=region, limits=x),
            "decode": lambda x: api.decode(data, limits=x, model=model),
            "decode_picture": lambda x: api.decode_picture(data, limits=x, model=model),
            "decode(region)": lambda x: api.decode(data, region=region, limits=x, model=model),
            "decode_image(bytes)": lambda x: api.decode_image(data, "cpu", limits=x, model=model),
            "decode_image(path)": lambda x: api.decode_image(path, "cpu", limits=x, model=model),
            "decode_image(list)": lambda x: api.decode_image([data, path], "cpu", limits=x, model=model),
            "cut": lambda x: api.cut(data, stage=1, limits=x),
            "strip": lambda x: api.strip(data, region, limits=x),
            "verify": lambda x: api.verify(data, limits=x, model=model),
            "pipeline.decode_image": lambda x: pipeline.decode_image(data, limits=x, model=model),
            "pipeline.verify": lambda x: pipeline.verify(data, limits=x, model=model),
            "IncrementalReader": lambda x: IncrementalReader(limits=x, model=model).feed(data),
        }
        for name, call in entries.items():
            for what, (enough, less) in tight.items():
                with tally.case(f"row 5 {name} {what}"):
                    call(enough)
                    refused = isinstance(attempt(lambda c=call, x=less: c(x)), LimitExceeded)
                    tally.check(refused, f"row 5 {name}: {what} above the limit is accepted")
    defaults = container.DEFAULT_LIMITS
    values = (defaults.max_pixels, defaults.max_side, defaults.max_metadata)
    tally.check(values == (178_956_970, 65_535, 16 << 20), "row 5: other defaults")
    for shape in ((1, 65_536, 3), (65_536, 1), (13_378, 13_377, 3)):
        with tally.case(f"row 5 encode {shape}"):
            try:
                api.encode(np.broadcast_to(np.uint8(0), shape), model=TINY)  # takes one byte of memory
            except UnsupportedImage:
                continue
            tally.check(False, f"row 5: an image of {shape} is taken")
    return tally


def cost(todo: Slice) -> Tally:
    """Row 6: accepted or refused, a damaged file costs little more than a valid one; memory as documented."""
    tally = Tally()
    rng = np.random.default_rng(6)
    image = rng.integers(0, 256, (96, 128, 4)).astype(np.uint8)
    kinds: dict[str, bytes] = {
        "layered": api.encode(image, lossless=True, quality=100, model=TINY),
        "archival": api.encode(image[..., :3] // 8 * 8, lossless=True, levels=0, model=TINY),
        "lossy": api.encode(image[..., 0], quality=100, model=TINY),
    }
    valid = {name: statistics.median(seconds(data) for _ in range(7)) for name, data in kinds.items()}
    names, pool = list(kinds), list(kinds.values())
    worst = 0.0
    for n in todo:
        name = names[n % len(names)]
        data = mutate_repaired(kinds[name], np.random.default_rng((6, n)), pool)
        header = attempt(lambda d=data: container.unpack_header(d, SMALL_LIMITS))
        if isinstance(header, FormatError):
            continue
        assert isinstance(header, container.Header)
        larger = max(1.0, header.width * header.height / (96 * 128))
        with tally.case(f"row 6 case {n} ({name})"):
            # a lossy file may have been given exact levels of another, and noise costs most
            ratio = seconds(data) / (valid["layered"] * larger)
            for _ in range(3):  # another process may have been in the way
                if ratio > TIME_RATIO:
                    ratio = min(ratio, seconds(data) / (valid["layered"] * larger))
            worst = max(worst, ratio)
            tally.check(ratio <= TIME_RATIO, f"row 6 case {n} ({name}): {ratio:.1f} times a valid file")
    tally.notes["worst time ratio"] = round(worst, 2)
    if todo.first:
        peak_memory(tally, (256, 384) if todo.quick else (1024, 1536), 1 if todo.quick else 5)
    return tally


def seconds(data: bytes) -> float:
    """Seconds of processor time of a decode, whatever comes of it."""
    started = time.process_time()
    attempt(lambda: api.decode_picture(data, limits=SMALL_LIMITS, model=TINY))
    return time.process_time() - started


HIGH_WATER = """
def high_water():
    with open("/proc/self/status") as f:
        return 1024 * next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
"""
"""Peak memory of a process; that of `resource` counts what its parent had before it."""
MEASURE = (
    HIGH_WATER
    + """
import sys
from vbc.bitstream import container
from vbc.bitstream.errors import FormatError
from vbc.codec import api
api.decode(open(sys.argv[2], "rb").read(), model=sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = high_water()
data = open(sys.argv[3], "rb").read()
try:
    api.decode_picture(data, model=sys.argv[1]).picture.samples()
except FormatError:
    pass
print(high_water() - before)
"""
)


def peak_memory(tally: Tally, size: tuple[int, int], n_files: int) -> None:
    """Peak memory of fresh processes, one for each of the first files, against `decode_memory`."""
    rng = np.random.default_rng(66)
    noise = rng.integers(0, 256, (*size, 4)).astype(np.uint8)
    smooth = np.add.outer(np.arange(size[0]), np.arange(size[1])).astype(np.uint8)[..., None].repeat(3, 2)
    rough = smooth // 2 + noise[..., :3] // 16
    files = {
        "layered RGBA 16 bits": api.encode(deep(noise), lossless=True, effort=0, model=TINY),
        "archival": api.encode(rough, lossless=True, levels=0, effort=0, model=TINY),
        "lossy": api.encode(noise[..., :3], quality=100, model=TINY),
    }
    damaged = bytearray(files["lossy"])
    damaged[-1] ^= 1
    files["damaged"] = bytes(damaged)
    files["packed whole"] = api.encode(smooth, lossless=True, levels=0, model=TINY)
    with tempfile.TemporaryDirectory() as folder:
        warm, path = Path(folder, "warm.vbc"), Path(folder, "a.vbc")
        warm.write_bytes(small_files()["metadata"])
        for name, data in list(files.items())[:n_files]:
            path.write_bytes(data)
            with tally.case(f"row 6 memory {name}"):
                command = [sys.executable, "-c", MEASURE, str(TINY), str(warm), str(path)]
                result = subprocess.run(command, check=True, capture_output=True, text=True)
                taken, allowed = int(result.stdout), container.decode_memory(container.unpack_header(data))
                tally.notes[f"MiB {name}"] = round(taken / 2**20, 1)
                tally.notes[f"MiB {name}, estimate"] = round(allowed / 2**20, 1)
                tally.check(taken <= allowed, f"row 6 {name}: {taken} bytes, {allowed} estimated")


def every_truncation(todo: Slice) -> Tally:
    """Row 7: strict decoding names the complete levels, partial decoding shows exactly what is there.

    n: the step between truncation points, 16 times larger for the largest files of groups; large files
    take 500 times larger steps where they are decoded.
    """
    tally = Tally()
    files = all_files() | {path.name: path.read_bytes() for path in sorted(GOLDEN.glob("*.vbc"))}
    chosen = [*todo.some(files), *([*grouped_files()][:1] if todo.quick else [])]
    model = api.load(TINY)
    for i, name in enumerate(chosen):
        if i % todo.parts != todo.part:
            continue
        data, step = files[name], todo.n
        header = container.unpack_header(data)
        large = len(data) > 20_000
        step *= 16 if name in grouped_files() and len(data) > 50_000 else 1
        ends = {end + d for end in (header.header_bytes, *header.ends) for d in (-1, 0, 1)}
        if large and todo.quick:
            ends, step = {*header.ends[::3]}, 20 * todo.n
        points = sorted({*range(0, len(data), step), *(end for end in ends if end < len(data))})
        for cut in points:
            with tally.case(f"row 7 {name} cut at {cut}"):
                decoding = not large or cut in ends or cut % (500 * step) == 0
                check_truncation(tally, name, data, cut, model, decoding)
    return tally


def check_truncation(
    tally: Tally, name: str, data: bytes, cut: int, model: "api.Weights", decoding: bool
) -> None:
    """A file that ends at `cut`. decoding: look at the picture too."""
    prefix, what = data[:cut], f"row 7 {name} cut at {cut}"
    header = container.unpack_header(data)
    keep = usable_packets(header, cut)
    levels = () if cut < header.header_bytes else container.complete_levels(header, keep)
    error = attempt(lambda: pipeline.decode_image(prefix, model=api.load(model)))
    ok = isinstance(error, Truncated) and error.levels_available == levels and error.have == cut
    tally.check(ok, f"{what}: {error!r}")
    if cut >= header.header_bytes:
        tally.check(container.usable(header, cut) == keep, f"{what}: other packets are usable")
    if not decoding:
        return
    if cut < header.header_bytes or not shows_group(header, keep):
        error = attempt(lambda: api.decode_picture(prefix, allow_partial=True, model=model))
        tally.check(isinstance(error, Truncated), f"{what}: {error!r}")
        return
    got = api.decode_picture(prefix, allow_partial=True, model=model)
    tally.check(got.levels == levels, f"{what}: levels {got.levels}")
    if name in all_files():
        tally.check(key(got.picture.samples()) == picture_key(name, keep), f"{what}: other pixels")


def feeding(todo: Slice) -> Tally:
    """Row 8: however a file is cut, and however often it is shown, the reader says and shows the same as for
    one piece."""
    tally = Tally()
    files = all_files()
    names, pool = todo.some(files), list(files.values())
    for n in todo:
        rng = np.random.default_rng((8, n))
        name = names[n % len(names)]
        data = files[name] if n % 2 else mutate(files[name], rng, pool)
        mean = int(rng.choice([2, 50, 1000])) * max(1, len(data) // 8192)
        with tally.case(f"row 8 case {n} ({name})"):
            whole = fed(io.BytesIO(data), lambda: 1 << 20)
            pieces = fed(
                io.BytesIO(data),
                lambda r=rng, mean=mean: int(r.geometric(1 / mean)),
                lambda r=rng: r.random() < 0.05,
            )
            tally.check(whole == pieces, f"row 8 case {n} ({name}): {whole} in one piece, {pieces} in many")
            if data == files[name]:
                tally.check(
                    whole[1] == "" and whole[2] == decoded_key(data), f"row 8 {name}: not the picture"
                )
    return tally


def fed(
    stream: io.BytesIO, size: Callable[[], int], show: Callable[[], bool] = lambda: False
) -> tuple[tuple[int, ...], str, str, int]:
    """Feed a stream in pieces, showing it in between; the levels, the error, the hash of the picture and the
    number of packets that come of it."""
    reader = IncrementalReader(model=TINY)
    error = picture = ""
    try:
        while piece := stream.read(max(1, size())):
            before = reader.levels
            new = reader.feed(piece)
            assert set(reader.levels) == {*before, *new}
            assert not set(before) & set(new)
            if show():
                attempt(reader.picture)
        reader.finish()
    except FormatError as e:
        error = type(e).__name__
        if isinstance(e, Truncated):
            error += f" {e.levels_available == reader.levels}"
    try:
        picture = key(reader.picture().picture.samples())
    except FormatError as e:
        picture = type(e).__name__
    return reader.levels, error, picture, reader.n_packets


def python(
    *arguments: str, interpreter: str = sys.executable, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """A fresh interpreter that finds the modules of the tests."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [interpreter, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
