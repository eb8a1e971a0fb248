"""The lossy levels without a file: a picture as it would be decoded, coded as one group a level."""

import torch
from torch import Tensor

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec.entropy.coder import Coder
from vbc.codec.flow.encode_levels import geometry_of, lossy_picture
from vbc.codec.lossy.analysis import analyse_stages
from vbc.codec.lossy.coding import code_groups, code_maps
from vbc.codec.lossy.latents import level_latents
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model


def code_lossy(model: Model, coder: Coder, picture: Tensor, quality: QualityMap) -> Tensor:
    """Run the lossy levels' encoder over uint8 [1, 3, H, W], each level one group; returns their picture."""
    blocks = geometry_of(picture).level_size(1)
    qualities = quality.on_blocks(*blocks, picture.device)
    window = slice(0, blocks[0]), slice(0, blocks[1])
    if quality.values is not None:
        coded = torch.ones(1, dtype=torch.bool, device=picture.device)
        code_maps(model.lossy, coder, [window], quality.base, coded, quality.values.to(picture.device))
    latents: Tensor | None = None
    targets = analyse_stages(model.lossy, picture, qualities, quality.refinements)
    for refinement, target in enumerate(targets):
        later = quality.refinements - refinement
        latents = code_stage(model, coder, qualities, target, refinement, latents, later)
    assert latents is not None
    return lossy_picture(model, latents, (picture.shape[-2], picture.shape[-1]), quality)


def code_stage(
    model: Model,
    coder: Coder,
    qualities: Tensor,
    wanted: Tensor | None,
    refinement: int,
    coarse: Tensor | None,
    later: int = 0,
) -> Tensor:
    """Code levels 1 to 3, or a refinement of them, each as one group: all latents, int16 [1, 192, h, w].

    qualities, wanted, refinement, coarse, later: as `add_level`, of all three levels.
    """
    latents: Tensor | None = None
    for level in range(1, LOSSY_LEVELS + 1):
        channels = level_latents(level)
        want, known = (None if plane is None else plane[:, channels] for plane in (wanted, coarse))
        latents = add_level(model, coder, level, latents, qualities, want, refinement, known, later)
    assert latents is not None
    return latents


def add_level(
    model: Model,
    coder: Coder,
    level: int,
    below: Tensor | None,
    qualities: Tensor,
    wanted: Tensor | None = None,
    refinement: int = 0,
    coarse: Tensor | None = None,
    later: int = 0,
) -> Tensor:
    """Code a lossy level, or a refinement of one, as one group.

    qualities: int32 [1, 1, h, w]. wanted, refinement, coarse, later: as `code_groups`. Returns all latents up
    to the level, int16 [1, C, h, w].
    """
    window = slice(0, qualities.shape[2]), slice(0, qualities.shape[3])
    part = code_groups(
        model.lossy,
        coder,
        level,
        below,
        [window],
        qualities,
        wanted,
        refinement=refinement,
        coarse=coarse,
        later=later,
    )
    return part if below is None else torch.cat((below, part), 1)
