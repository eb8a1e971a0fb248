"""Regions: equal to the crop of the whole picture, on every kind of file, from the bytes that they name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checks import file_without_levels
from grouped import CASES, HEIGHT, WIDTH, grouped_file, header_of
from pictures import photo
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt, FormatError, Truncated
from vbc.bitstream.source import FileSource
from vbc.codec import api
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.model import Model, place
from vbc.codec.pipeline import Decoded, decode_image, encode_image, window_of
from vbc.codec.regions import Region, RegionError
from vbc.codec.settings import EncodeSettings

REGIONS: tuple[Region, ...] = (
    (0, 0, WIDTH, HEIGHT),
    (0, 0, 1, 1),
    (WIDTH - 1, HEIGHT - 1, 1, 1),
    (31, 5, 2, 30),  # across the border of two groups
    (64, 0, 32, 32),  # just one group
    (70, 11, 61, 3),
    (150, 20, 51, 19),
)
LEVELS = {name: [1, 2, 3] if name.startswith("lossy") else [4, None] for name in CASES} | {
    "lossy-2": [1, 2],
    "refined": [4, 5, 6],
    "refined-twice": [3, 4, 6, 7, 9],
    "refined-layered": [5, 6, 7, None],
}


def cropped(part: Tensor | None, region: Region) -> Tensor | None:
    return None if part is None else part[..., *window_of(region)]


def check_region(part: Decoded, whole: Decoded, region: Region) -> None:
    """The region of a picture decoded for itself is that of the whole picture."""
    for got, all_of_it in ((part.rgb, whole.rgb), (part.alpha, whole.alpha), (part.low, whole.low)):
        want = cropped(all_of_it, region)
        assert (got is None) == (want is None)
        assert want is None or torch.equal(got, want)
    assert part.levels == whole.levels
    assert part.exact == whole.exact


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", CASES)
def test_a_region_is_the_crop(tiny: Model, name: str) -> None:
    data = grouped_file(name)
    for levels in LEVELS[name]:
        whole = decode_image(data, model=tiny, levels=levels)
        for region in REGIONS:
            check_region(decode_image(data, model=tiny, levels=levels, region=region), whole, region)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["archival", "layered-tuned", "lossy", "lossy-some-maps"])
def test_a_region_of_every_level(tiny: Model, name: str) -> None:
    data = grouped_file(name)
    for levels in range(1, len(container.levels_present(header_of(name))) + 1):
        whole = decode_image(data, model=tiny, levels=levels)
        for region in REGIONS[3:6]:
            check_region(decode_image(data, model=tiny, levels=levels, region=region), whole, region)


@pytest.mark.usefixtures("small_groups")
def test_a_region_on_the_device_path(tiny: Model) -> None:
    placed = place(tiny, torch.device("cpu"))
    for name in ("layered", "archival-tuned", "lossy-some-maps"):
        whole = decode_image(grouped_file(name), model=tiny)
        check_region(decode_image(grouped_file(name), model=placed, region=REGIONS[4]), whole, REGIONS[4])


@pytest.mark.parametrize("lossless", [False, True])
def test_random_regions_with_the_groups_of_the_format(tiny: Model, lossless: bool) -> None:
    """A wide picture: two groups of most levels."""
    width = 560
    data = encode_image(photo(14, width), model=tiny, settings=EncodeSettings(lossless=lossless))
    whole = decode_image(data, model=tiny)
    rng = np.random.default_rng(5)
    for _ in range(8):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, 14))
        region = (x, y, int(rng.integers(1, width - x + 1)), int(rng.integers(1, 14 - y + 1)))
        check_region(decode_image(data, model=tiny, region=region), whole, region)


# bytes


def blanked(data: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    """The file with other bytes outside the ranges."""
    out = bytearray(b ^ 0x5A for b in data)
    for start, end in ranges:
        out[start:end] = data[start:end]
    return bytes(out)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", CASES)
def test_only_the_bytes_named_are_read(tiny: Model, name: str, tmp_path: Path) -> None:
    """All other bytes of the file are wrong, and nobody notices; with one range missing, somebody does."""
    data, path = grouped_file(name), tmp_path / "a.vbc"
    whole = api.decode_image(data, "cpu", model=tiny)
    for region in REGIONS[1:]:
        ranges = api.read_info(data, region=region).ranges
        assert ranges[0][0] == 0
        path.write_bytes(blanked(data, ranges))
        got = api.decode_image(path, "cpu", region=region, model=tiny)
        assert got.dtype == whole.dtype
        assert torch.equal(got, whole[..., *window_of(region)])
    for start, end in ranges[1:]:
        path.write_bytes(blanked(data, tuple(r for r in ranges if r != (start, end))))
        with pytest.raises(Corrupt, match="checksum"):
            api.decode_image(path, "cpu", region=region, model=tiny)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["layered", "archival", "alpha"])
@pytest.mark.parametrize("levels", [1, 3, 5, 8])
def test_only_the_bytes_of_some_levels_are_read(tiny: Model, name: str, levels: int, tmp_path: Path) -> None:
    data, path, region = grouped_file(name), tmp_path / "a.vbc", REGIONS[4]
    info = api.read_info(data, levels=levels, region=region)
    path.write_bytes(blanked(data, info.ranges))
    with open(path, "rb") as f:
        got = api.decode_picture(FileSource(f), levels=levels, region=region, model=tiny)
    want = api.decode_picture(data, levels=levels, region=region, model=tiny)
    assert np.array_equal(got.picture.samples(), want.picture.samples())
    assert got.levels == want.levels


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(("name", "share"), [("archival", 0.25), ("layered", 0.4), ("lossy", 0.61)])
def test_a_small_region_needs_few_bytes(name: str, share: float) -> None:
    """Of a picture 26 blocks long a lossy group sees 10 beside its own; all of it needs all levels."""
    data = grouped_file(name)
    ranges = api.read_info(data, region=(0, 0, 20, 20)).ranges
    assert sum(end - start for start, end in ranges) < share * len(data)
    header = header_of(name)
    ends = container.level_ends(header)
    assert api.read_info(data, region=REGIONS[0]).ranges == ((0, max(ends.values())),)
    assert api.read_info(data).ranges == ((0, len(data)),)


@pytest.mark.usefixtures("small_groups")
def test_a_prefix_that_has_a_region_is_enough_for_it(tiny: Model) -> None:
    data, region = grouped_file("layered"), (0, 0, 20, 20)
    end = api.read_info(data, region=region).ranges[-1][1]
    assert end < len(data)
    want = decode_image(data, model=tiny, region=region).rgb
    assert torch.equal(decode_image(data[:end], model=tiny, region=region).rgb, want)
    with pytest.raises(Truncated):
        decode_image(data[: end - 1], model=tiny, region=region)
    part = decode_image(data[: end - 1], model=tiny, region=region, allow_partial=True)
    whole = decode_image(data[: end - 1], model=tiny, allow_partial=True)
    assert torch.equal(part.rgb, whole.rgb[..., :20, :20])


@pytest.mark.usefixtures("small_groups")
def test_groups_beside_a_region_are_not_decoded(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    real = DecodeState.advance

    def spy(self: DecodeState, level: int, packets: dict[int, memoryview], *shared: object) -> DecodeState:
        decoded.extend((level, n) for n in packets)
        return real(self, level, packets, *shared)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodeState, "advance", spy)
    header = header_of("layered")
    decode_image(grouped_file("layered"), model=tiny, region=(0, 0, 20, 20))
    assert len(set(decoded)) == len(decoded) < 0.7 * len(header.packets)
    last = header.geometry.last_level
    assert [n for level, n in decoded if level == last] == [0]
    assert [n for level, n in decoded if level == last - 1] == [0, 1, 7, 8], "two rows of seven groups"


# errors

OUTSIDE = [
    (0, 0, 0, 1),
    (0, 0, 1, 0),
    (-1, 0, 2, 2),
    (0, -1, 2, 2),
    (WIDTH, 0, 1, 1),
    (0, HEIGHT, 1, 1),
    (WIDTH - 1, 0, 2, 1),
    (0, HEIGHT - 1, 1, 2),
    (0, 0, 1 << 40, 1),
    (0, 0, -1, 5),
]


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("region", OUTSIDE, ids=str)
def test_regions_outside_the_picture(tiny: Model, region: Region) -> None:
    data = grouped_file("lossy")
    for call in (
        lambda: decode_image(data, model=tiny, region=region),
        lambda: api.decode(data, region=region, model=tiny),
        lambda: api.decode_image(data, "cpu", region=region, model=tiny),
        lambda: api.read_info(data, region=region),
    ):
        with pytest.raises(RegionError, match="not inside the picture of 201 x 39") as caught:
            call()
        assert not isinstance(caught.value, FormatError), "no fault of the file"


@pytest.mark.usefixtures("small_groups")
def test_a_region_at_a_levels_own_size_is_refused(tiny: Model) -> None:
    with pytest.raises(ValueError, match="full size"):
        api.decode(grouped_file("lossy"), levels=1, region=(0, 0, 4, 4), native=True, model=tiny)


def test_a_region_of_a_file_without_levels(tiny: Model) -> None:
    """A valid header with an ICC profile and nothing else."""
    data = file_without_levels(tiny)
    for region in (None, (0, 0, 1, 1)):
        with pytest.raises(Corrupt, match="no levels"):
            decode_image(data, model=tiny, region=region)
