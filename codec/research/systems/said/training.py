"""How SAID is trained: losses 6.1 to 6.4, one optimiser step after each glimpse."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Loss, Plan, Valued, random_batch
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.said.boxes import Boxes
from vbc.codec.research.systems.said.model import (
    GREY_VARIANCE,
    Canvas,
    Form,
    PatchVae,
    Said,
    enlarged,
    error_variance,
    latent_nats,
    seen,
    shrunk,
)

BATCH, RATE, RATE_END = 32, 1e-3, 1e-5
MOST_STEPS = 100_000
VAE_SHARE = 0.15
"""Part of a variant's time in which the VAE learns alone, from random boxes about errors: a VAE that knows
nothing spoils the canvas, and boxes that show nothing would be what is learned first. The price of KL rises
to 1 over its first half."""
OPAQUE_SHARE = 0.5
"""Part of the steps in which boxes are opaque and the VAE's likelihood is that of random boxes about errors:
before boxes are of use, alpha would learn to hide them, and the VAE to show what is blank."""
TRIES = 6
"""Boxes tried for each glimpse, the network's own among them."""
WANDER, WANDER_END = 0.35, 0.05
"""Deviation of centres and of logarithms of widths of the boxes tried, at the first step and at the last."""
PULL = 10.0
"""Weight of the squared distance to the best box tried."""


def glimpse_losses(model: Said, x: Tensor, n_glimpses: int, progress: float = 1.0) -> Iterator[Valued]:
    """The loss of each glimpse in turn, nats per picture, on pictures float [N, C, 64, 64] of 0..1.

    L_vae + L_res + L_pos, where the KL term of L_vae is L_kl as well. Each glimpse starts on a constant
    canvas. Where boxes are found by search, the glimpse network is drawn to the best of some boxes, which
    takes the place of its own; else it follows the gradient. progress: of the training, 0..1.
    """
    n, early = len(x), progress < OPAQUE_SHARE
    with torch.no_grad():
        canvas, _ = model.start(x, torch.randn(n, model.vae.latents, device=x.device))
    for _ in range(n_glimpses):
        before = error_variance(canvas.values, x)
        boxes = model.look(x, canvas)
        placing = boxes.position_nats().mean()
        position = placing.item()
        if model.form.placing == "search":
            deviation = WANDER * (WANDER_END / WANDER) ** progress
            best = best_about(model, x, canvas, boxes.detach(), deviation, early)
            placing = PULL * boxes.squared_distance(best).mean()
            boxes = best
        patch = seen(x, boxes)
        # the likelihood of what a box shows trains the VAE alone: the box is a constant there
        alone = seen(x, boxes_about(x - canvas.values)) if early else patch.detach()
        code = model.vae.encode(torch.cat((patch, alone)))
        values, logits = model.vae.decode(code.sample(torch.randn_like(code.mean)))
        after = model.put(canvas, boxes, (values[:n], logits[:n]), opaque=early)
        residual = 0.5 * x[0].numel() * (error_variance(after.values, x) / before).log().mean()
        nats, kl = coding_nats(alone, values[n:]), latent_nats(code)
        latents = kl[:n].mean() + (kl[n:].mean() if early else 0)
        log = {"residual": residual.item(), "patch": nats.item(), "kl": kl[:n].mean().item()}
        yield nats + latents + residual + placing, {**log, "position": position}
        canvas = after.detach()


@torch.no_grad()
def best_about(model: Said, x: Tensor, canvas: Canvas, boxes: Boxes, deviation: float, opaque: bool) -> Boxes:
    """For each picture the best by L_res + L_kl + L_pos of the given box and some about it. None lie
    elsewhere: drawn to now one object, now another, the network would aim between them."""
    n = len(x)
    tried = [boxes, *(boxes.wandering(deviation) for _ in range(TRIES - 1))]
    every = Boxes(*(torch.cat(parts) for parts in zip(*tried, strict=True)))
    pictures = x.repeat(TRIES, 1, 1, 1)
    code = model.vae.encode(seen(pictures, every))
    below = Canvas(canvas.values.repeat(TRIES, 1, 1, 1), canvas.scope.repeat(TRIES, 1, 1, 1))
    after = model.put(below, every, model.vae.decode(code.mean), opaque)
    nats = 0.5 * x[0].numel() * error_variance(after.values, pictures).log()
    nats = nats + latent_nats(code) + every.position_nats()
    best = nats.view(TRIES, n).argmin(0)
    return Boxes(*(part.view(TRIES, n, 2)[best, torch.arange(n, device=x.device)] for part in every))


def boxes_about(errors: Tensor) -> Boxes:
    """Random boxes whose centres are drawn in proportion to the squared error, float [N, C, H, W]."""
    n, _, height, width = errors.shape
    weight = errors.square().sum(1).flatten(1) + 1e-9
    at = torch.multinomial(weight, 1).squeeze(1)
    place = torch.stack((at % width, at // width), 1) + torch.rand(n, 2, device=errors.device)
    centre = 2 * place / torch.tensor([width, height], device=errors.device) - 1
    return Boxes(centre, 0.125 + 0.375 * torch.rand(n, 2, device=errors.device))


def coding_nats(patches: Tensor, decoded: Tensor) -> Tensor:
    """-ln p(patch | z) of 8x8 pictures, nats per picture: scalar. One empirical variance for the batch."""
    variance = (patches - decoded).square().mean() + GREY_VARIANCE
    return 0.5 * patches[0].numel() * (2 * math.pi * math.e * variance).log()


def vae_loss(vae: PatchVae, patches: Tensor, price: float = 1.0) -> Valued:
    """L_vae (6.1) of 8x8 pictures float [N, C, 8, 8], nats per picture. price: of a nat of KL."""
    code = vae.encode(patches)
    decoded, _ = vae.decode(code.sample(torch.randn_like(code.mean)))
    nats, latents = coding_nats(patches, decoded), latent_nats(code).mean()
    return nats + price * latents, {"patch": nats.item(), "kl": latents.item()}


def patches_about_errors(x: Tensor) -> Tensor:
    """What random boxes show where the enlarged 8x8 picture misses pictures float [N, C, 64, 64] most."""
    return seen(x, boxes_about(x - enlarged(shrunk(x), x.shape[-1])))


def trained(form: Form, images: Tensor, n_glimpses: int, seconds: float, setting: Setting, name: str) -> Said:
    """A model trained for some seconds on images uint8 [N, C, 64, 64]."""
    batches = random_batch(images, BATCH, setting.seed)
    plan = Plan(MOST_STEPS, BATCH, RATE, RATE_END, warmup=50, seed=setting.seed, log_every=50)

    def vae_of(patches: Callable[[Tensor], Tensor], name: str, share: float) -> PatchVae:
        def loss_of(vae: PatchVae, plan: Plan) -> Loss:
            def loss(x: Tensor, step: int) -> Valued:
                return vae_loss(vae, patches(x.float() / 255), min(1.0, 2 * step / plan.steps))

            return loss

        def make() -> PatchVae:
            return PatchVae(form.channels)

        return fit(make, loss_of, batches, plan, share * seconds, setting, name)

    vae = vae_of(patches_about_errors, "glimpse VAE", VAE_SHARE)
    base = vae_of(shrunk, "base VAE", VAE_SHARE) if form.base == "VAE" else None

    def make() -> Said:
        model = Said(form)
        model.vae.load_state_dict(vae.state_dict())
        if model.base is not None and base is not None:
            model.base.load_state_dict(base.state_dict())
            model.base.requires_grad_(False)
        return model

    def loss_of(model: Said, plan: Plan) -> Loss:
        def loss(x: Tensor, step: int) -> Iterator[Valued]:
            return glimpse_losses(model, x.float() / 255, n_glimpses, step / plan.steps)

        return loss

    share = 1 - VAE_SHARE * (1 if base is None else 2)
    return fit(make, loss_of, batches, plan, share * seconds, setting, name)
