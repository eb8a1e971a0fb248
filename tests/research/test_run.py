"""Runs of studies: the command, the result in its folder, the file that gathers several."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from typer.testing import Result as Outcome

from bench import systems as gathering
from vbc.codec.cli import app
from vbc.codec.research import run, studies
from vbc.codec.research.parts import pictures
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.study_cli import figure


def toy(setting: Setting) -> Result:
    setting.emit('{"step": 1}')
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    return Result(
        tables=[
            Table(
                "Rates",
                {"nll": "bits/dim", "seconds": ""},
                [
                    Row("vae", {"nll": 3.0 + setting.seed, "seconds": math.nan}, {"nll": 3.88}),
                    Row("flow", {"nll": 2.0}),
                ],
            )
        ],
        effects=[
            Effect("a flow helps", setting.seed < 3, f"{setting.seed} < 3"),
            Effect("faces look real", None, "there are no faces"),
        ],
        notes=["Measured on nothing."],
        pictures=pictures.save_grid(setting.out / "samples.png", image, 1),
    )


STUDY = Study("A toy", "no thesis, section 0", "2m", toy)


@pytest.fixture(autouse=True)
def toy_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "STUDIES", {"toy": "toy:STUDY"})
    monkeypatch.setattr(studies, "find_study", {"toy": STUDY}.__getitem__)
    monkeypatch.setattr(gathering, "find_study", {"toy": STUDY, "other": STUDY}.__getitem__)
    monkeypatch.setattr(gathering, "STUDIES", {"toy": "toy:STUDY", "other": "other:STUDY"})


def study(*arguments: object) -> Outcome:
    return CliRunner().invoke(app, ["study", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert run.parse_budget(text) == seconds
    assert run.parse_budget(run.say_budget(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "0s", "-3s", "3s 4"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        run.parse_budget(text)


def test_run_and_show(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    done = study("run", "toy", "--data", tmp_path, "--out", out, "--seed", 2)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == '{"step": 1}'
    record = run.load_result(out)
    assert (record.study, record.budget_s, record.seed, record.device) == ("toy", 120, 2, "cpu")
    assert (
        record.command
        == f"codec study run toy --data {tmp_path} --out {out} --budget 2m --seed 2 --device cpu"
    )
    row = record.result.tables[0].rows[0]
    assert row.figures["nll"] == 5.0
    assert math.isnan(row.figures["seconds"])
    assert (out / "samples.png").is_file()
    shown = study("show", out).stdout
    lines = shown.splitlines()
    assert "      nll [bits/dim]  thesis  seconds" in lines
    assert "vae            5.000   3.880        -" in lines
    assert "flow           2.000       -        -" in lines
    assert "re-obtained: a flow helps (2 < 3)" in lines
    assert "cannot be tested here: faces look real (there are no faces)" in lines
    assert str(out / "samples.png") in lines


def test_the_list(tmp_path: Path) -> None:
    assert study("list").stdout.split() == "toy 2m A toy (no thesis, section 0)".split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nothing",), "there is no study 'nothing'; studies: toy"),
        (("toy", "--budget", "soon"), "'soon' is no time"),
        (("toy", "--seed", "3"), "holds another run"),
        (("toy", "--device", "abacus"), "abacus"),
    ],
)
def test_wrong_options(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert study("run", "toy", "--out", tmp_path).exit_code == 0
    failed = study("run", *options, "--out", tmp_path)
    assert failed.exit_code == 2
    assert message in " ".join(failed.stderr.replace("│", " ").split())


def test_unfinished_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not finished" in " ".join(study("show", tmp_path).stderr.replace("│", " ").split())
    with pytest.raises(SystemExit):
        gathering.main([str(tmp_path)])
    assert f"no finished run in {tmp_path}" in capsys.readouterr().err


def missing_package(setting: Setting) -> Result:
    raise ModuleNotFoundError("no scipy", name="scipy")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "find_study", lambda name: replace(STUDY, run=missing_package))
    failed = study("run", "toy", "--out", tmp_path)
    assert failed.exit_code == 2
    assert "vbc-codec[research]" in failed.stderr


def runs_of(folder: Path, *seeds: int) -> list[Path]:
    folders = []
    for seed in seeds:
        out = folder / f"run-{seed}"
        out.mkdir()
        run.run_study("toy", STUDY, Setting(folder, out, 60.0, seed, emit=list[str]().append))
        folders.append(out)
    return folders


def test_pictures_left_out(tmp_path: Path) -> None:
    """They show images of data sets, which may not be copied."""
    out = tmp_path / "docs" / "systems.md"
    run = str(*runs_of(tmp_path, 1))
    gathering.main([run, "--out", str(out), "--leave-out", "toy-samples.png"])
    assert "samples.png" not in out.read_text()
    assert not (tmp_path / "docs" / "systems" / "toy-samples.png").exists()
    gathering.main([run, "--out", str(out)])
    assert "systems/toy-samples.png" in out.read_text()
    assert (tmp_path / "docs" / "systems" / "toy-samples.png").exists()


def test_gathered_runs(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "systems.md"
    gathering.main([*map(str, runs_of(tmp_path, 3, 1, 2)), "--out", str(out)])
    text = out.read_text()
    assert "| vae | 5.000 ± 1.000 | 3.880 | - |" in text
    assert "| flow | 2.000 ± 0 | - | - |" in text
    assert (
        "- **re-obtained with 2 of 3 seeds**: a flow helps (seed 1: 1 < 3; seed 2: 2 < 3; seed 3: 3 < 3)"
        in text
    )
    assert "- **cannot be tested here**: faces look real (there are no faces)" in text
    assert "codec study run toy --data DATA --out RUN --budget 1m --seed 1" in text
    assert "seeds 1, 2, 3" in text
    assert "No run of these studies has been gathered: `other`." in text
    assert "![toy: samples](systems/toy-samples.png)" in text
    assert (out.parent / "systems" / "toy-samples.png").is_file()
    assert str(tmp_path) not in text


def test_parts_of_studies_not_gathered_stay(tmp_path: Path) -> None:
    """Runs of two studies, gathered one after the other, make the file that both make together."""
    (toy,) = runs_of(tmp_path, 1)
    other = tmp_path / "other"
    other.mkdir()
    run.run_study("other", STUDY, Setting(tmp_path, other, 60.0, 1, emit=list[str]().append))
    one, both = tmp_path / "a" / "systems.md", tmp_path / "b" / "systems.md"
    gathering.main([str(toy), str(other), "--out", str(both)])
    for folder in (other, toy, toy):
        gathering.main([str(folder), "--out", str(one)])
    assert "No run of these studies" not in both.read_text()
    assert one.read_text() == both.read_text()
    one.write_text(one.read_text().replace("## other", "## forgotten"))
    gathering.main([str(toy), "--out", str(one)])
    assert "forgotten" not in one.read_text()
    assert "gathered: `other`." in one.read_text()


def test_runs_that_do_not_go_together(tmp_path: Path) -> None:
    (one,) = runs_of(tmp_path, 1)
    with pytest.raises(ValueError, match="one seed"):
        gathering.gather([one, one])
    record = run.read_json(one / "result.json")
    (tmp_path / "longer").mkdir()
    run.write_json(tmp_path / "longer" / "result.json", {**record, "budget_s": 5.0, "seed": 2})
    with pytest.raises(ValueError, match="differ in budget"):
        gathering.gather([one, tmp_path / "longer"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5540.4, "5540"),
        (250.66, "250.7"),
        (12.345, "12.35"),
        (0.628, "0.628"),
        (-0.14, "-0.140"),
        (2e-7, "2.0e-07"),
        (0.0, "0"),
        (math.inf, "inf"),
        (math.nan, "-"),
        (None, "-"),
    ],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text
