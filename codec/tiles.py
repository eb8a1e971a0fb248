"""The coding blocks of a plane, for the lossy and the exact levels alike."""

from collections.abc import Iterator


def blocks(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Coding blocks in raster order."""
    for r in range(0, height, side):
        for c in range(0, width, side):
            yield slice(r, min(r + side, height)), slice(c, min(c + side, width))
