"""Generators that are trained against a discriminator, and told by a frozen encoder what to show.

Zeng's thesis, sections 3.2 and 5.3.1 (equations 3.2, 3.3, 5.5). One module holds both networks, so the
common loop trains them, with its checkpoints and its log: Adam keeps its averages for each parameter by
itself, so one Adam over both networks is an optimiser for each. Both take their step at once, each on the
other as it was. Pictures are -1..1, float [N, C, S, S].
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.loop import Batches, Loss, Plan
from vbc.codec.research.parts.picture_vae import SLOPE, Decoder, Form, to_unit
from vbc.codec.research.run import Setting

Encode = Callable[[Tensor], Gaussian]
"""From pictures to the posterior of their codes, with gradients for the pictures."""

FIRST_DEVIATION = 0.02
"""Of the weights that a DCGAN's convolutions start with (Radford et al. 2016, arXiv:1511.06434)."""

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
ENTRY = 256
"""Units of the dense layer before a generator's decoder."""

N = TypeVar("N", bound=nn.Module)


class Discriminator(nn.Sequential):
    """Log-odds that a picture is real, float [N, 1]: strided convolutions and LeakyReLU, with batch norm as
    in a DCGAN, or with spectral norm instead."""

    def __init__(self, form: Form, spectral: bool = False) -> None:
        layers: list[nn.Module] = []
        for n_in, width in pairwise((form.channels, *form.widths)):
            plain = nn.Conv2d(n_in, width, 4, 2, 1)
            # the first convolution of a DCGAN has no batch norm: the level of a picture counts
            normed = [] if spectral or n_in == form.channels else [nn.BatchNorm2d(width)]
            layers += [spectral_norm(plain) if spectral else plain, *normed, nn.LeakyReLU(SLOPE)]
        n_core = form.core[0] * form.core[1] * form.core[2]
        last = nn.Linear(n_core, 1)
        super().__init__(*layers, nn.Flatten(), spectral_norm(last) if spectral else last)


class Generator(nn.Module):
    """A decoder with dense layers before it, which a GAN needs to be stable.

    start: the decoder to begin with, the dense layers then change nothing at first; a new one where None.
    """

    def __init__(self, form: Form, start: Decoder | None) -> None:
        super().__init__()
        last = nn.Linear(ENTRY, form.latents)
        self.entry = nn.Sequential(nn.Linear(form.latents, ENTRY), nn.ReLU(), last)
        self.decoder = Decoder(form)
        if start is not None:
            self.decoder.load_state_dict(start.state_dict())
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.decoder(z + self.entry(z))
        return made


class Adversaries(nn.Module):
    """A generator, from codes [N, latents] to pictures, and its discriminator."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


def dcgan_start(network: N) -> N:
    """The network with convolutions that start as a DCGAN's, N(0, 0.02)."""
    for weight in _weights(network, CONVOLUTIONS):
        nn.init.normal_(weight, 0, FIRST_DEVIATION)
    return network


def orthogonal_start(network: N) -> N:
    """The network with orthogonal weights in dense layers and convolutions."""
    for weight in _weights(network, (*CONVOLUTIONS, nn.Linear)):
        nn.init.orthogonal_(weight)
    return network


def _weights(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[Tensor]:
    """The weights of these layers; of one under spectral norm, those that it normalises."""
    for layer in network.modules():
        if isinstance(layer, kinds):
            normed = is_parametrized(layer, "weight")
            yield layer.get_parameter("parametrizations.weight.original" if normed else "weight")


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, the weights of a network get no gradients; what flows through it does."""
    taught = [p for p in network.parameters() if p.requires_grad]
    for parameter in taught:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in taught:
            parameter.requires_grad_(True)


def freeze(network: N) -> N:
    """The network as it is for good: in evaluation mode, without gradients for its weights."""
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.eval()


def adversarial_loss(
    pair: Adversaries, real: Tensor, z: Tensor, encode: Encode | None, weight: float
) -> tuple[Tensor, dict[str, float]]:
    """What both networks minimise together; each gets the gradient of its own part alone.

    The discriminator: -ln D(x) - ln(1 - D(G(z))). The generator: -ln D(G(z)) - weight * ln q(z | G(z)), the
    last term summed over latents. real: pictures -1..1. z: codes of the prior [N, latents]. encode: q; the
    second term is left out where it is None or weighs nothing. Logs both parts, the shares of real and of
    generated pictures that are told right, and ln q per latent.
    """
    made = pair.generator(z)
    judge, maker, log = contest(pair.discriminator, real, made)
    if encode is None or not weight:
        return judge + maker, log
    log_q = encode(made).log_prob(z).mean()
    return judge + maker - weight * log_q, {**log, "q": log_q.item() / z.shape[1]}


def contest(discriminator: nn.Module, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    """-ln D(real) - ln(1 - D(made)), which teaches the discriminator alone; -ln D(made), which teaches what
    made it alone; and what to log of them, as `adversarial_loss`."""
    on_real, on_made = discriminator(real).float(), discriminator(made.detach()).float()
    judge = F.softplus(-on_real).mean() + F.softplus(on_made).mean()
    with frozen(discriminator):
        maker = F.softplus(-discriminator(made).float()).mean()
    told = {"real": (on_real > 0).double().mean().item(), "made": (on_made < 0).double().mean().item()}
    return judge, maker, {"d": judge.item(), "g": maker.item(), **told}


def fit_generator(
    make: Callable[[], Adversaries],
    encode: Encode | None,
    weight: float,
    n_latents: int,
    batches: Batches,
    plan: Plan,
    seconds: float,
    setting: Setting,
    name: str,
    timed_as: str | None = None,
) -> nn.Module:
    """A generator trained against its discriminator for some seconds, in evaluation mode.

    batches: of real pictures, uint8. The other arguments are those of `adversarial_loss` and of `fit`.
    """

    def loss_of(pair: Adversaries, plan: Plan) -> Loss:
        def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
            z = torch.randn(len(x), n_latents, device=x.device)
            return adversarial_loss(pair, to_unit(x), z, encode, weight)

        return loss

    plan = replace(plan, beta1=0.5)
    pair = fit(make, loss_of, batches, plan, seconds, setting, name, timed_as)
    return freeze(pair.generator)
