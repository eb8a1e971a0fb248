"""The largest of a row of trials that fits a number of bytes, found with few of them."""

import math
from collections.abc import Callable
from typing import TypeVar

GUESSES = 8
"""Trials that follow the curve; if those were not enough the rest halve what is left."""

T = TypeVar("T")


def best_that_fits(
    trial: Callable[[int], T],
    n_bytes: Callable[[T], int],
    max_bytes: int,
    *,
    start: float,
    top: int,
    growth: float,
    enough: float = 1.0,
    bottom: int = 0,
) -> T | None:
    """What `trial` gives at the highest place, `bottom` to `top`, at which its bytes are at most `max_bytes`.

    The bytes are to grow with the place, nearly by one factor for each; where they do not, it is some place
    that fits. start: the place of the first trial, to the nearest. growth: the typical factor, above 1.
    enough: a share of `max_bytes`; the first trial that has it and fits is taken. None where not even
    `bottom` fits.
    """
    low, high = bottom - 1, top + 1  # fits, does not fit
    best: T | None = None
    sizes: dict[int, float] = {}
    goal = math.log(max(1, max_bytes) * (1 + enough) / 2)
    wanted = start
    while high - low > 1:
        place = min(max(round(wanted), low + 1), high - 1)
        result = trial(place)
        size = n_bytes(result)
        if size <= max_bytes:
            low, best = place, result
            if size >= enough * max_bytes:
                break
        else:
            high = place
        sizes[place] = math.log(max(1, size))
        slope = _slope(sizes, place, math.log(growth))
        wanted = place + (goal - sizes[place]) / slope if len(sizes) < GUESSES else (low + high) / 2
    return best


def _slope(sizes: dict[int, float], place: int, typical: float) -> float:
    """By how much sizes grow for each place, from one to the nearest other: within limits."""
    others = [p for p in sizes if p != place]
    if not others:
        return typical
    other = min(others, key=lambda p: (abs(p - place), p))
    return min(max((sizes[other] - sizes[place]) / (other - place), typical / 4), typical * 4)
