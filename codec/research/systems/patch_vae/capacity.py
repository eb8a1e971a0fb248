"""Study `capacity`: what a code keeps when noise of known strength bounds it and not a KL term.

Thesis on patch-VAEs, section 4.1: Z = f(X) + n eps, where batch norm without affine part holds the variance
of every f_i at 1. Minimised is E[-log p(X|Z)], without a price for Z, as k such channels carry no more than
C = k/2 log2(1 + 1/n^2) bits. (The thesis' equation 4 lacks -log.) Claim: with pixels independent given Z, a
bit that many pixels share saves many bits, so Z takes what is shared widely; where blocks are modelled
exactly, it takes what blocks share.
"""

import math

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.data_sets import cifar
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.local_pixelcnn import to_blocks
from vbc.codec.research.parts.loop import Loss, Plan
from vbc.codec.research.parts.pictures import save_curves
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.patch_vae.model import (
    LN2,
    Form,
    PatchDecoder,
    PatchEncoder,
    form,
    plan_of,
    random_patches,
)

CHANNELS = 16
"""Gaussian channels, k."""
CAPACITIES = (8, 16, 32, 64)
FORMS = ("9|1 colour", "9|3")
"""Decoders with blocks of 1 and of 3. Both know how colours depend on each other: blocks alone differ."""
BLOCK = 3
"""Side of the blocks whose means and deviations are regressed from Z, for both decoders."""
FITTED, TESTED = 8192, 4096
"""Patches to fit the regressions to, and to test them and estimate the information with."""
UNITS = {
    "capacity": "bits",
    "information": "bits",
    "information at most": "bits",
    "R2 of block means": "",
    "R2 within blocks": "",
    "CE": "bits/dim",
}


def noise_variance(capacity: float, channels: int) -> float:
    """n^2 such that k channels of signal variance 1 have a capacity in bits."""
    return 1 / math.expm1(2 * LN2 * capacity / channels)


class CapacityCode(nn.Module):
    """Encoder with normalised outputs, noise, decoder. form: of the decoder. capacity: bits."""

    def __init__(self, form: Form, capacity: float, channels: int = CHANNELS):
        super().__init__()
        self.form, self.noise = form, math.sqrt(noise_variance(capacity, channels))
        self.encoder = PatchEncoder(form.patch, 3, channels)
        self.normalise = nn.BatchNorm1d(channels, affine=False)
        self.decoder = PatchDecoder(form, 3, channels)

    def signal(self, x: Tensor) -> Tensor:
        """f(x) of patches, uint8 [N, 3, p, p]: float32 [N, k], each dimension of variance 1."""
        f: Tensor = self.normalise(self.encoder(x).mean.flatten(1))
        return f

    def send(self, f: Tensor) -> Tensor:
        """Z: the signal with noise."""
        return f + self.noise * torch.randn_like(f)

    def bits_per_dimension(self, x: Tensor, z: Tensor) -> Tensor:
        """-log2 p(x|z) of a value: scalar."""
        return self.decoder.nats(x, z).mean() / (LN2 * x[0].numel())


def loss_of(model: CapacityCode, plan: Plan) -> Loss:
    """E[-log p(X|Z)], bits per dimension."""

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        return model.bits_per_dimension(x, model.send(model.signal(x))), {}

    return loss


def information(f: Tensor, z: Tensor, noise: float) -> float:
    """I(X;Z) in bits, estimated from signals f [N, k] and what each became, z [N, k]; never above log2 N."""
    z, f = z.double(), f.double()
    own = -(z - f).square().sum(1) / (2 * noise**2)
    parts = [-torch.cdist(rows, f).square() / (2 * noise**2) for rows in torch.split(z, 512)]
    mixed = torch.cat([torch.logsumexp(part, 1) for part in parts]) - math.log(len(f))
    return float((own - mixed).mean()) / LN2


def information_at_most(f: Tensor, noise: float) -> float:
    """The information of a Gaussian signal with the covariance of f [N, k], bits: no other signal has
    more."""
    spectrum = torch.linalg.eigvalsh(torch.cov(f.double().T)).clamp_min(0)
    return float(0.5 * torch.log2(1 + spectrum / noise**2).sum())


def block_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the blocks of patches and what remains within: float64 [N, values] of uint8 [N, 3, p, p]."""
    blocks = to_blocks(x, BLOCK).double()
    means = blocks.mean((2, 3), keepdim=True)
    return means.view(len(x), -1), (blocks - means).view(len(x), -1)


def explained(z: Tensor, target: Tensor, z_test: Tensor, target_test: Tensor) -> float:
    """R^2 on the test set, over all targets together, of a linear regression with offset fitted to the
    other."""
    ones = z.new_ones(len(z), 1), z_test.new_ones(len(z_test), 1)
    design, design_test = torch.cat((z, ones[0]), 1).double(), torch.cat((z_test, ones[1]), 1).double()
    weights = torch.linalg.lstsq(design, target).solution
    error = (target_test - design_test @ weights).square().sum()
    return float(1 - error / (target_test - target.mean(0)).square().sum())


@torch.no_grad()
def measure(model: CapacityCode, train: Tensor, test: Tensor, capacity: float, seed: int) -> dict[str, float]:
    """The figures of UNITS. train, test: patches, uint8 [N, 3, p, p]."""
    torch.manual_seed(seed)
    signals = [torch.cat([model.signal(part) for part in torch.split(x, 1024)]) for x in (train, test)]
    z, z_test = (model.send(f) for f in signals)
    parts = zip(block_parts(train), block_parts(test), strict=True)
    means, within = (explained(z.cpu(), a.cpu(), z_test.cpu(), b.cpu()) for a, b in parts)
    scaled = signals[1] / signals[1].std(0)  # batch norm's variances are those of training
    ce = [
        model.bits_per_dimension(x, code).item()
        for x, code in zip(torch.split(test, 512), torch.split(z_test, 512), strict=True)
    ]
    figures = (
        float(capacity),
        information(scaled, model.send(scaled), model.noise),
        information_at_most(scaled, model.noise),
        means,
        within,
        sum(ce) / len(ce),
    )
    return dict(zip(UNITS, figures, strict=True))


def run(setting: Setting) -> Result:
    """Train both decoders at every capacity."""
    split = cifar(setting.data)
    images = torch.cat((split.train, split.valid))
    seconds = setting.budget_s / (len(FORMS) * len(CAPACITIES))
    rows: dict[str, list[Row]] = {name: [] for name in FORMS}
    side = form(FORMS[0]).patch
    train = random_patches(images, side, FITTED, 0)(0).to(setting.device)
    test = random_patches(split.test, side, TESTED, 0)(0).to(setting.device)
    for name in FORMS:
        kind = form(name)
        plan = plan_of(kind, setting.seed)
        batches = random_patches(images, side, plan.batch, setting.seed)
        for capacity in CAPACITIES:

            def make(kind: Form = kind, capacity: int = capacity) -> CapacityCode:
                return CapacityCode(kind, capacity)

            label = f"{name}, {capacity} bits"
            model = fit(make, loss_of, batches, plan, seconds, setting, label.replace(",", ""))
            rows[name].append(Row(label, measure(model, train, test, capacity, setting.seed)))
    curves = {
        f"{name}: {part}": (list(map(float, CAPACITIES)), [row.figures[f"R2 {part}"] for row in rows[name]])
        for name in FORMS
        for part in ("of block means", "within blocks")
    }
    table = Table("Codes of known capacity, 9x9 patches of CIFAR", UNITS, [*rows[FORMS[0]], *rows[FORMS[1]]])
    pictures = save_curves(setting.out / "capacity.png", curves, "capacity, bits", "R2, linear from Z")
    return Result([table], effects_of(*rows.values()), notes(), pictures)


def effects_of(single: list[Row], blocks: list[Row]) -> list[Effect]:
    """Claims of section 4.1. single, blocks: rows of the decoders with blocks of 1 and of 3."""
    everything = [row.figures for row in (*single, *blocks)]
    worst = max(figures["information"] - figures["capacity"] for figures in everything)

    def parts(row: Row) -> tuple[float, float]:
        return row.figures["R2 of block means"], row.figures["R2 within blocks"]

    def lead(row: Row) -> float:
        means, within = parts(row)
        return means - within

    def shared(row: Row) -> float:
        """What block means have of both R2: a code that is trained less explains less of both."""
        means, within = (max(0.0, part) for part in parts(row))
        return means / max(means + within, 1e-12)

    pairs, leads = (
        ", ".join(
            f"{a.figures['capacity']:.0f} bits: {measure(a):.2f} and {measure(b):.2f}"
            for a, b in zip(single, blocks, strict=True)
        )
        for measure in (shared, lead)
    )
    return [
        Effect(
            "The information of Z is at most its capacity.",
            worst <= 0.1 and all(f["information at most"] <= f["capacity"] + 0.1 for f in everything),
            f"Estimated information minus capacity is at most {worst:.2f} bits over all models.",
        ),
        Effect(
            "Z tells more of what pixels of a block share than of how they differ.",
            all(shared(row) > 0.5 for row in (*single, *blocks)),
            f"R2 of block means over its sum with R2 within blocks, decoder's blocks of 1 and of 3: {pairs}.",
        ),
        Effect(
            "It does so more where the decoder models blocks of 3 exactly.",
            all(m(b) > m(a) for a, b in zip(single, blocks, strict=True) for m in (shared, lead)),
            f"The same shares, blocks of 1 and of 3: {pairs}; R2 of means less R2 within blocks: {leads}. "
            "Both measures must agree: which of them the claim means is open.",
        ),
    ]


def notes() -> list[str]:
    return [
        f"k = {CHANNELS}, signal variance 1; the noise gives the capacity.",
        f"The estimate of the information cannot exceed log2 {TESTED} = {math.log2(TESTED):.0f} bits. "
        "'At most' is the information of a Gaussian signal of the same covariance.",
        "R2: linear regression from Z, on test patches, over blocks of 3x3 for both decoders.",
    ]


STUDY = Study(
    about="codes bounded by a noisy channel's capacity: what they keep, by the decoder's blocks",
    source="patch-VAE thesis, section 4.1",
    budget="20m",
    run=run,
)
