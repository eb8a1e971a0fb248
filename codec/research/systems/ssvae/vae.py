"""The parts of a variational autoencoder: p(u), p(x|u), q(u|x).

It is the coarsest level of the ssVAE; the ssVAE without representations is this VAE (`model.py`).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.blocks import Block, Decoder, Encoder, Output, conv, gaussian_start
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.priors import Prior

LATENT_CHANNELS = 16
LATENT_SIDE = 8
"""Every latent variable is 16 x 8 x 8, whatever the picture's size."""
LATENT_SHAPE = (LATENT_CHANNELS, LATENT_SIDE, LATENT_SIDE)


class Size(NamedTuple):
    """How large a network is: growth of its first block and dense units in each block."""

    growth: int
    n_units: int


def n_halvings(side: int) -> int:
    """How often a picture's side is halved to get that of the latents. Raises ValueError where it is not
    8 times a power of two."""
    times = (side // LATENT_SIDE).bit_length() - 1
    if side != LATENT_SIDE << max(times, 0):
        raise ValueError(f"a side of {side} pixels is not {LATENT_SIDE} times a power of two")
    return times


def to_network(x: Tensor) -> Tensor:
    """uint8 to float32 in -1..1, laid out as the convolutions want it."""
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


class Posterior(nn.Module):
    """q(z|x): an encoder and the maps of a Gaussian of `n_latents` channels, 8 x 8 each."""

    def __init__(self, channels: int, side: int, size: Size, n_latents: int = LATENT_CHANNELS) -> None:
        super().__init__()
        self.encoder = Encoder(channels, size.growth, size.n_units, n_halvings(side))
        self.output = Output(self.encoder.n_out, gaussian_start(n_latents), kernel=1)

    def forward(self, x: Tensor) -> Gaussian:
        """x: uint8 [N, channels, side, side]."""
        return Gaussian.of(self.output(self.encoder(to_network(x))))


class Vae(nn.Module):
    """Prior, posterior and likelihood of pictures of one size, uint8 [N, C, side, side]."""

    def __init__(
        self,
        likelihood: ColourMixture,
        side: int,
        prior: Prior,
        encoder: Size,
        decoder: Size,
        more_decoder: Size | None = None,
    ) -> None:
        """more_decoder: one more block at the latents' size, before the decoder, which then gets twice the
        channels."""
        super().__init__()
        self.likelihood, self.side = likelihood, side
        self.prior = prior
        n_latents = prior.shape[0]
        self.posterior = Posterior(likelihood.channels, side, encoder, n_latents)
        self.first: nn.Module = nn.Identity()
        n_in = n_latents
        if more_decoder:
            block, n_in = Block(n_latents, *more_decoder), 2 * n_latents
            self.first = nn.Sequential(block, conv(block.n_out, n_in, 1), nn.ELU())
        self.decoder = Decoder(n_in, *decoder, n_halvings(side))
        self.output = Output(self.decoder.n_out, likelihood.start())

    def maps(self, u: Tensor) -> Tensor:
        """The maps of p(x|u): float32 [N, likelihood.n_maps, side, side]."""
        maps: Tensor = self.output(self.decoder(self.first(u)))
        return maps.contiguous()
