"""Regions of interest that the encoder finds: the search is exact, the bits are those of the coder, and what
stands out is found."""

from itertools import product

import numpy as np
import pytest
import torch
from pictures import photo
from torch import Tensor

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec import api
from vbc.codec.entropy.coder import Counter, Discard
from vbc.codec.flow import find_regions as module
from vbc.codec.flow.encode_levels import geometry_of
from vbc.codec.flow.find_regions import BlockBits, best_rectangle, find_regions, pick_boxes, with_regions
from vbc.codec.flow.lossy_trial import add_level
from vbc.codec.lossy.analysis import analyse
from vbc.codec.lossy.latents import level_latents
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import encode_image
from vbc.codec.settings import AUTO, EncodeSettings


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model()


def batch_of(x: Tensor) -> Tensor:
    return x[None].contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 3), (5, 4), (7, 9)])
def test_the_best_rectangle_is_the_best(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(shape[0])
    rows, cols = (min(3, n) for n in shape)
    for _ in range(20):
        worth = rng.normal(size=shape) - rng.normal() / 2
        want = max(
            worth[t:b, left:right].sum()
            for t, b in product(range(shape[0]), range(shape[0] + 1))
            for left, right in product(range(shape[1]), range(shape[1] + 1))
            if b - t >= rows and right - left >= cols
        )
        found, (top, bottom, left, right) = best_rectangle(worth)
        assert found == pytest.approx(want)
        assert worth[top:bottom, left:right].sum() == pytest.approx(want)
        assert min(bottom - top, rows) == rows
        assert min(right - left, cols) == cols


@pytest.mark.parametrize("size", [(8, 8), (8, 40), (40, 64), (75, 41)])
def test_bits_of_blocks_are_those_of_the_coder(shipped: Model, size: tuple[int, int]) -> None:
    """In all as `Counter` counts them; in each block none where nothing is coded."""
    x = batch_of(photo(*size))
    blocks = geometry_of(x).level_size(1)
    qualities = QualityMap(70).on_blocks(*blocks, x.device)
    target = analyse(shipped.lossy, x, qualities)
    first = add_level(shipped, Discard(), 1, None, qualities, target[:, level_latents(1)])
    meter, counter = BlockBits(shipped, blocks, x.device), Counter(len(shipped.tables))
    found = []
    for coder in (meter, counter):
        latents = first
        for level in range(2, LOSSY_LEVELS + 1):
            latents = add_level(shipped, coder, level, latents, qualities, target[:, level_latents(level)])
        found.append(latents)
    assert torch.equal(*found)
    want = counter.bits(shipped.tables.frequencies)
    assert meter.bits.shape == blocks
    assert float(meter.bits.sum()) == pytest.approx(want, rel=1e-3, abs=0.1)
    assert bool((meter.bits >= 0).all())


def standing_out() -> Tensor:
    """A quiet photograph with something sharp in it, at 128..224 from the left and 64..160 from above."""
    x = photo(256, 320).float()
    quiet = torch.nn.functional.avg_pool2d(x[None], 31, 1, 15)[0]
    quiet[:, 64:160, 128:224] = photo(96, 96).float().sub(128).mul(3).add(128).clamp(0, 255)
    return quiet.round().to(torch.uint8)


def test_what_stands_out_is_found(shipped: Model) -> None:
    (x, y, width, height), *_ = find_regions(shipped, batch_of(standing_out()), 60)
    assert (x, y) == (128, 64)
    assert (width, height) == (96, 96)


def test_frames_do_not_count(shipped: Model) -> None:
    framed = standing_out()
    framed[:, :4], framed[:, :, -4:] = 0, 255
    assert find_regions(shipped, batch_of(framed), 60)[0] == (128, 64, 96, 96)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (17, 16), (100, 9)])
def test_any_size(shipped: Model, size: tuple[int, int]) -> None:
    for box in find_regions(shipped, batch_of(photo(*size)), 60):
        x, y, width, height = box
        assert 0 <= x < x + width <= size[1]
        assert 0 <= y < y + height <= size[0]


def test_large_pictures_have_large_squares(shipped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SQUARES", 4)
    gain, bits, error, side = module.gains_and_bits(shipped, batch_of(standing_out()), 60)
    assert side == 96
    assert gain.shape == bits.shape == (3, 4)
    assert 0 < gain.sum() <= error


def test_where_all_is_alike_there_is_none() -> None:
    even = np.ones((8, 9))
    assert pick_boxes(even, even, 100.0, 3 * 256 * 288) == []
    assert pick_boxes(np.zeros((8, 9)), even, 100.0, 3 * 256 * 288) == []
    gain = even.copy()
    gain[2:5, 3:7] = 40
    assert pick_boxes(gain, even, gain.sum() + 9, 3 * 256 * 288)[0] == (2, 5, 3, 7)
    assert pick_boxes(gain, 1e6 * even, gain.sum() + 9, 3 * 256 * 288) == [], "bits that are not worth it"


def test_as_settings(shipped: Model) -> None:
    """A file is that of the boxes found; where none are, that of no regions, whatever is asked of them."""
    x, flat = standing_out(), torch.full((3, 64, 64), 99, dtype=torch.uint8)
    asked = EncodeSettings(roi=AUTO, roi_quality=70, roi_first=True)
    found = with_regions(shipped, batch_of(x), asked)
    assert found.regions is not None
    assert encode_image(x, model=shipped, settings=asked) == encode_image(x, model=shipped, settings=found)
    assert api.encode(x, roi="auto", roi_quality=70, roi_first=True) == api.encode(
        x, roi=found.regions, roi_quality=70, roi_first=True
    )
    assert with_regions(shipped, batch_of(flat), asked) == EncodeSettings()
    assert api.encode(flat, roi="auto", roi_first=True) == api.encode(flat)
    with pytest.raises(ValueError, match="'everywhere'"):
        EncodeSettings(roi="everywhere")  # type: ignore[arg-type]
