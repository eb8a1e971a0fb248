"""Grids and groups of the levels of a picture, and what a group needs (docs/format.md, sections 4 and 5).

A level codes the positions of a grid: the lossy levels that of the 8x8 blocks, exact level n the grid x_k of
every 2^k-th pixel of every 2^k-th row. A group is a square of that grid that is coded on its own. Lossy are
the levels 1 to 3 and their refinements: refinement r of level n is a level of its own, 32 + 3 (r - 1) + n. In
a file with bins, level 66 + n holds the bins of exact level n, whose grid it has.
Rows and columns never mix here: what a group needs is found on each axis by itself.

Light to import: neither torch nor numpy.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

LOSSY_LEVELS = 3
"""Levels 1 to 3 are lossy; those from 4 to 32 are exact."""

MAX_LEVEL = 63
"""Units 1 to 63 are levels, and those of bins."""

FIRST_REFINED, MAX_REFINEMENTS = 33, 3
"""Levels 33 to 41 are lossy again: refinements 1 to 3 of levels 1 to 3."""

BINS = 66
"""Level 66 + n has the bins of exact level n, from the second exact level on."""
FIRST_BINS, LAST_BINS = 71, 98

BLOCK = 8
"""Side of a block in pixels."""

BASE_SIDE = 8
"""The coarsest grid x_top, which level 4 codes in one group, has no side above this."""

PRIOR_REACH = 8
"""Blocks beyond its own that a group of levels 2 and 3 sees of the lossy levels below."""

COARSE_REACH = 4
"""Positions of the coarser grid beyond its own that a group of an exact level sees."""

PICTURE_REACH = 2
"""Blocks beyond its own that a part of the lossy picture is made from."""

Rectangle = tuple[range, range]
"""Rows and columns of groups."""


@dataclass(frozen=True)
class Sides:
    """Sides of the groups.

    lossy: blocks, of levels 1 to 3. refined: blocks, of the refinements of levels 1 to 3; multiples of the
    last one, which divides that of level 3. exact: positions of x_0, x_1, ...; the last one serves all
    coarser grids too; even, so that a group has whole squares of four positions.
    """

    lossy: tuple[int, int, int] = (256, 128, 64)
    refined: tuple[int, int, int] = (256, 64, 32)
    exact: tuple[int, ...] = (512, 256, 128)


SIDES = Sides()
"""Those of the format."""


def is_lossy(level: int) -> bool:
    """Whether a level is one of 1 to 3 or a refinement of one."""
    return level <= LOSSY_LEVELS or FIRST_REFINED <= level < FIRST_BINS


def is_bins(level: int) -> bool:
    """Whether a level holds bins of an exact one."""
    return level >= FIRST_BINS


def is_value(level: int) -> bool:
    """Whether a level is an exact one above level 4."""
    return LOSSY_LEVELS + 1 < level < FIRST_REFINED


def is_level(unit: int) -> bool:
    """Whether packets of a unit belong to a level, maybe one that no picture has."""
    return 1 <= unit <= MAX_LEVEL or FIRST_BINS <= unit <= LAST_BINS


def stage_of(level: int) -> tuple[int, int]:
    """Of a lossy level: the number of the refinement, 0 for none, and the level 1 to 3 that it refines."""
    if level <= LOSSY_LEVELS:
        return 0, level
    refinement, below = divmod(level - FIRST_REFINED, LOSSY_LEVELS)
    return 1 + refinement, 1 + below


def level_of(refinement: int, level: int) -> int:
    """The number of a refinement (0: none) of level 1, 2 or 3. Inverse: stage_of."""
    return level if not refinement else FIRST_REFINED + LOSSY_LEVELS * (refinement - 1) + level - 1


def rank(level: int) -> int:
    """The place of a level in the order of all levels, 1, 2, 3, 33, ..., 41, 4, 71, ..., 98, 5, 6, ..., from
    1 on."""
    if level <= LOSSY_LEVELS:
        return level
    if is_lossy(level):
        return level - FIRST_REFINED + LOSSY_LEVELS + 1
    exact = MAX_REFINEMENTS * LOSSY_LEVELS + (level - BINS if is_bins(level) else level)
    return exact if level == LOSSY_LEVELS + 1 or is_bins(level) else exact + LAST_BINS - FIRST_BINS + 1


def refinements_of(levels: Iterable[int]) -> int:
    """How many refinements a file with these levels has."""
    return max((stage_of(level)[0] for level in levels if is_lossy(level)), default=0)


@dataclass(frozen=True)
class Geometry:
    """Levels and groups of a picture of `width` x `height` pixels, both >= 1.

    refinements: of the file; exact levels look at the picture of all of them. binned: whether its exact
    levels have bins before them.

    Groups of a level are numbered 0, 1, ... in raster order; in a file, group g is part g + 1 of its level.
    Sizes are (rows, columns).
    """

    width: int
    height: int
    sides: Sides = field(default_factory=lambda: SIDES)
    refinements: int = 0
    binned: bool = False

    @cached_property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Sizes of x_0, x_1, ... down to x_top, the first with no side above 8."""
        sizes = [(self.height, self.width)]
        while max(sizes[-1]) > BASE_SIDE:
            rows, cols = sizes[-1]
            sizes.append(((rows + 1) // 2, (cols + 1) // 2))
        return tuple(sizes)

    @property
    def top(self) -> int:
        """Number of the coarsest grid."""
        return len(self.grids) - 1

    @property
    def last_level(self) -> int:
        """The level that makes the picture exact; the first is 1."""
        return LOSSY_LEVELS + 1 + self.top

    @property
    def last_lossy(self) -> int:
        """The level that completes the lossy picture."""
        return level_of(self.refinements, LOSSY_LEVELS)

    @property
    def last_bins(self) -> int:
        """The level that completes the picture of bins; level 4 where there is none above it."""
        return self.last_level + BINS if self.top else LOSSY_LEVELS + 1

    @property
    def levels(self) -> list[int]:
        """All levels that a file of this size can have, in their order."""
        refined = range(FIRST_REFINED, level_of(MAX_REFINEMENTS, LOSSY_LEVELS) + 1)
        bins = range(FIRST_BINS, self.last_bins + 1) if self.binned else ()
        return sorted([*range(1, self.last_level + 1), *refined, *bins], key=rank)

    def grid_index(self, level: int) -> int:
        """k of the grid x_k that an exact level, or one of bins, makes."""
        exact = level - BINS if is_bins(level) else level
        return self.top - (exact - LOSSY_LEVELS - 1)

    def level_size(self, level: int) -> tuple[int, int]:
        """Size of the level's grid: in blocks, or in positions of x_k for an exact level."""
        if is_lossy(level):
            return -(-self.height // BLOCK), -(-self.width // BLOCK)
        return self.grids[self.grid_index(level)]

    def side(self, level: int) -> int:
        """Side of the level's groups, in blocks or positions of its grid."""
        if is_lossy(level):
            refinement, n = stage_of(level)
            return (self.sides.refined if refinement else self.sides.lossy)[n - 1]
        if level == LOSSY_LEVELS + 1:
            return BASE_SIDE
        return self.sides.exact[min(self.grid_index(level), len(self.sides.exact) - 1)]

    def group_counts(self, level: int) -> tuple[int, int]:
        """Rows and columns of groups."""
        rows, cols = self.level_size(level)
        side = self.side(level)
        return -(-rows // side), -(-cols // side)

    def n_groups(self, level: int) -> int:
        """Number of groups of a level."""
        rows, cols = self.group_counts(level)
        return rows * cols

    @cached_property
    def n_parts(self) -> int:
        """Number of parts of all levels: the groups, and one for what the groups of a level share."""
        return sum(self.n_groups(level) + 1 for level in self.levels)

    def window(self, level: int, group: int) -> tuple[slice, slice]:
        """Rows and columns of the level's grid that a group codes."""
        row, col = divmod(group, self.group_counts(level)[1])
        side, (rows, cols) = self.side(level), self.level_size(level)
        return (
            slice(row * side, min(rows, (row + 1) * side)),
            slice(col * side, min(cols, (col + 1) * side)),
        )

    def groups_meeting(self, level: int, rows: slice, cols: slice) -> Rectangle:
        """Rows and columns of the groups that share a position with a window of the level's grid.

        The window may reach beyond the grid; an empty one meets no group.
        """
        return self._meeting(level, 0, rows.start, rows.stop), self._meeting(level, 1, cols.start, cols.stop)

    def _meeting(self, level: int, axis: int, start: int, stop: int) -> range:
        start, stop = max(0, start), min(self.level_size(level)[axis], stop)
        if start >= stop:
            return range(0)
        side = self.side(level)
        return range(start // side, -(-stop // side))

    def numbers(self, level: int, groups: Rectangle) -> list[int]:
        """The numbers of the groups in a rectangle of them, ascending."""
        rows, cols = groups
        width = self.group_counts(level)[1]
        return [row * width + col for row in rows for col in cols]

    def needed_levels(self, level: int, archival: bool) -> tuple[int, ...]:
        """The levels of which a group of this level needs groups, not counting what those need."""
        if is_lossy(level):
            refinement, n = stage_of(level)
            coarser = (level_of(refinement - 1, n),) if refinement else ()
            return coarser + tuple(level_of(refinement, below) for below in range(1, n))
        if level == LOSSY_LEVELS + 1:
            return ()
        if self.binned and not is_bins(level):
            return level - 1, level + BINS
        before = LOSSY_LEVELS + 1 if level == FIRST_BINS else level - 1
        return (before,) if archival else (before, self.last_lossy)

    def axis_needs(self, level: int, other: int, axis: int) -> tuple[range, ...]:
        """For each row (axis 0) or column (1) of groups of a level: those of the other level they need.

        other: one of `needed_levels`. A group needs all groups in the rows and columns found.
        """
        return _axis_needs(self, level, other, axis)

    def needs(self, level: int, group: int, archival: bool) -> dict[int, Rectangle]:
        """Level -> rectangle of the groups that a group needs itself, not counting what those need.

        archival: the exact levels are coded without a lossy picture.
        """
        row, col = divmod(group, self.group_counts(level)[1])
        return {
            other: (self.axis_needs(level, other, 0)[row], self.axis_needs(level, other, 1)[col])
            for other in self.needed_levels(level, archival)
        }

    def closure(self, groups: dict[int, Rectangle], archival: bool) -> dict[int, Rectangle]:
        """Rectangles of groups with all that they need, and what that needs; levels in their order.

        One rectangle a level is enough: of two groups of one level that need the same third level by
        different ways, the longer way needs all that the shorter one does. With refinements it may need some
        groups less, which the rectangle then has beside.
        """
        out = {level: rectangle for level, rectangle in groups.items() if _area(rectangle)}
        for level in reversed(self.levels):
            if level not in out:
                continue
            for other in self.needed_levels(level, archival):
                rows, cols = (
                    _hull(self.axis_needs(level, other, axis)[i] for i in (span[0], span[-1]))
                    for axis, span in enumerate(out[level])
                )
                if other in out:
                    rows, cols = _hull((rows, out[other][0])), _hull((cols, out[other][1]))
                out[other] = rows, cols
        return {level: out[level] for level in sorted(out, key=rank)}

    def region_groups(
        self, region: tuple[int, int, int, int], last_level: int, archival: bool
    ) -> dict[int, list[int]]:
        """Level -> numbers of the groups that the pixels of a region depend on, both ascending.

        region: x, y, width, height in pixels, inside the picture. last_level: the last level that is used.
        A decode of those groups alone gives the region the pixels of a decode of all groups of the levels up
        to `last_level`, also where what is missing above is predicted: that looks no further than a decode
        with all levels, so it is those groups of these levels that a decode with all levels needs. archival:
        the file has exact levels only.
        """
        return self.regions_groups((region,), last_level, archival)

    def regions_groups(
        self, regions: Iterable[tuple[int, int, int, int]], last_level: int, archival: bool
    ) -> dict[int, list[int]]:
        """As `region_groups`, for the pixels of any of several regions."""
        found: dict[int, set[int]] = {}
        # many regions of a mask meet the same groups
        for start in dict.fromkeys(self._first_groups(region, last_level, archival) for region in regions):
            for level, rectangle in self.closure(dict(start), archival).items():
                if rank(level) <= rank(last_level):
                    found.setdefault(level, set()).update(self.numbers(level, rectangle))
        return {level: sorted(found[level]) for level in sorted(found, key=rank)}

    def _first_groups(
        self, region: tuple[int, int, int, int], last_level: int, archival: bool
    ) -> tuple[tuple[int, Rectangle], ...]:
        """Level and groups from which on `closure` finds all that a region's pixels depend on."""
        x, y, width, height = region
        start: list[tuple[int, Rectangle]] = []
        last_lossy = last_level
        if not is_lossy(last_level):
            last_lossy = self.last_lossy
            pixels = slice(y, y + height), slice(x, x + width)
            finest = self.last_bins if is_bins(last_level) else self.last_level
            start.append((finest, self.groups_meeting(finest, *pixels)))
        if not archival:
            blocks = (
                slice(low // BLOCK - PICTURE_REACH, -(-high // BLOCK) + PICTURE_REACH)
                for low, high in ((y, y + height), (x, x + width))
            )
            picture = level_of(stage_of(last_lossy)[0], LOSSY_LEVELS)
            start.append((picture, self.groups_meeting(picture, *blocks)))
        return tuple(start)


@lru_cache(maxsize=1024)
def _axis_needs(geometry: Geometry, level: int, other: int, axis: int) -> tuple[range, ...]:
    side, size = geometry.side(level), geometry.level_size(level)[axis]
    out = []
    for start in range(0, size, side):
        low, high = _reach(geometry, level, other, axis, start, min(size, start + side))
        out.append(geometry._meeting(other, axis, low, high))
    return tuple(out)


def _reach(geometry: Geometry, level: int, other: int, axis: int, start: int, stop: int) -> tuple[int, int]:
    """Positions of the other level's grid that start..stop of a level need; may reach beyond the grid."""
    if is_lossy(level):
        reach = PRIOR_REACH if stage_of(level)[0] == stage_of(other)[0] else 0
        return start - reach, stop + reach
    if is_bins(other) and not is_bins(level):
        return start, stop
    k = geometry.grid_index(level) + 1
    start, stop = start // 2 - COARSE_REACH, -(-stop // 2) + COARSE_REACH
    if not is_lossy(other):
        return start, stop
    start, stop = max(0, start) << k, min(geometry.grids[k][axis], stop) << k
    stop = min(geometry.grids[0][axis], stop)
    return start // BLOCK - PICTURE_REACH, -(-stop // BLOCK) + PICTURE_REACH


def _hull(ranges: Iterable[range]) -> range:
    """The shortest range that holds all the given ones, none of them empty."""
    spans = list(ranges)
    return range(min(span.start for span in spans), max(span.stop for span in spans))


def _area(rectangle: Rectangle) -> int:
    return len(rectangle[0]) * len(rectangle[1])
