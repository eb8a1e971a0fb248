"""Bins before values: the exact grids in steps of 2 bound + 1 of G, R and B (docs/format.md, section 12).

A symbol says how many steps a sample lies from its rounded mean. So no decoded sample is further from the
picture than the bound, and the two share the context of all that was decoded so.
"""

import torch
from torch import Tensor

MAX_BOUND = 8
"""Largest distance of a decoded sample from the picture's."""


def bins_base(base: Tensor) -> Tensor:
    """The base in G, R and B: int16 [N, 3, h, w] of one in Y, Co and Cg. Modulo 2^16."""
    y, co, cg = base.unbind(1)
    middle = y - (cg >> 1)
    blue = middle - (co >> 1)
    return torch.stack((cg + middle, blue + co, blue), 1)
