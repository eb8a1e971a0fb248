"""Rate and distortion: quality against actual bytes, for ours and the rivals, with BD-rates and plots.

Quality is what the eye sees, by SSIMULACRA 2 and, where libjxl's `butteraugli_main` is installed, by
Butteraugli; besides there are MS-SSIM and RGB PSNR. Published curves (CSV with the columns codec, bpp, psnr,
msssim) join the table with --published.
"""

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import common, rivals
from bench.common import Results, Row, say
from bench.rivals import Codec
from vbc.codec.settings import Tune

ANCHOR = "jpeg 4:2:0"
METRICS = ("psnr_db", "msssim_db")
"""Their BD-rates are of the curves of the means, over all that two of them share."""
EYE = "ssimulacra2"
EYE_PER_IMAGE = "ssimulacra2_per_image"
"""Each image has a BD-rate by its own curves, and they are averaged: images of one setting differ in score by
tens, so that a curve of means says little of what equal scores cost."""
EYE_RANGE = (40.0, 85.0)
"""SSIMULACRA 2 from poor to what is not told apart side by side: what people choose among."""
EYE_SPAN = 10.0
"""Scores that two curves must share in the range: a mean over fewer says little of the range."""
LEAST_INSIDE = 2
"""Points a curve must have in what is compared: what lies between two far apart was not measured."""
DISTANCE = "butteraugli_3norm"
RATE_RANGE = (0.4, 1.5)
"""Bits per pixel, of pictures on the web, at which Butteraugli is compared."""
RATE_SPAN_OCTAVES = 0.5
"""Of that range, which is 1.9 octaves long, what two curves must share."""
LABELS = {
    EYE: "SSIMULACRA 2",
    "msssim_db": "MS-SSIM, dB",
    "psnr_db": "RGB PSNR, dB",
    DISTANCE: "Butteraugli, 3-norm (less is better)",
}
"""The plots."""
SHOWN = {EYE: {"bottom": 0, "top": 100}, DISTANCE: {"bottom": 0, "top": 6}}
"""What is drawn of metrics whose values for ruined pictures lie far off."""
PUBLISHED = "published"
"""The setting of points that were not measured here."""


def our_curve(model_path: Path | None, quick: bool) -> list[Codec]:
    """All three lossy levels at each quality: as the encoder does by itself, at effort 2, tuned for PSNR.

    Without refinements, as a user gets them by default.
    """
    from vbc.codec import api

    qualities = rivals.QUALITIES[::2] if quick else rivals.QUALITIES
    ways: dict[str, tuple[Tune, int]] = {
        "": ("eye", 1),
        " --effort 2": ("eye", 2),
        " --tune psnr": ("psnr", 1),
    }
    return [
        rivals.ours(
            api.load(model_path, tune=tune),
            f"q{q}",
            name=rivals.OURS + name,
            quality=q,
            tune=tune,
            effort=effort,
        )
        for name, (tune, effort) in ways.items()
        for q in qualities
    ]


def measure_image(
    file: Path, model_path: Path | None, quick: bool, leave_out: tuple[str, ...] = ()
) -> list[Row]:
    """Every codec at every setting on one image; a codec that fails gives a row with an `error`.

    leave_out: starts of the names of codecs that are not measured.
    """
    import torch

    torch.set_num_threads(1)
    photo = common.load_photo(file)
    rows = []
    for codec in our_curve(model_path, quick) + rivals.lossy(quick):
        if codec.name.startswith(leave_out):
            continue
        about = {"codec": codec.name, "setting": codec.setting, "image": photo.name}
        try:
            rows.append(about | measure(codec, photo))
        except Exception as e:  # one codec that fails must not cost the others' results
            rows.append(about | {"error": f"{type(e).__name__}: {e}"})
    return rows


def measure(codec: Codec, photo: common.Photo) -> Row:
    """Bytes and quality of one image at one setting."""
    data = codec.encode(photo.rgb)
    rgb = codec.decode(data)
    return {
        "n_bytes": len(data),
        "rate_bpp": 8 * len(data) / photo.n_pixels,
        "psnr_db": common.psnr(photo.rgb, rgb),
        "msssim": common.ms_ssim(photo.rgb, rgb),
        EYE: common.ssimulacra2(photo.rgb, rgb),
        DISTANCE: common.butteraugli_3norm(photo.rgb, rgb),
    }


def summarise(rows: list[Row]) -> Row:
    """A point of a curve: means over the images."""
    msssim = common.mean(r["msssim"] for r in rows)
    return {
        "codec": rows[0]["codec"],
        "setting": rows[0]["setting"],
        "n_images": len(rows),
        "rate_bpp": common.mean(r["rate_bpp"] for r in rows),
        "psnr_db": common.mean(r["psnr_db"] for r in rows),
        "msssim": msssim,
        "msssim_db": None if msssim is None else common.decibel(msssim),
        EYE: common.mean(r[EYE] for r in rows),
        DISTANCE: common.mean(r[DISTANCE] for r in rows),
    }


def read_published(path: Path) -> list[Row]:
    """Points of published curves, as `summarise` makes them. A curve that repeats another is left out."""
    with path.open(newline="", encoding="utf-8") as f:
        lines = list(csv.DictReader(f))
    rows = []
    for line in lines:
        msssim = float(line["msssim"]) if line.get("msssim") else None
        rows.append(
            {
                "codec": line["codec"],
                "setting": PUBLISHED,
                "rate_bpp": float(line["bpp"]),
                "psnr_db": float(line["psnr"]) if line["psnr"] else None,
                "msssim": msssim,
                "msssim_db": None if msssim is None else common.decibel(msssim),
                EYE: None,
                DISTANCE: None,
            }
        )
    curves = {}
    for curve in common.group(rows, "codec").values():
        curves.setdefault(tuple(sorted((r["rate_bpp"], r["psnr_db"] or 0.0) for r in curve)), curve)
    return [row for curve in curves.values() for row in curve]


def points(rows: list[Row], metric: str) -> list[common.Point]:
    """(bpp, dB or score) of the points that have this metric."""
    return [(r["rate_bpp"], r[metric]) for r in rows if r[metric] is not None]


def bd_rate_at_equal_score(anchor: list[Row], test: list[Row]) -> tuple[float, float, float] | None:
    """How many percent more bits `test` takes at equal SSIMULACRA 2, and over what of the scores 40 to 85."""
    a, t = points(anchor, EYE), points(test, EYE)
    return common.bd_rate(a, t, "pchip", EYE_RANGE, EYE_SPAN, LEAST_INSIDE)


def distance_at_equal_bytes(anchor: list[Row], test: list[Row]) -> tuple[float, float, float] | None:
    """By how many percent Butteraugli's distance is larger in `test`, and over what of the rates 0.4 to 1.5.

    The mean of its logarithm's difference over octaves of bits per pixel.
    """

    def curve(rows: list[Row]) -> list[common.Point]:
        # a BD-rate whose price is the distance and whose good is being small, which is to have few octaves
        there = [r for r in rows if r[DISTANCE]]  # no distance: exact, and no logarithm
        return [(r[DISTANCE], -math.log2(r["rate_bpp"])) for r in there]

    low, high = (-math.log2(rate) for rate in reversed(RATE_RANGE))
    found = common.bd_rate(curve(anchor), curve(test), "pchip", (low, high), RATE_SPAN_OCTAVES, LEAST_INSIDE)
    return None if found is None else (found[0], 2 ** -found[2], 2 ** -found[1])


def per_image_table(
    rows: list[Row],
    anchor: str,
    compare: Callable[[list[Row], list[Row]], tuple[float, float, float] | None],
) -> list[Row]:
    """A comparison with the anchor on each image by itself, then the mean over those where there is one.

    rows: of `measure_image`. change_percent: the mean; low, high: the means of the ranges' ends; n_images:
    how many it is of; n_measured: how many images the codec coded. A codec without a comparison has no line.
    """
    curves = common.group(rows, "codec", "image")
    table = []
    for (name,), coded in common.group(rows, "codec").items():
        images = list(dict.fromkeys(r["image"] for r in coded))
        all_found = [compare(curves.get((anchor, image), []), curves[name, image]) for image in images]
        found = [f for f in all_found if f is not None]
        if found:
            change, low, high = (sum(values) / len(found) for values in zip(*found, strict=True))
            line = {"codec": name, "change_percent": change, "low": low, "high": high}
            table.append(line | {"n_images": len(found), "n_measured": len(images)})
    return table


def eye_tables(rows: list[Row], anchor: str) -> tuple[list[Row], list[Row]]:
    """BD-rates at equal SSIMULACRA 2 and Butteraugli at equal bytes, both image by image."""
    bits = []
    for line in per_image_table(rows, anchor, bd_rate_at_equal_score):
        change = {"anchor": anchor, "metric": EYE_PER_IMAGE, "bd_rate_percent": line.pop("change_percent")}
        bits.append({"codec": line.pop("codec")} | change | line | {"published": False})
    distances = [
        {"anchor": anchor, "metric": DISTANCE} | line
        for line in per_image_table(rows, anchor, distance_at_equal_bytes)
    ]
    return bits, distances


def bd_table(rows: list[Row], anchor: str) -> list[Row]:
    """BD-rate of every curve against the anchor, in PSNR, MS-SSIM and SSIMULACRA 2 (over scores 40 to 85).

    A measured curve and a published one may share a name; as the anchor the measured one counts. Raises
    SystemExit where there is no such curve.
    """
    curves = common.group([r | {"published": r["setting"] == PUBLISHED} for r in rows], "codec", "published")
    base = curves.get((anchor, False), curves.get((anchor, True)))
    if base is None:
        raise SystemExit(f"no curve {anchor}; there are {', '.join(sorted({name for name, _ in curves}))}")
    table = []
    for (name, published), curve in curves.items():
        changes = {m: common.bd_rate(points(base, m), points(curve, m)) for m in METRICS}
        changes[EYE] = bd_rate_at_equal_score(base, curve)
        for metric, found in changes.items():
            if found is not None:
                change, low, high = found
                row = {"codec": name, "anchor": anchor, "metric": metric, "bd_rate_percent": change}
                table.append(row | {"low": low, "high": high, "published": published})
    return table


def write_compressai(folder: Path, rows: list[Row]) -> None:
    """One JSON file a curve in CompressAI's schema, for its plotting tools.

    Both generations of its metrics' names are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for (name,), curve in common.group(rows, "codec").items():
        curve = sorted(curve, key=lambda r: r["rate_bpp"])
        results = {"bpp": [r["rate_bpp"] for r in curve]}
        columns: dict[str, tuple[str, ...]] = {
            "psnr_db": ("psnr-rgb", "psnr"),
            "msssim": ("ms-ssim-rgb", "msssim"),
        }
        columns |= {column: (column,) for column in (EYE, DISTANCE)}
        for column, keys in columns.items():
            if all(r[column] is not None for r in curve):
                results |= {key: [r[column] for r in curve] for key in keys}
        content = {"name": name, "description": f"{name}, actual bytes, mean over images", "results": results}
        stem = "".join(c if c.isalnum() else "-" for c in name)
        (folder / f"{stem}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def plot(path: Path, rows: list[Row], published: list[Row]) -> None:
    """Each metric against bits per pixel, Butteraugli where measured; ours thick, published curves dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(13, 11), layout="constrained")
    axes = list(grid.flat)
    for ax, (metric, label) in zip(axes, LABELS.items(), strict=True):
        if metric == DISTANCE and not points(rows, metric):
            ax.remove()
            continue
        for curves, style in ((rows, "-"), (published, ":")):
            for (name,), curve in common.group(curves, "codec").items():
                xy = sorted(points(curve, metric))
                if xy:
                    width = 2.5 if rivals.is_ours(name) else 1
                    ax.plot(*zip(*xy, strict=True), style, marker=".", linewidth=width, label=name)
        ax.set(xlabel="bits per pixel", ylabel=label, xlim=(0, 3))
        ax.grid(alpha=0.3)
        if metric in SHOWN:
            ax.set_ylim(**SHOWN[metric])
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a codec fails."""
    p = common.parser("rate_distortion", __doc__)
    p.add_argument("--published", type=Path, help="CSV of published curves of the same images")
    p.add_argument("--anchor", default=ANCHOR, help="of the BD-rates [default: %(default)s]")
    p.add_argument(
        "--plot-published",
        action="append",
        default=[],
        metavar="CODEC",
        help="published curve to draw; repeat",
    )
    p.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="NAME",
        help="no codec whose name starts so, for instance 'avif s2', which takes longest; repeat",
    )
    p.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    args = common.parse(p, argv)
    published = read_published(args.published) if args.published else []
    files = common.image_files(args.folder, args.images)
    leave_out = tuple(args.leave_out)
    work = partial(measure_image, model_path=args.model, quick=args.quick, leave_out=leave_out)
    rows: list[Row] = []
    n_errors = 0
    with Results(args.out, "rate_distortion", args) as results:
        for file, found in zip(files, common.each_image(work, files, args.jobs), strict=True):
            for row in found:
                if "error" in row:
                    n_errors += 1
                    say(f"{row['codec']} {row['setting']} {row['image']}: {row['error']}")
                    results.add("error", **row)
                else:
                    rows.append(results.add("row", **row))
            say(f"{file.name}: {len(found)} points")
        curve_points = [
            results.add("summary", **summarise(r)) for r in common.group(rows, "codec", "setting").values()
        ]
        for row in published:
            results.add("published", **row)
        per_image, distances = eye_tables(rows, args.anchor)
        table = bd_table(curve_points + published, args.anchor) + per_image
        for line in table:
            results.add("bd_rate", **line)
            say(f"{line['codec']:28} {line['metric']:21} {line['bd_rate_percent']:+7.1f} %")
        for line in distances:
            results.add("equal_bytes", **line)
            say(f"{line['codec']:28} {line['metric']:21} {line['change_percent']:+7.1f} %")
        common.write_csv(args.out / "bd_rate.csv", table)
        common.write_csv(args.out / "equal_bytes.csv", distances)
        write_compressai(args.out / "compressai", curve_points)
        drawn = [r for r in published if r["codec"] in args.plot_published]
        plot(args.out / "rate_distortion.png", curve_points, drawn)
    return int(n_errors > 0)


if __name__ == "__main__":
    sys.exit(main())
