"""Masks: pictures that say which of another picture's pixels are of interest."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vbc.codec.files.image_io import Picture, UnsupportedImage, read_picture
from vbc.codec.regions import Region, Roi

INSIDE = 128
"""Samples of a mask from here on are inside."""
GRAIN = 16
"""Side of the squares by which qualities differ, in pixels: no mask need be known more finely than that."""


def read_mask(data: bytes) -> Roi:
    """The regions that an image file shows bright.

    Raises UnsupportedImage for what is no gray picture, ValueError for one without a bright pixel.
    """
    return roi_of_picture(read_picture(data))


def roi_of_picture(mask: Picture) -> Roi:
    """As `read_mask`, of a picture that was read; three equal channels are gray too."""
    if not mask.gray and not (mask.rgb == mask.rgb[..., :1]).all():
        raise UnsupportedImage("a mask is gray, not coloured")
    if mask.alpha is not None and mask.alpha.min() < 255:
        raise UnsupportedImage("a mask is gray, without transparent pixels")
    return roi_of_mask(mask.rgb[..., 0] >= INSIDE)


def roi_of_array(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Roi:
    """As `read_mask`, of an array [H, W], of which True, or 128 and more, is inside."""
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        raise UnsupportedImage(f"a mask is bool or uint8 [H, W], not {mask.dtype} of shape {mask.shape}")
    return roi_of_mask(mask.astype(np.bool_) if mask.dtype == np.bool_ else mask >= INSIDE)


def roi_of_mask(inside: NDArray[np.bool_]) -> Roi:
    """The regions of bool [H, W]. Raises ValueError where no pixel is inside.

    The rectangles touch just those squares of 16 x 16 pixels that have a pixel inside, and none of their
    sides can be moved inwards.
    """
    height, width = inside.shape
    boxes: list[Region] = []
    growing: dict[tuple[int, int], Region] = {}
    for top in range(0, height, GRAIN):
        # a run goes on below where the next row of squares has the same one
        runs = dict(_runs_of_squares(inside[top : top + GRAIN], top))
        boxes += [box for columns, box in growing.items() if columns not in runs]
        growing = {
            columns: _around(growing[columns], box) if columns in growing else box
            for columns, box in runs.items()
        }
    boxes += growing.values()
    return Roi(tuple(sorted(boxes, key=lambda box: (box[1], box[0]))), (width, height))


def _runs_of_squares(band: NDArray[np.bool_], top: int) -> Iterator[tuple[tuple[int, int], Region]]:
    """Neighbouring squares of a row of squares that have pixels inside: first and last one, and the smallest
    rectangle around those pixels. band: the row, its upper row of pixels is `top`."""
    x = np.flatnonzero(band.any(0))
    if not x.size:
        return
    squares = x // GRAIN
    starts = np.flatnonzero(np.diff(squares) > 1) + 1
    for columns, numbers in zip(np.split(x, starts), np.split(squares, starts), strict=True):
        left, right = int(columns[0]), int(columns[-1]) + 1
        y = np.flatnonzero(band[:, left:right].any(1))
        box = left, top + int(y[0]), right - left, int(y[-1] - y[0]) + 1
        yield (int(numbers[0]), int(numbers[-1])), box


def _around(a: Region, b: Region) -> Region:
    """The smallest rectangle around two."""
    x, y = min(a[0], b[0]), min(a[1], b[1])
    return x, y, max(a[0] + a[2], b[0] + b[2]) - x, max(a[1] + a[3], b[1] + b[3]) - y
