"""VAEs of small pictures whose loss is a message length: convolutions, batch norm, empirical noise variance.

Zeng's thesis, section 3.3. Pictures are uint8 [N, C, S, S]; networks see and give them as -1..1. Errors are
in grey values, so that a value of precision 1 costs -log p(error) nats. Natural logarithms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.gaussians import Gaussian, kl, standard_normal

ROUNDING = 1 / 12
"""Variance of rounding to whole grey values, added to the empirical one: lengths stay finite."""
SLOPE = 0.2
"""Of LeakyReLU below 0."""
CHUNK = 256
"""Pictures that are measured at a time."""


@dataclass(frozen=True)
class Form:
    """Shape of a network between pictures and codes.

    side: of the pictures in pixels, a multiple of 2^len(widths). widths: channels after each halving.
    hidden: units of a second dense layer beside the code; none where 0. residual: whether each stage has a
    residual block too.
    """

    channels: int
    side: int
    latents: int
    widths: tuple[int, ...] = (16, 32, 64)
    hidden: int = 0
    residual: bool = True

    @property
    def core(self) -> tuple[int, int, int]:
        """Channels, rows, columns of the smallest plane."""
        small = self.side >> len(self.widths)
        return self.widths[-1], small, small


class Residual(nn.Module):
    """x + two 3x3 convolutions with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.leaky_relu(x + self.inner(x), SLOPE)
        return out


class Encoder(nn.Sequential):
    """q(z | picture): convolutions 4x4 of stride 2 with batch norm, residual blocks, dense layers."""

    def __init__(self, form: Form) -> None:
        n_core, n_out = math.prod(form.core), 2 * form.latents
        layers: list[nn.Module] = []
        for n_in, width in pairwise((form.channels, *form.widths)):
            layers += [nn.Conv2d(n_in, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.LeakyReLU(SLOPE)] + ([Residual(width)] if form.residual else [])
        layers += [nn.Flatten()]
        if form.hidden:
            layers += [nn.Linear(n_core, form.hidden), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers, nn.Linear(form.hidden or n_core, n_out))

    def posterior(self, x: Tensor) -> Gaussian:
        """Of pictures as -1..1, float [N, C, S, S]: mean and log-variance [N, latents]."""
        return Gaussian.of(self(x))


class Decoder(nn.Sequential):
    """The mirror of the encoder, with ReLU and a final tanh: codes [N, latents] to -1..1 [N, C, S, S]."""

    def __init__(self, form: Form) -> None:
        layers: list[nn.Module] = []
        if form.hidden:
            layers += [nn.Linear(form.latents, form.hidden), nn.ReLU()]
        n_in = form.hidden or form.latents
        layers += [nn.Linear(n_in, math.prod(form.core)), nn.Unflatten(1, form.core)]
        layers += [nn.BatchNorm2d(form.widths[-1]), nn.ReLU()]
        for wide, narrow in pairwise((*form.widths[::-1], form.channels)):
            layers += [Residual(wide)] if form.residual else []
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1)]
            if narrow != form.channels:
                layers += [nn.BatchNorm2d(narrow), nn.ReLU()]
        super().__init__(*layers, nn.Tanh())


class PictureVae(nn.Module):
    """A VAE with one Gaussian code a picture."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.encoder, self.decoder = Encoder(form), Decoder(form)

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x) of uint8 [N, C, S, S]."""
        return self.encoder.posterior(to_unit(x))

    def decode(self, z: Tensor) -> Tensor:
        """Codes [N, latents] to pictures as -1..1."""
        y: Tensor = self.decoder(z)
        return y


def to_unit(x: Tensor) -> Tensor:
    """Values 0..255 as -1..1, float32."""
    return x.float() / 127.5 - 1


def to_bytes(y: Tensor) -> Tensor:
    """-1..1 as the nearest of 0..255, uint8."""
    return ((y + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def message_nats(x: Tensor, y: Tensor) -> Tensor:
    """-log p(x | y) in nats per picture, under Gaussian noise of the variance that the errors of these
    pictures have: scalar.

    x: uint8 [N, C, S, S]. y: -1..1 of the same shape. The gradient is that of SSE / (2 s^2), s^2 constant.
    """
    variance = squared_error(x, y).mean() + ROUNDING
    return 0.5 * x[0].numel() * torch.log(2 * math.pi * math.e * variance)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Squared errors of -1..1 against 0..255, in squared grey values: float32 of x's shape."""
    return (127.5 * (y + 1) - x.float()).square()


def prior_nats(q: Gaussian) -> Tensor:
    """KL(q || N(0, I)) of each picture: [N]."""
    return kl(q, standard_normal(len(q.mean), tuple(q.mean.shape[1:]), q.mean.device))


def drawn(q: Gaussian) -> Tensor:
    """A code from each posterior, by torch's own random numbers."""
    return q.sample(torch.randn_like(q.mean))


def loss_of(model: PictureVae, x: Tensor, beta: float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Message length in nats per picture, that of the code times beta; with beta 1 the negative ELBO."""
    q = model.encode(x)
    nats, code = message_nats(x, model.decode(drawn(q))), prior_nats(q).mean()
    return nats + beta * code, {"nats": nats.item(), "kl": code.item()}


@torch.no_grad()
def codes_of(encoder: Encoder, x: Tensor) -> Gaussian:
    """Posteriors of many pictures, on the encoder's device; x: uint8 [N, C, S, S], anywhere."""
    device = next(encoder.parameters()).device
    parts = [encoder.posterior(to_unit(part.to(device))) for part in torch.split(x, CHUNK)]
    return Gaussian(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.no_grad()
def pictures_of(decoder: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Pictures of many codes: uint8 on the codes' device."""
    return torch.cat([to_bytes(decoder(part)) for part in torch.split(z, CHUNK)])
