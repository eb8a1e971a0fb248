"""Gather runs of the research wing into docs/systems.md: the theses' figures beside ours, and the effects.

`python -m bench.systems RUN_DIR... --out docs/systems.md`. Runs of one study with the same budget and several
seeds are shown together, as mean and standard deviation. Pictures are copied beside the file. What the file
has of studies that no folder given is a run of stays in it as it is.
"""

import argparse
import math
import re
import shutil
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import say
from bench.markdown import table
from vbc.codec.research.run import RESULT, Record, Row, Table, load_result, say_budget
from vbc.codec.research.studies import STUDIES, find_study
from vbc.codec.study_cli import VERDICTS, figure, heads

HEAD = """# The systems of the theses, trained small

Each study trains the systems of one chapter for minutes and sets our figures beside the thesis'. The
budgets are thousands of times smaller than the theses' and the data are those at hand: **orders and signs**
can be compared, absolute figures cannot. Every number comes from a run whose command stands beside it; this
file is made by `python -m bench.systems`. A figure with ± is the mean and the standard deviation over seeds.
"""
NOT_RUN = "No run of these studies has been gathered: "
WIDTH = 120
"""Of lines of prose."""


@dataclass(frozen=True)
class Gathered:
    """Runs of one study that differ in their seeds alone, with their folders."""

    runs: list[tuple[Path, Record]]

    @property
    def first(self) -> Record:
        return self.runs[0][1]

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.runs]


def gather(folders: Iterable[Path]) -> list[Gathered]:
    """The runs by study, studies by name. Raises ValueError where two runs of a study differ in more than the
    seed, or do not."""
    by_study: dict[str, list[tuple[Path, Record]]] = defaultdict(list)
    for folder in folders:
        record = load_result(folder)
        by_study[record.study].append((folder, record))
    for name, runs in by_study.items():
        if len({(record.budget_s, record.device) for _, record in runs}) > 1:
            raise ValueError(f"runs of {name} differ in budget or device")
        if len({record.seed for _, record in runs}) < len(runs):
            raise ValueError(f"two runs of {name} have one seed")
    return [Gathered(sorted(by_study[name], key=lambda run: run[1].seed)) for name in sorted(by_study)]


def section(gathered: Gathered, pictures: Path, left_out: Collection[str]) -> str:
    """A study's part of the file. pictures: the folder beside it that its pictures go to. left_out: as in
    `copied`."""
    first, records = gathered.first, gathered.records
    study = find_study(first.study)
    seconds = ", ".join(f"{record.seconds:.0f}" for record in records)
    seeds = ", ".join(str(record.seed) for record in records)
    parts = [
        f"## {first.study}\n\n" + wrapped(f"{study.about} ({study.source})."),
        f"Budget {say_budget(first.budget_s)} a run on {first.device}; seeds {seeds}; "
        f"{seconds} seconds used; torch {first.versions['torch']}.\n\n```\n{command(first)}\n```",
    ]
    parts += [f"**{merged.title}**\n\n{markdown(merged, records)}" for merged in first.result.tables]
    parts += [effects(records)] if first.result.effects else []
    parts += ["\n".join(map(item, first.result.notes))] if first.result.notes else []
    parts += copied(gathered, pictures, left_out)
    return "\n\n".join(parts)


def command(record: Record) -> str:
    """The command that repeats a run, its folders replaced by names."""
    budget = say_budget(record.budget_s)
    return (
        f"codec study run {record.study} --data DATA --out RUN --budget {budget} --seed {record.seed}"
        f" --device {record.device}"
    )


def markdown(shown: Table, records: Sequence[Record]) -> str:
    """A table over all runs; where the thesis has a column's figure, it stands in a column of its own."""
    rows = {row.model: [row] for row in shown.rows}
    for record in records[1:]:
        for other in (t for t in record.result.tables if t.title == shown.title):
            for row in other.rows:
                rows.setdefault(row.model, []).append(row)
    both = {key: any(key in row.thesis for row in shown.rows) for key in shown.units}
    head = ["", *(text for key, unit in shown.units.items() for text in heads(key, unit, both[key]))]
    return table(head, [line(name, found, both) for name, found in rows.items()])


def line(name: str, rows: Sequence[Row], both: dict[str, bool]) -> list[str]:
    """A model's row: the mean of each figure over the runs and, where there are several, its spread."""
    cells = [name]
    for key, has_thesis in both.items():
        found = [row.figures[key] for row in rows if not math.isnan(row.figures.get(key, math.nan))]
        cells.append(spread(found))
        cells += [figure(rows[0].thesis.get(key))] if has_thesis else []
    return cells


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; one value alone as it is, none as a dash."""
    if not values:
        return "-"
    mean = figure(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {figure(statistics.stdev(values))}"


def effects(records: Sequence[Record]) -> str:
    """What the thesis claims, and whether the runs show it; with several seeds, how many do."""
    lines = []
    for claim in dict.fromkeys(effect.claim for record in records for effect in record.result.effects):
        found = [(r.seed, e) for r in records for e in r.result.effects if e.claim == claim]
        verdicts = [effect.found for _, effect in found]
        if len(set(verdicts)) == 1:
            verdict = VERDICTS[verdicts[0]]
        else:
            verdict = f"re-obtained with {verdicts.count(True)} of {len(verdicts)} seeds"
        whys = dict.fromkeys(effect.why for _, effect in found)
        if len(whys) > 1:
            whys = {f"seed {seed}: {effect.why}": None for seed, effect in found}
        lines.append(item(f"**{verdict}**: {claim} ({'; '.join(whys)})"))
    return "\n".join(lines)


def item(text: str) -> str:
    """An item of a list."""
    return wrapped(f"- {text}", "  ")


def wrapped(text: str, indent: str = "") -> str:
    """Prose in lines of at most `WIDTH` columns, all but the first one indented."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def copied(gathered: Gathered, pictures: Path, left_out: Collection[str]) -> list[str]:
    """The pictures of the first run, as links to copies of them. left_out: names of copies not to make."""
    folder, record = gathered.runs[0]
    links = []
    for name in record.result.pictures:
        copy = f"{record.study}-{name}"
        if copy in left_out:
            continue
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, pictures / copy)
        links.append(f"![{record.study}: {Path(name).stem.replace('_', ' ')}]({pictures.name}/{copy})")
    return links


def sections_of(out: Path) -> dict[str, str]:
    """The parts that a file of `write` has, by study, without studies that are no more; none where there is
    no file."""
    if not out.exists():
        return {}
    text = out.read_text().split(f"\n\n{NOT_RUN}")[0]
    parts = (f"## {part}".strip() for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    by_study = {part.splitlines()[0].removeprefix("## "): part for part in parts}
    return {name: part for name, part in by_study.items() if name in STUDIES}


def write(folders: Sequence[Path], out: Path, left_out: Collection[str] = ()) -> None:
    """Write the file of all these runs, and their pictures into a folder of its name; parts of other studies
    stay in it."""
    gathered = gather(folders)
    pictures = out.with_suffix("")
    by_study = sections_of(out) | {one.first.study: section(one, pictures, left_out) for one in gathered}
    parts = [HEAD.strip(), *(by_study[name] for name in sorted(by_study))]
    missing = sorted(set(STUDIES) - set(by_study))
    parts += [wrapped(NOT_RUN + ", ".join(f"`{name}`" for name in missing) + ".")] if missing else []
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path("docs/systems.md"))
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="PICTURE",
        help="a picture that is not copied, such as vae-priors-pictures.png, which shows images of a set",
    )
    args = parser.parse_args(arguments)
    missing = [str(folder) for folder in args.runs if not (folder / RESULT).is_file()]
    if missing:
        parser.error(f"no finished run in {', '.join(missing)}")
    write(args.runs, args.out, args.leave_out)
    say(f"{len(args.runs)} runs in {args.out}")


if __name__ == "__main__":
    main()
