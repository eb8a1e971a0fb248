"""Which qualities a picture is coded with: what its looks need, in place of one number for all pictures.

An asked quality stands for a score of SSIMULACRA 2, which typical pictures have at some base. But the same
quantiser step looks different in different pictures. An encoder for the eye therefore codes a sample of the
picture, looks what score that would have, and moves the base by what it is off. Nothing here decides what a
bit means.
"""

from dataclasses import replace

import torch
from torch import Tensor

from vbc.bitstream.container import MAX_QUALITY
from vbc.codec.entropy.coder import Discard
from vbc.codec.flow.adjust_map import adjusted
from vbc.codec.flow.lossy_trial import code_lossy
from vbc.codec.lossy.eye_distance import SMALLEST_SIDE, eye_terms, predicted_score
from vbc.codec.lossy.map_coding import SQUARE
from vbc.codec.lossy.quality_map import (
    QualityMap,
    as_values,
    change_for_the_eye,
    finer_inside,
    squares_touched,
    values_for_the_eye,
)
from vbc.codec.model import Model
from vbc.codec.settings import EncodeSettings

GOOD_QUALITY, GOOD_SCORE = 60, 70.0
"""Quality 60, the default, is for a score of 70: good, and differences are not seen at arm's length."""
CROP, CROPS = 128, 3
"""A sample is up to 3x3 squares of 128 pixels, spread over the picture."""
MAX_MOVE = 18
"""The base is moved by so much at most, and never beyond 0 or 100."""
ADJUSTING_EFFORT = 2
"""From this effort on the picture is coded once more, to adjust the map to what is seen of its errors."""


def choose_quality(model: Model, picture: Tensor, settings: EncodeSettings) -> QualityMap:
    """The map for uint8 RGB [1, 3, H, W].

    Regions of interest get what the whole picture would get at their quality.
    """
    quality = QualityMap(base_of_quality(model, settings.asked_quality))
    if settings.tune != "psnr":
        quality = map_for_the_eye(model, picture, quality.base, settings.effort)
    if settings.regions is None or settings.asked_quality == settings.asked_roi_quality:
        return quality
    inside = replace(quality, base=base_of_quality(model, settings.asked_roi_quality))
    if settings.tune != "psnr":
        inside = calibrated(model, picture, inside)
    squares = squares_touched(settings.regions.boxes, *picture.shape[-2:])
    return finer_inside(quality, inside.base - quality.base, squares)


def base_of_quality(model: Model, asked: int) -> int:
    """The base that an asked quality has on typical pictures; with weights that have no scores the same."""
    scores = model.lossy.scores
    return asked if scores is None else round(typical_base(scores, asked))


def map_for_the_eye(model: Model, picture: Tensor, base: int, effort: int) -> QualityMap:
    """The map of a picture that shall look as typical ones do at a base."""
    quality = calibrated(model, picture, QualityMap(base, values_for_the_eye(picture)))
    if effort < ADJUSTING_EFFORT or quality.values is None:  # flat: there is nothing to adjust
        return quality
    change = adjusted(model, picture, quality, change_for_the_eye(picture))
    return calibrated(model, picture, QualityMap(base, as_values(change)))


def calibrated(model: Model, picture: Tensor, quality: QualityMap) -> QualityMap:
    """The map with its base moved, so that the picture looks as typical ones do at that base.

    As it is for small pictures, and with weights that have no scores.
    """
    scores, base = model.lossy.scores, quality.base
    if scores is None or min(picture.shape[-2:]) < SMALLEST_SIDE:
        return quality
    sample, values = sample_of(picture, quality.values)
    room = min(MAX_MOVE, base, MAX_QUALITY - base)
    looks_like = base_of_score(scores, score_of(model, sample, QualityMap(base, values)))
    move = max(-room, min(room, round(base - looks_like)))
    return replace(quality, base=base + move)


def typical_base(scores: Tensor, quality: int) -> float:
    """The base that an asked quality has on typical pictures: 0, that of `GOOD_SCORE` and 100, straight
    between."""
    good = base_of_score(scores, GOOD_SCORE)
    if quality <= GOOD_QUALITY:
        return good * quality / GOOD_QUALITY
    return good + (MAX_QUALITY - good) * (quality - GOOD_QUALITY) / (MAX_QUALITY - GOOD_QUALITY)


def base_of_score(scores: Tensor, score: float) -> float:
    """The base at which typical pictures have a score. scores: float32 [101], rising, by base."""
    above = int(torch.searchsorted(scores.cpu().contiguous(), score))
    if not 0 < above < len(scores):
        return float(min(above, MAX_QUALITY))
    low, high = scores[above - 1].item(), scores[above].item()
    return above - 1 + (score - low) / (high - low)


def sample_of(picture: Tensor, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Squares of a picture uint8 [1, 3, H, W], side by side as one, and the values of their map.

    Sides of the squares are multiples of 16, so H and W must be 16 at least.
    """
    side = min(CROP, *(n // SQUARE * SQUARE for n in picture.shape[-2:]))
    starts = []
    for n in picture.shape[-2:]:
        room = (n - side) // SQUARE
        count = min(CROPS, n // side)
        starts.append([room * i // max(1, count - 1) for i in range(count)])

    def pick(plane: Tensor, unit: int) -> Tensor:
        size = side // SQUARE * unit
        return torch.cat(
            [
                torch.cat([plane[..., y * unit :, x * unit :][..., :size, :size] for x in starts[1]], 3)
                for y in starts[0]
            ],
            2,
        )

    sample = pick(picture, SQUARE).contiguous(memory_format=torch.channels_last)
    return sample, None if values is None else pick(values, 1)


def score_of(model: Model, sample: Tensor, quality: QualityMap) -> float:
    """What SSIMULACRA 2 would say of the lossy levels' picture of a sample."""
    decoded = code_lossy(model, Discard(), sample, quality)
    side = min(CROP, *sample.shape[-2:])
    squares = (
        torch.cat([part for row in torch.split(x, side, 2) for part in torch.split(row, side, 3)]).float()
        for x in (sample, decoded)
    )
    return predicted_score(eye_terms(*squares))
