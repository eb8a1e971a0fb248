"""VAEs and the renderers trained on them (Zeng's thesis, chapter 3), on digits and on colour pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.adversarial import (
    Adversaries,
    Discriminator,
    Generator,
    dcgan_start,
    fit_generator,
    freeze,
    orthogonal_start,
)
from vbc.codec.research.parts.data_sets import cifar, mnist, padded
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Loss, Plan, random_batch
from vbc.codec.research.parts.picture_vae import Form, PictureVae, loss_of
from vbc.codec.research.run import Setting

BATCH = 64
VAE_PLAN = Plan(steps=5000, batch=BATCH, rate=1e-3, rate_end=1e-5, beta1=0.5, log_every=100)
"""Adam from 1e-3 and falling, not 2e-4: there are few steps."""
GAN_PLAN = Plan(steps=10_000, batch=BATCH, rate=2e-4, log_every=100)
CONTROL = 0.0
"""The lambda of a generator that no VAE guides."""


class Point(NamedTuple):
    """A renderer. weight: lambda. new: whether it starts from nothing, and not from the VAE's decoder."""

    beta: float
    weight: float
    new: bool = False


class Pictures(NamedTuple):
    """Training and test pictures, uint8 [N, C, 32, 32], and classes, int64 [N], where they are known."""

    train: Tensor
    test: Tensor
    train_labels: Tensor | None
    test_labels: Tensor | None


@dataclass(frozen=True)
class Renderers:
    """What a study trains. A VAE is trained for each beta of the points."""

    name: str
    form: Form
    load: Callable[[Setting], Pictures]
    points: tuple[Point, ...]

    @property
    def betas(self) -> tuple[float, ...]:
        return tuple(sorted({point.beta for point in self.points}))


def digits(setting: Setting) -> Pictures:
    """MNIST in a square of 32 pixels."""
    data = mnist(setting.data)
    train, test = padded(data.train, 32)[0], padded(data.test, 32)[0]
    return Pictures(train, test, data.train_labels, data.test_labels)


def colour_pictures(setting: Setting) -> Pictures:
    """CIFAR, whose classes are not at hand."""
    data = cifar(setting.data)
    return Pictures(torch.cat((data.train, data.valid)), data.test, None, None)


LAMBDAS = (0.1, 1.0, 5.0, 20.0, 100.0, CONTROL)
"""At beta 1."""
BETAS = (0.01, 5.0, 20.0)
"""At lambda 1."""
NEW = Point(1.0, 1.0, new=True)
POINTS = (*(Point(1.0, weight) for weight in LAMBDAS), *(Point(beta, 1.0) for beta in BETAS), NEW)
DIGITS = Renderers("MNIST", Form(1, 32, 8, (16, 32, 64)), digits, POINTS)
COLOURS = Renderers("CIFAR", Form(3, 32, 64, (24, 48, 96)), colour_pictures, POINTS)


def trained_vae(kind: Renderers, beta: float, train: Tensor, seconds: float, setting: Setting) -> PictureVae:
    """The VAE of a beta, frozen."""

    def loss_under(model: PictureVae, plan: Plan) -> Loss:
        return lambda x, step: loss_of(model, x, beta)

    batches = random_batch(train, BATCH, setting.seed)
    name = f"VAE beta {beta:g}"
    plan = replace(VAE_PLAN, seed=setting.seed)

    def make() -> PictureVae:
        return PictureVae(kind.form)

    return freeze(fit(make, loss_under, batches, plan, seconds, setting, name, timed_as="VAE"))


def trained_renderer(
    kind: Renderers,
    vae: PictureVae,
    point: Point,
    train: Tensor,
    seconds: float,
    setting: Setting,
) -> nn.Module:
    """The renderer of a point on the frozen VAE of its beta: from codes to pictures as -1..1.

    The discriminator has spectral norm: one with batch norm, as a DCGAN's, wins outright within a few hundred
    steps against a generator that a code holds, and its gradient then makes noise of the pictures.
    """

    def make() -> Adversaries:
        generator = Generator(kind.form, None if point.new else vae.decoder)
        judge = orthogonal_start(Discriminator(kind.form, spectral=True))
        return Adversaries(dcgan_start(generator) if point.new else generator, judge)

    batches = random_batch(train, BATCH, setting.seed)
    plan = replace(GAN_PLAN, seed=setting.seed)
    name = f"LSR beta {point.beta:g} lambda {point.weight:g}{' new' * point.new}"
    latents, q = kind.form.latents, vae.encoder.posterior
    return fit_generator(
        make, q, point.weight, latents, batches, plan, seconds, setting, name, timed_as="LSR"
    )
