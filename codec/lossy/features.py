"""The inputs of the lossy levels' networks, written once for integers that decode and floats that train.

Both work in the same units: latents in eighths, samples in sixteenths of a pixel value, log-scales in
sixteenths of an octave; a network's input plane is in -64..63. They differ in one thing, what a division by a
power of two is, and that is the object `Numbers` which every function takes first: integers round, floats do
not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vbc.codec.lossy.latents import mean_latents, positions
from vbc.codec.pixels.borders import extend
from vbc.codec.pixels.interlace import coarse_to_fine

INPUT_MIN, INPUT_MAX = -64, 63
"""Range of a network's input plane."""
SYMBOL_GAIN = 8
"""A neighbour's symbol of 1 is an input of 8."""
NINTH, NINTH_BITS = 455, 12
"""455 / 4096 is 1/9: the mean of 3x3 latents."""
THIRTY_SIXTH, THIRTY_SIXTH_BITS = 1820, 16
"""1820 / 65536 is 1/36: the mean of the samples of 3x3 cells."""
EDGE = 32
"""Input that says that a cell is at the edge of its block; -32 says that it is not."""

QUALITY_PLANES = 2
"""Of every network's inputs the last ones: what the map of qualities says there."""
QUALITY_GAIN, QUALITY_BITS, QUALITY_CENTRE = 81, 6, 64
"""Qualities 0..100 become -64..63."""
SQUARE_BITS = 5
"""The square of such a number is divided by 32, and becomes -64..63 likewise."""
CONTEXT_PLANES = 30 + QUALITY_PLANES
"""Inputs of level 1's networks."""
ENHANCE_PLANES = 14 + QUALITY_PLANES
"""Inputs of the enhancement network."""
BASE_SIDE = 4
"""The coarsest grid of blocks in level 1 has no side above this and is coded without context."""
CONTEXT_RADIUS = 2
"""Positions that level 1's networks lose on each side."""
MEANS, SLOPES = (0, 4, 5), (1, 2, 3)
"""The latents of level 1: means of the three planes, and the three lowest other frequencies of luma."""


class Numbers(Protocol):
    """What integers and floats do differently."""

    def shift(self, x: Tensor, n: int) -> Tensor:
        """x / 2^n; integers are rounded to nearest, halves up."""

    def drop(self, x: Tensor, n: int) -> Tensor:
        """x / 2^n; integers are rounded down."""

    def planes(self, *parts: Tensor) -> Tensor:
        """Parts [N, C_i, h, w] one after the other, limited to -64..63; integers as int8."""


class Integers:
    """Integer tensors: what decodes."""

    def shift(self, x: Tensor, n: int) -> Tensor:
        """(x + 2^(n-1)) >> n."""
        return torch.add(x, 1 << (n - 1)).bitwise_right_shift_(n)

    def drop(self, x: Tensor, n: int) -> Tensor:
        """x >> n."""
        return x >> n

    def planes(self, *parts: Tensor) -> Tensor:
        """int8, -64..63, channels last: parts of several layouts would be put together as planes."""
        small = [part.clamp(INPUT_MIN, INPUT_MAX) for part in parts]
        return torch.cat([part.to(torch.int8, memory_format=torch.channels_last) for part in small], 1)


class Floats:
    """Float tensors with gradients: what is trained."""

    def shift(self, x: Tensor, n: int) -> Tensor:
        """x / 2^n."""
        return x * 2.0**-n

    def drop(self, x: Tensor, n: int) -> Tensor:
        """x / 2^n."""
        return x * 2.0**-n

    def planes(self, *parts: Tensor) -> Tensor:
        """Float, -64..63."""
        return torch.cat(parts, 1).clamp(INPUT_MIN, INPUT_MAX)


INTEGERS, FLOATS = Integers(), Floats()


def compand(numbers: Numbers, d: Tensor) -> Tensor:
    """Fold differences: slope 1 up to 32, slope 1/4 (rounded down) beyond."""
    near = d.clamp(-32, 32)
    return numbers.drop(d - near, 2) + near


def quality_planes(numbers: Numbers, quality: Tensor) -> Tensor:
    """What networks see of a map of qualities 0..100, [N, 1, h, w]: it and its square, [N, 2, h, w].

    Both are in -64..63 once `planes` has limited them. First layers so depend on quality as on a quadratic
    function, place by place.
    """
    t = numbers.shift(quality * QUALITY_GAIN, QUALITY_BITS) - QUALITY_CENTRE
    return torch.cat((t, numbers.drop(t * t, SQUARE_BITS) - QUALITY_CENTRE), 1)


def sum_3x3(x: Tensor) -> Tensor:
    """Sum over each 3x3 neighbourhood: [..., h, w] to [..., h-2, w-2]."""
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


# Level 1: grids of blocks, coarse to fine


@dataclass(frozen=True)
class Pass:
    """What of level 1 is coded at once, and what is known about it.

    rows, cols: its blocks in the group, at every 2^k-th row and column. phase: D, H or V, or None for the
    coarsest grid, about which nothing is known. use: 0 on the grid of all blocks, 1 on coarser ones. base:
    [N, 6, h, w], what the network's mean is added to, eighths. planes: the network's input [N, 32, h+4, w+4].
    """

    rows: slice
    cols: slice
    phase: str | None = None
    use: int = 0
    base: Tensor | None = None
    planes: Tensor | None = None


def interlaced_passes(numbers: Numbers, latents: Tensor, quality: Tensor) -> Iterator[Pass]:
    """The passes in which level 1 of a group is coded; none of them is empty.

    latents: [N, 6, h, w], eighths, not yet known; integers are int32. The caller fills in those of a pass,
    `latents[..., rows, cols]`, before it asks for the next one. quality: of its blocks, [N, 1, h, w].
    """
    for step in coarse_to_fine(latents, BASE_SIDE, CONTEXT_RADIUS):
        rows, cols = step.rows, step.cols
        if step.phase is None:
            yield Pass(rows, cols)
            continue
        base = context_base(numbers, step.four)
        h, w = latents[..., rows, cols].shape[-2:]
        here = extend(quality[..., rows, cols], h, w, CONTEXT_RADIUS)
        inner = slice(CONTEXT_RADIUS, CONTEXT_RADIUS + h), slice(CONTEXT_RADIUS, CONTEXT_RADIUS + w)
        planes = context_planes(numbers, step.four, base, here)
        yield Pass(rows, cols, step.phase, min(step.depth, 1), base[..., *inner], planes)


def context_base(numbers: Numbers, four: Sequence[Tensor]) -> Tensor:
    """Mean of the four nearest known blocks for the planes' means, 0 for the other latents: [N, 6, h, w]."""
    means = positions(MEANS, four[0].device)
    base = torch.zeros_like(four[0])
    base[:, means] = numbers.shift((four[0] + four[1] + four[2] + four[3])[:, means], 2)
    return base


def context_planes(numbers: Numbers, four: Sequence[Tensor], base: Tensor, quality: Tensor) -> Tensor:
    """Inputs of level 1's networks, [N, 32, h, w].

    How the planes' means of three neighbours differ from the base, in units of 1 and of 8; then the slopes of
    all four, in units of 1; then the quality [N, 1, h, w].
    """
    means, slopes = positions(MEANS, base.device), positions(SLOPES, base.device)
    differences = torch.cat([(neighbour - base)[:, means] for neighbour in four[:3]], 1)
    slope = torch.cat([neighbour[:, slopes] for neighbour in four], 1)
    return numbers.planes(
        numbers.shift(differences, 3),
        numbers.shift(differences, 6),
        numbers.shift(slope, 3),
        quality_planes(numbers, quality),
    )


# Levels 2 and 3


def prior_planes(numbers: Numbers, below: Tensor, quality: Tensor) -> Tensor:
    """Inputs of the priors, [N, 2C + 2, h, w], from the latents of the levels below, [N, C, h+2, w+2],
    eighths.

    From the planes' means their own mean over 3x3 blocks is taken off. Then each latent in units of 1 and in
    units of 8; then the quality [N, 1, h, w].
    """
    means = positions(mean_latents(below.shape[1]), below.device)
    inner = below[..., 1:-1, 1:-1].clone()
    inner[:, means] -= numbers.shift(sum_3x3(below[:, means]) * NINTH, NINTH_BITS)
    return numbers.planes(numbers.shift(inner, 3), numbers.shift(inner, 6), quality_planes(numbers, quality))


def neighbour_planes(numbers: Numbers, symbols: Tensor, log_relative: Tensor, quality: Tensor) -> Tensor:
    """Inputs of the neighbour networks, [N, 2C + 2, h, w].

    symbols: those of even parity, 0 elsewhere. log_relative: log-scale over the quantiser step, sixteenths of
    an octave. quality: [N, 1, h, w].
    """
    return numbers.planes(
        SYMBOL_GAIN * symbols, numbers.shift(log_relative, 2), quality_planes(numbers, quality)
    )


def parity_places(height: int, width: int, even: bool, device: torch.device) -> Tensor:
    """Places in raster order of the positions [h, w] whose row + column is even, or of the others: int64."""
    odd = int(not even)
    if width % 2:  # the parity is that of the place
        return torch.arange(odd, height * width, 2, device=device)
    k = torch.arange(height * width // 2, device=device)
    row = k // (width // 2)
    return 2 * k + ((row + odd) & 1)


# The picture


def enhance_planes(numbers: Numbers, cells: Tensor, halo: int, quality: Tensor) -> Tensor:
    """Inputs of the enhancement network, [N, 16, h, w].

    cells: samples as 2x2 cells [N, 12, h+2, w+2] (Y, U, V by row and column in the cell), sixteenths; `halo`
    + 1 of them lie before the first block. First, how each sample differs from its plane's mean over 3x3
    cells, in units of 1/2; then whether the cell's row, and its column, is at the edge of a block; then the
    quality as `quality_planes` gives it.
    """
    n, _, h, w = cells.shape
    sums = sum_3x3(cells.reshape(n, 3, 4, h, w).sum(2, dtype=cells.dtype))
    local = numbers.shift(sums * THIRTY_SIXTH, THIRTY_SIXTH_BITS)
    difference = cells[..., 1:-1, 1:-1] - local.repeat_interleave(4, 1)
    places = (torch.arange(side - 2, device=cells.device) - halo & 3 for side in (h, w))
    rows, cols = (torch.where((k == 0) | (k == 3), EDGE, -EDGE).to(cells.dtype) for k in places)
    edges = torch.stack((rows[:, None].expand(h - 2, w - 2), cols[None].expand(h - 2, w - 2)))
    return numbers.planes(
        compand(numbers, numbers.shift(difference, 3)),
        edges[None].expand(n, -1, -1, -1),
        quality,
    )
