"""Message lengths by noise, and a VAE on other sets than its own: both studies, small."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled, Split
from vbc.codec.research.parts.embedding import affinities, tsne
from vbc.codec.research.parts.picture_vae import Form, PictureVae
from vbc.codec.research.run import Setting
from vbc.codec.research.systems import noise_variance, transfer


def setting_in(folder: Path) -> Setting:
    return Setting(folder, folder, 0.01, emit=list[str]().append)


def pictures(n: int, channels: int, side: int, seed: int = 0) -> Tensor:
    smooth = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(smooth, (side, side), mode="bilinear")
    return (255 * large).to(torch.uint8)


def digits(folder: Path) -> Labelled:
    labels = torch.arange(40) % 10
    return Labelled(pictures(40, 1, 28), labels, pictures(40, 1, 28, 1), labels)


def colours(folder: Path, side: int = 32) -> Split:
    return Split(pictures(40, 3, side), pictures(40, 3, side, 1), pictures(40, 3, side, 2))


def test_noise_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_variance, "mnist", digits)
    monkeypatch.setattr(noise_variance, "cifar", colours)
    monkeypatch.setattr(noise_variance, "PLAN", replace(noise_variance.PLAN, steps=2, batch=4))
    small = {"MNIST": Form(1, 32, 3, (4, 4)), "CIFAR": Form(3, 32, 3, (4, 4))}
    monkeypatch.setattr(noise_variance, "FORMS", small)
    result = noise_variance.run(setting_in(tmp_path))
    assert [len(table.rows) for table in result.tables] == [2, 2]
    for row in (row for table in result.tables for row in table.rows):
        assert set(row.figures) == set(noise_variance.UNITS)
        assert row.figures["total"] == pytest.approx(row.figures["KL"] + row.figures["errors"])
        assert row.figures["beta"] == pytest.approx(0.5 * (255 / row.figures["noise"]) ** 2)
    assert len(result.effects) == 10
    assert result.pictures == ["MNIST-pictures.png", "CIFAR-pictures.png"]


def test_squared_error_of_the_same_pictures() -> None:
    """Its errors are those of the message; its price of KL is fixed where the message sets it by s^2."""
    torch.manual_seed(0)
    model, x = PictureVae(Form(1, 16, 3, (4, 4))), pictures(6, 1, 16)
    torch.manual_seed(1)
    value, log = noise_variance.squared_loss(model, x)
    assert value.item() == pytest.approx(log["squared"] + log["kl"], rel=1e-5)
    torch.manual_seed(1)
    _, fitted = noise_variance.loss_of(model, x)
    assert log["kl"] == pytest.approx(fitted["kl"], rel=1e-4)
    variance = math.exp(2 * fitted["nats"] / 256) / (2 * math.pi * math.e) - 1 / 12
    assert log["squared"] == pytest.approx(256 * variance / 255**2, rel=1e-3)


def test_claims_of_the_noise_study() -> None:
    good = {
        "total": 1.0,
        "KL": 9.0,
        "dead latents": 1.0,
        "beta": 1.0,
        "detail kept": 50.0,
        "train total": 1.0,
    }
    bad = {
        "total": 2.0,
        "KL": 4.0,
        "dead latents": 2.0,
        "beta": 1.0,
        "detail kept": 150.0,
        "train total": 1.0,
    }
    assert [e.found for e in noise_variance.claims("MNIST", good, bad)] == [True] * 5
    assert [e.found for e in noise_variance.claims("MNIST", bad, good)] == [False] * 5


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "photographs", lambda folder, side: colours(folder, 64))
    monkeypatch.setattr(transfer, "cifar", colours)
    monkeypatch.setattr(transfer, "mnist", digits)
    monkeypatch.setattr(transfer, "frey_faces", lambda folder: pictures(60, 1, 28)[..., :20])
    monkeypatch.setattr(transfer, "LAST_FACES", 35)
    monkeypatch.setattr(transfer, "TUNED", 8)
    monkeypatch.setattr(transfer, "FORM", Form(3, 64, 3, (4, 4), residual=False))
    monkeypatch.setattr(transfer, "PLAN", replace(transfer.PLAN, steps=2, batch=4))
    monkeypatch.setattr(transfer, "TUNE_PLAN", replace(transfer.TUNE_PLAN, steps=6, batch=4))


@pytest.mark.usefixtures("small_sets")
def test_transfer_study(tmp_path: Path) -> None:
    result = transfer.run(setting_in(tmp_path))
    sets, ends, thickness = result.tables
    assert [row.model for row in sets.rows] == list(transfer.KNOWN)
    assert all(np.isfinite(v) for table in result.tables for row in table.rows for v in row.figures.values())
    assert sets.rows[0].thesis == {"train accuracy": 44.6, "test accuracy": 35.4, "KL": 163.47}
    assert (len(ends.rows), len(thickness.rows)) == (4, len(transfer.MULTIPLES))
    assert len(result.effects) == 10
    assert set(result.pictures) == {path.name for path in tmp_path.glob("*.png")}


@pytest.mark.usefixtures("small_sets")
def test_pupils_keep_their_curves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, faces = PictureVae(transfer.FORM), pictures(8, 3, 64)
    setting = replace(setting_in(tmp_path), budget_s=1000.0)

    def taught(start: PictureVae | None, name: str) -> list[float]:
        pupil = transfer.taught(start, faces, faces, transfer.TUNE_PLAN, setting, name)
        return transfer._known(pupil.curve)

    tuned = taught(source, "tune")
    assert len(tuned) == 4  # 6 steps of half the faces: before the first epoch and after each
    assert tuned[0] == pytest.approx(transfer.length(source, faces), rel=1e-6)
    assert taught(source, "tune") == tuned
    assert taught(None, "new")[0] != tuned[0]


def test_thickness_is_about_half_the_width_of_a_stroke() -> None:
    x = torch.zeros((2, 1, 20, 20), dtype=torch.uint8)
    x[0, :, :, 5:7], x[1, :, :, 5:11] = 255, 255
    thin, thick = transfer.thickness(x).tolist()
    assert (thin, thick) == (pytest.approx(1.0), pytest.approx(3.0))


def test_claims_of_transfer() -> None:
    def found(scale: int) -> dict[str, dict[str, float]]:
        names = list(transfer.KNOWN)
        return {
            name: {
                "KL": 200.0 + scale * 10 * n,
                "test accuracy": 40 + 20.0 * n if scale > 0 else 80.0,
                "explained": 60.0 * scale,
                "same set": 33 + 22.3 * n if scale > 0 else 80.0,
            }
            for n, name in enumerate(names)
        }

    ends = {"tune": 1.0, "new, all faces": 2.0, "new": 3.0}
    good = transfer.claims(found(1), 150.0, {"tune": [2.0, 1.0], "new": [9.0, 8.0]}, ends, [1.0, 2.0])
    curves = {"tune": [9.0, 1.0], "new": [8.0, 8.0]}
    bad = transfer.claims(found(-1), 250.0, curves, {**ends, "tune": 3.0}, [2.0, 1.0])
    assert [effect.found for effect in good] == [True] * 9 + [None]
    assert [effect.found for effect in bad].count(False) == 8  # one prior serves all of them


def test_neighbours_stay_neighbours_in_the_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(3, 8, generator=generator)
    x = (centres.repeat_interleave(30, 0) + torch.randn(90, 8, generator=generator)).float()
    y = tsne(x, perplexity=10, steps=200)
    labels = torch.arange(3).repeat_interleave(30)
    apart = torch.cdist(y, y).fill_diagonal_(math.inf)
    near = labels[apart.topk(5, largest=False).indices] == labels.unsqueeze(1)
    assert near.double().mean() > 0.95
    with pytest.raises(ValueError, match="too few"):
        tsne(x[:20], perplexity=10)


def test_affinities_have_the_perplexity_asked_for() -> None:
    p = affinities(torch.randn(80, 4, generator=torch.Generator().manual_seed(0)), 12.0)
    entropy = -(p * p.clamp_min(1e-30).log()).sum(1)
    assert torch.allclose(entropy.exp(), torch.full_like(entropy, 12.0), rtol=1e-3)
    assert torch.equal(p.diagonal(), torch.zeros_like(entropy))
