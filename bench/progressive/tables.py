"""The tables of docs/results.md. rows: lines of kind `summary` of `progressive.jsonl`."""

from bench import common, rivals
from bench.common import Row
from bench.markdown import bold, number, percent, table
from bench.progressive.dedicated import EXCESS
from bench.progressive.streams import LOSSLESS_MODES, RATES, SHARES
from bench.rate_distortion import EYE

HEADS = {"psnr_db": "PSNR, dB, at", EYE: "SSIMULACRA 2 at"}


def share_table(rows: list[Row], what: str, metric: str = "psnr_db") -> str:
    """A metric by share of the bytes, and the size of files that are cut; a dash where no image gave a
    picture."""
    of_files = what != "dedicated"
    lines = []
    for (name,), curve in common.group([r for r in rows if r["what"] == what], "codec").items():
        by_share = {r["share"]: r for r in curve}
        cells = [metric_cell(by_share.get(share), metric) for share in SHARES]
        sizes = [r["file_bpp"] / 3 for r in curve if r.get("file_bpp")]
        whole = [number(sizes[0], 3) if sizes else None] if of_files else []
        lines.append(bold([name, *cells, *whole], rivals.is_ours(name)))
    last = ("whole file, bits/subpixel",) if of_files else ()
    return table((HEADS[metric], *(f"{share:.0%}" for share in SHARES), *last), lines)


def metric_cell(row: Row | None, metric: str) -> str | None:
    """The mean of a metric, with how many images gave a picture where not all did."""
    if metric == "psnr_db":
        return psnr_cell(row)
    return None if row is None else number(row[metric], 1)


def psnr_cell(row: Row | None) -> str | None:
    """PSNR, how many images it is of where not all, or that they are exact."""
    if row is None or not row["n_decoded"]:
        return None
    if row["n_exact"] == row["n_images"]:
        return "exact"
    part = "" if row["n_decoded"] == row["n_images"] else f" ({row['n_decoded']} of {row['n_images']})"
    return f"{row['psnr_db']:.1f}{part}" if row["psnr_db"] is not None else f"exact{part}"


def level_table(rows: list[Row]) -> str:
    """What each level of our lossless files gives, in the order of the file.

    Images of other sizes have other numbers of exact levels.
    """
    cells = []
    for mode in LOSSLESS_MODES:
        levels = [r for r in rows if r["what"] == "level" and r["codec"] == f"{rivals.OURS} {mode}"]
        for r in sorted(levels, key=lambda r: r["share"]):
            quality = [psnr_cell(r), number(r[EYE], 1)]
            cells.append(
                [mode, r["level"], f"{r['share']:.1%}", number(r["rate_bpp"], 3), *quality, r["n_images"]]
            )
    head = ("file", "level", "of the bytes", "bits/pixel", "PSNR, dB", "SSIMULACRA 2", "images")
    return table(head, cells)


def order_table(rows: list[Row]) -> str:
    """On how many images every cut was as good as all shorter ones, and by how much one was worse at most."""
    lines = []
    for r in (r for r in rows if r["what"] == "order"):
        cells: list[str | None] = []
        for field, digits in (("psnr_fall_db", 2), ("ssimulacra2_fall", 2)):
            cells += [f"{r[f'n_rising_{field}']} of {r['n_images']}", number(r[field], digits)]
        lines.append(bold([r["codec"], *cells, r["n_cuts"]], rivals.is_ours(r["codec"])))
    head = (
        "file",
        "PSNR never falls",
        "largest fall, dB",
        "SSIMULACRA 2 never falls",
        "largest fall",
        "cuts",
    )
    return table(head, lines)


def packet_line(rows: list[Row]) -> str:
    """How the layered file does packet by packet."""
    return "\n".join(
        f"Cut after each packet ({r['n_packets']} on {r['n_images']} images), the PSNR of the layered file "
        f"is at most {r['psnr_fall_db']:.2f} dB below the best before."
        for r in rows
        if r["what"] == "packet"
    )


def rate_table(rows: list[Row]) -> str:
    """PSNR of prefixes of lossy files at bits per pixel; a dash where a file of an image is shorter."""
    n_images = max((r["n_images"] for r in rows if r["what"] == "file"), default=0)
    lines = []
    for what in ("rate", "published"):
        for (name,), curve in common.group([r for r in rows if r["what"] == what], "codec").items():
            by_rate = {r["rate"]: r for r in curve if what == "published" or r["n_images"] == n_images}
            if what == "rate":
                cells = [psnr_cell(by_rate.get(rate)) for rate in RATES]
            else:
                cells = [number(by_rate.get(rate, {}).get("psnr_db"), 1) for rate in RATES]
            if any(cells):
                label = f"{name} (published)" if what == "published" else name
                lines.append(bold([label, *cells], rivals.is_ours(name)))
    return table(("PSNR, dB, at bits/pixel", *(f"{rate:g}" for rate in RATES)), lines)


def excess_table(rows: list[Row]) -> str:
    """By how much prefixes of our lossy files with refinements are larger than files made for what they
    show."""
    lines = []
    for r in sorted((r for r in rows if r["what"] == "stage"), key=excess_order):
        if r["refinements"]:
            cells = [f"{r['share']:.0%}", number(r["rate_bpp"], 3), psnr_cell(r), number(r[EYE], 1)]
            for field in EXCESS.values():
                n_compared = r[f"n_{field}"]
                part = "" if n_compared in (0, r["n_images"]) else f" ({n_compared} of {r['n_images']})"
                cells.append(None if r[field] is None else f"{percent(r[field])}{part}")
            lines.append([r["codec"].removeprefix(f"{rivals.OURS} "), stage_name(r["stage"]), *cells])
    head = ("file", "stage", "of the bytes", "bits/pixel", "PSNR, dB", "SSIMULACRA 2")
    return table((*head, "bytes at equal PSNR", "bytes at equal SSIMULACRA 2"), lines)


def excess_order(row: Row) -> tuple[str, int, int, float]:
    """By file, then along it."""
    return row["tune"], row["quality"], row["refinements"], row["stage"]


def stage_name(stage: float) -> str:
    """Stages are counted from 1 for people; a fraction is how far the next one has come."""
    number_of, part = divmod(stage, 1)
    return f"{number_of + 1:.0f}" + (f" and {part:.0%} of the next" if part else "")


def first_table(rows: list[Row]) -> str:
    """Time and bytes to the first picture."""
    cells = [
        bold(
            [r["codec"], round(r["n_bytes"]), number(r.get("psnr_db"), 1), number(r["time_ms"], 1)],
            rivals.is_ours(r["codec"]),
        )
        for r in rows
        if r["what"] == "first"
    ]
    return table(("first picture", "bytes", "PSNR, dB", "decoding, ms"), cells)
