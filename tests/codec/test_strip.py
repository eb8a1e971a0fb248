"""Files without what regions do not need: valid, smaller, and the same inside."""

from typing import Any

import pytest
import torch
from checks import check_format_error, file_without_levels, payloads_of, rewritten
from grouped import CASES, HEIGHT, WIDTH, grouped_file, header_of
from pictures import photo
from test_roi import ROIS, needed_parts, packets_in

from vbc.bitstream import container
from vbc.bitstream.container import ALPHA, EXIF, ICC, LOSSLESS, LOW, PIXEL_HASH, XMP
from vbc.bitstream.errors import Corrupt, LimitExceeded, Truncated
from vbc.bitstream.geometry import is_lossy
from vbc.bitstream.rewrite import rewrite
from vbc.bitstream.source import MemorySource
from vbc.codec import api
from vbc.codec.files.cutting import NothingLeft
from vbc.codec.files.image_io import Metadata
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image, encode_image, window_of
from vbc.codec.regions import RegionError, Roi
from vbc.codec.settings import EncodeSettings


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("case", CASES)
def test_what_stays(case: str) -> None:
    """What the regions need, alpha and metadata; and nothing that only a whole picture has."""
    data, header = grouped_file(case), header_of(case)
    for name, roi in ROIS.items():
        stripped = api.strip(data, roi)
        kept = container.unpack_header(stripped)
        exact = not is_lossy(container.levels_present(header)[-1])
        geometry = header.geometry
        needed = needed_parts(header, roi, geometry.last_level if exact else geometry.last_lossy)
        levels = [(p.level, p.part) for p in header.packets if p.level]
        assert [(p.level, p.part) for p in kept.packets if p.level] == [p for p in levels if p in needed]
        assert set(packets_in(stripped)) <= set(packets_in(data))
        if needed >= set(levels):
            assert stripped == data
        else:
            assert not kept.flags & LOSSLESS
            assert kept.bit_depth == 8
            assert not kept.has(LOW)
            assert not kept.has(PIXEL_HASH)
        assert kept.has(ALPHA) == header.has(ALPHA)
        assert kept.archival == header.archival
        assert api.strip(stripped, roi) == stripped
        if name == "everything" or case == "packed":
            assert stripped == data


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("case", CASES)
def test_regions_keep_their_pixels(tiny: Model, case: str) -> None:
    """Decoded alone and with all that is left around them, at every level."""
    data = grouped_file(case)
    for levels in {3, len(container.levels_present(header_of(case)))}:
        want = decode_image(data, model=tiny, levels=levels)
        for roi in (ROIS["inside"], ROIS["both ends"]):
            stripped = api.strip(data, roi)
            whole = decode_image(stripped, model=tiny, levels=levels)
            assert stripped == data or (whole.low is None and not whole.exact)
            for box in roi.boxes:
                part = decode_image(stripped, model=tiny, levels=levels, region=box)
                for got, there in ((part.rgb, want.rgb), (part.alpha, want.alpha)):
                    assert (got is None) == (there is None)
                    assert got is None or torch.equal(got, there[..., *window_of(box)])  # type: ignore[index]
                assert torch.equal(whole.rgb[..., *window_of(box)], part.rgb)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("first", [False, True])
def test_a_file_that_was_made_for_the_region(tiny: Model, first: bool) -> None:
    """What stays is its first part; the exact levels need no more of the file than the archival one has."""
    roi = Roi(((150, 20, 6, 6),))
    settings = EncodeSettings(levels=0, lossless=True, effort=0, roi=roi, roi_first=first)
    data = encode_image(photo(HEIGHT, WIDTH), model=tiny, settings=settings)
    stripped = api.strip(data, roi)
    assert len(stripped) < 0.5 * len(data)
    kept, all_of_it = payloads_of(stripped), payloads_of(data)
    assert (kept == all_of_it[: len(kept)]) == first
    assert torch.equal(
        decode_image(stripped, model=tiny, region=roi.boxes[0]).rgb,
        photo(HEIGHT, WIDTH)[:, *window_of(roi.boxes[0])],
    )


@pytest.mark.usefixtures("small_groups")
def test_metadata_and_what_is_unknown(tiny: Model) -> None:
    meta = Metadata(icc=b"profile", exif=b"MM\0*\0\0\0\x08\0\0", xmp=b"<xmp/>")
    settings = EncodeSettings(refinements=0)
    data = encode_image(photo(HEIGHT, WIDTH), model=tiny, metadata=meta, settings=settings)
    header, packets = container.unpack_header(data), packets_in(data)
    data = rewritten(header, [*packets, (200, 0, b"a thumbnail"), (255, 0, b"")])
    metadata = {ICC, EXIF, XMP}
    for roi, keep in ((ROIS["everything"], True), (ROIS["first pixel"], True), (ROIS["first pixel"], False)):
        units = {p.unit for p in container.unpack_header(api.strip(data, roi, keep_metadata=keep)).packets}
        assert units == {1, 2, 3} | (metadata if keep else set())


@pytest.mark.usefixtures("small_groups")
def test_of_a_file_that_lacks_some_of_it(tiny: Model) -> None:
    """Where a region has no group of level 3 left, its refinements of the levels below stay; where it has
    nothing at all, that is said."""
    data, header = grouped_file("refined-twice"), header_of("refined-twice")
    box = (0, 0, 4, 4)
    there = container.usable(header, lambda i: header.packets[i].level != 3 or header.packets[i].part > 8)
    part = rewrite(data, header, [i for i, good in enumerate(there) if good])
    stripped = api.strip(part, box)
    assert {p.level for p in container.unpack_header(part).packets} == {1, 2, 3, *range(33, 39)}
    assert {p.level for p in container.unpack_header(stripped).packets} == {1, 2, 33, 34, 36, 37}
    assert api.strip(stripped, box) == stripped
    want = decode_image(part, model=tiny, region=box).rgb
    assert torch.equal(decode_image(stripped, model=tiny, region=box).rgb, want)
    far = container.usable(header, lambda i: header.packets[i].level != 1 or header.packets[i].part > 3)
    part = rewrite(data, header, [i for i, good in enumerate(far) if good])
    for empty in (part, file_without_levels(tiny)):
        with pytest.raises(NothingLeft, match="nothing of these regions"):
            api.strip(empty, box)


@pytest.mark.usefixtures("small_groups")
def test_only_the_packets_that_stay_are_read(tiny: Model) -> None:
    """From a source of bytes; its header is checked against the limits first."""
    data, header, roi = grouped_file("lossy"), header_of("lossy"), ROIS["first pixel"]
    read: list[tuple[int, int]] = []

    class Watched(MemorySource):
        def read(self, start: int, end: int) -> memoryview:
            read.append((start, end))
            return super().read(start, end)

    assert api.strip(Watched(data), roi) == api.strip(data, roi)
    needed = {header.find(*place) for place in needed_parts(header, roi, header.geometry.last_lossy)}
    spans = {header.span(i) for i in needed if i is not None}
    assert {span for span in read if span[0] >= header.header_bytes} == spans
    limits = container.Limits(max_pixels=WIDTH * HEIGHT - 1)
    read.clear()
    check_format_error(lambda: api.strip(Watched(data), roi, limits=limits), LimitExceeded)
    assert max(end for _, end in read) <= header.header_bytes


# errors


@pytest.mark.usefixtures("small_groups")
def test_damage_matters_where_it_stays() -> None:
    """Packets that are left out need not be sound, nor there."""
    data, header, roi = grouped_file("archival"), header_of("archival"), ROIS["first pixel"]
    needed = needed_parts(header, roi, header.geometry.last_level)
    want = api.strip(data, roi)
    places = [i for i, p in enumerate(header.packets) if p.level]
    for i in places:
        start, end = header.span(i)
        broken = data[:start] + bytes(255 - b for b in data[start:end]) + data[end:]
        if (header.packets[i].level, header.packets[i].part) in needed:
            check_format_error(lambda broken=broken: api.strip(broken, roi), Corrupt)
        else:
            assert api.strip(broken, roi) == want
    last = max(i for i in places if (header.packets[i].level, header.packets[i].part) in needed)
    assert header.ends[last] < len(data)
    assert api.strip(data[: header.ends[last]], roi) == want
    check_format_error(lambda: api.strip(data[: header.ends[last] - 1], roi), Truncated)


@pytest.mark.usefixtures("small_groups")
def test_regions_that_the_picture_does_not_have() -> None:
    data = grouped_file("lossy")
    outside: tuple[Any, ...] = ((0, 0, WIDTH + 1, 1), Roi(((0, 0, 1, 1),), (WIDTH, HEIGHT + 1)))
    for roi in outside:
        with pytest.raises(RegionError):
            api.strip(data, roi)
    with pytest.raises(ValueError, match="missing"):
        api.strip(data, None)
