"""The ssVAE with K representations (thesis chapter 5): K = 0 is a VAE, K = 1 the srVAE, K = 2 the
3-level one.

y_K = d_K(x), y_(K-1) = d_(K-1)(y_K), ..., y_1; y_(K+1) = x; z_0 = u.
Generative: p(u) p(y_1|u) prod_k p(z_k|y_k, z_(k-1)) p(y_(k+1)|y_k, z_k). Inference: q(u|y_1) and
q(z_k|y_(k+1)); the y are functions of x.

L = sum_k E log p(y_(k+1)|y_k, z_k) + E log p(y_1|u) - KL(q(u|y_1)||p(u))
    - sum_k E KL(q(z_k|y_(k+1)) || p(z_k|y_k, z_(k-1))),   k = 1..K (equation 5.4 with z_1's KL, which its
printed sum leaves out).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.blocks import Block, Decoder, Encoder, Output, gaussian_start
from vbc.codec.research.parts.gaussians import Gaussian, kl
from vbc.codec.research.parts.importance import Codes, Views, draw
from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.priors import Prior, RealNVP
from vbc.codec.research.systems.ssvae.representations import Representation, enlarged
from vbc.codec.research.systems.ssvae.vae import (
    LATENT_CHANNELS,
    LATENT_SHAPE,
    Posterior,
    Size,
    Vae,
    n_halvings,
    to_network,
)


class Sizes(NamedTuple):
    """Sizes of the networks: about a quarter of the released growth and half its units, and less where the
    picture is large, so that a step takes a tenth of a second.

    more_decoder: one more block before the decoder of u.
    """

    encode_u: Size = Size(8, 2)
    decode_u: Size = Size(16, 3)
    more_decoder: Size | None = None
    encode_z: Size = Size(4, 3)
    prior_y: Size = Size(8, 2)
    prior_u: Size = Size(16, 1)
    decode_z: Size = Size(16, 3)
    join: Size = Size(8, 1)


class ConditionalPrior(nn.Module):
    """p(z|y, w), w the code of the level below: y through an encoder, w through a block, both through
    another."""

    def __init__(self, channels: int, side: int, y_size: Size, w_size: Size) -> None:
        super().__init__()
        self.encoder = Encoder(channels, *y_size, n_halvings(side))
        self.code = Block(LATENT_CHANNELS, *w_size)
        self.both = Block(self.encoder.n_out + self.code.n_out, *w_size)
        self.output = Output(self.both.n_out, gaussian_start(LATENT_CHANNELS), kernel=1)

    def forward(self, y: Tensor, w: Tensor) -> Gaussian:
        """y: uint8 [N, channels, side, side]. w: float [N, 16, 8, 8]."""
        seen = torch.cat((self.encoder(to_network(y)), self.code(w)), 1)
        return Gaussian.of(self.output(self.both(seen)))


class Level(nn.Module):
    """One step from a representation y to the finer picture x: q(z|x), p(z|y, w), p(x|y, z)."""

    def __init__(
        self, y_channels: int, y_side: int, likelihood: ColourMixture, side: int, sizes: Sizes
    ) -> None:
        super().__init__()
        self.likelihood, self.side = likelihood, side
        self.y_channels, self.y_side = y_channels, y_side
        self.posterior = Posterior(likelihood.channels, side, sizes.encode_z)
        self.prior = ConditionalPrior(y_channels, y_side, sizes.prior_y, sizes.prior_u)
        self.decoder = Decoder(LATENT_CHANNELS, *sizes.decode_z, n_halvings(side))
        self.join = Block(self.decoder.n_out + y_channels, *sizes.join)
        self.output = Output(self.join.n_out, likelihood.start())

    def maps(self, y: Tensor, z: Tensor) -> Tensor:
        """The maps of p(x|y, z): float32 [N, likelihood.n_maps, side, side]."""
        seen = torch.cat((self.decoder(z), enlarged(to_network(y), self.side)), 1)
        maps: Tensor = self.output(self.join(seen))
        return maps.contiguous()


class SsVae(nn.Module):
    """The model for pictures uint8 [N, 3, side, side]. It has codes u, z_1, ..., z_K of 16 x 8 x 8 each."""

    def __init__(
        self,
        side: int,
        representations: Sequence[Representation],
        sizes: Sizes | None = None,
        prior: Prior | None = None,
        mixtures: int = 10,
    ) -> None:
        """representations: d_1..d_K, coarsest first; each is applied to what the next one gives, the last to
        x. prior: p(u), a RealNVP where it is None. mixtures: components of the pixels' likelihoods."""
        super().__init__()
        self.representations = tuple(representations)
        sizes = sizes or Sizes()
        sides, channels = [side], [3]
        for d in reversed(self.representations):
            sides.insert(0, sides[0] // d.divisor)
            channels.insert(0, d.channels)
        likelihoods = [ColourMixture(c, mixtures) for c in channels]
        prior = prior or RealNVP(LATENT_SHAPE)
        self.base = Vae(likelihoods[0], sides[0], prior, sizes.encode_u, sizes.decode_u, sizes.more_decoder)
        self.levels = nn.ModuleList(
            Level(channels[k], sides[k], likelihoods[k + 1], sides[k + 1], sizes)
            for k in range(len(self.representations))
        )

    def level(self, k: int) -> Level:
        """The step from y_k to y_(k+1), k = 1..K."""
        level = self.levels[k - 1]
        assert isinstance(level, Level)
        return level

    def views(self, x: Tensor) -> list[Tensor]:
        """y_1, ..., y_K, x."""
        views = [x]
        for d in reversed(self.representations):
            views.insert(0, d.make(views[0]))
        return views

    def posteriors(self, views: Views) -> list[Gaussian]:
        """q(u|y_1), q(z_1|y_2), ..., q(z_K|x)."""
        z = [self.level(k).posterior(views[k]) for k in range(1, len(views))]
        return [self.base.posterior(views[0]), *z]

    def priors(self, views: Views, codes: Codes) -> list[Gaussian]:
        """p(z_1|y_1, u), ..., p(z_K|y_K, z_(K-1))."""
        return [self.level(k).prior(views[k - 1], codes[k - 1]) for k in range(1, len(views))]

    def reconstruction(self, views: Views, codes: Codes) -> dict[str, Tensor]:
        """-log p of y_1, ..., y_K and x given codes and the coarser views, nats [N]."""
        nats = [self.base.likelihood.nats(self.base.maps(codes[0]), views[0])]
        for k in range(1, len(views)):
            level = self.level(k)
            nats.append(level.likelihood.nats(level.maps(views[k - 1], codes[k]), views[k]))
        return dict(zip(self.view_names(), nats, strict=True))

    def view_names(self) -> list[str]:
        """ "y" where there is one representation, "y1", "y2", ... where there are more; then "x"."""
        return [*(f"y{n}" for n in _numbers(len(self.levels))), "x"]

    def code_names(self) -> list[str]:
        """ "u", then "z" or "z1", "z2", ..."""
        return ["u", *(f"z{n}" for n in _numbers(len(self.levels)))]

    def log_joint(self, views: Views, codes: Codes) -> dict[str, Tensor]:
        pixels = {name: -nats for name, nats in self.reconstruction(views, codes).items()}
        z = [p.log_prob(code) for p, code in zip(self.priors(views, codes), codes[1:], strict=True)]
        latents = [self.base.prior.log_prob(codes[0]), *z]
        return {**pixels, **dict(zip(self.code_names(), latents, strict=True))}

    def terms(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """RE and KL of every level, nats [N]: KL_u from one sample, those of the z in closed form."""
        posteriors = self.posteriors(views)
        codes = draw(posteriors, generator)
        pixels = {f"RE_{name}": nats for name, nats in self.reconstruction(views, codes).items()}
        u = posteriors[0].log_prob(codes[0]) - self.base.prior.log_prob(codes[0])
        z = [kl(q, p) for q, p in zip(posteriors[1:], self.priors(views, codes), strict=True)]
        names = (f"KL_{name}" for name in self.code_names())
        return {**pixels, **dict(zip(names, (u, *z), strict=True))}


def _numbers(n: int) -> list[str]:
    return [""] if n == 1 else [str(k) for k in range(1, n + 1)]
