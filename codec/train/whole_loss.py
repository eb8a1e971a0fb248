"""The rate of a whole layered file, for training its lossy and its exact networks together.

Bits of the latents plus bits of the picture given what they decode to: the negative ELBO of the hierarchy,
with one sample and a posterior of no entropy (Kingma and Welling 2014, arXiv:1312.6114). What the pictures of
its prefixes are worth stands beside it: their distortion over lambda.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec.lossy.latents import latent_grid
from vbc.codec.lossy.map_coding import on_blocks
from vbc.codec.pixels.colour import opponent_to_rgb, rgb_to_opponent, rgb_to_ycocg
from vbc.codec.train.exact_loss import exact_bits
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.lossy_loss import Distortion, lagrangian, lossy_loss
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.random_maps import eye_change
from vbc.codec.train.training_loop import Loss

LOWEST, HIGHEST = 35, 75
"""Qualities of lossy levels that layered and progressive files have: 50 and 75 by default."""
WHOLE_SHARE = 0.5
"""Weight of whole files over that of lossy ones."""


class WholeNet(nn.Module):
    """Both networks of a layered file."""

    def __init__(self, lossy: LossyNet, exact: ExactNet):
        super().__init__()
        self.lossy, self.exact = lossy, exact
        lossy.log2_step.requires_grad_(False)  # else finer steps would change what a quality means
        for name, parameter in exact.named_parameters():
            parameter.requires_grad_(".layered." in name)


def decoded_picture(planes: Tensor) -> Tensor:
    """The lossy picture as decoders show it, float RGB [N, 3, H, W] of whole numbers 0..255.

    The gradient goes through the rounding. planes: opponent, centred on zero.
    """
    rgb = (opponent_to_rgb(planes) + 128).clamp(0, 255)
    return rgb + (rgb.round() - rgb).detach()


def ycocg_with_gradient(rgb: Tensor) -> Tensor:
    """YCoCg-R of whole RGB values: the integers, with the gradient of the transform without its floors."""
    red, green, blue = rgb.unbind(1)
    co = red - blue
    t = blue + co / 2
    cg = green - t
    smooth = torch.stack((t + cg / 2, co, cg), 1)
    return smooth + (rgb_to_ycocg(rgb.detach().to(torch.uint8)).float() - smooth).detach()


def layered_qualities(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of qualities as layered files have them, float [N, 1, H / 8, W / 8], and their bases [N].

    luma: float [N, 1, H, W], 0..255. Half of the maps are constant, half for the eye.
    """
    n, _, height, width = luma.shape
    base = torch.randint(LOWEST, HIGHEST + 1, (n, 1, 1, 1), device=luma.device).float()
    change = eye_change(luma) * (torch.rand(n, 1, 1, 1, device=luma.device) < 0.5)
    maps = (base + change).round().clamp(0, 100)
    return on_blocks(maps, *latent_grid(height, width)), base.view(n)


def whole_bits(net: WholeNet, rgb: Tensor, q: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits of the latents and of the picture given them, both summed, and the decoded planes.

    rgb: uint8 [N, 3, H, W]. q, base: `layered_qualities`.
    """
    target = rgb_to_opponent(rgb.float() - 128)
    latents, bits = net.lossy(target, q)
    planes = net.lossy.synthesise(torch.cat(latents, 1), q, LOSSY_LEVELS)
    lossy = ycocg_with_gradient(decoded_picture(planes))
    exact = exact_bits(net.exact, rgb_to_ycocg(rgb), lossy, base)
    return sum(b.sum() for b in bits), exact, planes


def whole_loss(net: WholeNet, distortion: Distortion) -> Loss:
    """The loss of lossy files of all qualities (`lossy_loss`) on half of a batch, so that they stay as good.

    On the other half bits of the whole layered file, weighed as the other half's bits are, and the distortion
    of what it shows before.

    Batches: uint8 RGB [N, 3, H, W].
    """
    lossy_alone = lossy_loss(net.lossy, distortion)

    def loss(rgb: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        half = len(rgb) // 2
        value, log = lossy_alone(rgb[:half], step)
        rest = rgb[half:]
        target = rgb_to_opponent(rest.float() - 128)
        q, base = layered_qualities(target[:, :1] + 128)
        latents, exact, planes = whole_bits(net, rest, q, base)
        lam = lagrangian(base)
        n_pixels = rest.shape[-1] * rest.shape[-2]
        bpp = (latents + exact) / (len(rest) * n_pixels)
        shown = (distortion(planes, target) / lam).mean()
        whole = WHOLE_SHARE * lam.sqrt().mean() * (bpp + shown)
        return value + whole, {
            **log,
            "whole_bpsp": bpp.item() / 3,
            "latents_bpsp": latents.item() / rest.numel(),
        }

    return loss


def validate_whole(net: WholeNet, tiles: NDArray[np.uint8]) -> Callable[[], dict[str, float]]:
    """Bits per subpixel of the latents and of the whole file at the qualities of layered files, on validation
    tiles uint8 [N, 3, 128, 128]."""

    def validate() -> dict[str, float]:
        found: dict[str, float] = {}
        device = next(net.parameters()).device
        with torch.no_grad():
            for quality in (50, 75):
                sums = [0.0, 0.0]
                for part in np.array_split(tiles, max(1, len(tiles) // 8)):
                    rgb = torch.from_numpy(part).to(device)
                    base = torch.full((len(rgb),), float(quality), device=device)
                    q = base.view(-1, 1, 1, 1).expand(-1, 1, *latent_grid(*rgb.shape[2:]))
                    latents, exact, _ = whole_bits(net, rgb, q, base)
                    sums = [sums[0] + latents.item(), sums[1] + exact.item()]
                found[f"q{quality}_latents_bpsp"] = round(sums[0] / tiles.size, 5)
                found[f"q{quality}_whole_bpsp"] = round(sum(sums) / tiles.size, 5)
        return found

    return validate
