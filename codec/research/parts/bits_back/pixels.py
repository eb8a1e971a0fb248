"""The order in which a picture's values are coded, and their probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vbc.codec.research.parts.bits_back.stack import Floats, Ints, Stack


@dataclass(frozen=True)
class PixelSteps:
    """p(picture) in steps.

    positions: for each step the places that it codes, int64 [n], in the flattened picture; together they are
    every place once. masses: from the picture, uint8 [1, C, H, W], and a step to the probabilities of the
    values at the step's places, float [n, values]; it may look at the places of earlier steps alone.
    """

    positions: Sequence[Ints]
    masses: Callable[[Tensor, int], Tensor]

    def push(self, stack: Stack, image: Tensor) -> None:
        """Push a picture, uint8 [1, C, H, W]. Inverse: pop."""
        values = image.flatten().cpu().numpy().astype(np.int64)
        for step in reversed(range(len(self.positions))):
            stack.push_table(values[self.positions[step]], self._table(image, step))

    def pop(self, stack: Stack, shape: Sequence[int]) -> Tensor:
        """Pop what `push` pushed: uint8 of that shape [1, C, H, W]."""
        image = torch.zeros(*shape, dtype=torch.uint8)
        for step, at in enumerate(self.positions):
            values = stack.pop_table(self._table(image, step)).astype(np.uint8)
            image.view(-1)[torch.from_numpy(at)] = torch.from_numpy(values)
        return image

    def _table(self, image: Tensor, step: int) -> Floats:
        masses = self.masses(image, step).detach().cpu().double()
        # a mass may come out a rounding error below 0
        table: Floats = masses.reshape(len(self.positions[step]), -1).clamp_min(0).contiguous().numpy()
        return table


def by_channel(shape: Sequence[int], masses: Callable[[Tensor, int], Tensor]) -> PixelSteps:
    """Channel by channel, each given the ones before it.

    shape: [1, C, H, W]. masses: from the picture and a channel to float [1, H, W, values].
    """
    channels, pixels = shape[1], shape[2] * shape[3]
    return PixelSteps([np.arange(c * pixels, (c + 1) * pixels) for c in range(channels)], masses)
