"""What the tests of the lossy levels share: stand-ins for coders, a walk through the groups of a picture."""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from vbc.codec.lossy.analysis import analyse
from vbc.codec.lossy.coding import code_groups, window_size
from vbc.codec.lossy.latents import LEVEL_LATENTS, latent_grid, level_latents
from vbc.codec.lossy.map_coding import map_size, on_blocks
from vbc.codec.lossy.model import LossyModel
from vbc.codec.pixels.borders import Window

NO_TABLE = 2048
SIDES = (256, 64, 64)
"""Side of a group in blocks, by level."""
Steps = list[tuple[Tensor, Tensor]]


class Recorder:
    """An encoder that keeps the index and symbols of each step."""

    def __init__(self) -> None:
        self.steps: Steps = []

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        assert symbols is not None
        assert index.dtype == symbols.dtype == torch.int16
        assert index.shape == symbols.shape
        assert not symbols[index == NO_TABLE].any(), "what is not coded is 0"
        self.steps.append((index.clone(), symbols.clone()))
        return symbols

    def group(self, number: int) -> Steps:
        """The steps of one group of the batch."""
        return [(index[number : number + 1], symbols[number : number + 1]) for index, symbols in self.steps]


class Replay:
    """A decoder of what was recorded; it checks that it is asked for the same."""

    def __init__(self, steps: Steps):
        self._steps = iter(steps)

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        wanted, recorded = next(self._steps)
        assert symbols is None
        assert torch.equal(index, wanted)
        return recorded

    def finish(self) -> None:
        assert next(self._steps, None) is None


class Zeros:
    """A decoder of zeros; works on tensors without values."""

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        return torch.zeros_like(index)


def windows(size: tuple[int, int], side: int) -> list[Window]:
    """Groups of a picture in raster order; size in blocks."""
    return [
        (slice(r, min(r + side, size[0])), slice(c, min(c + side, size[1])))
        for r in range(0, size[0], side)
        for c in range(0, size[1], side)
    ]


def batches(size: tuple[int, int], side: int) -> Iterator[list[Window]]:
    """The groups of a picture, those of one shape together."""
    key = lambda window: window_size([window])  # noqa: E731
    for _, alike in groupby(sorted(windows(size, side), key=key), key=key):
        yield list(alike)


def cut(planes: Tensor, group: list[Window]) -> Tensor:
    """The groups of [1, C, H8, W8] as a batch [N, C, h, w]."""
    return torch.cat([planes[..., rows, cols] for rows, cols in group])


def one_quality(size: tuple[int, int], quality: int) -> Tensor:
    """The same quality for all blocks, int32 [1, 1, h, w]."""
    return torch.full((1, 1, *size), quality, dtype=torch.int32)


def many_qualities(size: tuple[int, int], lowest: int = 0, highest: int = 100) -> Tensor:
    """A map of so many blocks whose squares have all kinds of qualities, int32 [1, 1, h, w]."""
    rng = torch.Generator().manual_seed(size[0] * size[1])
    squares = torch.randint(lowest, highest + 1, (1, 1, *map_size(*size)), generator=rng, dtype=torch.int32)
    return on_blocks(squares, *size)


def code_picture(
    model: LossyModel, rgb: Tensor, quality: Tensor, sides: tuple[int, ...] = SIDES, optimise: bool = True
) -> tuple[Tensor, list[list[Recorder]]]:
    """All latents of uint8 [1, 3, H, W], int16 [1, 192, h, w], and the recorders of each level's batches.

    quality: of its blocks, int32 [1, 1, h, w].
    """
    size = latent_grid(rgb.shape[-2], rgb.shape[-1])
    target = analyse(model, rgb, quality)
    latents = torch.zeros_like(target)
    recorders: list[list[Recorder]] = []
    for level, side in enumerate(sides, 1):
        channels = level_latents(level)
        below = latents[:, : channels.start] if level > 1 else None
        recorders.append([])
        for group in batches(size, side):
            recorders[-1].append(Recorder())
            wanted = cut(target[:, channels], group)
            coded = code_groups(model, recorders[-1][-1], level, below, group, quality, wanted, optimise)
            assert coded.shape[1] == LEVEL_LATENTS[level - 1]
            for z, (rows, cols) in zip(coded, group, strict=True):
                latents[0, channels, rows, cols] = z
    return latents, recorders
