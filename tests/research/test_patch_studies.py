"""The studies of patch codes from their data to result, figures and pictures, at the smallest size."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled, Split
from vbc.codec.research.parts.toy_faces import ToyFaces, toy_faces
from vbc.codec.research.run import Result, Setting, Study
from vbc.codec.research.studies import STUDIES, find_study
from vbc.codec.research.systems import pmi_merge
from vbc.codec.research.systems.patch_vae import capacity, global_vae, maps, model, probes, tables


def pictures(n: int) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )


def small_split(*_: object) -> Split:
    return Split(pictures(5), pictures(2), pictures(3))


def small_faces() -> tuple[ToyFaces, ToyFaces]:
    return toy_faces(30, 0), toy_faces(10, 1)


def small_digits(*_: object) -> Labelled:
    x = pictures(30)[:, :1, :28, :28].contiguous()
    return Labelled(x, torch.arange(30) % 3, x[:9], torch.arange(9) % 3)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """One training step for each model, of a few images."""
    for side in model.BATCH:
        monkeypatch.setitem(model.BATCH, side, 2)
    monkeypatch.setattr(global_vae, "BATCH", 2)
    monkeypatch.setattr("vbc.codec.research.parts.loop.TIMED_STEPS", 1)
    (tmp_path / "run").mkdir()
    return Setting(tmp_path, tmp_path / "run", 1e-3, emit=lambda line: None)


def check(study: Study, setting: Setting, n_pictures: int) -> Result:
    """Every figure is finite and has its column, every effect its reason, every picture is there."""
    assert study in {find_study(name) for name in STUDIES}
    result = study.run(setting)
    for table in result.tables:
        assert table.rows
        for row in table.rows:
            assert set(row.figures) <= set(table.units)
            assert set(row.thesis) <= set(table.units)
            assert torch.tensor(list(row.figures.values())).isfinite().all()
    assert all(effect.why for effect in result.effects)
    assert len(result.pictures) == n_pictures
    assert all((setting.out / name).stat().st_size for name in result.pictures)
    return result


def test_tables(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SETS", (tables.Set("small", small_split, 1),))
    for name, value in (
        ("TEST_PATCHES", 4),
        ("MEASURED_IMAGES", 1),
        ("SHOWN", 1),
        ("DRAWS", 2),
        ("RASTER_STEPS", 2),
    ):
        monkeypatch.setattr(tables, name, value)
    result = check(tables.STUDY, setting, 2)
    assert [len(table.rows) for table in result.tables] == [9, 5, 3]


def test_maps(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "faces", small_faces)
    for name in ("MEASURED", "SHOWN"):
        monkeypatch.setattr(maps, name, 2)
    result = check(maps.STUDY, setting, 2)
    assert len(result.tables[0].rows) == 6
    assert (setting.out.parent / "toy-face-models-1" / "faces-9-1.safetensors").exists()


def test_probes(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "faces", small_faces)
    monkeypatch.setattr(probes, "mnist", small_digits)
    monkeypatch.setattr(probes, "FACES_PROBED", (20, 10))
    monkeypatch.setattr(probes, "LIMIT", 600)
    monkeypatch.setattr("vbc.codec.research.parts.probes.EPOCHS", 2)
    result = check(probes.STUDY, setting, 1)
    assert [len(table.rows) for table in result.tables] == [16, 6, 13, 11]


def test_capacity(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "cifar", small_split)
    for name, value in (("CAPACITIES", (8, 16)), ("FITTED", 64), ("TESTED", 64)):
        monkeypatch.setattr(capacity, name, value)
    check(capacity.STUDY, setting, 1)


def test_pmi_merge(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pmi_merge, "cifar", small_split)
    for name, value in (("PAIR_PATCHES", 2), ("MERGED_PATCHES", 1), ("SHOWN", 1)):
        monkeypatch.setattr(pmi_merge, name, value)
    check(pmi_merge.STUDY, setting, 1)
