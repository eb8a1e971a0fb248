"""VAE, TVAE and DTVAE of digits (thesis on spatial transformers in VAEs, sections III and V).

TVAE: the code of a digit is z, from which the decoder draws it upright, and a pose u, by which a spatial
transformer moves the drawing. DTVAE: the transformer first moves the digit upright, the encoder sees that,
and the drawing is moved by the inverse. VAE: no pose.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.gaussians import Gaussian, kl, standard_normal
from vbc.codec.research.parts.importance import Codes, Views
from vbc.codec.research.systems.transformer_vae.poses import Pose, PoseForm

SIDE = 28
HIDDEN, LOCATOR = 256, 128
"""Units of the dense layers of encoder and decoder, and of the one that finds a DTVAE's pose."""
SMALLEST = 1e-6
"""Of probabilities of ink and not, and of deviations of z."""
LARGEST_LOG_SIGMA = 4.0
"""Ours, so that no step of a training makes a loss infinite."""


NO_POSE, AFFINE, THIN_PLATE = PoseForm(), PoseForm("affine"), PoseForm("thin-plate")


@dataclass(frozen=True)
class Form:
    """A model. z: numbers of the code without the pose. upright: whether the encoder sees the digit moved
    upright (DTVAE). from_identity: whether poses start upright or at random."""

    kind: str
    z: int
    pose: PoseForm = NO_POSE
    upright: bool = False
    from_identity: bool = True

    @property
    def total(self) -> int:
        """Numbers of the whole code."""
        return self.z + self.pose.n

    @property
    def name(self) -> str:
        """Such as "Aff-TVAE 8", 8 being the numbers of z."""
        return f"{self.kind} {self.z}"


def vae(z: int) -> Form:
    return Form("VAE", z)


def affine_tvae(z: int) -> Form:
    return Form("Aff-TVAE", z, AFFINE)


def thin_plate_tvae(z: int) -> Form:
    return Form("TPS-TVAE", z, THIN_PLATE)


def affine_dtvae(z: int) -> Form:
    return Form("Aff-DTVAE", z, AFFINE, upright=True)


KINDS: dict[str, Callable[[int], Form]] = {
    "VAE": vae,
    "Aff-TVAE": affine_tvae,
    "TPS-TVAE": thin_plate_tvae,
    "Aff-DTVAE": affine_dtvae,
}
"""The thesis' models, from the numbers of z; their poses cost nothing."""


class DigitModel(nn.Module):
    """A model of pictures uint8 [N, 1, 28, 28], whose values over 255 are probabilities of ink.

    Its two codes are z [N, Form.z] and u [N, PoseForm.n], which has no numbers in a VAE. `views` to `terms`
    are those of `parts.importance.LatentModel`.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        if form.upright and (not form.pose.n or form.pose.prior != "flat"):
            raise ValueError("an encoder of upright digits needs a pose, with a flat prior")
        self.form = form
        self.pose = Pose(form.pose, SIDE)
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        self.mean, self.log_sigma = nn.Linear(HIDDEN, form.z), nn.Linear(HIDDEN, form.z)
        self.decoder = nn.Sequential(
            nn.Linear(form.z, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, SIDE**2),
            nn.Sigmoid(),
            nn.Unflatten(1, (1, SIDE, SIDE)),
        )
        if form.pose.n:
            self.posed = nn.Linear(LOCATOR if form.upright else HIDDEN, form.pose.n)
        if form.upright:
            self.locator = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, LOCATOR), nn.ReLU())
        if not self.pose.flat:
            self.pose_log_sigma = nn.Linear(HIDDEN, form.pose.n)
        self._start()

    def _start(self) -> None:
        """First values as in Lasagne, Glorot's uniform ones and zeros; poses upright, if wanted."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer is not getattr(self.pose, "mix", None):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        if self.form.pose.n and self.form.from_identity:
            nn.init.zeros_(self.posed.weight)
        if not self.pose.flat:
            nn.init.zeros_(self.pose_log_sigma.weight)
            nn.init.constant_(self.pose_log_sigma.bias, self.pose.first_log_sigma)

    def encode(self, x: Tensor) -> tuple[Gaussian, Gaussian]:
        """q(z|x) and q(u|x), which is a point, of variance 0, where the pose's prior is flat."""
        ink = x.float() / 255
        if self.form.upright:
            at: Tensor = self.posed(self.locator(ink))
            return self._code(self.trunk(self.pose.move(ink, at))), _point(at)
        seen: Tensor = self.trunk(ink)
        if not self.form.pose.n:
            return self._code(seen), _point(seen[:, :0])
        if self.pose.flat:
            return self._code(seen), _point(self.posed(seen))
        return self._code(seen), _gaussian(self.posed(seen), self.pose_log_sigma(seen))

    def _code(self, seen: Tensor) -> Gaussian:
        return _gaussian(self.mean(seen), self.log_sigma(seen))

    def template(self, z: Tensor) -> Tensor:
        """Upright digits, probabilities of ink: float32 [N, 1, 28, 28]."""
        drawn: Tensor = self.decoder(z)
        return drawn

    def place(self, template: Tensor, u: Tensor) -> Tensor:
        """Upright digits in their pose."""
        return self.pose.move_back(template, u) if self.form.upright else self.pose.move(template, u)

    def decode(self, z: Tensor, u: Tensor) -> Tensor:
        """Probabilities of ink: float32 [N, 1, 28, 28]."""
        return self.place(self.template(z), u)

    def views(self, x: Tensor) -> list[Tensor]:
        return [x]

    def posteriors(self, views: Views) -> list[Gaussian]:
        return list(self.encode(views[-1]))

    def log_joint(self, views: Views, codes: Codes) -> dict[str, Tensor]:
        """Raises ValueError where the pose's prior is flat."""
        z, u = codes
        prior = standard_normal(1, z.shape[1:], z.device)
        return {
            "RE": -ink_nats(views[-1], self.decode(z, u)),
            "z": prior.log_prob(z),
            "u": self.pose.prior().log_prob(u),
        }

    def terms(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """RE, KL_z and KL_u, which is 0 where the pose's prior is flat. RE is of one draw of the codes."""
        z, u = self.encode(views[-1])
        drawn = self.decode(z.sample(generator), u.sample(generator))
        rate = torch.zeros(len(drawn), device=drawn.device) if self.pose.flat else kl(u, self.pose.prior())
        return {
            "RE": ink_nats(views[-1], drawn),
            "KL_z": kl(z, standard_normal(1, z.mean.shape[1:], z.mean.device)),
            "KL_u": rate,
        }

    def upright_samples(self, n: int, generator: torch.Generator) -> Tensor:
        """Upright digits of z from its prior: float32 [n, 1, 28, 28]."""
        z = torch.randn(n, self.form.z, generator=generator, device=generator.device)
        return self.template(z.to(self.mean.weight.device))


def ink_nats(x: Tensor, probability: Tensor) -> Tensor:
    """Cross entropy of pictures, uint8 [N, 1, 28, 28], and probabilities of ink: nats [N]."""
    p, ink = probability.clamp(SMALLEST, 1 - SMALLEST).flatten(1), x.flatten(1).float() / 255
    # with its gradient half the time of binary_cross_entropy
    return -(ink * p.log() + (1 - ink) * (1 - p).log()).sum(1)


def _gaussian(mean: Tensor, log_sigma: Tensor) -> Gaussian:
    return Gaussian(mean, 2 * log_sigma.clamp(math.log(SMALLEST), LARGEST_LOG_SIGMA))


def _point(at: Tensor) -> Gaussian:
    """All of the mass at one place."""
    return Gaussian(at, torch.full_like(at, -math.inf))
