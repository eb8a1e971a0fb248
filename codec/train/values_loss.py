"""Training of the values that follow bins (docs/training.md)."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.container import VALUES_BOUND
from vbc.codec.entropy.coder import Discard
from vbc.codec.exact.bins import bins_pixels
from vbc.codec.exact.planes import every
from vbc.codec.model import Model
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.colour import ycocg_to_rgb
from vbc.codec.train.integer_runs import code_bins
from vbc.codec.train.training_loop import Loss
from vbc.codec.train.training_tiles import TILE
from vbc.codec.train.values_net import GridOfValues, ValuesNet, values_bits

PLANES = 9
"""Offsets, scales and distances of G, R and B."""


def value_tiles(model: Model, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What the integer model's bins leave of tiles with lossy pictures, uint8 [N, 7, 128, 128].

    Every other tile is coded without its lossy picture. Returns int8 as uint8 [N, 27, 128, 128]: nine planes
    of each of x_0, x_1 and x_2, which start in the upper left corner.
    """
    out = np.zeros((len(tiles), PLANES * N_LEVEL_CLASSES, TILE, TILE), np.uint8)
    with torch.no_grad():
        for i, tile in enumerate(tiles):
            x, lossy = torch.from_numpy(tile[None, :3]), torch.from_numpy(tile[None, 3:6])
            guide = lossy if i % 2 else None
            for k, step in code_bins(model, Discard(), x, guide, int(tile[6, 0, 0]), VALUES_BOUND):
                if k >= N_LEVEL_CLASSES:
                    continue
                distances = bins_pixels(every(x, k)) - bins_pixels(ycocg_to_rgb(step.middles))
                planes = torch.cat([*step.predictions.planes(), distances.to(torch.int8)], 1)[0]
                side = TILE >> k
                out[i, PLANES * k : PLANES * (k + 1), :side, :side] = planes.numpy().view(np.uint8)
    return out


def tile_bits(net: ValuesNet, batch: Tensor) -> Tensor:
    """Bits of tiles of `value_tiles`, uint8 [N, 27, 128, 128]."""
    total = torch.zeros((), device=batch.device)
    for k in range(N_LEVEL_CLASSES):
        side = TILE >> k
        planes = batch[:, PLANES * k : PLANES * (k + 1), :side, :side].view(torch.int8)
        total = total + values_bits(net, GridOfValues(*torch.split(planes, 3, 1)), k)
    return total


def values_loss(net: ValuesNet) -> Loss:
    """Bits per subpixel. Batches as `value_tiles`."""

    def loss(batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        value = tile_bits(net, batch) / (3 * len(batch) * TILE * TILE)
        return value, {"values_bpsp": value.item()}

    return loss


def validate_values(net: ValuesNet, tiles: NDArray[np.uint8]) -> Callable[[], dict[str, float]]:
    """Bits per subpixel on validation tiles, as `value_tiles`."""

    def validate() -> dict[str, float]:
        device = next(net.parameters()).device
        with torch.no_grad():
            parts = np.array_split(tiles, max(1, len(tiles) // 16))
            bits = sum(tile_bits(net, torch.from_numpy(part).to(device)).item() for part in parts)
        return {"values_bpsp": round(bits / (3 * len(tiles) * TILE * TILE), 5)}

    return validate
