"""Files with dozens of packets, of pictures of a few thousand pixels: they are read under `small_groups`."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import group_sides
from pictures import checker, noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.codec.model import load_model
from vbc.codec.pipeline import encode_image
from vbc.codec.settings import EncodeSettings

HEIGHT, WIDTH = 39, 201
TINY = Path(__file__).parents[1] / "golden" / "tiny.safetensors"


@dataclass(frozen=True)
class Case:
    """What a file is made from; tuned: with corrections of the exact levels, whether they pay or not."""

    rgb: Tensor
    settings: EncodeSettings
    others: dict[str, Any] = field(default_factory=dict)
    tuned: bool = False


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
    "lossy": Case(photo(HEIGHT, WIDTH), EncodeSettings()),
    "lossy-2": Case(photo(HEIGHT, WIDTH), EncodeSettings(levels=2, quality=80), {"alpha": planes(SOFT)[0]}),
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
    with group_sides(), pytest.MonkeyPatch.context() as patch:
        if case.tuned:
            for module in ("level", "tuning_fit"):
                patch.setattr(f"vbc.codec.exact.{module}.MIN_POSITIONS", 400)
            patch.setattr("vbc.codec.exact.tuning_fit.COST_BITS", -1e9)
        return encode_image(case.rgb, model=load_model(TINY), settings=case.settings, **case.others)


def level_places(header: Header) -> list[int]:
    """The places of the packets of levels in the index."""
    return [i for i, packet in enumerate(header.packets) if packet.level]


def header_of(name: str) -> Header:
    """The header of a case's file; called under small groups."""
    return container.unpack_header(grouped_file(name))
