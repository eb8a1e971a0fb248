"""The studies of SAID from their data to result, figures and pictures, at the smallest size."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled, Split
from vbc.codec.research.run import Result, Setting, Study
from vbc.codec.research.studies import STUDIES, find_study
from vbc.codec.research.systems.said import error_maps, glimpser, study, sums, training, transfer, whole


def noise(n: int, channels: int, side: int) -> Tensor:
    return torch.randint(
        0, 256, (n, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )


def small_digits(*_: object) -> Labelled:
    return Labelled(noise(20, 1, 28), torch.arange(20) % 10, noise(12, 1, 28), torch.arange(12) % 10)


def small_photographs(*_: object) -> Split:
    return Split(noise(4, 3, 64), noise(2, 3, 64), noise(3, 3, 64))


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """One step of training for each model, two scenes at a time."""
    for module in (training, whole, glimpser, error_maps, sums):
        monkeypatch.setattr(module, "BATCH", 2)
    for module in (study, transfer, error_maps):
        monkeypatch.setattr(module, "mnist", small_digits)
        monkeypatch.setattr(module, "N_TRAIN", 6)
        monkeypatch.setattr(module, "N_TEST", 4)
        monkeypatch.setattr(module, "SHOWN", 2)
    monkeypatch.setattr("vbc.codec.research.parts.loop.TIMED_STEPS", 1)
    return Setting(tmp_path, tmp_path, 1e-3, emit=lambda line: None)


def check(tested: Study, setting: Setting, n_pictures: int) -> Result:
    """Every figure is finite and has its column, every effect its reason, every picture is there."""
    assert tested in {find_study(name) for name in STUDIES}
    result = tested.run(setting)
    for table in result.tables:
        assert table.rows
        for row in table.rows:
            assert set(row.figures) | set(row.thesis) <= set(table.units)
            assert torch.tensor(list(row.figures.values())).isfinite().all()
    assert all(effect.why for effect in result.effects)
    assert len(result.pictures) == n_pictures
    assert all((setting.out / name).stat().st_size for name in result.pictures)
    return result


def test_error_maps(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_maps, "photographs", small_photographs)
    monkeypatch.setattr(error_maps, "N_GREEDY", 3)
    monkeypatch.setattr(error_maps, "TRIES", 2)
    monkeypatch.setattr(error_maps, "GLIMPSES", 4)
    result = check(error_maps.STUDY, setting, 6)
    assert [len(table.rows) for table in result.tables] == [12, 5, 4]


def test_said(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "N_SUMS", 4)
    monkeypatch.setattr(study, "N_SUMS_TEST", 3)
    monkeypatch.setattr(study, "GLIMPSES", 6)
    result = check(study.STUDY, setting, 3)
    assert [len(table.rows) for table in result.tables] == [7, 4, 8, 7]
    assert {row.model for row in result.tables[0].rows if row.figures} == set(study.VARIANTS)


def test_transfer(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TRIES", 2)
    monkeypatch.setattr(transfer, "GLIMPSES", 4)
    monkeypatch.setattr(transfer, "COLUMNS", 2)
    result = check(transfer.STUDY, setting, 5)
    assert [len(table.rows) for table in result.tables] == [5, 5, 5]
