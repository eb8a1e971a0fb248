"""The loss that tunes the lossy levels for the eye (`codec.lossy.eye_distance`)."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.codec.lossy.eye_distance import eye_distance
from vbc.codec.lossy.latents import latent_grid
from vbc.codec.pixels.colour import opponent_to_rgb, rgb_to_opponent
from vbc.codec.train.lossy_loss import Distortion, lossy_loss, squared_error
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.qconv import Q_MAX
from vbc.codec.train.training_loop import Loss
from vbc.codec.train.training_tiles import batches

SQUARED_SHARE = 0.2
"""Of squared error in the distortion: it holds the colours and what the windows do not see."""
FIT_BATCHES = 16
"""256 tiles tell kappa, a mean, within some 5 %."""
FLAT = (1e-2, 1e-3)
"""Squared error and eye distance are taken as at least this in kappa: flat tiles have neither."""


def plane_distance(planes: Tensor, target: Tensor) -> Tensor:
    """`eye_distance` [N] of opponent planes centred on zero from their target."""
    return eye_distance(opponent_to_rgb(target) + 128, opponent_to_rgb(planes) + 128)


def fit_kappa(net: LossyNet, tiles: NDArray[np.uint8], seed: int = 1) -> float:
    """Squared error that one unit of eye distance is worth so that both weigh alike.

    The geometric mean of their ratio over the first batches, at random qualities: a function of the network,
    the tiles (uint8 [N, 3, 128, 128]) and the seed.
    """
    device = net.log2_step.device
    random = torch.Generator().manual_seed(seed)
    source = batches(tiles, 16, seed, 0)
    logs = []
    for _ in range(FIT_BATCHES):
        target = rgb_to_opponent(next(source).to(device).float() - 128)
        q = torch.randint(0, Q_MAX + 1, (len(target), 1, 1, 1), generator=random).float().to(device)
        q = q.expand(-1, 1, *latent_grid(*target.shape[2:]))
        with torch.no_grad():
            planes = net.synthesise(torch.cat(net(target, q)[0], 1), q, 3)
            mse, eye = squared_error(planes, target), plane_distance(planes, target)
        logs.append((mse.clamp_min(FLAT[0]) / eye.clamp_min(FLAT[1])).log().mean().item())
    return math.exp(sum(logs) / len(logs))


def eye_loss(net: LossyNet, kappa: float) -> Loss:
    """`lossy_loss` with `eye_distortion`. kappa: `fit_kappa` of the start."""
    return lossy_loss(net, eye_distortion(kappa))


def eye_distortion(kappa: float) -> Distortion:
    """0.2 MSE + 0.8 kappa eye distance."""

    def distortion(planes: Tensor, target: Tensor) -> Tensor:
        eye = kappa * plane_distance(planes, target)
        return SQUARED_SHARE * squared_error(planes, target) + (1 - SQUARED_SHARE) * eye

    return distortion
