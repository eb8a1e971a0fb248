"""The background-foreground VAE (Zeng's thesis, section 5.3): networks, losses, swaps.

VAE-F codes the foreground f, black outside of the mask; VAE-B codes the whole picture x given z_f, and pays
beta for each nat of z_b. What z_f tells for free z_b need not repeat. Pictures are uint8 [N, C, S, S].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.loop import Batches, Loss, Plan, batch_indices
from vbc.codec.research.parts.picture_vae import (
    CHUNK,
    Decoder,
    Encoder,
    Form,
    codes_of,
    drawn,
    message_nats,
    prior_nats,
    to_bytes,
    to_unit,
)
from vbc.codec.research.parts.shapes import Scenes
from vbc.codec.research.run import Setting

PLAN = Plan(steps=20_000, batch=64, rate=1e-3, rate_end=1e-5, beta1=0.5, log_every=100)


@dataclass(frozen=True)
class Kind:
    """A BFVAE. form: of its networks but for the latents. front, back: latents of z_f and z_b. beta: price of
    z_b. masked: whether E_f sees the mask as one more channel. joint: whether the gradient of VAE-B's loss
    enters E_f."""

    form: Form
    front: int
    back: int
    beta: float
    masked: bool = False
    joint: bool = True


class Bfvae(nn.Module):
    """Both VAEs."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        form = kind.form
        self.see_front = Encoder(replace(form, channels=form.channels + int(kind.masked), latents=kind.front))
        self.see_back = Encoder(replace(form, latents=kind.back))
        self.show_front = Decoder(replace(form, latents=kind.front))
        self.show = Decoder(replace(form, latents=kind.back + kind.front))

    def front_input(self, f: Tensor, mask: Tensor) -> Tensor:
        """What E_f sees, uint8: the foreground, and where it looks at masks, 255 for each pixel inside."""
        return torch.cat((f, 255 * mask), 1) if self.kind.masked else f

    def encode_front(self, f: Tensor, mask: Tensor) -> Gaussian:
        """q(z_f | f) of any number of pictures."""
        return codes_of(self.see_front, self.front_input(f, mask))

    def encode_back(self, x: Tensor) -> Gaussian:
        """q(z_b | x) of any number of pictures."""
        return codes_of(self.see_back, x)

    @torch.no_grad()
    def compose(self, z_b: Tensor, z_f: Tensor) -> Tensor:
        """Pictures of both codes: uint8."""
        z = torch.cat((z_b, z_f), 1)
        return torch.cat([to_bytes(self.show(part)) for part in torch.split(z, CHUNK)])

    def extract(self, x: Tensor) -> Tensor:
        """Backgrounds of pictures: composed with the code of an empty foreground. No mask is needed."""
        z_b = self.encode_back(x).mean
        return self.compose(z_b, self.empty().expand(len(z_b), -1))

    def empty(self) -> Tensor:
        """Mean code of no foreground: [1, front]."""
        form = self.kind.form
        f = torch.zeros((1, form.channels, form.side, form.side), dtype=torch.uint8)
        return self.encode_front(f, f[:, :1]).mean


def loss_of(model: Bfvae, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """L_f + L_b in nats per picture. batch: x, f and mask."""
    x, f, mask = batch
    q_f = model.see_front.posterior(to_unit(model.front_input(f, mask)))
    q_b = model.see_back.posterior(to_unit(x))
    z_f = drawn(q_f)
    told = z_f if model.kind.joint else z_f.detach()
    front = message_nats(f, model.show_front(z_f))
    whole = message_nats(x, model.show(torch.cat((drawn(q_b), told), 1)))
    kl_f, kl_b = prior_nats(q_f).mean(), prior_nats(q_b).mean()
    log = {"front": front.item(), "whole": whole.item(), "kl_f": kl_f.item(), "kl_b": kl_b.item()}
    return front + kl_f + whole + model.kind.beta * kl_b, log


def scene_batches(scenes: Scenes, size: int, seed: int) -> Batches:
    """Batches of x, f and mask."""

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.from_numpy(batch_indices(len(scenes.images), size, seed, step))
        return scenes.images[rows], scenes.foregrounds[rows], scenes.masks[rows]

    return batch


def trained(
    kind: Kind, batches: Batches, seconds: float, setting: Setting, name: str, timed_as: str | None = None
) -> Bfvae:
    """A BFVAE trained for some seconds, in evaluation mode."""

    def make() -> Bfvae:
        return Bfvae(kind)

    return fit(make, _loss_under, batches, replace(PLAN, seed=setting.seed), seconds, setting, name, timed_as)


def _loss_under(model: Bfvae, plan: Plan) -> Loss:
    return lambda batch, step: loss_of(model, batch)


Codes = Callable[[Scenes], Tensor]
"""From pictures to one of their mean codes."""


def codes(model: Bfvae) -> dict[str, Codes]:
    """Both codes of a model, by name."""
    return {
        "z_f": lambda scenes: model.encode_front(scenes.foregrounds, scenes.masks).mean,
        "z_b": lambda scenes: model.encode_back(scenes.images).mean,
    }
