"""The row about pictures that others made: those that installed packages and Python's own tests come with."""

import sysconfig
from pathlib import Path

from torture.material import TINY, key
from torture.tally import Slice, Tally
from vbc.codec import api
from vbc.codec.files.image_io import INPUT_SUFFIXES, UnsupportedImage, read_picture

MAX_BYTES, MAX_PIXELS = 200_000, 400_000
"""What is larger is left out: row 14 has the numbers, this row the variety."""


def found_pictures() -> list[Path]:
    """Image files of Python's test suite and of installed packages, by path; torch's own needs have some."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    found = {p for folder in folders for p in Path(folder).rglob("*") if p.suffix.lower() in INPUT_SUFFIXES}
    return sorted(p for p in found if p.suffix != ".vbc" and 0 < p.stat().st_size <= MAX_BYTES)


def others_pictures(todo: Slice) -> Tally:
    """Row 20: exact and with the same metadata, or refused with a reason; n: every so many of those found."""
    tally = Tally()
    for n, path in enumerate(found_pictures()[:: todo.n]):
        if n % todo.parts != todo.part:
            continue
        name = f"row 20 {path.parent.name}/{path.name}"
        with tally.case(name, seconds=60):
            try:
                picture = read_picture(path.read_bytes())
            except UnsupportedImage as e:
                tally.count("refused")
                tally.check(bool(str(e)), f"{name}: no reason")
                continue
            samples = picture.samples()
            if samples.shape[0] * samples.shape[1] > MAX_PIXELS:
                tally.count("large, left out")
                continue
            data = api.encode(picture, lossless=True, levels=3 * (n % 2), effort=n % 3, model=TINY)
            decoded = api.decode_picture(data, model=TINY)
            same = decoded.exact and key(decoded.picture.samples()) == key(samples)
            tally.check(same, f"{name}: other pixels")
            tally.check(decoded.picture.metadata == picture.metadata, f"{name}: other metadata")
            tally.count("exact")
    return tally
