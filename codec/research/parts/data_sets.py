"""The data sets at hand, from one folder: photograph tiles in `train/` and `valid/`, small sets in `small/`.

Images are uint8 [N, C, H, W], labels int64 [N]. What is held out is the same in every run. Every function
raises FileNotFoundError where its file is missing.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.train.training_tiles import TILE, load_tiles

HELD_OUT = 0.15
"""The share of training images that serves for validation."""
MNIST_KEYS = ("train_prefix", "train_prefix_labels", "test", "test_labels")


class Labelled(NamedTuple):
    """Images and their classes."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Split(NamedTuple):
    """Images for training, for choosing among trained models, and for final figures."""

    train: Tensor
    valid: Tensor
    test: Tensor


def mnist(folder: Path) -> Labelled:
    """Digits, uint8 [17435, 1, 28, 28] (a prefix of the training set) and [10000, 1, 28, 28]."""
    with np.load(_file(folder, "mnist.npz")) as f:
        parts = [torch.from_numpy(f[k]) for k in MNIST_KEYS]
    train, train_labels, test, test_labels = parts
    return Labelled(train.unsqueeze(1), train_labels.long(), test.unsqueeze(1), test_labels.long())


def cifar(folder: Path) -> Split:
    """Small colour pictures, uint8 [N, 3, 32, 32]: 5,085 for training, split, and 1,017 for testing."""
    with np.load(_file(folder, "cifar10_lossless_prefix.npz")) as f:
        train, test = (torch.from_numpy(f[k]).permute(0, 3, 1, 2).contiguous() for k in ("train", "test"))
    return Split(*hold_out(train), test)


def frey_faces(folder: Path) -> Tensor:
    """One person's face in 1,965 frames of a film, in their order: uint8 [1965, 1, 28, 20]."""
    with np.load(_file(folder, "freyfaces_uint8.npz")) as f:
        return torch.from_numpy(f["x"]).unsqueeze(1)


def photographs(folder: Path, side: Literal[32, 64]) -> Split:
    """Photographs in squares of 32 or 64 pixels: tiles of 128 pixels averaged 4 x 4 or 2 x 2 to one.

    The tiles for testing come from other photographs than those for training.
    """
    train, test = (
        average(torch.from_numpy(load_tiles(folder / part)), TILE // side) for part in ("train", "valid")
    )
    return Split(*hold_out(train), test)


def average(x: Tensor, n: int) -> Tensor:
    """Each n x n pixels as their rounded mean: uint8 [N, C, H, W] to uint8 [N, C, H / n, W / n]."""
    parts = [F.avg_pool2d(part.float(), n).add(0.5).floor().to(torch.uint8) for part in torch.split(x, 256)]
    return torch.cat(parts)


def hold_out(x: Tensor, share: float = HELD_OUT) -> tuple[Tensor, Tensor]:
    """A set for training and one for validation, drawn at random, always the same."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    n_valid = round(share * len(x))
    return x[order[n_valid:]], x[order[:n_valid]]


def padded(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Images in the middle of a square, their edge repeated, and where they are.

    x: uint8 [N, C, H, W]. Returns uint8 [N, C, side, side] and bool [1, 1, side, side], true where x is.
    Raises ValueError for a side smaller than H or W.
    """
    height, width = x.shape[-2:]
    if side < max(height, width):
        raise ValueError(f"{height}x{width} pixels do not fit into a square of {side}")
    top, left = (side - height) // 2, (side - width) // 2
    rows = torch.arange(side, device=x.device) - top
    columns = torch.arange(side, device=x.device) - left
    inside = ((rows >= 0) & (rows < height)).unsqueeze(1) & ((columns >= 0) & (columns < width))
    return x[..., rows.clamp(0, height - 1), :][..., columns.clamp(0, width - 1)], inside.view(
        1, 1, side, side
    )


def _file(folder: Path, name: str) -> Path:
    path = folder / "small" / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name} in {path.parent}")
    return path
