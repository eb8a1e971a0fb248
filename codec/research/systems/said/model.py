"""SAID's networks and one glimpse of it (thesis, sections 6.2.3 to 6.4, equations 6.1 to 6.5).

A canvas starts as the picture at 8x8, enlarged. Each glimpse looks through a box, takes what it sees as 8x8
pixels through a VAE of ten latents, and pastes it over the canvas. Values of pictures are 0..1 here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts.gaussians import Gaussian, kl, standard_normal
from vbc.codec.research.systems.said.boxes import Boxes
from vbc.kernels.research import glimpse

PATCH, LATENTS = 8, 10
"""Side of what a glimpse sees, and the numbers that stand for it."""
BASE = 8
"""Side of the picture that the canvas starts as."""
WIDTH, DENSE = 32, 128
GREY_VARIANCE = 1 / 12 / 255**2
"""Variance of rounding to whole grey values, of 0..1: no error is coded as if it were less."""
FIRST_LOG_VAR = -4.0
"""Of latents before training: noise of 0.14 leaves them readable, so that the decoder learns to use them."""
FIRST_SPREAD = 0.01
"""Deviation of the weights that boxes are read with: all first boxes are nearly the same."""
FIRST_SIDES = -1.2
"""As `Boxes.of` reads it: first boxes have sides of 0.28 of the picture's, about those of objects."""
OPAQUE = 2.0
"""Bias of the alpha channel: it starts at 0.88."""


@dataclass(frozen=True)
class Form:
    """A variant. channels: of the pictures. base: what the canvas starts as, the 8x8 picture itself or what
    a VAE of ten latents makes of it. placing: how the glimpse network learns, by gradient as in the thesis
    or from the best of some boxes that are tried."""

    channels: int
    alpha: bool = True
    scope: bool = True
    base: Literal["picture", "VAE"] = "picture"
    placing: Literal["search", "gradient"] = "search"


def scale_to_inputs(net: nn.Module) -> None:
    """Weights before training after He et al. 2015 (arXiv:1502.01852), which keep the scale of signals
    through layers with ReLU; torch's own let them fade, and a VAE of so many layers takes long to begin."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class PatchVae(nn.Module):
    """VAE of 8x8 pictures: four convolutions of 32 channels, strides 1, 2, 1, 2, and two dense layers; the
    decoder mirrors them and has one more channel, for alpha."""

    def __init__(self, channels: int, latents: int = LATENTS) -> None:
        super().__init__()
        flat = WIDTH * (PATCH // 4) ** 2
        self.channels, self.latents = channels, latents
        layers: list[nn.Module] = []
        for n_in, stride in ((channels, 1), (WIDTH, 2), (WIDTH, 1), (WIDTH, 2)):
            layers += [nn.Conv2d(n_in, WIDTH, 3, stride, 1), nn.ReLU()]
        dense = nn.Linear(flat, DENSE), nn.ReLU(), nn.Linear(DENSE, 2 * latents)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), *dense)
        self.decoder = nn.Sequential(
            nn.Linear(latents, DENSE),
            nn.ReLU(),
            nn.Linear(DENSE, flat),
            nn.ReLU(),
            nn.Unflatten(1, (WIDTH, PATCH // 4, PATCH // 4)),
            nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, WIDTH, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(WIDTH, channels + 1, 3, 1, 1),
        )
        scale_to_inputs(self)
        nn.init.constant_(dense[-1].bias[latents:], FIRST_LOG_VAR)

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x) of pictures float [N, C, 8, 8]."""
        return Gaussian.of(self.encoder(2 * x - 1))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures 0..1, [N, C, 8, 8], and logits of alpha, [N, 1, 8, 8]."""
        maps = self.decoder(z)
        return maps[:, : self.channels].sigmoid(), maps[:, self.channels :]


class GlimpseNet(nn.Module):
    """Three convolutions of stride 2 and two dense layers, from maps to a box. first: what it says of the
    box's sides before training, as `Boxes.of` reads it."""

    def __init__(self, n_maps: int, first: float = 0.0, side: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(n_maps, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (side // 8) ** 2, DENSE),
            nn.ReLU(),
        )
        scale_to_inputs(self)
        self.box = nn.Linear(DENSE, 4)
        nn.init.normal_(self.box.weight, 0, FIRST_SPREAD)
        nn.init.zeros_(self.box.bias)
        nn.init.constant_(self.box.bias[2:], first)

    def forward(self, maps: Tensor) -> Tensor:
        """The four numbers of each box, for `Boxes.of`: maps float [N, n_maps, side, side] to [N, 4]."""
        numbers: Tensor = self.box(self.layers(maps))
        return numbers


class Canvas(NamedTuple):
    """What is known of pictures: values 0..1, [N, C, 64, 64], and the scope, 1 where no box has been yet,
    [N, 1, 64, 64]."""

    values: Tensor
    scope: Tensor

    def detach(self) -> "Canvas":
        """The same canvas as a constant: no gradient reaches an earlier glimpse."""
        return Canvas(self.values.detach(), self.scope.detach())


class Said(nn.Module):
    """The glimpse network, the VAE of glimpses and, in one variant, the VAE of the 8x8 picture."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.net = GlimpseNet(form.channels + 1, FIRST_SIDES)
        self.vae = PatchVae(form.channels)
        self.base = PatchVae(form.channels) if form.base == "VAE" else None

    def start(self, x: Tensor, noise: Tensor | None = None) -> tuple[Canvas, Tensor]:
        """Canvases before the first glimpse, and the bits of each, [N]: eight for a value of the 8x8 picture,
        or its VAE's KL. x: float [N, C, 64, 64]. noise: of the base's latents, [N, 10]; none: the mean."""
        small = shrunk(x)
        bits = torch.full((len(x),), 8.0 * small[0].numel(), device=x.device)
        if self.base is not None:
            code = self.base.encode(small)
            bits = latent_nats(code) / torch.log(torch.tensor(2.0, device=x.device))
            small = self.base.decode(code.mean if noise is None else code.sample(noise))[0]
        return Canvas(enlarged(small, x.shape[-1]), torch.ones_like(x[:, :1])), bits

    def look(self, x: Tensor, canvas: Canvas) -> Boxes:
        """Where to look next."""
        scope = canvas.scope if self.form.scope else torch.ones_like(canvas.scope)
        return Boxes.of(self.net(torch.cat((x - canvas.values, scope), 1)))

    def put(
        self, canvas: Canvas, boxes: Boxes, decoded: tuple[Tensor, Tensor], opaque: bool = False
    ) -> Canvas:
        """The canvas with what the VAE decoded pasted into boxes, and the scope without the boxes (6.5).

        opaque: whether to leave alpha out.
        """
        patch, logits = decoded
        alpha = (logits + OPAQUE).sigmoid() if self.form.alpha and not opaque else torch.ones_like(logits)
        values, cover = pasted(canvas.values, boxes, patch, alpha)
        return Canvas(values, canvas.scope * (1 - cover))


def pasted(values: Tensor, boxes: Boxes, patch: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Canvases [N, C, H, W] with patches [N, C, 8, 8] in their boxes, as far as alpha [N, 1, 8, 8] lets them
    cover what is there, and where the boxes are, [N, 1, H, W]."""
    each, size = torch.arange(len(patch), device=patch.device), (len(patch), *values.shape[-2:])
    both, cover = glimpse.paste(torch.cat((alpha * patch, alpha), 1), boxes.transforms(), each, size)
    return (1 - both[:, -1:]) * values + both[:, :-1], cover


def seen(x: Tensor, boxes: Boxes) -> Tensor:
    """What boxes show of pictures, bilinear: [N, C, 8, 8]."""
    return glimpse.crop(x, boxes.transforms(), torch.arange(len(x), device=x.device), PATCH)


def shrunk(x: Tensor) -> Tensor:
    """Pictures at 8x8, in whole grey values: [N, C, 8, 8]."""
    return F.adaptive_avg_pool2d(x, BASE).mul(255).round().div(255)


def enlarged(small: Tensor, side: int) -> Tensor:
    """Pictures at another size, bilinear."""
    return F.interpolate(small, (side, side), mode="bilinear", align_corners=False)


def latent_nats(code: Gaussian) -> Tensor:
    """KL(q || N(0, I)) in nats: [N]."""
    return kl(code, standard_normal(len(code.mean), tuple(code.mean.shape[1:]), code.mean.device))


def error_variance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each pair of pictures and the variance of rounding: [N]."""
    return (a - b).square().flatten(1).mean(1) + GREY_VARIANCE
