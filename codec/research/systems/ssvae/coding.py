"""The ssVAE as a coder: its levels for bits-back coding, and what quantised latents show and cost."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vbc.codec.research.parts.bits_back import (
    CodedModel,
    Density,
    FlowDensity,
    GaussianDensity,
    ImageLevel,
    LatentLevel,
    MixtureDensity,
    PixelSteps,
    by_channel,
)
from vbc.codec.research.parts.gaussians import Gaussian, standard_normal
from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.priors import MixtureOfGaussians, Prior, RealNVP
from vbc.codec.research.systems.ssvae.model import SsVae

Known = dict[str, Tensor]


def coded_model(model: SsVae, x: Tensor) -> CodedModel:
    """The model's levels in the order u, y_1, z_1, ..., x for pictures of the shape of x, [N, 3, H, W]."""
    views, codes = model.view_names(), model.code_names()
    shapes = [_one(view) for view in model.views(x[:1])]
    device = str(next(model.parameters()).device)
    base, shape = model.base, (1, *model.base.prior.shape)

    def picture(
        name: str, likelihood: ColourMixture, maps: Callable[[Known], Tensor], given: tuple[str, ...]
    ) -> ImageLevel:
        of = shapes[views.index(name)]

        def steps(known: Known) -> PixelSteps:
            here = maps(known)
            return by_channel(of, lambda image, c: likelihood.masses(here, image.to(here.device), c))

        return ImageLevel(name, of, steps, given)

    def step_up(k: int) -> list[LatentLevel | ImageLevel]:
        y, w, z, finer, level = views[k - 1], codes[k - 1], codes[k], views[k], model.level(k)
        latent = LatentLevel(
            z,
            shape,
            lambda known: GaussianDensity(level.prior(known[y], known[w])),
            lambda known: level.posterior(known[finer]),
            (y, w),
            (finer,),
        )
        return [latent, picture(finer, level.likelihood, lambda k: level.maps(k[y], k[z]), (y, z))]

    u = LatentLevel(
        "u",
        shape,
        lambda known: density(base.prior, device),
        lambda known: base.posterior(known[views[0]]),
        (),
        (views[0],),
    )
    levels: list[LatentLevel | ImageLevel] = [u]
    levels.append(picture(views[0], base.likelihood, lambda known: base.maps(known["u"]), ("u",)))
    for k in range(1, len(views)):
        levels += step_up(k)
    return CodedModel(levels, lambda image: dict(zip(views, model.views(image), strict=True)), device)


def density(prior: Prior, device: str) -> Density:
    """A prior as the coder sees it."""
    if isinstance(prior, RealNVP):
        return FlowDensity(prior.couplings(), device)
    if isinstance(prior, MixtureOfGaussians):
        variances = torch.nn.functional.softplus(prior.raw_variances)
        return MixtureDensity(torch.full((len(prior.means),), 1.0), prior.means, variances.log())
    return GaussianDensity(standard_normal(1, prior.shape, torch.device(device)))


def gaussian_bits(z: Tensor, p: Gaussian, step: float) -> Tensor:
    """-log2 of the mass that a Gaussian puts on the bins of width `step` around z: [N]."""
    scale = torch.exp(-0.5 * p.log_var.double())
    distance = (z.double() - p.mean.double()).abs()
    upper, lower = (step / 2 - distance) * scale, (-step / 2 - distance) * scale  # both in the lower tail
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    log_mass = log_upper + torch.log(-torch.expm1((log_lower - log_upper).clamp_max(-1e-12)))
    nats: Tensor = -log_mass.flatten(1).sum(1)
    return nats / math.log(2)


class Kept(NamedTuple):
    """Pictures from what is kept, uint8 [N, 3, H, W], and its bits for each, [N]."""

    pictures: Tensor
    n_bits: Tensor


@torch.no_grad()
def keep_quantised(model: SsVae, x: Tensor, n_codes: int, step: float) -> Kept:
    """RS1, RS2, ... with real costs: the posteriors' means of the first n codes, rounded to multiples of
    `step`.

    u is charged the density of the flow times the volume of its bin; z_k the mass of its bin under
    p(z_k|y_k, z_(k-1)), with y_k as the receiver has it. Codes that are not kept stand at their prior means,
    so that a receiver shows the same picture each time.
    """
    posteriors = model.posteriors(model.views(x))
    u = torch.round(posteriors[0].mean / step) * step
    volume = u[0].numel() * math.log2(step)
    bits = -model.base.prior.log_prob(u).double() / math.log(2) - volume
    picture, code = model.base.likelihood.mode(model.base.maps(u)), u
    for k in range(1, len(posteriors)):
        level = model.level(k)
        prior = level.prior(picture, code)
        if k < n_codes:
            code = torch.round(posteriors[k].mean / step) * step
            bits = bits + gaussian_bits(code, prior, step)
        else:
            code = prior.mean
        picture = level.likelihood.mode(level.maps(picture, code))
    return Kept(picture, bits)


@torch.no_grad()
def keep_view(model: SsVae, x: Tensor, step: float | None, generator: torch.Generator) -> Kept:
    """SR (step None) and CR for K = 1: y is sent exactly, at its bits under the model with u's given back;
    for CR z as well, rounded to multiples of `step`."""
    views = model.views(x)
    terms = model.terms(views, generator)
    bits = (terms["RE_y"] + terms["KL_u"]).double() / math.log(2)
    level, y = model.level(1), views[0]
    prior = level.prior(y, model.posteriors(views)[0].mean)
    z = prior.mean
    if step is not None:
        z = torch.round(level.posterior(x).mean / step) * step
        bits = bits + gaussian_bits(z, prior, step)
    return Kept(level.likelihood.mode(level.maps(y, z)), bits)


def _one(view: Tensor) -> tuple[int, int, int, int]:
    """The shape of a single picture."""
    _, c, h, w = view.shape
    return 1, c, h, w
