"""The background-foreground VAE: its losses, what its measures mean, and every study, small."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Labelled, Split
from vbc.codec.research.parts.picture_vae import Form
from vbc.codec.research.parts.shapes import Drawing, Scenes, draw
from vbc.codec.research.run import Result, Setting
from vbc.codec.research.systems.bfvae import digits, measures, model, objects, renderer, toy
from vbc.codec.research.systems.bfvae.model import Bfvae, Kind, loss_of, scene_batches

FORM = Form(3, 32, 32, (4, 4), hidden=8, residual=False)
Shrink = Callable[[ModuleType], None]
KIND = Kind(FORM, front=3, back=4, beta=1.0)


def setting_in(folder: Path) -> Setting:
    return Setting(folder, folder, 0.01, emit=list[str]().append)


def scenes(n: int = 12, seed: int = 0) -> Scenes:
    return draw(Drawing(), n, seed)


def batch(n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    drawn = scenes(n)
    return drawn.images, drawn.foregrounds, drawn.masks


def loss_with(kind: Kind) -> tuple[Tensor, dict[str, float]]:
    torch.manual_seed(0)
    network = Bfvae(kind)
    torch.manual_seed(1)
    return loss_of(network, batch())


def test_the_loss_prices_the_background_alone() -> None:
    value, log = loss_with(KIND)
    dear, again = loss_with(replace(KIND, beta=5.0))
    assert log == pytest.approx(again)
    assert value.item() == pytest.approx(sum(log.values()), rel=1e-6)
    assert dear.item() - value.item() == pytest.approx(4 * log["kl_b"], rel=1e-2)


def test_whether_the_whole_teaches_the_foreground() -> None:
    """Without the gradient of L_b, E_f's gradient does not depend on what the picture is."""
    gradients = {}
    for joint in (True, False):
        for changed in (False, True):
            torch.manual_seed(0)
            network = Bfvae(replace(KIND, joint=joint))
            x, f, mask = batch()
            torch.manual_seed(1)
            value, _ = loss_of(network, (255 - x if changed else x, f, mask))
            torch.autograd.backward(value)
            gradient = network.see_front[-1].weight.grad
            assert gradient is not None
            gradients[joint, changed] = gradient
    assert torch.allclose(gradients[False, True], gradients[False, False], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradients[True, True], gradients[True, False], rtol=1e-2)


def test_black_objects_are_seen_by_their_mask() -> None:
    black = draw(replace(Drawing(), colours=("black",)), 6, 0)
    nothing = torch.zeros_like(black.masks)
    for masked in (False, True):
        torch.manual_seed(0)
        network = Bfvae(replace(KIND, masked=masked)).eval()
        seen = network.encode_front(black.foregrounds, black.masks).mean
        unseen = network.encode_front(black.foregrounds, nothing).mean
        assert torch.equal(seen, unseen) is not masked
        assert network.empty().shape == (1, KIND.front)
        assert torch.allclose(network.empty().expand_as(unseen), unseen, atol=1e-5)


def test_extraction_needs_no_foreground() -> None:
    network, drawn = Bfvae(KIND).eval(), scenes()
    blank = drawn._replace(foregrounds=torch.zeros_like(drawn.images), masks=torch.zeros_like(drawn.masks))
    assert torch.equal(network.extract(drawn.images), measures.swapped(network, drawn, blank))


def test_it_learns_to_recombine() -> None:
    torch.manual_seed(0)
    network, drawn = Bfvae(replace(KIND, front=8, back=8)), scenes(64)
    batches, before = scene_batches(drawn, 32, 1), measures.separation(network.eval(), drawn)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    network.train()
    for step in range(40):
        x, f, mask = batches(step)
        value, _ = loss_of(network, (x, f, mask))
        optimiser.zero_grad()
        torch.autograd.backward(value)
        optimiser.step()
    after = measures.separation(network.eval(), drawn)
    assert after["swap"] > before["swap"] + 2


def test_what_swaps_should_give() -> None:
    drawn = draw(Drawing(), 20, 7)
    assert torch.equal(measures.true_swap(drawn, drawn), drawn.images)
    others = measures.rolled(drawn)
    assert torch.equal(others.images[1:], drawn.images[:-1])
    swapped = measures.true_swap(drawn, others)
    inside = others.masks.bool().expand_as(swapped)
    assert torch.equal(swapped[inside], others.images[inside])
    assert torch.equal(swapped[~inside], drawn.backgrounds[~inside])


def test_error_inside_masks() -> None:
    mask = torch.zeros((1, 1, 4, 4), dtype=torch.uint8)
    mask[..., :2] = 1
    a = torch.zeros((1, 3, 4, 4), dtype=torch.uint8)
    b = torch.full_like(a, 9)
    b[..., :2] = 6
    assert measures.inside_error(a, b, mask) == pytest.approx(6)


def test_shares_between_groups() -> None:
    groups = torch.arange(40) % 4
    points = torch.stack((groups.float(), torch.arange(40) // 4 * 0.0), 1)
    assert measures.group_share(points, groups) == pytest.approx(1)
    assert measures.group_share(points, torch.arange(40) // 4) == pytest.approx(0)
    plane = measures.principal_plane(torch.cat((points, points), 1))
    assert plane.shape == (40, 2)
    assert plane[:, 0].var() == pytest.approx(float(2 * points[:, 0].var()), rel=1e-4)


def finite(result: Result) -> bool:
    return all(
        math.isfinite(v) for table in result.tables for row in table.rows for v in row.figures.values()
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """Few pictures, small networks, two steps."""
    monkeypatch.setattr(model, "PLAN", replace(model.PLAN, steps=2, batch=8))
    monkeypatch.setattr("vbc.codec.research.parts.probes.NETWORK_STEPS", 10)

    def shrink(study: ModuleType) -> None:
        sizes = {"TESTED": 40, "PICTURES": 40, "PER_SHAPE": 10, "PROBE_TRAIN": 30, "PROBE_TEST": 30}
        for name, value in sizes.items():
            if hasattr(study, name):
                monkeypatch.setattr(study, name, value)
        if hasattr(study, "photographs"):
            grounds = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
            monkeypatch.setattr(study, "photographs", lambda folder, side: Split(grounds, grounds, grounds))

    return shrink


def test_toy_study(tmp_path: Path, small: Shrink, monkeypatch: pytest.MonkeyPatch) -> None:
    small(toy)
    variants = {n: replace(v, kind=replace(v.kind, form=FORM)) for n, v in toy.VARIANTS.items()}
    monkeypatch.setattr(toy, "VARIANTS", variants)
    result = toy.run(setting_in(tmp_path))
    probes, swaps = result.tables
    assert (len(probes.rows), len(swaps.rows), len(result.effects)) == (5, 4, 8)
    assert probes.rows[0].thesis["z_b test"] == 36.3
    assert finite(result)
    assert set(result.pictures) == {path.name for path in tmp_path.glob("*.png")}


def test_objects_study(tmp_path: Path, small: Shrink, monkeypatch: pytest.MonkeyPatch) -> None:
    small(objects)
    monkeypatch.setattr(objects, "FORM", FORM)
    result = objects.run(setting_in(tmp_path))
    assert [row.model for row in result.tables[0].rows] == list(objects.VARIANTS)
    assert set(result.tables[0].rows[0].figures) == set(objects.UNITS)
    assert len(result.effects) == 11
    assert finite(result)
    originals = {name for name in result.pictures if name.endswith("-pictures.png")}
    assert len(originals) == 2
    assert all("photographs" in name for name in originals)


def test_digits_study(tmp_path: Path, small: Shrink, monkeypatch: pytest.MonkeyPatch) -> None:
    small(digits)
    x = torch.randint(0, 256, (60, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(60) % 10
    monkeypatch.setattr(digits, "mnist", lambda folder: Labelled(x, labels, x, labels))
    monkeypatch.setattr(digits, "FORM", replace(FORM, channels=1, latents=4))
    monkeypatch.setattr(digits, "PLAN", replace(model.PLAN, steps=2, batch=8))
    result = digits.run(setting_in(tmp_path))
    accuracies, read = result.tables
    assert [row.model for row in accuracies.rows][:2] == ["BFVAE z_b", "plain VAE z"]
    assert {row.model for row in accuracies.rows} == {"plain VAE z", *digits.KNOWN}
    assert (len(read.rows), len(result.effects), result.pictures) == (3, 4, ["styles-pictures.png"])


def test_an_example_of_each_digit() -> None:
    labels = torch.tensor([3, 1, 1, 0, 2, 4, 5, 6, 7, 8, 9, 3])
    x = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1)
    found = digits.examples(Labelled(x, labels, x, labels)).flatten().tolist()
    assert [int(labels[n]) for n in found] == list(range(10))
    assert (found[1], found[3]) == (1, 0)


def test_renderer_study(tmp_path: Path, small: Shrink, monkeypatch: pytest.MonkeyPatch) -> None:
    small(renderer)
    monkeypatch.setattr(renderer, "FORM", replace(FORM, residual=True))
    monkeypatch.setattr(renderer, "KIND", replace(KIND, form=renderer.FORM))
    monkeypatch.setattr(renderer, "PLAN", replace(model.PLAN, steps=2, batch=8))
    monkeypatch.setattr(renderer, "GAN_PLAN", replace(renderer.GAN_PLAN, steps=2, batch=8))
    result = renderer.run(setting_in(tmp_path))
    rows = {row.model: row for row in result.tables[0].rows}
    assert set(rows) == {
        "other real pictures",
        "BFVAE's decoder",
        renderer.GUIDED,
        renderer.NEW,
        renderer.ALONE,
    }
    assert rows[renderer.GUIDED].thesis == {"Frechet, saved": 19.12, "Frechet, direct": 28.15}
    assert len(result.effects) == 8
    assert finite(result)


def test_the_guide_reads_both_codes() -> None:
    torch.manual_seed(0)
    network, drawn = Bfvae(KIND).eval(), scenes(5)
    whole = network.see_front
    q = renderer.guide(network, whole)(drawn.images.float() / 127.5 - 1)
    assert q.mean.shape == (5, KIND.back + KIND.front)
    assert torch.allclose(q.mean[:, : KIND.back], network.encode_back(drawn.images).mean, atol=1e-5)


def test_claims_follow_from_figures() -> None:
    def scored(good: bool) -> dict[str, dict[str, float]]:
        better = {"swap": 20.0, "reconstruction": 20.0, "object left": 30.0, "shape from z_b": 30.0}
        worse = {"swap": 19.0, "reconstruction": 21.0, "object left": 80.0, "shape from z_b": 60.0}
        rest = {"extraction": 20.0, "shape from z_f": 90.0}
        rows = {}
        for name in objects.VARIANTS:
            five = ("beta 5" in name and "central" not in name) is good
            leak = {"colour from z_b": 40.0 if five else 90.0}
            pure = {"pure ground": 30.0 if ("flat" in name) is good else 15.0}
            rows[name] = {**rest, **(better if five else worse), **leak, **pure}
        return rows

    assert [effect.found for effect in objects.claims(scored(True))] == [True] * 11
    assert not any(effect.found for effect in objects.claims(scored(False)))
    good = {"BFVAE z_b": {"train": 25.0, "test": 26.0}, "plain VAE z": {"train": 99.0, "test": 95.0}}
    read = {"test digits": 98.0, "composed, next class": 95.0}
    assert [effect.found for effect in digits.claims(good, read)] == [True, True, True, None]
    swapped = dict(zip(good, reversed(good.values()), strict=True))
    assert [e.found for e in digits.claims(swapped, {**read, "composed, next class": 50.0})] == [
        False
    ] * 3 + [None]
