"""What a study is, and a run of it: a folder with checkpoints, pictures and `result.json`.

A run is repeated by its command: all randomness comes from the seed. A run that was interrupted goes on
where it was when the same command is given again. Nothing here needs torch.
"""

import json
import math
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from vbc.codec.files.image_io import write_atomic

RESULT = "result.json"
SETTING = "setting.json"
PROGRESS = ".progress.json"
"""Ending of the file beside a checkpoint that says how far its training is."""

BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


class FolderTaken(ValueError):
    """The folder of a run holds another run."""


@dataclass(frozen=True)
class Setting:
    """How a study runs.

    data: folder of the data sets (`parts/data_sets.py`). out: folder of this run, which exists. budget_s:
    seconds of training (`clock`) for the whole study, which the study divides among its models. device: as
    torch names it. emit: takes one line of JSON per report.
    """

    data: Path
    out: Path
    budget_s: float
    seed: int = 1
    device: str = "cpu"
    emit: Callable[[str], None] = print


@dataclass(frozen=True)
class Row:
    """Figures of one model, and those of the thesis that has the same ones; keys are columns of the table."""

    model: str
    figures: dict[str, float]
    thesis: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """An effect that a thesis claims.

    found: whether this run shows it; None where it cannot be tested here. why: the measured figures that say
    so, or what is missing.
    """

    claim: str
    found: bool | None
    why: str


@dataclass(frozen=True)
class Table:
    """Rows of figures; units: the columns in their order, with the unit of each ("" for a plain number)."""

    title: str
    units: dict[str, str]
    rows: list[Row]


@dataclass(frozen=True)
class Result:
    """What a run found. notes: sentences on how it was measured. pictures: names of files in the folder."""

    tables: list[Table]
    effects: list[Effect]
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A study. about: one line. source: thesis and section. budget: the default, such as "30m"."""

    about: str
    source: str
    budget: str
    run: Callable[[Setting], Result]


@dataclass(frozen=True)
class Record:
    """A finished run as `result.json` holds it.

    command: what ran it. seconds: wall clock of all its calls together. versions: of torch and of this
    package.
    """

    study: str
    command: str
    budget_s: float
    seed: int
    device: str
    seconds: float
    versions: dict[str, str]
    result: Result


def parse_budget(text: str) -> float:
    """Seconds of "90s", "20m", "1h30m". Raises ValueError for anything else and for no time at all."""
    found = BUDGET.fullmatch(text.strip())
    seconds = (
        sum(float(n or 0) * unit for n, unit in zip(found.groups(), (3600, 60, 1), strict=True))
        if found
        else 0
    )
    if not seconds:
        raise ValueError(f"{text!r} is no time; write it as 90s, 20m or 1h30m")
    return seconds


def say_budget(seconds: float) -> str:
    """The text that `parse_budget` reads as these seconds."""
    whole, unit = next((n, u) for n, u in ((3600, "h"), (60, "m"), (1, "s")) if not seconds % n or n == 1)
    return f"{seconds / whole:g}{unit}"


def run_study(name: str, study: Study, setting: Setting) -> Result:
    """Run a study and write `result.json` into its folder, whole or not at all.

    Raises FolderTaken where the folder holds a run of another study, budget, seed or device.
    """
    options = {
        "data": setting.data,
        "out": setting.out,
        "budget": say_budget(setting.budget_s),
        "seed": setting.seed,
        "device": setting.device,
    }
    words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    command = shlex.join(["codec", "study", "run", name, *words])
    _keep_setting(name, setting)
    earlier = sum(read_json(path).get("seconds", 0.0) for path in setting.out.rglob(f"*{PROGRESS}"))
    started = clock(setting.device)
    result = study.run(setting)
    record = Record(
        study=name,
        command=command,
        budget_s=setting.budget_s,
        seed=setting.seed,
        device=setting.device,
        seconds=round(earlier + clock(setting.device) - started, 1),
        versions={package: metadata.version(package) for package in ("torch", "vbc-codec")},
        result=result,
    )
    write_json(setting.out / RESULT, asdict(record))
    return result


def clock(device: str) -> float:
    """Seconds from some moment on: processor time on the CPU, so that what else runs there shortens no
    training; elsewhere, of the clock."""
    return time.process_time() if device == "cpu" else time.monotonic()


def load_result(folder: Path) -> Record:
    """The record of a finished run. Raises FileNotFoundError where there is none."""
    record = read_json(folder / RESULT)
    result = record.pop("result")
    tables = [Table(t["title"], t["units"], [_row(row) for row in t["rows"]]) for t in result.pop("tables")]
    effects = [Effect(**effect) for effect in result.pop("effects")]
    return Record(**record, result=Result(tables, effects, **result))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; figures that are not finite become null, as JSON has none."""
    text = json.dumps(_finite(value), indent=1, allow_nan=False)
    write_atomic(path, text.encode() + b"\n")


def read_json(path: Path) -> Any:
    """What a file of JSON holds."""
    return json.loads(path.read_text())


def _keep_setting(name: str, setting: Setting) -> None:
    """Write down what this folder's run is, or check that it is this one."""
    wanted = {"study": name, "budget_s": setting.budget_s, "seed": setting.seed, "device": setting.device}
    path = setting.out / SETTING
    if path.exists() and read_json(path) != wanted:
        raise FolderTaken(f"{setting.out} holds another run: {read_json(path)}; choose another folder")
    write_json(path, wanted)


def _row(row: dict[str, Any]) -> Row:
    figures, thesis = (
        {k: math.nan if v is None else v for k, v in row[part].items()} for part in ("figures", "thesis")
    )
    return Row(row["model"], figures, thesis)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
