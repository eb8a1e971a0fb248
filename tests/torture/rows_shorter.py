"""Rows about files of fewer bytes: cut, strip, and encoding for a number of bytes."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from torture.material import (
    TINY,
    Samples,
    all_files,
    file_named,
    grouped_files,
    interest_files,
    key,
    mutate,
    picture_key,
    rewritten,
)
from torture.rows_groups import Region, cropped, last_used, random_order, random_region, upper
from torture.rows_pictures import generate
from torture.tally import Slice, Tally
from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.errors import FormatError
from vbc.codec import api
from vbc.codec import jobs as batch
from vbc.codec.files.cutting import NothingLeft
from vbc.codec.files.image_io import Picture
from vbc.codec.regions import Roi

WELL_USED = 0.97
"""What a lossy file for a number of bytes uses of them, if the picture is large enough for small steps."""


def attempt(call: Callable[[], bytes]) -> bytes | FormatError | NothingLeft:
    """The result, or in its place the error that a caller must expect. Everything else gets out."""
    try:
        return call()
    except (FormatError, NothingLeft) as e:
        return e


def names_of(todo: Slice) -> list[str]:
    """Files to make shorter ones of: those of groups first, which have most to lose."""
    small = [name for name in all_files() if name not in grouped_files()]
    return [*interest_files(), *grouped_files(), *todo.some(small)]


def in_another_order(data: bytes, rng: np.random.Generator) -> bytes:
    """The file, its packets in another order that is allowed."""
    header = container.unpack_header(data)
    places = [(i, header.packets[i]) for i in random_order(header, rng)]
    return rewritten(header, [(p.unit, p.part, data[slice(*header.span(i))]) for i, p in places])


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with its end or some of its bytes changed."""
    if rng.random() < 0.5:
        return data[: int(rng.integers(0, len(data)))]
    return mutate(data, rng, [data])


def packets_of(data: bytes) -> dict[tuple[int, int], bytes]:
    """Unit and part -> payload; of those that mean something to every reader."""
    header = container.unpack_header(data)
    return {
        (p.unit, p.part): data[slice(*header.span(i))]
        for i, p in enumerate(header.packets)
        if not p.is_ancillary
    }


# cut


def cut_cases(todo: Slice) -> Tally:
    """Row 21: a cut file has at most the bytes it may, is valid, and shows what its packets show in their
    source; of a bad source it is an error or right; the source stays."""
    tally = Tally()
    names = names_of(todo)
    for n in todo:
        rng = np.random.default_rng((21, n))
        name = names[n % len(names)]
        data = file_named(name)
        if n % 3 == 1:
            data = in_another_order(data, rng)
        given = damaged(data, rng) if rng.random() < 0.4 else data
        max_bytes, stage = random_length(container.unpack_header(data), rng)
        what = (
            f"row 21 case {n} ({name}): {len(given)} of {len(data)} bytes, {max_bytes} bytes, stage {stage}"
        )
        with tally.case(what):
            out = attempt(lambda g=given, b=max_bytes, s=stage: api.cut(g, max_bytes=b, stage=s))
            tally.count(type(out).__name__)
            tally.check(given != data or not isinstance(out, FormatError), f"{what}: {out!r}")
            if isinstance(out, NothingLeft):
                check_nothing_left(tally, what, given, max_bytes, stage, out)
            elif isinstance(out, bytes):
                tally.check(max_bytes is None or len(out) <= max_bytes, f"{what}: {len(out)}")
                check_shorter(tally, what, name, out)
                again = api.cut(out, max_bytes=max_bytes, stage=stage)
                tally.check(again == out, f"{what}: cut again, it is another one")
            if n % 10 == 0:
                check_cut_command(tally, what, given, max_bytes, stage, out)
    return tally


def random_length(header: Header, rng: np.random.Generator) -> tuple[int | None, int | None]:
    """A number of bytes, from tiny to too many, often near the end of a packet; a level; one of both at
    least."""
    end = header.file_bytes
    match int(rng.integers(0, 4)):
        case 0:
            max_bytes = int(np.exp(rng.uniform(0, np.log(4 * end))))
        case 1:
            max_bytes = int(rng.integers(header.header_bytes, end + 2))
        case 2:
            max_bytes = max(1, int(rng.choice(header.ends)) + int(rng.integers(-90, 3)))
        case _:
            max_bytes = int(rng.choice([1, end - 1, end, end + 1, 1 << 62]))
    stage = int(rng.choice([*container.levels_present(header), *range(1, 50)]))
    kind = rng.random()
    return (None if kind < 0.2 else max_bytes), (stage if kind < 0.4 else None)


def check_nothing_left(
    tally: Tally, what: str, given: bytes, max_bytes: int | None, stage: int | None, error: NothingLeft
) -> None:
    """The error names the number of bytes from which on there is something, or 0 where there never is."""
    if not error.need:
        whole = attempt(lambda: api.cut(given, stage=stage, max_bytes=None if stage else 1 << 62))
        never = isinstance(whole, NothingLeft) and not whole.need
        tally.check(never, f"{what}: {error}, though there is something")
        return
    tally.check(max_bytes is not None and error.need > max_bytes, f"{what}: {error.need} are enough?")
    least = attempt(lambda: api.cut(given, max_bytes=error.need, stage=stage))
    # of a damaged source the first packet need not be there
    fits = isinstance(least, FormatError) or (isinstance(least, bytes) and len(least) <= error.need)
    tally.check(fits, f"{what}: {error.need} are not enough: {least!r:.200}")
    less = attempt(lambda: api.cut(given, max_bytes=error.need - 1, stage=stage))
    tally.check(not isinstance(less, bytes), f"{what}: fewer than {error.need} are enough")


def check_shorter(tally: Tally, what: str, name: str, out: bytes) -> None:
    """A valid file of packets of a file, which shows what they show there."""
    source, packets = packets_of(file_named(name)), packets_of(out)
    same = all(source.get(place) == body for place, body in packets.items())
    tally.check(same, f"{what}: packets that are not the source's")
    api.verify(out, model=TINY)
    header = container.unpack_header(file_named(name))
    keep = tuple((p.unit, p.part) in packets for p in header.packets)
    picture = api.decode_picture(out, model=TINY).picture
    tally.check(key(picture.samples()) == picture_key(name, keep), f"{what}: another picture")
    for unit in (container.ICC, container.ALPHA):
        tally.check(((unit, 0) in packets) == header.has(unit), f"{what}: unit {unit} is lost")


def check_cut_command(
    tally: Tally,
    what: str,
    given: bytes,
    max_bytes: int | None,
    stage: int | None,
    wanted: bytes | FormatError | NothingLeft,
) -> None:
    """As the command does it: the source stays, and what was there before does where nothing comes of it."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.vbc"), Path(folder, "out.vbc")
        source.write_bytes(given)
        target.write_bytes(b"before")
        job = batch.Job(str(source), str(target))
        done = batch.attempt(lambda j: batch.cut_file(j, max_bytes, stage), job)
        tally.check(source.read_bytes() == given, f"{what}: the source has changed")
        expected = wanted if isinstance(wanted, bytes) else b"before"
        tally.check(target.read_bytes() == expected, f"{what}: the command wrote something else")
        told = isinstance(done, batch.Failure) and done.trace is None
        tally.check(isinstance(wanted, bytes) or told, f"{what}: the command says {done}")
        tally.check(len(list(Path(folder).iterdir())) == 2, f"{what}: the command left something")
        try:
            batch.plan([str(source)], str(source), (batch.ENDING,), batch.ENDING)
            tally.check(False, f"{what}: a source may be its own target")
        except batch.UsageError:
            pass


# strip


def strip_cases(todo: Slice) -> Tally:
    """Row 22: a file without what regions do not need is valid, and the regions are as before; of a bad
    source it is an error or right."""
    tally = Tally()
    names = names_of(todo)
    for n in todo:
        rng = np.random.default_rng((22, n))
        name = names[n % len(names)]
        data = file_named(name)
        header = container.unpack_header(data)
        if rng.random() < 0.3:
            data = in_another_order(data, rng)
        if rng.random() < 0.3:
            shorter = attempt(lambda d=data, r=rng: api.cut(d, max_bytes=int(r.integers(1, len(d)))))
            data = shorter if isinstance(shorter, bytes) else data
        given = damaged(data, rng) if rng.random() < 0.3 else data
        boxes = tuple(random_region(rng, header.width, header.height) for _ in range(rng.integers(1, 4)))
        keep_metadata = rng.random() < 0.7
        what = f"row 22 case {n} ({name}): {len(given)} of {len(data)} bytes, {boxes}"
        with tally.case(what):
            out = attempt(lambda g=given, b=boxes, k=keep_metadata: api.strip(g, Roi(b), keep_metadata=k))
            tally.count(type(out).__name__)
            if isinstance(out, bytes):
                check_stripped(tally, what, data, out, boxes, keep_metadata)
            elif given == data:
                nothing = isinstance(out, NothingLeft) and not needed_there(data, boxes)
                tally.check(nothing, f"{what}: {out!r}")
    return tally


def needed_there(data: bytes, boxes: tuple[Region, ...]) -> set[tuple[int, int]]:
    """Level and part of the groups of a file that regions need, found for each by itself."""
    header = container.unpack_header(data)
    needed = {
        (level, 1 + n)
        for box in boxes
        for level, numbers in header.geometry.region_groups(box, last_used(header), header.archival).items()
        for n in numbers
    }
    return needed & packets_of(data).keys()


def check_stripped(
    tally: Tally, what: str, data: bytes, out: bytes, boxes: tuple[Region, ...], keep_metadata: bool
) -> None:
    """The file `out` is `data` without what the regions do not need."""
    api.verify(out, model=TINY)
    source, packets = packets_of(data), packets_of(out)
    tally.count("packets left out", len(source) - len(packets))
    same = all(source.get(place) == body for place, body in packets.items())
    tally.check(same, f"{what}: packets that are not the source's")
    before, after = container.unpack_header(data), container.unpack_header(out)
    groups = {(p.level, p.part) for p in after.packets if p.level and p.part}
    needed = needed_there(data, boxes)
    tally.check(groups == needed, f"{what}: {sorted(groups ^ needed)} too many or too few")
    tally.check(after.has(container.ALPHA) == before.has(container.ALPHA), f"{what}: alpha")
    kept = api.read_metadata(data, before).n_bytes() if keep_metadata else {}
    tally.check(api.read_metadata(out, after).n_bytes() == kept, f"{what}: metadata")
    tally.check(api.strip(out, Roi(boxes), keep_metadata=keep_metadata) == out, f"{what}: not the same again")
    whole = api.decode_picture(out, model=TINY).picture.samples()

    def comparable(samples: Samples) -> Samples:
        return samples if after.lossless == before.lossless else upper(samples)

    for box in boxes:
        was = comparable(api.decode_picture(data, region=box, model=TINY).picture.samples())
        part = api.decode_picture(out, region=box, model=TINY).picture.samples()
        tally.check(key(part) == key(was), f"{what}: region {box}")
        tally.check(key(cropped(whole, box)) == key(was), f"{what}: region {box} of all that is left")


# encode


def budget_cases(todo: Slice) -> Tally:
    """Row 23: a file for a number of bytes never has more, is valid and keeps what it must; where nothing
    fits that is an error which says what would."""
    tally = Tally()
    for n in todo:
        rng = np.random.default_rng((23, n))
        samples, _, meta = generate(n)
        options = random_options(samples, rng)
        whole = rng.random() < 0.3
        # near what a file takes at all, or anything
        least = 150 + 3 * len(meta.icc or b"")
        max_bytes = int(
            np.exp(rng.uniform(np.log(least), np.log(least) + 4)) if whole else 2 ** rng.uniform(0, 20)
        )
        what = f"row 23 case {n} {samples.dtype}{list(samples.shape)} {options}, {max_bytes} bytes"
        with tally.case(what, seconds=60):
            picture = Picture.from_samples(samples, meta)

            def encode(
                max_bytes: int | None, picture: Picture = picture, options: dict[str, object] = options
            ) -> bytes:
                return api.encode(picture, max_bytes=max_bytes, model=TINY, **options)  # type: ignore[arg-type]

            out = attempt(lambda e=encode, b=max_bytes: e(b))
            tally.count(type(out).__name__)
            if isinstance(out, NothingLeft):
                tally.check(out.need > max_bytes, f"{what}: {out.need} are enough?")
                least_file = encode(out.need)
                tally.check(len(least_file) <= out.need, f"{what}: {out.need} are not enough")
            elif isinstance(out, bytes):
                tally.check(len(out) <= max_bytes, f"{what}: {len(out)}")
                check_within(tally, what, out, picture)
                if options["lossless"]:
                    right = out == api.cut(encode(None), max_bytes=max_bytes)
                    tally.check(right, f"{what}: not the cut file")
                elif container.unpack_header(out).quality < container.MAX_QUALITY:
                    tally.count("well used" if len(out) >= WELL_USED * max_bytes else "less used")
            else:
                tally.check(False, f"{what}: {out!r}")
    return tally


def random_options(samples: Samples, rng: np.random.Generator) -> dict[str, object]:
    """Arguments of `api.encode` for a picture, of all kinds of files."""
    options: dict[str, object] = {"levels": 3, "lossless": False, "tune": str(rng.choice(["eye", "psnr"]))}
    match int(rng.integers(0, 4)):
        case 0:
            options |= {"levels": int(rng.integers(1, 4))}
        case 1:
            options |= {"refinements": int(rng.integers(1, 4))}
        case 2:
            options |= {"lossless": True, "effort": 0, "refinements": int(rng.integers(0, 2))}
        case _:
            options |= {"lossless": True, "effort": int(rng.integers(0, 2)), "levels": 0}
    if rng.random() < 0.3:
        height, width = samples.shape[:2]
        options |= {"roi": random_region(rng, width, height), "roi_first": bool(rng.random() < 0.5)}
    return options


def check_within(tally: Tally, what: str, out: bytes, picture: Picture) -> None:
    """A valid file of a picture; its alpha is exact, and so is all of it where the file says so."""
    api.verify(out, model=TINY)
    decoded = api.decode_picture(out, model=TINY)
    shown, wanted = decoded.picture.samples(), picture.samples()
    tally.check(shown.shape == wanted.shape, f"{what}: {shown.shape}")
    tally.check(decoded.picture.metadata.icc == picture.metadata.icc, f"{what}: the profile is lost")
    if shown.shape[2] in (2, 4):
        tally.check(key(upper(shown)[..., -1]) == key(upper(wanted)[..., -1]), f"{what}: another alpha")
    if container.unpack_header(out).lossless:
        tally.check(decoded.exact and key(shown) == key(wanted), f"{what}: not exact")
