"""VAE and beta-VAE with one code for the whole image: what patch codes are compared with.

Thesis on patch-VAEs, section 5 and tables 2 to 4, network "as Higgins et al. 2016": four convolutions of 4x4
with stride 2, batch norm, a dense layer of 256, the latents, and the mirror of it. The variance of the
Gaussian pixels is not stated: here 1 on [0, 1] data for beta-VAEs, one learned number for VAEs.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.gaussians import Gaussian, kl, standard_normal
from vbc.codec.research.parts.loop import Loss, Plan, random_batch
from vbc.codec.research.run import Setting

WIDTHS = (32, 32, 64, 64)
DENSE = 256
BATCH = 64
BETA = 250.0
LAYERS = ("conv 1", "conv 2", "conv 3", "conv 4", "dense", "z")
"""Names of what `GlobalVAE.layers` gives."""


@dataclass(frozen=True)
class GlobalForm:
    """Latents of the code and the weight of its KL term; above 1 the pixels' variance is 1, else learned."""

    latents: int
    beta: float = 1.0

    @property
    def name(self) -> str:
        """As in the thesis."""
        return f"{'beta-' if self.beta > 1 else ''}VAE_{self.latents}d"


THESIS = (GlobalForm(32), GlobalForm(256), GlobalForm(4096), GlobalForm(32, BETA), GlobalForm(256, BETA))


class GlobalVAE(nn.Module):
    """side: of the square images, a multiple of 16."""

    def __init__(self, form: GlobalForm, side: int, channels: int = 3):
        super().__init__()
        if side % 16:
            raise ValueError(f"four strides of 2 need a side that is a multiple of 16, not {side}")
        self.form, self.dimensions = form, channels * side * side
        sizes = (channels, *WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(sizes)
        )
        inner = (WIDTHS[-1], side // 16, side // 16)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(inner), DENSE), nn.ReLU())
        self.code = nn.Linear(DENSE, 2 * form.latents)
        back: list[nn.Module] = [
            nn.Linear(form.latents, DENSE),
            nn.ReLU(),
            nn.Linear(DENSE, math.prod(inner)),
            nn.ReLU(),
            nn.Unflatten(1, inner),
        ]
        for a, b in pairwise(WIDTHS[::-1]):
            back += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.decoder = nn.Sequential(*back, nn.ConvTranspose2d(WIDTHS[0], channels, 4, 2, 1))
        self.log_var = nn.Parameter(
            torch.full((), -2.0 if form.beta == 1 else 0.0), requires_grad=form.beta == 1
        )

    def layers(self, x: Tensor) -> list[Tensor]:
        """uint8 [N, C, H, W] to the outputs of the layers named in LAYERS; z is the mean of q(z|x)."""
        y = x.float() / 255
        found = []
        for layer in self.convolutions:
            y = layer(y)
            found.append(y)
        found.append(self.dense(y))
        return [*found, self.code(found[-1])[:, : self.form.latents]]

    def encode(self, x: Tensor) -> Gaussian:
        """q(z|x) of uint8 [N, C, H, W]: mean and log-variance [N, latents]."""
        y = x.float() / 255
        for layer in self.convolutions:
            y = layer(y)
        return Gaussian.of(self.code(self.dense(y)))

    def decode(self, z: Tensor) -> Tensor:
        """E[x|z] on the scale 0..1, float32 [N, C, H, W]."""
        x: Tensor = self.decoder(z)
        return x

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-log density of x given one z of q(z|x), and KL(q(z|x)||p(z)): nats [N] each."""
        q = self.encode(x)
        mean = self.decode(q.sample(torch.randn_like(q.mean)))
        density = Gaussian(mean, self.log_var.expand_as(mean))
        prior = standard_normal(len(x), q.mean.shape[1:], x.device)
        return -density.log_prob(x.float() / 255), kl(q, prior)


def loss_of(model: GlobalVAE, plan: Plan) -> Loss:
    """-log p(x|z) + beta KL, nats of an image over its values."""

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        nats, rate = (t.mean() for t in model.terms(x))
        return (nats + model.form.beta * rate) / model.dimensions, {"z_bits": rate.item() / math.log(2)}

    return loss


def plan_of(seed: int, steps: int = 20_000) -> Plan:
    """Adam from 1e-3 along a cosine: Higgins et al. take 1e-4, for a hundred times as many steps."""
    return Plan(steps=steps, batch=BATCH, rate=1e-3, rate_end=1e-5, seed=seed, clip=100.0, log_every=100)


def trained(form: GlobalForm, images: Tensor, seconds: float, setting: Setting, name: str) -> GlobalVAE:
    """The model of a form after some seconds on square uint8 images [N, C, side, side]."""
    plan = plan_of(setting.seed)
    batches = random_batch(images, plan.batch, setting.seed)
    side, channels = images.shape[-1], images.shape[1]
    return fit(lambda: GlobalVAE(form, side, channels), loss_of, batches, plan, seconds, setting, name)


@torch.no_grad()
def code_bits(model: GlobalVAE, images: Tensor) -> float:
    """M: mean KL(q(z|x)||N(0, I)) of uint8 images [N, C, H, W], bits."""
    rates = []
    for x in torch.split(images, 256):
        q = model.encode(x)
        rates.append(kl(q, standard_normal(len(x), q.mean.shape[1:], x.device)))
    return torch.cat(rates).double().mean().item() / math.log(2)
