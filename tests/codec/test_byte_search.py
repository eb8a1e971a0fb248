"""The search for what fits a number of bytes, on curves that are known."""

import math

import numpy as np
import pytest

from vbc.codec.flow.byte_search import best_that_fits

TOP = 100


def searched(
    sizes: list[int], max_bytes: int, start: float, enough: float = 1.0
) -> tuple[int | None, list[int]]:
    """The place found, and all places tried in their order."""
    tried: list[int] = []

    def trial(place: int) -> int:
        assert place not in tried, "no place is tried twice"
        tried.append(place)
        return place

    top = len(sizes) - 1
    found = best_that_fits(
        trial, lambda place: sizes[place], max_bytes, start=start, top=top, growth=1.035, enough=enough
    )
    return found, tried


@pytest.mark.parametrize("start", [-3, 30, 55, 200])
def test_places_from_a_bottom_on(start: float) -> None:
    """Those below are not tried, though they would fit."""
    tried: list[int] = []

    def trial(place: int) -> int:
        tried.append(place)
        return place

    for max_bytes, want in ((39, None), (40, 40), (71, 71), (1000, TOP)):
        found = best_that_fits(
            trial, lambda place: place, max_bytes, start=start, top=TOP, growth=1.035, bottom=40
        )
        assert found == want
    assert min(tried) == 40


def growing(factor: float, first: float = 500.0) -> list[int]:
    return [round(first * factor**place) for place in range(TOP + 1)]


@pytest.mark.parametrize("factor", [1.004, 1.02, 1.035, 1.06, 1.2])
def test_the_highest_that_fits(factor: float) -> None:
    sizes = growing(factor)
    for max_bytes in (0, 1, 499, 500, 501, sizes[40] - 1, sizes[40], sizes[TOP] - 1, sizes[TOP], 1 << 40):
        for start in (-7.0, 0.0, 33.3, 100.0, 1e6):
            found, tried = searched(sizes, max_bytes, start)
            fitting = [place for place, size in enumerate(sizes) if size <= max_bytes]
            assert found == max(fitting, default=None)
            assert len(tried) <= 8 + math.ceil(math.log2(TOP))


@pytest.mark.parametrize("factor", [1.02, 1.028, 1.035, 1.045, 1.06])
def test_few_trials_where_it_grows_as_usual(factor: float) -> None:
    sizes = growing(factor, 20000)
    counts = [len(searched(sizes, sizes[place] + 1, start=50)[1]) for place in range(0, TOP + 1, 5)]
    assert max(counts) <= 6
    assert np.mean(counts) < 4


def test_enough_is_enough() -> None:
    """With steps of 1 % a share of 0.97 is met at the second place tried, or the third."""
    sizes = growing(1.01, 10000)
    for max_bytes in range(12000, 24000, 777):
        found, tried = searched(sizes, max_bytes, start=40, enough=0.97)
        assert found is not None
        assert 0.97 * max_bytes <= sizes[found] <= max_bytes
        assert found == tried[-1]
        assert len(tried) <= 4


@pytest.mark.parametrize("seed", range(20))
def test_any_curve(seed: int) -> None:
    """Steps, plateaus and falls: what is found fits, and nothing is found only where place 0 does not fit."""
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in np.cumsum(rng.integers(-20, 60, TOP + 1)).clip(1)]
    for max_bytes in rng.integers(0, max(sizes) + 50, 20):
        found, tried = searched(sizes, int(max_bytes), start=float(rng.integers(TOP)), enough=0.97)
        assert len(tried) <= 8 + math.ceil(math.log2(TOP))
        if found is None:
            assert sizes[0] > max_bytes
            assert tried[-1] == 0
        else:
            assert sizes[found] <= max_bytes


def test_one_place() -> None:
    assert searched([5], 4, start=0) == (None, [0])
    assert searched([5], 5, start=0) == (0, [0])
    assert searched([], 5, start=0) == (None, []), "below quality 0 there is nothing to try"
