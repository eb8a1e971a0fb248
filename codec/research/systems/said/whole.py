"""A VAE of whole pictures, to which glimpses are compared."""

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.loop import Loss, Plan, random_batch
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.said.model import (
    DENSE,
    FIRST_LOG_VAR,
    error_variance,
    latent_nats,
    scale_to_inputs,
)

WIDTHS = (16, 32, 32, 64)
"""Channels after each convolution of stride 2: from 64x64 pixels to 4x4."""
BATCH, RATE, RATE_END, MOST_STEPS = 32, 1e-3, 1e-5, 100_000


class WholeVae(nn.Module):
    """Four convolutions of stride 2 and two dense layers to a number of latents; the decoder mirrors them."""

    def __init__(self, channels: int, latents: int, side: int = 64) -> None:
        super().__init__()
        small = side // 2 ** len(WIDTHS)
        layers: list[nn.Module] = []
        for n_in, n_out in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(n_in, n_out, 4, 2, 1), nn.ReLU()]
        flat = WIDTHS[-1] * small**2
        last = nn.Linear(2 * DENSE, 2 * latents)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 2 * DENSE), nn.ReLU(), last)
        layers = [nn.Linear(latents, 2 * DENSE), nn.ReLU(), nn.Linear(2 * DENSE, flat), nn.ReLU()]
        layers += [nn.Unflatten(1, (WIDTHS[-1], small, small))]
        for n_in, n_out in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], channels), strict=True):
            layers += [nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*layers[:-1], nn.Sigmoid())
        scale_to_inputs(self)
        nn.init.constant_(last.bias[latents:], FIRST_LOG_VAR)

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x) of pictures float [N, C, 64, 64] of 0..1."""
        return Gaussian.of(self.encoder(2 * x - 1))

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of 0..1."""
        values: Tensor = self.decoder(z)
        return values


def loss_of(model: WholeVae, x: Tensor, price: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Nats per picture of uint8 [N, C, 64, 64]: (N / 2) ln of the picture's own mean squared error, and KL at
    a price."""
    x = x.float() / 255
    code = model.encode(x)
    decoded = model.decode(code.sample(torch.randn_like(code.mean)))
    error = 0.5 * x[0].numel() * error_variance(decoded, x).log().mean()
    nats = latent_nats(code).mean()
    return error + price * nats, {"kl": nats.item()}


def trained(latents: int, images: Tensor, seconds: float, setting: Setting, name: str) -> WholeVae:
    """A VAE trained for some seconds on images uint8 [N, C, 64, 64]; the price of KL rises over the first
    fifth."""
    plan = Plan(MOST_STEPS, BATCH, RATE, RATE_END, warmup=50, seed=setting.seed, log_every=100)

    def of(model: WholeVae, plan: Plan) -> Loss:
        return lambda x, step: loss_of(model, x, min(1.0, 5 * step / plan.steps))

    batches = random_batch(images, BATCH, setting.seed)
    return fit(lambda: WholeVae(images.shape[1], latents), of, batches, plan, seconds, setting, name)
