"""Rate and distortion: RGB PSNR and MS-SSIM against actual bytes, for ours and the rivals.

With BD-rates and plots. Published curves (CSV with the columns codec, bpp, psnr, msssim) join the table with
--published.
"""

import csv
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import common, rivals
from bench.common import Results, Row, say
from bench.rivals import Codec

ANCHOR = "jpeg 4:2:0"
METRICS = ("psnr_db", "msssim_db")
PUBLISHED = "published"
"""The setting of points that were not measured here."""


def our_curve(model_path: Path | None, quick: bool) -> list[Codec]:
    """All three lossy levels at each quality."""
    from vbc.codec import api

    model = api.load(model_path)
    qualities = rivals.QUALITIES[::2] if quick else rivals.QUALITIES
    return [rivals.ours(model, f"q{q}", quality=q) for q in qualities]


def measure_image(file: Path, model_path: Path | None, quick: bool) -> list[Row]:
    """Every codec at every setting on one image; a codec that fails gives a row with an `error`."""
    import torch

    torch.set_num_threads(1)
    photo = common.load_photo(file)
    rows = []
    for codec in our_curve(model_path, quick) + rivals.lossy(quick):
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
            }
        )
    curves = {}
    for curve in common.group(rows, "codec").values():
        curves.setdefault(tuple(sorted((r["rate_bpp"], r["psnr_db"] or 0.0) for r in curve)), curve)
    return [row for curve in curves.values() for row in curve]


def points(rows: list[Row], metric: str) -> list[common.Point]:
    """(bpp, dB) of the points that have this metric."""
    return [(r["rate_bpp"], r[metric]) for r in rows if r[metric] is not None]


def bd_table(rows: list[Row], anchor: str) -> list[Row]:
    """BD-rate of every curve against the anchor, in PSNR and MS-SSIM.

    A measured curve and a published one may share a name; as the anchor the measured one counts. Raises
    SystemExit where there is no such curve.
    """
    curves = common.group([r | {"published": r["setting"] == PUBLISHED} for r in rows], "codec", "published")
    base = curves.get((anchor, False), curves.get((anchor, True)))
    if base is None:
        raise SystemExit(f"no curve {anchor}; there are {', '.join(sorted({name for name, _ in curves}))}")
    table = []
    for (name, published), curve in curves.items():
        for metric in METRICS:
            found = common.bd_rate(points(base, metric), points(curve, metric))
            if found is not None:
                change, low, high = found
                row = {"codec": name, "anchor": anchor, "metric": metric, "bd_rate_percent": change}
                table.append(row | {"low_db": low, "high_db": high, "published": published})
    return table


def write_compressai(folder: Path, rows: list[Row]) -> None:
    """One JSON file a curve in CompressAI's schema, for its plotting tools.

    Both generations of its metrics' names are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for (name,), curve in common.group(rows, "codec").items():
        curve = sorted(curve, key=lambda r: r["rate_bpp"])
        results = {"bpp": [r["rate_bpp"] for r in curve]}
        for keys, column in ((("psnr-rgb", "psnr"), "psnr_db"), (("ms-ssim-rgb", "msssim"), "msssim")):
            if all(r[column] is not None for r in curve):
                results |= {key: [r[column] for r in curve] for key in keys}
        content = {"name": name, "description": f"{name}, actual bytes, mean over images", "results": results}
        stem = "".join(c if c.isalnum() else "-" for c in name)
        (folder / f"{stem}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def plot(path: Path, rows: list[Row], published: list[Row]) -> None:
    """Both metrics against bits per pixel; ours thick, published curves dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for ax, metric, label in zip(axes, METRICS, ("RGB PSNR, dB", "MS-SSIM, dB"), strict=True):
        for curves, style in ((rows, "-"), (published, ":")):
            for (name,), curve in common.group(curves, "codec").items():
                xy = sorted(points(curve, metric))
                if xy:
                    width = 2.5 if name == rivals.OURS else 1
                    ax.plot(*zip(*xy, strict=True), style, marker=".", linewidth=width, label=name)
        ax.set(xlabel="bits per pixel", ylabel=label, xlim=(0, 3))
        ax.grid(alpha=0.3)
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
    p.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    args = common.parse(p, argv)
    published = read_published(args.published) if args.published else []
    files = common.image_files(args.folder, args.images)
    work = partial(measure_image, model_path=args.model, quick=args.quick)
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
        table = bd_table(curve_points + published, args.anchor)
        for line in table:
            results.add("bd_rate", **line)
            say(f"{line['codec']:28} {line['metric']:10} {line['bd_rate_percent']:+7.1f} %")
        common.write_csv(args.out / "bd_rate.csv", table)
        write_compressai(args.out / "compressai", curve_points)
        drawn = [r for r in published if r["codec"] in args.plot_published]
        plot(args.out / "rate_distortion.png", curve_points, drawn)
    return int(n_errors > 0)


if __name__ == "__main__":
    sys.exit(main())
