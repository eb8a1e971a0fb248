"""Coding of the lossy levels in integers: one traversal for encoder, decoder and measurement.

See docs/format.md, section 9. A level is coded in groups: rectangles of blocks that see everything of
the levels below, across the borders of groups, and of their own level only what lies inside them. Groups of
one shape are coded together, as a batch.

Latents are int16 [N, C, h, w] in eighths of a latent unit on the grid of 8x8 blocks, best channels last.
Inside this file positions come before channels, [N, h * w, C]. Decoding never waits for the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.bitstream.tables import NO_TABLE
from vbc.codec.entropy.coder import Coder
from vbc.codec.lossy.analysis import wanted_moves, wanted_symbols
from vbc.codec.lossy.features import (
    INTEGERS,
    interlaced_passes,
    neighbour_planes,
    parity_places,
    prior_planes,
)
from vbc.codec.lossy.latents import (
    FAR_QUARTERS,
    FARTHEST,
    FIRST_CODED_SCALE,
    LATENT_MAX,
    LATENT_MIN,
    LATENT_UNIT,
    LEVEL_LATENTS,
    N_OFFSETS,
    N_REFINED_SCALES,
    N_SCALES,
    NEAR_QUARTERS,
    OFFSET_LIMIT,
    OFFSET_UNIT,
    REFINED_SCALE_MIN,
    SCALE_MIN,
    STEP_UNIT,
    SYMBOL_LIMIT,
    TARGET_UNIT,
    level_latents,
)
from vbc.codec.lossy.map_coding import code_map, map_size, on_blocks, qualities, refined_quality
from vbc.codec.lossy.model import LossyModel
from vbc.codec.pixels.borders import Window, extend, window_with_halo


def code_groups(
    model: LossyModel,
    coder: Coder,
    level: int,
    below: Tensor | None,
    windows: list[Window],
    quality: Tensor,
    target: Tensor | None = None,
    optimise: bool = True,
    refinement: int = 0,
    coarse: Tensor | None = None,
    later: int = 0,
    moved: Tensor | None = None,
    offsets: Tensor | None = None,
    parameters: Tensor | None = None,
) -> Tensor:
    """Code the groups `windows`, all of one shape, of level 1, 2 or 3 of B pictures of one size.

    coder: of N groups: one for each window and picture, group n * B + b is window n of picture b. below:
    int16 [B, C', H8, W8], the latents of all levels below over the whole pictures; None for level 1. quality:
    int32 [B, 1, H8, W8], the pictures' maps. target: what an encoder wants the latents to be, int16 [N, C, h,
    w], sixteenths; None in a decoder. optimise: let the encoder round for rate and distortion. refinement:
    its number, 0 for none; `below` is then of that refinement. coarse: int16 [N, C, h, w], the latents of the
    groups that it refines. later: how many refinements an encoder lets follow. moved: bool [N], groups of
    level 2 or 3, without refinement, whose offsets come before their latents; offsets: those that an encoder
    wants, as `code_offsets`. parameters: what `prior_parameters` has returned, where that is known. Returns
    int16 [N, C, h, w], channels last. Raises ValueError for windows of several shapes.
    """
    window_size(windows)
    here = torch.cat([quality[..., rows, cols] for rows, cols in windows])
    latents = LatentCoder(model, coder, level, refinement, optimise, later)
    known = None if coarse is None else coarse.permute(0, 2, 3, 1)
    wanted = None if target is None else target.permute(0, 2, 3, 1)
    if level == 1:
        return _code_level1(latents, here, known, wanted)
    assert below is not None, "levels 2 and 3 are coded given the levels below"
    if parameters is None:
        parameters = prior_parameters(model, level, below, windows, refined_quality(quality, refinement))
    scales = None
    if moved is not None:
        scales = code_offsets(model, coder, level, parameters, here, moved, offsets)
    return _code_upper_level(latents, parameters, here, known, wanted, scales)


def code_maps(
    model: LossyModel,
    coder: Coder,
    windows: list[Window],
    quality: int,
    coded: Tensor,
    wanted: Tensor | None = None,
) -> Tensor:
    """Code the maps of groups of level 1, which come before their latents: int32 [N, 1, h, w] on blocks.

    Arguments as in `code_groups` and `code_map`. quality: the header's.
    """
    size = window_size(windows)
    values = code_map(coder, model.map_table, map_size(*size), coded, wanted)
    return on_blocks(qualities(values, quality), *size)


def code_offsets(
    model: LossyModel,
    coder: Coder,
    level: int,
    parameters: Tensor,
    quality: Tensor,
    moved: Tensor,
    wanted: Tensor | None,
) -> Tensor:
    """Code by how many quarter octaves the scales of each latent of groups of level 2 or 3 are moved.

    parameters: as `prior_parameters`. quality: of the groups, [N, 1, h, w]. moved: bool [N], groups that have
    offsets; the others' are 0. wanted: int16 [N, C], -16..16, in an encoder; 0 for latents not `in_use`.
    Returns sixteenths of an octave, int32 [N, 1, C].
    """
    used = in_use(scale_classes(model, level, parameters, quality)) & moved[:, None]
    index = torch.full_like(used, NO_TABLE, dtype=torch.int16).masked_fill_(used, model.offset_table)
    decoded = coder.code(index, wanted)
    return decoded.int().clamp_(-OFFSET_LIMIT, OFFSET_LIMIT).mul_(OFFSET_UNIT)[:, None]


def scale_classes(model: LossyModel, level: int, parameters: Tensor, quality: Tensor) -> Tensor:
    """Quarter octaves of the prior's scales over the step, int32 [N, h * w, C]; coded from
    `FIRST_CODED_SCALE` on.

    Arguments as `code_offsets`.
    """
    log_scale = parameters[..., LEVEL_LATENTS[level - 1] :]
    lowest = by_quality(model.log2_step, level, quality[:, 0]) + (SCALE_MIN - 2)
    return (log_scale - lowest).bitwise_right_shift_(2).flatten(1, 2)


def in_use(classes: Tensor) -> Tensor:
    """Latents that the prior does not take for zero in all blocks: bool [N, C]. classes: `scale_classes`."""
    return classes.amax(1) >= FIRST_CODED_SCALE


def prior_means(
    model: LossyModel, level: int, below: Tensor, windows: list[Window], quality: Tensor
) -> Tensor:
    """What stands for missing groups of level 2 or 3: the prior's means, int16 [N, C, h, w], channels last.

    Arguments as in `code_groups`.
    """
    parameters = prior_parameters(model, level, below, windows, quality)
    mean = 2 * parameters[..., : LEVEL_LATENTS[level - 1]]
    return mean.clamp_(LATENT_MIN, LATENT_MAX).to(torch.int16).permute(0, 3, 1, 2)


def window_size(windows: list[Window]) -> tuple[int, int]:
    """Height and width of all the windows. Raises ValueError where they differ or there are none."""
    sizes = {(rows.stop - rows.start, cols.stop - cols.start) for rows, cols in windows}
    if len(sizes) != 1:
        raise ValueError(f"groups that are coded together have one size, not {sorted(sizes)}")
    return sizes.pop()


def _code_level1(
    coder: "LatentCoder", quality: Tensor, coarse: Tensor | None, target: Tensor | None
) -> Tensor:
    """Level 1 of groups of qualities [N, 1, h, w]: grids of their blocks, coarse to fine, in passes.

    coarse, target: [N, h, w, C].
    """
    c, model = LEVEL_LATENTS[0], coder.model
    n, _, h, w = quality.shape
    out = torch.empty((n, h, w, c), dtype=torch.int32, device=quality.device)
    latents = out.permute(0, 3, 1, 2)
    for step in interlaced_passes(INTEGERS, latents, refined_quality(quality, coder.refinement)):
        part = out[:, step.rows, step.cols]
        known, want = (
            None if x is None else x[:, step.rows, step.cols].flatten(1, 2) for x in (coarse, target)
        )
        if step.phase is None or step.base is None or step.planes is None:
            log_scale = model.first_scale.expand(part.flatten(1, 2).shape)
            mean = torch.zeros_like(log_scale)
        else:
            parameters = model.context[step.phase](step.planes, step.use).permute(0, 2, 3, 1)
            mean = (2 * parameters[..., :c] + step.base.permute(0, 2, 3, 1)).flatten(1, 2)
            log_scale = parameters[..., c:].flatten(1, 2)
        here = quality[:, 0, step.rows, step.cols].flatten(1)
        _, z = coder.code(mean, log_scale, here, known, want)
        part.copy_(z.view(part.shape))
    return latents.to(torch.int16)


def _code_upper_level(
    coder: "LatentCoder",
    parameters: Tensor,
    quality: Tensor,
    coarse: Tensor | None,
    target: Tensor | None,
    offsets: Tensor | None,
) -> Tensor:
    """Level 2 or 3 of groups: the blocks of even row + column at once, then the others, given those.

    parameters: as `prior_parameters`. quality: of the groups, [N, 1, h, w]. coarse, target: [N, h, w, C].
    offsets: what is added to all log-scales, [N, 1, C].
    """
    model, level, refinement = coder.model, coder.level, coder.refinement
    c = LEVEL_LATENTS[level - 1]
    n, h, w, _ = parameters.shape
    out = torch.empty((n, h * w, c), dtype=torch.int16, device=parameters.device)
    multiples = torch.zeros_like(out)
    for even in (True, False):
        places = parity_places(h, w, even, parameters.device)
        if not len(places):  # a single block
            continue
        local = quality.view(n, -1).index_select(1, places)
        here = parameters.flatten(1, 2).index_select(1, places)
        mean, log_scale = here[..., :c].mul_(2), here[..., c:]
        if not even:
            seen = multiples.view(n, h, w, c)
            change = neighbour_parameters(model, level, parameters, seen, quality, refinement)
            change = change.flatten(1, 2).index_select(1, places)
            moved = (change[..., :c] * by_quality(model.steps[refinement], level, local)).add_(256)
            mean.add_(moved.bitwise_right_shift_(9))
            log_scale.add_(change[..., c:])
        if offsets is not None:
            log_scale.add_(offsets)
        known, want = (
            None if x is None else x.flatten(1, 2).index_select(1, places) for x in (coarse, target)
        )
        multiple, z = coder.code(mean, log_scale, local, known, want)
        out.index_copy_(1, places, z)
        if even:
            multiples.index_copy_(1, places, multiple)
    return out.view(n, h, w, c).permute(0, 3, 1, 2)


def prior_parameters(
    model: LossyModel, level: int, below: Tensor, windows: list[Window], quality: Tensor
) -> Tensor:
    """Means and log-scales of groups of level 2 or 3 from the latents below and the map alone.

    quality: what the network is told. Returns int32 [N, h, w, 2C], contiguous: halves of the means, in
    quarters of a latent unit; then log2 scales, in sixteenths of an octave.
    """
    net = model.priors[level]
    parts = [
        prior_planes(
            INTEGERS,
            window_with_halo(below, window, net.radius + 1).int(),
            window_with_halo(quality, window, net.radius),
        )
        for window in windows
    ]
    return net(torch.cat(parts)).permute(0, 2, 3, 1).contiguous()


def neighbour_parameters(
    model: LossyModel,
    level: int,
    parameters: Tensor,
    multiples: Tensor,
    quality: Tensor,
    refinement: int = 0,
) -> Tensor:
    """What the blocks of even parity change about means and log-scales of level 2 or 3.

    parameters: as `prior_parameters` returns them. multiples: by how many steps their latents are off the
    means, int16 [N, h, w, C], 0 where the parity is odd. quality: of the groups, [N, 1, h, w], without
    refinement. Beyond the group both are repeated. Returns int32 [N, h, w, 2C], contiguous: sixteenths of a
    quantiser step, then sixteenths of an octave.
    """
    net = model.neighbours[level]
    _, h, w, c = multiples.shape
    log_relative = parameters[..., c:] - by_quality(model.log2_steps[refinement], level, quality[:, 0])
    planes = neighbour_planes(
        INTEGERS,
        multiples.permute(0, 3, 1, 2),
        log_relative.permute(0, 3, 1, 2),
        refined_quality(quality, refinement),
    )
    return net(extend(planes, h, w, net.radius)).permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class LatentCoder:
    """Codes the steps of a level: whole latents, or a refinement of them.

    coder: of the groups. refinement: its number, 0 for none. optimise: let the encoder round for rate and
    distortion. later: how many refinements it lets follow.
    """

    model: LossyModel
    coder: Coder
    level: int
    refinement: int
    optimise: bool
    later: int = 0

    def code(
        self, mean: Tensor, log_scale: Tensor, quality: Tensor, coarse: Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """By how many steps the latents are off their means, and the latents: as `code_latents`.

        coarse: int16 [N, n, C], the latents that are refined; None without refinement.
        """
        stage = self.model, self.coder, self.level
        parameters = mean, log_scale, quality
        if coarse is None:
            return code_latents(*stage, *parameters, target, self.optimise, self.later)
        rounding = target, self.optimise, self.later
        z = refine_latents(*stage, self.refinement, *parameters, coarse, *rounding)
        step = by_quality(self.model.steps[self.refinement], self.level, quality)
        return in_steps(mean, z, step), z


def code_latents(
    model: LossyModel,
    coder: Coder,
    level: int,
    mean: Tensor,
    log_scale: Tensor,
    quality: Tensor,
    target: Tensor | None,
    optimise: bool,
    later: int = 0,
) -> tuple[Tensor, Tensor]:
    """Code one step of latents of a level; all tensors are [N, n, C] for the level's C latents.

    mean: int32, eighths. log_scale: int32, sixteenths of an octave. quality: int32 [N, n]. target: int16,
    sixteenths, in an encoder. A step holds one latent after the other, each of all positions. Returns symbols
    and latents (eighths), int16.
    """
    step = by_quality(model.step, level, quality)
    scale = (
        log_scale - (by_quality(model.log2_step, level, quality) + (SCALE_MIN - 2))
    ).bitwise_right_shift_(2)
    scale.clamp_(0, N_SCALES - 1)
    table = scale + (model.first_table + (level - 1) * N_SCALES)
    skipped = scale < FIRST_CODED_SCALE
    index = table.masked_fill(skipped, NO_TABLE).to(torch.int16)
    wanted = None
    if target is not None:
        wanted = wanted_symbols(model, level, quality, target, mean, table, ~skipped, optimise, later)
        wanted = wanted.transpose(1, 2).flatten(1)
    decoded = coder.code(index.transpose(1, 2).flatten(1), wanted)
    n, _, c = index.shape
    symbols = decoded.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).view(n, c, -1).transpose(1, 2).contiguous()
    return symbols, dequantise(mean, symbols, step)


def refine_latents(
    model: LossyModel,
    coder: Coder,
    level: int,
    refinement: int,
    mean: Tensor,
    log_scale: Tensor,
    quality: Tensor,
    coarse: Tensor,
    target: Tensor | None,
    optimise: bool,
    later: int = 0,
) -> Tensor:
    """Code one step of a refinement, 1 to 3: latents become one of three values, a fine step apart.

    Rarely one leaves these, where the stages before had no symbol for it. Arguments as in `code_latents`,
    mean and scale those that the networks give at the refinement. coarse: int16 [N, n, C], the value in the
    middle. Returns latents (eighths), int16.
    """
    step = by_quality(model.steps[refinement], level, quality)
    away = (mean - coarse).clamp_(-FARTHEST, FARTHEST)
    below = away < 0
    offset = offset_classes(away, step)
    lowest = by_quality(model.log2_steps[refinement], level, quality) + (REFINED_SCALE_MIN - 2)
    scale = (log_scale - lowest).bitwise_right_shift_(2)
    skipped = (scale < 0) & (offset < 2)
    table = scale.clamp_(0, N_REFINED_SCALES - 1).mul_(N_OFFSETS).add_(offset).add_(model.refine_table)
    index = table.masked_fill(skipped, NO_TABLE).to(torch.int16)
    wanted = None
    if target is not None:
        exact = (target / TARGET_UNIT - coarse / LATENT_UNIT).mul_(STEP_UNIT).div_(step)
        exact = torch.where(below, -exact, exact)
        wanted = wanted_moves(model, level, quality, exact, table, ~skipped, optimise, later)
        wanted = wanted.transpose(1, 2).flatten(1)
    decoded = coder.code(index.transpose(1, 2).flatten(1), wanted)
    n, _, c = index.shape
    moves = decoded.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).view(n, c, -1).transpose(1, 2)
    return dequantise(coarse.int(), torch.where(below, -moves, moves), step)


def offset_classes(away: Tensor, step: Tensor) -> Tensor:
    """Classes 0 to 9 of the distances `away` (int32, eighths) of means from coarse values. step: the fine
    one."""
    quarter = in_units(away.abs(), step, 256)
    offset = quarter.clamp(max=NEAR_QUARTERS)
    for first in FAR_QUARTERS:
        offset += quarter >= first
    return offset


def in_steps(mean: Tensor, latents: Tensor, step: Tensor) -> Tensor:
    """By how many steps latents are off their means, to nearest: int16, limited to what a symbol can be."""
    away = (latents - mean).clamp_(-FARTHEST, FARTHEST)
    return in_units(away, step, 64).clamp_(-SYMBOL_LIMIT, SYMBOL_LIMIT).to(torch.int16)


def in_units(away: Tensor, step: Tensor, gain: int) -> Tensor:
    """away * gain / (2 * step) to nearest, halves up: int32. gain 64: eighths become steps; 256: quarters."""
    return (away * gain).add_(step).floor_divide_(2 * step)


def by_quality(table: Tensor, level: int, quality: Tensor) -> Tensor:
    """What a table [101, 192] says of a level's latents at qualities of any shape: [..., C]."""
    rows = table[:, level_latents(level)].index_select(0, quality.flatten())
    return rows.view(*quality.shape, -1)


def dequantise(mean: Tensor, symbols: Tensor, step: Tensor) -> Tensor:
    """mean + symbols * step, int16 in eighths; step: in 1/256 of a latent unit."""
    moved = (symbols * step).add_(16).bitwise_right_shift_(5)
    return moved.add_(mean).clamp_(LATENT_MIN, LATENT_MAX).to(torch.int16)
