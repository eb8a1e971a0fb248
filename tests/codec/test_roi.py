"""Regions of interest come first and are better; the picture is the same in any order."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from checks import decoded_hash, payloads_of, rewritten
from grouped import CASES, HEIGHT, WIDTH, grouped_file, header_of
from pictures import constant, noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.geometry import LOSSY_LEVELS, is_lossy, level_of, rank, stage_of
from vbc.bitstream.source import as_source
from vbc.codec import IncrementalReader, api
from vbc.codec.files.region_mask import roi_of_mask
from vbc.codec.flow.decode_plan import make_plan, places_for, read_packets
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.flow.packet_order import order_for
from vbc.codec.lossy.map_coding import MAP_UNIT, VALUE_LIMIT, on_blocks
from vbc.codec.lossy.quality_map import QualityMap, finer_inside, squares_touched
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import decode_image, encode_image, size_limit, verify, window_of
from vbc.codec.regions import Region, RegionError, Roi
from vbc.codec.settings import TUNES, EncodeSettings, Tune

ROIS = {
    "everything": Roi(((0, 0, WIDTH, HEIGHT),)),
    "first pixel": Roi(((0, 0, 1, 1),)),
    "last pixel": Roi(((WIDTH - 1, HEIGHT - 1, 1, 1),)),
    "right border": Roi(((WIDTH - 3, 0, 3, HEIGHT),)),
    "lower border": Roi(((0, HEIGHT - 1, WIDTH, 1),)),
    "inside": Roi(((70, 11, 61, 3),)),
    "both ends": Roi(((0, 0, 4, 4), (WIDTH - 9, 30, 9, 9))),
    "overlapping": Roi(((60, 5, 30, 20), (70, 10, 30, 20), (60, 5, 30, 20))),
    "mask of one pixel": Roi(((133, 20, 1, 1),), (WIDTH, HEIGHT)),
}
Packets = list[tuple[int, int, bytes]]


def packets_in(data: bytes) -> Packets:
    header = container.unpack_header(data)
    return [(p.unit, p.part, bytes(b)) for p, b in zip(header.packets, payloads_of(data), strict=True)]


def needed_parts(header: Header, roi: Roi, last_level: int) -> set[tuple[int, int]]:
    """Level and part of what any of the rectangles needs, up to a level, found for each by itself."""
    found = {(level, 0) for level in header.geometry.levels if not is_lossy(level)}
    for box in roi.boxes:
        for level, groups in header.geometry.region_groups(box, last_level, header.archival).items():
            found |= {(level, 1 + n) for n in groups}
    return found


def usual_place(place: tuple[int, int]) -> tuple[int, int]:
    """What levels and parts are ordered by: all packets of a refinement stand anywhere in it."""
    level, part = place
    refinement = stage_of(level)[0] if is_lossy(level) else 0
    return (rank(level_of(refinement, 1)), 0) if refinement else (rank(level), part)


def check_order(header: Header, roi: Roi, first: bool) -> None:
    """The regions' packets stand before others: of each level or refinement, or of lossy and exact levels.

    Levels follow each other, and parts of a level, but in refinements.
    """
    lossy = needed_parts(header, roi, header.geometry.last_lossy)
    exact = needed_parts(header, roi, header.geometry.last_level)
    levels = [(p.level, p.part) for p in header.packets if p.level]
    for part, needed in (
        ([p for p in levels if is_lossy(p[0])], lossy),
        ([p for p in levels if not is_lossy(p[0])], exact),
    ):
        behind = [(p not in needed, *usual_place(p)) for p in part]
        order = behind if first else [(level, last, n) for last, level, n in behind]
        assert order == sorted(order)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("case", CASES)
def test_any_file_in_another_order(tiny: Model, case: str) -> None:
    """It is valid, has the same packets, and shows the same picture."""
    header, packets = header_of(case), packets_in(grouped_file(case))
    want = decoded_hash(decode_image(grouped_file(case), model=tiny))
    seen = {want}
    for (name, roi), first in product(ROIS.items(), (False, True)):
        moved: Packets = []
        levels = [p for p in packets if p[0] < container.ICC]
        for lossy in (True, False):
            own = [p for p in levels if is_lossy(p[0]) == lossy]
            moved += order_for(roi, own, header.geometry, header.archival, first)
        front = [p for p in packets if p[0] in (container.ICC, container.ALPHA)]
        data = rewritten(header, [*front, *moved, *(p for p in packets if p[0] > container.ALPHA)])
        check_order(container.unpack_header(data), roi, first)
        assert sorted(packets_in(data)) == sorted(packets)
        if name == "everything":
            assert data == grouped_file(case)
        if name == "both ends":
            seen.add(decoded_hash(decode_image(data, model=tiny)))
    assert seen == {want}


KINDS: dict[str, dict[str, Any]] = {
    "lossy": {},
    "two levels": {"levels": 2},
    "layered": {"lossless": True, "effort": 0},
    "archival": {"lossless": True, "levels": 0, "effort": 0},
    "squared error": {"tune": "psnr"},
}


def same_quality(kind: str) -> dict[str, int]:
    """An option by which regions are as good as the rest."""
    settings = EncodeSettings(**KINDS[kind])
    return {"roi_quality": settings.asked_quality} if settings.levels else {}


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_is_all_that_changes(tiny: Model, kind: str, first: bool) -> None:
    """Where the quality of the regions is that of the rest; with alpha, in gray too."""
    rgb = photo(HEIGHT, WIDTH)
    alpha = torch.from_numpy(soft_mask(HEIGHT, WIDTH))
    others: dict[str, Any] = {"alpha": alpha}
    if kind == "layered":
        rgb, others["gray"] = rgb[1:2].expand(3, -1, -1).contiguous(), True
    want = encode_image(rgb, model=tiny, settings=EncodeSettings(**KINDS[kind]), **others)
    for name in ("last pixel", "overlapping"):
        settings = EncodeSettings(**KINDS[kind], **same_quality(kind), roi=ROIS[name], roi_first=first)
        data = encode_image(rgb, model=tiny, settings=settings, **others)
        header = container.unpack_header(data)
        check_order(header, ROIS[name], first)
        assert sorted(packets_in(data)) == sorted(packets_in(want))
        assert data != want


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_show_the_regions_first(tiny: Model, kind: str) -> None:
    """As good as they will be, from fewer bytes than in each level first, and from fewer than usual."""
    x, box, ends = photo(HEIGHT, WIDTH), (150, 20, 6, 6), []
    usual = EncodeSettings(**KINDS[kind])
    interested = replace(usual, roi=Roi((box,)), **same_quality(kind))
    want: Tensor | None = None
    for settings in (replace(interested, roi_first=True), interested, usual):
        data = encode_image(x, model=tiny, settings=settings)
        want = decode_image(data, model=tiny).rgb[:, *window_of(box)] if want is None else want
        header = container.unpack_header(data)
        ends.append(header.ends[max(places_for(header, Roi((box,))))])
        assert torch.equal(decode_image(data[: ends[-1]], model=tiny, region=box).rgb, want)
        reader = IncrementalReader(model=tiny)
        reader.feed(data[: ends[-1]])
        shown = torch.from_numpy(reader.picture().picture.rgb.copy()).permute(2, 0, 1)
        assert torch.equal(shown[:, *window_of(box)], want)
    assert ends[0] <= ends[1] < ends[2]
    assert ends[0] < ends[1] or kind == "two levels", "of which it needs nearly all"


@pytest.mark.usefixtures("small_groups")
def test_in_layered_files_the_lossy_picture_of_a_region_comes_first(tiny: Model) -> None:
    """Exact pixels need all of the lossy picture, so its packets outside the region follow those inside."""
    roi = Roi(((150, 20, 6, 6),))
    settings = EncodeSettings(lossless=True, effort=0, roi=roi, roi_first=True)
    header = container.unpack_header(encode_image(photo(HEIGHT, WIDTH), model=tiny, settings=settings))
    kinds = [
        (p.level > LOSSY_LEVELS, (p.level, p.part) not in needed_parts(header, roi, LOSSY_LEVELS))
        for p in header.packets
        if p.level and p.level <= LOSSY_LEVELS
    ]
    assert kinds == sorted(kinds)
    assert {outside for _, outside in kinds} == {False, True}


# quality


def test_squares_that_a_rectangle_touches() -> None:
    def touched(*boxes: Region, size: tuple[int, int] = (40, 50)) -> list[tuple[int, int]]:
        inside = squares_touched(boxes, *size)
        assert inside.shape[:2] == (1, 1)
        return [(int(y), int(x)) for _, _, y, x in inside.nonzero()]

    assert touched((15, 15, 2, 2)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert touched((16, 16, 16, 16)) == [(1, 1)]
    assert touched((49, 39, 1, 1)) == [(2, 3)]
    assert touched((0, 0, 1, 1), (0, 0, 16, 17), (32, 0, 1, 1)) == [(0, 0), (0, 2), (1, 0)]
    assert len(touched((0, 0, 50, 40))) == 12
    assert touched((0, 0, 1, 1), size=(1, 1)) == [(0, 0)]


def test_what_a_region_adds_to_a_map() -> None:
    inside = torch.tensor([[True, False, True]])[None, None]
    values = torch.tensor([[-2, -2, VALUE_LIMIT - 1]], dtype=torch.int16)[None, None]
    for gain, steps in ((20, 7), (21, 7), (1, 0), (2, 1), (0, 0), (-9, 0), (100, 33)):
        plain = finer_inside(QualityMap(50), gain, inside)
        assert plain.base == 50
        if steps:
            assert plain.values is not None
            assert plain.values.tolist() == [[[[steps, 0, steps]]]]
            assert plain.values.dtype == torch.int16
        else:
            assert plain.values is None
        both = finer_inside(QualityMap(50, values), gain, inside).values
        assert both is not None
        assert both.tolist() == [[[[steps - 2, -2, min(steps + VALUE_LIMIT - 1, VALUE_LIMIT)]]]]
    nowhere = finer_inside(QualityMap(50, values), 20, torch.zeros_like(inside)).values
    assert nowhere is not None
    assert torch.equal(nowhere, values)


def qualities_of(data: bytes, model: Model) -> Tensor:
    """The quality of each block, as a decoder finds it: int32 [h, w]."""
    header = container.unpack_header(data)
    plan = make_plan(header, 1, None)
    state = DecodeState(model, header)
    state.advance_parts(1, read_packets(as_source(data), header, plan, False)[1])
    assert state.planes.quality is not None
    return state.planes.quality[0, 0]


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("lossless", [False, True])
def test_regions_are_better(tiny: Model, tune: Tune, lossless: bool) -> None:
    """By what is asked for on top of the map for the eye; the header and the outside stay."""
    x, box = photo(70, 120), (33, 18, 20, 20)
    inside = on_blocks(squares_touched((box,), 70, 120), 9, 15)[0, 0]
    before = encode_image(x, model=tiny, settings=EncodeSettings(quality=40, lossless=lossless, tune=tune))
    for roi_quality, gain in ((None, 21), (58, 18), (100, 60), (40, 0)):
        settings = EncodeSettings(
            quality=40, lossless=lossless, tune=tune, roi=Roi((box,)), roi_quality=roi_quality
        )
        data = encode_image(x, model=tiny, settings=settings)
        assert container.unpack_header(data).quality == container.unpack_header(before).quality == 40
        change = qualities_of(data, tiny) - qualities_of(before, tiny)
        assert (change == gain * inside).all()
        assert (data == before) == (gain == 0), "one group a level has no order"
        verify(data, model=tiny)


def test_a_region_is_as_good_as_the_whole_picture_would_be() -> None:
    """With the shipped weights, whose scale of qualities is calibrated to each picture."""
    x, roi = photo(96, 128), Roi(((64, 0, 64, 96),))
    for tune in TUNES:
        model = load_model(tune=tune)
        assert model.lossy.scores is not None
        low, high, both = (
            qualities_of(encode_image(x, model=model, settings=settings), model)
            for settings in (
                EncodeSettings(quality=40, tune=tune),
                EncodeSettings(quality=75, tune=tune, refinements=0),
                EncodeSettings(quality=40, tune=tune, roi=roi, roi_quality=75),
            )
        )
        assert torch.equal(both[:, :8], low[:, :8])
        assert ((both - high)[:, 8:].abs() <= MAP_UNIT // 2).all()


def test_a_region_gets_the_bits(tiny: Model) -> None:
    x, errors = photo(96, 128), {}
    for name, roi in (("left", (0, 0, 64, 96)), ("right", (64, 0, 64, 96)), ("none", None)):
        settings = EncodeSettings(quality=30, roi=None if roi is None else Roi((roi,)))
        shown = decode_image(encode_image(x, model=tiny, settings=settings), model=tiny).rgb
        squares = (shown.float() - x).square()
        errors[name] = squares[..., :64].mean(), squares[..., 64:].mean()
    assert errors["left"][0] < errors["none"][0]
    assert errors["right"][1] < errors["none"][1]
    assert errors["left"][1] < 1.1 * errors["none"][1]


def test_a_mask_says_what_its_rectangles_say(tiny: Model) -> None:
    x = photo(70, 120)
    inside = soft_mask(70, 120) > 128
    roi = roi_of_mask(inside)
    squares = squares_touched(roi.boxes, 70, 120)
    padded = np.pad(inside, ((0, -70 % 16), (0, -120 % 16)))
    assert np.array_equal(squares[0, 0].numpy(), padded.reshape(5, 16, 8, 16).any((1, 3)))
    pixels = x.permute(1, 2, 0).numpy()
    given = (inside, roi.boxes, list(roi.boxes))
    files = {api.encode(pixels, model=tiny, roi=interest, roi_first=True) for interest in given}
    assert len(files) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 5)])
@pytest.mark.parametrize("lossless", [False, True])
def test_tiny_pictures(tiny: Model, size: tuple[int, int], lossless: bool) -> None:
    x = photo(*size)
    settings = EncodeSettings(lossless=lossless, roi=Roi(((size[1] - 1, 0, 1, 1),)), roi_first=True)
    data = encode_image(x, model=tiny, settings=settings)
    verify(data, model=tiny)
    if lossless:
        assert torch.equal(decode_image(data, model=tiny).rgb, x)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("picture", [noise(48, 56), constant(40, 70)], ids=["noise", "constant"])
def test_lossless_files_are_not_larger_than_they_may_be(tiny: Model, picture: Tensor) -> None:
    """On noise regions lose quality with the rest."""
    roi = Roi(((0, 0, 20, 20), (40, 30, 9, 9)))
    settings = EncodeSettings(lossless=True, effort=0, quality=80, roi=roi, roi_quality=100, roi_first=True)
    data = encode_image(picture, model=tiny, settings=settings)
    assert len(data) <= size_limit(picture.numel())
    assert torch.equal(decode_image(data, model=tiny).rgb, picture)


# errors


@pytest.mark.parametrize("roi", [Roi(((100, 0, 21, 5),)), Roi(((0, 0, 1, 1),), (70, 120))])
def test_regions_that_a_picture_does_not_have(tiny: Model, roi: Roi) -> None:
    for levels in (0, 3):
        settings = EncodeSettings(levels, lossless=True, roi=roi)
        with pytest.raises(RegionError, match="120 x 70"):
            encode_image(photo(70, 120), model=tiny, settings=settings)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"roi_quality": 70}, "go with"),
        ({"roi_first": True}, "go with"),
        ({"roi": (0, 0, 1, 1), "roi_quality": 59}, "roi_quality is 60"),
        ({"roi": (0, 0, 1, 1), "roi_quality": 101}, "roi_quality is 60"),
        ({"roi": (0, 0, 1, 1), "roi_quality": 70, "levels": 0, "lossless": True}, "lossy levels"),
        ({"roi": (0, 0, 0, 1)}, "not inside"),
        ({"roi": np.zeros((70, 120), np.bool_)}, "empty"),
        ({"roi": np.ones((70, 121), np.bool_)}, "size"),
    ],
)
def test_options_that_do_not_go_together(tiny: Model, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        api.encode(np.zeros((70, 120, 3), np.uint8), model=tiny, **options)
