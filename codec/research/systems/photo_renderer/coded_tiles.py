"""What the codec's levels 1 and 2 show of photograph tiles, and what the file says of them for certain.

A latent that was coded lies within half a step of its value: `within_cells` moves a picture into these cells,
so that a renderer can add what the file does not tell, and contradict nothing that it does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec.flow.encode_levels import encode_lossy, geometry_of
from vbc.codec.lossy.analysis import analyse
from vbc.codec.lossy.coding import prior_means
from vbc.codec.lossy.latents import (
    BLOCK,
    LATENT_UNIT,
    LEVEL_START,
    STEP_UNIT,
    TARGET_UNIT,
    block_transform,
    inverse_block_transform,
    latent_basis,
)
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.lossy.synthesis import synthesise
from vbc.codec.model import Model
from vbc.codec.pixels.colour import opponent_to_rgb, rgb_to_opponent


@dataclass(frozen=True)
class CodedTiles:
    """Tiles of one side, a multiple of 8.

    original: uint8 RGB [N, 3, S, S]. shown: by level, 1 and 2, what a decoder shows, likewise. latents: int16
    [N, 48, S / 8, S / 8], eighths: the first 6 are level 1's. quality: int32 [N].
    """

    original: Tensor
    shown: dict[int, Tensor]
    latents: Tensor
    quality: Tensor


@torch.no_grad()
def code_tiles(model: Model, tiles: Tensor, qualities: tuple[int, int], seed: int) -> CodedTiles:
    """Tiles uint8 [N, 3, S, S] through the codec's first two levels, each at a random quality of a range."""
    rng = np.random.default_rng(seed)
    quality = torch.from_numpy(rng.integers(*qualities, len(tiles), endpoint=True)).int()
    shown: dict[int, list[Tensor]] = {1: [], 2: []}
    latents = []
    for tile, q in zip(torch.split(tiles, 1), quality.tolist(), strict=True):
        coded = encode_lossy(tile, model, 2, QualityMap(q))[1]
        latents.append(coded)
        for level, pictures in shown.items():
            pictures.append(show_level(model, coded[:, : LEVEL_START[level]], tile, level, q))
    return CodedTiles(tiles, {n: torch.cat(part) for n, part in shown.items()}, torch.cat(latents), quality)


def show_level(model: Model, latents: Tensor, picture: Tensor, level: int, quality: int) -> Tensor:
    """What a decoder shows of the latents of the first levels, uint8 [1, 3, H, W]; picture: of that size."""
    geometry = geometry_of(picture)
    height, width = geometry.level_size(1)
    qualities = QualityMap(quality).on_blocks(height, width, latents.device)
    window = (slice(0, height), slice(0, width))
    for n in range(level + 1, LOSSY_LEVELS + 1):
        latents = torch.cat((latents, prior_means(model.lossy, n, latents, [window], qualities)), 1)
    levels = np.full(geometry.group_counts(LOSSY_LEVELS), level)
    return synthesise(model.lossy, latents, (picture.shape[-2], picture.shape[-1]), levels, qualities)


def steps_of(model: Model, quality: Tensor, n_latents: int) -> Tensor:
    """Quantiser steps of pictures of one quality each, in latent units: float [N, n_latents, 1, 1]."""
    steps = model.lossy.step[quality.long(), :n_latents].float() / STEP_UNIT
    return steps[..., None, None]


def off_centre(planes: Tensor, latents: Tensor, steps: Tensor) -> Tensor:
    """How far a picture's own coefficients are from the coded latents, in steps: float [N, C, h, w].

    planes: opponent, float [N, 3, 8h, 8w], centred on zero. latents: int16 [N, C, h, w], eighths. steps: as
    `steps_of`. Within -1/2..1/2 the picture agrees with the file.
    """
    own = block_transform(planes.float(), latent_basis().to(planes.device))[:, : latents.shape[1]]
    return (own - latents.float() / LATENT_UNIT) / steps


def within_cells(planes: Tensor, latents: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The picture nearest to this one that agrees with the file, and how far off this one is: as
    `off_centre`."""
    off = off_centre(planes, latents, steps)
    change = (off.clamp(-0.5, 0.5) - off) * steps
    missing = change.new_zeros(len(change), planes.shape[1] * BLOCK**2 - change.shape[1], *change.shape[2:])
    whole = torch.cat((change, missing), 1)
    return planes.float() + inverse_block_transform(whole, latent_basis().to(planes.device)), off


@torch.no_grad()
def symbols_returned(model: Model, pictures: Tensor, latents: Tensor, quality: Tensor) -> float:
    """Percent of the coded latents that analysing pictures, uint8 [N, 3, S, S], returns."""
    same: list[Tensor] = []
    for x, z, q in zip(*(torch.split(t, 1) for t in (pictures, latents, quality)), strict=True):
        on_blocks = QualityMap(int(q)).on_blocks(z.shape[2], z.shape[3], x.device)
        wanted = analyse(model.lossy, x, on_blocks)[:, : z.shape[1]].float() / TARGET_UNIT
        off = (wanted - z.float() / LATENT_UNIT) / steps_of(model, q, z.shape[1])
        same.append((off.abs() <= 0.5).double().mean())
    return 100 * float(torch.stack(same).mean())


def to_planes(rgb: Tensor) -> Tensor:
    """Opponent planes centred on zero, float, of RGB 0..255 [N, 3, H, W]."""
    return rgb_to_opponent(rgb.float() - 128)


def to_pixels(planes: Tensor) -> Tensor:
    """RGB 0..255, float, limited, of opponent planes centred on zero."""
    return (opponent_to_rgb(planes) + 128).clamp(0, 255)
