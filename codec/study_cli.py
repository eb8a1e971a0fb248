"""`codec study`: the research wing's command, a part of `codec.cli`. The wing is loaded when a study runs."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vbc.codec.research.run import Effect, Record, Table

app = typer.Typer(
    help="Train the systems of the theses, small; their figures beside ours.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

VERDICTS = {True: "re-obtained", False: "not re-obtained", None: "cannot be tested here"}


@app.command("list")
def list_studies() -> None:
    """The studies: name, default budget, what each is about."""
    from vbc.codec.cli import print_line
    from vbc.codec.research.studies import STUDIES, find_study

    for name in sorted(STUDIES):
        study = find_study(name)
        print_line(f"{name:24} {study.budget:>6}  {study.about} ({study.source})")


@app.command("run")
def run_one(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `codec study list` says.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the data sets.")] = Path("data"),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the run; one that was interrupted goes on. [runs/NAME-SEED]"),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Of training, as 90s, 20m, 1h30m; processor time on the CPU [the study's].",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 1,
    device: Annotated[
        str, typer.Option("--device", metavar="cpu|cuda|cuda:N", help="Where the networks run.")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of torch.")] = None,
) -> None:
    """Train and measure a study; one line of JSON for every report, the result in OUT/result.json."""
    from vbc.codec.cli import check_device, exit_on_error, fail_usage, print_line
    from vbc.codec.research.run import FolderTaken, Setting, load_result, parse_budget, run_study
    from vbc.codec.research.studies import STUDIES, find_study

    if name not in STUDIES:
        fail_usage(f"there is no study {name!r}; studies: {' '.join(sorted(STUDIES))}")
    check_device(device)
    study = find_study(name)
    try:
        budget_s = parse_budget(budget or study.budget)
    except ValueError as e:
        fail_usage(f"--budget: {e}")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    folder = out or Path("runs") / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(data, folder, budget_s, seed, device, emit=partial(print, flush=True))
    wrong = None
    with exit_on_error():
        try:
            run_study(name, study, setting)
        except ModuleNotFoundError as e:
            wrong = f"this study needs {e.name}: pip install 'vbc-codec[research]'"
        except FolderTaken as e:
            wrong = str(e)
    if wrong:
        fail_usage(wrong)
    print_line(json.dumps({"result": str(folder / "result.json"), "seconds": load_result(folder).seconds}))


@app.command("show")
def show(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", exists=True, file_okay=False, help="Folder of a run.")
    ],
) -> None:
    """Tables, effects and pictures of a finished run."""
    from vbc.codec.cli import fail_usage, print_line
    from vbc.codec.research.run import load_result

    try:
        record = load_result(run)
    except FileNotFoundError:
        fail_usage(f"{run} has no result.json; the run is not finished")
    print_line("\n".join(say_record(record, run)))


def say_record(record: Record, folder: Path) -> list[str]:
    """A run as lines of text."""
    lines = [
        f"{record.study}: {record.command}",
        f"{record.seconds:.0f} s, budget {record.budget_s:.0f} s",
        "",
    ]
    for table in record.result.tables:
        lines += [table.title, *aligned(table_cells(table)), ""]
    lines += [say_effect(effect) for effect in record.result.effects]
    lines += record.result.notes
    return lines + [str(folder / name) for name in record.result.pictures]


def table_cells(table: Table) -> list[list[str]]:
    """Head and rows of a table; where a thesis has a column's figure, it stands in a column of its own."""
    columns = [(key, unit, any(key in row.thesis for row in table.rows)) for key, unit in table.units.items()]
    cells = [["", *(head for key, unit, both in columns for head in heads(key, unit, both))]]
    for row in table.rows:
        line = [row.model]
        for key, _, both in columns:
            line.append(figure(row.figures.get(key)))
            line += [figure(row.thesis.get(key))] if both else []
        cells.append(line)
    return cells


def heads(key: str, unit: str, both: bool) -> list[str]:
    """The heads of a figure's column and, where there is one, of the thesis' column beside it."""
    head = f"{key} [{unit}]" if unit else key
    return [head, "thesis"] if both else [head]


def figure(value: float | None) -> str:
    """A figure with about four digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return "-"
    digits = 0 if not value or not math.isfinite(value) else 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(3, max(0, digits))}f}" if digits < 6 else f"{value:.1e}"


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Cells as lines of columns; names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]


def say_effect(effect: Effect) -> str:
    """An effect as one line."""
    return f"{VERDICTS[effect.found]}: {effect.claim} ({effect.why})"
