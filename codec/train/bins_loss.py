"""Losses of the bins of near-lossless and progressive files (docs/training.md)."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.container import MAX_BOUND, VALUES_BOUND
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.train.bins_net import BinsNet, training_bits
from vbc.codec.train.exact_loss import SMALLEST_SIDE
from vbc.codec.train.training_loop import Loss

VALIDATED_BOUNDS = (1, 2, 4, 8)


def bins_bits(
    net: BinsNet,
    rgb: Tensor,
    bound: Tensor,
    lossy: Tensor | None = None,
    q: Tensor | None = None,
) -> Tensor:
    """Bits of all grid steps of uint8 RGB [N, 3, H, W], each seeing what is decoded of the ones before.

    bound: int64 [N]. lossy: the lossy picture, likewise, with qualities q [N].
    """
    sizes = [rgb.shape[-2:]]
    while min(sizes[-1]) >= 2 * SMALLEST_SIDE:
        h, w = sizes[-1]
        sizes.append(torch.Size((h // 2, w // 2)))
    total = rgb.new_zeros((), dtype=torch.float32)
    # what the grids below SMALLEST_SIDE would have left
    noise = torch.rand(rgb[..., :: 2 << len(sizes) - 1, :: 2 << len(sizes) - 1].shape) * 2 - 1
    stride = 2 << len(sizes) - 1
    known = rgb[..., ::stride, ::stride].float() + noise.to(rgb.device) * (bound + 0.5).view(-1, 1, 1, 1)
    coarse = known.round().clamp(0, 255).to(torch.uint8)
    for level in reversed(range(len(sizes))):
        grid = rgb[..., :: 1 << level, :: 1 << level]
        guide = None if lossy is None else lossy[..., :: 1 << level, :: 1 << level]
        bits, coarse = training_bits(net, grid, coarse, bound, min(level, N_LEVEL_CLASSES - 1), guide, q)
        total = total + bits
    return total


def bins_loss(net: BinsNet) -> Loss:
    """Half of the batch archival with any bound, half layered, half of that with the one of progressive
    files.

    Batches: uint8 [N, 7, H, W] of RGB, the lossy picture's RGB, and its quality in every position.
    """

    def loss(batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        half = len(batch) // 2
        rgb, lossy, q = batch[:, :3], batch[half:, 3:6], batch[half:, 6, 0, 0].float()
        bound = torch.randint(1, MAX_BOUND + 1, (len(batch),)).to(batch.device)
        bound[half::2] = VALUES_BOUND
        archival = bins_bits(net, rgb[:half], bound[:half]) / rgb[:half].numel()
        layered = bins_bits(net, rgb[half:], bound[half:], lossy, q) / rgb[half:].numel()
        return (archival + layered) / 2, {"archival_bpsp": archival.item(), "layered_bpsp": layered.item()}

    return loss


def validate_bins(net: BinsNet, tiles: NDArray[np.uint8]) -> Callable[[], dict[str, float]]:
    """Bits per subpixel on validation tiles uint8 [N, 7, H, W], by bound, archival and layered."""

    def validate() -> dict[str, float]:
        found: dict[str, float] = {}
        device = next(net.parameters()).device
        with torch.no_grad():
            for bound in VALIDATED_BOUNDS:
                for kind in ("archival", "layered"):
                    bits = 0.0
                    for part in np.array_split(tiles, max(1, len(tiles) // 16)):
                        batch = torch.from_numpy(part).to(device)
                        bounds = torch.full((len(batch),), bound, device=device)
                        guide = (batch[:, 3:6], batch[:, 6, 0, 0].float()) if kind == "layered" else ()
                        bits += bins_bits(net, batch[:, :3], bounds, *guide).item()
                    found[f"{kind}_{bound}_bpsp"] = round(bits / tiles[:, :3].size, 4)
        return found

    return validate
