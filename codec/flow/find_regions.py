"""Regions of interest that nobody named: where the first level misses most for the bits that put it right.

After Zeng 2022, section 6.2 (boxes in the order of what they tell, stopped by description length), with an
exact search in place of a network: the rectangle of largest sum, again and again. docs/decisions/0012 has the
measurements.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.bitstream.tables import ALPHABET, COST_UNIT, ESCAPE, NO_TABLE, SYMBOL_MAX
from vbc.codec.entropy.coder import ESCAPE_BITS, Discard, Means, only_coded
from vbc.codec.flow.encode_levels import geometry_of, lossy_picture
from vbc.codec.flow.lossy_trial import add_level
from vbc.codec.lossy.analysis import analyse
from vbc.codec.lossy.features import parity_places
from vbc.codec.lossy.latents import BLOCK, level_latents
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.lossy.synthesis import synthesise
from vbc.codec.model import Model
from vbc.codec.regions import Region, Roi
from vbc.codec.settings import AUTO, EncodeSettings

SQUARE = 4
"""Blocks of the squares that boxes are made of: 32 pixels."""
MOST_SQUARES = 64
"""To a side of the picture; larger pictures have larger squares. The search takes the third power of it."""
LEAST_SIDE = 3
"""Squares of a box to a side: packets are groups, which round thinner ones out anyway."""
EDGE = 8
"""Pixels at the picture's edge whose errors do not count: the frames of scans and screenshots."""
PRICE = 0.75
"""What a box must give: more of the error than this share of its bits and area."""
LEAST_SHARE = 0.02
"""By how much more, of the whole error."""
MOST_BOXES = 6


def with_regions(model: Model, picture: Tensor, settings: EncodeSettings) -> EncodeSettings:
    """The settings with regions where they ask the encoder to find some; without any where there are none.

    picture: uint8 RGB [1, 3, H, W].
    """
    if settings.roi != AUTO:
        return settings
    boxes = find_regions(model, picture, settings.asked_quality)
    if boxes:
        return replace(settings, roi=Roi(tuple(boxes)))
    return replace(settings, roi=None, roi_quality=None, roi_first=False)


def find_regions(model: Model, picture: Tensor, quality: int) -> list[Region]:
    """Up to `MOST_BOXES` boxes of uint8 RGB [1, 3, H, W], those first that tell most for their bits."""
    height, width = picture.shape[-2:]
    gain, bits, error, side = gains_and_bits(model, picture, quality)
    rows = pick_boxes(gain, bits, error, picture.numel())
    return [
        (x0 * side, y0 * side, min(x1 * side, width) - x0 * side, min(y1 * side, height) - y0 * side)
        for y0, y1, x0, x1 in rows
    ]


def gains_and_bits(
    model: Model, picture: Tensor, quality: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, int]:
    """What levels 2 and 3 take away of level 1's squared error, and their bits: [rows, cols] by square.

    Then the whole error of level 1, and the side of a square in pixels.
    """
    size = picture.shape[-2], picture.shape[-1]
    geometry, flat = geometry_of(picture), QualityMap(quality)
    blocks = geometry.level_size(1)
    qualities = flat.on_blocks(*blocks, picture.device)
    target = analyse(model.lossy, picture, qualities)
    known = add_level(model, Discard(), 1, None, qualities, target[:, level_latents(1)])
    coarse, meter, latents = known, BlockBits(model, blocks, picture.device), known
    for level in range(2, LOSSY_LEVELS + 1):
        coarse = add_level(model, Means(), level, coarse, qualities)
        latents = add_level(model, meter, level, latents, qualities, target[:, level_latents(level)])
    first = np.ones(geometry.group_counts(LOSSY_LEVELS), np.int64)
    shown = synthesise(model.lossy, coarse, size, first, qualities)
    before, after = (errors_inside(picture, x) for x in (shown, lossy_picture(model, latents, size, flat)))
    side = SQUARE * max(1, math.ceil(max(blocks) / (SQUARE * MOST_SQUARES)))
    gain = in_squares((before - after).double(), side * BLOCK).clip(0)
    return gain, in_squares(meter.bits, side), float(before.double().sum()), side * BLOCK


def errors_inside(picture: Tensor, shown: Tensor) -> Tensor:
    """Squared errors of pixels, float32 [H, W], none at the edge."""
    errors = (picture[0].float() - shown[0].float()).square().sum(0)
    inside = errors[EDGE:-EDGE, EDGE:-EDGE]
    return F.pad(inside, (EDGE,) * 4) if inside.numel() else errors


def in_squares(x: Tensor, side: int) -> NDArray[np.float64]:
    """Sums of [h, w] in squares of a side, those at the end cut off: [ceil(h / side), ceil(w / side)]."""
    rows, cols = (math.ceil(n / side) for n in x.shape)
    x = F.pad(x, (0, -x.shape[1] % side, 0, -x.shape[0] % side))
    sums: NDArray[np.float64] = x.view(rows, side, cols, side).sum((1, 3)).cpu().numpy()
    return sums


def pick_boxes(
    gain: NDArray[np.float64], bits: NDArray[np.float64], error: float, n_samples: int
) -> list[tuple[int, int, int, int]]:
    """Boxes of squares, first and last row and column of each (the last not in it), best first.

    gain, bits: by square. error: all there is. A box is the rectangle whose share of the gain exceeds the
    price of its bits and area by most, as long as that is worth mentioning and its bits are fewer than those
    it saves where all samples' errors are Gaussian of one variance.
    """
    total, all_bits = gain.sum(), bits.sum()
    if total <= 0:
        return []
    price = PRICE * (bits / max(all_bits, 1.0) + 1 / bits.size)
    taken = np.zeros(gain.shape, bool)
    boxes = []
    address = 2 * math.log2(gain.shape[0] + 1) + 2 * math.log2(gain.shape[1] + 1)
    for _ in range(MOST_BOXES):
        worth, (top, bottom, left, right) = best_rectangle(np.where(taken, -price, gain / total - price))
        fresh = np.zeros_like(taken)
        fresh[top:bottom, left:right] = True
        fresh &= ~taken
        less = error - gain[fresh].sum()
        saved = n_samples / 2 * math.log2(error / max(less, 1.0))
        if worth < LEAST_SHARE or saved < bits[fresh].sum() + address:
            break
        boxes.append((top, bottom, left, right))
        taken |= fresh
        error = less
    return boxes


def best_rectangle(worth: NDArray[np.float64]) -> tuple[float, tuple[int, int, int, int]]:
    """The rectangle of the largest sum, with sides of `LEAST_SIDE` or as many as there are: its sum, and its
    first and last row and column, the last not in it.

    Kadane's search over columns, for each pair of rows.
    """
    n_rows, n_cols = worth.shape
    rows, cols = (min(LEAST_SIDE, n) for n in worth.shape)
    above = np.concatenate((np.zeros((1, n_cols)), worth.cumsum(0)))
    best = -math.inf, (0, n_rows, 0, n_cols)
    for top in range(n_rows - rows + 1):
        strips = above[top + rows :] - above[top]
        left_of = np.concatenate((np.zeros((len(strips), 1)), strips.cumsum(1)), 1)
        smallest = np.minimum.accumulate(left_of, 1)[:, : n_cols - cols + 1]
        sums = left_of[:, cols:] - smallest
        n, end = np.unravel_index(sums.argmax(), sums.shape)
        if sums[n, end] > best[0]:
            left = int(left_of[n, : end + 1].argmin())
            best = float(sums[n, end]), (top, top + rows + int(n), left, int(end) + cols)
    return best


class BlockBits:
    """Stands in for an encoder of levels 2 and 3, each one group: adds up the ideal bits of every block.

    bits: float64 [h, w].
    """

    def __init__(self, model: Model, blocks: tuple[int, int], device: torch.device):
        costs = model.tables.costs.astype(np.float32) / COST_UNIT
        self._costs = torch.from_numpy(costs).to(device)
        places = (parity_places(*blocks, even, device) for even in (True, False))
        self._places = [p for p in places if len(p)]
        self._step = 0
        self.bits = torch.zeros(blocks, dtype=torch.float64, device=device)

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        """Take a step: one latent after the other, each of all blocks of a parity."""
        assert symbols is not None
        places = self._places[self._step % len(self._places)]
        self._step += 1
        coded = index != NO_TABLE
        letter = symbols.long() + SYMBOL_MAX
        escapes = (letter < 0) | (letter >= ESCAPE)
        entry = index.long() * ALPHABET + letter.masked_fill(escapes, ESCAPE)
        bits = self._costs[entry.masked_fill(~coded, 0)] + ESCAPE_BITS * escapes
        of_blocks = bits.masked_fill(~coded, 0).view(-1, len(places)).sum(0)
        self.bits.view(-1).index_add_(0, places, of_blocks.double())
        return only_coded(index, symbols)
