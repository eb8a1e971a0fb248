"""Codes of known capacity: the information that goes through, and what is regressed from it."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.run import Row, Setting
from vbc.codec.research.systems.patch_vae import capacity
from vbc.codec.research.systems.patch_vae.model import form, plan_of


@pytest.mark.parametrize("bits", [8, 64])
def test_noise_gives_the_capacity(bits: int) -> None:
    variance = capacity.noise_variance(bits, 16)
    assert 16 / 2 * math.log2(1 + 1 / variance) == pytest.approx(bits)


def test_information_of_a_gaussian_signal_is_the_capacity_and_of_others_less() -> None:
    torch.manual_seed(0)
    noise = math.sqrt(capacity.noise_variance(4, 2))
    gaussian = torch.randn(4096, 2)
    signs = gaussian.sign()
    for signal, low, high in ((gaussian, 3.8, 4.1), (signs, 1.9, 2.05)):
        found = capacity.information(signal, signal + noise * torch.randn_like(signal), noise)
        assert low < found < high
        assert found <= capacity.information_at_most(signal, noise) + 0.1
    assert capacity.information_at_most(gaussian / gaussian.std(0), noise) <= 4 + 1e-6
    dependent = gaussian[:, :1].expand(-1, 2) / gaussian[:, 0].std()
    assert capacity.information_at_most(dependent, noise) < 3.5


def test_information_cannot_exceed_the_number_of_signals() -> None:
    signal = torch.randn(64, 16)
    assert capacity.information(signal, signal, 1e-3) == pytest.approx(6)


def test_blocks_split_into_means_and_the_rest() -> None:
    x = torch.randint(0, 256, (5, 3, 9, 9), dtype=torch.uint8)
    means, within = capacity.block_parts(x)
    assert means.shape == (5, 27)
    assert means[2, 3].item() == pytest.approx(x[2, 0, :3, 3:6].double().mean().item())
    total = (within.view(5, 27, 9) + means.unsqueeze(2)).sum()
    assert total.item() == pytest.approx(x.double().sum().item())


def test_explained_is_one_for_linear_targets_and_nothing_for_noise() -> None:
    torch.manual_seed(0)
    z, z_test = torch.randn(500, 4), torch.randn(500, 4)
    weights = torch.randn(4, 3)
    linear = [(part @ weights + 7).double() for part in (z, z_test)]
    assert capacity.explained(z, linear[0], z_test, linear[1]) == pytest.approx(1, abs=1e-6)
    noise = [torch.randn(500, 3).double() for _ in range(2)]
    assert abs(capacity.explained(z, noise[0], z_test, noise[1])) < 0.05


def test_a_code_trains_and_stays_below_its_capacity(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (64, 3, 9, 9), dtype=torch.uint8)
    kind = form("9|3")
    setting = Setting(tmp_path, tmp_path, 1.0, emit=lambda line: None)
    plan = plan_of(kind, 1, 4)
    model = fit(
        partial(capacity.CapacityCode, kind, 8),
        capacity.loss_of,
        lambda n: x[:32],
        plan,
        9.0,
        setting,
        "code",
    )
    figures = capacity.measure(model, x, x, 8, 1)
    assert set(figures) == set(capacity.UNITS)
    assert figures["information"] <= 8.1
    assert figures["information at most"] <= 8.0 + 1e-6
    assert 0 < figures["CE"] < 12


def test_claims_follow_the_figures() -> None:
    def row(bits: float, means: float, within: float) -> Row:
        figures = (8.0, bits, 8.0, means, within, 5.0)
        return Row("", dict(zip(capacity.UNITS, figures, strict=True)))

    found = capacity.effects_of([row(7.5, 0.8, 0.4)], [row(7.5, 0.8, 0.1)])
    assert [effect.found for effect in found] == [True] * 3
    other = capacity.effects_of([row(8.5, 0.3, 0.4)], [row(7.5, 0.3, 0.6)])
    assert [effect.found for effect in other] == [False] * 3
