"""Areas valued by pointwise mutual information, and merged."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.area_merging import Merging, merged
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Plan
from vbc.codec.research.run import Setting
from vbc.codec.research.systems import pmi_merge


def pictures(n: int, side: int) -> Tensor:
    return torch.randint(
        0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )


def density() -> pmi_merge.AreaDensity:
    """A network whose answers depend on all that they may."""
    torch.manual_seed(0)
    model = pmi_merge.AreaDensity()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def halves() -> tuple[Tensor, Tensor]:
    """Left and right half of a patch, as masks of one patch."""
    left = torch.zeros(1, 8, 8, dtype=torch.bool)
    left[..., :4] = True
    return left, ~left


def test_areas_are_disjoint_and_never_empty() -> None:
    area, visible = pmi_merge.random_areas(500, np.random.default_rng(0))
    assert not (area & visible).any()
    assert area.flatten(1).any(1).all()
    empty = ~visible.flatten(1).any(1)
    assert 0.25 < empty.double().mean() < 0.6
    assert area.sum((1, 2)).max() == 64


@torch.no_grad()
def test_nats_depend_on_the_area_and_what_is_visible_only() -> None:
    model, (left, right), x = density(), halves(), pictures(1, 8)
    inner = left.clone()
    inner[:, 0] = False  # the first row is neither coded nor visible
    before = model.nats(x, inner, right).item()
    for at, counts in (((0, 0), False), ((3, 2), True), ((3, 6), True)):
        other = x.clone()
        other[..., at[0], at[1]] ^= 255
        assert (model.nats(other, inner, right).item() != before) == counts


@torch.no_grad()
def test_chain_rule_holds_pixel_by_pixel() -> None:
    """An area is coded in raster order: changing its last pixel leaves the nats of the earlier ones as they
    were."""
    model, (left, right), x = density(), halves(), pictures(1, 8).expand(256, -1, -1, -1).clone()
    x[:, :, 7, 3] = torch.arange(256, dtype=torch.uint8)[:, None]
    known = (x.float() / 127.5 - 1) * right.unsqueeze(1)
    masks = torch.stack((right, left), 1).float().expand(256, -1, -1, -1)
    maps = model.pixels(x * left.unsqueeze(1), model.context(torch.cat((known, masks), 1)))
    coded = maps[:, :, left[0]]
    assert torch.allclose(coded, coded[:1].expand_as(coded), atol=1e-5)


def test_pmi_of_equal_masks_both_ways() -> None:
    model, (left, right), x = density(), halves(), pictures(1, 8)
    ab, ba = pmi_merge.pmi(model, x, left, right)
    swapped = pmi_merge.pmi(model, x, right, left)
    assert torch.equal(torch.stack((ab, ba)), torch.stack(swapped[::-1]))
    figures = pmi_merge.pair_figures(model, pictures(2, 8))
    assert figures["asymmetry"] >= 0
    assert abs(figures["Spearman with gradient"]) <= 1


def test_pmi_is_symmetric_where_the_densities_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """All areas show one of two pictures, as one draw: pmi is then log 2 in nats, in both directions."""

    def nats(model: object, x: Tensor, area: Tensor, visible: Tensor) -> Tensor:
        return torch.where(visible.flatten(1).any(1), 0.0, math.log(2)).double()

    monkeypatch.setattr(pmi_merge, "nats_of", nats)
    figures = pmi_merge.pair_figures(density(), pictures(3, 8))
    assert figures["asymmetry"] == 0
    assert figures["pmi of neighbours"] == pytest.approx(1 / 12)


def test_squares_are_adjacent_and_disjoint() -> None:
    pairs = pmi_merge.squares()
    assert len(pairs) == 24
    assert len({tuple((a | b).flatten().tolist()) for a, b in pairs}) == 24
    for a, b in pairs:
        assert (a.sum(), b.sum(), (a & b).sum()) == (4, 4, 0)


def test_rank_correlation_sees_order_alone() -> None:
    a = torch.tensor([3.0, 1.0, 2.0, 7.0])
    assert pmi_merge.spearman(a, a.exp()) == pytest.approx(1)
    assert pmi_merge.spearman(a, -a) == pytest.approx(-1)


def test_merging_finds_the_areas_that_its_values_mean() -> None:
    """Pairs of equal colour are worth most: a picture of four flat corners ends as its corners."""
    x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    x[0, 0, :2, 2:], x[0, 0, 2:, :2], x[0, 0, 2:, 2:] = 80, 160, 240
    x[1] = x[0].transpose(1, 2)

    def value(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        means = [(x[:, 0] * m).sum((1, 2)) / m.sum((1, 2)) for m in (a, b)]
        return -(means[0] - means[1]).abs()

    labels = merged(x, value, (8, 4))
    assert all(len(one.unique()) == 4 for one in labels[4])
    assert all(len(one.unique()) == 8 for one in labels[8])
    for picture, one in zip(x[:, 0], labels[4], strict=True):
        assert all(len(picture[one == label].unique()) == 1 for label in one.unique())
    assert pmi_merge.variance_explained(x, labels[4]) == pytest.approx(1)
    assert pmi_merge.variance_explained(x, torch.zeros(2, 4, 4, dtype=torch.int64)) == pytest.approx(0)


def test_a_merged_area_forgets_its_values() -> None:
    state = Merging.start(3)
    assert len(state.missing()) == 12
    state.links = dict.fromkeys(state.missing(), 0.0) | {(0, 1): 1.0}
    state.merge()
    assert state.labels.tolist() == [[0, 0, 2], [3, 4, 5], [6, 7, 8]]
    assert state.missing() == [(0, 2), (0, 3), (0, 4)]
    assert state.mask(0).sum() == 2


def test_gradient_counts_merged_areas() -> None:
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    x[..., 4:] = 100  # one edge, at column 3
    labels = torch.arange(64).view(1, 8, 8).clone()
    labels[0, 2, 3] = labels[0, 1, 3]
    assert pmi_merge.gradient_of_merged(x, labels) == pytest.approx(8)
    assert pmi_merge.coloured(labels).shape == x.shape


def test_the_density_trains(tmp_path: Path) -> None:
    setting = Setting(tmp_path, tmp_path, 1.0, emit=lambda line: None)
    plan = Plan(6, 8, rate=1e-3, seed=1)
    batches = pmi_merge.batches_of(pictures(4, 12), 8, 1)
    model = fit(pmi_merge.AreaDensity, pmi_merge.loss_of, batches, plan, 9.0, setting, "areas")
    x = pictures(1, 8)
    labels = merged(x, pmi_merge.by_pmi(model), (60,))[60]
    assert len(labels.unique()) == 60
    control = merged(x, pmi_merge.by_chance(1), (60, 8))
    assert len(control[8].unique()) == 8


def test_claims_follow_the_figures() -> None:
    def merging(gradient: float, explained: float) -> dict[str, dict[str, float]]:
        ways = {"pmi": (gradient, explained), "chance": (1.0, 0.5)}
        return {
            f"{left} areas, merged by {way}": dict(zip(pmi_merge.MERGE_UNITS, figures, strict=True))
            for way, figures in ways.items()
            for left in pmi_merge.AREAS
        }

    for rank, gradient, explained, found in ((0.5, 1.5, 0.8, True), (-0.1, 0.9, 0.4, False)):
        pairs = dict(zip(pmi_merge.UNITS, (0.1, 0.1, rank), strict=True))
        effects = pmi_merge.effects_of(pairs, merging(gradient, explained))
        assert [effect.found for effect in effects] == [found, found, found, None]
