"""Poses of digits: what their numbers do to a picture, and what is expected of them before a digit is seen.

Thesis on spatial transformers in VAEs, section V.iii. u = 0 is the upright pose of every form; where a prior
is over other numbers than the warp's own, those are a linear function of u whose offset is learned.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.transformers import Affine, ThinPlate, Transformer, Turn

FIRST_DEVIATION = 0.1
"""Standard deviation that a prior of the pose starts with, in half sides of a picture or radians: digits
differ by about as much."""

Warp = Literal["none", "affine", "turn", "thin-plate"]
Prior = Literal["flat", "upright", "learned", "full"]


@dataclass(frozen=True)
class PoseForm:
    """warp: what moves a picture; "turn" is the affine one of five degrees of freedom.

    prior: "flat", where the pose is a point and costs nothing; "upright", N(0, diag tau^2); "learned", N(nu,
    diag tau^2); "full", N(0, I) of `rank` numbers that all degrees of freedom are mixed from. tau, nu and the
    mixture are learned.
    """

    warp: Warp = "none"
    prior: Prior = "flat"
    rank: int = 0

    @property
    def n(self) -> int:
        """How many numbers u has."""
        freedom = {"none": 0, "affine": Affine.n, "turn": Turn.n, "thin-plate": ThinPlate.n}
        return self.rank if self.prior == "full" else freedom[self.warp]


class Pose(nn.Module):
    """The warp of a form and its prior, for square pictures [N, C, side, side]; u: float [N, n]."""

    zeros: Tensor

    def __init__(self, form: PoseForm, side: int) -> None:
        super().__init__()
        self.form = form
        kinds: dict[Warp, type[Affine] | type[ThinPlate]] = {
            "affine": Affine,
            "turn": Turn,
            "thin-plate": ThinPlate,
        }
        self.warp: Transformer | None = None if form.warp == "none" else kinds[form.warp](side, side)
        self.register_buffer("zeros", torch.zeros(1, form.n), persistent=False)
        if form.prior in ("upright", "learned"):
            self.log_tau = nn.Parameter(torch.full((form.n,), math.log(FIRST_DEVIATION)))
        if form.prior == "learned":
            self.nu = nn.Parameter(torch.zeros(form.n))
        if form.prior == "full":
            assert self.warp is not None
            self.mix = nn.Linear(form.rank, self.warp.n)
            nn.init.normal_(self.mix.weight, std=FIRST_DEVIATION)
            nn.init.zeros_(self.mix.bias)

    @property
    def flat(self) -> bool:
        """Whether a pose costs nothing, and q(u|x) is a point."""
        return self.form.prior == "flat"

    @property
    def first_log_sigma(self) -> float:
        """log of the deviation that posteriors start with: the prior's."""
        return 0.0 if self.form.prior == "full" else math.log(FIRST_DEVIATION)

    def prior(self) -> Gaussian:
        """p(u), [1, n]. Raises ValueError where it is flat over more than nothing."""
        n = self.form.n
        if self.flat and n:
            raise ValueError("a flat prior of the pose has no density")
        if self.form.prior in ("flat", "full"):
            return Gaussian(self.zeros, self.zeros)
        nu = self.nu.unsqueeze(0) if self.form.prior == "learned" else self.zeros
        return Gaussian(nu, 2 * self.log_tau.unsqueeze(0))

    def offsets(self, u: Tensor) -> Tensor:
        """The warp's own numbers: float [N, degrees of freedom]."""
        moved: Tensor = self.mix(u) if self.form.prior == "full" else u
        return moved

    def cells(self, u: Tensor) -> Tensor:
        """By how much an affine warp's matrix differs from the identity, [N, 6], or the offsets of a thin
        plate's control points, [N, 18]: in half sides of a picture."""
        offsets = self.offsets(u)
        if isinstance(self.warp, Turn):
            return (self.warp.matrices(offsets) - torch.eye(2, 3, device=u.device)).flatten(1)
        return offsets

    def move(self, images: Tensor, u: Tensor) -> Tensor:
        """Pictures in their pose."""
        if self.warp is None:
            return images
        moved: Tensor = self.warp(images, self.offsets(u))
        return moved

    def move_back(self, images: Tensor, u: Tensor) -> Tensor:
        """The inverse of `move`, for affine warps."""
        assert isinstance(self.warp, Affine), "a thin plate's warp has no inverse here"
        return self.warp.back(images, self.offsets(u))
