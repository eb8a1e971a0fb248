"""Random maps of qualities for training: every mixture that a file may hold."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.lossy.map_coding import on_blocks
from vbc.codec.lossy.quality_map import activity_and_brightness
from vbc.codec.train.qconv import Q_MAX

KINDS = ("constant", "eye", "region", "smooth")
SHARES = (0.35, 0.35, 0.15, 0.15)
"""Constant maps are what `--tune psnr` writes, those for the eye what files hold by default."""
MAX_ACTIVITY_SLOPE, MAX_BRIGHTNESS_SLOPE = 3.0, 6.0
"""Units of quality per octave."""
MAX_REGION = 38.0
"""A region of interest is up to so much better or worse than the rest."""
MAX_SMOOTH = 9.0
"""Standard deviation of a smooth field."""


def random_maps(luma: Tensor, constant: bool = False) -> Tensor:
    """Qualities on the grid of blocks, float [N, 1, H / 8, W / 8], whole numbers 0..100.

    luma: float [N, 1, H, W], 0..255; H and W are multiples of 16. constant: no other kind of map. From
    torch's global generator.
    """
    n, _, height, width = luma.shape
    grid = height // 16, width // 16
    device = luma.device
    base = torch.randint(0, Q_MAX + 1, (n, 1, 1, 1), device=device).float()
    maps = base.expand(n, 1, *grid).clone()
    if not constant:
        kinds = torch.multinomial(torch.tensor(SHARES), n, replacement=True).tolist()
        change = {"eye": eye_change(luma), "region": region_change(n, grid), "smooth": smooth_change(n, grid)}
        for i, kind in enumerate(kinds):
            if KINDS[kind] in change:
                maps[i] += change[KINDS[kind]][i].to(device)
    return on_blocks(maps.round().clamp(0, Q_MAX), height // 8, width // 8)


def eye_change(luma: Tensor) -> Tensor:
    """Less where much goes on, more where it is dark, at random slopes: [N, 1, h, w]."""
    slopes = torch.rand(2, len(luma), 1, 1, 1, device=luma.device)
    out = torch.zeros(())
    limits = MAX_ACTIVITY_SLOPE, MAX_BRIGHTNESS_SLOPE
    for x, slope, limit in zip(activity_and_brightness(luma), slopes, limits, strict=True):
        out = out - limit * slope * (x - x.mean((2, 3), keepdim=True))
    return out


def region_change(n: int, grid: tuple[int, int]) -> Tensor:
    """A rectangle that differs from the rest: [N, 1, h, w]."""
    out = torch.zeros(n, 1, *grid)
    amounts = (2 * torch.rand(n) - 1) * MAX_REGION
    for field, amount in zip(out[:, 0], amounts, strict=True):
        ends = [sorted(torch.randint(0, side + 1, (2,)).tolist()) for side in grid]
        field[slice(*ends[0]), slice(*ends[1])] = amount
    return out


def smooth_change(n: int, grid: tuple[int, int]) -> Tensor:
    """A random field without sharp edges: [N, 1, h, w]."""
    field = torch.randn(n, 1, 3, 3) * MAX_SMOOTH * torch.rand(n, 1, 1, 1)
    return F.interpolate(field, grid, mode="bicubic", align_corners=True)
