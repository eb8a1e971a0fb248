"""Regions of interest from numbers and from masks."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import checker, soft_mask
from PIL import Image

from vbc.codec import api
from vbc.codec.files.image_io import UnsupportedImage
from vbc.codec.files.region_mask import GRAIN, INSIDE, read_mask, roi_of_mask
from vbc.codec.lossy.map_coding import SQUARE
from vbc.codec.regions import Region, RegionError, Roi, as_region, parse_region, united

Mask = NDArray[np.bool_]


def squares_of(inside: Mask) -> Mask:
    """Which squares of 16 x 16 pixels have a pixel inside."""
    height, width = inside.shape
    padded = np.pad(inside, ((0, -height % 16), (0, -width % 16)))
    return padded.reshape(padded.shape[0] // 16, 16, -1, 16).any((1, 3))


def painted(boxes: tuple[Region, ...], shape: tuple[int, ...]) -> Mask:
    out = np.zeros(shape, np.bool_)
    for x, y, width, height in boxes:
        out[y : y + height, x : x + width] = True
    return out


def sparse(height: int, width: int) -> Mask:
    return np.random.default_rng(3).random((height, width)) < 0.004


def one_pixel(height: int, width: int) -> Mask:
    return painted(((width - 1, height - 1, 1, 1),), (height, width))


MASKS = {
    "disc": lambda h, w: soft_mask(h, w) >= INSIDE,
    "ring": lambda h, w: (soft_mask(h, w) >= 40) & (soft_mask(h, w) < 200),
    "checker": lambda h, w: checker(h, w) >= INSIDE,
    "sparse": sparse,
    "one pixel": one_pixel,
    "everything": lambda h, w: np.ones((h, w), np.bool_),
    "diagonal": lambda h, w: np.eye(h, w, dtype=np.bool_),
}


@pytest.mark.parametrize("size", [(1, 2), (16, 16), (17, 33), (150, 70), (63, 129)])
@pytest.mark.parametrize("name", MASKS)
def test_rectangles_of_a_mask(name: str, size: tuple[int, int]) -> None:
    """They cover it, touch the same squares, and each of their sides has a pixel of it."""
    inside = MASKS[name](*size)
    if not inside.any():
        with pytest.raises(ValueError, match="empty"):
            roi_of_mask(inside)
        return
    roi = roi_of_mask(inside)
    roi.check(size[1], size[0])
    cover = painted(roi.boxes, size)
    assert (cover | ~inside).all()
    assert np.array_equal(squares_of(cover), squares_of(inside))
    for x, y, width, height in roi.boxes:
        part = inside[y : y + height, x : x + width]
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()  # noqa: PT018
    assert roi.mask_size == (size[1], size[0])
    if name == "everything":
        assert roi.boxes == ((0, 0, size[1], size[0]),)


def test_the_grain_of_masks_is_a_square_of_the_map() -> None:
    assert GRAIN == SQUARE


def image_file(pixels: NDArray[np.uint8] | NDArray[np.uint16], mode: str | None = None) -> bytes:
    out = io.BytesIO()
    im = Image.fromarray(pixels)
    (im if mode is None else im.convert(mode)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("mode", [None, "L", "1", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_kind_of_gray(mode: str | None) -> None:
    pixels = np.zeros((20, 30), np.uint8)
    pixels[3:9, 7:20] = 255
    assert read_mask(image_file(pixels, mode)) == Roi(((7, 3, 13, 6),), (30, 20))
    assert read_mask(image_file(pixels.astype(np.uint16) * 257)) == Roi(((7, 3, 13, 6),), (30, 20))


def test_inside_starts_at_128() -> None:
    pixels = np.full((4, 5), 127, np.uint8)
    with pytest.raises(ValueError, match="empty"):
        read_mask(image_file(pixels))
    pixels[2, 3] = 128
    assert read_mask(image_file(pixels)).boxes == ((3, 2, 1, 1),)


def test_pictures_that_are_no_masks() -> None:
    colour = np.full((4, 5, 3), 200, np.uint8)
    colour[1, 1, 2] = 199
    clear = np.full((4, 5, 2), 255, np.uint8)
    clear[0, 0, 1] = 254
    for data, why in ((image_file(colour), "colour"), (image_file(clear), "transparent"), (b"P5", "image")):
        with pytest.raises(UnsupportedImage, match=why):
            read_mask(data)


def test_whatever_the_functions_take() -> None:
    inside = painted(((7, 3, 13, 6),), (20, 30))
    want = Roi(((7, 3, 13, 6),), (30, 20))
    gray = np.where(inside, np.uint8(200), np.uint8(100))
    assert api.as_roi(inside) == api.as_roi(gray) == api.as_roi(Image.fromarray(gray)) == want
    assert api.as_roi(want) is want
    assert api.as_roi((7, 3, 13, 6)) == api.as_roi([(7, 3, 13, 6)]) == Roi(((7, 3, 13, 6),))
    assert api.as_roi([(0, 0, 1, 1), (0, 0, 2, 2)]) == Roi(((0, 0, 1, 1), (0, 0, 2, 2)))
    assert api.as_roi(None) is None


@pytest.mark.parametrize(
    "interest", [(), (1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 4.0), [(1, 2, 3, 4), 5], "1,2,3,4", [(1, 2)]]
)
def test_regions_that_are_none(interest: object) -> None:
    with pytest.raises(ValueError, match="region"):
        api.as_roi(interest)  # type: ignore[arg-type]


def test_arrays_that_are_no_masks() -> None:
    for mask in (np.ones((4, 5), np.float32), np.ones((4, 5, 1), np.uint8), np.ones(4, np.bool_)):
        with pytest.raises(UnsupportedImage, match="mask"):
            api.as_roi(mask)  # type: ignore[arg-type]


def test_regions_in_words() -> None:
    assert parse_region("1,2,3,4") == parse_region(" 1, 2 ,3,4") == as_region([1, 2, 3, 4]) == (1, 2, 3, 4)
    for text in ("1,2,3", "1,2,-3,4", "a,b,c,d", "", "1,2,0,4"):
        with pytest.raises(ValueError, match="region"):
            parse_region(text)


def test_several_together() -> None:
    boxes = united(
        (Roi(((0, 0, 1, 1),)), Roi(((1, 1, 2, 2), (3, 3, 1, 1)), (9, 9)), Roi(((0, 0, 4, 4),), (9, 9)))
    )
    assert boxes == Roi(((0, 0, 1, 1), (1, 1, 2, 2), (3, 3, 1, 1), (0, 0, 4, 4)), (9, 9))
    with pytest.raises(ValueError, match="masks of 2 sizes"):
        united((Roi(((0, 0, 1, 1),), (9, 9)), Roi(((0, 0, 1, 1),), (9, 8))))
    with pytest.raises(ValueError, match="empty"):
        united(())


@pytest.mark.parametrize(
    "box", [(0, 0, 31, 1), (0, 0, 1, 21), (30, 0, 1, 1), (-1, 0, 3, 3), (0, 0, 0, 1)], ids=str
)
def test_regions_outside_the_picture(box: Region) -> None:
    with pytest.raises(RegionError, match="not inside the picture of 30 x 20"):
        Roi(((0, 0, 30, 20), box)).check(30, 20)


def test_masks_of_another_size() -> None:
    for size in ((20, 30), (30, 21), (60, 40)):
        with pytest.raises(RegionError, match="size"):
            Roi(((0, 0, 1, 1),), size).check(30, 20)
