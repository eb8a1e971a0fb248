"""The exact levels (docs/format.md, sections 11 and 12). Pixels are int16 YCoCg-R [3, h, w]."""

import lzma

import numpy as np

from reference.bins import BinsGroup, Values, to_grb
from reference.container import Cursor
from reference.errors import Corrupt
from reference.geometry import BINS, FIRST_EXACT, Geometry
from reference.groups import (
    Group,
    Seen,
    Tuning,
    n_parameters,
    predicted_rgb,
    read_tuning,
    rgb_to_ycocg,
    ycocg_to_rgb,
)
from reference.lanes import Lanes, Say, Zeros, brief
from reference.lossy import PHASES, phase_part
from reference.planes import add_prediction
from reference.weights import Array, Weights

LANES, PLAIN, TUNED, PLAIN_GRAY, PACKED = range(5)
PLAIN_DEPTH = {PLAIN: 3, PLAIN_GRAY: 1}


Window = tuple[slice, slice]
Known = tuple[int, Window, Array]
"""Grid, rows and columns of it, and their pixels."""


class Grids:
    """The exact levels' way from grid `top` to the picture.

    quality: that exact levels are told. bound: of the bins, 0 without. lossy: the lossy picture, uint8 RGB
    [3, H, W], or None in an archival file. there: (level, part) of all usable packets.
    """

    def __init__(
        self,
        weights: Weights,
        geometry: Geometry,
        quality: int,
        bound: int,
        lossy: Array | None,
        there: set[tuple[int, int]],
        say: Say,
    ):
        self.there = there
        self.weights, self.geometry, self.quality, self.bound = weights, geometry, quality, bound
        self.lossy, self.say = lossy, say
        self.usable: list[Known] = []
        self.usable_values: list[Known] = []
        self.missing: list[tuple[Window, bool]] = []
        """Of the last grid, and whether all that the group needs is there."""

    def decode(self, payloads: dict[tuple[int, int], bytes]) -> Array:
        """The picture uint8 RGB [3, H, W] from the payloads of the usable exact packets, by (level, part)."""
        first = payloads.get((FIRST_EXACT, 1))
        if first is not None and first[:1] == bytes([PACKED]):
            return unpack(first[1:], self.geometry.grids[0])
        top = self.geometry.top
        if first is None:
            assert self.lossy is not None
            return self.lossy
        mode, body = split(first)
        if mode not in PLAIN_DEPTH:
            raise Corrupt(f"level 4 has mode {mode}")
        (pixels,) = plain(body, PLAIN_DEPTH[mode], [self.geometry.grids[top]])
        self.say(f"level 4: Y {brief(pixels[0])}; Co {brief(pixels[1])}; Cg {brief(pixels[2])}")
        errors = np.zeros(pixels.shape, np.int32)
        self.usable = [(top, (slice(None), slice(None)), pixels)]
        blind = False
        bins, exact = pixels, pixels  # on the same grid, level after level
        for level in self.geometry.value_levels:
            n = BINS + level if self.bound else level
            coarse_bins = bins
            bins, errors, coded = self.advance(n, coarse_bins, errors, payloads, blind)
            blind = blind or not coded
            if self.bound:
                exact = self.advance_values(level, exact, coarse_bins, bins, coded, payloads)
        return self.shown(bins)

    def shown(self, pixels: Array) -> Array:
        """The picture of the last grid, of bins if there are any, where missing groups are predicted (section
        12)."""
        rgb = ycocg_to_rgb(pixels)
        for window, is_next in self.missing:
            predicted = predicted_rgb(pixels[:, *window])
            if self.lossy is None:
                rgb[:, *window] = predicted
            else:
                lossy = self.lossy[:, *window]
                rgb[:, *window] = (predicted.astype(np.int32) + lossy + 1) >> 1 if is_next else lossy
        for k, window, known in (self.usable if self.lossy is not None else []) + self.usable_values:
            rgb[:, :: 1 << k, :: 1 << k][:, *window] = ycocg_to_rgb(known)
        return rgb

    def lossy_grid(self, k: int) -> Array:
        """The lossy picture on grid k, int16 YCoCg-R."""
        assert self.lossy is not None
        return rgb_to_ycocg(self.lossy[:, :: 1 << k, :: 1 << k])

    def advance(
        self,
        level: int,
        coarse: Array,
        errors: Array,
        payloads: dict[tuple[int, int], bytes],
        blind: bool,
    ) -> tuple[Array, Array, dict[int, Group]]:
        """The next finer grid, its prior errors, and the level's groups that have a payload, by part.

        blind: an earlier level had no groups at all.
        """
        groups = {part: body for (n, part), body in payloads.items() if n == level and part}
        coded: dict[int, Group] = {}
        k = self.geometry.grid_of(level)
        lossy = None if self.lossy is None else self.lossy_grid(k)
        fine = np.zeros((3, *self.geometry.grids[k]), np.int16) if lossy is None else lossy.copy()
        fine_errors = np.zeros(fine.shape, np.int32)
        phase_part(fine, "A")[:] = coarse
        phase_part(fine_errors, "A")[:] = errors
        is_tuned = any(split(body)[0] == TUNED for body in groups.values())
        tunings = self.tunings(level, k, payloads.get((level, 0))) if is_tuned else {}
        seen = Seen(self.weights, self.quality, k, coarse, errors, lossy, self.say)
        for part, rectangle in self.geometry.groups(level):
            group = BinsGroup(seen, rectangle, self.bound) if self.bound else Group(seen, rectangle)
            if part not in groups:
                if lossy is None or not k:
                    group.code(Zeros(), {}, network=not blind or lossy is not None)
                    group.forget_errors()
            else:
                mode, body = split(groups[part])
                self.say(f"level {level}, part {part}: {rectangle} of grid {k}, mode {mode}")
                if mode in PLAIN_DEPTH:
                    group.fill(plain(body, PLAIN_DEPTH[mode], [p.shape[1:] for p in group.pixels.values()]))
                elif mode in (LANES, TUNED):
                    lanes = Lanes(self.weights.starts, body, group.n_symbols, self.say)
                    group.code(lanes, tunings if mode == TUNED else {})
                    lanes.finish()
                else:
                    raise Corrupt(f"a group of level {level} has mode {mode}")
                coded[part] = group
            for phase in PHASES:
                phase_part(fine[:, *rectangle.slices], phase)[:] = group.pixels[phase]
                phase_part(fine_errors[:, *rectangle.slices], phase)[:] = group.errors[phase]
            if part in coded:
                self.usable.append((k, rectangle.slices, fine[:, *rectangle.slices]))
            elif not k:
                needs = set(self.geometry.needs(level, part, self.lossy is None))
                self.missing.append((rectangle.slices, needs <= self.there))
        return fine, fine_errors, coded

    def advance_values(
        self,
        level: int,
        coarse: Array,
        coarse_bins: Array,
        bins: Array,
        coded_bins: dict[int, Group],
        payloads: dict[tuple[int, int], bytes],
    ) -> Array:
        """The next finer grid of a file with values after bins.

        coarse, coarse_bins: the coarser grid, and what its bins are. bins, coded_bins: the finer grid's, and
        its groups that have a payload, by part.
        """
        fine = bins.copy()
        phase_part(fine, "A")[:] = coarse
        k = self.geometry.grid_of(level)
        distances = to_grb(coarse) - to_grb(coarse_bins)
        for part, rectangle in self.geometry.groups(level):
            if (level, part) not in payloads:
                continue
            mode, body = split(payloads[level, part])
            self.say(f"level {level}, part {part}: values, mode {mode}")
            if mode != LANES:
                raise Corrupt(f"values of level {level} have mode {mode}")
            group_of_bins = coded_bins[part]
            assert isinstance(group_of_bins, BinsGroup)
            group = Values(group_of_bins, distances)
            lanes = Lanes(self.weights.starts, body, group_of_bins.n_symbols, self.say)
            group.code(lanes)
            lanes.finish()
            for phase, pixels in group.pixels().items():
                phase_part(fine[:, *rectangle.slices], phase)[:] = pixels
            self.usable_values.append((k, rectangle.slices, fine[:, *rectangle.slices]))
        return fine

    def tunings(self, level: int, k: int, shared: bytes | None) -> dict[str, Tuning]:
        """The tuning of a level, on grid k, from its part 0."""
        if shared is None:
            raise Corrupt(f"level {level} has tuned groups and no part 0")
        mode, body = split(shared)
        if mode != TUNED:
            raise Corrupt(f"part 0 of level {level} has mode {mode}")
        self.say(f"level {level}, part 0")
        most = sum(n_parameters(self.weights, phase) for phase in PHASES)
        lanes = Lanes(self.weights.starts, body, most, self.say)
        tunings = read_tuning(self.weights, lanes, min(k, 2))
        lanes.finish()
        return tunings


def split(payload: bytes) -> tuple[int, bytes]:
    """Mode and body."""
    if not payload:
        raise Corrupt("an empty payload")
    return payload[0], payload[1:]


def plain(body: bytes, depth: int, sizes: list[tuple[int, ...]]) -> list[Array]:
    """Pixels of planes of these sizes, one after the other, from bytes."""
    cursor = Cursor(body)
    planes = []
    for rows, columns in sizes:
        rgb = np.frombuffer(cursor.take(rows * columns * depth), np.uint8).reshape(rows, columns, depth)
        planes.append(rgb_to_ycocg(np.broadcast_to(rgb, (rows, columns, 3)).transpose(2, 0, 1)))
    if cursor.rest():
        raise Corrupt("bytes after plain pixels")
    return planes


def unpack(body: bytes, size: tuple[int, int]) -> Array:
    """A packed picture, uint8 RGB [3, H, W]."""
    if len(body) < 2 or body[0] not in (1, 3) or body[1] > 3:
        raise Corrupt("a packed picture of a kind that there is not")
    depth, predictor = body[0], body[1]
    n_bytes = size[0] * size[1] * depth
    dictionary = max(4096, min(n_bytes, 1 << 24))
    stream = lzma.LZMADecompressor(
        lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}]
    )
    try:
        data = stream.decompress(body[2:], n_bytes + 1)
    except lzma.LZMAError as e:
        raise Corrupt(f"a packed picture: {e}") from e
    if len(data) != n_bytes or not stream.eof or stream.unused_data:
        raise Corrupt("a packed picture of another size")
    residuals = np.frombuffer(data, np.uint8).reshape(*size, depth).transpose(2, 0, 1)
    planes = np.stack([add_prediction(residual, predictor, None) for residual in residuals])
    if depth == 1:
        return planes.repeat(3, axis=0)
    return np.stack((planes[0] + planes[1], planes[1], planes[2] + planes[1]))
