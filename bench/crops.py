"""Crops at equal bytes: what is left of wool, skin and shadows in our file and in the rivals'.

`python -m bench.crops KODAK --out DIR` writes a PNG for each crop of `CROPS`, whose rows are rates and whose
columns are codecs, and index.md with the numbers. Rivals' files have as many bytes as ours of that rate.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench import common, markdown, rivals
from bench.common import Rgb, say
from bench.rivals import Codec

RATES = (0.25, 0.5, 1.0)
"""Bits per pixel of the rows: blurred, good, and hard to tell apart."""
OVER = 1.02
"""A file may have so many times the bytes wanted, so that one that misses by a hair need not be far below."""
NEIGHBOURS = 3
"""Steps: JPEG XL's files become smaller now and then where the next is asked to be better, by up to 9 %."""
SCALE = 2
"""Screen pixels on each side for one pixel of the picture."""
GAP, CAPTION, LABEL = 6, 40, 74
"""Pixels between cells, of the two lines below each, and of the rate left of each row."""
HEADER = 26
"""Pixels of the line with the names of the columns."""
JXL_STEPS = 250
"""JPEG XL takes any distance: 250 steps between these are 2.2 % each, one to two percent of the bytes."""
JXL_COARSEST, JXL_FINEST = 25.0, 0.1


@dataclass(frozen=True)
class Crop:
    """A part of a picture that shows something. name: of the picture's file; the others in pixels."""

    name: str
    x: int
    y: int
    width: int
    height: int
    what: str

    def of(self, rgb: Rgb) -> Rgb:
        """The part. Raises ValueError where it does not lie in the picture."""
        if self.y + self.height > rgb.shape[0] or self.x + self.width > rgb.shape[1]:
            raise ValueError(f"{self} is not within {rgb.shape[1]} x {rgb.shape[0]} pixels")
        return rgb[self.y : self.y + self.height, self.x : self.x + self.width]

    @property
    def stem(self) -> str:
        """The name of its PNG, without the ending."""
        return "-".join([Path(self.name).stem, *self.what.split(",")[0].split()])


CROPS = (
    Crop("15.png", 210, 285, 192, 192, "wool, red and green, every stitch"),
    Crop("05.png", 90, 300, 192, 192, "shadows, a dark engine and spokes"),
    Crop("04.png", 150, 230, 192, 192, "skin, fair, with lashes and hair"),
    Crop("15.png", 420, 60, 192, 192, "dark skin, with paint and an eye"),
    Crop("13.png", 500, 40, 192, 192, "foliage, a forest below scree"),
    Crop("24.png", 90, 320, 192, 192, "hedge, and paint on plaster"),
    Crop("08.png", 540, 270, 192, 192, "lettering, and window frames"),
    Crop("12.png", 500, 0, 192, 192, "sky, clouds over trees"),
    Crop("23.png", 0, 60, 192, 192, "smooth, a background out of focus"),
)
"""Of the Kodak photographs, their files named by two digits."""


@dataclass(frozen=True)
class Sweep:
    """A codec with one setting that its files grow with. at: the codec at a step from 0 to n_steps - 1."""

    name: str
    n_steps: int
    at: Callable[[int], Codec]


@dataclass(frozen=True)
class Version:
    """A picture as it was decoded, whole, and its score; of the original there are the pixels alone."""

    rgb: Rgb
    codec: Codec | None = None
    n_bytes: int | None = None
    ssimulacra2: float | None = None

    @property
    def caption(self) -> str:
        """Two lines."""
        if self.n_bytes is None:
            return "original"
        score = markdown.number(self.ssimulacra2, 1) or "not measured"
        return f"{self.n_bytes:,} bytes\nSSIMULACRA 2: {score}"


class Files:
    """One picture's files of one codec, each made once: all rates look among the same steps."""

    def __init__(self, sweep: Sweep, rgb: Rgb) -> None:
        self.sweep = sweep
        self.at: Callable[[int], bytes] = cache(lambda step: sweep.at(step).encode(rgb))

    def size(self, step: int) -> int:
        """Bytes of the file at a step."""
        return len(self.at(step))


def jxl_at(step: int) -> Codec:
    """JPEG XL at a step of distances that fall in equal ratios."""
    distance = round(JXL_COARSEST * (JXL_FINEST / JXL_COARSEST) ** (step / (JXL_STEPS - 1)), 4)
    return rivals.jxl("JPEG XL", f"e7 d{distance}", distance=distance, effort=7)


def sweeps(model: Any) -> list[Sweep]:
    """Ours, which sets the bytes, and the rivals that have to meet them."""
    return [
        Sweep(rivals.OURS, 101, lambda q: rivals.ours(model, f"q{q}", quality=q)),
        Sweep("JPEG", 100, lambda q: rivals.jpeg(q + 1)),  # qualities 1 to 100
        Sweep("JPEG XL", JXL_STEPS, jxl_at),
        Sweep("AVIF", 101, lambda q: rivals.avif(q, 6, "iq")),  # tuned for what is looked at here
    ]


def nearest_step(size: Callable[[int], int], n_steps: int, wanted: float) -> int | None:
    """The step whose file is nearest the wanted bytes and at most 2 % above; None where all are larger.

    size: bytes at a step, which rise but for small falls between neighbours: those of the step that bisection
    ends at are looked at too. It is asked about log2(n_steps) + 2 * NEIGHBOURS times.
    """
    below, above = -1, n_steps  # the last step known to fit, the first known not to
    while above - below > 1:
        step = (below + above) // 2
        if size(step) <= OVER * wanted:
            below = step
        else:
            above = step
    near = range(max(below - NEIGHBOURS, 0), min(below + NEIGHBOURS + 1, n_steps))
    fitting = [step for step in near if size(step) <= OVER * wanted]
    return min(fitting, key=lambda step: abs(size(step) - wanted), default=None)


def versions(rgb: Rgb, of: list[Sweep], rates: Sequence[float]) -> list[list[Version | None]]:
    """The picture at each rate by each codec, the original first; None where a codec has no file so small.

    The first codec comes nearest the rate, the others the bytes of its file; where it has none, the rate.
    """
    original = Version(rgb)
    all_files = [Files(sweep, rgb) for sweep in of]
    rows = []
    for rate in rates:
        wanted = rate * rgb.shape[0] * rgb.shape[1] / 8
        row: list[Version | None] = [original]
        for files in all_files:
            step = nearest_step(files.size, files.sweep.n_steps, wanted)
            if step is None:
                row.append(None)
                continue
            data, codec = files.at(step), files.sweep.at(step)
            decoded = codec.decode(data)
            row.append(Version(decoded, codec, len(data), common.ssimulacra2(rgb, decoded)))
            if files is all_files[0]:
                wanted = len(data)
        rows.append(row)
    return rows


def page(
    crop: Crop, names: Sequence[str], rates: Sequence[float], rows: list[list[Version | None]]
) -> Image.Image:
    """One crop of all versions: a row for each rate, a column for each name, a caption below each cell."""
    width, height = SCALE * crop.width, SCALE * crop.height
    step_x, step_y = width + GAP, height + CAPTION + GAP
    size = (LABEL + len(names) * step_x - GAP, HEADER + len(rows) * step_y - GAP)
    out = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(size=16)
    for i, name in enumerate(names):
        draw.text((LABEL + i * step_x, 2), name, fill="black", font=font)
    for j, (rate, row) in enumerate(zip(rates, rows, strict=True)):
        top = HEADER + j * step_y
        draw.text((2, top), f"{rate} bpp", fill="black", font=font)
        for i, version in enumerate(row):
            left = LABEL + i * step_x
            if version is not None:
                # nearest: what is looked at are the pixels, not how they were enlarged
                part = Image.fromarray(np.ascontiguousarray(crop.of(version.rgb)))
                out.paste(part.resize((width, height), Image.Resampling.NEAREST), (left, top))
            caption = version.caption if version else "no file so small"
            draw.text((left, top + height + 1), caption, fill="black", font=font)
    return out


def index(
    about: list[tuple[Crop, list[list[Version | None]]]], names: Sequence[str], rates: Sequence[float]
) -> str:
    """Markdown with every page and the settings, bytes and scores of the whole pictures."""
    parts = [
        "# Crops at equal bytes",
        f"Crops enlarged {SCALE} times. Bytes and SSIMULACRA 2 are of the whole picture. Our file is the "
        f"nearest to the rate, the others' are the nearest to ours, at most {OVER - 1:.0%} above.",
    ]
    for crop, rows in about:
        cells = []
        for rate, row in zip(rates, rows, strict=True):
            for name, version in zip(names[1:], row[1:], strict=True):
                line: list[Any] = [f"{rate} bpp, {name}", None, None, None]
                if version is not None and version.codec is not None:
                    score = markdown.number(version.ssimulacra2, 1)
                    line = [
                        line[0],
                        f"{version.codec.name} {version.codec.setting}",
                        f"{version.n_bytes:,}",
                        score,
                    ]
                cells.append(markdown.bold(line, name == rivals.OURS))
        parts.append(f"## {crop.name}: {crop.what}")
        parts.append(f"![{crop.what}]({crop.stem}.png)")
        parts.append(markdown.table(("", "setting", "bytes", "SSIMULACRA 2"), cells))
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages. Raises SystemExit where the folder has none of the pictures."""
    p = argparse.ArgumentParser(prog="python -m bench.crops", description=__doc__)
    p.add_argument("folder", type=Path, metavar="DIR", help="the Kodak photographs, 01.png to 24.png")
    p.add_argument("--out", type=Path, default=common.DEFAULT_OUT / "crops", help="[default: %(default)s]")
    p.add_argument("--model", type=Path, help="weights [default: the shipped ones]")
    args = p.parse_args(argv)
    from vbc.codec import api

    crops = [crop for crop in CROPS if (args.folder / crop.name).exists()]
    if not crops:
        raise SystemExit(f"none of {', '.join(sorted({crop.name for crop in CROPS}))} in {args.folder}")
    of = sweeps(api.load(args.model))
    names = ["original", *(sweep.name for sweep in of)]
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[list[Version | None]]] = {}
    for crop in crops:
        if crop.name not in found:
            found[crop.name] = versions(common.load_photo(args.folder / crop.name).rgb, of, RATES)
        page(crop, names, RATES, found[crop.name]).save(args.out / f"{crop.stem}.png", optimize=True)
        say(f"{args.out / crop.stem}.png")
    text = index([(crop, found[crop.name]) for crop in crops], names, RATES)
    (args.out / "index.md").write_text(text, encoding="utf-8")
    say(f"{args.out / 'index.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
