"""The charts of a run, and the sheet of pictures at each level."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from bench import common, rivals
from bench.common import Row
from bench.progressive import streams
from bench.progressive.streams import JPEG2000_LAYERS, LAYERED, REFINEMENTS, SHARES
from bench.rate_distortion import EYE, LABELS, points
from vbc.codec.settings import Tune

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHEET_WIDTH = 288
CAPTION = 16
"""Height in pixels."""
TUNED_FOR: dict[str, Tune] = {"psnr_db": "psnr", EYE: "eye"}
"""Metric, and our tuning that is drawn in it."""
LOWEST = {"psnr_db": 10, EYE: 0}
"""Where an axis starts: of ruined pictures it says nothing how bad they are."""


def plot_lossless(path: Path, rows: list[Row]) -> None:
    """Both metrics over the share of bytes: prefixes of lossless files drawn, dedicated files dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(15, 6), layout="constrained")
    for ax, metric in zip(axes, LOWEST, strict=True):
        for what, style in (("prefix", "-"), ("dedicated", ":")):
            for (name,), curve in common.group([r for r in rows if r["what"] == what], "codec").items():
                xy = sorted((100 * r["share"], r[metric]) for r in curve if r[metric] is not None)
                if xy:
                    width = 2.5 if name == f"{rivals.OURS} {LAYERED}" else 1
                    label = name if what == "prefix" else f"{name}, dedicated file"
                    ax.plot(*zip(*xy, strict=True), style, marker=".", linewidth=width, label=label)
        ticks = [round(100 * share) for share in SHARES]
        ax.set(xscale="log", xlabel="bytes, % of our layered lossless file")
        ax.set_xticks(ticks, [str(t) for t in ticks])
        ax.minorticks_off()
        finish(ax, metric)
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_lossy(path: Path, rows: list[Row], published: list[Row]) -> None:
    """Both metrics over bits per pixel: prefixes of lossy files, dedicated files dotted, published dashed.

    Of ours those of the best quality without refinements and with most, tuned for the metric.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(15, 6), layout="constrained")
    best = max(r["quality"] for r in rows if r.get("quality") is not None)
    for ax, metric in zip(axes, LOWEST, strict=True):
        curves = common.group([r for r in rows if r["what"] in ("own_prefix", "stage")], "codec").items()
        for (name,), curve in curves:
            ours = rivals.is_ours(name)
            if ours and not is_drawn(curve[0], metric, best):
                continue
            draw(ax, curve, metric, name, "-", 2.5 if ours else 1)
        dedicated = [r for r in rows if r["what"] == "curve" and r["tune"] == TUNED_FOR[metric]]
        draw(ax, dedicated, metric, f"{rivals.OURS}, dedicated files", ":", 2.5)
        if metric == "psnr_db":
            layers = [r for r in rows if r["what"] == "rate" and r["codec"] == JPEG2000_LAYERS]
            draw(ax, layers, metric, JPEG2000_LAYERS, "-", 1)
            for (name,), curve in common.group(published, "codec").items():
                draw(ax, curve, metric, f"{name}, published", "--", 1)
        ax.set(xlabel="bits per pixel", xlim=(0, 2))
        finish(ax, metric)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def is_drawn(row: Row, metric: str, quality: int) -> bool:
    """Whether a lossy file of ours is in the chart of a metric."""
    return (
        row["quality"] == quality
        and row["tune"] == TUNED_FOR[metric]
        and row["refinements"] in (REFINEMENTS[0], REFINEMENTS[-1])
    )


def draw(ax: "Axes", curve: list[Row], metric: str, label: str, style: str, width: float) -> None:
    """A metric over bits per pixel; nothing where no point has it."""
    xy = sorted(points(curve, metric))
    if xy:
        ax.plot(*zip(*xy, strict=True), style, marker=".", linewidth=width, label=label)


def finish(ax: "Axes", metric: str) -> None:
    """Label and range of the metric."""
    ax.set(ylabel=LABELS[metric])
    ax.set_ylim(bottom=LOWEST[metric])
    ax.grid(alpha=0.3)


def contact_sheet(path: Path, file: Path, model_path: Path | None, quality: int | None) -> None:
    """One image at each level of our layered file, and beside it a JPEG of quality 75 of as many bytes."""
    from vbc.codec import api

    photo = common.load_photo(file)
    model = api.load(model_path)
    data = rivals.encode_ours(photo.rgb, model, lossless=True, quality=quality)
    layered = streams.our_file(LAYERED, data, model)
    jpeg = rivals.jpeg(75).encode(photo.rgb)
    ends = layered.level_ends or {}
    height = round(SHEET_WIDTH * photo.rgb.shape[0] / photo.rgb.shape[1])
    sheet = Image.new("RGB", (2 * SHEET_WIDTH, len(ends) * (height + CAPTION)), "white")
    canvas = ImageDraw.Draw(sheet)
    for row, (level, end) in enumerate(ends.items()):
        pair = (
            (f"vbc, level {level}", layered.decode(data[:end]), end),
            (jpeg_caption(jpeg, end), rivals.decode_jpeg_prefix(jpeg[:end], photo.rgb), min(end, len(jpeg))),
        )
        for column, (label, rgb, n_bytes) in enumerate(pair):
            x, y = column * SHEET_WIDTH, row * (height + CAPTION)
            found = "no picture"
            if rgb is not None:
                psnr = common.psnr(photo.rgb, rgb)
                found = "exact" if psnr is None else f"{psnr:.1f} dB"
                sheet.paste(Image.fromarray(rgb).resize((SHEET_WIDTH, height)), (x, y + CAPTION))
            canvas.text((x + 4, y + 2), f"{label}: {n_bytes:,} bytes, {found}", fill="black")
    sheet.save(path, optimize=True)


def jpeg_caption(jpeg: bytes, end: int) -> str:
    """What the column beside ours shows."""
    return "JPEG q75, cut" if end < len(jpeg) else "JPEG q75, whole"
