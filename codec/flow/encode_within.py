"""The best lossy levels for a number of bytes: the quality is what is looked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.bitstream.container import MAX_QUALITY, REFINEMENT_QUALITY
from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec.flow.byte_search import best_that_fits
from vbc.codec.flow.choose_quality import sample_of
from vbc.codec.flow.encode_levels import TYPICAL_GROWTH, Packets, encode_lossy, n_bytes
from vbc.codec.lossy.map_coding import SQUARE
from vbc.codec.lossy.quality_map import (
    QualityMap,
    change_for_the_eye,
    map_of_quality,
)
from vbc.codec.model import Model
from vbc.codec.settings import Tune

PLACES = 16
"""Qualities to choose from for each whole one, which alone changes the bytes by 2 to 5 %."""
ENOUGH = 0.97
"""A file that uses so much of its bytes is taken; another trial would cost more than it shows."""
TYPICAL_QUALITY, TYPICAL_BPP = 50, 0.5
"""What photographs take, give or take a factor of 2: where the search starts."""
ONE_MORE = PLACES * REFINEMENT_QUALITY
"""Places to the quality that allows one refinement more."""
SAMPLE_SHARE, SAMPLE_ENOUGH = 1 / 4, 0.9
"""A sample that is at most this share of the picture is searched first, for a better start."""


@dataclass(frozen=True)
class Trial:
    """Lossy levels, and the quality that they were coded with. place: the quality times `PLACES`."""

    place: int
    quality: QualityMap
    packets: Packets


def encode_lossy_within(
    picture: Tensor,
    model: Model,
    levels: int,
    refinements: int,
    tune: Tune,
    file_bytes: Callable[[Packets], int],
    max_bytes: int,
) -> tuple[QualityMap, Packets]:
    """Lossy levels of uint8 RGB [1, 3, H, W] whose file has at most so many bytes, and hardly fewer.

    levels: how many there are to be. Fewer are returned where quality 0 is too large with all of them, and
    where it is with level 1 alone, that, though it does not fit. refinements: of all three levels, as many as
    the quality allows. file_bytes: of a file with these packets.
    """
    changes = change_for_the_eye(picture)
    if tune == "psnr":
        changes = torch.zeros_like(changes)
    others = file_bytes([])
    room = max_bytes - others
    start = _typical_place(room, picture)
    if min(picture.shape[-2:]) >= SQUARE:
        sample, its_changes = sample_of(picture, changes)
        share = sample.numel() / picture.numel()
        if share <= SAMPLE_SHARE and its_changes is not None:
            its_room = int(room * share)
            like = _search(
                model, sample, its_changes, levels, refinements, n_bytes, its_room, start, SAMPLE_ENOUGH
            )
            start = 0 if like is None else like.place
    for n_levels in range(levels, 0, -1):
        best = _search(
            model,
            picture,
            changes,
            n_levels,
            refinements,
            lambda packets: file_bytes(packets) - others,
            room,
            start,
            ENOUGH,
        )
        if best is not None:
            return best.quality, best.packets
    lowest = map_of_quality(0, changes)
    return lowest, encode_lossy(picture, model, 1, lowest)[0]


def _typical_place(n_bytes: int, picture: Tensor) -> int:
    rate_bpp = 8 * max(1, n_bytes) / picture[0, 0].numel()
    quality = TYPICAL_QUALITY + math.log(rate_bpp / TYPICAL_BPP) / math.log(TYPICAL_GROWTH)
    return round(PLACES * min(max(quality, 0), MAX_QUALITY))


def _search(
    model: Model,
    picture: Tensor,
    changes: Tensor,
    levels: int,
    refinements: int,
    size: Callable[[Packets], int],
    max_bytes: int,
    start: int,
    enough: float,
) -> Trial | None:
    """The first levels at the highest quality that fits; None where quality 0 does not.

    refinements: of all three levels. There are as many as fit at the quality that allows them. One more costs
    bytes at once, so each number of them has a search of its own; where one more than there are does not fit,
    the quality rises with fewer.
    """

    def search(count: int, start: int) -> Trial | None:
        def trial(place: int) -> Trial:
            quality = map_of_quality(place / PLACES, changes).refined(count)
            return Trial(place, quality, encode_lossy(picture, model, levels, quality)[0])

        return best_that_fits(
            trial,
            lambda t: size(t.packets),
            max_bytes,
            start=start,
            top=MAX_QUALITY * PLACES,
            growth=TYPICAL_GROWTH ** (1 / PLACES),
            enough=enough,
            bottom=count * ONE_MORE,
        )

    most = refinements if levels == LOSSY_LEVELS else 0
    count = min(most, start // ONE_MORE)
    best = search(count, start)
    while best is None and count:
        count = most = count - 1
        best = search(count, (count + 1) * ONE_MORE)
    while best is not None and count < most and best.place >= (count + 1) * ONE_MORE:
        count += 1
        more = search(count, best.place)
        if more is None:
            break
        best = more
    return best
