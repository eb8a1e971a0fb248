"""Coding of the lossy levels in integers, both directions in one traversal (docs/format.md, "Lossy levels").

Latents are int16 [1, C, h, w] in eighths of a latent unit, on the grid of 8x8 blocks. Samples are int32 in
sixteenths of a pixel value.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.colour import opponent_to_rgb, rgb_to_opponent
from vbc.codec.entropy.coder import Coder
from vbc.codec.entropy.tensor_coder import NO_TABLE, TensorCoder
from vbc.codec.exact.networks import PHASE_OFFSET, PHASES, compand
from vbc.codec.lossy.networks import (
    AC,
    BLOCK,
    CONTEXT_HALO,
    DC,
    INITIAL_STEP,
    LAGRANGE,
    LEVEL_LATENTS,
    LEVEL_START,
    N_LATENTS,
    STEP_OCTAVES,
    SYMBOL_GAIN,
    block_transform,
    context_neighbours,
    latent_order,
)
from vbc.codec.nets.int_nets import IntChain, exact_product
from vbc.codec.tiles import blocks

BASE_SIDE = 4
"""The coarsest grid of blocks in level 1 has no side above this and is coded without context."""
CELLS = BLOCK // 2
"""Cells of 2x2 pixels along a block."""
CODING_BLOCK = 128
"""Side of a coding block in 8x8 blocks: 1024 pixels."""
LATENT_MIN, LATENT_MAX = -32768, 32767
TARGET_UNIT = 16
N_SCALES = 48
"""Tables per level: quarter octaves of the residual's scale over the step, from 2^-4."""
SCALE_MIN = -64
RATE_WEIGHT = (1.0, 0.55, 0.55)
"""Of the encoder's rounding, by level: lambda over the one of training. 0.55 is best on validation tiles;
level 1 gives a little more, so that the first picture comes early."""
SILENT_CLASSES = 3
"""Scales below 2^-3.4 of the step are not coded: a symbol other than 0 would cost 7 bits and more, which
its squared error is hardly ever worth, while even a sure 0 costs 0.006 bits and its share of decoding."""
SYMBOL_LIMIT = 2047
"""Largest magnitude of a latent's symbol: the coarsest step times this, and the finest latent, fit 32
bits."""


@dataclass(frozen=True)
class LossyModel:
    """What the lossy levels need in integers, and the encoder's analysis in float."""

    context: dict[str, IntChain]
    priors: dict[int, IntChain]
    neighbours: dict[int, IntChain]
    enhance: IntChain
    step: Tensor
    """int32 [101, 192], 1/256 of a latent unit."""
    log2_step: Tensor
    """int16 [101, 192], sixteenths of an octave."""
    first_scale: Tensor
    basis: dict[int, Tensor]
    """Integer DCTs of 2, 4 and 8 samples a side, float64 [n*n, n*n], times 4096."""
    analysis: dict[str, Tensor]
    first_table: int
    cost: Tensor
    """Bits of each symbol under each lossy table, float32 [3 * 48, 256]; the encoder's alone."""


def latent_grid(height: int, width: int) -> tuple[int, int]:
    """Blocks down and across."""
    return -(-height // BLOCK), -(-width // BLOCK)


def analyse(model: LossyModel, rgb: Tensor, quality: int, band_blocks: int = 16384) -> Tensor:
    """What the encoder wants the latents to be, of uint8 RGB [1, 3, H, W]: int16 [1, 192, h, w], sixteenths.

    Works through bands of about so many blocks. (int16 because float latents of a large picture take 12
    bytes a pixel; a sixteenth is small against every step.)
    """
    height, width = rgb.shape[-2:]
    n_h, n_w = latent_grid(height, width)
    out = rgb.new_empty((1, N_LATENTS, n_h, n_w), dtype=torch.int16)
    rows = max(1, band_blocks // n_w)
    w = model.analysis
    for start in range(0, n_h, rows):
        stop = min(start + rows, n_h)
        y = _pixels(around(slice(start, stop), n_h, 1, rgb.device), height)
        x = _pixels(around(slice(0, n_w), n_w, 1, rgb.device), width)
        band = rgb_to_opponent(rgb[..., y, :][..., x].float() - 128)
        z = block_transform(band.contiguous(), w["basis"])
        f = F.conv2d(z / 32, w["analysis_in.weight"], w["analysis_in.bias"])
        f = F.relu(f + w["condition"][quality].view(1, -1, 1, 1))
        f = F.relu(F.conv2d(f, w["analysis_mid.weight"], w["analysis_mid.bias"]))
        f = F.conv2d(f, w["analysis_out.weight"], w["analysis_out.bias"])
        f = f.mul_(4).add_(z[..., 1:-1, 1:-1])
        out[..., start:stop, :] = f.mul_(TARGET_UNIT).round_().clamp_(LATENT_MIN, LATENT_MAX)
    return out


def _pixels(blocks: Tensor, size: int) -> Tensor:
    """Coordinates of all pixels of these block rows or columns.

    The last pixel is repeated beyond the picture.
    """
    inside = torch.arange(BLOCK, device=blocks.device)
    return (blocks[:, None] * BLOCK + inside).flatten().clamp_(0, size - 1)


def code_latents(
    model: LossyModel,
    coder: Coder | TensorCoder,
    level: int,
    mean: Tensor,
    log_scale: Tensor,
    quality: int,
    target: Tensor | None,
    optimise: bool = True,
) -> tuple[Tensor, Tensor]:
    """Code one step of latents of a level; all arrays [C, n] for the level's C latents.

    mean: int32, eighths. log_scale: int32, sixteenths of an octave. target: int16, sixteenths, in an encoder;
    optimise: round them for rate and distortion. Returns symbols int32 and latents int16 (eighths).
    """
    channels = slice(LEVEL_START[level - 1], LEVEL_START[level])
    step = model.step[quality, channels, None]
    relative = log_scale - model.log2_step[quality, channels, None]
    scale_class = ((relative - SCALE_MIN + 2) >> 2).clamp_(0, N_SCALES - 1)
    table = model.first_table + (level - 1) * N_SCALES + scale_class
    heard = scale_class >= SILENT_CLASSES
    wanted = None
    if target is not None:
        exact = (target / TARGET_UNIT - mean / 8) * 256 / step
        wanted = torch.round(exact).clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT).mul_(heard)
        if optimise:
            spend_less(model, wanted, exact, table, step, level, quality)
    if isinstance(coder, TensorCoder):
        decoded = code_heard_on_device(coder, table, heard, wanted)
    else:
        decoded = code_heard(coder, table, heard, wanted)
    return decoded, dequantise(mean, decoded, step)


def code_heard(coder: Coder, table: Tensor, heard: Tensor, wanted: Tensor | None) -> Tensor:
    """Code the symbols of a step where they are coded at all; int32 of the shape of `table`, 0 elsewhere.

    table: int32, heard: bool, wanted: float or None, all of one shape.
    """
    coded = heard.flatten().nonzero()[:, 0]
    symbols = None if wanted is None else wanted.flatten()[coded].to(torch.int16).numpy()
    index = table.flatten()[coded].numpy().astype(np.uint16)
    got = np.clip(coder.code(index, symbols), -SYMBOL_LIMIT, SYMBOL_LIMIT).astype(np.int32)
    decoded = torch.zeros(table.numel(), dtype=torch.int32).index_copy_(0, coded, torch.from_numpy(got))
    return decoded.view(table.shape)


def code_heard_on_device(coder: TensorCoder, table: Tensor, heard: Tensor, wanted: Tensor | None) -> Tensor:
    """As `code_heard`, without the host knowing how many are coded."""
    index = torch.where(heard, table, NO_TABLE).flatten().to(torch.int16)
    symbols = None if wanted is None else wanted.flatten().to(torch.int16)
    return coder.code(index, symbols).clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).int().view(table.shape)


def spend_less(
    model: LossyModel,
    symbols: Tensor,
    exact: Tensor,
    table: Tensor,
    step: Tensor,
    level: int,
    quality: int,
) -> None:
    """Move symbols one towards zero, in place, where the bits saved are worth the squared error.

    The encoder's choice alone.
    """
    channels = slice(LEVEL_START[level - 1], LEVEL_START[level])
    where = symbols.nonzero(as_tuple=True)
    s, v, t = symbols[where], exact[where], table[where] - model.first_table
    nearer = s - torch.sign(s)
    # what an error in each opponent plane is in RGB, squared
    gain = torch.tensor([(3.0, 2.0, 6.0)[c] for c, _, _ in latent_order()[channels]])
    weight = gain.to(step.device) * (step[:, 0] / 256.0) ** 2
    worse = ((v - nearer).square() - (v - s).square()) * weight[where[0]]
    saved = model.cost[t, letter(s)] - model.cost[t, letter(nearer)]
    multiplier = 3 * LAGRANGE * (INITIAL_STEP * 2 ** (-quality * STEP_OCTAVES)) ** 2 * RATE_WEIGHT[level - 1]
    symbols[where] = torch.where(worse < multiplier * saved, nearer, s)


def letter(symbols: Tensor) -> Tensor:
    """Position of symbols in a table, the outermost for all beyond."""
    return symbols.clamp(-127, 127).long() + 127


def dequantise(mean: Tensor, symbols: Tensor, step: Tensor) -> Tensor:
    """mean + symbols * step, int16 in eighths; step in 1/256."""
    return (mean + ((symbols * step + 16) >> 5)).clamp_(LATENT_MIN, LATENT_MAX).to(torch.int16)


def code_level1(
    model: LossyModel,
    coder: Coder | TensorCoder,
    size: tuple[int, int],
    quality: int,
    target: Tensor | None = None,
) -> Tensor:
    """Code level 1, int16 [1, 6, h, w], over interlaced grids of blocks.

    target: int16 [1, 6, h, w], sixteenths, in an encoder.
    """
    return _level1_grid(model, coder, size, quality, target, 0)


def _level1_grid(
    model: LossyModel,
    coder: Coder | TensorCoder,
    size: tuple[int, int],
    quality: int,
    target: Tensor | None,
    depth: int,
) -> Tensor:
    h, w = size
    if max(size) <= BASE_SIDE:
        mean = model.step.new_zeros((LEVEL_LATENTS[0], h * w))
        scale = model.first_scale[:, None].expand(mean.shape)
        want = None if target is None else target[0].flatten(1)
        _, z = code_latents(model, coder, 1, mean, scale, quality, want)
        return z.view(1, -1, h, w)
    out = model.step.new_empty((1, LEVEL_LATENTS[0], h, w), dtype=torch.int16)
    n_h, n_w = (h + 1) // 2, (w + 1) // 2
    finer = None if target is None else target[..., ::2, ::2]
    a = _level1_grid(model, coder, (n_h, n_w), quality, finer, depth + 1)
    out[..., ::2, ::2] = a
    known = {"A": replicate(a, n_h, n_w, CONTEXT_HALO)}
    for p in PHASES:
        dy, dx = PHASE_OFFSET[p]
        part = out[..., dy::2, dx::2]
        p_h, p_w = part.shape[-2:]
        if p_h and p_w:
            four = context_neighbours(p, known["A"], known.get("D"))
            base = context_base(four)
            planes = context_planes(four, base)[..., 1:-1, 1:-1]
            params = model.context[p](planes, quality, min(depth, 1))[0, :, :p_h, :p_w]
            inner = base[0, :, 3 : 3 + p_h, 3 : 3 + p_w]
            want = None if target is None else target[0, :, dy::2, dx::2].flatten(1)
            n = LEVEL_LATENTS[0]
            mean = (inner + 2 * params[:n]).flatten(1)
            _, z = code_latents(model, coder, 1, mean, params[n:].flatten(1), quality, want)
            part[0] = z.view(-1, p_h, p_w)
        known[p] = replicate(part, n_h, n_w, CONTEXT_HALO) if p_h and p_w else known["A"]
    return out


def replicate(x: Tensor, height: int, width: int, halo: int) -> Tensor:
    """Replicate the last row and column up to this size, then a border; int32."""
    rows = around(slice(0, height), x.shape[-2], halo, x.device)
    cols = around(slice(0, width), x.shape[-1], halo, x.device)
    return x[..., rows, :][..., cols].int()


def context_base(four: list[Tensor]) -> Tensor:
    """Mean of the neighbours for the DC latents, zero for the others: int32 [1, 6, h, w], eighths."""
    base = torch.zeros_like(four[0])
    dc = positions(DC, base.device)
    base[:, dc] = (four[0][:, dc] + four[1][:, dc] + four[2][:, dc] + four[3][:, dc] + 2) >> 2
    return base


def context_planes(four: list[Tensor], base: Tensor) -> Tensor:
    """Inputs of level 1's networks, as `lossy.context_planes`: int32 -64..63."""
    dc_at, ac_at = positions(DC, base.device), positions(AC, base.device)
    dc = torch.cat([n[:, dc_at] - base[:, dc_at] for n in four[:3]], 1)
    ac = torch.cat([n[:, ac_at] for n in four], 1)
    return torch.cat((two_planes(dc), ((ac + 4) >> 3).clamp_(-64, 63)), 1)


@functools.cache
def positions(places: tuple[int, ...], device: torch.device) -> Tensor:
    """An index int64 on a device; kept, as bringing it there waits for the device."""
    return torch.tensor(places).to(device)


def two_planes(d: Tensor) -> Tensor:
    """Each latent (eighths) in units of 1 and in units of 8, limited to -64..63."""
    return torch.cat(((d + 4) >> 3, (d + 32) >> 6), 1).clamp_(-64, 63)


def code_level(
    model: LossyModel,
    coder: Coder | TensorCoder,
    level: int,
    below: Tensor,
    quality: int,
    target: Tensor | None = None,
    optimise: bool = True,
    block: int = CODING_BLOCK,
) -> Tensor:
    """Code level 2 or 3 given the latents below, int16 [1, C, h, w].

    Blocks of even parity in all coding blocks, then the others. target: int16 [1, C', h, w],
    sixteenths, in an encoder.
    Returns int16 [1, C', h, w]. `block` must be even.
    """
    h, w = below.shape[-2:]
    out = below.new_empty((LEVEL_LATENTS[level - 1], h, w))
    symbols = torch.zeros_like(out, dtype=torch.int8)
    source = Priors(model, level, below, quality)
    for first in (True, False):
        for rows, cols in blocks(h, w, block):
            part, seen = out[:, rows, cols], symbols[:, rows, cols]
            chosen = of_parity(part.shape[1], part.shape[2], first, below.device)
            if not len(chosen):
                continue
            mean, log_scale = source.block(rows, cols) if first else source.refined_block(rows, cols, symbols)
            want = None if target is None else target[0, :, rows, cols].flatten(1)[:, chosen]
            mean, log_scale = (x.flatten(1)[:, chosen] for x in (mean, log_scale))
            got, z = code_latents(model, coder, level, mean, log_scale, quality, want, optimise)
            part.copy_(part.flatten(1).index_copy(1, chosen, z).view(part.shape))
            if first:
                spread = symbols.new_zeros((len(got), part[0].numel()))
                seen.copy_(spread.index_copy_(1, chosen, got.clamp(-64, 63).to(torch.int8)).view(part.shape))
    return out[None]


def missing_level(
    model: LossyModel, level: int, below: Tensor, quality: int, block: int = CODING_BLOCK
) -> Tensor:
    """The prior's means where a level is not there: int16 [1, C', h, w]."""
    h, w = below.shape[-2:]
    out = below.new_empty((1, LEVEL_LATENTS[level - 1], h, w))
    for rows, cols in blocks(h, w, block):
        mean, _ = plain_prior(model, level, below, quality, rows, cols)
        out[0, :, rows, cols] = mean.clamp(LATENT_MIN, LATENT_MAX)
    return out


def of_parity(height: int, width: int, even: bool, device: torch.device) -> Tensor:
    """Places in raster order of the positions [h, w] whose row + column is even, or of the others: int64."""
    odd = int(not even)
    if width % 2:  # the parity is that of the place
        return torch.arange(odd, height * width, 2, device=device)
    k = torch.arange(height * width // 2, device=device)
    row = k // (width // 2)
    return 2 * k + ((row + odd) & 1)


class Priors:
    """Means and log2 scales of level 2 or 3, block by block: int32 [C, h, w].

    Means in eighths, scales in sixteenths of an octave.
    """

    def __init__(self, model: LossyModel, level: int, below: Tensor, quality: int):
        self._model, self._level, self._below, self._quality = model, level, below, quality
        self._size = below.shape[-2], below.shape[-1]
        self._whole: tuple[Tensor, Tensor] | None = None

    def block(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        """Of a block or region, from the latents below alone."""
        if self._whole is not None:
            return self._whole[0][:, rows, cols], self._whole[1][:, rows, cols]
        result = plain_prior(self._model, self._level, self._below, self._quality, rows, cols)
        if result[0].shape[1:] == self._size:
            self._whole = result  # a picture of one block: the second pass asks for it again
        return result

    def refined_block(self, rows: slice, cols: slice, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Of a block once the blocks of even parity are known.

        symbols: theirs, int8 [C, height, width], zero elsewhere.
        """
        net = self._model.neighbours[self._level]
        r, device = net.radius, symbols.device
        y, x = (around(s, n, r, device) for s, n in zip((rows, cols), self._size, strict=True))
        region = inside(rows, self._size[0], r), inside(cols, self._size[1], r)
        mean, log_scale = self.block(*region)
        channels = slice(LEVEL_START[self._level - 1], LEVEL_START[self._level])
        relative = (log_scale - self._model.log2_step[self._quality, channels, None, None] + 2) >> 2
        planes = torch.cat((SYMBOL_GAIN * symbols[:, *region].int(), relative))[None]
        planes = planes.clamp_(-64, 63).to(torch.int8)
        y, x = y - region[0].start, x - region[1].start
        change = net(planes[..., y, :][..., x], self._quality)[0]
        top, left = rows.start - region[0].start, cols.start - region[1].start
        inner = slice(top, top + change.shape[1]), slice(left, left + change.shape[2])
        c = LEVEL_LATENTS[self._level - 1]
        moved = (change[:c] * self._model.step[self._quality, channels, None, None] + 256) >> 9
        return mean[:, *inner] + moved, log_scale[:, *inner] + change[c:]


def around(part: slice, size: int, halo: int, device: torch.device) -> Tensor:
    """Positions of a range and a halo, replicated at the border: int64."""
    return torch.arange(part.start - halo, part.stop + halo, device=device).clamp_(0, size - 1)


def inside(part: slice, size: int, halo: int) -> slice:
    """The range that the positions of `around` span."""
    first, last = (min(max(i, 0), size - 1) for i in (part.start - halo, part.stop + halo - 1))
    return slice(first, last + 1)


def plain_prior(
    model: LossyModel, level: int, below: Tensor, quality: int, rows: slice, cols: slice
) -> tuple[Tensor, Tensor]:
    """Mean and log2 scale of a region from the latents below alone."""
    net = model.priors[level]
    z = window(below, rows, cols, net.radius + 1).int()
    dc = positions(dc_latents(z.shape[1]), z.device)
    inner = z[..., 1:-1, 1:-1].clone()
    inner[:, dc] -= (sum_3x3(z[:, dc]) * 455 + 2048) >> 12  # 455 / 4096 is 1/9
    out = net(two_planes(inner), quality)[0]
    c = LEVEL_LATENTS[level - 1]
    return 2 * out[:c], out[c:]


@functools.cache
def dc_latents(count: int) -> tuple[int, ...]:
    """The DC latents among the first so many."""
    return tuple(i for i, (_, u, v) in enumerate(latent_order()[:count]) if u == v == 0)


def sum_3x3(x: Tensor) -> Tensor:
    """Sum of each 3x3 neighbourhood, integers; two positions fewer in each direction."""
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def window(x: Tensor, rows: slice, cols: slice, halo: int) -> Tensor:
    """A block with a halo, replicated at the border."""
    y, x_at = around(rows, x.shape[-2], halo, x.device), around(cols, x.shape[-1], halo, x.device)
    return x[..., y, :][..., x_at]


def synthesise(
    model: LossyModel, latents: Tensor, size: tuple[int, int], level: int, quality: int, block: int = 64
) -> Tensor:
    """The picture uint8 RGB [1, 3, H, W] from all 192 latents.

    Those above `level` are the priors' means.
    """
    height, width = size
    shape = (1, 3, height, width)
    out = torch.empty(shape, dtype=torch.uint8, device=latents.device, memory_format=torch.channels_last)
    for rows, cols in blocks(latents.shape[-2], latents.shape[-1], block):
        rgb = synthesise_block(model, latents, rows, cols, level, quality)
        y, x = rows.start * BLOCK, cols.start * BLOCK
        part = out[..., y : y + rgb.shape[-2], x : x + rgb.shape[-1]]
        part.copy_(rgb[..., : part.shape[-2], : part.shape[-1]])
    return out


def synthesise_block(
    model: LossyModel, latents: Tensor, rows: slice, cols: slice, level: int, quality: int
) -> Tensor:
    """uint8 RGB [1, 3, 8h, 8w] of h x w blocks of the picture."""
    r = model.enhance.radius
    n_h, n_w = latents.shape[-2:]
    y, whole_y = _cells(rows, n_h, r + 1, latents.device)
    x, whole_x = _cells(cols, n_w, r + 1, latents.device)
    cells = inverse_transform(model.basis[BLOCK], latents[..., whole_y, whole_x])[..., y, :][..., x]
    correction = model.enhance(enhance_planes(cells, r), quality, level - 1)
    yuv = F.pixel_shuffle(cells[..., r + 1 : -r - 1, r + 1 : -r - 1] + correction, 2)
    return ((opponent_to_rgb(yuv) + 8 >> 4) + 128).clamp_(0, 255).to(torch.uint8)


def _cells(blocks: slice, n_blocks: int, halo: int, device: torch.device) -> tuple[Tensor, slice]:
    """2x2 cells of a range of blocks and a halo, replicated at the picture's border.

    Counted from the first of the blocks they lie in; and those blocks.
    """
    part, size = slice(blocks.start * CELLS, blocks.stop * CELLS), n_blocks * CELLS
    span = inside(part, size, halo)
    whole = slice(span.start // CELLS, (span.stop - 1) // CELLS + 1)
    return around(part, size, halo, device) - CELLS * whole.start, whole


def inverse_transform(basis: Tensor, z: Tensor) -> Tensor:
    """Samples from latents in eighths, as 2x2 cells: int32 [1, 12, 4h, 4w], sixteenths.

    Exact in float64: all sums < 2^53.
    """
    _, _, h, w = z.shape
    by_plane = z[0, positions(plane_order(BLOCK), z.device)].permute(1, 2, 0).contiguous()
    x = exact_product(by_plane.double().view(h, w, 3, 64), basis)
    x = x.add_(1024).mul_(2.0**-11).floor_().int().view(h, w, 3, 4, 2, 4, 2)
    return x.permute(2, 4, 6, 0, 3, 1, 5).reshape(1, 12, 4 * h, 4 * w)


@functools.cache
def plane_order(n: int) -> tuple[int, ...]:
    """Positions of the n x n lowest latents in (plane, vertical, horizontal frequency) order."""
    place = {key: i for i, key in enumerate(latent_order())}
    return tuple(place[c, u, v] for c in range(3) for u in range(n) for v in range(n))


def enhance_planes(cells: Tensor, halo: int) -> Tensor:
    """Inputs of the enhancement network, as `lossy.enhance_planes`: int32 -64..63 [1, 14, h-2, w-2]."""
    _, _, h, w = cells.shape
    sums = sum_3x3(cells.reshape(1, 3, 4, h, w).sum(2, dtype=torch.int32))
    local = (sums * 1820 + 32768) >> 16  # 1820 / 65536 is 1/36
    diff = cells[..., 1:-1, 1:-1] - local.repeat_interleave(4, 1)
    rows, cols = (torch.arange(n - 2, device=cells.device) - halo for n in (h, w))
    edge_r, edge_c = (torch.where(((k & 3) == 0) | ((k & 3) == 3), 32, -32).int() for k in (rows, cols))
    phase = torch.stack((edge_r[:, None].expand(h - 2, w - 2), edge_c[None].expand(h - 2, w - 2)))
    return torch.cat((compand((diff + 4) >> 3), phase[None]), 1)


def native_picture(model: LossyModel, latents: Tensor, size: tuple[int, int], level: int) -> Tensor:
    """Level 1 at 1/4 or level 2 at 1/2 of the size, rounded up.

    latents: at least those of levels 1 and 2; of chroma level 1 has the mean alone, so it takes the rest from
    the means of level 2.
    Returns uint8 RGB [1, 3, .., ..].
    """
    n = 2 * level
    _, _, h, w = latents.shape
    order = positions(plane_order(n), latents.device)
    x = latents[0].permute(1, 2, 0)[..., order].double().reshape(h, w, 3, n * n)
    x = exact_product(x, model.basis[n])
    shift = 11 + (2 if level == 1 else 1)  # an n-point basis makes samples 8/n times as large
    x = ((x.long() + (1 << (shift - 1))) >> shift).int().view(h, w, 3, n, n)
    x = x.permute(2, 0, 3, 1, 4).reshape(1, 3, h * n, w * n)
    rgb = ((opponent_to_rgb(x) + 8 >> 4) + 128).clamp_(0, 255).to(torch.uint8)
    side = BLOCK // n
    rgb = rgb[..., : -(-size[0] // side), : -(-size[1] // side)]
    return rgb.contiguous(memory_format=torch.channels_last)
