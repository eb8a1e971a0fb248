"""What refinements take away of the error that a decoder shows, where an encoder thinks of dropping them.

The errors of latents alone do not say it: the enhancement, too, is told of a refinement, square by square.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vbc.bitstream.geometry import LOSSY_LEVELS, Geometry, level_of, stage_of
from vbc.codec.flow.keep_paying import Place
from vbc.codec.lossy.analysis import step_worth
from vbc.codec.lossy.latents import BLOCK, STEP_UNIT, block_transform, level_latents
from vbc.codec.lossy.model import LossyModel
from vbc.codec.lossy.synthesis import synthesise
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import rgb_to_opponent


@dataclass(frozen=True)
class Refined:
    """All that an encoder has coded of a picture whose lossy levels are refined.

    picture: uint8 RGB [1, 3, H, W]. qualities: int32 [1, 1, h, w], without refinement. planes: by refinement,
    0 for none, the latents of all groups, int16 [1, 192, h, w], eighths.
    """

    model: LossyModel
    picture: Tensor
    geometry: Geometry
    qualities: Tensor
    planes: list[Tensor]

    @property
    def refinements(self) -> int:
        """How many there are."""
        return len(self.planes) - 1

    def latents(self, kept: Iterable[Place]) -> Tensor:
        """The latents that a decoder has of the levels and some packets of refinements."""
        shown = self.planes[0].clone(memory_format=torch.preserve_format)
        for level, part in sorted(kept):
            refinement, n = stage_of(level)
            place = 0, level_latents(n), *self.geometry.window(level, part - 1)
            shown[place] = self.planes[refinement][place]
        return shown

    def counts(self, kept: Collection[Place]) -> NDArray[np.int64]:
        """How many refinements it has of each square of 32 x 32 blocks: [rows, cols]."""
        first = level_of(1, LOSSY_LEVELS)
        counts = np.zeros(self.geometry.n_groups(first), np.int64)
        for level, part in sorted(kept):
            refinement, n = stage_of(level)
            if n == LOSSY_LEVELS:
                counts[part - 1] = refinement
        return counts.reshape(self.geometry.group_counts(first))

    def gains_of_dropped(self, kept: Collection[Place]) -> dict[Place, float]:
        """What all that is dropped in a square of 32 x 32 blocks takes away of the error seen there, in bits.

        By the first packet of level 3 that is dropped there. An error counts as in the encoder's rounding
        (`step_worth`), and is that of the picture with the enhancement, not of latents.
        """
        counts, level = self.counts(kept), level_of(1, LOSSY_LEVELS)
        lacking = [n for n, count in enumerate(counts.flat) if count < self.refinements]
        windows = [self.geometry.window(level, n) for n in lacking]
        ends = self._errors(self.planes[-1], np.full_like(counts, self.refinements), windows)
        errors = self._errors(self.latents(kept), counts, windows)
        return {
            (level_of(int(counts.flat[n]) + 1, LOSSY_LEVELS), 1 + n): error - end
            for n, error, end in zip(lacking, errors, ends, strict=True)
        }

    def _errors(self, latents: Tensor, counts: NDArray[np.int64], windows: list[Window]) -> list[float]:
        """What the error seen in windows of blocks is worth, in bits.

        counts: refinements of the latents, as `counts` gives them.
        """
        geometry, side = self.geometry, self.geometry.side(LOSSY_LEVELS)
        squares = {(rows.start // side, cols.start // side) for rows, cols in windows}
        levels = np.full(geometry.group_counts(LOSSY_LEVELS), LOSSY_LEVELS)
        size = geometry.grids[0]
        shown = synthesise(self.model, latents, size, levels, self.qualities, sorted(squares), refined=counts)
        return [self._error(shown, window) for window in windows]

    def _error(self, shown: Tensor, window: Window) -> float:
        rows, cols = (slice(BLOCK * part.start, BLOCK * part.stop) for part in window)
        error = self.picture[..., rows, cols].float() - shown[..., rows, cols].float()
        height, width = error.shape[-2:]
        error = F.pad(error, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        z = block_transform(rgb_to_opponent(error).contiguous(), self.model.analysis["basis"])
        here = self.qualities[0, 0][window]
        step = self.model.steps[self.refinements][here].permute(2, 0, 1)
        worth = torch.cat([step_worth(self.model, n) for n in range(1, LOSSY_LEVELS + 1)], 1)
        return float((z[0] * STEP_UNIT / step).square().mul(worth[here].permute(2, 0, 1)).double().sum())
