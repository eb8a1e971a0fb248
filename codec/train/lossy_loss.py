"""Rate and distortion of the lossy levels, for training and validation."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.codec.lossy.latents import INITIAL_STEP, LAGRANGE, STEP_OCTAVES, latent_grid
from vbc.codec.pixels.colour import opponent_to_rgb, rgb_to_opponent
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.random_maps import random_maps
from vbc.codec.train.training_loop import Loss

LEVEL_RATE = (2.0, 1.0, 1.0)
"""Weight of each level's bits: level 1 shall come early in the file (2 % of a layered one at the default
quality), and six latents of 192 coarser by a third cost the whole hardly anything."""
TRUNCATED_WEIGHT = 0.1
"""Weight of the pictures from fewer levels: enough to train their synthesis without bending the full one."""

Distortion = Callable[[Tensor, Tensor], Tensor]
"""From opponent planes and their target, float [N, 3, H, W] centred on zero, to a figure per sample [N]."""


def lagrangian(q: Tensor) -> Tensor:
    """Lambda of qualities q: squared RGB units per bit per pixel."""
    return LAGRANGE * (INITIAL_STEP * torch.exp2(-q * STEP_OCTAVES)) ** 2


def squared_error(planes: Tensor, target: Tensor) -> Tensor:
    """Mean squared RGB error per sample [N]; planes are opponent, centred on zero."""
    return (opponent_to_rgb(planes).clamp(-128, 127) - opponent_to_rgb(target)).square().flatten(1).mean(1)


def lossy_loss(net: LossyNet, distortion: Distortion = squared_error) -> Loss:
    """(D + lambda R) / sqrt(lambda), with a random map of qualities per sample and a share of truncated
    reconstructions.

    distortion: in squared RGB units per sample. Each block's bits count by its own lambda; the sample is
    divided by that of its mean quality.
    """

    def loss(rgb: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        n = len(rgb)
        target = rgb_to_opponent(rgb.float() - 128)
        q = random_maps(target[:, :1] + 128)
        latents, bits = net(target, q)
        lam = lagrangian(q.mean((1, 2, 3)))
        n_pixels = rgb.shape[-1] * rgb.shape[-2]
        weighted = sum(w * b for w, b in zip(LEVEL_RATE, bits, strict=True))
        rate = (lagrangian(q[:, 0]) * weighted).sum((1, 2)) / n_pixels
        planes = net.synthesise(torch.cat(latents, 1), q, 3)
        value = ((distortion(planes, target) + rate) / lam.sqrt()).mean()
        part = slice(0, max(1, n // 4))
        level = 1 + step % 2
        z = net.complete([z[part] for z in latents[:level]], q[part])
        planes_part = net.synthesise(z, q[part], level)
        distortion_part = distortion(planes_part, target[part])
        value = value + TRUNCATED_WEIGHT * (distortion_part / lam[part].sqrt()).mean()
        with torch.no_grad():
            psnr = (10 * torch.log10(255**2 / squared_error(planes, target))).mean()
            mse_part = squared_error(planes_part, target[part]).mean()
        return value, {
            "loss": value.item(),
            "bpp": sum(b.sum().item() for b in bits) / (n * n_pixels),
            "psnr": psnr.item(),
            "mse_part": mse_part.item(),
        }

    return loss


def validate_lossy(
    net: LossyNet, tiles: NDArray[np.uint8], eye: Distortion | None = None
) -> Callable[[], dict[str, float]]:
    """bpp (with noise, so an estimate) and PSNR of the mean error at four qualities.

    At 60, PSNR of the truncated levels too. eye: a distance whose mean is wanted at every quality.
    """

    def validate() -> dict[str, float]:
        out = {}
        device = net.log2_step.device
        with torch.no_grad():
            for quality in (20, 40, 60, 80):
                bpp, mse = torch.zeros(3, device=device), torch.zeros(3, device=device)
                distance = 0.0
                parts = np.array_split(tiles, max(1, len(tiles) // 16))
                for part in parts:
                    target = rgb_to_opponent(torch.from_numpy(part).to(device).float() - 128)
                    q = torch.full(
                        (len(part), 1, *latent_grid(*part.shape[2:])), float(quality), device=device
                    )
                    latents, bits = net(target, q)
                    bpp += torch.stack([b.sum() for b in bits])
                    for level in (1, 2, 3) if quality == 60 else (3,):
                        z = net.complete(latents[:level], q)
                        planes = net.synthesise(z, q, level)
                        mse[level - 1] += squared_error(planes, target).sum()
                    if eye is not None:  # of the full picture, which came last
                        distance += eye(planes, target).sum().item()
                n = len(tiles)
                out[f"q{quality}_bpp"] = round(bpp.sum().item() / (n * tiles.shape[-1] ** 2), 4)
                out[f"q{quality}_L1_bpp"] = round(bpp[0].item() / (n * tiles.shape[-1] ** 2), 4)
                for level in (1, 2, 3) if quality == 60 else (3,):
                    psnr = 10 * math.log10(255**2 * n / mse[level - 1].item())
                    out[f"q{quality}_L{level}_psnr"] = round(psnr, 3)
                if eye is not None:
                    out[f"q{quality}_eye"] = round(distance / n, 4)
        return out

    return validate
