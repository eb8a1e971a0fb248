"""Rate of the exact levels, for training and validation."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.train.exact_net import ExactNet, training_bits
from vbc.codec.train.training_loop import Loss

SMALLEST_SIDE = 32
"""Grid steps are trained down to this side of the finer grid; in smaller ones the border would rule."""


def exact_bits(net: ExactNet, x: Tensor, lossy: Tensor | None = None, q: Tensor | None = None) -> Tensor:
    """Bits of all grid steps of int16 YCoCg-R [N, 3, H, W].

    lossy: the lossy picture, likewise, with qualities q [N].
    """
    total = x.new_zeros((), dtype=torch.float32)
    level = 0
    while min(x.shape[-2:]) >= SMALLEST_SIDE:
        total = total + training_bits(net, x, min(level, N_LEVEL_CLASSES - 1), lossy, q)
        x = x[..., ::2, ::2]
        lossy = None if lossy is None else lossy[..., ::2, ::2]
        level += 1
    return total


def archival_loss(net: ExactNet) -> Loss:
    """Bits per subpixel without the lossy levels. Batches: uint8 RGB [N, 3, H, W]."""

    def loss(rgb: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        value = exact_bits(net, rgb_to_ycocg(rgb)) / rgb.numel()
        return value, {"bpsp": value.item()}

    return loss


def layered_loss(net: ExactNet) -> Loss:
    """Half of the batch archival, half layered, so that one set of weights serves both.

    Batches: uint8 [N, 7, H, W] of RGB, the lossy picture's RGB, and its quality in every position.
    """

    def loss(batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        half = len(batch) // 2
        rgb = rgb_to_ycocg(batch[:, :3])
        lossy, q = rgb_to_ycocg(batch[half:, 3:6]), batch[half:, 6, 0, 0].float()
        archival = exact_bits(net, rgb[:half]) / rgb[:half].numel()
        layered = exact_bits(net, rgb[half:], lossy, q) / rgb[half:].numel()
        return (archival + layered) / 2, {"archival_bpsp": archival.item(), "layered_bpsp": layered.item()}

    return loss


def layered_alone_loss(net: ExactNet) -> Loss:
    """Bits per subpixel given the lossy picture, for the layers that layered files alone use: all others stay
    as they are.

    Batches as `layered_loss`.
    """
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(".layered." in name)

    def loss(batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        x, lossy = rgb_to_ycocg(batch[:, :3]), rgb_to_ycocg(batch[:, 3:6])
        value = exact_bits(net, x, lossy, batch[:, 6, 0, 0].float()) / x.numel()
        return value, {"layered_bpsp": value.item()}

    return loss


def validate_exact(net: ExactNet, tiles: NDArray[np.uint8]) -> Callable[[], dict[str, float]]:
    """Bits per subpixel on validation tiles in full precision.

    Archival and, where tiles are [N, 7, H, W], layered.
    """

    def validate() -> dict[str, float]:
        names = ("archival", "layered") if tiles.shape[1] == 7 else ("archival",)
        bits = dict.fromkeys(names, 0.0)
        device = next(net.parameters()).device
        with torch.no_grad():
            for part in np.array_split(tiles, max(1, len(tiles) // 16)):
                batch = torch.from_numpy(part).to(device)
                x = rgb_to_ycocg(batch[:, :3])
                bits["archival"] += exact_bits(net, x).item()
                if "layered" in bits:
                    lossy, q = rgb_to_ycocg(batch[:, 3:6]), batch[:, 6, 0, 0].float()
                    bits["layered"] += exact_bits(net, x, lossy, q).item()
        n = tiles[:, :3].size
        return {f"{k}_bpsp": round(v / n, 5) for k, v in bits.items()}

    return validate
