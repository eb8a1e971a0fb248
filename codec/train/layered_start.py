"""Where the layered ends of the exact networks start: their linear skip solved by least squares."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.exact.features import HALO, RADIUS, phase_inputs
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train.exact_net import ExactNet, step_planes
from vbc.codec.train.qconv import ACTIVATION_STEP

RIDGE = 3e-4
"""Of the mean diagonal: inputs that hardly vary get no weight."""
OUTLIER = 4.0
"""Residuals count for no more than this many scales."""

Sums = dict[tuple[str, int, int], tuple[Tensor, Tensor]]


@torch.no_grad()
def start_layered(net: ExactNet, tiles: NDArray[np.uint8]) -> None:
    """Copy the archival ends and let the skip predict linearly what they miss. tiles: uint8 [N, 7, H, W]."""
    for p in PHASES:
        for level_class in range(N_LEVEL_CLASSES):
            net.net(p, level_class).copy_to_layered()
    sums: Sums = {}
    for part in np.array_split(tiles, max(1, len(tiles) // 8)):
        batch = torch.from_numpy(part)
        x, lossy = rgb_to_ycocg(batch[:, :3]), rgb_to_ycocg(batch[:, 3:6])
        for level_class in range(N_LEVEL_CLASSES):
            accumulate(net, sums, x, lossy, batch[:, 6, 0, 0].float(), level_class)
            x, lossy = x[..., ::2, ::2], lossy[..., ::2, ::2]
    for (p, level_class, channel), (gram, moment) in sums.items():
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weight = net.net(p, level_class).layered.skip.weight[channel]
        weight += torch.linalg.solve(gram + ridge, moment).float().view(weight.shape)


def accumulate(net: ExactNet, sums: Sums, x: Tensor, lossy: Tensor, q: Tensor, level_class: int) -> None:
    """Add one grid step's weighted normal equations for the means of all phases and channels."""
    planes, guides = step_planes(x), step_planes(lossy)
    for p in PHASES:
        base, inputs, guide = phase_inputs(p, planes["A"], planes["D"], planes["H"], guides)
        assert guide is not None
        out = net.phase(p, inputs, level_class, guide, q)
        target = planes[p][..., HALO:-HALO, HALO:-HALO]
        residual = (target - base[..., RADIUS:-RADIUS, RADIUS:-RADIUS]).float() - out[:, :3]
        both = torch.cat((inputs, guide), 1).float() * ACTIVATION_STEP
        taps = F.unfold(both[..., 2:-2, 2:-2], 3).transpose(1, 2).flatten(0, 1)
        for c in range(3):
            weight = torch.exp2(-out[:, 3 + c].clamp(-2, 6)).flatten()[:, None]
            rows = taps * weight
            wanted = (residual[:, c].flatten()[:, None] * weight).clamp(-OUTLIER, OUTLIER)
            gram, moment = (rows.T @ rows).double(), (rows.T @ wanted)[:, 0].double()
            if (p, level_class, c) in sums:
                before = sums[p, level_class, c]
                gram, moment = gram + before[0], moment + before[1]
            sums[p, level_class, c] = gram, moment
