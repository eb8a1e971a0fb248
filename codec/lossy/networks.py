"""The lossy levels in float, for training and for the encoder's analysis.

See docs/architecture.md, "Lossy levels".

Latents live on the 1/8 grid: the 192 coefficients of an orthonormal 8x8 DCT of three opponent colour planes,
corrected by a small network. Level 1 holds the 2x2 lowest frequencies, level 2 the rest of the 4x4 lowest,
level 3 all others. Level 1 is coded over interlaced grids of blocks, levels 2 and 3 each at once, given
everything below.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.exact.networks import PHASE_OFFSET, PHASES, logistic_nll
from vbc.codec.nets.qconv import ACTIVATION_STEP, QConv, QualityBias, round_ste

BLOCK = 8
N_LATENTS = 3 * BLOCK * BLOCK
LEVEL_LATENTS = (6, 42, 144)
LEVEL_START = (0, 6, 48, 192)
ENHANCE_PLANES = 14
CONTEXT_PLANES = 30
CONTEXT_HALO = 4
SYMBOL_GAIN = 8
"""A neighbour's symbol of 1 is an input of 8/16."""
STEP_OCTAVES = 3 / 64
"""Octaves of the quantiser step per unit of quality: 0..100 then spans about 0.05 to 2.4 bpp on
photographs."""
MEAN_UNIT = 4.0
"""A head's output of 1 is a mean of 4 latent units and a log-scale of 1 octave."""
LOG_SCALE_RANGE = (-2.0, 10.0)
"""Octaves of a latent's logistic scale, in latent units."""
INITIAL_STEP = 192.0
"""Quantiser step in RGB units at quality 0."""
LAGRANGE = 0.043
"""Lambda (MSE per subpixel and bit per pixel) over the squared step: 0.13 per sample as in H.264's reference
encoder, over 3."""


@functools.cache
def latent_order() -> list[tuple[int, int, int]]:
    """(colour plane, vertical frequency, horizontal frequency) of each latent.

    By level, then plane, then raster.
    """
    order = [(0, u, v) for u in range(2) for v in range(2)] + [(1, 0, 0), (2, 0, 0)]
    order += [(c, u, v) for c in (1, 2) for u in range(2) for v in range(2) if u or v]
    for lo, hi in ((2, 4), (4, 8)):
        for c in range(3):
            order += [(c, u, v) for u in range(hi) for v in range(hi) if max(u, v) >= lo]
    return order


def dct_matrix(n: int = BLOCK) -> Tensor:
    """Orthonormal DCT-II, float64 [frequency, position]."""
    k = torch.arange(n, dtype=torch.float64)
    m = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / (2 * n)) * math.sqrt(2 / n)
    m[0] /= math.sqrt(2)
    return m


def block_transform(planes: Tensor, basis: Tensor) -> Tensor:
    """DCT of float [N, 3, 8h, 8w] into latents [N, 192, h, w]. basis: `latent_basis()`."""
    n, c, height, width = planes.shape
    x = planes.view(n, c, height // BLOCK, BLOCK, width // BLOCK, BLOCK).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return (x.flatten(3).reshape(n, height // BLOCK, width // BLOCK, N_LATENTS) @ basis.T).permute(0, 3, 1, 2)


def inverse_block_transform(latents: Tensor, basis: Tensor) -> Tensor:
    """Invert `block_transform` (the basis is orthonormal)."""
    n, _, h, w = latents.shape
    x = (latents.permute(0, 2, 3, 1) @ basis).view(n, h, w, 3, BLOCK, BLOCK)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, h * BLOCK, w * BLOCK)


def latent_basis() -> Tensor:
    """Float32 [192 latents, 192 samples (plane, row, column)]: the separable DCT in latent order."""
    d = dct_matrix()
    rows = torch.zeros(N_LATENTS, 3, BLOCK, BLOCK, dtype=torch.float64)
    for i, (c, u, v) in enumerate(latent_order()):
        rows[i, c] = d[u][:, None] * d[v][None]
    return rows.flatten(1).float()


class Chain(nn.Module):
    """Hidden 3x3 layers and a head, with a bias that depends on quality and use.

    Loses `radius` positions on each side.
    """

    def __init__(
        self,
        planes: int,
        width: int,
        hidden: int,
        outputs: int,
        classes: int = 1,
        head_kernel: int = 1,
        zero: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(QConv(planes if i == 0 else width, width, 3) for i in range(hidden))
        self.head = QConv(width, outputs, head_kernel, head=True, zero=zero)
        self.condition = QualityBias(classes, width)
        self.radius = hidden + head_kernel // 2
        if not zero:
            with torch.no_grad():
                self.head.weight.mul_(0.1)

    def forward(self, planes: Tensor, q: Tensor, use: int = 0) -> Tensor:
        """planes: float [N, C, h+2r, w+2r], sixteenths. Returns [N, outputs, h, w]."""
        x = planes.contiguous(memory_format=torch.channels_last)
        extra: Tensor | None = self.condition(q, use)
        for layer in self.layers:
            x = layer(x, extra)
            extra = None
        out: Tensor = self.head(x)
        return out


def pad(x: Tensor, n: int) -> Tensor:
    """Replicate the border by n positions (float)."""
    return F.pad(x, (n, n, n, n), mode="replicate")


def compand(d: Tensor) -> Tensor:
    """Float twin of `exact.compand`, in sixteenths: slope 1 to 32, then 1/4, limited to -64..63."""
    m = d.abs()
    return ((torch.where(m <= 32, m, 24 + m / 4) * torch.sign(d)).clamp(-64, 63)) * ACTIVATION_STEP


def two_planes(d: Tensor) -> Tensor:
    """Each latent as a fine plane and a coarse one: [N, 2C, h, w], in sixteenths.

    Fine is in units of 1, limited to 64; coarse in units of 8.
    """
    d = torch.cat((d, d / 8), 1)
    return d.clamp(-64, 63) * ACTIVATION_STEP


def prior_planes(z: Tensor) -> Tensor:
    """Inputs of the priors from decoded latents [N, C, h+2r+2, w+2r+2].

    Means of 3x3 neighbours are taken off the DC planes.
    """
    dc = [i for i, (_, u, v) in enumerate(latent_order()[: z.shape[1]]) if u == v == 0]
    local = F.avg_pool2d(z[:, dc], 3, 1)
    inner = z[..., 1:-1, 1:-1]
    minus = torch.zeros_like(inner)
    minus[:, dc] = local
    return two_planes(inner - minus)


def parity(height: int, width: int) -> Tensor:
    """Boolean [h, w]: True where row + column is even."""
    return (torch.arange(height)[:, None] + torch.arange(width)[None]) % 2 == 0


def neighbour_planes(symbols: Tensor, log2_relative: Tensor) -> Tensor:
    """Inputs of the neighbour networks.

    Symbols known so far (others 0), and the scale over the step in quarter octaves.
    """
    planes = torch.cat((SYMBOL_GAIN * symbols, 4 * log2_relative), 1)
    return planes.clamp(-64, 63) * ACTIVATION_STEP


DC = (0, 4, 5)
AC = (1, 2, 3)


def _at(x: Tensor, dy: int, dx: int) -> Tensor:
    h, w = x.shape[-2:]
    return x[..., 1 + dy : h - 1 + dy, 1 + dx : w - 1 + dx]


def context_neighbours(phase: str, a: Tensor, d: Tensor | None) -> list[Tensor]:
    """The four nearest known blocks of a phase, each [N, 6, h-2, w-2]."""
    if phase == "D":
        return [_at(a, 0, 0), _at(a, 0, 1), _at(a, 1, 0), _at(a, 1, 1)]
    assert d is not None
    if phase == "H":
        return [_at(a, 0, 0), _at(a, 0, 1), _at(d, -1, 0), _at(d, 0, 0)]
    return [_at(a, 0, 0), _at(a, 1, 0), _at(d, 0, -1), _at(d, 0, 0)]


def context_planes(four: list[Tensor], base: Tensor) -> Tensor:
    """Inputs of level 1's networks.

    DC differences of three neighbours to the base (two planes), AC of all four.
    """
    dc = torch.cat([n[:, DC] - base[:, DC] for n in four[:3]], 1)
    ac = torch.cat([n[:, AC] for n in four], 1)
    return torch.cat((two_planes(dc), ac.clamp(-64, 63) * ACTIVATION_STEP), 1)


def context_base(four: list[Tensor]) -> Tensor:
    """Mean of the neighbours for the DC latents, zero for the others: [N, 6, h, w]."""
    base = torch.zeros_like(four[0])
    base[:, DC] = (four[0][:, DC] + four[1][:, DC] + four[2][:, DC] + four[3][:, DC]) / 4
    return base


@dataclass(frozen=True)
class Widths:
    """Channels of the networks' hidden layers."""

    analysis: int = 64
    context: int = 64
    prior: int = 96
    neighbours: int = 64
    enhance: int = 48


class LossyNet(nn.Module):
    """Analysis, priors, synthesis and quantiser steps of the three lossy levels."""

    basis: Tensor

    def __init__(self, widths: Widths | None = None) -> None:
        super().__init__()
        n = widths or Widths()
        first, second, third = LEVEL_LATENTS
        self.register_buffer("basis", latent_basis(), persistent=False)
        norm = torch.tensor([3.0, 2.0, 6.0]).sqrt()
        start = torch.tensor([math.log2(INITIAL_STEP / norm[c]) for c, _, _ in latent_order()])
        self.log2_step = nn.Parameter(start)
        self.analysis_in = nn.Conv2d(N_LATENTS, n.analysis, 1)
        self.analysis_mid = nn.Conv2d(n.analysis, n.analysis, 3)
        self.analysis_out = nn.Conv2d(n.analysis, N_LATENTS, 1)
        self.analysis_condition = QualityBias(1, n.analysis)
        for parameter in self.analysis_out.parameters():
            nn.init.zeros_(parameter)
        self.first_scale = nn.Parameter(torch.tensor([5.0, 4.0, 4.0, 3.0, 5.0, 5.0]))
        contexts = {p: Chain(CONTEXT_PLANES, n.context, 2, 2 * first, classes=2) for p in PHASES}
        self.context = nn.ModuleDict(contexts)
        self.prior2 = Chain(2 * first, n.prior, 3, 2 * second)
        self.prior3 = Chain(2 * (first + second), n.prior, 3, 2 * third)
        self.neighbours2 = Chain(2 * second, n.neighbours, 2, 2 * second, zero=True)
        self.neighbours3 = Chain(2 * third, n.neighbours, 2, 2 * third, zero=True)
        self.enhance = Chain(ENHANCE_PLANES, n.enhance, 4, 12, classes=3, head_kernel=3, zero=True)
        with torch.no_grad():
            for p in PHASES:
                self.context_chain(p).head.bias[first:] = 4.0
            self.prior2.head.bias[second:] = 3.0
            self.prior3.head.bias[third:] = 2.0

    def context_chain(self, phase: str) -> Chain:
        """Level 1's network of a phase."""
        chain = self.context[phase]
        assert isinstance(chain, Chain)
        return chain

    def step(self, q: Tensor) -> Tensor:
        """Quantiser steps [N, 192, 1, 1] of qualities q [N]."""
        return torch.exp2(self.log2_step[None] - q[:, None] * STEP_OCTAVES)[:, :, None, None]

    def analyse(self, planes: Tensor, q: Tensor) -> Tensor:
        """Latents [N, 192, h, w] of opponent planes (float [N, 3, 8h, 8w], centred on zero)."""
        z = block_transform(planes, self.basis)
        x = pad(z / 32, 1)
        x = F.relu(self.analysis_in(x) + self.analysis_condition(q))
        x = F.relu(self.analysis_mid(x))
        out: Tensor = z + 4 * self.analysis_out(x).float()
        return out

    def level1(self, z: Tensor, q: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised level-1 latents [N, 6, h, w] and their bits [N].

        Coded over interlaced grids of blocks.
        """
        return self._level1_grid(z, q, step, 0)

    def _level1_grid(self, z: Tensor, q: Tensor, step: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        if max(z.shape[-2:]) <= 4:
            mean = torch.zeros_like(z)
            return quantise(z, mean, self.first_scale.view(1, -1, 1, 1).expand_as(z), step)
        n = LEVEL_LATENTS[0]
        out = torch.empty_like(z)
        a, bits = self._level1_grid(z[..., ::2, ::2], q, step, depth + 1)
        out[..., ::2, ::2] = a
        n_h, n_w = a.shape[-2:]
        known = {"A": pad(a, CONTEXT_HALO)}
        for p in PHASES:
            dy, dx = PHASE_OFFSET[p]
            four = context_neighbours(p, known["A"], known.get("D"))
            base = context_base(four)
            planes = context_planes(four, base)[..., 1:-1, 1:-1]
            params = self.context_chain(p)(planes, q, min(depth, 1))
            target = z[..., dy::2, dx::2]
            mean = base[..., 3 : 3 + n_h, 3 : 3 + n_w] + MEAN_UNIT * params[:, :n]
            zq, b = quantise(target, mean, params[:, n:], step)
            bits = bits + b
            out[..., dy::2, dx::2] = zq
            known[p] = pad(zq, CONTEXT_HALO)
        return out, bits

    def prior(self, level: int, below: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log2 scale [N, C, h, w] of level 2 or 3 from the decoded latents below it."""
        net = self.prior2 if level == 2 else self.prior3
        out = net(prior_planes(pad(below, net.radius + 1)), q)
        c = LEVEL_LATENTS[level - 1]
        return MEAN_UNIT * out[:, :c], out[:, c:]

    def synthesise(self, latents: Tensor, q: Tensor, level: int) -> Tensor:
        """Opponent planes [N, 3, 8h, 8w] from all 192 latents.

        Those above `level` are the priors' means.
        """
        planes = inverse_block_transform(latents, self.basis)
        cells = F.pixel_unshuffle(planes, 2)
        x = enhance_planes(pad(cells, self.enhance.radius + 1), self.enhance.radius)
        return planes + F.pixel_shuffle(self.enhance(x, q, level - 1), 2)

    def forward(self, planes: Tensor, q: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Quantised latents and bits [N] of the three levels."""
        z = self.analyse(planes, q)
        step = self.step(q)
        first, second = LEVEL_START[1:3]
        z1, b1 = self.level1(z[:, :first], q, step[:, :first])
        z2, b2 = self.upper_level(2, z[:, first:second], z1, q, step[:, first:second])
        z3, b3 = self.upper_level(3, z[:, second:], torch.cat((z1, z2), 1), q, step[:, second:])
        return [z1, z2, z3], [b1, b2, b3]

    def upper_level(
        self, level: int, z: Tensor, below: Tensor, q: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantised latents of level 2 or 3 and their bits [N].

        Blocks of even parity first, the others given those too.
        """
        mean, log_scale = self.prior(level, below, q)
        first = parity(z.shape[-2], z.shape[-1]).to(z.device)
        symbols = round_ste((z - mean) / step)
        net = self.neighbours2 if level == 2 else self.neighbours3
        planes = neighbour_planes(symbols * first, log_scale - torch.log2(step))
        change = net(pad(planes, net.radius), q) * ~first
        c = LEVEL_LATENTS[level - 1]
        return quantise(z, mean + step * change[:, :c], log_scale + change[:, c:], step)

    def complete(self, latents: list[Tensor], q: Tensor) -> Tensor:
        """All 192 latents where only the first levels are given: the priors' means stand for the rest."""
        z = torch.cat(latents, 1)
        for level in range(len(latents) + 1, 4):
            z = torch.cat((z, self.prior(level, z, q)[0]), 1)
        return z


def enhance_planes(cells: Tensor, halo: int) -> Tensor:
    """Inputs of the enhancement network from 2x2 cells [N, 12, h+2(r+1), w+2(r+1)].

    Differences to the local mean, and the phase within the 8x8 block.
    """
    n, _, h, w = cells.shape
    mean = cells.view(n, 3, 4, h, w).mean(2)
    local = F.avg_pool2d(mean, 3, 1)
    diff = cells[..., 1:-1, 1:-1] - local.repeat_interleave(4, 1)
    rows, cols = torch.arange(h - 2) - halo, torch.arange(w - 2) - halo
    edges = (torch.where(((k & 3) == 0) | ((k & 3) == 3), 32, -32) for k in (rows, cols))
    edge_r, edge_c = (e.float() * ACTIVATION_STEP for e in edges)
    phase = torch.stack((edge_r[:, None].expand(h - 2, w - 2), edge_c[None].expand(h - 2, w - 2)))
    return torch.cat((compand(2 * diff), phase[None].expand(n, -1, -1, -1).to(diff)), 1)


def quantise(z: Tensor, mean: Tensor, log2_scale: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Quantised latents (straight-through) and bits per sample [N] of the residual to the mean.

    The rate is that of the residual with additive uniform noise
    (Balle et al. 2017, arXiv:1611.01704, section 3).
    """
    r = (z - mean) / step
    ls = log2_scale.clamp(*LOG_SCALE_RANGE) - torch.log2(step)
    noisy = r + torch.rand_like(r) - 0.5
    bits = logistic_nll(noisy, ls.clamp(-5, 12)).flatten(1).sum(1)
    return mean + round_ste(r) * step, bits
