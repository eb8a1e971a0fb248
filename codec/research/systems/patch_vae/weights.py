"""Weight maps of a probe: thesis on patch-VAEs, section 7.4: i(x, y) = sum_c max(0, w_cxy) for each
attribute."""

import math

import torch
from torch import Tensor

from vbc.codec.research.parts.toy_faces import BOXES


def maps_of_weights(weight: Tensor, latents: int) -> Tensor:
    """From a probe's weights [attributes, latents * side^2] to float32 [attributes, side, side]."""
    side = math.isqrt(weight.shape[1] // latents)
    return weight.view(len(weight), latents, side, side).clamp_min(0).sum(1)


def box_share(weights: Tensor, attribute: str, patch: int, stride: int) -> tuple[float, float, float]:
    """The share of an attribute's map [side, side] in its box, the box's share of all positions, and their
    ratio.

    A position lies in the box where the centre of its patch does.
    """
    left, top, right, bottom = BOXES[attribute]
    at = torch.arange(len(weights)) * stride + patch // 2
    inside = ((at >= top) & (at < bottom)).unsqueeze(1) & ((at >= left) & (at < right))
    mass = float(weights[inside].sum() / weights.sum().clamp_min(1e-12))
    area = float(inside.double().mean())
    return mass, area, mass / max(area, 1e-12)
