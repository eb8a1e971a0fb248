"""Beta-VAE on faces and on sprites: the thesis' network, and every step of the studies, small."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vbc.codec.research.parts.sprites import random_factors, render
from vbc.codec.research.run import Setting
from vbc.codec.research.systems import disentanglement
from vbc.codec.research.systems.beta_vae_faces import faces as network
from vbc.codec.research.systems.beta_vae_faces import study as beta_vae
from vbc.codec.research.systems.beta_vae_faces.faces import FreyVae
from vbc.codec.research.systems.beta_vae_faces.study import Case


def faces(n: int = 40) -> torch.Tensor:
    smooth = torch.rand(n, 1, 7, 5, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(smooth, (28, 20), mode="bilinear")
    return (20 + 200 * large).to(torch.uint8)


def setting_in(folder: Path) -> Setting:
    return Setting(folder, folder, 0.001, emit=list[str]().append)


def test_the_network_is_the_thesis() -> None:
    counts = [weight.numel() + bias.numel() for weight, bias in FreyVae(2).layers()]
    assert tuple(counts) == network.PARAMETERS
    model = FreyVae(5)
    mean, log_var = model.encode(faces(3).float() / 255)
    assert mean.shape == log_var.shape == (3, 5)
    assert model.decode(mean).shape == (3, 1, 28, 20)


def test_what_is_trained() -> None:
    todo = beta_vae.cases()
    assert len({case.name for case in todo}) == len(todo) == 42
    for d in beta_vae.DIMENSIONS:
        assert {10.0**n for n in range(-6, 4)} <= {case.beta for case in todo if case.d == d}


def test_loss_is_cross_entropy_of_a_pixel_and_beta_kl() -> None:
    model, x = FreyVae(2), faces(4)
    losses = {}
    for case in (Case(2, 0.0), Case(2, 3.0), Case(2, 0.0, "sum")):
        torch.manual_seed(0)
        value, log = beta_vae.loss_of(model, x, case)
        losses[case] = value.item()
    free, charged, summed = losses.values()
    assert free == pytest.approx(log["entropy"])
    assert charged - free == pytest.approx(3 * log["kl_bits"] * np.log(2), rel=1e-3)
    assert summed == pytest.approx(560 * free)
    assert network.perfect(x) < free
    assert network.perfect(x) < network.mean_image(x)


def test_collapse_of_a_linear_model() -> None:
    """Faces that vary along one direction of known strength: its eigenvalue, divided by the pixels."""
    half = torch.tensor([100, 150], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 28, 20)
    m = 125 / 255
    expected = (25 / 255) ** 2 / (m * (1 - m)) * 560 / 560
    assert network.collapse_estimates(half, 2) == [pytest.approx(expected), pytest.approx(0, abs=1e-9)]


def test_the_faces_held_out() -> None:
    x = torch.arange(50)
    assert beta_vae.split(x, "last")[1].tolist() == [45, 46, 47, 48, 49]
    kept, held_out = beta_vae.split(x, "random")
    assert sorted(torch.cat((kept, held_out)).tolist()) == list(range(50))
    assert held_out.tolist() != [45, 46, 47, 48, 49]


def test_faces_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beta_vae, "frey_faces", lambda folder: faces(20))
    monkeypatch.setattr(beta_vae, "BATCH", 2)
    monkeypatch.setattr(beta_vae, "DIMENSIONS", (2, 3))
    monkeypatch.setattr(beta_vae, "BETAS", (1e-5, 1e-3, 0.005, 0.02, 1.0, 100.0))
    result = beta_vae.run(setting_in(tmp_path))
    assert [len(table.rows) for table in result.tables] == [6, 6, 9, 3]
    assert all(np.isfinite(value) for t in result.tables for row in t.rows for value in row.figures.values())
    assert len(result.effects) == 8
    assert {"manifolds.png"} <= set(result.pictures) == {path.name for path in tmp_path.glob("*.png")}


def test_effects_follow_from_the_figures() -> None:
    """Figures as the thesis has them, and as they are where nothing is learned."""

    def figures(alive: bool, case: Case) -> dict[str, float]:
        threshold = beta_vae.COLLAPSE * (560 if case.scale == "sum" else 1)
        lives = alive and case.beta < threshold
        kl = 10 * np.log10(2 * threshold / case.beta) if lives else 0.0
        shape = {"F_A": 1.0, "prior KL": 1 / (1e5 * case.beta), "correlation": 0.5} if lives else {}
        late = 5.0 if case.held_out == "last" else 0.0
        found = {
            "KL": kl,
            "grid": 20.0 if lives else 0.1,
            "excess": 5.0 if lives else 26.0,
            "valid": 9 + late,
        }
        rest = {"F_A": 0.02, "F_B": 1.41, "prior KL": 1e-6 / case.beta, "correlation": 0.0, "condition": 1.0}
        return {**rest, "active": 2.0 * lives, **found, **shape}

    for alive in (True, False):
        effects = beta_vae.effects({case: figures(alive, case) for case in beta_vae.cases()}, 26.0)
        expected = [True] * 8 if alive else [False, False, True, False, False, False, True, True]
        assert [effect.found for effect in effects] == expected


def test_sprites_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentanglement, "PAIRS", 4)
    monkeypatch.setattr(disentanglement, "FITTED", 60)
    monkeypatch.setattr(disentanglement, "BATCH", 4)
    result = disentanglement.run(setting_in(tmp_path), votes=(30, 10), samples=100)
    assert [row.model for row in result.tables[0].rows][:4] == [
        "true factors",
        "rotated factors",
        "PCA",
        "untrained",
    ]
    assert len(result.tables[1].rows) == 6
    assert len(result.effects) == 5
    assert result.pictures == ["units_swept_beta4.png"]


def test_codes_of_known_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentanglement, "PAIRS", 16)
    monkeypatch.setattr(disentanglement, "FITTED", 300)
    known = disentanglement.known_codes(1)
    figures = disentanglement.measure(known, 1, (200, 100), 3000)
    assert figures["true factors"]["metric"] == 100
    assert figures["true factors"]["MIG"] > 0.85
    assert figures["rotated factors"]["metric"] > 70
    assert figures["rotated factors"]["MIG"] < 0.2
    assert figures["untrained"]["MIG"] < figures["true factors"]["MIG"] / 3


def test_the_sprite_vae_learns() -> None:
    torch.manual_seed(0)
    model = disentanglement.SpriteVae()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    nats = []
    for _ in range(12):
        loss, log = disentanglement.loss_of(
            model, render(random_factors(16, np.random.default_rng(0)), 32), 1.0
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        nats.append(log["nats"])
    assert nats[-1] < 0.9 * nats[0]
