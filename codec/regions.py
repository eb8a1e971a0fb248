"""Parts of a picture: rectangles of pixels, and what an encoder is told to be of interest.

Light to import: neither torch nor numpy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Region = tuple[int, int, int, int]
"""x, y, width, height in pixels, inside the picture."""


class RegionError(ValueError):
    """A region that is not inside the picture, or a mask that has not its size."""


def parse_region(text: str) -> Region:
    """X,Y,W,H as numbers. Raises ValueError for anything else and where the region is empty."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"a region is X,Y,W,H in pixels, not {text!r}")
    x, y, width, height = map(int, parts)
    if not (width and height):
        raise ValueError(f"the region {text} is empty")
    return x, y, width, height


def as_region(box: object) -> Region:
    """Four whole numbers as a region. Raises ValueError for anything else."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(isinstance(n, int) for n in box):
        raise ValueError(f"a region is (x, y, width, height) in pixels, not {box!r}")
    x, y, width, height = box
    return x, y, width, height


def check_region(region: Region, width: int, height: int) -> None:
    """Raises RegionError unless the region is inside a picture of this size and not empty."""
    x, y, w, h = region
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise RegionError(f"region {x},{y},{w},{h} is not inside the picture of {width} x {height}")


@dataclass(frozen=True)
class Roi:
    """Regions of interest: some rectangles, which may overlap. Making one without any raises ValueError.

    mask_size: width and height that the picture must have, as the mask has them which the rectangles were
    made from; None for rectangles that were given as such.
    """

    boxes: tuple[Region, ...]
    mask_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.boxes:
            raise ValueError("the region of interest is empty")

    def check(self, width: int, height: int) -> None:
        """Raises RegionError unless a picture of this size has these regions."""
        if self.mask_size is not None and self.mask_size != (width, height):
            mask = " x ".join(map(str, self.mask_size))
            raise RegionError(f"the mask of {mask} has not the size of the picture of {width} x {height}")
        for box in self.boxes:
            check_region(box, width, height)


def united(rois: Iterable[Roi]) -> Roi:
    """All regions of several. Raises ValueError where there are none, or masks of several sizes."""
    several = list(rois)
    sizes = {roi.mask_size for roi in several if roi.mask_size is not None}
    if len(sizes) > 1:
        raise ValueError(f"masks of {len(sizes)} sizes do not go together")
    return Roi(tuple(box for roi in several for box in roi.boxes), sizes.pop() if sizes else None)
