"""Shorter files: what they hold at every length, and that they show what a prefix shows."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from checks import check_format_error, file_without_levels, rewritten
from grouped import CASES, grouped_file
from pictures import photo, soft_mask, stripes

from vbc.bitstream import container
from vbc.bitstream.container import ALPHA, EXIF, ICC, LOW, PIXEL_HASH, XMP
from vbc.bitstream.errors import Corrupt, LimitExceeded, NotVbc, Truncated
from vbc.bitstream.geometry import is_level, rank, stage_of
from vbc.bitstream.rewrite import rewrite
from vbc.codec import api
from vbc.codec.files.cutting import NothingLeft
from vbc.codec.files.image_io import Metadata
from vbc.codec.flow.decode_plan import all_packets, make_plan
from vbc.codec.incremental import IncrementalReader
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image, encode_image, verify
from vbc.codec.settings import EncodeSettings

LAYERED = EncodeSettings(lossless=True, effort=0)
ARCHIVAL = EncodeSettings(levels=0, lossless=True, effort=0)
PARTS = (
    "lossy-2",
    "lossy-some-maps",
    "layered-tuned",
    "archival-tuned",
    "half-noise",
    "refined-twice",
    "refined-layered",
    "deep",
    "deep-gray-alpha",
    "packed",
)
TURNED = b"MM\0*" + bytes.fromhex("00000008 0001 0112 0003 00000001 0006 0000 00000000") + bytes(474)
"""EXIF of 500 bytes that asks for a quarter turn."""


def shorter_files(data: bytes) -> Iterator[bytes]:
    """The outcomes of cuts by bytes, each by one byte less than the one before has."""
    out, need = data, least_bytes(data)
    while len(out) > need:
        max_bytes = len(out) - 1
        out = api.cut(data, max_bytes=max_bytes)
        assert len(out) <= max_bytes
        yield out


def least_bytes(data: bytes) -> int:
    """What the error of a cut by one byte names."""
    with pytest.raises(NothingLeft) as caught:
        api.cut(data, max_bytes=1)
    return caught.value.need


def units(data: bytes) -> list[tuple[int, int]]:
    return [(p.unit, p.part) for p in container.unpack_header(data).packets]


# every length


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", PARTS)
def test_a_shorter_file_is_a_prefix(tiny: Model, name: str) -> None:
    """It has the first packets of levels, one fewer each time, and shows what those show."""
    data = grouped_file(name)
    header = container.unpack_header(data)
    levels = [(p.unit, p.part) for p in header.packets if p.level]
    counts = []
    for n, out in enumerate(shorter_files(data)):
        kept = [place for place in units(out) if is_level(place[0])]
        whole = units(out)
        if n % 3 == 0:
            assert api.cut(data, max_bytes=len(out)) == out
        assert (container.ALPHA, 0) in whole or not header.has(ALPHA)
        counts.append(len(kept))
        new = container.unpack_header(out)
        if kept != levels:
            assert kept == [place for place in levels[: levels.index(kept[-1]) + 1] if place in kept]
            assert {place for place in levels[: levels.index(kept[-1])] if place[1]} <= set(kept)
            assert not new.lossless
            assert not {LOW, PIXEL_HASH} & {unit for unit, _ in whole}
        if n % (1 + len(levels) // 8) and len(kept) > 2:  # some eight pictures
            continue
        end = header.ends[header.places[kept[-1]]]
        want = decode_image(data[:end], model=tiny, allow_partial=True)
        got = decode_image(out, model=tiny)
        assert torch.equal(got.rgb, want.rgb)
        assert (got.alpha is None) == (want.alpha is None)
        assert got.exact == (new.lossless and new.bit_depth == header.bit_depth)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1
    assert len(set(counts)) >= sum(1 for _, part in levels if part) - 1


@pytest.mark.parametrize(
    "kind", ["lossy", "layered", "archival", "alpha", "deep", "gray", "packed", "one pixel"]
)
def test_every_number_of_bytes(tiny: Model, kind: str) -> None:
    size = (1, 1) if kind == "one pixel" else (21, 34)
    rgb = stripes(*size) if kind == "packed" else photo(*size)
    others: dict[str, object] = {}
    if kind == "gray":
        rgb, others = rgb[:1].expand(3, -1, -1).contiguous(), {"gray": True}
    if kind == "alpha":
        others = {"alpha": torch.from_numpy(soft_mask(*size))}
    if kind == "deep":
        others = {"low": torch.from_numpy(np.stack([soft_mask(*size)] * 3))}
    settings = {"lossy": EncodeSettings(), "archival": ARCHIVAL}.get(kind, LAYERED)
    data = encode_image(
        rgb,
        model=tiny,
        settings=settings,
        metadata=Metadata(icc=b"a profile"),
        **others,  # type: ignore[arg-type]
    )
    outcomes = dict.fromkeys(shorter_files(data))
    shortest = len(list(outcomes)[-1])
    for max_bytes in range(1, shortest):
        with pytest.raises(NothingLeft) as caught:
            api.cut(data, max_bytes=max_bytes)
        assert caught.value.need == shortest
    for max_bytes in range(shortest, len(data)):
        assert api.cut(data, max_bytes=max_bytes) == next(o for o in outcomes if len(o) <= max_bytes)
    for max_bytes in (len(data), len(data) + 1, 1 << 62):
        assert api.cut(data, max_bytes=max_bytes) == data
    for out in outcomes:
        verify(out, model=tiny)
        assert (ICC, 0) in units(out)
        assert container.unpack_header(out).has(ALPHA) == (kind == "alpha")
        assert decode_image(out, model=tiny).rgb.shape == rgb.shape


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["lossy", "layered-tuned", "archival", "deep-gray-alpha"])
def test_a_shorter_file_that_arrives_in_pieces(tiny: Model, name: str) -> None:
    data = grouped_file(name)
    out = api.cut(data, max_bytes=len(data) // 2)
    reader = IncrementalReader(model=tiny)
    for at in range(0, len(out), 97):
        reader.feed(out[at : at + 97])
    reader.finish()
    assert reader.complete
    verify(out, model=tiny)
    want = api.decode_picture(out, model=tiny)
    assert np.array_equal(reader.picture().picture.samples(), want.picture.samples())
    assert reader.picture().exact == want.exact is False


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["layered-tuned", "archival-tuned", "lossy"])
def test_a_file_in_another_order(tiny: Model, name: str) -> None:
    """The first packets are those of the file at hand: here those of a region come before all others."""
    data, region = grouped_file(name), (150, 4, 30, 20)
    header = container.unpack_header(data)
    first = set(all_packets(header, make_plan(header, None, region)))
    order = sorted(
        range(len(header.packets)), key=lambda i: (i not in first and header.packets[i].level > 0, i)
    )
    order.sort(key=lambda i: header.packets[i].unit in (LOW, PIXEL_HASH))
    other = rewrite(data, header, order)
    assert other != data
    new = container.unpack_header(other)
    whole = decode_image(data, model=tiny).rgb[:, 4:24, 150:180]
    n_first = sum(header.packets[i].level > 0 for i in first)
    for n, out in enumerate(shorter_files(other)):
        kept = [place for place in units(out) if is_level(place[0])]
        assert len(kept) <= len(new.packets)
        if n % 12 == 0 or len(kept) == n_first:
            got = decode_image(out, model=tiny).rgb
            end = new.ends[new.places[kept[-1]]]
            assert torch.equal(got, decode_image(other[:end], model=tiny, allow_partial=True).rgb)
        if len(kept) == n_first:
            assert torch.equal(got[:, 4:24, 150:180], whole)
            break
    else:
        raise AssertionError("some cut has just the region")


@pytest.mark.usefixtures("small_groups")
def test_refinements_that_stand_before_what_they_follow(tiny: Model) -> None:
    """A refinement of level 1 needs level 1 alone, so a file may have it before level 3, or without."""
    data = grouped_file("refined-twice")
    header = container.unpack_header(data)
    refined_first = sorted(
        range(len(header.packets)), key=lambda i: (stage_of(header.packets[i].level)[1], i)
    )
    other = rewrite(data, header, refined_first)
    new = container.unpack_header(other)
    places = [(p.unit, p.part) for p in new.packets]
    assert list(dict.fromkeys(level for level, _ in places))[:3] == [1, 33, 36]
    seen = set()
    for n, out in enumerate(shorter_files(other)):
        kept = units(out)
        assert kept == places[: len(kept)]
        seen.add(frozenset(level for level, _ in kept))
        if n % 19 == 0 or len(kept) < 3:
            damaged = bytearray(other)
            for i, place in enumerate(places):
                damaged[new.span(i)[0]] ^= place not in kept
            want = decode_image(damaged, model=tiny, allow_partial=True)
            assert torch.equal(decode_image(out, model=tiny).rgb, want.rgb)
    lossy = [1, 33, 36, 2, 34, 37, 3, 35, 38]
    assert seen == {frozenset(lossy[:n]) for n in range(1, 10)}


# levels


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", CASES)
def test_stages(tiny: Model, name: str) -> None:
    """The levels up to S show what a decode of so many levels does."""
    data = grouped_file(name)
    header = container.unpack_header(data)
    present = container.levels_present(header)
    for stage in [*header.geometry.levels, header.geometry.last_level + 1]:
        if rank(stage) < rank(present[0]):
            with pytest.raises(NothingLeft, match=f"level up to {stage}"):
                api.cut(data, stage=stage)
            continue
        out = api.cut(data, stage=stage)
        used = [level for level in present if rank(level) <= rank(stage)]
        if len(used) == len(present):
            assert out == data
            continue
        assert container.levels_present(container.unpack_header(out)) == tuple(used)
        assert len(out) < len(data)
        if stage in (1, 3, 4, present[-2]):
            want = decode_image(data, model=tiny, levels=len(used))
            assert torch.equal(decode_image(out, model=tiny).rgb, want.rgb)


@pytest.mark.usefixtures("small_groups")
def test_a_stage_and_a_number_of_bytes() -> None:
    data = grouped_file("layered")
    two = api.cut(data, stage=2)
    assert api.cut(data, stage=2, max_bytes=len(two)) == two
    assert api.cut(data, stage=2, max_bytes=len(two) - 1) == api.cut(two, max_bytes=len(two) - 1)
    assert api.cut(data, stage=2, max_bytes=1 << 40) == two


@pytest.mark.usefixtures("small_groups")
def test_a_cut_of_a_cut_is_the_shorter_one() -> None:
    data = grouped_file("layered-tuned")
    once = api.cut(data, max_bytes=2 * len(data) // 3)
    assert api.cut(once, max_bytes=len(data) // 3) == api.cut(data, max_bytes=len(data) // 3)


# metadata


@pytest.fixture(scope="module")
def described(tiny: Model) -> bytes:
    """A layered file with 500 bytes of EXIF, which asks for a turn, and 300 of XMP."""
    metadata = Metadata(icc=b"a profile", exif=TURNED, xmp=b"x" * 300)
    return encode_image(photo(60, 70), model=tiny, settings=LAYERED, metadata=metadata)


def payload(data: bytes, unit: int) -> bytes | None:
    header = container.unpack_header(data)
    i = header.find(unit)
    return None if i is None else bytes(container.read_packet(data, header, i))


def test_metadata_and_the_picture(tiny: Model, described: bytes) -> None:
    """EXIF and XMP while they take a quarter of the bytes; below, and in every case, the orientation."""
    assert len(described) > 4 * 800
    seen = set()
    for out in shorter_files(described):
        assert payload(out, ICC) == b"a profile"
        exif, xmp = payload(out, EXIF), payload(out, XMP)
        assert exif is not None
        seen.add((len(exif), xmp is not None))
        assert api.decode_picture(out, model=tiny).picture.to_pillow().getexif()[0x0112] == 6
        if len(out) >= 4 * 800:
            assert (exif, xmp) == (TURNED, b"x" * 300)
    assert {(500, True), (26, False)} <= seen
    assert min(len(exif) for exif in [payload(out, EXIF) or b"" for out in shorter_files(described)]) == 26


def test_a_stage_keeps_metadata(described: bytes) -> None:
    out = api.cut(described, stage=1)
    assert (payload(out, ICC), payload(out, EXIF)) == (b"a profile", TURNED)
    assert payload(out, XMP) == b"x" * 300
    assert units(out)[1] == (1, 1)


def test_metadata_that_find_room_behind_the_picture(tiny: Model) -> None:
    """XMP of more than a quarter goes, and the picture stays exact; if it finds room it stays too."""
    metadata = Metadata(exif=TURNED[:100], xmp=b"x" * 5000)
    data = encode_image(photo(20, 20), model=tiny, settings=ARCHIVAL, metadata=metadata)
    out = api.cut(data, max_bytes=len(data) - 1)
    assert payload(out, XMP) is None
    assert payload(out, EXIF) == TURNED[:100]
    assert container.unpack_header(out).lossless
    assert decode_image(out, model=tiny).exact
    verify(out, model=tiny)
    lossy = encode_image(photo(20, 20), model=tiny, metadata=metadata)
    header = container.unpack_header(lossy)
    more = [
        (p.unit, p.part, bytes(container.read_packet(lossy, header, i))) for i, p in enumerate(header.packets)
    ]
    with_ancillary = rewritten(header, [*more, (200, 0, b"y" * 40)])
    assert api.cut(with_ancillary, max_bytes=len(with_ancillary) - 1) == lossy


# what is refused


def test_arguments(tiny: Model) -> None:
    data = encode_image(photo(9, 9), model=tiny)
    for arguments in ({}, {"max_bytes": 0}, {"stage": 0}, {"max_bytes": -5, "stage": 1}):
        with pytest.raises(ValueError, match=r"max_bytes|stage"):
            api.cut(data, **arguments)


def test_bad_files(tiny: Model) -> None:
    data = encode_image(photo(37, 50), model=tiny, settings=LAYERED)
    header = container.unpack_header(data)
    start, end = header.span(1)
    damaged = data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :]
    for stage in (2, 3, 99):
        check_format_error(lambda n=stage: api.cut(damaged, stage=n), Corrupt)  # type: ignore[misc]
    assert api.cut(damaged, stage=1) == api.cut(data, stage=1)
    assert api.cut(data[:end], stage=2) == api.cut(data, stage=2), "the rest is not looked at"
    assert check_format_error(lambda: api.cut(data[: end - 1], stage=2), Truncated).need == end
    check_format_error(lambda: api.cut(data[:-1], max_bytes=1 << 40), Truncated)
    check_format_error(lambda: api.cut(data + b"x", stage=1), Corrupt)
    check_format_error(lambda: api.cut(b"no such file", stage=1), NotVbc)
    limits = container.Limits(max_pixels=37 * 50 - 1)
    check_format_error(lambda: api.cut(data, stage=1, limits=limits), LimitExceeded)


def test_a_file_without_levels(tiny: Model) -> None:
    data = file_without_levels(tiny)
    assert api.cut(data, max_bytes=len(data)) == data
    for arguments in ({"max_bytes": len(data) - 1}, {"stage": 3, "max_bytes": len(data) - 1}):
        with pytest.raises(NothingLeft, match=r"no level"):
            api.cut(data, **arguments)
