"""Packets of a picture's levels: the encoder's half of what `decode_state` reads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream.geometry import BINS, LOSSY_LEVELS, Geometry, level_of
from vbc.codec.entropy.coder import Coder
from vbc.codec.exact.groups import GridStep
from vbc.codec.exact.level import PACKED, RAW, RAW_DEPTH, RAW_GRAY, encode_level, encode_values
from vbc.codec.exact.planes import every, in_batches
from vbc.codec.exact.values import ValuesStep
from vbc.codec.extra.packed_picture import encode_packed
from vbc.codec.flow.byte_search import best_that_fits
from vbc.codec.flow.decode_state import (
    BASE_LEVEL,
    CODED,
    CODED_WITH_MAP,
    CODED_WITH_OFFSETS,
    DEVICE_BLOCKS,
    HOST_BLOCKS,
)
from vbc.codec.flow.keep_paying import Place, Worth, best_first, that_pay
from vbc.codec.flow.shown_gains import Refined
from vbc.codec.lossy.analysis import analyse_stages, gains_of_groups
from vbc.codec.lossy.coding import code_groups, code_maps, prior_parameters
from vbc.codec.lossy.latents import LEVEL_START, level_latents
from vbc.codec.lossy.map_coding import SQUARE_BLOCKS, map_size
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.lossy.scale_offsets import find_offsets
from vbc.codec.lossy.synthesis import synthesise
from vbc.codec.model import Model
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.samples import samples

Packets = list[tuple[int, int, bytes]]
"""Level, part and payload of each packet, in the order of the file."""
Progress = Callable[[str, float], None]
"""Called with the name of a stage and how much of it is done, 0..1."""

TYPICAL_GROWTH = 1.035
"""Of the lossy levels' bytes, for a unit of quality."""
SURELY_PACKED = 1 / 50
"""A packed picture below this share of its samples is kept without a look at what the networks would give."""


def encode_lossy(
    picture: Tensor,
    model: Model,
    levels: int,
    quality: QualityMap,
    nonzero_levels: int = LOSSY_LEVELS,
    *,
    keep_all: bool = True,
) -> tuple[Packets, Tensor]:
    """Packets of the first lossy levels of uint8 RGB [1, 3, H, W], and the latents as they will be decoded.

    Of all three levels the refinements follow that `quality` has, the packets of each in the order of
    `best_first`. nonzero_levels: levels above it have zeros for latents, which take a few bytes. keep_all:
    with all packets of refinements, as exact levels need them; else with those `that_pay`. Latents: int16
    [1, C, h, w], eighths.
    """
    geometry = geometry_of(picture)
    qualities = quality.on_blocks(*geometry.level_size(1), picture.device)
    stage: Stage | None = None
    packets: Packets = []
    refined: dict[Place, tuple[float, bytes]] = {}
    planes: list[Tensor] = []
    worker = ThreadPoolExecutor(1)
    for target in analyse_stages(model.lossy, picture, qualities, quality.refinements):
        target[:, LEVEL_START[nonzero_levels] :] = 0
        latents = torch.empty_like(target[:, : LEVEL_START[levels]])
        stage = Stage(0, target, latents) if stage is None else stage.refined(target, latents)
        for level in range(1, levels + 1):
            coded, gains = _encode_level(model, worker, geometry, level, stage, quality, qualities)
            if stage.refinement:
                refined |= {(unit, part): (gains[part], body) for unit, part, body in coded}
            else:
                packets += coded
        if not keep_all:
            planes.append(latents)
    worker.shutdown()
    assert stage is not None
    worth = {place: Worth(gain, len(body)) for place, (gain, body) in refined.items()}
    latents = stage.latents
    if len(planes) > 1:
        coded_all = Refined(model.lossy, picture, geometry, qualities, planes)
        kept = _kept(worth, coded_all)
        latents = coded_all.latents(kept)
        worth = {place: worth[place] for place in kept}
    return packets + [(*place, refined[place][1]) for place in best_first(worth, geometry)], latents


def _kept(worth: dict[Place, Worth], refined: Refined) -> set[Place]:
    """The packets that pay, by what latents gain, and where that is too little also by what is seen of it."""
    kept = that_pay(worth, refined.geometry)
    if len(kept) == len(worth):
        return kept
    seen = {
        place: Worth(gain, worth[place].n_bytes) for place, gain in refined.gains_of_dropped(kept).items()
    }
    return that_pay(worth | seen, refined.geometry)


@dataclass(frozen=True)
class Stage:
    """What an encoder has of a refinement of all lossy levels, or of the levels themselves (refinement 0).

    target: what it wants, int16 [1, 192, h, w], sixteenths. latents: as they will be decoded, int16 [1, C, h,
    w], eighths, filled in level by level. coarse: those of the stage before.
    """

    refinement: int
    target: Tensor
    latents: Tensor
    coarse: Tensor | None = None

    def refined(self, target: Tensor, latents: Tensor) -> "Stage":
        """The next stage."""
        return Stage(self.refinement + 1, target, latents, self.latents)


def _encode_level(
    model: Model,
    worker: ThreadPoolExecutor,
    geometry: Geometry,
    level: int,
    stage: Stage,
    quality: QualityMap,
    qualities: Tensor,
) -> tuple[Packets, dict[int, float]]:
    """Packets of a level 1 to 3 at a stage, whose latents are filled in; of a refinement also the gain of
    each part, in bits.

    qualities: `quality` on blocks.
    """
    unit, channels = level_of(stage.refinement, level), level_latents(level)
    windows = [geometry.window(unit, n) for n in range(geometry.n_groups(unit))]
    below = None if level == 1 else stage.latents[:, : channels.start]
    with_map = unit == 1 and quality.values is not None
    bodies: dict[int, bytes] = {}
    modes = dict.fromkeys(range(len(windows)), CODED_WITH_MAP if with_map else CODED)
    gains: dict[int, float] = {}
    for batch in in_batches(windows, HOST_BLOCKS if qualities.device.type == "cpu" else DEVICE_BLOCKS):
        parts = [windows[i] for i in batch]
        wanted = torch.stack([stage.target[0, channels, *window] for window in parts])
        coarse = None
        if stage.coarse is not None:
            coarse = torch.stack([stage.coarse[0, channels, *window] for window in parts])
        writer = model.writer(len(batch), worker)
        if with_map:
            encode_maps(model, writer, parts, quality)
        moved = offsets = parameters = None
        later = quality.refinements - stage.refinement
        if below is not None and not stage.refinement:
            parameters = prior_parameters(model.lossy, level, below, parts, qualities)
            here = torch.cat([qualities[..., *window] for window in parts])
            moved, offsets = find_offsets(model.lossy, level, parameters, here, wanted, later)
            modes |= {i: CODED_WITH_OFFSETS for i, has in zip(batch, moved.tolist(), strict=True) if has}
        decoded = code_groups(
            model.lossy,
            writer,
            level,
            below,
            parts,
            qualities,
            wanted,
            refinement=stage.refinement,
            coarse=coarse,
            later=later,
            moved=moved,
            offsets=offsets,
            parameters=parameters,
        )
        if coarse is not None:
            here = torch.cat([qualities[..., *window] for window in parts])
            won = gains_of_groups(model.lossy, level, quality.refinements, here, wanted, coarse, decoded)
            gains.update(zip((1 + n for n in batch), won, strict=True))
        for window, part in zip(parts, decoded, strict=True):
            stage.latents[0, channels, *window] = part
        bodies.update(zip(batch, writer.finish(), strict=True))
    return [(unit, 1 + n, bytes([modes[n]]) + bodies[n]) for n in range(len(windows))], gains


def encode_maps(model: Model, writer: Coder, windows: list[Window], quality: QualityMap) -> None:
    """Code the maps of groups of level 1, all of one shape."""
    assert quality.values is not None
    values = []
    for rows, cols in windows:
        top, left = rows.start // SQUARE_BLOCKS, cols.start // SQUARE_BLOCKS
        height, width = map_size(rows.stop - rows.start, cols.stop - cols.start)
        values.append(quality.values[..., top : top + height, left : left + width])
    coded = torch.ones(len(windows), dtype=torch.bool, device=model.device)
    code_maps(model.lossy, writer, windows, quality.base, coded, torch.cat(values).to(model.device))


def encode_lossy_below(
    picture: Tensor, model: Model, quality: QualityMap, max_bytes: int
) -> tuple[QualityMap, Packets, Tensor]:
    """The best lossy levels of at most so many bytes, of a quality below the given one: as `encode_lossy`.

    They have as many refinements as the given one has and their quality allows. The highest quality that fits
    is returned first; where none does, levels of zeros, from the last one on. All of them zeros are returned
    in any case: 0.002 bits a pixel and less than 64 bytes.
    """

    def encode_at(base: int) -> tuple[QualityMap, Packets, Tensor]:
        lower = replace(quality, base=base, refinements=0).refined(quality.refinements)
        return lower, *encode_lossy(picture, model, LOSSY_LEVELS, lower)

    best = best_that_fits(
        encode_at,
        lambda lossy: n_bytes(lossy[1]),
        max_bytes,
        start=quality.final / 2,
        top=quality.final - 1,
        growth=TYPICAL_GROWTH,
    )
    if best is not None:
        return best
    for nonzero_levels in (2, 1, 0):
        packets, latents = encode_lossy(picture, model, LOSSY_LEVELS, QualityMap(0), nonzero_levels)
        if n_bytes(packets) <= max_bytes:
            break
    return QualityMap(0), packets, latents


def encode_exact(
    picture: Tensor,
    model: Model,
    lossy: Tensor | None,
    quality: int,
    effort: int,
    report: Progress,
    bound: int = 0,
    values: bool = True,
) -> Packets:
    """Packets of the exact levels of uint8 RGB [1, 3, H, W]; one only where that is smaller.

    lossy: the lossy levels' picture, likewise, in a layered file. bound: of bins, 1 to 8, whose levels stand
    after level 4. values: whether the exact levels follow, then with a bound of 2 alone.
    """
    geometry = geometry_of(picture)
    gray = torch.equal(picture[:, :1].expand_as(picture), picture)
    raw_mode = RAW_GRAY if gray else RAW
    depth = RAW_DEPTH[raw_mode]
    packed = encode_packed(picture, depth, effort)
    whole: Packets = [] if packed is None else [(BASE_LEVEL, 1, bytes([PACKED]) + packed)]
    if whole and n_bytes(whole) < SURELY_PACKED * depth * picture[0, 0].numel():
        return whole
    known = every(picture, geometry.top)
    packets: Packets = [(BASE_LEVEL, 1, bytes([raw_mode]) + samples(known[:, :depth]))]
    after: Packets = []
    errors: Tensor | None = None
    for level in range(BASE_LEVEL + 1, geometry.last_level + 1):
        k, unit = geometry.grid_index(level), level + BINS if bound else level
        windows = [geometry.window(level, n) for n in range(geometry.n_groups(level))]
        guide = None if lossy is None else every(lossy, k)
        level_class = min(k, N_LEVEL_CLASSES - 1)
        seen, keep = rgb_to_ycocg(known), bound > 0 and values
        step = GridStep(model.exact, seen, errors, guide, level_class, quality, bound, keep)
        encoded = encode_level(model, step, windows, every(picture, k), depth, effort, k > 0)
        if encoded.shared is not None:
            packets.append((unit, 0, encoded.shared))
        packets += [(unit, 1 + n, group) for n, group in enumerate(encoded.groups)]
        if encoded.predictions is not None:
            coarse = rgb_to_ycocg(every(picture, k + 1))
            middles, predictions = encoded.decoded, encoded.predictions
            fine = ValuesStep(model.exact.values, middles, coarse, seen, predictions, level_class)
            groups = encode_values(model, fine, windows, every(picture, k))
            after += [(level, 1 + n, group) for n, group in enumerate(groups)]
        known, errors = encoded.decoded, encoded.errors
        report("exact", 0.5 / 4**k)
    packets += after
    return min((packets, whole), key=n_bytes) if whole else packets


def lossy_picture(model: Model, latents: Tensor, size: tuple[int, int], quality: QualityMap) -> Tensor:
    """The picture of all three lossy levels and their refinements, uint8 RGB [1, 3, H, W]."""
    geometry = Geometry(size[1], size[0])
    levels = np.full(geometry.group_counts(LOSSY_LEVELS), LOSSY_LEVELS)
    refined = np.full(geometry.group_counts(level_of(1, LOSSY_LEVELS)), quality.refinements)
    qualities = quality.on_blocks(*geometry.level_size(1), latents.device)
    return synthesise(model.lossy, latents, size, levels, qualities, refined=refined)


def n_bytes(packets: Packets) -> int:
    """Bytes of all payloads."""
    return sum(len(payload) for _, _, payload in packets)


def geometry_of(picture: Tensor) -> Geometry:
    """Grids and groups of a picture [1, 3, H, W]."""
    height, width = picture.shape[-2:]
    return Geometry(width, height)
