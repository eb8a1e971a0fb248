"""The values that follow bins in float, as they are trained, and the rate that training minimises.

See docs/architecture.md, "Bins".
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.bitstream.container import VALUES_BOUND
from vbc.codec.exact.features import LOG_SCALE_RANGE
from vbc.codec.exact.values import VALUES_HALO, VALUES_HIDDEN, VALUES_PLANES, VALUES_WIDTH, value_planes
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.interlace import PHASE_OFFSET, PHASES
from vbc.codec.train.lossy_net import Chain, pad


class ValuesNet(nn.Module):
    """The three phases' networks."""

    def __init__(self, width: int = VALUES_WIDTH) -> None:
        super().__init__()
        self.chains = nn.ModuleDict(
            {p: Chain(VALUES_PLANES[p], width, VALUES_HIDDEN, 9, N_LEVEL_CLASSES) for p in PHASES}
        )

    def chain(self, phase: str) -> Chain:
        """The network of a phase."""
        chain = self.chains[phase]
        assert isinstance(chain, Chain)
        return chain


@dataclass(frozen=True)
class GridOfValues:
    """A grid after its bins: G, R and B of all positions, int8 [N, 3, h, w] of even sizes.

    offsets, scales: as `groups.Predictions`; of A they have no meaning. distances: how far values lie from
    the middles of their bins.
    """

    offsets: Tensor
    scales: Tensor
    distances: Tensor


def values_bits(net: ValuesNet, grid: GridOfValues, level_class: int) -> Tensor:
    """Bits of the values of a grid's new positions, summed, each phase knowing those before."""
    sets = {"A": (0, 0), **PHASE_OFFSET}

    def phases(plane: Tensor) -> dict[str, Tensor]:
        parts = {p: plane[..., dy::2, dx::2] for p, (dy, dx) in sets.items()}
        return {p: pad(part.float(), VALUES_HALO).to(torch.int8) for p, part in parts.items()}

    offsets, scales, distances = phases(grid.offsets), phases(grid.scales), phases(grid.distances)
    total = torch.zeros((), device=grid.offsets.device)
    inner = (..., slice(VALUES_HALO, -VALUES_HALO), slice(VALUES_HALO, -VALUES_HALO))
    for p in PHASES:
        planes = value_planes(p, distances, offsets, scales)
        out = net.chain(p)(planes.float(), level_class)
        own = (part[p][inner].float() for part in (offsets, scales, distances))
        total = total + phase_bits(out, *own).sum()
    return total


def phase_bits(out: Tensor, offsets: Tensor, scales: Tensor, distances: Tensor) -> Tensor:
    """Bits per position of the three channels of a phase: float [N, 3, h, w].

    out: of the network; offsets and scales in sixteenths, distances in pixel values, float [N, 3, h, w].
    """
    k = out[:, 6:9].clamp(-8, 8) / 4
    bits = []
    for c in range(3):
        mean = offsets[:, c] / 16 + out[:, c]
        for i in range(c):
            mean = mean + k[:, c - 1 + i] * distances[:, i]
        scale = (scales[:, c] / 16 + out[:, 3 + c]).clamp(*LOG_SCALE_RANGE)
        d = distances[:, c]
        away = d - mean
        bits.append(log_mass(-VALUES_BOUND - 0.5 - mean, VALUES_BOUND + 0.5 - mean, scale))
        bits[-1] = bits[-1] - log_mass(away - 0.5, away + 0.5, scale)
    return torch.stack(bits, 1) / math.log(2)


def log_mass(low: Tensor, high: Tensor, log2_scale: Tensor) -> Tensor:
    """Logarithm of what a logistic about 0 has between two bounds. Safe for every scale."""
    inv = torch.exp2(-log2_scale)
    a, b = high * inv, low * inv
    return F.logsigmoid(a) + F.logsigmoid(-b) + torch.log(-torch.expm1(b - a))
