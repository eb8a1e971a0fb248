"""Files that are made for one number of bytes or one quality, to hold prefixes against."""

from functools import partial
from typing import TYPE_CHECKING

from bench import common, rivals
from bench.common import Rgb, Row
from bench.rate_distortion import EYE, points
from bench.rivals import Codec
from vbc.codec.settings import Tune

if TYPE_CHECKING:
    from vbc.codec.model import Model

EXCESS = {"psnr_db": "excess_psnr_percent", EYE: "excess_ssimulacra2_percent"}
"""Metric, and the field that says by how many percent a prefix is larger than a file made for its value."""


def dedicated_codecs(model: "Model", quick: bool) -> list[list[Codec]]:
    """For each codec its settings from small files to large ones."""
    curves = [
        [rivals.ours(model, f"q{q}", quality=q) for q in range(0, 101, 2)],
        [rivals.jpeg(q, "4:2:0") for q in range(1, 96)],
        [rivals.jpeg2000(24 * 0.9**k) for k in range(60, 1, -1)],
    ]
    if not quick:
        curves.append([rivals.avif(q, 6) for q in range(2, 99, 4)])
    return curves


def best_fits(curve: list[Codec], rgb: Rgb, budgets: list[int]) -> list[tuple[Codec, bytes] | None]:
    """For each number of bytes the last setting whose file fits, found by bisection; None where none fits.

    None too where even the last setting takes less than half of the bytes: the codec has no file for so many.
    """
    coded: dict[int, bytes] = {}

    def size(i: int) -> int:
        if i not in coded:
            coded[i] = curve[i].encode(rgb)
        return len(coded[i])

    fits: list[tuple[Codec, bytes] | None] = []
    for budget in budgets:
        low, high = -1, len(curve)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) <= budget else (low, middle)
        fitting = low >= 0 and (low < len(curve) - 1 or 2 * size(low) >= budget)
        fits.append((curve[low], coded[low]) if fitting else None)
    return fits


def our_curve(model: "Model", tune: Tune, quick: bool) -> list[Codec]:
    """Our lossy files without refinements at qualities from 0 to 100."""
    make = partial(rivals.ours, model, name=f"{rivals.OURS} --tune {tune}", tune=tune)
    return [make(f"q{q}", quality=q) for q in rivals.QUALITIES[:: 2 if quick else 1]]


def excess(row: Row, curve: list[Row]) -> Row:
    """By how many percent a prefix is larger than a dedicated file of its PSNR, and of its SSIMULACRA 2.

    Of the bytes, by `common.rate_at` of the dedicated files of the same image, `curve`. None where none of
    them is as bad or as good as the prefix.
    """
    found: Row = {}
    for metric, field in EXCESS.items():
        found[field] = None
        if row[metric] is not None:
            rate_bpp = common.rate_at(points(curve, metric), row[metric])
            found[field] = None if rate_bpp is None else 100 * (row["rate_bpp"] / rate_bpp - 1)
    return found
