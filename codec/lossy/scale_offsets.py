"""How the encoder finds the offsets by which groups of levels 2 and 3 move the scales of their latents.

The networks know scales from what pictures have in common. A picture with more noise, or less texture of one
direction, is off by the same factor nearly everywhere (docs/decisions/0016-scale-offsets.md).
"""

import torch
from torch import Tensor

from vbc.codec.lossy.analysis import letter, wanted_symbols
from vbc.codec.lossy.coding import in_use, scale_classes
from vbc.codec.lossy.features import parity_places
from vbc.codec.lossy.latents import FIRST_CODED_SCALE, LEVEL_LATENTS, N_SCALES
from vbc.codec.lossy.model import LossyModel

TRIED = range(-6, 7)
"""Offsets that the encoder looks at, in quarter octaves."""


def find_offsets(
    model: LossyModel, level: int, parameters: Tensor, quality: Tensor, target: Tensor, later: int = 0
) -> tuple[Tensor, Tensor]:
    """The offsets of each latent that make groups of level 2 or 3 smallest, by their blocks of even parity.

    Those of odd parity, whose scales also depend on what was decoded of the others, are taken to be alike.
    parameters: as `prior_parameters`. quality: of the groups, [N, 1, h, w]. target: what is wanted, int16 [N,
    C, h, w], sixteenths. later: how many refinements follow. Returns which groups are to have offsets, bool
    [N], and those, int16 [N, C].
    """
    c, (n, h, w, _) = LEVEL_LATENTS[level - 1], parameters.shape
    places = parity_places(h, w, True, parameters.device)
    wanted = target.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, places)
    mean = 2 * parameters[..., :c].flatten(1, 2).index_select(1, places)
    classes = scale_classes(model, level, parameters, quality)
    used = in_use(classes)
    classes = classes.index_select(1, places)
    first = (level - 1) * N_SCALES
    table = classes.clamp(0, N_SCALES - 1) + (model.first_table + first)
    local = quality.view(n, -1).index_select(1, places)
    coded = classes >= FIRST_CODED_SCALE
    symbols = wanted_symbols(model, level, local, wanted, mean, table, coded, True, later)
    letters = letter(symbols)
    free = symbols == 0

    def bits(offset: int) -> Tensor:
        """What each latent of each group takes in all blocks, [N, C]; what is not zero has to be coded."""
        moved = classes + offset
        cost = model.cost[moved.clamp(FIRST_CODED_SCALE, N_SCALES - 1) + first, letters]
        return cost.masked_fill_(free & (moved < FIRST_CODED_SCALE), 0).sum(1) * (h * w / len(places))

    offsets = torch.tensor(TRIED, device=parameters.device)
    side = model.offset_cost[letter(offsets)]
    totals = torch.stack([bits(offset) for offset in TRIED]) + side[:, None, None]
    least, best = totals.min(0)
    saved = ((bits(0) - least) * used).sum(1)
    return saved > 0, (offsets[best] * used).to(torch.int16)
