"""The latent space renderer: its study, small, and what its claims follow from."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.picture_vae import Form, PictureVae
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.lsr_gan import bench, models, study
from vbc.codec.research.systems.lsr_gan.claims import claims
from vbc.codec.research.systems.lsr_gan.models import BETAS, CONTROL, LAMBDAS, NEW, Pictures, Point

FORM = Form(1, 16, 3, (4, 8))


def setting_in(folder: Path) -> Setting:
    return Setting(folder, folder, 0.01, emit=list[str]().append)


def pictures(labelled: bool) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (50, 1, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(50) % 10
    known = (labels[:30], labels[30:]) if labelled else (None, None)
    return Pictures(x[:30], x[30:], *known)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_study(labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BATCH", 4)
    monkeypatch.setattr(models, "VAE_PLAN", replace(models.VAE_PLAN, steps=2, batch=4))
    monkeypatch.setattr(models, "GAN_PLAN", replace(models.GAN_PLAN, steps=2, batch=4))
    kind = replace(models.DIGITS, form=FORM, load=lambda setting: pictures(labelled))
    result = study.run(kind, setting_in(tmp_path))
    by_beta, by_lambda, looks = (table.rows for table in result.tables)
    assert [row.model for row in by_beta] == ["beta 0.01", "beta 1", "beta 5", "beta 20"]
    assert len(by_lambda) == len(LAMBDAS)  # the VAE's row, and not that of the control
    assert len(looks) == 1 + len(by_beta) + len(models.POINTS)
    assert all(
        math.isfinite(v) for table in result.tables for row in table.rows for v in row.figures.values()
    )
    assert ("absolute VAE" in by_beta[0].figures) == labelled
    assert by_beta[1].thesis["ratio"] == pytest.approx(2.9, abs=0.05)
    assert set(result.pictures) == {path.name for path in tmp_path.glob("*.png")}


def figures(
    good: bool,
) -> tuple[dict[str, float], dict[float, dict[str, float]], dict[Point, dict[str, float]]]:
    """Figures as the thesis has them, and those of renderers that do the opposite."""
    truth = {"sharpness": 0.3, "variety": 30.0}
    decoded = {
        beta: {
            "MSE": (mse if good else 50.0 * (5 - n)),
            "sharpness": 0.17,
            "relative": 40.0 - n,
            "absolute": 40.0 - n,
            "Frechet, test z": 89.8,
            "Frechet, random z": 150.0 if good else 100.0,
        }
        for n, (beta, mse) in enumerate({0.01: 54.6, 1.0: 55.9, 5.0: 84.6, 20.0: 150.4}.items())
    }

    def renderer(point: Point) -> dict[str, float]:
        power = math.log10(max(point.weight, 0.05))
        gone = good and (point.weight in (100.0, CONTROL) or point.beta < 1 or point.new)
        sign = 1 if good else -1
        accuracy = (50 if good else 20) + sign * (power + 4 * math.log10(point.beta))
        return {
            "MSE": 163 - sign * 65 * power,
            "spread": 10 ** (-sign * power),
            "sharpness": 0.28 if good else 0.18,
            "relative": accuracy,
            "absolute": accuracy,
            "Frechet, test z": 35.9 if good else 95.0,
            "Frechet, random z": (400.0 if gone else 36.4) if good else (150.0 - point.new),
            "variety": 5.0 if gone else 25.0,
        }

    return truth, decoded, {point: renderer(point) for point in models.POINTS}


@pytest.mark.parametrize("good", [True, False])
def test_claims_follow_from_the_figures(good: bool) -> None:
    effects = claims("X", *figures(good))
    verdicts = {effect.claim: effect.found for effect in effects}
    assert len(verdicts) == len(effects) == 16
    assert [claim for claim, found in verdicts.items() if found is None] == [effects[-1].claim]
    new = next(found for claim, found in verdicts.items() if "new generator" in claim)
    assert new is not good
    others = {
        found for claim, found in verdicts.items() if "new generator" not in claim and found is not None
    }
    if good:
        assert others == {True}
    else:
        assert sum(found is True for found in verdicts.values()) <= 3


def test_measures_of_a_renderer() -> None:
    a = torch.zeros((2, 1, 4, 4), dtype=torch.uint8)
    assert bench.summed_error(a, a + 255) == 16
    torch.manual_seed(0)

    def made(z: Tensor) -> Tensor:
        return z.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)

    q = Gaussian(torch.zeros(400, 1), torch.full((400, 1), math.log(0.04)))
    assert bench.spread(made, q) == pytest.approx(16 * 0.04 / 4, rel=0.1)  # -1..1 is twice 0..1


def test_symbols_that_come_back() -> None:
    torch.manual_seed(0)
    vae = PictureVae(FORM).eval()
    mean = torch.randn(20, 3)
    share = bench.same_symbols(vae, vae.decoder, mean)
    assert 0 <= share <= 100
    blank = bench.same_symbols(vae, lambda z: torch.zeros(len(z), 1, 16, 16), torch.full((20, 3), 40.0))
    assert blank == 0


def test_every_point_has_its_row() -> None:
    assert {point.beta for point in models.POINTS} == {1.0, *BETAS}
    assert NEW in models.POINTS
    assert {Point(1.0, weight) for weight in LAMBDAS} < set(models.POINTS)
