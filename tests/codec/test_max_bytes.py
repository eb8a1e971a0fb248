"""Files of at most so many bytes: they fit, use what they may, and hold what a file of a quality would."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pictures import checker, constant, noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import EXIF, ICC, XMP
from vbc.codec import api
from vbc.codec.files.cutting import NothingLeft
from vbc.codec.files.image_io import Metadata
from vbc.codec.flow import encode_within as module
from vbc.codec.lossy.quality_map import (
    MAP_UNIT,
    change_for_the_eye,
    map_of_quality,
    values_for_the_eye,
)
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image, encode_image, verify
from vbc.codec.settings import EncodeSettings, Tune

TURNED = b"MM\0*" + bytes.fromhex("00000008 0001 0112 0003 00000001 0006 0000 00000000") + bytes(474)


def within(max_bytes: int, **others: object) -> EncodeSettings:
    return EncodeSettings(max_bytes=max_bytes, **others)  # type: ignore[arg-type]


def needed(model: Model, x: Tensor, tune: Tune = "eye", **others: object) -> int:
    """What the error names for too few bytes."""
    with pytest.raises(NothingLeft) as caught:
        encode_image(x, model=model, settings=within(1, tune=tune), **others)  # type: ignore[arg-type]
    return caught.value.need


@pytest.mark.parametrize("tune", ["eye", "psnr"])
def test_from_nothing_to_everything(tiny: Model, tune: Tune) -> None:
    x = photo(96, 112)
    least = needed(tiny, x, tune)
    best = len(encode_image(x, model=tiny, settings=EncodeSettings(quality=100, tune=tune, refinements=0)))
    lowest = len(encode_image(x, model=tiny, settings=EncodeSettings(quality=0, tune=tune)))
    assert least < lowest < best
    with pytest.raises(NothingLeft, match=f"nothing of the picture fits into {least - 1} bytes; {least} "):
        encode_image(x, model=tiny, settings=within(least - 1, tune=tune))
    levels = []
    for max_bytes in (least, least + 20, (least + lowest) // 2, lowest, 2 * lowest, best - 1, best, 9 * best):
        data = encode_image(x, model=tiny, settings=within(max_bytes, tune=tune))
        assert len(data) <= max_bytes
        verify(data, model=tiny)
        header = container.unpack_header(data)
        assert not header.lossless
        levels.append(container.levels_present(header))
        if lowest < max_bytes < best:
            assert len(data) >= 0.97 * max_bytes
            assert levels[-1] == (1, 2, 3)
        if max_bytes > best:
            assert header.quality == 100
    assert levels[0] == (1,)
    assert levels[-1] == (1, 2, 3)


@pytest.mark.parametrize(
    "kind", ["gray", "alpha", "deep", "noise", "constant", "one pixel", "long", "two levels"]
)
def test_kinds_of_pictures(tiny: Model, kind: str) -> None:
    size = {"one pixel": (1, 1), "long": (3, 300)}.get(kind, (40, 61))
    x = {"noise": noise, "constant": constant}.get(kind, photo)(*size)
    others: dict[str, object] = {}
    if kind == "gray":
        x, others = x[:1].expand(3, -1, -1).contiguous(), {"gray": True}
    if kind == "alpha":
        others = {"alpha": torch.from_numpy(soft_mask(*size)), "metadata": Metadata(icc=b"a profile")}
    if kind == "deep":
        others = {"low": torch.from_numpy(np.stack([checker(*size)] * 3))}
    stored = 2 if kind == "two levels" else 3
    for max_bytes in (needed(tiny, x, **others), 800, 1500, 20000):
        data = encode_image(x, model=tiny, settings=within(max_bytes, levels=stored), **others)  # type: ignore[arg-type]
        assert len(data) <= max_bytes
        verify(data, model=tiny)
        decoded = decode_image(data, model=tiny)
        assert decoded.rgb.shape == x.shape
        assert decoded.header.channels == (1 if kind == "gray" else 3)
        assert max(decoded.levels) <= stored
        if kind == "alpha":
            assert torch.equal(decoded.alpha, others["alpha"])  # type: ignore[arg-type]
            assert decoded.header.has(ICC)


def test_the_same_bytes_again(tiny: Model) -> None:
    one, other = (encode_image(photo(40, 61), model=tiny, settings=within(900)) for _ in range(2))
    assert one == other


@pytest.mark.usefixtures("small_groups")
def test_level_1_is_cut_last(tiny: Model) -> None:
    """Where not even level 1 at quality 0 fits there are some of its groups, and in the end one."""
    x = photo(96, 224)
    least = needed(tiny, x)
    groups = []
    for max_bytes in (least, least + 60, least + 120):
        data = encode_image(x, model=tiny, settings=within(max_bytes))
        assert len(data) <= max_bytes
        verify(data, model=tiny)
        groups.append([p.part for p in container.unpack_header(data).packets if p.level == 1])
    assert groups[0] == [1]
    assert len(groups[0]) <= len(groups[1]) <= len(groups[2])
    assert len(groups[2]) > 1


@pytest.mark.parametrize("refinements", [1, 3])
def test_refinements_leave_no_gap(tiny: Model, refinements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One refinement more costs bytes at once. Where it does not fit, a higher quality with fewer uses them;
    where it does, it is there."""
    x = photo(112, 128)
    counts: list[int] = []
    trials = 0
    real = module.encode_lossy

    def spy(*arguments: object, **named: object) -> object:
        nonlocal trials
        trials += 1
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encode_lossy", spy)
    budgets = [round(700 * 1.68**n) for n in range(7)]
    for max_bytes in budgets:
        data = encode_image(x, model=tiny, settings=within(max_bytes, refinements=refinements))
        header = container.unpack_header(data)
        assert len(data) <= max_bytes
        assert len(data) >= 0.97 * max_bytes or header.final_quality == 100
        counts.append(header.geometry.refinements)
        assert header.final_quality >= 25 * counts[-1]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, refinements)
    assert trials <= 8 * len(budgets)


# metadata


@pytest.mark.parametrize(
    ("max_bytes", "exif", "xmp"), [(4000, 500, 300), (3100, 500, None), (1900, 26, 300), (1100, 26, None)]
)
def test_metadata_count(tiny: Model, max_bytes: int, exif: int, xmp: int | None) -> None:
    """EXIF, then XMP, while they take a quarter; the picture uses the rest."""
    metadata = Metadata(icc=b"a profile", exif=TURNED, xmp=b"x" * 300)
    data = encode_image(noise(72, 96), model=tiny, settings=within(max_bytes), metadata=metadata)
    assert 0.96 * max_bytes <= len(data) <= max_bytes
    lengths = {p.unit: p.length for p in container.unpack_header(data).packets}
    assert (lengths[ICC], lengths[EXIF], lengths.get(XMP)) == (9, exif, xmp)
    assert api.decode_picture(data, model=tiny).picture.to_pillow().getexif()[0x0112] == 6


def test_metadata_stay_where_there_is_room(tiny: Model) -> None:
    """At quality 100 the picture leaves more than a quarter."""
    metadata = Metadata(exif=TURNED, xmp=b"x" * 9000)
    data = encode_image(photo(9, 9), model=tiny, settings=within(10_500), metadata=metadata)
    assert api.read_metadata(data, container.unpack_header(data)) == metadata


# lossless


@pytest.mark.parametrize("levels", [0, 3])
def test_lossless_files_are_cut(tiny: Model, levels: int) -> None:
    x = photo(70, 90)
    lossless = EncodeSettings(levels, lossless=True)
    whole = encode_image(x, model=tiny, settings=lossless)
    for max_bytes in (len(whole), len(whole) - 1, len(whole) // 2, len(whole) // 8):
        data = encode_image(x, model=tiny, settings=within(max_bytes, levels=levels, lossless=True))
        assert data == api.cut(whole, max_bytes=max_bytes)
        # one byte less, and the hash of the pixels goes before any of them
        assert container.unpack_header(data).lossless == (max_bytes >= len(whole) - 1)
        verify(data, model=tiny)


# the finer knob


@pytest.mark.parametrize("kind", ["eye", "flat", "noise"])
def test_between_whole_qualities_there_are_others(kind: str) -> None:
    """The mean quality rises evenly, and no square is moved by more than one value."""
    x = (noise if kind == "noise" else photo)(160, 192)[None]
    changes = change_for_the_eye(x) * (kind != "flat")
    means, maps = [], []
    for place in range(40 * 16, 43 * 16 + 1):
        quality = map_of_quality(place / 16, changes)
        maps.append(torch.zeros_like(changes) if quality.values is None else quality.values.float())
        means.append(quality.base + MAP_UNIT * maps[-1].mean().item())
        assert (maps[-1] - maps[0]).abs().max() <= 1
        assert (means[-1] - means[0]) == pytest.approx((place - 40 * 16) / 16, abs=MAP_UNIT / changes.numel())
    plain = values_for_the_eye(x)
    for place in (0, 16, 32):
        assert torch.equal(maps[place], maps[0])
        assert kind == "flat" or plain is None or torch.equal(maps[place], plain.float())
    assert maps[0].any() == (kind == "eye")


def test_the_squares_that_move_are_those_between_two_values() -> None:
    changes = torch.tensor([[[[1.4, 1.0, -1.3, 4.6, 5.9, 0.0]]]])
    for quality, values in (
        (50.0, [0, 0, 0, 2, 2, 0]),
        (50.5, [1, 0, 0, 2, 2, 0]),
        (50.2, [0, 0, 0, 2, 2, 0]),
        (49.6, [0, 0, 0, 1, 2, 0]),
    ):
        got = map_of_quality(quality, changes)
        assert got.base == 50
        assert got.values is not None
        assert got.values.flatten().tolist() == values


# cost


def test_few_trials(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large picture a sample is searched first; then a few whole trials do."""
    sizes: list[int] = []
    real = module.encode_lossy

    def spy(picture: Tensor, *arguments: object, **named: object) -> object:
        sizes.append(picture[0, 0].numel())
        return real(picture, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "encode_lossy", spy)
    for size, most in (((160, 192), 6), ((800, 800), 5)):
        x = photo(*size)
        for rate_bpp in (0.4, 1.5):
            sizes.clear()
            max_bytes = int(rate_bpp * x[0].numel() / 8)
            data = encode_image(x, model=tiny, settings=within(max_bytes))
            assert 0.97 * max_bytes <= len(data) <= max_bytes
            assert sum(n == x[0].numel() for n in sizes) <= most
            assert any(n < x[0].numel() for n in sizes) == (size == (800, 800))
    assert all(a <= b for a, b in pairwise(sizes)), "the sample comes first"


def test_a_quality_and_a_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="do not go together"):
        EncodeSettings(quality=60, max_bytes=1000)
    with pytest.raises(ValueError, match="1 byte or more"):
        EncodeSettings(max_bytes=0)
