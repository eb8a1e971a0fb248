"""Accounting identities: they hold for any model, trained or not."""

from pathlib import Path

import pytest
import torch

from vbc.codec.research.parts.data_sets import Labelled
from vbc.codec.research.run import Setting
from vbc.codec.research.systems import accounting
from vbc.codec.research.systems.accounting import DigitVae


def untrained(spread: float = 1.0) -> tuple[DigitVae, torch.Tensor]:
    """A model whose codes differ from digit to digit, and digits."""
    torch.manual_seed(0)
    model = DigitVae(20)
    with torch.no_grad():
        for parameter in model.encoder[-1].parameters():
            parameter.mul_(8 * spread)
    return model, (torch.rand(300, 20) < 0.4).to(torch.uint8)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_identities_hold(spread: float) -> None:
    found = accounting.identities(*untrained(spread))
    for name in ("a", "b"):
        assert abs(found[f"gap {name}"]) <= 4 * found[f"error {name}"] + 1e-5
    assert found["I"] <= torch.log2(torch.tensor(300.0)) + 0.1
    if spread:
        assert min(found["KL"], found["I"], found["mismatch"], found["decoder"]) > 0.01


def test_capacity_is_below_the_kl() -> None:
    units = accounting.channels(*untrained())
    assert len(units) == accounting.UNITS
    for unit in units:
        assert unit["KL"] >= unit["C"] - 1e-5
        assert unit["I"] <= unit["KL"] + 0.02
    assert max(unit["KL"] - unit["C"] for unit in units) > 1e-3


def test_log_p_of_every_digit_and_code() -> None:
    model, x = untrained()
    z = torch.randn(4, accounting.UNITS)
    white = torch.sigmoid(model.decoder(z[2]))
    expected = torch.where(x[7] > 0, white, 1 - white).log().sum()
    assert torch.allclose(model.log_p(x, z)[2, 7], expected, atol=1e-4)


def test_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = (torch.rand(200, 1, 28, 28) * 255).to(torch.uint8)
    labels = torch.zeros(200, dtype=torch.int64)
    monkeypatch.setattr(accounting, "mnist", lambda folder: Labelled(images, labels, images, labels))
    result = accounting.run(Setting(tmp_path, tmp_path, 0.001, emit=list[str]().append))
    found = {effect.claim[:3]: effect.found for effect in result.effects}
    assert found["(a)"]
    assert found["(b)"]
    assert found["(d)"] is None
    assert [effect.found for effect in result.effects][-2:] == [False, True]
    assert [len(table.rows) for table in result.tables] == [4, 10]
