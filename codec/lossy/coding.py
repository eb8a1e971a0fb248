"""Coding of the lossy levels in integers: one traversal for encoder, decoder and measurement.

See docs/format.md, section 9. A level is coded in groups: rectangles of blocks that see everything of
the levels below, across the borders of groups, and of their own level only what lies inside them. Groups of
one shape are coded together, as a batch.

Latents are int16 [N, C, h, w] in eighths of a latent unit on the grid of 8x8 blocks, best channels last.
Inside this file positions come before channels, [N, h * w, C]. Decoding never waits for the device.
"""

import torch
from torch import Tensor

from vbc.bitstream.tables import NO_TABLE
from vbc.codec.entropy.coder import Coder
from vbc.codec.lossy.analysis import wanted_symbols
from vbc.codec.lossy.features import (
    INTEGERS,
    interlaced_passes,
    neighbour_planes,
    parity_places,
    prior_planes,
)
from vbc.codec.lossy.latents import (
    FIRST_CODED_SCALE,
    LATENT_MAX,
    LATENT_MIN,
    LEVEL_LATENTS,
    N_SCALES,
    SCALE_MIN,
    SYMBOL_LIMIT,
    level_latents,
)
from vbc.codec.lossy.map_coding import code_map, map_size, on_blocks, qualities
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
) -> Tensor:
    """Code the groups `windows`, all of one shape, of level 1, 2 or 3 of B pictures of one size.

    coder: of N groups: one for each window and picture, group n * B + b is window n of picture b. below:
    int16 [B, C', H8, W8], the latents of all levels below over the whole pictures; None for level 1. quality:
    int32 [B, 1, H8, W8], the pictures' maps. target: what an encoder wants the latents to be, int16 [N, C, h,
    w], sixteenths; None in a decoder. optimise: let the encoder round for rate and distortion. Returns int16
    [N, C, h, w], channels last. Raises ValueError for windows of several shapes.
    """
    window_size(windows)
    here = torch.cat([quality[..., rows, cols] for rows, cols in windows])
    if level == 1:
        return _code_level1(model, coder, here, target, optimise)
    assert below is not None, "levels 2 and 3 are coded given the levels below"
    parameters = prior_parameters(model, level, below, windows, quality)
    return _code_upper_level(model, coder, level, parameters, here, target, optimise)


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
    model: LossyModel,
    coder: Coder,
    quality: Tensor,
    target: Tensor | None,
    optimise: bool,
) -> Tensor:
    """Level 1 of groups of qualities [N, 1, h, w]: grids of their blocks, coarse to fine, in passes."""
    c = LEVEL_LATENTS[0]
    n, _, h, w = quality.shape
    out = torch.empty((n, h, w, c), dtype=torch.int32, device=quality.device)
    latents = out.permute(0, 3, 1, 2)
    for step in interlaced_passes(INTEGERS, latents, quality):
        part = out[:, step.rows, step.cols]
        want = None if target is None else target.permute(0, 2, 3, 1)[:, step.rows, step.cols].flatten(1, 2)
        if step.phase is None or step.base is None or step.planes is None:
            log_scale = model.first_scale.expand(part.flatten(1, 2).shape)
            mean = torch.zeros_like(log_scale)
        else:
            parameters = model.context[step.phase](step.planes, step.use).permute(0, 2, 3, 1)
            mean = (2 * parameters[..., :c] + step.base.permute(0, 2, 3, 1)).flatten(1, 2)
            log_scale = parameters[..., c:].flatten(1, 2)
        here = quality[:, 0, step.rows, step.cols].flatten(1)
        _, z = code_latents(model, coder, 1, mean, log_scale, here, want, optimise)
        part.copy_(z.view(part.shape))
    return latents.to(torch.int16)


def _code_upper_level(
    model: LossyModel,
    coder: Coder,
    level: int,
    parameters: Tensor,
    quality: Tensor,
    target: Tensor | None,
    optimise: bool,
) -> Tensor:
    """Level 2 or 3 of groups: the blocks of even row + column at once, then the others, given those.

    parameters: as `prior_parameters`. quality: of the groups, [N, 1, h, w].
    """
    c = LEVEL_LATENTS[level - 1]
    n, h, w, _ = parameters.shape
    out = torch.empty((n, h * w, c), dtype=torch.int16, device=parameters.device)
    symbols = torch.zeros_like(out)
    for even in (True, False):
        places = parity_places(h, w, even, parameters.device)
        if not len(places):  # a single block
            continue
        local = quality.view(n, -1).index_select(1, places)
        here = parameters.flatten(1, 2).index_select(1, places)
        mean, log_scale = here[..., :c].mul_(2), here[..., c:]
        if not even:
            change = neighbour_parameters(model, level, parameters, symbols.view(n, h, w, c), quality)
            change = change.flatten(1, 2).index_select(1, places)
            moved = (change[..., :c] * by_quality(model.step, level, local)).add_(256)
            mean.add_(moved.bitwise_right_shift_(9))
            log_scale.add_(change[..., c:])
        want = None
        if target is not None:
            want = target.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, places)
        got, z = code_latents(model, coder, level, mean, log_scale, local, want, optimise)
        out.index_copy_(1, places, z)
        if even:
            symbols.index_copy_(1, places, got)
    return out.view(n, h, w, c).permute(0, 3, 1, 2)


def prior_parameters(
    model: LossyModel, level: int, below: Tensor, windows: list[Window], quality: Tensor
) -> Tensor:
    """Means and log-scales of groups of level 2 or 3 from the latents below and the map alone.

    Returns int32 [N, h, w, 2C], contiguous: halves of the means, in quarters of a latent unit; then log2
    scales, in sixteenths of an octave.
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
    model: LossyModel, level: int, parameters: Tensor, symbols: Tensor, quality: Tensor
) -> Tensor:
    """What the symbols of even parity change about means and log-scales of level 2 or 3.

    parameters: as `prior_parameters` returns them. symbols: int16 [N, h, w, C], 0 where the parity is odd.
    quality: of the groups, [N, 1, h, w]. Beyond the group both are repeated. Returns int32 [N, h, w, 2C],
    contiguous: sixteenths of a quantiser step, then sixteenths of an octave.
    """
    net = model.neighbours[level]
    _, h, w, c = symbols.shape
    log_relative = parameters[..., c:] - by_quality(model.log2_step, level, quality[:, 0])
    planes = neighbour_planes(
        INTEGERS, symbols.permute(0, 3, 1, 2), log_relative.permute(0, 3, 1, 2), quality
    )
    return net(extend(planes, h, w, net.radius)).permute(0, 2, 3, 1).contiguous()


def code_latents(
    model: LossyModel,
    coder: Coder,
    level: int,
    mean: Tensor,
    log_scale: Tensor,
    quality: Tensor,
    target: Tensor | None,
    optimise: bool,
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
        wanted = wanted_symbols(model, level, quality, target, mean, table, ~skipped, optimise)
        wanted = wanted.transpose(1, 2).flatten(1)
    decoded = coder.code(index.transpose(1, 2).flatten(1), wanted)
    n, _, c = index.shape
    symbols = decoded.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).view(n, c, -1).transpose(1, 2).contiguous()
    return symbols, dequantise(mean, symbols, step)


def by_quality(table: Tensor, level: int, quality: Tensor) -> Tensor:
    """What a table [101, 192] says of a level's latents at qualities of any shape: [..., C]."""
    rows = table[:, level_latents(level)].index_select(0, quality.flatten())
    return rows.view(*quality.shape, -1)


def dequantise(mean: Tensor, symbols: Tensor, step: Tensor) -> Tensor:
    """mean + symbols * step, int16 in eighths; step: in 1/256 of a latent unit."""
    moved = (symbols * step).add_(16).bitwise_right_shift_(5)
    return moved.add_(mean).clamp_(LATENT_MIN, LATENT_MAX).to(torch.int16)
