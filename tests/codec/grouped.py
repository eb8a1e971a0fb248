"""Files with dozens of packets, of pictures of a few thousand pixels: they are read under `small_groups`."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import SMALL_SIDES, every_refinement, group_sides, payloads_of, rebuild
from pictures import checker, noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.codec.entropy.coder import Coder
from vbc.codec.lossy.coding import code_maps, window_size
from vbc.codec.lossy.latents import latent_grid
from vbc.codec.lossy.map_coding import SQUARE_BLOCKS, VALUE_LIMIT, map_size
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import encode_image
from vbc.codec.pixels.borders import Window
from vbc.codec.settings import EncodeSettings

HEIGHT, WIDTH = 39, 201
TINY = Path(__file__).parents[1] / "golden" / "tiny.safetensors"


@dataclass(frozen=True)
class Case:
    """What a file is made from; tuned: with corrections of the exact levels, whether they pay or not.

    some_maps: the first group of level 1 and every second one from there have a map of qualities, a wild one.
    """

    rgb: Tensor
    settings: EncodeSettings
    others: dict[str, Any] = field(default_factory=dict)
    tuned: bool = False
    some_maps: bool = False


def half_noise() -> Tensor:
    """A photograph whose right half is noise: plain groups beside coded ones."""
    return torch.cat((photo(HEIGHT, WIDTH // 2), noise(HEIGHT, WIDTH - WIDTH // 2)), 2)


def planes(*arrays: np.ndarray) -> Tensor:
    """uint8 [C, H, W]."""
    return torch.from_numpy(np.stack(arrays))


LAYERED = EncodeSettings(lossless=True, effort=0)
ARCHIVAL = EncodeSettings(levels=0, lossless=True, effort=0)
SOFT, CHECKER = soft_mask(HEIGHT, WIDTH), checker(HEIGHT, WIDTH)
GRAY = photo(HEIGHT, WIDTH)[1:2].expand(3, -1, -1).contiguous()
CASES = {
    "lossy": Case(photo(HEIGHT, WIDTH), EncodeSettings(refinements=0)),
    "lossy-2": Case(photo(HEIGHT, WIDTH), EncodeSettings(levels=2, quality=80), {"alpha": planes(SOFT)[0]}),
    "lossy-some-maps": Case(photo(HEIGHT, WIDTH), EncodeSettings(refinements=0), some_maps=True),
    "lossy-no-map": Case(photo(HEIGHT, WIDTH), EncodeSettings(tune="psnr", refinements=0)),
    "refined": Case(photo(HEIGHT, WIDTH), EncodeSettings(quality=90, refinements=1)),
    "refined-twice": Case(photo(HEIGHT, WIDTH), EncodeSettings(quality=80, refinements=2), some_maps=True),
    "refined-layered": Case(photo(HEIGHT, WIDTH), EncodeSettings(lossless=True, effort=0, refinements=1)),
    "layered-some-maps": Case(photo(HEIGHT, WIDTH), LAYERED, some_maps=True),
    "archival": Case(photo(HEIGHT, WIDTH), ARCHIVAL),
    "layered": Case(photo(HEIGHT, WIDTH), LAYERED),
    "archival-tuned": Case(photo(HEIGHT, WIDTH), EncodeSettings(levels=0, lossless=True), tuned=True),
    "layered-tuned": Case(photo(HEIGHT, WIDTH), EncodeSettings(lossless=True), tuned=True),
    "half-noise": Case(half_noise(), ARCHIVAL),
    "half-noise-layered": Case(half_noise(), LAYERED),
    "alpha": Case(photo(HEIGHT, WIDTH), LAYERED, {"alpha": planes(SOFT)[0]}),
    "deep": Case(photo(HEIGHT, WIDTH), ARCHIVAL, {"low": planes(SOFT, CHECKER, SOFT // 3)}),
    "deep-gray-alpha": Case(
        GRAY, LAYERED, {"gray": True, "alpha": planes(CHECKER)[0], "low": planes(SOFT, CHECKER)}
    ),
    "packed": Case(planes(CHECKER, CHECKER // 2, CHECKER), LAYERED),
}


@functools.cache
def grouped_file(name: str) -> bytes:
    """The file of a case, made with the tiny model under small groups."""
    case = CASES[name]
    with group_sides(), every_refinement(), pytest.MonkeyPatch.context() as patch:
        if case.tuned:
            for module in ("level", "tuning_fit"):
                patch.setattr(f"vbc.codec.exact.{module}.MIN_POSITIONS", 400)
            patch.setattr("vbc.codec.exact.tuning_fit.SIDE_BITS", -1e9)
        if case.some_maps:
            patch.setattr("vbc.codec.flow.choose_quality.values_for_the_eye", lambda picture: wild_values())
            patch.setattr("vbc.codec.flow.encode_levels.encode_maps", encode_some_maps)
            patch.setattr("vbc.codec.pipeline.check_decode", lambda *_: None)  # modes are not right yet
        data = encode_image(case.rgb, model=load_model(TINY), settings=case.settings, **case.others)
        return without_map_modes(data) if case.some_maps else data


def has_map(group: int) -> bool:
    """Whether a group of level 1 has a map in a file with some maps; they follow each other in a row."""
    return group % 2 == 0


def wild_values() -> Tensor:
    """Values of a map, all kinds of them, 0 in groups without one: int16 [1, 1, h, w]."""
    rows, columns = map_size(*latent_grid(HEIGHT, WIDTH))
    values = np.random.default_rng(8).integers(-VALUE_LIMIT, VALUE_LIMIT + 1, (rows, columns))
    groups = np.arange(columns) // (SMALL_SIDES.lossy[0] // SQUARE_BLOCKS)
    values[:, [not has_map(group) for group in groups]] = 0
    return torch.from_numpy(values.astype(np.int16))[None, None]


def encode_some_maps(model: Model, writer: Coder, windows: list[Window], quality: QualityMap) -> None:
    """As `encode_maps`, but not of all groups."""
    assert quality.values is not None
    coded = torch.tensor([has_map(cols.start // SMALL_SIDES.lossy[0]) for _, cols in windows])
    h, w = map_size(*window_size(windows))
    lefts = [cols.start // SQUARE_BLOCKS for _, cols in windows]
    wanted = torch.cat([quality.values[..., :h, left : left + w] for left in lefts])
    code_maps(model.lossy, writer, windows, quality.base, coded, wanted)


def without_map_modes(data: bytes) -> bytes:
    """The file again, the groups of level 1 that have no map in mode 0."""
    header, payloads = container.unpack_header(data), payloads_of(data)
    for packet, payload in zip(header.packets, payloads, strict=True):
        if packet.level == 1 and not has_map(packet.part - 1):
            payload[0] = 0
    return rebuild(header, payloads)


def level_places(header: Header) -> list[int]:
    """The places of the packets of levels in the index."""
    return [i for i, packet in enumerate(header.packets) if packet.level]


def header_of(name: str) -> Header:
    """The header of a case's file; called under small groups."""
    return container.unpack_header(grouped_file(name))
