"""Accounting of a VAE's bits (patch-VAE thesis, section 4.2): its identities, estimated on trained models.

The thesis derives them and measures none. Small dense VAEs of binarised MNIST, one a beta; the "data" of the
identities are the test digits measured on, each with the same probability, so that H[X] = log N and the
ideal decoder Q(x | z), proportional to q(z | x), are known.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts import code_metrics, pictures
from vbc.codec.research.parts.data_sets import mnist
from vbc.codec.research.parts.fit import fit_betas
from vbc.codec.research.parts.loop import Plan, random_batch
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table

BETAS = (0.5, 1.0, 2.0, 4.0)
UNITS, HIDDEN = 10, 256
BATCH, RATE, STEPS = 100, 1e-3, 20_000
N_DATA = 1000
"""Digits that are the data of the identities."""
DRAWS = 5
"""Codes drawn of each digit."""
ERRORS = 4.0
"""An identity holds where its two sides differ by at most so many standard errors of the estimate."""


class DigitVae(nn.Module):
    """Two dense layers of 256 on either side of ten units; Bernoulli pixels."""

    def __init__(self, n_pixels: int = 784) -> None:
        super().__init__()
        self.encoder = _dense(n_pixels, 2 * UNITS)
        self.decoder = _dense(UNITS, n_pixels)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Binary digits, [N, pixels], to mean and log-variance [N, 10]."""
        mean, log_var = self.encoder(x.float()).chunk(2, 1)
        return mean, log_var.clamp(-12, 12)

    def log_p(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_n | z_m) in nats of every digit and every code: [M, N]. x: [N, pixels]. z: [M, 10]."""
        logits: Tensor = self.decoder(z)
        return logits @ x.float().T - F.softplus(logits).sum(1, keepdim=True)


def _dense(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_out)
    )


def log_normal(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, exp(log_var)) of each value."""
    return -0.5 * ((z - mean) ** 2 * torch.exp(-log_var) + log_var + math.log(2 * math.pi))


def loss_of(model: DigitVae, x: Tensor, beta: float) -> tuple[Tensor, dict[str, float]]:
    """-log p(x | z) + beta KL in nats per digit; x: uint8 [N, pixels], 0 and 1."""
    mean, log_var = model.encode(x)
    z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
    nats = F.binary_cross_entropy_with_logits(model.decoder(z), x.float(), reduction="sum") / len(x)
    kl = code_metrics.kl_of_units(mean, log_var).sum(1).mean()
    return nats + beta * kl, {"nats": nats.item(), "kl": kl.item()}


@torch.no_grad()
def identities(model: DigitVae, x: Tensor) -> dict[str, float]:
    """Both sides of the identities (a) and (b), in bits per digit; standard errors of the differences.

    x: uint8 [N, pixels]. (a) E KL(q(z|x) || p(z)) = I(X; Z) + KL(q(z) || p(z)). (b) H[X] + E KL(Q(X|Z) ||
    P(X|Z)) + KL(q(z) || p(z)) = E[-log p(x|z)] + E KL(q(z|x) || p(z)).
    """
    mean, log_var = model.encode(x)
    closed = code_metrics.kl_of_units(mean, log_var).sum(1)
    parts = [_terms(model, x, mean, log_var, seed) for seed in range(DRAWS)]
    information, prior, decoder, distortion = (torch.cat(part) for part in zip(*parts, strict=True))
    kl = closed.repeat(DRAWS)
    entropy = math.log(len(x))
    a, b = information + prior - kl, entropy + decoder + prior - distortion - kl
    nats = {
        "KL": kl.mean(),
        "I": information.mean(),
        "mismatch": prior.mean(),
        "decoder": decoder.mean(),
        "distortion": distortion.mean(),
        "gap a": a.mean(),
        "error a": a.std() / math.sqrt(len(a)),
        "gap b": b.mean(),
        "error b": b.std() / math.sqrt(len(b)),
    }
    return {name: value.item() / math.log(2) for name, value in nats.items()}


def _terms(
    model: DigitVae, x: Tensor, mean: Tensor, log_var: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For one code of each digit, [N] each: log q(z|x) / q(z), log q(z) / p(z), the divergence of the ideal
    decoder from the model's, -log p(x|z)."""
    z = code_metrics.sampled(mean, log_var, seed)
    each = log_normal(z.unsqueeze(1), mean, log_var).sum(2)  # [code, digit]
    own = each.diagonal()
    aggregate = torch.logsumexp(each, 1) - math.log(len(x))
    zero = torch.zeros_like(z)
    prior = log_normal(z, zero, zero).sum(1)
    log_ideal = torch.log_softmax(each, 1)
    log_p = model.log_p(x, z)
    divergence = (log_ideal.exp() * (log_ideal - log_p)).sum(1)
    return own - aggregate, aggregate - prior, divergence, -log_p.diagonal()


@torch.no_grad()
def channels(model: DigitVae, x: Tensor) -> list[dict[str, float]]:
    """Identity (e) unit by unit, in bits: each scaled to mean 0 and variance 1 over the data.

    KL: its mean, which is then -E[log sigma^2] / 2. C: log(1 / E[sigma^2]) / 2, the capacity. I: the
    information about the digit.
    """
    mean, log_var = model.encode(x)
    total = mean.var(0, unbiased=False) + log_var.exp().mean(0)
    scaled, narrow = (mean - mean.mean(0)) / total.sqrt(), log_var - total.log()
    closed = code_metrics.kl_of_units(scaled, narrow).mean(0)
    found = []
    for unit in range(mean.shape[1]):
        z = torch.cat([code_metrics.sampled(scaled[:, unit], narrow[:, unit], seed) for seed in range(DRAWS)])
        each = log_normal(z.unsqueeze(1), scaled[:, unit], narrow[:, unit])  # [code, digit]
        zero = torch.zeros_like(z)
        # as what the mismatch leaves of KL: a smaller error than that of the information's own average
        mismatch = torch.logsumexp(each, 1) - math.log(len(x)) - log_normal(z, zero, zero)
        nats = {
            "KL": closed[unit],
            "C": -0.5 * narrow[:, unit].exp().mean().log(),
            "I": closed[unit] - mismatch.mean(),
        }
        found.append({name: value.item() / math.log(2) for name, value in nats.items()})
    return found


def run(setting: Setting) -> Result:
    """Train a model for each beta; measure the identities on each, the channels at beta 1."""
    digits = mnist(setting.data)
    binary, test = ((x.flatten(1) > 127).to(torch.uint8) for x in (digits.train, digits.test[:N_DATA]))
    whole = Plan(STEPS, BATCH, RATE, rate_end=1e-5, seed=setting.seed, log_every=500)
    batch = random_batch(binary, BATCH, setting.seed)
    figures, units = {}, []
    steps, models = fit_betas(DigitVae, loss_of, batch, whole, BETAS, setting, "digits")
    for beta, model in models:
        figures[beta] = identities(model, test.to(setting.device))
        if beta == 1:
            units = channels(model, test.to(setting.device))
    points = [(figures[beta]["KL"], figures[beta]["distortion"]) for beta in BETAS]
    names = ("KL", "I", "mismatch", "gap a", "error a", "distortion", "decoder", "gap b", "error b")
    tables = [
        Table(
            "Identities (a) and (b), per digit",
            dict.fromkeys(names, "bits"),
            [Row(f"beta {b:g}", f) for b, f in figures.items()],
        ),
        Table(
            "Channels at beta 1, each of unit variance (e)",
            dict.fromkeys(("KL", "C", "I"), "bits"),
            [Row(f"unit {n}", f) for n, f in enumerate(units)],
        ),
    ]
    notes = [
        f"{steps} steps of {BATCH} digits a model. The data are {len(test)} test digits: H[X] is "
        f"{math.log2(len(test)):.2f} bits, which bounds I. {DRAWS} codes a digit; errors are standard ones.",
    ]
    kl, distortion = ([point[n] for point in points] for n in (0, 1))
    curves = {"betas " + ", ".join(f"{beta:g}" for beta in BETAS): (kl, distortion)}
    drawn = pictures.save_curves(
        setting.out / "rate_distortion.png", curves, "KL [bits]", "-log p(x | z) [bits]"
    )
    return Result(tables, effects(figures, units), notes, drawn)


def effects(figures: dict[float, dict[str, float]], units: list[dict[str, float]]) -> list[Effect]:
    """The identities and claims (a) to (e)."""
    held = [
        (name, all(abs(f[f"gap {name}"]) <= ERRORS * f[f"error {name}"] for f in figures.values()))
        for name in ("a", "b")
    ]
    worst = {name: max(abs(f[f"gap {name}"]) for f in figures.values()) for name, _ in held}
    errors = {name: max(f[f"error {name}"] for f in figures.values()) for name, _ in held}
    slopes = [
        (
            low,
            high,
            (figures[high]["distortion"] - figures[low]["distortion"])
            / (figures[low]["KL"] - figures[high]["KL"]),
        )
        for low, high in pairwise(BETAS)
    ]
    total = {name: sum(unit[name] for unit in units) for name in ("KL", "C", "I")}
    texts = (
        "E KL = I(X; Z) + KL(q(z) || p(z))",
        "excess code length = decoder's imperfection + prior's mismatch",
    )
    return [
        *(
            Effect(
                f"({name}) {text}",
                found,
                f"the sides differ by at most {worst[name]:.3f} bits, standard error {errors[name]:.3f}",
            )
            for (name, found), text in zip(held, texts, strict=True)
        ),
        Effect(
            "(c) at beta a bit of the code must save beta bits of reconstruction",
            all(low <= slope <= high for low, high, slope in slopes),
            "; ".join(f"{slope:.2f} between beta {low:g} and {high:g}" for low, high, slope in slopes),
        ),
        Effect(
            "(d) an all-powerful decoder leaves the code unused",
            None,
            "decoders here have independent pixels; the patch-VAE's larger blocks are the test",
        ),
        Effect(
            "(e) as the thesis has it: the capacity C bounds E KL from above",
            all(unit["KL"] <= unit["C"] for unit in units),
            f"E KL is {total['KL']:.2f} bits in all, C {total['C']:.2f}, I {total['I']:.2f}",
        ),
        Effect(
            "(e) put right by Jensen: E KL is at least C, unit by unit",
            all(unit["KL"] >= unit["C"] - 1e-4 for unit in units),
            f"smallest excess {min(unit['KL'] - unit['C'] for unit in units):.4f} bits, "
            f"largest {max(unit['KL'] - unit['C'] for unit in units):.3f}",
        ),
    ]


STUDY = Study(
    about="Accounting of a VAE's bits: the identities estimated, Jensen's direction put right",
    source="patch-VAE thesis, section 4.2",
    budget="6m",
    run=run,
)
