"""Pictures for tests, made here: photograph-like, and the extremes."""

import numpy as np
import torch
from torch import Tensor

from vbc.codec.example import make_example


def photo(height: int, width: int) -> Tensor:
    """uint8 [3, height, width], photograph-like: a cut from a picture of at least 64 x 64."""
    side = max(64, height, width)
    return from_array(make_example(side, side)[side - height :, side - width :])


def smooth(height: int, width: int, reach: int = 2) -> Tensor:
    """As `photo`, but each pixel the mean of those up to `reach` away, twice: it takes fewer bytes."""
    x = photo(height, width).permute(1, 2, 0).numpy().astype(np.int64)
    n = 2 * reach + 1
    for _ in range(2):
        sums = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge").cumsum(0).cumsum(1)
        sums = np.pad(sums, ((1, 0), (1, 0), (0, 0)))
        x = (sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]) // (n * n)
    return from_array(x.astype(np.uint8))


def from_array(rgb: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] as a tensor [3, H, W]."""
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


def noise(height: int, width: int) -> Tensor:
    """Uniform noise."""
    return from_array(np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8))


def constant(height: int, width: int, value: int = 255) -> Tensor:
    """One colour."""
    return torch.full((3, height, width), value, dtype=torch.uint8)


def stripes(height: int, width: int) -> Tensor:
    """Black and saturated columns, one pixel wide: the largest differences there are."""
    x = torch.zeros((3, height, width), dtype=torch.uint8)
    x[0, :, ::2] = 255
    x[2, ::2] = 255
    return x


SIZES = ((1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (3, 3), (8, 8), (9, 8), (5, 70), (17, 23), (33, 64))
CONTENTS = {"photo": photo, "noise": noise, "constant": constant, "stripes": stripes}


def soft_mask(height: int, width: int) -> np.ndarray:
    """uint8 [height, width]: a disc with a soft edge, as alpha planes are."""
    y, x = np.mgrid[:height, :width]
    squared = (2 * y - height + 1) ** 2 + (2 * x - width + 1) ** 2
    return np.clip(320 - squared * 640 // (height * height + width * width), 0, 255).astype(np.uint8)


def checker(height: int, width: int) -> np.ndarray:
    """uint8 [height, width]: 0 and 255 in turn."""
    y, x = np.mgrid[:height, :width]
    return ((y + x) % 2 * 255).astype(np.uint8)
