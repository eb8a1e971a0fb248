"""Training data: folders of images or of tile mosaics, as one array of square RGB tiles."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

TILE = 128
"""Side of a training tile in pixels."""
IMAGE_SUFFIXES = (".png", ".webp", ".ppm", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


def load_tiles(folder: Path) -> NDArray[np.uint8]:
    """All tiles of a folder: uint8 [N, 3, 128, 128].

    Every image is cut into the whole tiles that fit; a mosaic of tiles comes apart into just those tiles.
    Raises FileNotFoundError where no tile is found.
    """
    parts = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        with Image.open(path) as im:
            rgb = np.asarray(im.convert("RGB"))
        rows, cols = rgb.shape[0] // TILE, rgb.shape[1] // TILE
        cut = rgb[: rows * TILE, : cols * TILE].reshape(rows, TILE, cols, TILE, 3)
        parts.append(cut.transpose(0, 2, 4, 1, 3).reshape(-1, 3, TILE, TILE))
    if not parts or not sum(map(len, parts)):
        raise FileNotFoundError(f"no image of at least {TILE}x{TILE} pixels below {folder}")
    return np.concatenate(parts)


def batches(
    tiles: NDArray[np.uint8], size: int, seed: int, start_step: int, augment: bool = True
) -> Iterator[Tensor]:
    """Endless random batches uint8 [size, 3, 128, 128].

    A function of seed and step, so a resumed run sees what it would have. Augmentation: flips and
    transposition, which leave the statistics of camera noise alone (rescaling does not). augment: whether.
    """
    step = start_step
    while True:
        rng = np.random.default_rng((seed, step))
        x = torch.from_numpy(tiles[rng.integers(0, len(tiles), size)])
        flip_v, flip_h, transpose = rng.integers(0, 2, 3)
        if flip_v and augment:
            x = x.flip(-2)
        if flip_h and augment:
            x = x.flip(-1)
        yield (x.transpose(-1, -2) if transpose and augment else x).contiguous()
        step += 1
