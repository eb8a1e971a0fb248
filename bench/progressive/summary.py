"""What the images of a run come to together, and published curves at the same rates."""

import csv
from collections.abc import Iterator
from math import log2
from pathlib import Path

import numpy as np

from bench import common, rivals
from bench.common import Row
from bench.progressive.dedicated import EXCESS
from bench.progressive.streams import RATES
from bench.rate_distortion import EYE

KEYS = {
    "prefix": "share",
    "own_prefix": "share",
    "dedicated": "share",
    "level": "level",
    "stage": "stage",
    "rate": "rate",
    "curve": "setting",
    "file": "what",
}
"""Kind of rows that are averaged, and what tells the rows of one file apart."""

FALLS = {"psnr_fall_db": "psnr_db", "ssimulacra2_fall": EYE}
"""Field that says by how much more bytes made a picture worse at most, and the metric."""


def summarise(rows: list[Row]) -> Row:
    """Means over the images that gave a picture.

    n_decoded says how many did, n_exact how many of these are the original. Of an excess there is the mean
    and how many images it is of.
    """
    total: Row = {
        "codec": rows[0]["codec"],
        "what": rows[0]["what"],
        **{key: rows[0][key] for key in ("level", "stage", "rate", "setting") if key in rows[0]},
        "share": common.mean(r.get("share") for r in rows),
        "n_images": len(rows),
        "n_decoded": sum(r["decoded"] for r in rows),
        "n_exact": sum(r["exact"] for r in rows),
        "rate_bpp": common.mean(r["rate_bpp"] for r in rows),
        "psnr_db": common.mean(r["psnr_db"] for r in rows),
        EYE: common.mean(r[EYE] for r in rows),
        "file_bpp": common.mean(8 * r["file_bytes"] / r["n_pixels"] for r in rows if "file_bytes" in r),
    }
    for field in EXCESS.values():
        if field in rows[0]:
            total[field] = common.mean(r[field] for r in rows)
            total[f"n_{field}"] = sum(r[field] is not None for r in rows)
    for field in ("tune", "quality", "refinements"):
        if field in rows[0]:
            total[field] = rows[0][field]
    return total


def summaries(rows: list[Row]) -> Iterator[Row]:
    """Of cuts by `KEYS`, of their order by codec, of packets all together, of first pictures by codec."""
    for what, key in KEYS.items():
        chosen = [r for r in rows if r["what"] == what]
        for found in common.group(chosen, "codec", key).values():
            yield summarise(found)
    for (name,), found in common.group([r for r in rows if r["what"] == "order"], "codec").items():
        yield {
            "codec": name,
            "what": "order",
            "n_images": len(found),
            "n_cuts": sum(r["n_cuts"] for r in found),
            **{f"n_rising_{field}": sum(r[field] == 0 for r in found) for field in FALLS},
            **{field: max(r[field] for r in found) for field in FALLS},
        }
    packets = [r for r in rows if r["what"] == "packet"]
    if packets:
        yield {
            "codec": rivals.OURS,
            "what": "packet",
            "n_images": len(common.group(packets, "image")),
            "n_packets": len(packets),
            "psnr_fall_db": max(
                largest_fall(found, "psnr_db") for found in common.group(packets, "image").values()
            ),
        }
    for (name,), found in common.group([r for r in rows if r["what"] == "first"], "codec").items():
        yield {
            "codec": name,
            "what": "first",
            "n_images": len(found),
            "n_bytes": common.mean(r["n_bytes"] for r in found),
            "psnr_db": common.mean(r["psnr_db"] for r in found),
            "time_ms": common.mean(r["time_ms"] for r in found),
        }


def lines(points: list[Row]) -> Iterator[str]:
    """What is said of a run's summaries while it goes on: cuts of lossless files, stages, and what fell."""
    for r in points:
        psnr = "-" if r.get("psnr_db") is None else f"{r['psnr_db']:.2f}"
        if r["what"] == "prefix":
            counts = f"{r['n_decoded']} of {r['n_images']}, {r['n_exact']} exact"
            yield f"{r['codec']:28} {r['share']:6.0%} {psnr:>6} dB, {counts}"
        elif r["what"] == "stage":
            changes = (r[field] for field in EXCESS.values())
            more = " / ".join("-" if c is None else f"{c:+.1f} %" for c in changes)
            yield f"{r['codec']:40} stage {r['stage']:4} {psnr:>6} dB, {more}"
        elif r["what"] == "order":
            falls = f"{r['psnr_fall_db']:.2f} dB and {r['ssimulacra2_fall']:.2f}"
            yield f"{r['codec']:40} falls by {falls} at most"


def order(name: str, rows: list[Row]) -> Row:
    """By how much more bytes of a file made its picture worse at most, in each metric; 0 where never."""
    shown = sorted((r for r in rows if r["decoded"] and r["what"] != "rate"), key=lambda r: r["n_bytes"])
    falls = {field: largest_fall(shown, metric) for field, metric in FALLS.items()}
    return {"codec": name, "what": "order", "n_cuts": len(shown), **falls}


def largest_fall(rows: list[Row], metric: str) -> float:
    """By how much a picture is worse than the best before it, at most; rows in the order of their bytes."""
    worst, best = 0.0, -float("inf")
    for row in rows:
        if row["exact"]:
            value = float("inf")  # an exact picture has no PSNR
        elif row[metric] is None:
            continue
        else:
            value = row[metric]
        if value < best:
            worst = max(worst, best - value)
        best = max(best, value)
    return worst


def read_published(path: Path) -> list[Row]:
    """Points of published progressive curves, of a CSV with the columns codec, rate_bpp and psnr_db."""
    with path.open(newline="", encoding="utf-8") as f:
        return [
            {"codec": r["codec"], "rate_bpp": float(r["rate_bpp"]), "psnr_db": float(r["psnr_db"])}
            for r in csv.DictReader(f)
        ]


def published_at_rates(points: list[Row]) -> Iterator[Row]:
    """PSNR of each published curve at the rates of our cuts that lie within it: linear over log rate."""
    for (name,), curve in common.group(points, "codec").items():
        known = sorted((log2(r["rate_bpp"]), r["psnr_db"]) for r in curve)
        rates, qualities = zip(*known, strict=True)
        for rate in RATES:
            if rates[0] <= log2(rate) <= rates[-1]:
                psnr = float(np.interp(log2(rate), rates, qualities))
                yield {"codec": name, "what": "published", "rate": rate, "rate_bpp": rate, "psnr_db": psnr}
