"""Pictures as bytes, pixel by pixel."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.errors import Corrupt


def samples(planes: Tensor) -> bytes:
    """uint8 [1, C, h, w] as bytes, pixel by pixel. Inverse: from_samples."""
    return planes[0].permute(1, 2, 0).contiguous().cpu().numpy().tobytes()


def from_samples(body: memoryview, height: int, width: int, depth: int = 3) -> Tensor:
    """A channels-last tensor uint8 [1, 3, h, w]; depth 1 is one byte for all three planes.

    Raises Corrupt where the length is not that of the size.
    """
    if len(body) != depth * height * width:
        raise Corrupt(f"{len(body)} bytes of samples, {depth * height * width} expected")
    return rgb_tensor(np.frombuffer(body, np.uint8).reshape(height, width, depth).copy())


def rgb_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3], or [H, W, 1] for three equal planes, as a channels-last tensor [1, 3, H, W]."""
    rgb = pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
    return torch.from_numpy(rgb)[None].permute(0, 3, 1, 2)
