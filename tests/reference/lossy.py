"""The lossy levels and their picture (docs/format.md, sections 9 and 10)."""

import numpy as np

from reference.errors import Corrupt
from reference.geometry import (
    BLOCK,
    LOSSY_LEVELS,
    PLAIN_LEVELS,
    REFINED_SQUARE,
    SQUARE,
    Geometry,
    Rectangle,
    ceil_div,
    stage,
)
from reference.lanes import NOTHING, Coder, Lanes, Say, brief
from reference.networks import around, chain, coarse, compand, edge, fine, quality_planes
from reference.weights import Array, Weights

FIRST = {1: 0, 2: 6, 3: 48}
END = {1: 6, 2: 48, 3: 192}
"""The latents of a level."""
DC = (0, 4, 5)
PHASES = ("D", "H", "V")
OFFSET = {"A": (0, 0), "D": (1, 1), "H": (0, 1), "V": (1, 0)}
NEAREST = {
    "D": (("A", 0, 0), ("A", 0, 1), ("A", 1, 0), ("A", 1, 1)),
    "H": (("A", 0, 0), ("A", 0, 1), ("D", -1, 0), ("D", 0, 0)),
    "V": (("A", 0, 0), ("A", 1, 0), ("D", 0, -1), ("D", 0, 0)),
}
"""n0 to n3 of a phase: plane, rows down, columns right."""
PLAIN, WITH_MAP, WITH_OFFSETS = b"\0", b"\1", b"\2"
"""First bytes of a group's payload; the second one only of level 1, the third one of levels 2 and 3."""
OFFSET_WIDTH = 5
FINER = (0, 25, 51, 76)
"""By how many sixteenths of an octave the step of each refinement is finer."""
FAR = 1 << 20
SQUARE_OF_MAP = 2
"""Side in blocks of a square that has one quality."""
COARSEST_SPREAD = 8
"""Stands for the spread of a map's coarsest grid, which has no neighbours."""


def latent_order() -> list[tuple[int, int, int]]:
    """(opponent plane, fy, fx) of each latent."""
    low = [(fy, fx) for fy in range(2) for fx in range(2)]
    middle = [(fy, fx) for fy in range(4) for fx in range(4) if max(fy, fx) >= 2]
    high = [(fy, fx) for fy in range(8) for fx in range(8) if max(fy, fx) >= 4]
    order = [(0, fy, fx) for fy, fx in low] + [(1, 0, 0), (2, 0, 0)]
    order += [(plane, fy, fx) for plane in (1, 2) for fy, fx in low[1:]]
    for frequencies in (middle, high):
        order += [(plane, fy, fx) for plane in range(3) for fy, fx in frequencies]
    return order


def phase_part(grid: Array, phase: str) -> Array:
    """The positions of a phase, or of A, in a grid [..., h, w]; a view."""
    dy, dx = OFFSET[phase]
    return grid[..., dy::2, dx::2]


def known_planes(grid: Array) -> dict[str, Array]:
    """A and D of a grid [..., h, w]; a phase D without positions is replaced by A."""
    a, d = phase_part(grid, "A"), phase_part(grid, "D")
    return {"A": a, "D": d if d.size else a}


class LossyDecoder:
    """The latents of a file, and the picture they make.

    planes: by refinement (0: none) int32 [192, h, w]. latents: likewise, those that are shown. quality: int32
    [h, w], of each block, without refinement. used: the last of levels 1 to 3 whose group is there, for each
    square of 64 x 64 blocks; refined: the last refinement of level 3, for each square of 32 x 32.
    """

    def __init__(
        self,
        weights: Weights,
        geometry: Geometry,
        quality: int,
        payloads: dict[tuple[int, int], bytes],
        say: Say,
    ):
        """quality: the header's. payloads: of the usable packets, by (level, part)."""
        self.weights, self.geometry, self.base_quality, self.say = weights, geometry, quality, say
        rows, columns = geometry.blocks
        self.quality = np.full((rows, columns), quality, np.int32)
        self.planes = np.zeros((4, 192, rows, columns), np.int32)
        self.latents = self.planes[0].copy()
        self.used = np.zeros((ceil_div(rows, SQUARE), ceil_div(columns, SQUARE)), np.int32)
        self.refined = np.zeros((ceil_div(rows, REFINED_SQUARE), ceil_div(columns, REFINED_SQUARE)), np.int32)
        self.refinement = 0
        for unit in LOSSY_LEVELS:
            self.refinement, level = stage(unit)
            for part, group in geometry.groups(unit):
                place = (slice(FIRST[level], END[level]), *group.slices)
                out = self.planes[self.refinement][place]
                if (unit, part) in payloads:
                    self.say(f"level {unit}, part {part}: blocks {group}")
                    self.read_group(payloads[unit, part], level, group)
                    if unit in PLAIN_LEVELS:
                        self.used[group.divided(SQUARE).slices] = level  # a group has whole squares
                    elif level == 3:
                        self.refined[group.divided(REFINED_SQUARE).slices] = self.refinement
                elif unit in (2, 3):
                    mean, _ = self.prior(level, group)
                    out[:] = mean.clip(-32768, 32767)
                else:
                    continue
                self.latents[place] = out

    def latents_of(self, refinement: int, level: int, group: Rectangle) -> Array:
        """A level's latents of a group, a view."""
        return self.planes[refinement, FIRST[level] : END[level], *group.slices]

    def read_group(self, payload: bytes, level: int, group: Rectangle) -> None:
        """Decode a group, of the refinement at hand. Raises Corrupt."""
        mode = payload[:1]
        special = WITH_MAP if level == 1 else WITH_OFFSETS
        if mode != PLAIN and (mode != special or self.refinement):
            raise Corrupt(f"a group of level {level} has mode {mode.hex()}")
        out = self.latents_of(self.refinement, level, group)
        coarse = self.latents_of(max(self.refinement - 1, 0), level, group)
        rows, columns = group.size
        squares = ceil_div(rows, SQUARE_OF_MAP), ceil_div(columns, SQUARE_OF_MAP)
        n_symbols = out.size
        if mode == special:
            n_symbols += squares[0] * squares[1] if level == 1 else len(out)
        lanes = Lanes(self.weights.starts, payload[1:], n_symbols, self.say)
        if mode == WITH_MAP:
            values = np.zeros(squares, np.int32)
            self.code_map(lanes, values)
            self.say(f"    qualities {brief((self.base_quality + 3 * values).clip(0, 100))}")
            on_blocks = values.repeat(SQUARE_OF_MAP, 0).repeat(SQUARE_OF_MAP, 1)[:rows, :columns]
            self.quality[group.slices] = (self.base_quality + 3 * on_blocks).clip(0, 100)
        if level == 1:
            self.code_grid(lanes, out, coarse, self.quality[group.slices], 0)
        else:
            self.code_group(lanes, level, group, out, coarse, mode == WITH_OFFSETS)
        lanes.finish()

    def code_map(self, coder: Coder, grid: Array) -> None:
        """The values of a map, or of a grid of it, into the array [h, w]."""
        rows, columns = grid.shape
        if rows <= 4 and columns <= 4:
            nothing = np.zeros_like(grid)
            grid[:] = self.map_values(coder, nothing, nothing + COARSEST_SPREAD)
            return
        self.code_map(coder, phase_part(grid, "A"))
        for phase in PHASES:
            part = phase_part(grid, phase)
            if part.size:
                known = known_planes(grid)
                i, j = np.arange(part.shape[0]), np.arange(part.shape[1])
                four = np.stack([edge(known[plane], i + dy, j + dx) for plane, dy, dx in NEAREST[phase]])
                spread = (four.max(0) - four.min(0)).clip(max=COARSEST_SPREAD - 1)
                part[:] = self.map_values(coder, (four.sum(0, dtype=np.int32) + 2) >> 2, spread)

    def map_values(self, coder: Coder, guess: Array, spread: Array) -> Array:
        """One step of a map, from guesses and spreads [h, w]."""
        self.say(f"    map: guesses {brief(guess)}; spreads {brief(spread)}")
        symbols = coder.step(self.weights.number("lossy.map_table") + spread)
        values: Array = (guess + symbols).clip(-33, 33)
        self.say(f"      values {brief(values)}")
        return values

    def by_quality(self, name: str, level: int, quality: Array) -> Array:
        """What a tensor [101, 192] has for a level's latents at qualities [...]: int32 [C, ...]."""
        table = self.weights.integers(name)[:, FIRST[level] : END[level]]
        return np.moveaxis(table[quality], -1, 0)

    def step(self, level: int, quality: Array) -> Array:
        """Quantiser steps of the refinement at hand, int32 [C, ...]."""
        step = self.by_quality("lossy.step", level, quality)
        for _ in range(self.refinement):
            step = (2 * step + 3) // 6
        return step

    def log2_step(self, level: int, quality: Array) -> Array:
        """Their logarithms."""
        return self.by_quality("lossy.log2_step", level, quality) - FINER[self.refinement]

    def planes_of(self, quality: Array) -> Array:
        """The quality inputs of the refinement at hand."""
        return quality_planes((quality + 25 * self.refinement).clip(max=100))

    def code(
        self, coder: Coder, level: int, mean: Array, scale: Array, quality: Array, coarse: Array
    ) -> tuple[Array, Array]:
        """One step: latents and multiples, int32 [C, n].

        mean, scale: [C, n]. quality: [n]. coarse: [C, n], what is refined.
        """
        if self.refinement:
            return self.refine(coder, level, mean, scale, quality, coarse)
        log2_step = self.log2_step(level, quality)
        scale_class = ((scale - log2_step + 66) >> 2).clip(0, 47)
        first = self.weights.number("lossy.first_table") + 48 * (level - 1)
        tables = np.where(scale_class < 1, NOTHING, first + scale_class)
        if tables.size:
            self.say(f"    means {brief(mean)}; scales {brief(scale)}")
        steps = coder.step(tables).clip(-2047, 2047)
        moved = (steps * self.step(level, quality) + 16) >> 5
        latents = (mean + moved).clip(-32768, 32767)
        if tables.size:
            self.say(f"      latents {brief(latents)}")
        return latents, steps

    def refine(
        self, coder: Coder, level: int, mean: Array, scale: Array, quality: Array, coarse: Array
    ) -> tuple[Array, Array]:
        """As `code`, of a refinement."""
        step = self.step(level, quality)
        away = (mean - coarse).clip(-FAR, FAR)
        quarter = (256 * np.abs(away) + step) // (2 * step)
        offset = quarter.clip(max=7) + (quarter >= 10) + (quarter >= 15)
        octaves = (scale - self.log2_step(level, quality) + 62) >> 2
        tables = self.weights.number("lossy.refine_table") + 10 * octaves.clip(0, 25) + offset
        tables = np.where((octaves < 0) & (offset < 2), NOTHING, tables)
        if tables.size:
            self.say(f"    means {brief(mean)}; scales {brief(scale)}; coarse {brief(coarse)}")
        moves = coder.step(tables).clip(-2047, 2047)
        moves = np.where(away < 0, -moves, moves)
        latents = (coarse + ((moves * step + 16) >> 5)).clip(-32768, 32767)
        if tables.size:
            self.say(f"      latents {brief(latents)}")
        return latents, (64 * (latents - mean).clip(-FAR, FAR) + step) // (2 * step)

    def code_grid(self, coder: Coder, grid: Array, coarse: Array, quality: Array, use: int) -> None:
        """Level 1 of a grid of blocks, into the array [6, h, w].

        coarse: what is refined, likewise. quality: of the blocks, [h, w]. use: 0 for all blocks of a group, 1
        for coarser grids.
        """
        _, rows, columns = grid.shape
        if rows <= 4 and columns <= 4:
            scale = np.broadcast_to(self.weights.integers("lossy.first_scale")[:, None], (6, rows * columns))
            mean, known = np.zeros_like(scale), coarse.reshape(6, -1)
            latents, _ = self.code(coder, 1, mean, scale, quality.reshape(-1), known)
            grid[:] = latents.reshape(grid.shape)
            return
        self.code_grid(coder, *(phase_part(plane, "A") for plane in (grid, coarse, quality)), 1)
        for phase in PHASES:
            part = phase_part(grid, phase)
            if part.size:
                here = phase_part(quality, phase)
                mean, scale = (x.reshape(6, -1) for x in self.context(grid, here, phase, use))
                known = phase_part(coarse, phase).reshape(6, -1)
                latents, _ = self.code(coder, 1, mean, scale, here.reshape(-1), known)
                part[:] = latents.reshape(part.shape)

    def context(self, grid: Array, quality: Array, phase: str, use: int) -> tuple[Array, Array]:
        """Mean and scale [6, h, w] of a phase of level 1, from A and D of the grid.

        quality: of the phase's blocks, [h, w].
        """
        known = known_planes(grid)
        rows, columns = quality.shape
        i, j = around(0, rows, 2), around(0, columns, 2)
        four = [edge(known[plane], i + dy, j + dx) for plane, dy, dx in NEAREST[phase]]
        base = np.zeros_like(four[0])
        base[list(DC)] = ((four[0] + four[1] + four[2] + four[3] + 2) >> 2)[list(DC)]
        difference = np.concatenate([(n - base)[list(DC)] for n in four[:3]])
        others = np.concatenate([n[1:4] for n in four])
        here = self.planes_of(edge(quality, i, j))
        inputs = np.concatenate((fine(difference), coarse(difference), fine(others), here))
        out = chain(self.weights, f"lossy.context.{phase}", inputs, use)
        return base[:, 2:-2, 2:-2] + 2 * out[:6], out[6:]

    def prior(self, level: int, area: Rectangle) -> tuple[Array, Array]:
        """Mean and scale [C, h, w] of a rectangle of blocks, from the levels below and the qualities."""
        below = self.planes[self.refinement, : FIRST[level]]
        i, j = around(area.top, area.bottom, 4), around(area.left, area.right, 4)
        z = edge(below, i, j)
        d = z[:, 1:-1, 1:-1].copy()
        for latent in DC:
            d[latent] -= (455 * sum_3x3(z[latent]) + 2048) >> 12
        quality = self.planes_of(edge(self.quality, i[1:-1], j[1:-1]))
        inputs = np.concatenate((fine(d), coarse(d), quality))
        out = chain(self.weights, f"lossy.prior{level}", inputs)
        count = END[level] - FIRST[level]
        return 2 * out[:count], out[count:]

    def offsets(self, coder: Coder, level: int, scale: Array, quality: Array) -> Array:
        """By how much the scales [C, h, w] of a group are moved: [C, 1, 1]."""
        scale_class = (scale - self.log2_step(level, quality) + 66) >> 2
        used = scale_class.max((1, 2)) >= 1
        table = self.weights.number("exact.tuning_table") + OFFSET_WIDTH
        symbols = coder.step(np.where(used, table, NOTHING))
        self.say(f"    offsets {brief(symbols)}")
        return 4 * symbols.clip(-16, 16)[:, None, None]

    def code_group(
        self, coder: Coder, level: int, group: Rectangle, out: Array, coarse: Array, with_offsets: bool
    ) -> None:
        """A group of level 2 or 3, into the array [C, h, w]. coarse: what is refined, likewise."""
        rows, columns = group.size
        even = (np.arange(rows)[:, None] + np.arange(columns)) % 2 == 0
        mean, scale = self.prior(level, group)
        steps = np.zeros_like(mean)
        quality = self.quality[group.slices]
        offsets = (
            self.offsets(coder, level, scale, quality) if with_offsets else np.zeros((len(mean), 1, 1), int)
        )
        out[:, even], steps[:, even] = self.code(
            coder, level, mean[:, even], (scale + offsets)[:, even], quality[even], coarse[:, even]
        )
        relative = ((scale - self.log2_step(level, quality) + 2) >> 2).clip(-64, 63)
        inputs = np.concatenate(((8 * steps).clip(-64, 63), relative, self.planes_of(quality)))
        inputs = edge(inputs, around(0, rows, 2), around(0, columns, 2))
        change = chain(self.weights, f"lossy.neighbours{level}", inputs)
        count = len(mean)
        mean = mean + ((change[:count] * self.step(level, quality) + 256) >> 9)
        scale = scale + change[count:] + offsets
        out[:, ~even], _ = self.code(
            coder, level, mean[:, ~even], scale[:, ~even], quality[~even], coarse[:, ~even]
        )

    def samples(self, side: int, bits: int) -> Array:
        """Samples int32 [3, side * h, side * w], sixteenths, of the side x side lowest frequencies."""
        place = {key: i for i, key in enumerate(latent_order())}
        order = [place[c, fy, fx] for c in range(3) for fy in range(side) for fx in range(side)]
        _, rows, columns = self.latents.shape
        z = self.latents[order].astype(np.int64).reshape(3, side * side, rows, columns)
        basis = self.weights[f"lossy.basis{side}"].astype(np.int64)
        total = np.einsum("fp,cfij->cpij", basis, z)
        sample = ((total + (1 << (bits - 1))) >> bits).reshape(3, side, side, rows, columns)
        planes = sample.transpose(0, 3, 1, 4, 2).reshape(3, side * rows, side * columns)
        out: Array = planes.astype(np.int32)
        return out

    def picture(self) -> Array:
        """uint8 RGB [3, H, W]."""
        sample = self.samples(BLOCK, 11).clip(-32768, 32767)
        _, height, width = sample.shape
        n_rows, n_columns = height // 2, width // 2
        cells = sample.reshape(3, n_rows, 2, n_columns, 2).transpose(0, 2, 4, 1, 3)
        cells = cells.reshape(12, n_rows, n_columns)
        out = np.empty_like(cells)
        ratio = SQUARE // REFINED_SQUARE
        for i, j in np.ndindex(*self.refined.shape):
            side = REFINED_SQUARE * BLOCK // 2
            square = Rectangle(i * side, j * side, (i + 1) * side, (j + 1) * side).cut(n_rows, n_columns)
            use = max(int(self.used[i // ratio, j // ratio]) - 1, 0)
            out[:, *square.slices] = self.enhanced(cells, square, use, int(self.refined[i, j]))
        sample = out.reshape(3, 2, 2, n_rows, n_columns).transpose(0, 3, 1, 4, 2)
        self.say(f"first cell: {brief(cells[:, 0, 0])}; enhanced: {brief(out[:, 0, 0])}")
        height, width = self.geometry.grids[0]
        return opponent_to_rgb(sample.reshape(3, 2 * n_rows, 2 * n_columns))[:, :height, :width]

    def enhanced(self, cells: Array, square: Rectangle, use: int, refinement: int) -> Array:
        """The cells of a square after the network [12, h, w]."""
        i, j = around(square.top, square.bottom, 6), around(square.left, square.right, 6)
        cell = edge(cells, i, j)
        rows, columns = cell.shape[1] - 2, cell.shape[2] - 2
        colour = cell.reshape(3, 4, *cell.shape[1:]).sum(1, dtype=np.int32)
        local = (sum_3x3(colour) * np.int32(1820) + np.int32(32768)) >> 16
        inner = cell[:, 1:-1, 1:-1]
        difference = compand((inner - local.repeat(4, axis=0) + 4) >> 3)
        place_i, place_j = (np.where((n[1:-1] % 4) % 3 == 0, 32, -32).astype(np.int32) for n in (i, j))
        places = np.broadcast_to(place_i[:, None], (rows, columns)), np.broadcast_to(place_j, (rows, columns))
        cells_a_block = BLOCK // 2
        quality = edge(self.quality, i[1:-1] // cells_a_block, j[1:-1] // cells_a_block)
        told = quality_planes((quality + 25 * refinement).clip(max=100))
        inputs = np.concatenate((difference, np.stack(places), told))
        correction = chain(self.weights, "lossy.enhance", inputs, use)
        return cells[:, *square.slices] + correction

    def native_picture(self, level: int) -> Array:
        """Level 1 at 1/4 or level 2 at 1/2 of the size, uint8 RGB [3, h, w]."""
        side = 2 * level
        height, width = (ceil_div(n * side, BLOCK) for n in self.geometry.grids[0])
        return opponent_to_rgb(self.samples(side, 14 - level))[:, :height, :width]


def sum_3x3(planes: Array) -> Array:
    """Sums of int32 [..., h, w] over 3 x 3 positions: [..., h - 2, w - 2]."""
    rows, columns = planes.shape[-2] - 2, planes.shape[-1] - 2
    total = np.zeros((*planes.shape[:-2], rows, columns), np.int32)
    for y in range(3):
        for x in range(3):
            total += planes[..., y : y + rows, x : x + columns]
    return total


def opponent_to_rgb(sample: Array) -> Array:
    """uint8 RGB of three planes of samples, sixteenths."""
    o0, o1, o2 = sample
    rgb = np.stack((o0 + o1 + o2, o0 - 2 * o2, o0 - o1 + o2))
    out: Array = (((rgb + 8) >> 4) + 128).clip(0, 255).astype(np.uint8)
    return out
