"""What is damaged costs itself alone where a partial picture will do; what lossless files must hold."""

from pathlib import Path

import numpy as np
import pytest
from torture.material import META, Loose, deep, loosen

from vbc.bitstream import container
from vbc.bitstream.container import ALPHA, EXIF, ICC, LOW, XMP
from vbc.bitstream.errors import Corrupt
from vbc.codec import api
from vbc.codec.example import make_example

IMAGE = make_example(64, 64)[:21, :30]


@pytest.fixture(scope="module")
def file(tiny_path: Path) -> bytes:
    """16 bits, with metadata."""
    return api.encode(deep(IMAGE), lossless=True, metadata=META, model=tiny_path)


def with_damage(data: bytes, unit: int) -> bytes:
    """The file with one bit of a packet changed."""
    header = container.unpack_header(data)
    place = header.find(unit)
    assert place is not None
    damaged = bytearray(data)
    damaged[header.span(place)[0]] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize(("unit", "name"), [(ICC, "icc"), (EXIF, "exif"), (XMP, "xmp")])
def test_damaged_metadata(file: bytes, tiny_path: Path, unit: int, name: str) -> None:
    damaged = with_damage(file, unit)
    with pytest.raises(Corrupt, match="checksum"):
        api.decode_picture(damaged, model=tiny_path)
    decoded = api.decode_picture(damaged, allow_partial=True, model=tiny_path)
    assert decoded.exact
    np.testing.assert_array_equal(decoded.picture.samples(), deep(IMAGE))
    for part in ("icc", "exif", "xmp"):
        assert getattr(decoded.picture.metadata, part) == (None if part == name else getattr(META, part))


def test_damaged_low_bytes(file: bytes, tiny_path: Path) -> None:
    damaged = with_damage(file, LOW)
    with pytest.raises(Corrupt, match="checksum"):
        api.decode_picture(damaged, model=tiny_path)
    decoded = api.decode_picture(damaged, allow_partial=True, model=tiny_path)
    assert not decoded.exact
    np.testing.assert_array_equal(decoded.picture.samples(), IMAGE)


def test_damaged_alpha_is_no_picture_without_it(tiny_path: Path) -> None:
    rgba = np.dstack((IMAGE, IMAGE[::-1, :, 0]))
    damaged = with_damage(api.encode(rgba, model=tiny_path), ALPHA)
    for allow_partial in (False, True):
        with pytest.raises(Corrupt, match="checksum"):
            api.decode_picture(damaged, allow_partial=allow_partial, model=tiny_path)


def test_ranges_hold_the_low_bytes_where_they_are_used(file: bytes) -> None:
    header = container.unpack_header(file)
    place = header.find(LOW)
    assert place is not None
    start, end = header.span(place)

    def named(levels: int | None) -> bool:
        ranges = api.read_info(file, levels=levels, region=(3, 4, 1, 1)).ranges
        return any(a <= start and end <= b for a, b in ranges)

    n_levels = len(container.levels_present(header))
    assert named(None)
    assert named(n_levels)
    assert not named(n_levels - 1)


def test_lossless_with_one_exact_level(tiny_path: Path) -> None:
    """Level 4 alone may hold all of the picture; where it does not, the file is none."""
    graphic = np.broadcast_to(np.uint8(7), (21, 30, 3))
    packed = api.encode(graphic, lossless=True, levels=0, model=tiny_path)
    assert container.levels_present(container.unpack_header(packed)) == (4,)
    assert api.decode_picture(packed, model=tiny_path).exact
    loose: Loose = loosen(api.encode(IMAGE, lossless=True, levels=0, model=tiny_path))
    loose.packets = [packet for packet in loose.packets if packet[0] == 4]
    with pytest.raises(Corrupt, match="only the base grid"):
        api.decode_picture(loose.pack(), model=tiny_path)


def test_lossless_with_some_exact_levels(tiny_path: Path) -> None:
    loose = loosen(api.encode(IMAGE, lossless=True, levels=0, model=tiny_path))
    loose.packets = [packet for packet in loose.packets if packet[0] in (4, 5)]
    with pytest.raises(Corrupt, match="level 6 is not whole"):
        container.unpack_header(loose.pack())
