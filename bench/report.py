"""Gather the results into docs/results.md: tables and plots, with date, machine, versions and the commands.

`--run DIR` runs the benches on a folder first: all of them, those that `--only` names, or with `--missing`
those whose results are not there yet. The README has one small table, between `<!-- bench -->` and
`<!-- /bench -->`: it is made anew from whole results, never from quick runs.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import common, rate_distortion, rivals
from bench.common import Row, say
from bench.markdown import bold, number, of_kind, percent, table
from bench.progressive import tables as prefixes
from bench.progressive.measure import FIRST_IMAGES

BENCHES = (
    "lossless",
    "near_lossless",
    "rate_distortion",
    "progressive",
    "speed_photos",
    "speed",
    "regions",
    "exactness",
)
TITLES = {
    "lossless": "Lossless",
    "near_lossless": "Near-lossless",
    "rate_distortion": "Rate and distortion",
    "progressive": "Prefixes",
    "speed_photos": "Speed on photographs",
    "speed": "Speed by size",
    "regions": "Regions",
    "exactness": "Exactness",
}
PLOTS = {
    "rate_distortion": ("rate_distortion.png",),
    "progressive": ("progressive.png", "progressive_lossy.png", "levels.png"),
}
FLIF = "FLIF interlaced"
ELSEWHERE = (
    ("qres34m lossless (hierarchical VAE, 34 M parameters)", "3.46"),
    ("L3C (multi-scale VAE, 5 M parameters)", "3.26"),
    (FLIF, "2.903"),
    ("DLPR", "2.86"),
    ("ArIB-BPS", "2.78"),
    ("CALLIC (tuned per image)", "2.54"),
)
"""Lossless codecs on Kodak that these benches cannot run: bits per subpixel as published. FLIF was measured
with its program on another machine; where that is installed its own rows take the place."""
ELSEWHERE_LOSSY = {
    "paper-bmshj2018-factorized": "factorized-prior VAE (2018)",
    "paper-bmshj2018-hyperprior": "hyperprior VAE (2018)",
    "av1": "AV1, slow",
    "qres34m": "QRes-VAE, 34 M parameters",
    "qarv_base": "QARV, 93 M parameters",
    "paper-elic2022_mse": "ELIC",
    "cool-chic-v5.0": "Cool-chic 5",
}
"""Published curves that are to be beaten, by their names in the CSV of --published."""
FLIF_PREFIXES = {0.05: 21.1, 0.1: 22.6, 0.2: 25.5, 0.3: 27.3, 0.5: 31.2}
"""PSNR of interlaced FLIF after shares of its own bytes, six Kodak images, measured on another machine."""
BEAT_LOSSLESS = (
    ("png", "optimize"),
    ("jpeg2000", "reversible, one layer"),
    ("webp", "m6 q100"),
    ("flif", "interlaced"),
    ("jpeg_xl", "e7"),
    ("jpeg_xl", "e9"),
)
HERE, PUBLISHED, OTHER_MACHINE = "measured here", "published", "measured on another machine"
UNMEASURED = "Not measured yet; `python -m bench.report --run DIR` fills this in."
MARK = re.compile(r"(<!-- bench -->\n)(.*?)(<!-- /bench -->)", re.DOTALL)
SUMMARY_OF = ("lossless", "rate_distortion")
"""The benches that the README's table is made from."""
FAMILIES = {
    rivals.OURS: rivals.OURS,
    "jpeg_xl": "JPEG XL",
    "avif": "AVIF",
    "webp": "WebP",
    "jpeg2000": "JPEG 2000",
    "png": "PNG",
}
"""Lines of the README's table: the first word of a codec's name, and what people call it."""

SUMMARY_METRICS = {
    rate_distortion.EYE_PER_IMAGE: "SSIMULACRA 2",
    "msssim_db": "MS-SSIM",
    "psnr_db": "PSNR",
}
"""The lossy columns of the README's table."""
EYE_COLUMNS = {
    rate_distortion.EYE_PER_IMAGE: "SSIMULACRA 2, image by image",
    rate_distortion.EYE: "SSIMULACRA 2, curves of the means",
    "msssim_db": "MS-SSIM",
    "psnr_db": "RGB PSNR",
}
"""The comparisons at equal quality, the one that sorts them first."""

Results = dict[str, list[Row]]


def run_all(args: argparse.Namespace) -> bool:
    """Every bench that is to run, in a process of its own; whether all ended well."""
    folder, shared = str(args.run), ["--out", str(args.out)]
    shared += ["--model", str(args.model)] if args.model else []
    shared += ["--quick"] if args.quick else []
    published = ["--published", str(args.published)] if args.published else []
    published_prefixes = ["--published", str(args.published_prefixes)] if args.published_prefixes else []
    commands = {
        "lossless": ["lossless", folder],
        "near_lossless": ["near_lossless", folder],
        "rate_distortion": ["rate_distortion", folder, *published],
        "progressive": ["progressive", folder, *published_prefixes],
        "speed_photos": ["speed", folder, "--photos", "--repeats", "3"],
        "speed": ["speed", folder],
        "regions": ["regions", folder],
        "exactness": ["exactness", folder],
    }
    codes = []
    for bench in args.only:
        if args.missing and has_ended(args.out / f"{bench}.jsonl", args.quick):
            say(f"== {bench}: there already")
            continue
        name, *rest = commands[bench]
        say(f"== bench.{name} {' '.join(rest[1:])}")
        codes.append(subprocess.run([sys.executable, "-m", f"bench.{name}", *rest, *shared]).returncode)
    return not any(codes)


def has_ended(path: Path, quick: bool) -> bool:
    """Whether there are results of a whole run; a quick one will do where a quick one is wanted."""
    if not path.exists():
        return False
    rows = common.read_results(path)
    return bool(of_kind(rows, "end")) and rows[0]["quick"] <= quick


def names(text: str) -> list[str]:
    """Benches from a list with commas. Raises ArgumentTypeError for one that there is not."""
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in BENCHES:
            raise argparse.ArgumentTypeError(f"no bench {name}; there are {', '.join(BENCHES)}")
    return [name for name in BENCHES if name in found]


def with_published(rows: list[Row], published: list[Row]) -> list[Row]:
    """Results of rate_distortion with these published curves instead of those of the run."""
    measured = of_kind(rows, "summary")
    anchors = [r["anchor"] for r in of_kind(rows, "bd_rate")]
    table = rate_distortion.bd_table(measured + published, anchors[0] if anchors else rate_distortion.ANCHOR)
    # nobody has published curves of each image by itself
    of_images = [r for r in of_kind(rows, "bd_rate") if r["metric"] == rate_distortion.EYE_PER_IMAGE]
    kept = [r for r in rows if r["kind"] not in ("published", "bd_rate")] + of_images
    kept += [{"kind": "published"} | r for r in published]
    return kept + [{"kind": "bd_rate"} | r for r in table]


def lossless_table(results: Results) -> str:
    """All codecs by size."""
    rows = sorted(of_kind(results["lossless"], "summary"), key=lambda r: r["rate_bpsp"])
    cells = []
    for r in rows:
        exact = "yes" if r["exact"] else "NO"
        speeds = [number(r["encode_mps"]), number(r["decode_mps"])]
        row = [f"{r['codec']}, {r['setting']}", number(r["rate_bpsp"], 4), *speeds, r["threads"], exact]
        cells.append(bold(row, r["codec"] == rivals.OURS))
    return table(("codec", "bits/subpixel", "encode MP/s", "decode MP/s", "threads", "exact"), cells)


def near_lossless_table(results: Results) -> str:
    """All codecs, by bound and size; those without a bound last."""
    rows = of_kind(results["near_lossless"], "summary")
    lines = []
    for r in sorted(rows, key=lambda r: (r["bound"] is None, r["bound"] or 0, r["rate_bpsp"])):
        name = ", ".join(part for part in (r["codec"], r["setting"]) if part)
        error = f"{r['largest_error']}" + (" (BROKEN)" if r["kept"] is False else "")
        sizes = [number(r["rate_bpsp"], 4), number(r["ratio_bytes"], 3)]
        quality = [number(r["psnr_db"]), number(r[rate_distortion.EYE], 1)]
        speeds = [number(r["encode_mps"]), number(r["decode_mps"])]
        ratios = [number(r["ratio_encode"]), number(r["ratio_decode"])]
        bound = "none" if r["bound"] is None else r["bound"]
        cells = [name, bound, error, *sizes, *quality, *speeds, *ratios]
        lines.append(bold(cells, rivals.is_ours(r["codec"])))
    head = ("codec", "bound", "largest error", "bits/subpixel", "x JPEG-LS", "PSNR, dB", "SSIMULACRA 2")
    speed_head = ("encode MP/s", "decode MP/s", "encode x JPEG-LS", "decode x JPEG-LS")
    return table((*head, *speed_head), lines)


def eye_table(results: Results) -> str:
    """What was measured here by what the eye sees, fewest bits first; a dash where curves do not overlap."""
    rows = results["rate_distortion"]
    changes = [r for r in of_kind(rows, "bd_rate") if not r["published"]]
    distances = {r["codec"]: r for r in of_kind(rows, "equal_bytes")}
    lines = []
    for (name,), found in common.group(changes, "codec").items():
        by_metric = {r["metric"]: r for r in found}
        cells = [percent(by_metric.get(m, {}).get("bd_rate_percent")) for m in EYE_COLUMNS]
        per_image, distance = by_metric.get(rate_distortion.EYE_PER_IMAGE), distances.get(name)
        scores = span(per_image, 0) if per_image else None
        further = [percent(distance["change_percent"]), span(distance, 2)] if distance else [None, None]
        order = per_image["bd_rate_percent"] if per_image else float("inf")
        row = [name, cells[0], scores, *cells[1:], *further]
        lines.append((order, bold(row, rivals.is_ours(name))))
    anchor = changes[0]["anchor"] if changes else "the anchor"
    head = [f"bits against {anchor}, at equal", EYE_COLUMNS[rate_distortion.EYE_PER_IMAGE], "over scores"]
    head += [label for metric, label in EYE_COLUMNS.items() if metric != rate_distortion.EYE_PER_IMAGE]
    head += ["Butteraugli at equal bytes", "over bits/pixel"]
    return table(head, [line for _, line in sorted(lines, key=lambda t: t[0])])


def span(row: Row, digits: int) -> str:
    """The range of a comparison image by image, and of how many it is where it is not of all."""
    part = (
        "" if row["n_images"] == row["n_measured"] else f" ({row['n_images']} of {row['n_measured']} images)"
    )
    return f"{row['low']:.{digits}f} to {row['high']:.{digits}f}{part}"


def lossy_table(results: Results) -> str:
    """BD-rates of PSNR and MS-SSIM, best first."""
    wanted = ("psnr_db", "msssim_db")
    rows = [r for r in of_kind(results["rate_distortion"], "bd_rate") if r["metric"] in wanted]
    found = common.group(rows, "codec", "published")
    lines = []
    for (name, _), curve in found.items():
        by_metric = {r["metric"]: r for r in curve}
        values = [by_metric[m]["bd_rate_percent"] if m in by_metric else None for m in wanted]
        overlap = by_metric.get("psnr_db")
        over = f"{overlap['low']:.1f} to {overlap['high']:.1f}" if overlap else None
        kind = "published" if curve[0]["published"] else "measured"
        order = 1e9 if values[0] is None else values[0]
        line = [name, *map(percent, values), over, kind]
        lines.append((order, bold(line, rivals.is_ours(name))))
    anchor = rows[0]["anchor"] if rows else "the anchor"
    head = (f"codec, against {anchor}", "BD-rate, RGB PSNR", "BD-rate, MS-SSIM", "over PSNR, dB", "")
    return table(head, [line for _, line in sorted(lines, key=lambda t: t[0])])


def speed_table(results: Results) -> str:
    """Photographs as they are, beside JPEG XL e7."""
    cells = []
    for (codec, setting), found in common.group(
        of_kind(results["speed_photos"], "summary"), "codec", "setting"
    ).items():
        ways = {r["way"]: r for r in found}
        row = [f"{codec}, {setting}", found[0]["threads"]]
        for way in ("encode", "decode"):
            r = ways[way]
            row += [number(r["speed_mps"]), number(r["ratio_to_jpeg_xl_e7"]), number(r.get("ratio_to_png"))]
        cells.append(bold([*row, number(found[0]["rate_bpp"])], codec == rivals.OURS))
    both = [f"{way} MP/s|x JPEG XL e7|x PNG" for way in ("encode", "decode")]
    return table(("codec", "threads", *"|".join(both).split("|"), "bits/pixel"), cells)


def startup_table(results: Results, name: str) -> str:
    """Whole processes."""
    cells = [[f"`{r['command']}`", number(r["time_s"], 3)] for r in of_kind(results[name], "startup")]
    return table(("process", "seconds"), cells)


def by_size(rows: list[Row], keys: Sequence[str], value: str, digits: int, corner: str) -> str:
    """One line for each combination of the keys, one column for each size."""
    sizes = sorted({r["size"] for r in rows})
    cells = []
    for found in common.group(rows, *keys).values():
        at = {r["size"]: number(r[value], digits) for r in found}
        line = [run_name(found[0]), *(at.get(size) for size in sizes)]
        cells.append(bold(line, found[0].get("codec") == rivals.OURS))
    return table((corner, *(str(size) for size in sizes)), cells)


def run_name(row: Row) -> str:
    """Codec, mode and way, with how many threads and on which device."""
    what = ", ".join(row[key] for key in ("codec", "setting", "way") if key in row)
    n = row["threads"]
    device = row.get("device", "cpu")
    return f"{what}, {n} thread{'s' if n > 1 else ''}" if device == "cpu" else f"{what}, {device}"


RUN = ("codec", "setting", "way", "threads", "device")


def throughput_table(results: Results) -> str:
    """MP/s by size."""
    return by_size(of_kind(results["speed"], "summary"), RUN, "speed_mps", 2, "MP/s at side")


def memory_table(results: Results) -> str:
    """Peak memory by size, where it was measured."""
    rows = [r for r in of_kind(results["speed"], "summary") if "peak_mb" in r]
    return by_size(rows, RUN, "peak_mb", 0, "peak MB at side")


def ratio_table(results: Results, value: str, rival: str) -> str:
    """Times as fast as a rival on one thread in the same run, by size."""
    return by_size(
        of_kind(results["speed"], "ratio"), RUN[1:], value, 2, f"times as fast as {rival}, at side"
    )


def scaling_table(results: Results) -> str:
    """Exponents of time over pixels."""
    cells = [
        bold([run_name(r), number(r["exponent"], 3)], r["codec"] == rivals.OURS)
        for r in of_kind(results["speed"], "scaling")
    ]
    return table(("time grows with pixels to the power of", "exponent"), cells)


def stage_table(results: Results) -> str:
    """Where the time goes at the largest size that has all modes; each column adds up to its last line."""
    rows = [r for r in of_kind(results["speed"], "summary") if "stages_s" in r]
    runs = common.group(rows, "size", "threads", "device").values()
    n_modes = max(map(len, runs), default=0)
    full = [found for found in runs if len(found) == n_modes]
    if not full:
        return ""
    chosen = max(full, key=lambda found: (found[0]["size"], found[0]["threads"]))
    stages = list(dict.fromkeys(stage for r in chosen for stage in r["stages_s"]))
    cells: list[list[Any]] = []
    for stage in stages:
        cells.append([stage, *(stage_cell(r, stage) for r in chosen)])
    cells.append(["total", *(number(1000 * r["watched_s"], 1) for r in chosen)])
    size, run = chosen[0]["size"], run_name({k: chosen[0][k] for k in ("threads", "device")})
    head = f"ms at {size} x {size}{run}"
    return table((head, *(f"{r['setting']} {r['way']}" for r in chosen)), cells)


def stage_cell(row: Row, stage: str) -> str | None:
    """Milliseconds and share of a stage."""
    time_s = row["stages_s"].get(stage)
    return None if time_s is None else f"{1000 * time_s:.1f} ({time_s / row['watched_s']:.0%})"


def stage_speed_table(results: Results) -> str:
    """Throughput of each stage by size, with as many threads as are measured at all sizes."""
    rows = [r for r in of_kind(results["speed"], "summary") if "stages_s" in r]
    if not rows:
        return ""
    threads = max(r["threads"] for r in rows)
    lines = []
    for r in rows:
        if r["threads"] == threads:
            for stage, time_s in r["stages_s"].items():
                about = {k: r[k] for k in ("setting", "way", "size", "threads", "device")}
                # a stage that took no time to speak of has no speed
                speed = r["n_pixels"] / time_s / 1e6 if time_s >= 1e-4 else None
                lines.append(about | {"stage": stage, "stage_mps": speed})
    sizes = sorted({r["size"] for r in lines})
    cells = []
    for found in common.group(lines, "setting", "way", "device", "stage").values():
        at = {r["size"]: number(r["stage_mps"], 2) for r in found}
        cells.append([f"{run_name(found[0])}: {found[0]['stage']}", *(at.get(size) for size in sizes)])
    return table(("MP/s of the stage alone, at side", *map(str, sizes)), sorted(cells, key=lambda c: c[0]))


# The numbers to beat


def beat_lossless(results: Results) -> str:
    """Bits per subpixel of what there is, ours among them, smallest first."""
    rows: list[tuple[float, list[Any]]] = []
    measured = set()
    for r in of_kind(results.get("lossless", []), "summary"):
        ours = r["codec"] == rivals.OURS
        if ours or (r["codec"], r["setting"]) in BEAT_LOSSLESS:
            measured.add((r["codec"], r["setting"]))
            speeds = [number(r["encode_mps"]), number(r["decode_mps"])]
            line = [f"{r['codec']}, {r['setting']}", number(r["rate_bpsp"], 3), *speeds, HERE]
            rows.append((r["rate_bpsp"], bold(line, ours)))
    for r in of_kind(results.get("progressive", []), "summary"):
        # "d1" is lossy; ours and JPEG have their own tables
        lossless = r["codec"].startswith(("jpeg2000", "jpeg_xl", "flif")) and not r["codec"].endswith("d1")
        if r["what"] == "prefix" and r["share"] == 1 and lossless and r.get("file_bpp"):
            line = [f"{r['codec']}, whole (progressive)", number(r["file_bpp"] / 3, 3), None, None, HERE]
            rows.append((r["file_bpp"] / 3, line))
    for name, rate in ELSEWHERE:
        if name != FLIF:
            rows.append((float(rate), [name, rate, None, None, PUBLISHED]))
        elif ("flif", "interlaced") not in measured:
            rows.append((float(rate), [name, rate, None, None, OTHER_MACHINE]))
    lines = [line for _, line in sorted(rows, key=lambda t: t[0])]
    return table(("lossless", "bits/subpixel", "encode MP/s", "decode MP/s", ""), lines)


def beat_eye(results: Results) -> str:
    """Bits at equal SSIMULACRA 2 of every codec measured, fewest first."""
    metric = rate_distortion.EYE_PER_IMAGE
    rows = [r for r in of_kind(results.get("rate_distortion", []), "bd_rate") if r["metric"] == metric]
    lines = []
    for r in sorted(rows, key=lambda r: r["bd_rate_percent"]):
        line = [r["codec"], percent(r["bd_rate_percent"]), HERE]
        lines.append(bold(line, rivals.is_ours(r["codec"])))
    return (
        table((f"lossy, bits at equal SSIMULACRA 2 against {rows[0]['anchor']}", "", ""), lines)
        if rows
        else ""
    )


def beat_lossy(results: Results) -> str:
    """BD-rate in PSNR, which is what others publish, of every codec measured and of the curves to beat."""
    rows = [r for r in of_kind(results.get("rate_distortion", []), "bd_rate") if r["metric"] == "psnr_db"]
    lines = []
    for r in sorted(rows, key=lambda r: r["bd_rate_percent"]):
        if not r["published"] or r["codec"] in ELSEWHERE_LOSSY:
            name = ELSEWHERE_LOSSY[r["codec"]] if r["published"] else r["codec"]
            line = [name, f"{r['bd_rate_percent']:+.1f} %", PUBLISHED if r["published"] else HERE]
            lines.append(bold(line, rivals.is_ours(r["codec"])))
    return table((f"lossy, BD-rate (RGB PSNR) against {rows[0]['anchor']}", "", ""), lines) if rows else ""


def beat_prefixes(results: Results) -> str:
    """PSNR of prefixes of lossless files at five shares of ours."""
    rows = of_kind(results.get("progressive", []), "summary")
    lines = []
    for (name,), curve in common.group([r for r in rows if r["what"] == "prefix"], "codec").items():
        by_share = {r["share"]: r for r in curve}
        cells = [prefixes.psnr_cell(by_share.get(share)) for share in FLIF_PREFIXES]
        lines.append(bold([name, *cells, HERE], rivals.is_ours(name)))
    if not lines:
        return ""
    if not any(line[0] == "flif interlaced" for line in lines):
        elsewhere = [number(v, 1) for v in FLIF_PREFIXES.values()]
        lines.append(["FLIF interlaced, at shares of its own file", *elsewhere, OTHER_MACHINE])
    return table(("PSNR, dB, at", *(f"{share:.0%}" for share in FLIF_PREFIXES), ""), lines)


def region_table(results: Results) -> str:
    """Time and bytes of regions, and of the whole picture that they are compared with."""
    rows = of_kind(results["regions"], "summary")
    head = ("file", "part", "share of the pixels", "bytes", "share", "seconds", "share")
    body = []
    for r in rows:
        shares = [f"{100 * r[key]:.2f} %" for key in ("pixels_share", "bytes_share", "time_share")]
        cells = [shares[0], f"{r['n_bytes']:,}", shares[1], number(r["time_s"], 3), shares[2]]
        body.append([f"{r['setting']}, {r['size']} x {r['size']}", r["part"], *cells])
    return table(head, body)


def index_table(results: Results) -> str:
    """What the files of the regions are made of."""
    head = ("file", "packets", "index, bytes", "share of the file", "lanes of the finest level", "a group")
    body = []
    for r in of_kind(results["regions"], "file"):
        cells = [f"{r['n_packets']:,}", f"{r['index_bytes']:,}", f"{r['index_percent']:.3f} %"]
        body.append([r["setting"], *cells, f"{r['lanes']:,}", number(r["lanes_of_a_group"], 1)])
    return table(head, body)


def exactness_table(results: Results) -> str:
    """Hashes compared and mismatches, by variant."""
    cells = []
    for (variant,), found in common.group(of_kind(results["exactness"], "row"), "variant").items():
        wrong = sum(len(r["mismatches"]) for r in found)
        cells.append([variant, sum(r["n_hashes"] for r in found), wrong])
    return table(("variant", "hashes compared", "mismatches"), cells)


def about(results: Results, name: str) -> str:
    """When, where and how a bench ran; a run that did not end, or failed in part, says so."""
    rows = results[name]
    run = rows[0]
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    lines = [f"`{run['command']}`", ""]
    lines.append(
        f"{run['date']}, {run['cores']} cores of {run['machine']}{', ' + run['gpu'] if run['gpu'] else ''};"
    )
    lines.append(f"commit {run['commit']}; {versions}.")
    if run["quick"]:
        lines.append("**A quick run, on few images: no result.**")
    errors = of_kind(rows, "error")
    if errors:
        lines.append(f"**{len(errors)} measurements failed and are left out.**")
    ends = of_kind(rows, "end")
    lines.append(f"It took {ends[0]['time_s'] / 60:.1f} minutes." if ends else "**The run did not end.**")
    return "\n".join(lines)


def prefix_section(rows: list[Row]) -> list[str]:
    """Text and tables of the prefixes. rows: the summaries."""
    eye = rate_distortion.EYE
    return [
        "Lossless files, and JPEG beside them. Every file is cut at the same bytes: shares of our layered "
        "lossless file. JPEG 2000 has a layer ending at each. A file that is larger is not whole at 100%.",
        prefixes.share_table(rows, "prefix"),
        prefixes.share_table(rows, "prefix", eye),
        "Dedicated files of at most that many bytes:",
        prefixes.share_table(rows, "dedicated"),
        prefixes.share_table(rows, "dedicated", eye),
        "Our lossless files, level by level:",
        prefixes.level_table(rows),
        "Lossy files, cut at shares of their own bytes:",
        prefixes.share_table(rows, "own_prefix"),
        prefixes.share_table(rows, "own_prefix", eye),
        "Lossy files, and lossless JPEG 2000 with layers for it, cut at bits per pixel. Published curves "
        "are means over the same images of cuts at the same step, not at the same bytes, between points "
        "linear over log rate.",
        prefixes.rate_table(rows),
        "What refinements cost: by how much a prefix is larger than a file without refinements of the same "
        "PSNR, or of the same SSIMULACRA 2 (PCHIP over log rate, image by image, then the mean).",
        prefixes.excess_table(rows),
        "Does more ever show less? Over all cuts above but those at bits per pixel, image by image: on how "
        "many each cut is at least as good as every shorter one, and by how much one is worse at most.",
        prefixes.order_table(rows),
        prefixes.packet_line(rows),
        f"The first picture, on at most {FIRST_IMAGES} images: ours is the first level, JPEG's the first "
        "scan, JPEG 2000's the first layer, the others' the shortest prefix their decoder takes. Times of "
        "FLIF and JPEG XL include the start of their program.",
        prefixes.first_table(rows),
    ]


def sections(results: Results, plots: str) -> str:
    """The whole of docs/results.md."""
    (low, high), (least_bpp, most_bpp) = rate_distortion.EYE_RANGE, rate_distortion.RATE_RANGE
    bodies: dict[str, Callable[[], list[str]]] = {
        "lossless": lambda: [
            "Mean over the images; every file decoded and compared. "
            "Our encoding includes the decode that checks it.",
            lossless_table(results),
        ],
        "near_lossless": lambda: [
            "No sample of R, G or B of a file is off by more than the bound; the largest error is measured "
            "in the decoded pictures. Bytes and speeds against JPEG-LS of the same bound. JPEG XL of "
            "samples in steps of twice the bound and one keeps the bound behind any lossless codec. WebP's "
            "near-lossless mode and JPEG XL at small distances keep none.",
            near_lossless_table(results),
        ],
        "rate_distortion": lambda: [
            "By what the eye sees: bits against the anchor at equal SSIMULACRA 2 (PCHIP over log rate), over "
            f"what two curves share of the scores {low:.0f} to {high:.0f}. Image by image: each has curves "
            "of its own, and the changes are averaged. Butteraugli: by how much its distance (3-norm) is "
            f"larger at equal bytes, image by image, at {least_bpp} to {most_bpp} bits per pixel.",
            eye_table(results),
            "BD-rate: bits against the anchor at equal quality "
            "(Akima over log rate, where the curves overlap), from means over "
            "the images. Published curves are their authors' numbers, whose rates may be estimates.",
            lossy_table(results),
        ],
        "progressive": lambda: prefix_section(of_kind(results["progressive"], "summary")),
        "speed_photos": lambda: [
            "In process, median of the repetitions, codecs taking turns. "
            "Lossless encoding of ours includes the decode that checks it.",
            speed_table(results),
            startup_table(results, "speed_photos"),
        ],
        "speed": lambda: [
            "Square pictures. Peak memory is the whole process's during that coding. "
            "Rivals run on one thread.",
            throughput_table(results),
            memory_table(results),
            ratio_table(results, "ratio_to_jpeg_xl_e7", "JPEG XL e7"),
            ratio_table(results, "ratio_to_png", "PNG (Pillow, optimize)"),
            scaling_table(results),
            "Stages are of a pass in which what the codec does on threads of its own is done in turn, "
            "so that they add up to the pass's total.",
            stage_table(results),
            stage_speed_table(results),
            startup_table(results, "speed"),
        ],
        "regions": lambda: [
            "A square of 512 pixels of a large lossless file, on the corners of groups and across them.",
            region_table(results),
            index_table(results),
        ],
        "exactness": lambda: [
            "Hashes of every decoded level against the first decode.",
            exactness_table(results),
        ],
    }
    parts = [
        "# Results",
        "Written by `python -m bench.report`; the numbers come from the runs named below each title.",
        "## Numbers to beat",
        "Ours, measured below, beside the rivals' from the same runs and, marked so, what others published "
        "for the 24 Kodak images: comparable only where the runs below are of these.",
        beat_lossless(results),
        beat_eye(results),
        beat_lossy(results),
        beat_prefixes(results),
    ]
    for name in BENCHES:
        parts.append(f"## {TITLES[name]}")
        if name not in results:
            parts.append("Not measured.")
            continue
        parts += [about(results, name), *bodies[name]()]
        parts += [f"![{TITLES[name]}]({plots}/{file})" for file in PLOTS.get(name, ())]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_table(results: Results) -> str:
    """The README's table: each kind of codec at its best, lossless and lossy, without published rows.

    Best means fewest bits, in each column by itself: of lossless files, and at equal quality.
    """
    lossless = of_kind(results["lossless"], "summary")
    curves = [r for r in of_kind(results["rate_distortion"], "bd_rate") if not r["published"]]
    lines = []
    for family, name in FAMILIES.items():
        files = [r for r in lossless if r["codec"].split()[0] == family]
        smallest = min(files, key=lambda r: r["rate_bpsp"], default=None)
        cells = [None if smallest is None else f"{smallest['rate_bpsp']:.3f} ({smallest['setting']})"]
        for metric in SUMMARY_METRICS:
            own = [r for r in curves if r["codec"].split()[0] == family and r["metric"] == metric]
            best = min(own, key=lambda r: r["bd_rate_percent"], default=None)
            setting = "" if best is None else best["codec"].removeprefix(family).strip()
            note = f" ({setting})" if setting else ""
            cells.append(None if best is None else f"{percent(best['bd_rate_percent'])}{note}")
        lines.append(bold([name, *cells], family == rivals.OURS))
    anchor = curves[0]["anchor"] if curves else "the anchor"
    first, *others = SUMMARY_METRICS.values()
    lossy = (f"lossy, bits against {anchor}, equal {first}", *(f"equal {label}" for label in others))
    return table(("", "lossless, bits/subpixel", *lossy), lines)


def fill_readme(text: str, results: Results) -> str:
    """The text with the table between its marks made anew.

    Without results, or with results of a quick run only, it stays; an empty one gets a line that says so.
    """
    measured = all(bench in results and not results[bench][0]["quick"] for bench in SUMMARY_OF)

    def fill(match: re.Match[str]) -> str:
        kept = match[2] if match[2].strip() else f"{UNMEASURED}\n"
        return match[1] + (f"{summary_table(results)}\n" if measured else kept) + match[3]

    return MARK.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a bench that was to run failed."""
    p = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    p.add_argument("--run", type=Path, metavar="DIR", help="run the benches on these images first")
    p.add_argument(
        "--only",
        type=names,
        default=list(BENCHES),
        metavar="NAMES",
        help=f"of --run, with commas: {', '.join(BENCHES)} [default: all]",
    )
    p.add_argument("--missing", action="store_true", help="of --run: only what has no whole results in --out")
    p.add_argument(
        "--out", type=Path, default=common.DEFAULT_OUT, help="folder of the results [default: %(default)s]"
    )
    p.add_argument(
        "--docs", type=Path, default=Path("docs"), help="where results.md goes [default: %(default)s]"
    )
    p.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="whose table to fill [default: %(default)s]"
    )
    p.add_argument("--published", type=Path, help="CSV of published rate-distortion curves")
    p.add_argument("--published-prefixes", type=Path, help="of --run: CSV of published progressive curves")
    p.add_argument("--model", type=Path, help="weights [default: the shipped ones]")
    p.add_argument("--quick", action="store_true", help="of the benches")
    args = p.parse_args(argv)
    ended_well = run_all(args) if args.run else True
    results = {
        n: common.read_results(args.out / f"{n}.jsonl") for n in BENCHES if (args.out / f"{n}.jsonl").exists()
    }
    if args.published and "rate_distortion" in results:
        published = rate_distortion.read_published(args.published)
        results["rate_distortion"] = with_published(results["rate_distortion"], published)
    plots = args.docs / "results"
    plots.mkdir(parents=True, exist_ok=True)
    for name, files in PLOTS.items():
        for file in files if name in results else ():
            if (args.out / file).exists():
                shutil.copyfile(args.out / file, plots / file)
    (args.docs / "results.md").write_text(sections(results, plots.name), encoding="utf-8")
    say(f"{args.docs / 'results.md'}")
    if args.readme.exists():
        before = args.readme.read_text(encoding="utf-8")
        after = fill_readme(before, results)
        if after != before:
            args.readme.write_text(after, encoding="utf-8")
            say(f"{args.readme}: table filled")
    return int(not ended_well)


if __name__ == "__main__":
    sys.exit(main())
