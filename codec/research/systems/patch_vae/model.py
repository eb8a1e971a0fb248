"""patch-VAE p|i: a code z for patches of p x p whose content is decided by the decoder's blocks of i x i.

Thesis on patch-VAEs, section 5: given z the blocks are independent and the pixels within one follow each
other (`parts/local_pixelcnn.py`). What a block can predict by itself need not be in z: the larger i, the
fewer bits of z. The thesis gives no network; this one codes a patch with valid 3x3 convolutions, so that one
pass over a whole image codes its patches at every position.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts.blocks import Output
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.gaussians import Gaussian, kl, standard_normal
from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.local_pixelcnn import LocalPixelCNN, from_blocks, keep_scale, to_blocks
from vbc.codec.research.parts.loop import Loss, Plan
from vbc.codec.research.run import Setting

LN2 = float(np.log(2))
COMPONENTS = 5
"""Discretised logistics of a pixel."""
FEATURES = 32
"""Planes that the decoder makes of z for the pixels."""
ENCODER_WIDTHS = {3: (64,), 9: (48, 48, 64, 64), 15: (32, 32, 48, 48, 64, 64, 64)}
"""Channels of the valid convolutions, by patch side: narrow where the planes are large and cost most."""
BATCH = {3: 512, 9: 64, 15: 32}
"""Patches in a training step, by patch side: 4,600 to 7,200 pixels; in minutes of training more steps help
more than more patches."""
FIRST_LOG_VAR = -3.0
"""Log-variance of the codes before training: z says something from the first step."""
WARM_UP = 0.1
"""The share of training over which the weight of the KL term rises from 0 to 1."""


@dataclass(frozen=True)
class Form:
    """p|i: side of a patch and of the decoder's blocks. coefficients: whether a pixel's colours depend on
    each other given z; where not, each channel has a mixture of its own."""

    patch: int
    block: int
    coefficients: bool

    @property
    def name(self) -> str:
        """As in the thesis, with a word on colour where it differs from the default of the block's size."""
        return f"{self.patch}|{self.block}" + (" colour" if self.coefficients and self.block == 1 else "")


def form(name: str) -> Form:
    """The form of "9|3" or "9|1 colour"."""
    sides, _, colour = name.partition(" ")
    patch, block = map(int, sides.split("|"))
    return Form(patch, block, block > 1 or bool(colour))


THESIS = ("3|1", "9|1", "9|3", "15|1", "15|3", "15|5")
CONTROLS = ("3|1 colour", "9|1 colour", "15|1 colour")


class PatchEncoder(nn.Module):
    """Valid 3x3 convolutions from p x p pixels down to one position, 1x1 of 128, two heads; and a linear
    path.

    The linear path, one valid p x p convolution, finds the code of principal components in the first steps.
    With it and those of the decoder 9|1 gets in 100 steps where it gets in 300 without, of a few thousand.
    """

    def __init__(self, patch: int, channels: int, latents: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        *widths, top = ENCODER_WIDTHS[patch]
        for wider in widths:
            layers += [keep_scale(nn.Conv2d(width, wider, 3), 9 * width), nn.ReLU()]
            width = wider
        self.body = nn.Sequential(*layers)
        self.last = keep_scale(nn.Conv2d(width, top, 3), 9 * width)
        hidden = keep_scale(nn.Conv2d(top, 128, 1), top)
        self.heads = nn.Sequential(nn.ReLU(), hidden, nn.ReLU(), nn.Conv2d(128, 2 * latents, 1))
        self.linear = keep_scale(nn.Conv2d(channels, 2 * latents, patch), channels * patch**2)
        with torch.no_grad():
            self.linear.weight[latents:] = 0
            assert self.linear.bias is not None
            self.linear.bias[latents:] = FIRST_LOG_VAR

    def forward(self, x: Tensor, stride: int = 1) -> Gaussian:
        """uint8 [N, C, H, W] to codes of the patches at every `stride`-th of the H - p + 1 by W - p + 1
        positions: [N, k, rows, columns]."""
        v = x.float() / 127.5 - 1
        bent = F.conv2d(self.body(v), self.last.weight, self.last.bias, stride)
        return Gaussian.of(self.heads(bent) + F.conv2d(v, self.linear.weight, self.linear.bias, stride))


class Features(nn.Module):
    """From z [N, k] to [N, FEATURES, p, p]: a dense layer, a transposed convolution of stride 3; and a
    linear path.

    Mirrored transposed convolutions of the encoder instead take three times as long a step for 15 x 15.
    """

    def __init__(self, patch: int, latents: int):
        super().__init__()
        cells = patch // 3
        self.body = nn.Sequential(
            keep_scale(nn.Linear(latents, 48 * cells * cells), latents),
            nn.ReLU(),
            nn.Unflatten(1, (48, cells, cells)),
            keep_scale(nn.ConvTranspose2d(48, FEATURES, 3, stride=3), 48),
            nn.ReLU(),
            keep_scale(nn.Conv2d(FEATURES, FEATURES, 3, padding=1), 9 * FEATURES),
        )
        self.linear = keep_scale(nn.Linear(latents, FEATURES * patch * patch), 2 * latents)
        self.shape = (-1, FEATURES, patch, patch)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(z) + self.linear(z).view(self.shape)
        return y


class SinglePixels(nn.Module):
    """Parameters of pixels that are independent given z: from features [N, FEATURES, p, p] to [N, n_maps, p,
    p]."""

    def __init__(self, start: Tensor):
        super().__init__()
        hidden = keep_scale(nn.Conv2d(FEATURES, 64, 1), FEATURES)
        self.body = nn.Sequential(nn.ReLU(), hidden, nn.ReLU(), Output(64, start, 1))
        self.linear = Output(FEATURES, torch.zeros_like(start), 1)

    def forward(self, h: Tensor) -> Tensor:
        """See the class."""
        y: Tensor = self.body(h) + self.linear(h)
        return y


class PatchDecoder(nn.Module):
    """p(x|z) of a patch: features of z, then the pixels of each block from them."""

    def __init__(self, form: Form, channels: int, latents: int):
        super().__init__()
        self.form, self.channels = form, channels
        self.features = Features(form.patch, latents)
        self.mixture = ColourMixture(channels if form.coefficients else 1, COMPONENTS)
        self.start = self.mixture.start().repeat(1 if form.coefficients else channels)
        self.pixels: LocalPixelCNN | SinglePixels
        if form.block > 1:
            self.pixels = LocalPixelCNN(form.block, channels, FEATURES, self.start)
        else:
            self.pixels = SinglePixels(self.start)

    def nats(self, x: Tensor, z: Tensor) -> Tensor:
        """-log p(x|z) [N] of patches, uint8 [N, C, p, p], given codes [N, k]."""
        h = self.features(z)
        if not isinstance(self.pixels, LocalPixelCNN):
            return self._nats(self.pixels(h), x)
        blocks = to_blocks(x, self.form.block)
        params = self.pixels(blocks, to_blocks(h, self.form.block))
        return self._nats(params, blocks).view(len(x), -1).sum(1)

    @torch.no_grad()
    def sample(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Patches drawn from p(x|z): uint8 [N, C, p, p]."""

        def draw(params: Tensor) -> Tensor:
            return self._together(self.mixture.sample(self._apart(params), generator), len(params))

        h = self.features(z)
        if not isinstance(self.pixels, LocalPixelCNN):
            return draw(self.pixels(h))
        blocks = self.pixels.sample(to_blocks(h, self.form.block), draw)
        return from_blocks(blocks, self.form.patch, self.form.patch)

    @torch.no_grad()
    def expected(self, z: Tensor, n_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """E[x|z] in pixel values, float32 [N, C, p, p], and the variance of this estimate.

        Exact, and the variance 0, where pixels are independent; else the mean of samples.
        """
        if not isinstance(self.pixels, LocalPixelCNN):
            params = self.pixels(self.features(z))
            mean = self._together(self.mixture.mean(self._apart(params)), len(z)).float()
            return mean, torch.zeros_like(mean)
        draws = torch.stack([self.sample(z, generator).float() for _ in range(n_samples)])
        return draws.mean(0), draws.var(0) / n_samples

    def _nats(self, params: Tensor, x: Tensor) -> Tensor:
        nats = self.mixture.nats(self._apart(params), self._apart(x))
        return nats if self.form.coefficients else nats.view(len(x), -1).sum(1)

    def _apart(self, x: Tensor) -> Tensor:
        """Channels into the batch axis where they are independent; parameters are kept channel by channel."""
        return x if self.form.coefficients else x.reshape(len(x) * self.channels, -1, *x.shape[2:])

    def _together(self, x: Tensor, n: int) -> Tensor:
        return x if self.form.coefficients else x.reshape(n, self.channels, *x.shape[2:])


class PatchVAE(nn.Module):
    """Encoder and decoder of one form; p(z) is standard normal."""

    def __init__(self, form: Form, channels: int = 3, latents: int | None = None):
        super().__init__()
        self.form, self.channels = form, channels
        self.latents = latents or (32 if form.patch == 3 else 64)
        self.encoder = PatchEncoder(form.patch, channels, self.latents)
        self.decoder = PatchDecoder(form, channels, self.latents)

    @property
    def dimensions(self) -> int:
        """Values of a patch."""
        return self.channels * self.form.patch**2

    def encode(self, x: Tensor) -> Gaussian:
        """q(z|x) of patches, uint8 [N, C, p, p]; mean and log-variance [N, k]."""
        return Gaussian(*(t.flatten(1) for t in self.encoder(x)))

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(x|z) with one z of q(z|x), and KL(q(z|x)||p(z)): nats [N] each."""
        q = self.encode(x)
        z = q.sample(torch.randn_like(q.mean))
        return self.decoder.nats(x, z), kl(q, standard_normal(len(x), (self.latents,), z.device))


def loss_of(model: PatchVAE, plan: Plan) -> Loss:
    """-ELBO in nats of a patch, the KL term whose weight rises in the beginning."""

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        nats, rate = (t.mean() for t in model.terms(x))
        weight = min(1.0, step / max(1.0, WARM_UP * plan.steps))
        bits = {"z_bits": rate.item() / LN2, "ce_bpd": nats.item() / LN2 / model.dimensions}
        return (nats + weight * rate) / model.dimensions, bits

    return loss


def random_patches(images: Tensor, side: int, size: int, seed: int) -> Callable[[int], Tensor]:
    """Patches at positions drawn uniformly: from a step to uint8 [size, C, side, side]."""
    n, _, h, w = images.shape

    def batch(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        which, top, left = (
            torch.from_numpy(rng.integers(m, size=size)) for m in (n, h - side + 1, w - side + 1)
        )
        offsets = torch.arange(side)
        rows, columns = top[:, None, None] + offsets[:, None], left[:, None, None] + offsets
        return images[which[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()

    return batch


def plan_of(form: Form, seed: int, steps: int = 20_000) -> Plan:
    """Adam from 4e-3 to 1e-5 along a cosine, 20,000 steps at most: in minutes 4e-3 gets further than 1e-3."""
    batch = BATCH[form.patch]
    return Plan(
        steps, batch, rate=4e-3, rate_end=1e-5, warmup=min(20, steps), seed=seed, clip=1.0, log_every=100
    )


def trained(
    form: Form, images: Tensor, seconds: float, setting: Setting, name: str, latents: int | None = None
) -> PatchVAE:
    """The model of a form after some seconds on patches of uint8 images [N, C, H, W]."""
    plan = plan_of(form, setting.seed)
    batches = random_patches(images, form.patch, plan.batch, setting.seed)
    return fit(
        lambda: PatchVAE(form, images.shape[1], latents), loss_of, batches, plan, seconds, setting, name
    )


@torch.no_grad()
def rates(model: PatchVAE, patches: Tensor, seed: int) -> dict[str, float]:
    """Bits of z of a patch and of a pixel, bits per dimension of x given z and together (bits-back)."""
    torch.manual_seed(seed)
    parts = [model.terms(x) for x in torch.split(patches, 512)]
    nats, rate = (torch.cat(term).double().mean().item() / LN2 for term in zip(*parts, strict=True))
    ce = nats / model.dimensions
    return {
        "z": rate,
        "z per pixel": rate / model.form.patch**2,
        "CE": ce,
        "total": ce + rate / model.dimensions,
    }


@torch.no_grad()
def reconstruct(
    model: PatchVAE,
    images: Tensor,
    decode: Callable[[Tensor], tuple[Tensor, ...]],
    generator: torch.Generator,
) -> list[Tensor]:
    """Images decoded patch by patch from z of q(z|x), without overlap; borders that hold no whole patch are
    cut off.

    images: uint8 [N, C, H, W]. decode: from codes [M, k] to planes [M, C, p, p]. Returns [N, C, H', W'] of
    each.
    """
    side = model.form.patch
    whole = whole_patches(images, side)
    z = model.encode(to_blocks(whole, side)).sample(generator)
    return [from_blocks(planes, *whole.shape[-2:]) for planes in decode(z)]


def whole_patches(images: Tensor, side: int) -> Tensor:
    """Images without the rows and columns at the end that fill no patch."""
    height, width = (s // side * side for s in images.shape[-2:])
    return images[..., :height, :width].contiguous()
