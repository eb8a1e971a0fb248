"""Coding of a map of qualities: what a group of level 1 has before its latents (docs/format.md, section 9).

A square's quality is the header's plus `MAP_UNIT` times a whole number, its value, which is coded from a
coarse grid of squares to the finest one, as the blocks of level 1 are: the mean of the four nearest known
values is predicted, and how much those differ chooses the table.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from vbc.bitstream.container import MAX_QUALITY, REFINEMENT_QUALITY
from vbc.bitstream.tables import NO_TABLE
from vbc.codec.entropy.coder import Coder
from vbc.codec.lossy.latents import BLOCK
from vbc.codec.pixels.interlace import coarse_to_fine

SQUARE_BLOCKS = 2
"""Blocks along a square of the map."""
SQUARE = SQUARE_BLOCKS * BLOCK
"""Side of a square in pixels."""
MAP_UNIT = 3
"""Qualities between neighbouring values: the step changes by an eighth, which nobody sees."""
VALUE_LIMIT = MAX_QUALITY // MAP_UNIT
"""Values are limited to -33..33: from any header's quality to 0 and to 100, almost."""
N_MAP_TABLES = 9
"""By the spread of the four nearest values, 0 to 7 and more; the last one is of the coarsest grid."""
COARSEST_TABLE = N_MAP_TABLES - 1
BASE_SIDE = 4
"""The coarsest grid of squares has no side above this."""


def map_size(height: int, width: int) -> tuple[int, int]:
    """Squares down and across of so many blocks."""
    return -(-height // SQUARE_BLOCKS), -(-width // SQUARE_BLOCKS)


def on_blocks(squares: Tensor, height: int, width: int) -> Tensor:
    """A map on the grid of blocks, [N, 1, height, width], of the one on squares."""
    rows = squares.repeat_interleave(SQUARE_BLOCKS, 2)[..., :height, :]
    return rows.repeat_interleave(SQUARE_BLOCKS, 3)[..., :width]


def qualities(values: Tensor, base: int) -> Tensor:
    """Qualities of values of squares, of the same shape and dtype. base: the header's quality."""
    return (values * MAP_UNIT + base).clamp_(0, MAX_QUALITY)


def refined_quality(quality: Tensor, refinement: int) -> Tensor:
    """What networks are told of qualities at a refinement (0: none), of the same shape and dtype."""
    return (quality + REFINEMENT_QUALITY * refinement).clamp_(max=MAX_QUALITY) if refinement else quality


def code_map(
    coder: Coder, first_table: int, size: tuple[int, int], coded: Tensor, wanted: Tensor | None
) -> Tensor:
    """Code the values of groups of one size: int32 [N, 1, h, w] on squares.

    coder: of N groups. size: of a group in squares. coded: bool [N], which groups have a map; the others'
    values are 0. wanted: int16 [N, 1, h, w], -33..33, in an encoder.
    """
    values = torch.zeros((len(coded), 1, *size), dtype=torch.int32, device=coded.device)
    for rows, cols, mean, table in map_passes(values):
        part = values[..., rows, cols]
        index = (table + first_table).to(torch.int16).masked_fill(~coded[:, None, None, None], NO_TABLE)
        residual = None
        if wanted is not None:
            residual = (wanted[..., rows, cols] - mean).to(torch.int16).flatten(1)
        got = coder.code(index.flatten(1), residual).view(part.shape)
        part.copy_((got + mean).clamp_(-VALUE_LIMIT, VALUE_LIMIT))
    return values.masked_fill_(~coded[:, None, None, None], 0)


def map_passes(values: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """The passes of a map: rows and columns of its squares, their predicted values, their tables.

    values: int32 [N, 1, h, w]. The caller fills in `values[..., rows, cols]` before it asks for the next one.
    None is empty. Predictions and tables are int32 [N, 1, h', w'].
    """
    for step in coarse_to_fine(values, BASE_SIDE, 0):
        if step.phase is None:
            nothing = torch.zeros_like(values[..., step.rows, step.cols])
            yield step.rows, step.cols, nothing, nothing + COARSEST_TABLE
            continue
        four = torch.stack(step.four)
        spread = (four.amax(0) - four.amin(0)).clamp_(max=COARSEST_TABLE - 1)
        yield step.rows, step.cols, (four.sum(0, dtype=torch.int32) + 2) >> 2, spread
