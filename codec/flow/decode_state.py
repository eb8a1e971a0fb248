"""What is decoded of a file so far, and the best picture that it gives.

`advance` takes groups of a level in any order that respects what they need, so one state serves whole files,
regions, files that arrive in pieces and files of which packets are missing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.container import Header, levels_present
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.geometry import FIRST_BINS, LOSSY_LEVELS, is_bins, is_lossy, level_of, stage_of
from vbc.codec.entropy.coder import Decoder, finish_all
from vbc.codec.exact.groups import GridStep, Predictions
from vbc.codec.exact.level import (
    PACKED,
    RAW_DEPTH,
    DecodedGroups,
    decode_groups,
    decode_values,
    fill_groups,
    put_group,
    put_predictions,
    split_packet,
)
from vbc.codec.exact.planes import every, in_batches, stack
from vbc.codec.exact.values import ValuesStep
from vbc.codec.extra.packed_picture import decode_packed
from vbc.codec.lossy.coding import code_groups as code_lossy_groups
from vbc.codec.lossy.coding import code_maps, prior_means
from vbc.codec.lossy.latents import LEVEL_LATENTS, LEVEL_START, N_LATENTS, level_latents
from vbc.codec.lossy.synthesis import native_picture, synthesise
from vbc.codec.model import Model
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import predicted_rgb, rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.pixels.samples import from_samples

BASE_LEVEL = LOSSY_LEVELS + 1
"""The coarsest exact grid, which every file with exact levels has."""
CODED, CODED_WITH_MAP, CODED_WITH_OFFSETS = 0, 1, 2
"""First byte of a lossy packet: lanes follow; lanes that begin with a map of qualities; lanes that begin with
offsets of scales."""
LOSSY_MODES = {1: (CODED, CODED_WITH_MAP), 2: (CODED, CODED_WITH_OFFSETS), 3: (CODED, CODED_WITH_OFFSETS)}
"""Those that there are, by level; refinements have the first one alone."""
HOST_BLOCKS, DEVICE_BLOCKS = 1 << 14, 1 << 18
"""Blocks of 8x8 pixels in the lossy groups that are decoded together."""

Square = tuple[int, int]


@dataclass
class Grids:
    """The exact grids, of values or of bins.

    pixels: x_k by k, int16 YCoCg-R [B, 3, h, w], but x_0 uint8 RGB. errors: prior errors by k, int8 [B, 3, h,
    w]. predictions: of bins, by k, where values follow.
    """

    pixels: dict[int, Tensor] = field(default_factory=dict)
    errors: dict[int, Tensor] = field(default_factory=dict)
    predictions: dict[int, Predictions] = field(default_factory=dict)


@dataclass
class Planes:
    """The memory of a decode of B pictures; what is not decoded yet holds no meaning.

    latents: int16 [B, 192, h, w] on the grid of blocks, eighths, by refinement (0: none): of each block and
    level the finest value up to that refinement. What nothing looks at any more is left out. quality: int32
    [B, 1, h, w], their map; the header's where level 1 is missing. lossy: their picture, uint8 RGB [B, 3, H,
    W]. final: its squares of 64 x 64 blocks that will not change any more. values, bins: the exact grids.
    predicted: groups of the last grid of a layered file for which predictions stand in it.
    """

    latents: dict[int, Tensor] = field(default_factory=dict)
    quality: Tensor | None = None
    lossy: Tensor | None = None
    final: set[Square] = field(default_factory=set)
    values: Grids = field(default_factory=Grids)
    bins: Grids = field(default_factory=Grids)
    predicted: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class DecodeState:
    """Groups decoded so far, by level, of one file or of several that are decoded together.

    header: of the first file. The others have the same size, quality, flags, model and groups; a group is
    decoded of all of them at once. States of one decode share the memory of their planes.
    """

    model: Model
    header: Header
    done: Mapping[int, frozenset[int]] = field(default_factory=dict)
    packed: bool = False
    """Whether level 4 held the whole picture."""
    n_pictures: int = 1
    planes: Planes = field(default_factory=Planes, repr=False)

    # decoding

    def advance(
        self, level: int, packets: Mapping[int, memoryview], shared: memoryview | None = None
    ) -> "DecodeState":
        """Decode groups of a level. packets: theirs by number; shared: what the level's groups share, if
        anything.

        All that they need must have been decoded. Raises Corrupt.
        """
        return self.advance_together(level, {n: (packet,) for n, packet in packets.items()}, (shared,))

    def advance_together(
        self,
        level: int,
        packets: Mapping[int, Sequence[memoryview]],
        shared: Sequence[memoryview | None],
    ) -> "DecodeState":
        """As `advance`, of several files: each packet and what is shared of every one, in their order."""
        packed = self.packed
        if packets:
            if is_lossy(level):
                self._decode_lossy(level, packets)
            elif level == BASE_LEVEL:
                packed = self._decode_base(packets[0])
            else:
                self._decode_exact(level, packets, shared)
        done = {**self.done, level: self.done.get(level, frozenset()) | packets.keys()}
        after = replace(self, done=done, packed=packed)
        if is_lossy(level):
            after._drop_latents(level)
        return after

    def advance_parts(self, level: int, parts: Mapping[int, memoryview]) -> "DecodeState":
        """As `advance`, of packets by part: 0 is what the groups share, n + 1 is group n."""
        return self.advance(level, {part - 1: body for part, body in parts.items() if part}, parts.get(0))

    def has(self, level: int, groups: Iterable[int]) -> bool:
        """Whether all of these groups of a level are decoded; those of a packed picture are."""
        return self.done.get(level, frozenset()).issuperset(groups)

    def _decode_lossy(self, level: int, packets: Mapping[int, Sequence[memoryview]]) -> None:
        geometry = self.header.geometry
        refinement, n = stage_of(level)
        below = None if n == 1 else self._latents(refinement)[:, : LEVEL_START[n - 1]]
        numbers = list(packets)
        windows = [geometry.window(level, n) for n in numbers]
        readers: list[Decoder] = []
        for batch in in_batches(windows, self._most_blocks()):
            bodies, with_map, moved = [], [], []
            for packet in (packet for i in batch for packet in packets[numbers[i]]):
                mode, body = split_packet(packet)
                if mode not in LOSSY_MODES.get(level, (CODED,)):
                    raise Corrupt(f"a group of level {level} has mode {mode}")
                bodies.append(body)
                with_map.append(mode == CODED_WITH_MAP)
                moved.append(mode == CODED_WITH_OFFSETS)
            parts = [windows[i] for i in batch]
            rows, cols = parts[0]
            n_blocks = (rows.stop - rows.start) * (cols.stop - cols.start)
            most = n_blocks * (LEVEL_LATENTS[n - 1] + any(with_map)) + LEVEL_LATENTS[n - 1] * any(moved)
            reader = self.model.reader(bodies, most)
            if any(with_map):
                self._decode_maps(reader, parts, with_map)
            coarse = None
            if refinement:
                known = self._latents(refinement - 1)[:, level_latents(n)]
                coarse = torch.cat([known[..., *window] for window in parts])
            decoded = code_lossy_groups(
                self.model.lossy,
                reader,
                n,
                below,
                parts,
                self._quality(),
                refinement=refinement,
                coarse=coarse,
                moved=torch.tensor(moved).to(self.model.device) if any(moved) else None,
            )
            if self.model.decodes_blindly:
                readers.append(reader)
            else:
                reader.finish()
            self._put_latents(level, parts, decoded)
        finish_all(readers)

    def _decode_maps(self, reader: Decoder, windows: list[Window], with_map: list[bool]) -> None:
        """Take the maps of groups of level 1, all of one shape, of those that have one."""
        coded = torch.tensor(with_map).to(self.model.device)
        maps = code_maps(self.model.lossy, reader, windows, self.header.quality, coded)
        for window, part in zip(windows, torch.split(maps, self.n_pictures), strict=True):
            self._quality()[..., *window] = part

    def _put_latents(self, level: int, windows: Sequence[Window], decoded: Tensor) -> None:
        """Keep the latents of windows of a lossy level: int16 [W * B, C, h, w]."""
        refinement, n = stage_of(level)
        self._latents(refinement)
        # a refinement of these windows would have needed them, so none is there yet
        finer = [plane for r, plane in self.planes.latents.items() if r >= refinement]
        for window, part in zip(windows, torch.split(decoded, self.n_pictures), strict=True):
            for plane in finer:
                plane[:, level_latents(n), *window] = part

    def _drop_latents(self, level: int) -> None:
        """Forget what only the refinement of a level needed, once all of it is there: 6 bytes a pixel."""
        refinement = stage_of(level)[0]
        levels = [level_of(refinement, n) for n in range(1, LOSSY_LEVELS + 1)]
        if refinement and all(self._is_whole(n) for n in levels):
            self.planes.latents.pop(refinement - 1, None)

    def _is_whole(self, level: int) -> bool:
        """Whether all groups of a level are decoded."""
        return len(self.done.get(level, ())) == self.header.geometry.n_groups(level)

    def _decode_base(self, packets: Sequence[memoryview]) -> bool:
        """Level 4; returns whether it held the whole pictures."""
        geometry = self.header.geometry
        alone = levels_present(self.header)[-1] == BASE_LEVEL
        bases = []
        modes = set()
        for packet in packets:
            mode, body = split_packet(packet)
            modes.add(mode)
            if mode == PACKED:
                bases.append(decode_packed(body, geometry.grids[0]))
            elif mode in RAW_DEPTH:
                bases.append(from_samples(body, *geometry.grids[geometry.top], RAW_DEPTH[mode]))
            else:
                raise Corrupt(f"the base grid has mode {mode}")
        packed = modes == {PACKED}
        if PACKED in modes and not packed:
            raise Corrupt("packed pictures among others")
        base = stack(bases).to(self.model.device)
        if packed:
            if not alone:
                raise Corrupt("exact levels beside a packed picture")
            self.planes.values.pixels[0] = base
            return True
        if self.header.lossless and geometry.top and alone:
            raise Corrupt("the file says lossless but has only the base grid")
        for grids in (self.planes.values, self.planes.bins):
            grids.pixels[geometry.top] = base if geometry.top == 0 else rgb_to_ycocg(base)
            grids.errors[geometry.top] = torch.zeros_like(base, dtype=torch.int8)
        return False

    def _decode_exact(
        self,
        level: int,
        packets: Mapping[int, Sequence[memoryview]],
        shared: Sequence[memoryview | None],
    ) -> None:
        windows = {n: self.header.geometry.window(level, n) for n in packets}
        if self.header.bound and not is_bins(level):
            for groups in decode_values(self.model, self._values_step(level), windows, packets):
                self._put(level, [windows[n] for n in groups.numbers], groups)
            return
        lossy = None
        if not self.header.archival:
            self._synthesise(self._squares_needed(level, packets))
            lossy = self.planes.lossy
        step = self._grid_step(level, lossy)
        for groups in decode_groups(self.model, step, windows, packets, shared):
            self._put(level, [windows[n] for n in groups.numbers], groups)

    def _grids(self, level: int) -> Grids:
        """The grids that a level belongs to."""
        return self.planes.bins if is_bins(level) else self.planes.values

    def _grid_step(self, level: int, lossy: Tensor | None) -> GridStep:
        k, grids = self.header.geometry.grid_index(level), self._grids(level)
        return GridStep(
            model=self.model.exact,
            coarse=grids.pixels[k + 1],
            errors=grids.errors[k + 1],
            lossy=None if lossy is None else every(lossy, k),
            level_class=min(k, N_LEVEL_CLASSES - 1),
            quality=self.header.final_quality,
            bound=self.header.bound if is_bins(level) else 0,
            keep=is_bins(level) and self.header.has_values,
        )

    def _values_step(self, level: int) -> ValuesStep:
        k, bins = self.header.geometry.grid_index(level), self.planes.bins
        return ValuesStep(
            model=self.model.exact.values,
            middles=bins.pixels[k],
            coarse=self.planes.values.pixels[k + 1],
            coarse_middles=bins.pixels[k + 1],
            predictions=bins.predictions[k],
            level_class=min(k, N_LEVEL_CLASSES - 1),
        )

    def _put(
        self,
        level: int,
        windows: Sequence[Window],
        groups: DecodedGroups,
        to_rgb: Callable[[Tensor], Tensor] = ycocg_to_rgb,
    ) -> None:
        k, grids = self.header.geometry.grid_index(level), self._grids(level)
        self._make_grid(grids, k)
        for n, window in enumerate(windows):
            put_group(grids.pixels[k], grids.pixels[k + 1], window, groups.pixels, n, groups.pictures, to_rgb)
            if k and groups.errors:
                put_group(grids.errors[k], grids.errors[k + 1], window, groups.errors, n, groups.pictures)
            if groups.predictions:
                if k not in grids.predictions:
                    grids.predictions[k] = Predictions.empty(grids.pixels[k])
                put_predictions(grids.predictions[k], window, groups.predictions, n, groups.pictures)

    def _make_grid(self, grids: Grids, k: int) -> None:
        """Make the plane of x_k, and of its errors, where there is none yet."""
        if k in grids.pixels:
            return
        size = (self.n_pictures, 3, *self.header.geometry.grids[k])

        def plane(dtype: torch.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=self.model.device, memory_format=torch.channels_last)

        grids.pixels[k] = plane(torch.int16 if k else torch.uint8)
        if k:
            grids.errors[k] = plane(torch.int8)

    # the picture

    def picture(self, last_level: int, wanted: Mapping[int, Collection[int]], native: bool = False) -> Tensor:
        """The best picture of the groups decoded, of each file: uint8 RGB [B, 3, H, W].

        last_level: the last level that is used. wanted: by level the groups that are to be worked out, for a
        whole picture all of the levels of its size; beyond them the picture has no meaning. native: after
        level 1 or 2 at 1/4 or 1/2 of the size.
        """
        values, geometry = self.planes.values, self.header.geometry
        if self.packed:
            return values.pixels[0]
        exact = not is_lossy(last_level) and BASE_LEVEL in self.done
        finest = wanted.get(geometry.last_level)
        if exact and finest is not None and self.has(geometry.last_level, finest):
            return values.pixels[0]
        if self.header.archival:
            return self._archival_picture(wanted)
        if exact and self.header.bound and self.has(geometry.last_bins, wanted[geometry.last_bins]):
            return self._bins_with_values()
        if not exact and native and last_level < LOSSY_LEVELS:
            self._complete_latents(2, wanted)
            size = self.header.geometry.grids[0]
            return native_picture(self.model.lossy, self._finest(), size, last_level)
        squares = self._squares(wanted[LOSSY_LEVELS])
        if not squares <= self.planes.final:
            self._complete_latents(LOSSY_LEVELS, wanted)
            self._synthesise(squares)
        assert self.planes.lossy is not None
        return self._layered_picture(self.planes.lossy, wanted) if exact else self.planes.lossy

    def _archival_picture(self, wanted: Mapping[int, Collection[int]]) -> Tensor:
        """The picture of an archival file of which not all is known."""
        self._predict_missing(wanted)
        return self._bins_with_values() if self.header.bound else self.planes.values.pixels[0]

    def _bins_with_values(self) -> Tensor:
        """The picture of the bins with what is known of the exact one."""
        picture = self.planes.bins.pixels[0].clone(memory_format=torch.channels_last)
        return self._with_known_pixels(picture, bins=False)

    def _finer_levels(self) -> range:
        """The levels that say what pixels are shown, above the base grid: of values or, where the file has
        them, of bins."""
        geometry = self.header.geometry
        if self.header.bound:
            return range(FIRST_BINS, geometry.last_bins + 1)
        return range(BASE_LEVEL + 1, geometry.last_level + 1)

    def _layered_picture(self, lossy: Tensor, wanted: Mapping[int, Collection[int]]) -> Tensor:
        """The picture of a layered file of which not all is known.

        In groups of the last grid of which all is there but themselves, the middle between the lossy picture
        and what the networks predict; elsewhere the lossy picture; then what is known.
        """
        geometry = self.header.geometry
        level = self._finer_levels()[-1]
        done, predicted = self.done.get(level, frozenset()), self.planes.predicted
        ready = [n for n in wanted[level] if n not in done and self._has_needs(level, n)]
        self._predict(level, [n for n in ready if n not in predicted], lossy)
        predicted.update(ready)
        out = lossy.clone(memory_format=torch.channels_last)
        for n in ready:
            window = geometry.window(level, n)
            a, b = (plane[..., *window] for plane in (lossy, self._grids(level).pixels[0]))
            out[..., *window] = (a | b) - ((a ^ b) >> 1)  # (a + b + 1) >> 1 of bytes
        return self._with_known_pixels(out)

    def _has_needs(self, level: int, group: int) -> bool:
        """Whether all that a group of a layered file needs is decoded."""
        geometry = self.header.geometry
        needs = geometry.needs(level, group, archival=False)
        return all(self.has(other, geometry.numbers(other, rectangle)) for other, rectangle in needs.items())

    def _with_known_pixels(self, out: Tensor, bins: bool = True) -> Tensor:
        """A picture, which is written into, with what is known of the exact one. bins: also of its bins."""
        geometry = self.header.geometry
        for level in geometry.levels:
            if is_lossy(level) or (is_bins(level) and not bins):
                continue
            k = geometry.grid_index(level)
            for n in self.done.get(level, ()):
                rows, cols = geometry.window(level, n)
                known = self._grids(level).pixels[k][..., rows, cols]
                every(out, k)[..., rows, cols] = known if known.dtype == torch.uint8 else ycocg_to_rgb(known)
        return out

    def _predict_missing(self, wanted: Mapping[int, Collection[int]]) -> None:
        """Pixels of the missing groups of exact levels of an archival file, all of them or those of bins.

        The networks' predictions up to the first level of which nothing is decoded; then means of known
        neighbours.
        """
        network = True
        for level in self._finer_levels():
            done = self.done.get(level, frozenset())
            self._predict(level, [n for n in wanted[level] if n not in done], None, network)
            network = network and bool(done)

    def _predict(
        self, level: int, numbers: Sequence[int], lossy: Tensor | None, network: bool = True
    ) -> None:
        """Let predictions stand for groups of an exact level. Arguments: as of `fill_groups`."""
        if not numbers:
            return
        windows = [self.header.geometry.window(level, n) for n in numbers]
        for groups in fill_groups(self._grid_step(level, lossy), windows, network):
            self._put(level, [windows[i] for i in groups.numbers], groups, predicted_rgb)

    def _complete_latents(self, last: int, wanted: Mapping[int, Collection[int]]) -> None:
        """Let the priors' means stand for the missing groups of levels 2 to `last`, 3 at most."""
        geometry = self.header.geometry
        for level in range(2, last + 1):
            done = self.done.get(level, frozenset())
            windows = [geometry.window(level, n) for n in wanted[level] if n not in done]
            for batch in in_batches(windows, self._most_blocks()):
                below = self._latents(0)[:, : LEVEL_START[level - 1]]
                parts = [windows[i] for i in batch]
                means = prior_means(self.model.lossy, level, below, parts, self._quality())
                self._put_latents(level, parts, means)

    def _synthesise(self, squares: Iterable[Square]) -> None:
        """Work out squares of the lossy picture, but for those that are final."""
        geometry, planes = self.header.geometry, self.planes
        if planes.lossy is None:
            size = (self.n_pictures, 3, *geometry.grids[0])
            planes.lossy = torch.empty(
                size, dtype=torch.uint8, device=self.model.device, memory_format=torch.channels_last
            )
        changing = sorted(set(squares) - planes.final)
        if not changing:
            return
        synthesise(
            self.model.lossy,
            self._finest(),
            geometry.grids[0],
            self._levels_used(),
            self._quality(),
            changing,
            planes.lossy,
            self._refined(),
        )
        whole = self._whole_squares()
        for row, col in changing:
            if whole[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2].all():
                planes.final.add((row, col))
        if len(planes.final) == whole.size:
            planes.latents.clear()  # six bytes a pixel that nothing looks at any more

    def _whole_squares(self) -> NDArray[np.bool_]:
        """Of which squares of 64 x 64 blocks all lossy levels of the file are decoded: [rows, cols]."""
        geometry = self.header.geometry
        level = geometry.last_lossy
        lacking = np.zeros(geometry.group_counts(LOSSY_LEVELS), bool)
        a_side = geometry.side(LOSSY_LEVELS) // geometry.side(level)
        for n in set(range(geometry.n_groups(level))) - self.done.get(level, frozenset()):
            row, col = divmod(n, geometry.group_counts(level)[1])
            lacking[row // a_side, col // a_side] = True
        return ~lacking

    def _refined(self) -> NDArray[np.int64]:
        """How many refinements are decoded of each square of 32 x 32 blocks: [rows, cols]."""
        geometry = self.header.geometry
        level = level_of(1, LOSSY_LEVELS)
        refined = np.zeros(geometry.n_groups(level), np.int64)
        for refinement in range(1, geometry.refinements + 1):  # a group needs that of the one before
            refined[list(self.done.get(level_of(refinement, LOSSY_LEVELS), ()))] = refinement
        return refined.reshape(geometry.group_counts(level))

    def _levels_used(self) -> NDArray[np.int64]:
        """The last of levels 1 to 3 decoded, or 0, for each square of 64 x 64 blocks: int64 [rows, cols]."""
        geometry = self.header.geometry
        rows, cols = geometry.group_counts(LOSSY_LEVELS)
        side = geometry.side(LOSSY_LEVELS)
        used = np.zeros((rows, cols), np.int64)
        for level in range(1, LOSSY_LEVELS + 1):
            for n in self.done.get(level, ()):
                window = geometry.window(level, n)
                used[tuple(slice(part.start // side, -(-part.stop // side)) for part in window)] = level
        return used

    def _squares(self, groups: Iterable[int]) -> set[Square]:
        """The squares of 64 x 64 blocks of groups of level 3."""
        n_cols = self.header.geometry.group_counts(LOSSY_LEVELS)[1]
        return {divmod(n, n_cols) for n in groups}

    def _squares_needed(self, level: int, groups: Iterable[int]) -> set[Square]:
        """The squares of the lossy picture that groups of an exact level see."""
        geometry = self.header.geometry
        last = geometry.last_lossy
        a_side = geometry.side(LOSSY_LEVELS) // geometry.side(last)
        needed = (geometry.needs(level, n, archival=False)[last] for n in groups)
        return {(row // a_side, col // a_side) for rows, cols in needed for row in rows for col in cols}

    def _latents(self, refinement: int) -> Tensor:
        """The plane of latents up to a refinement; those of missing groups of level 1 are 0."""
        latents = self.planes.latents
        if refinement not in latents:
            if refinement:
                latents[refinement] = self._latents(refinement - 1).clone()
            else:
                size = (self.n_pictures, N_LATENTS, *self.header.geometry.level_size(1))
                latents[0] = torch.zeros(size, dtype=torch.int16, device=self.model.device)
        return latents[refinement]

    def _finest(self) -> Tensor:
        """The plane of latents up to the last refinement of which anything is decoded."""
        return self._latents(max(self.planes.latents, default=0))

    def _quality(self) -> Tensor:
        """The plane of qualities."""
        if self.planes.quality is None:
            size = (self.n_pictures, 1, *self.header.geometry.level_size(1))
            self.planes.quality = torch.full(
                size, self.header.quality, dtype=torch.int32, device=self.model.device
            )
        return self.planes.quality

    def _most_blocks(self) -> int:
        """Blocks of a picture in the lossy groups that are decoded together."""
        most = HOST_BLOCKS if self.model.device.type == "cpu" else DEVICE_BLOCKS
        return most // self.n_pictures
