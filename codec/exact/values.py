"""Values after bins: which sample of its bin each one is (docs/format.md, section 11.8).

A small network adjusts what the bins were predicted with, mean and scale, by all bins around and by the
values known so far. The two give the table of a sample's distance from the middle of its bin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.entropy.coder import Coder
from vbc.codec.exact.bins import bins_pixels, seen_pixels
from vbc.codec.exact.features import compand
from vbc.codec.exact.groups import Predictions
from vbc.codec.exact.model import ValuesModel
from vbc.codec.exact.planes import cut, cut_with_halo, halved, phase_view, shape_of
from vbc.codec.pixels.borders import Window, extend
from vbc.codec.pixels.colour import ycocg_to_rgb
from vbc.codec.pixels.interlace import PHASES
from vbc.kernels.predict import COEFFICIENT_MAX, LOG_SCALE_MAX, LOG_SCALE_MIN

VALUES_HALO = 2
"""Positions around its own that the networks of a phase see."""
VALUES_WIDTH, VALUES_HIDDEN = 40, 2
VALUES_PLANES = {p: 12 + 3 * (1 + n) for n, p in enumerate(PHASES)}
"""Inputs of the networks: distances of means from bins and scales, and distances of known values."""
N_VALUE_SCALES, N_VALUE_OFFSETS = 25, 13
"""Tables by quarter octaves of the scale, from 2^-4 pixel values, and by the mean's distance from the middle:
quarters of a pixel value up to 10, which is the border of the bin, and two more classes from 11 and 15 on."""
N_VALUE_TABLES = N_VALUE_SCALES * N_VALUE_OFFSETS
NEAR_OFFSETS, FAR_OFFSETS = 10, (11, 15)
DISTANCE_UNIT = 16
"""Inputs have distances of values in sixteenths, as those of means are."""


@dataclass(frozen=True)
class ValuesStep:
    """What all groups of an exact level of B pictures see where bins stand before values.

    middles: the bins of x_k, uint8 RGB or int16 YCoCg-R [B, 3, h, w]. coarse, coarse_middles: x_{k+1} and its
    bins, int16 YCoCg-R. predictions: of the bins of x_k.
    """

    model: ValuesModel
    middles: Tensor
    coarse: Tensor
    coarse_middles: Tensor
    predictions: Predictions
    level_class: int


def code_values(
    step: ValuesStep, windows: Sequence[Window], coder: Coder, picture: Tensor | None = None
) -> dict[str, Tensor]:
    """Code the values of groups of one shape: by phase, int16 YCoCg-R [W * B, 3, .., ..].

    picture: the grid x_k in an encoder, uint8 RGB [1, 3, h, w].
    """
    places = [halved(window) for window in windows]
    size = shape_of(places[0])
    middles = {p: middles_of(cut(step.middles, windows), p) for p in PHASES}
    distances = {"A": _coarse_distances(step, places)}
    offsets, scales = (
        {p: _around(phase_view(cut(plane, windows), p), size) for p in PHASES}
        for plane in step.predictions.planes()
    )
    pixels: dict[str, Tensor] = {}
    for p in PHASES:
        middle = middles[p]
        if not middle.numel():
            pixels[p] = torch.empty_like(middle)
            distances[p] = torch.zeros_like(distances["A"])
            continue
        wanted = None if picture is None else bins_pixels(phase_view(cut(picture, windows), p)) - middle
        h, w = middle.shape[-2:]
        inner = (..., slice(h + 2 * VALUES_HALO), slice(w + 2 * VALUES_HALO))
        planes = value_planes(p, distances, offsets, scales)[inner]
        out = step.model.chains[p](planes, step.level_class)
        own = (..., slice(VALUES_HALO, VALUES_HALO + h), slice(VALUES_HALO, VALUES_HALO + w))
        found = code_channels(step.model, coder, out, offsets[p][own], scales[p][own], wanted)
        pixels[p] = seen_pixels(middle + found)
        distances[p] = _around(found.clamp(-128, 127).to(torch.int8), size)
    return pixels


def middles_of(grid: Tensor, phase: str) -> Tensor:
    """G, R and B of a phase of a grid of bins, int16, of uint8 RGB or int16 YCoCg-R."""
    part = phase_view(grid, phase)
    return bins_pixels(part if part.dtype == torch.uint8 else ycocg_to_rgb(part))


def _coarse_distances(step: ValuesStep, places: Sequence[Window]) -> Tensor:
    """How far the values of x_{k+1} lie from the middles of their bins, int8, with halo."""
    exact, middle = (
        bins_pixels(ycocg_to_rgb(cut_with_halo(plane, places, VALUES_HALO)))
        for plane in (step.coarse, step.coarse_middles)
    )
    return (exact - middle).clamp_(-128, 127).to(torch.int8)


def _around(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """A phase of groups with what the networks see beyond them: its border repeated; zeros where it is
    empty."""
    h, w = (n + 2 * VALUES_HALO for n in size)
    if not plane.numel():
        return plane.new_zeros((*plane.shape[:2], h, w))
    return extend(plane, *size, VALUES_HALO)


def value_planes(
    phase: str, distances: Mapping[str, Tensor], offsets: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> Tensor:
    """Inputs of a phase's network, int16 [N, planes, h, w], -64..63.

    The predictions' distances of D, H and V, the phase's own scales, then the known values' distances.
    """
    known = [distances[p].to(torch.int16) * DISTANCE_UNIT for p in ("A", *PHASES[: PHASES.index(phase)])]
    predicted = [compand(offsets[p].to(torch.int16)) for p in PHASES]
    own = scales[phase].to(torch.int16) >> 1
    return torch.cat([*predicted, own, *known], 1).clamp_(-64, 63)


def code_channels(
    model: ValuesModel, coder: Coder, out: Tensor, offsets: Tensor, scales: Tensor, wanted: Tensor | None
) -> Tensor:
    """Code G, R and B of a phase: distances from the middles of their bins, int16 [N, 3, h, w].

    out: int32 [N, 9, h, w], changes of means and scales, and coefficients, as of bins. wanted: in an encoder,
    the distances.
    """
    n, _, h, w = out.shape
    coefficients = out[:, 6:].clamp(-COEFFICIENT_MAX, COEFFICIENT_MAX)
    found: list[Tensor] = []
    for c in range(3):
        mean = offsets[:, c].int() + out[:, c]
        for i, distance in enumerate(found):
            mean += (coefficients[:, c - 1 + i] * distance.int() * DISTANCE_UNIT + 32) >> 6
        scale = scales[:, c].int() + out[:, 3 + c]
        below = mean < 0
        index = (model.first_table + value_classes(mean, scale)).to(torch.int16)
        symbols = None
        if wanted is not None:
            symbols = torch.where(below, -wanted[:, c], wanted[:, c]).reshape(n, -1)
        decoded = coder.code(index.reshape(n, -1), symbols).view(n, h, w)
        found.append(torch.where(below, -decoded, decoded))
    return torch.stack(found, 1)


def value_classes(mean: Tensor, scale: Tensor) -> Tensor:
    """Which of the tables a mean and a scale lead to: int32 of int32, sixteenths."""
    quarter = (mean.abs() + 2) >> 2
    offset = quarter.clamp(max=NEAR_OFFSETS)
    for first in FAR_OFFSETS:
        offset = offset + (quarter >= first)
    octave = (scale.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX) - (LOG_SCALE_MIN - 2)) >> 2
    return octave.clamp(max=N_VALUE_SCALES - 1) * N_VALUE_OFFSETS + offset
