"""What the encoder alone does, in float: latents from pixels, and symbols from latents.

Nothing here decides what a bit means, so it may change without a new format.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.lossy.latents import (
    BLOCK,
    INITIAL_STEP,
    LAGRANGE,
    LATENT_MAX,
    LATENT_MIN,
    LATENT_UNIT,
    N_LATENTS,
    PLANE_GAIN,
    STEP_OCTAVES,
    STEP_UNIT,
    SYMBOL_LIMIT,
    TARGET_UNIT,
    block_transform,
    latent_grid,
    latent_order,
    level_latents,
)
from vbc.codec.lossy.map_coding import refined_quality
from vbc.codec.lossy.model import LossyModel
from vbc.codec.pixels.borders import window_with_halo
from vbc.codec.pixels.colour import rgb_to_opponent

BAND_BLOCKS = 16384
"""Blocks analysed at once: a megapixel, whose activations take 66 MB."""
RATE_WEIGHT = (1.0, 0.55, 0.55)
"""Of the encoder's rounding, by level: lambda over the one of training. 0.55 is best on validation tiles;
level 1 gives a little more, so that the first picture comes early."""
EYE_WORTH = (17.0, 31.0, 31.0)
"""Bits for a squared step by level, in weights for the eye. What pleases squared error comes to about 14, and
flattens texture (docs/decisions/0008-for-the-eye.md)."""
LETTER_MAX = 127
"""The largest symbol of a table but for the escape."""


def analyse(model: LossyModel, rgb: Tensor, quality: Tensor, band_blocks: int = BAND_BLOCKS) -> Tensor:
    """What the encoder wants the latents to be, of uint8 RGB [1, 3, H, W].

    quality: int32 [1, 1, H8, W8], the picture's map. Works through bands of about `band_blocks` blocks.
    Returns int16 [1, 192, h, w], sixteenths, channels last (int16 because float latents of a large picture
    take 12 bytes a pixel).
    """
    height, width = rgb.shape[-2:]
    n_h, n_w = latent_grid(height, width)
    out = torch.empty((1, n_h, n_w, N_LATENTS), dtype=torch.int16, device=rgb.device).permute(0, 3, 1, 2)
    rows = max(1, band_blocks // n_w)
    w = model.analysis
    x = pixels_of_blocks(-1, n_w + 1, width, rgb.device)
    for start in range(0, n_h, rows):
        stop = min(start + rows, n_h)
        y = pixels_of_blocks(start - 1, stop + 1, height, rgb.device)
        band = rgb_to_opponent(rgb[..., y, :][..., x].float() - 128)
        z = block_transform(band.contiguous(), w["basis"])
        f = F.conv2d(z / 32, w["analysis_in.weight"], w["analysis_in.bias"])
        around = window_with_halo(quality, (slice(start, stop), slice(0, n_w)), 1)
        f = F.relu_(f + w["condition"][around[:, 0]].permute(0, 3, 1, 2))
        f = F.relu_(F.conv2d(f, w["analysis_mid.weight"], w["analysis_mid.bias"]))
        f = F.conv2d(f, w["analysis_out.weight"], w["analysis_out.bias"])
        f = f.mul_(4).add_(z[..., 1:-1, 1:-1])
        out[..., start:stop, :] = f.mul_(TARGET_UNIT).round_().clamp_(LATENT_MIN, LATENT_MAX)
    return out


def analyse_stages(model: LossyModel, rgb: Tensor, quality: Tensor, refinements: int) -> Iterator[Tensor]:
    """What an encoder wants the latents to be before refinements and at each of them: as `analyse`.

    quality: without refinement. What is wanted differs from quality to quality, and a refinement reaches no
    further than the cells that the stages before it have chosen. So those go half way to what the last one
    wants.
    """
    last = analyse(model, rgb, refined_quality(quality, refinements))
    for refinement in range(refinements):
        here = analyse(model, rgb, refined_quality(quality, refinement))
        yield torch.add(here.int(), last).bitwise_right_shift_(1).to(torch.int16)
    yield last


def pixels_of_blocks(first: int, stop: int, size: int, device: torch.device) -> Tensor:
    """Coordinates of all pixels of the block rows or columns first..stop-1, int64.

    A picture of `size` pixels is extended by its last one to whole blocks; beyond those the outermost block
    is repeated.
    """
    blocks = torch.arange(first, stop, device=device).clamp_(0, (size - 1) // BLOCK)
    inside = torch.arange(BLOCK, device=device)
    return (blocks[:, None] * BLOCK + inside).flatten().clamp_(max=size - 1)


def wanted_symbols(
    model: LossyModel,
    level: int,
    quality: Tensor,
    target: Tensor,
    mean: Tensor,
    table: Tensor,
    coded: Tensor,
    optimise: bool,
    later: int = 0,
) -> Tensor:
    """The symbols of latents of a level: whole steps from the mean to the target, 0 where nothing is coded.

    All tensors are [N, n, C] for the level's C latents. target: int16, sixteenths. mean: int32, eighths.
    quality: int32 [N, n]. table: int32, number of the table. coded: bool. optimise: round for rate and
    distortion, not to nearest. later: how many refinements follow. Returns int16.
    """
    step = model.step[:, level_latents(level)][quality]
    exact = (target / TARGET_UNIT - mean / LATENT_UNIT).mul_(STEP_UNIT).div_(step)
    symbols = torch.round(exact).clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT).mul_(coded)
    if optimise:
        symbols = rdo_round(model, level, quality, exact, symbols, table, later)
    return symbols.to(torch.int16)


def rdo_round(
    model: LossyModel,
    level: int,
    quality: Tensor,
    exact: Tensor,
    symbols: Tensor,
    table: Tensor,
    later: int = 0,
) -> Tensor:
    """Symbols moved one towards zero where the bits saved are worth the squared error.

    exact, symbols: float [N, n, C], in quantiser steps, as they are and rounded. table: int32, likewise.
    later: how many refinements follow. Returns float [N, n, C].
    """
    where = symbols.flatten().nonzero()[:, 0]
    s, v = symbols.flatten()[where], exact.flatten()[where]
    t = table.flatten()[where] - model.first_table
    nearer = s - torch.sign(s)
    n_latents = symbols.shape[-1]
    worth = step_worth(model, level, later)[quality.flatten()[where // n_latents], where % n_latents]
    worse = ((v - nearer).square() - (v - s).square()) * worth
    saved = model.cost[t, letter(s)] - model.cost[t, letter(nearer)]
    better = torch.where(worse < saved, nearer, s)
    return symbols.flatten().index_copy(0, where, better).view(symbols.shape)


def wanted_moves(
    model: LossyModel,
    level: int,
    quality: Tensor,
    exact: Tensor,
    table: Tensor,
    coded: Tensor,
    optimise: bool,
    later: int = 0,
) -> Tensor:
    """The symbols of a refinement: fine steps from the coarse value to the target.

    They are -1..1 but for what lies far outside the coarse cell.

    All tensors are [N, n, C] for the level's C latents. exact: float, fine steps from the coarse value to the
    target, those towards the mean counted positive. quality: int32 [N, n], without refinement. table: int32,
    number of the table. coded: bool. optimise: the value for which squared error and bits together are least.
    later: how many refinements follow. Returns int16.
    """
    nearest = exact.round().clamp_(-LETTER_MAX, LETTER_MAX)
    if not optimise:
        return nearest.mul_(coded).to(torch.int16)
    worth = step_worth(model, level, later)[quality]
    row = (table - model.refine_table) * len(model.refine_cost[0]) + LETTER_MAX
    bits = model.refine_cost.flatten()
    best, least = torch.zeros_like(exact), exact.square().mul_(worth).add_(bits[row])
    for move in (torch.full_like(exact, -1), torch.ones_like(exact), nearest):
        total = (exact - move).square_().mul_(worth).add_(bits[row + move.int()])
        best = torch.where(total < least, move, best)
        least = torch.minimum(total, least)
    return best.mul_(coded).to(torch.int16)


def step_worth(model: LossyModel, level: int, later: int = 0) -> Tensor:
    """Bits that an error of a squared step is worth, by quality and latent of a level: float32 [101, C].

    It is the same for all refinements, of the steps of each. Before those that follow (`later`) an error
    counts as the last one of them counts it, in steps a third as long.

    For squared error it is known what a step is in RGB. Weights for the eye have steps that are as coarse as
    each latent can bear, so a step is worth the same everywhere.
    """
    steps = model.step[:, level_latents(level)] / STEP_UNIT
    longer = 9.0**later
    if model.for_the_eye:
        return torch.full_like(steps, EYE_WORTH[level - 1] * longer)
    gain = torch.tensor([PLANE_GAIN[c] for c, _, _ in latent_order()[level_latents(level)]])
    octaves = STEP_OCTAVES * torch.arange(len(steps), device=steps.device)
    bit = 3 * LAGRANGE * (INITIAL_STEP * torch.exp2(-octaves)) ** 2 * RATE_WEIGHT[level - 1]
    return gain.to(steps.device) * steps**2 / bit[:, None] * longer


def gains_of_groups(
    model: LossyModel,
    level: int,
    refinements: int,
    quality: Tensor,
    target: Tensor,
    coarse: Tensor,
    fine: Tensor,
) -> list[float]:
    """How many bits the error is worth that a refinement takes away from each of N groups of a level.

    As the rounding counts errors: the same worth in bits, of squared steps of the last refinement.
    refinements: how many there are. quality: int32 [N, 1, h, w], without refinement. target: what is wanted,
    int16 [N, C, h, w], sixteenths. coarse, fine: latents before and after, likewise, eighths. Summed in
    float64.
    """
    here = quality[:, 0]
    step = model.steps[refinements][:, level_latents(level)][here].permute(0, 3, 1, 2)
    worth = step_worth(model, level)[here].permute(0, 3, 1, 2)
    wanted = target / TARGET_UNIT
    before, after = ((wanted - z / LATENT_UNIT).mul_(STEP_UNIT).div_(step).square_() for z in (coarse, fine))
    gains: list[float] = before.sub_(after).mul_(worth).double().sum((1, 2, 3)).tolist()
    return gains


def letter(symbols: Tensor) -> Tensor:
    """Position of symbols in a table, the outermost for all beyond."""
    return symbols.clamp(-LETTER_MAX, LETTER_MAX).long() + LETTER_MAX
