"""Several models trained for equally many steps on the same batches, and what is measured of each."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from vbc.codec.research.parts.blocks import initialise_from_batch, n_parameters
from vbc.codec.research.parts.data_sets import Split
from vbc.codec.research.parts.fit import Make, equal_steps
from vbc.codec.research.parts.importance import (
    add_up,
    bits_per_dim,
    importance_nats,
    log_weights,
    mean_terms,
)
from vbc.codec.research.parts.loop import (
    Batches,
    Loss,
    Plan,
    flip_and_shift,
    random_batch,
    train,
)
from vbc.codec.research.parts.measures import fine_detail, ms_ssim, psnr
from vbc.codec.research.run import Setting, clock
from vbc.codec.research.systems.ssvae.model import SsVae
from vbc.codec.research.systems.ssvae.modes import generate, modes
from vbc.codec.train.precision import autocast

TRAINING_SHARE = 0.65
"""Of a study's budget; the rest is for importance sampling and the other measurements."""
MANY_STEPS = 200_000
VALIDATION_IMAGES = 128
CHUNK = 64
"""Importance samples at once; fewer are slower, half as fast at 8."""
VALIDATIONS = 8
"""Validations in a training at most."""
FULL_BUDGET_S = 600.0
"""From here on a study takes the full sample sizes; below, it shows that its way runs."""


@dataclass(frozen=True)
class Entrant:
    """A model of a comparison. thesis: its figures there, by the columns of the table. quick: importance
    sampling of a quarter of the images; for controls, and where it would take the time of the training."""

    name: str
    make: Callable[[], SsVae]
    thesis: dict[str, float] = field(default_factory=dict)
    quick: bool = False


@dataclass(frozen=True)
class Samples:
    """How much is measured: test images for the likelihood with importance samples for each, images for
    everything else, images for a Frechet distance, repetitions of a timing."""

    images: int
    importance: int
    others: int
    generated: int
    timings: int


def samples(budget_s: float) -> Samples:
    """The sizes for a budget."""
    if budget_s >= FULL_BUDGET_S:
        return Samples(images=128, importance=512, others=512, generated=1000, timings=20)
    return Samples(images=4, importance=16, others=16, generated=64, timings=2)


@dataclass(frozen=True)
class Measured:
    """A trained model and its figures. nll: nats of each test image by importance sampling, [N]."""

    name: str
    model: SsVae
    steps: int
    figures: dict[str, float]
    nll: Tensor


def plan_of(setting: Setting, batch: int, steps: int = MANY_STEPS) -> Plan:
    """Training as in the thesis and its released code: AdaMax at 0.002, times 0.999999 at every step, down to
    0.0001; no warm-up, no clipping."""
    every = max(50, steps // VALIDATIONS // 50 * 50)
    return Plan(
        steps=steps,
        batch=batch,
        rate=0.002,
        rate_end=0.0001,
        optimiser="adamax",
        decay=0.999999,
        seed=setting.seed,
        bf16=True,
        valid_every=every,
    )


def seeded(setting: Setting, add: int = 0) -> torch.Generator:
    """Random numbers of the run, on its device."""
    return torch.Generator(setting.device).manual_seed(setting.seed + add)


def make_loss(model: SsVae, n_values: int) -> Loss:
    """The negative bound in bits per dimension; every term in nats per image is logged."""

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        terms = model.terms(model.views(x), torch.default_generator)
        total = add_up(terms).mean() / (n_values * math.log(2))
        return total, {name: float(nats.detach().mean()) for name, nats in terms.items()}

    return loss


def start_model(entrant: Entrant, batches: Batches, setting: Setting) -> SsVae:
    """The model before its first step, its first values taken from the first batch."""
    torch.manual_seed(setting.seed)
    model = entrant.make().to(device=setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    first = batches(0)
    assert isinstance(first, Tensor)
    first = first.to(setting.device)
    generator = seeded(setting)
    initialise_from_batch(model, lambda: model.terms(model.views(first), generator))
    started: SsVae = model
    return started


def train_equally(
    entrants: Sequence[Entrant], data: Split, setting: Setting, batch: int, seconds: float
) -> dict[str, tuple[SsVae, int]]:
    """Models by name and the steps they took, which are as many for all as fit into the seconds together."""
    n_values = data.train[0].numel()
    batches = random_batch(data.train, batch, setting.seed, flip_and_shift)

    def maker(entrant: Entrant) -> Make:
        def make() -> tuple[SsVae, Loss, Batches]:
            model = start_model(entrant, batches, setting)
            return model, make_loss(model, n_values), batches

        return make

    makes = {entrant.name: maker(entrant) for entrant in entrants}
    steps = equal_steps(makes, plan_of(setting, batch), seconds, setting)
    trained = {}
    for entrant in entrants:
        model = start_model(entrant, batches, setting)
        trained[entrant.name] = model, steps
        train(
            model,
            make_loss(model, n_values),
            batches,
            plan_of(setting, batch, steps),
            setting.out / f"{entrant.name}.safetensors",
            setting,
            validation(model, data.valid, setting, n_values),
        )
    return trained


def validation(model: SsVae, valid: Tensor, setting: Setting, n_values: int) -> Callable[[], float]:
    """The negative bound on the first validation images, bits per dimension; each time the same noise."""
    few = valid[:VALIDATION_IMAGES].to(setting.device)

    def figure() -> float:
        generator = seeded(setting)
        return bits_per_dim(mean_terms(model, few, generator)["total"], n_values)

    return figure


def measure(entrant: Entrant, model: SsVae, steps: int, test: Tensor, setting: Setting) -> Measured:
    """Bits per dimension by importance sampling ("nll") and as the bound ("elbo", same images and samples);
    RE and KL terms in nats per image, "RE" and "KL" their sums; parameters; seconds to generate."""
    size = samples(setting.budget_s)
    generator = seeded(setting)
    n_values = test[0].numel()
    n_images = size.images // 4 if entrant.quick else size.images
    test = test.to(setting.device)
    with frozen(), autocast(setting.device):
        weights = log_weights(model, test[:n_images], size.importance, generator, CHUNK)
        terms = mean_terms(model, test[: size.others], generator)
    nll = importance_nats(weights)
    sums = {
        kind: sum(value for key, value in terms.items() if key.startswith(f"{kind}_"))
        for kind in ("RE", "KL")
    }
    terms.pop("total")
    figures = {
        "nll": bits_per_dim(float(nll.mean()), n_values),
        "elbo": bits_per_dim(-float(weights.double().mean()), n_values),
        **sums,
        **terms,
        "parameters": float(n_parameters(model)),
        "seconds_1": seconds_to_generate(model, 1, size.timings, setting),
        "seconds_20": seconds_to_generate(model, 20, max(1, size.timings // 5), setting),
        "steps": float(steps),
        "iw_images": float(n_images),
    }
    return Measured(entrant.name, model, steps, figures, nll)


def seconds_to_generate(model: SsVae, n: int, runs: int, setting: Setting) -> float:
    """Mean seconds of processor time to generate n pictures; on CUDA, of the clock."""
    generator = seeded(setting)
    with frozen():
        generate(model, n, generator)
        started = clock(setting.device)
        for _ in range(runs):
            generate(model, n, generator).cpu()
        return (clock(setting.device) - started) / runs


def frozen() -> AbstractContextManager[None]:
    """Where weights do not change: those under weight norm are computed once."""
    return parametrize.cached()


def add_figures(measured: Measured, figures: dict[str, float]) -> Measured:
    """More figures of the same model."""
    return replace(measured, figures={**measured.figures, **figures})


def shown_again(model: SsVae, x: Tensor, setting: Setting) -> dict[str, Tensor]:
    """What every mode of the model makes of pictures, by the mode's name: uint8 as x, on the CPU."""
    there = x.to(setting.device)
    with frozen():
        return {
            name: torch.cat([mode(model, part, seeded(setting)).cpu() for part in torch.split(there, 32)])
            for name, mode in modes(model).items()
        }


def alike(a: Tensor, x: Tensor) -> dict[str, float]:
    """Means over images of PSNR in dB, MS-SSIM and energy of fine detail."""
    return {
        "psnr": float(psnr(a, x).clamp_max(99).mean()),
        "ms_ssim": float(ms_ssim(a, x).mean()),
        "fine_detail": float(fine_detail(a).mean()),
    }


MODE_UNITS = {
    "psnr": "dB, mean over images",
    "ms_ssim": "",
    "fine_detail": "squared pixel values",
    "values": "numbers sent",
}


@dataclass(frozen=True)
class Difference:
    """Mean difference a - b over the same test images, bits per dimension, with its standard error."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it is beyond two standard errors."""
        return abs(self.mean) > 2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f} bpd"


def nll_difference(a: Measured, b: Measured, n_values: int) -> Difference:
    """nll of a less that of b, on the images that both were measured on. The error is that over test images;
    training noise is not in it."""
    n = min(len(a.nll), len(b.nll))
    each = (a.nll[:n] - b.nll[:n]) / (n_values * math.log(2))
    error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return Difference(float(each.mean()), error)
