"""The orientation in EXIF, as Pillow reads and writes it, and in bytes that are none."""

import io

import numpy as np
import pytest
from PIL import Image

from vbc.codec.files.orientation import orientation, orientation_alone
from vbc.codec.files.tiff_tags import EXIF_PREFIX


def block(endian: str = "<", **tags: object) -> bytes:
    """EXIF with some tags, by Pillow."""
    exif = Image.Exif()
    exif.endian = endian
    exif.update({int(name[1:], 16): value for name, value in tags.items()})
    return exif.tobytes().removeprefix(EXIF_PREFIX)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_what_pillow_writes(endian: str, value: int) -> None:
    given = block(endian, x010F="a maker", x0112=value, x0132="2026:01:01 00:00:00")
    assert orientation(given) == value
    alone = orientation_alone(given)
    assert (alone is None) == (value == 1)
    if alone is not None:
        assert len(alone) == 26
        read = Image.Exif()
        read.load(alone)
        assert dict(read) == {0x0112: value}


def test_a_jpeg_is_turned() -> None:
    stored = io.BytesIO()
    Image.fromarray(np.zeros((2, 5), np.uint8)).save(stored, "JPEG", exif=EXIF_PREFIX + block(x0112=8))
    exif = Image.open(stored).info["exif"].removeprefix(EXIF_PREFIX)
    assert orientation(exif) == 8


def test_none_is_upright() -> None:
    assert orientation(block(x010F="a maker")) == 1
    assert orientation_alone(block(x0112=1)) is None
    for value in (0, 9, 65535):
        assert orientation(block(x0112=value)) == 1


@pytest.mark.parametrize("endian", ["<", ">"])
def test_any_bytes_will_do(endian: str) -> None:
    """Cut short, with a far offset, many entries, another type, or random: some orientation, no error."""
    given = block(endian, x0112=6)
    for n in range(len(given)):
        assert orientation(given[:n]) in (1, 6)
    assert orientation(given[:4] + b"\xff" * 4 + given[8:]) == 1
    assert orientation(given[:8] + b"\xff\xff" + given[10:]) == 6
    typed = bytearray(given)
    typed[12:14] = b"\x09\x09"
    assert orientation(bytes(typed)) == 1
    rng = np.random.default_rng(3)
    for _ in range(300):
        changed = bytearray(given)
        changed[rng.integers(4, len(given))] = rng.integers(256)
        assert 1 <= orientation(bytes(changed)) <= 8
