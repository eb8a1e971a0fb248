"""Boxes that glimpses look through: centre and half width in coordinates of -1..1 from edge to edge."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

NARROWEST, WIDEST = 0.0625, 1.0
"""Half widths that a network gives: 4 pixels of 64 to the whole side."""


class Boxes(NamedTuple):
    """One box for each picture. centre: float [N, 2], x and y. width: half of the sides, float [N, 2]."""

    centre: Tensor
    width: Tensor

    @classmethod
    def of(cls, raw: Tensor) -> "Boxes":
        """From a network's four numbers [N, 4]: tanh of the first two, sigmoid of the others. Zeros are a box
        in the middle with sides of about half the picture's."""
        return cls(raw[:, :2].tanh(), NARROWEST + (WIDEST - NARROWEST) * raw[:, 2:].sigmoid())

    @classmethod
    def between(cls, edges: Tensor, side: int) -> "Boxes":
        """From left, top, right, bottom in pixels of a picture of `side` pixels: float [N, 4]."""
        low, high = (2 * edges.float() / side - 1).chunk(2, 1)
        return cls((low + high) / 2, (high - low) / 2)

    def edges(self, side: int) -> Tensor:
        """Left, top, right, bottom in pixels, which may lie outside: float [N, 4]."""
        return (torch.cat((self.centre - self.width, self.centre + self.width), 1) + 1) * (side / 2)

    def rounded(self, side: int) -> "Boxes":
        """Edges at whole pixels of the picture, with one pixel between them at least: what `box_bits` pays
        for."""
        low, high = self.edges(side).round().chunk(2, 1)
        low = low.clamp(0, side - 1)
        return Boxes.between(torch.cat((low, torch.maximum(low + 1, high.clamp(1, side))), 1), side)

    def transforms(self) -> Tensor:
        """Patch to picture, for `vbc.kernels.research.glimpse`: float [N, 2, 3]."""
        return torch.cat((torch.diag_embed(self.width), self.centre.unsqueeze(2)), 2)

    def position_nats(self) -> Tensor:
        """L_pos = KL(N(centre, width) || N(0, I)), thesis eq. 6.4: [N]. Halving both sides costs 2 ln 2."""
        return ((self.width**2 + self.centre**2 - 1) / 2 - self.width.log()).sum(1)

    def wandering(self, deviation: float) -> "Boxes":
        """Boxes whose centres and logarithms of widths have normal noise added, within what a network can
        say."""
        centre, width = (deviation * torch.randn_like(part) for part in self)
        limited = (self.width * width.exp()).clamp(NARROWEST, WIDEST)
        return Boxes((self.centre + centre).clamp(-1, 1), limited)

    def squared_distance(self, other: "Boxes") -> Tensor:
        """Of centres and of logarithms of widths: [N]."""
        between = self.centre - other.centre, (self.width / other.width).log()
        return torch.cat(between, 1).square().sum(1)

    def detach(self) -> "Boxes":
        """The same boxes as constants."""
        return Boxes(self.centre.detach(), self.width.detach())


def box_bits(side: int) -> float:
    """Bits of a box with edges at whole pixels, all boxes alike: two pairs out of side + 1 edges."""
    return 2 * math.log2(side * (side + 1) / 2)


def random_boxes(n: int, generator: torch.Generator) -> Boxes:
    """Half widths uniform in 1/8..1/2, the box inside the picture."""
    width = 0.125 + 0.375 * torch.rand((n, 2), generator=generator)
    return Boxes((2 * torch.rand((n, 2), generator=generator) - 1) * (1 - width), width)


def grid_boxes(n: int, columns: int) -> list[Boxes]:
    """Squares that cover n pictures, row by row, the same for each."""
    at = [(2 * k + 1) / columns - 1 for k in range(columns)]
    width = torch.full((n, 2), 1 / columns)
    return [Boxes(torch.tensor([x, y]).expand(n, 2), width) for y in at for x in at]
