"""Gather the results into docs/results.md: tables and plots, with date, machine, versions and the commands.

`--run DIR` runs all benches on a folder first. Tables marked in the README (`<!-- bench:NAME -->` to `<!--
bench -->`) are replaced by the same tables; NAME is lossless, lossy, prefixes or speed.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import common, progressive, rivals
from bench.common import Row, say

BENCHES = ("lossless", "rate_distortion", "progressive", "speed_photos", "speed", "exactness")
TITLES = {
    "lossless": "Lossless",
    "rate_distortion": "Rate and distortion",
    "progressive": "Prefixes",
    "speed_photos": "Speed on photographs",
    "speed": "Speed by size",
    "exactness": "Exactness",
}
PLOTS = {"rate_distortion": ("rate_distortion.png",), "progressive": ("progressive.png", "levels.png")}
ELSEWHERE = (
    ("qres34m lossless (hierarchical VAE, 34 M parameters)", "3.46"),
    ("L3C (multi-scale VAE, 5 M parameters)", "3.26"),
    ("FLIF interlaced", "2.903"),
    ("DLPR", "2.86"),
    ("ArIB-BPS", "2.78"),
    ("CALLIC (tuned per image)", "2.54"),
)
"""Lossless codecs on Kodak that these benches cannot run: bits per subpixel as published (FLIF: measured with
its program)."""
MARK = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- bench -->)", re.DOTALL)

Results = dict[str, list[Row]]


def run_all(args: argparse.Namespace) -> bool:
    """Every bench in a process of its own; whether all ended well."""
    folder, shared = str(args.run), ["--out", str(args.out)]
    shared += ["--model", str(args.model)] if args.model else []
    shared += ["--quick"] if args.quick else []
    published = ["--published", str(args.published)] if args.published else []
    commands = (
        ["lossless", folder],
        ["rate_distortion", folder, *published],
        ["progressive", folder],
        ["speed", folder, "--photos"],
        ["speed", folder],
        ["exactness", folder],
    )
    codes = []
    for name, *rest in commands:
        say(f"== bench.{name} {' '.join(rest[1:])}")
        codes.append(subprocess.run([sys.executable, "-m", f"bench.{name}", *rest, *shared]).returncode)
    return not any(codes)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; text to the left, numbers to the right, None as a dash."""
    cells = [["-" if c is None else str(c) for c in row] for row in rows]
    align = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(head), align, *cells])


def number(value: float | None, digits: int = 2) -> str | None:
    """With so many digits; None stays."""
    return None if value is None else f"{value:.{digits}f}"


def bold(row: list[Any], ours: bool) -> list[Any]:
    """Our rows in bold."""
    return [None if c is None else f"**{c}**" for c in row] if ours else row


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [r for r in rows if r["kind"] == kind]


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


def lossy_table(results: Results, published: bool = True) -> str:
    """BD-rates of PSNR and MS-SSIM, best first."""
    rows = of_kind(results["rate_distortion"], "bd_rate")
    found = common.group([r for r in rows if published or not r["published"]], "codec")
    lines = []
    for (name,), curve in found.items():
        by_metric = {r["metric"]: r for r in curve}
        values = [
            by_metric[m]["bd_rate_percent"] if m in by_metric else None for m in ("psnr_db", "msssim_db")
        ]
        overlap = by_metric.get("psnr_db")
        span = f"{overlap['low_db']:.1f} to {overlap['high_db']:.1f}" if overlap else None
        kind = "published" if curve[0]["published"] else "measured"
        order = 1e9 if values[0] is None else values[0]
        signed = [None if v is None else f"{v:+.1f} %" for v in values]
        lines.append((order, bold([name, *signed, span, kind], name == rivals.OURS)))
    anchor = rows[0]["anchor"] if rows else "the anchor"
    head = (f"codec, against {anchor}", "BD-rate, RGB PSNR", "BD-rate, MS-SSIM", "over PSNR, dB", "")
    return table(head, [line for _, line in sorted(lines, key=lambda t: t[0])])


def prefix_table(results: Results, what: str = "prefix") -> str:
    """PSNR by share of the bytes; a dash where no image gave a picture."""
    rows = [r for r in of_kind(results["progressive"], "summary") if r["what"] == what]
    lines = []
    for (name,), curve in common.group(rows, "codec").items():
        by_share = {r["share"]: r for r in curve}
        cells = [prefix_cell(by_share.get(share)) for share in progressive.SHARES]
        lines.append(bold([name, *cells], name == rivals.OURS))
    return table(("PSNR, dB, at", *(f"{share:.0%}" for share in progressive.SHARES)), lines)


def prefix_cell(row: Row | None) -> str | None:
    """PSNR, how many images it is of where not all, or that they are exact."""
    if row is None or not row["n_decoded"]:
        return None
    if row["n_exact"] == row["n_images"]:
        return "exact"
    part = "" if row["n_decoded"] == row["n_images"] else f" ({row['n_decoded']} of {row['n_images']})"
    return f"{row['psnr_db']:.1f}{part}" if row["psnr_db"] is not None else f"exact{part}"


def level_table(results: Results) -> str:
    """What each level of our file gives. Images of other sizes have other numbers of exact levels."""
    rows = [r for r in of_kind(results["progressive"], "summary") if r["what"] == "level"]
    cells = [
        [
            r["level"],
            f"{r['share']:.1%}",
            number(r["rate_bpp"], 3),
            prefix_cell(r),
            number(r["msssim"], 4),
            r["n_images"],
        ]
        for r in sorted(rows, key=lambda r: r["level"])
    ]
    return table(("level", "of the bytes", "bits/pixel", "PSNR, dB", "MS-SSIM", "images"), cells)


def first_table(results: Results) -> str:
    """Time and bytes to the first picture."""
    rows = [r for r in of_kind(results["progressive"], "summary") if r["what"] == "first"]
    cells = [
        bold([r["codec"], round(r["n_bytes"]), number(r["time_ms"], 1)], r["codec"] == rivals.OURS)
        for r in rows
    ]
    return table(("first picture", "bytes", "ms"), cells)


def speed_table(results: Results) -> str:
    """Photographs as they are, beside JPEG XL e7."""
    cells = []
    for (codec, setting), found in common.group(
        of_kind(results["speed_photos"], "summary"), "codec", "setting"
    ).items():
        ways = {r["way"]: r for r in found}
        row = [f"{codec}, {setting}", found[0]["threads"]]
        for way in ("encode", "decode"):
            row += [number(ways[way]["speed_mps"]), number(ways[way]["ratio_to_jpeg_xl_e7"])]
        cells.append(bold([*row, number(found[0]["rate_bpp"])], codec == rivals.OURS))
    head = ("codec", "threads", "encode MP/s", "x JPEG XL e7", "decode MP/s", "x JPEG XL e7", "bits/pixel")
    return table(head, cells)


def startup_table(results: Results, name: str) -> str:
    """Whole processes."""
    cells = [[f"`{r['command']}`", number(r["time_s"], 3)] for r in of_kind(results[name], "startup")]
    return table(("process", "seconds"), cells)


def size_table(results: Results) -> str:
    """Throughput and peak memory by size; scaling below."""
    rows = of_kind(results["speed"], "summary")
    cells = []
    for r in rows:
        peak = number(r.get("peak_mb"), 0)
        row = [
            f"{r['codec']}, {r['setting']}, {r['way']}",
            r["size"],
            r["threads"],
            number(r["speed_mps"]),
            peak,
        ]
        cells.append(bold(row, r["codec"] == rivals.OURS))
    return table(("codec", "side", "threads", "MP/s", "peak MB"), cells)


def scaling_table(results: Results) -> str:
    """Exponents of time over pixels."""
    rows = of_kind(results["speed"], "scaling")
    cells = [
        [f"{r['codec']}, {r['setting']}, {r['way']}", r["threads"], number(r["exponent"], 3)] for r in rows
    ]
    return table(("time grows with pixels to the power of", "threads", "exponent"), cells)


def stage_table(results: Results) -> str:
    """Where the time goes at the largest size that has all modes."""
    rows = [r for r in of_kind(results["speed"], "summary") if "stages_s" in r]
    n_modes = max((len(f) for f in common.group(rows, "size", "threads").values()), default=0)
    full = [f for f in common.group(rows, "size", "threads").values() if len(f) == n_modes]
    if not full:
        return ""
    chosen = max(full, key=lambda f: (f[0]["size"], f[0]["threads"]))
    stages = list(dict.fromkeys(stage for r in chosen for stage in r["stages_s"]))
    cells: list[list[Any]] = [
        [stage, *(number(1000 * r["stages_s"][stage], 1) if stage in r["stages_s"] else None for r in chosen)]
        for stage in stages
    ]
    cells.append(["total", *(number(1000 * r["watched_s"], 1) for r in chosen)])
    size, threads = chosen[0]["size"], chosen[0]["threads"]
    return table(
        (f"ms at {size} x {size}, {threads} threads", *(f"{r['setting']} {r['way']}" for r in chosen)), cells
    )


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


def sections(results: Results, plots: str) -> str:
    """The whole of docs/results.md."""
    bodies: dict[str, Callable[[], list[str]]] = {
        "lossless": lambda: [
            "Mean over the images; every file decoded and compared. "
            "Our encoding includes the decode that checks it.",
            lossless_table(results),
            "Measured or published elsewhere, on Kodak, bits per subpixel:",
            table(("codec", "bits/subpixel"), ELSEWHERE),
        ],
        "rate_distortion": lambda: [
            "BD-rate: bits against the anchor at equal quality "
            "(Akima over log rate, where the curves overlap), from means over "
            "the images. Published curves are their authors' numbers, whose rates may be estimates.",
            lossy_table(results),
        ],
        "progressive": lambda: [
            "Every codec is cut at the same bytes: shares of our layered lossless file. "
            "JPEG 2000 has a layer ending at each.",
            prefix_table(results),
            "Dedicated files of at most that many bytes:",
            prefix_table(results, "dedicated"),
            "Our file, level by level:",
            level_table(results),
            first_table(results),
        ],
        "speed_photos": lambda: [
            "In process, median of the repetitions, codecs taking turns. "
            "Lossless encoding of ours includes the decode that checks it.",
            speed_table(results),
            startup_table(results, "speed_photos"),
        ],
        "speed": lambda: [
            "Square pictures. Peak memory is the whole process's, up to and including that coding.",
            size_table(results),
            scaling_table(results),
            stage_table(results),
        ],
        "exactness": lambda: [
            "Hashes of every decoded level against the first decode.",
            exactness_table(results),
        ],
    }
    parts = [
        "# Results",
        "Written by `python -m bench.report`; the numbers come from the runs named below each title.",
    ]
    for name in BENCHES:
        parts.append(f"## {TITLES[name]}")
        if name not in results:
            parts.append("Not measured.")
            continue
        parts += [about(results, name), *bodies[name]()]
        parts += [f"![{TITLES[name]}]({plots}/{file})" for file in PLOTS.get(name, ())]
    return "\n\n".join(part for part in parts if part) + "\n"


def fill_readme(text: str, results: Results) -> str:
    """The text with the tables between its marks replaced; those without results stay."""
    tables: dict[str, tuple[str, Callable[[], str]]] = {
        "lossless": ("lossless", lambda: lossless_table(results)),
        "lossy": ("rate_distortion", lambda: lossy_table(results, published=False)),
        "prefixes": ("progressive", lambda: prefix_table(results)),
        "speed": ("speed_photos", lambda: speed_table(results)),
    }

    def fill(match: re.Match[str]) -> str:
        if match[2] not in tables:
            raise SystemExit(f"no table {match[2]}; there are {', '.join(tables)}")
        bench, make = tables[match[2]]
        return f"{match[1]}{make()}\n{match[3]}" if bench in results else match[0]

    return MARK.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a bench that was to run failed."""
    p = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    p.add_argument("--run", type=Path, metavar="DIR", help="run all benches on these images first")
    p.add_argument(
        "--out", type=Path, default=common.DEFAULT_OUT, help="folder of the results [default: %(default)s]"
    )
    p.add_argument(
        "--docs", type=Path, default=Path("docs"), help="where results.md goes [default: %(default)s]"
    )
    p.add_argument(
        "--readme", type=Path, default=Path("README.md"), help="whose tables to fill [default: %(default)s]"
    )
    p.add_argument("--published", type=Path, help="CSV of published rate-distortion curves")
    p.add_argument("--model", type=Path, help="weights [default: the shipped ones]")
    p.add_argument("--quick", action="store_true", help="of the benches")
    args = p.parse_args(argv)
    ended_well = run_all(args) if args.run else True
    results = {
        n: common.read_results(args.out / f"{n}.jsonl") for n in BENCHES if (args.out / f"{n}.jsonl").exists()
    }
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
            say(f"{args.readme}: tables filled")
    return int(not ended_well)


if __name__ == "__main__":
    sys.exit(main())
