"""Which packets of refinements pay and in which order they stand, against looking at all there are."""

import functools
import random
from itertools import combinations

import pytest

from vbc.bitstream.geometry import Geometry, Sides, is_lossy, stage_of
from vbc.codec.flow.keep_paying import INDEX_BYTES, Place, Worth, best_first, that_pay

SMALL = Sides(lossy=(4, 2, 2), refined=(32, 12, 4), exact=(6, 4, 2))
GEOMETRY = Geometry(8 * 12, 8 * 4, sides=SMALL)
"""One group of refined level 1, one of level 2, three of level 3."""


@functools.cache
def needs(geometry: Geometry, place: Place) -> set[Place]:
    level, part = place
    found = geometry.needs(level, part - 1, archival=False)
    return {(n, 1 + g) for n, groups in found.items() if n > 32 for g in geometry.numbers(n, groups)}


def some_worth(geometry: Geometry, refinements: int, rng: random.Random) -> dict[Place, Worth]:
    levels = [n for n in geometry.levels if is_lossy(n) and 0 < stage_of(n)[0] <= refinements]
    places = [(n, 1 + g) for n in levels for g in range(geometry.n_groups(n))]
    return {place: Worth(rng.gauss(700, 900), rng.randrange(1, 120)) for place in places}


def profit(worth: dict[Place, Worth], kept: set[Place]) -> float:
    return sum(worth[p].gain_bits - 8 * (worth[p].n_bytes + INDEX_BYTES) for p in kept)


def is_valid(geometry: Geometry, kept: set[Place]) -> bool:
    """As a container demands it: with all needs, and no refinement after one without its level 3."""
    stages = {stage_of(level)[0] for level, _ in kept}
    whole = {stage_of(level)[0] for level, _ in kept if stage_of(level)[1] == 3}
    return all(needs(geometry, p) <= kept for p in kept) and all(n - 1 in whole for n in stages - {1})


@pytest.mark.parametrize("refinements", [1, 2])
def test_the_best_choice(refinements: int) -> None:
    """Nothing valid of all subsets pays more, but where two packets carry a third one together."""
    rng = random.Random(3)
    best_found = 0
    for _ in range(12):
        worth = some_worth(GEOMETRY, refinements, rng)
        kept = that_pay(worth, GEOMETRY)
        assert is_valid(GEOMETRY, kept)
        assert profit(worth, kept) >= max(0, profit(worth, set(worth)))
        choices = (set(c) for n in range(len(worth) + 1) for c in combinations(worth, n))
        best = max(profit(worth, c) for c in choices if is_valid(GEOMETRY, c))
        best_found += profit(worth, kept) > best - 1e-6
    assert best_found >= 8


def test_what_needs_something_dropped_goes_too() -> None:
    rich, poor = Worth(10_000, 10), Worth(0, 10)
    first, second, third = (33, 1), (34, 1), (35, 2)
    assert that_pay({first: poor, second: poor, third: rich}, GEOMETRY) == {first, second, third}
    assert that_pay({first: poor, second: Worth(-20_000, 10), third: rich}, GEOMETRY) == set()
    assert that_pay({first: rich, second: poor, third: poor}, GEOMETRY) == {first}
    assert that_pay({first: Worth(8 * (10 + INDEX_BYTES), 10)}, GEOMETRY) == {first}, "as much as it costs"
    assert that_pay({first: Worth(8 * (10 + INDEX_BYTES) - 1, 10)}, GEOMETRY) == set()
    assert that_pay({}, GEOMETRY) == set()


def test_no_refinement_follows_one_without_its_last_level() -> None:
    rich, poor = Worth(10_000, 10), Worth(0, 10)
    worth = dict.fromkeys([(33, 1), (34, 1), (36, 1)], rich) | {(35, 1): poor}
    assert that_pay(worth, GEOMETRY) == {(33, 1), (34, 1)}
    assert that_pay(worth | {(35, 1): rich}, GEOMETRY) == {*worth}


@pytest.mark.parametrize("size", [(96, 32), (257, 129), (700, 400)])
def test_order(size: tuple[int, int]) -> None:
    """One refinement after the other; each packet after its needs; no other would have gained more a byte."""
    geometry, rng = Geometry(*size, sides=SMALL), random.Random(5)
    worth = some_worth(geometry, 2, rng)
    order = best_first(worth, geometry)
    assert sorted(order) == sorted(worth)
    assert [stage_of(level)[0] for level, _ in order] == sorted(stage_of(level)[0] for level, _ in order)
    there: set[Place] = set()
    for place in order:
        assert needs(geometry, place) <= there
        there.add(place)
    areas = [
        sum(
            sum(worth[p].gain_bits for p in some[: i + 1]) * (worth[some[i]].n_bytes + INDEX_BYTES)
            for i in range(len(some))
        )
        for some in (order, sorted(worth))
    ]
    assert areas[0] > areas[1]


def test_a_packet_is_worth_what_it_opens() -> None:
    """One of no gain comes early where another that needs it gains much."""
    worth = {
        (33, 1): Worth(100, 10),
        (34, 1): Worth(0, 10),
        (35, 1): Worth(500, 10),
        (35, 2): Worth(90_000, 10),
        (35, 3): Worth(5_000, 10),
    }
    assert best_first(worth, GEOMETRY) == [(33, 1), (34, 1), (35, 2), (35, 3), (35, 1)]
