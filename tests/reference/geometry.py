"""Grids, groups and what a packet needs (docs/format.md, sections 4 and 5)."""

from collections.abc import Iterator
from dataclasses import dataclass

PLAIN_LEVELS = (1, 2, 3)
REFINED_LEVELS = tuple(range(33, 42))
LOSSY_LEVELS = PLAIN_LEVELS + REFINED_LEVELS
FIRST_EXACT = 4
BINS = 66
"""Level 66 + n has the bins of exact level n."""
VALUE_LEVELS = tuple(range(FIRST_EXACT + 1, 33))
"""The exact levels that lead from a grid to the next finer one."""
BIN_LEVELS = tuple(BINS + level for level in VALUE_LEVELS)
ORDER = (*LOSSY_LEVELS, FIRST_EXACT, *BIN_LEVELS, *VALUE_LEVELS)
"""All levels in their order."""
BLOCK = 8
LOSSY_SIDES = (256, 128, 64)
"""Sides of the groups of levels 1, 2 and 3, in blocks."""
REFINED_SIDES = (256, 64, 32)
"""Of their refinements."""
SQUARE = 64
"""Side of the squares of the lossy picture that use one level each, in blocks."""
REFINED_SQUARE = 32
"""Side of those that use one refinement each."""
EXACT_SIDES = (512, 256, 128)
"""Sides of the groups on grids 0, 1, and 2 and above."""


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def order(level: int) -> int:
    """By which levels are sorted."""
    return ORDER.index(level)


def stage(level: int) -> tuple[int, int]:
    """A lossy level's refinement, 0 for none, and which of the levels 1 to 3 it refines."""
    place = LOSSY_LEVELS.index(level)
    return place // 3, place % 3 + 1


@dataclass(frozen=True)
class Rectangle:
    """Rows top <= i < bottom and columns left <= j < right."""

    top: int
    left: int
    bottom: int
    right: int

    def __str__(self) -> str:
        return f"rows {self.top}..{self.bottom - 1}, columns {self.left}..{self.right - 1}"

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def corner(self) -> tuple[int, int]:
        """The first row and column."""
        return self.top, self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing a plane."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def divided(self, by: int) -> "Rectangle":
        """On a coarser grid, rounded out."""
        return Rectangle(self.top // by, self.left // by, ceil_div(self.bottom, by), ceil_div(self.right, by))

    def times(self, by: int) -> "Rectangle":
        """On a finer grid."""
        return Rectangle(by * self.top, by * self.left, by * self.bottom, by * self.right)

    def grown(self, n: int) -> "Rectangle":
        """With n more positions on each side."""
        return Rectangle(self.top - n, self.left - n, self.bottom + n, self.right + n)

    def cut(self, rows: int, columns: int) -> "Rectangle":
        """Without what lies outside a grid of this size."""
        return Rectangle(
            max(self.top, 0), max(self.left, 0), min(self.bottom, rows), min(self.right, columns)
        )

    def meets(self, other: "Rectangle") -> bool:
        """Whether they have a position in common."""
        rows = max(self.top, other.top) < min(self.bottom, other.bottom)
        return rows and max(self.left, other.left) < min(self.right, other.right)


class Geometry:
    """Levels, grids and groups of a picture of height x width pixels.

    binned: whether the file has a bound. refinements: that the file has; set once its index is read.
    """

    refinements = 0

    def __init__(self, height: int, width: int, binned: bool = False):
        self.binned = binned
        self.blocks = ceil_div(height, BLOCK), ceil_div(width, BLOCK)
        self.grids = [(height, width)]
        while max(self.grids[-1]) > 8:
            rows, columns = self.grids[-1]
            self.grids.append((ceil_div(rows, 2), ceil_div(columns, 2)))
        self.top = len(self.grids) - 1
        self.last_level = FIRST_EXACT + self.top

    @property
    def value_levels(self) -> list[int]:
        """The exact levels above level 4 that the size has."""
        return [level for level in VALUE_LEVELS if level <= self.last_level]

    @property
    def bin_levels(self) -> list[int]:
        """The levels of bins of the size; none without a bound."""
        return [BINS + level for level in self.value_levels if self.binned]

    @property
    def levels(self) -> list[int]:
        """All levels that a file of the size can have, in their order."""
        return [*LOSSY_LEVELS, FIRST_EXACT, *self.bin_levels, *self.value_levels]

    def grid_of(self, level: int) -> int:
        """The number of the grid that an exact level, or one of bins, completes."""
        exact = level - BINS if level in BIN_LEVELS else level
        return self.top - (exact - FIRST_EXACT)

    def size_of(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level's grid."""
        return self.blocks if level in LOSSY_LEVELS else self.grids[self.grid_of(level)]

    def side_of(self, level: int) -> int:
        """The side of a level's groups; level 4 has one."""
        if level in LOSSY_LEVELS:
            refinement, plain = stage(level)
            return (REFINED_SIDES if refinement else LOSSY_SIDES)[plain - 1]
        return 8 if level == FIRST_EXACT else EXACT_SIDES[min(self.grid_of(level), 2)]

    def n_groups(self, level: int) -> int:
        """How many groups a level has."""
        rows, columns = self.size_of(level)
        side = self.side_of(level)
        return ceil_div(rows, side) * ceil_div(columns, side)

    def n_parts(self) -> int:
        """The number of parts of the size: the groups of all levels, and one more for each level."""
        return sum(self.n_groups(level) + 1 for level in self.levels)

    def group(self, level: int, part: int) -> Rectangle:
        """The rectangle of a group, on its level's grid."""
        rows, columns = self.size_of(level)
        side = self.side_of(level)
        i, j = divmod(part - 1, ceil_div(columns, side))
        return Rectangle(i * side, j * side, (i + 1) * side, (j + 1) * side).cut(rows, columns)

    def groups(self, level: int) -> Iterator[tuple[int, Rectangle]]:
        """Parts and rectangles of all groups of a level, in raster order."""
        return ((part, self.group(level, part)) for part in range(1, self.n_groups(level) + 1))

    def meeting(self, level: int, area: Rectangle) -> list[tuple[int, int]]:
        """(level, part) of the level's groups that meet a rectangle of its grid."""
        return [(level, part) for part, group in self.groups(level) if group.meets(area)]

    def needed_levels(self, level: int, archival: bool) -> list[int]:
        """The levels of which the groups of a level need some at first hand."""
        if level in LOSSY_LEVELS:
            refinement, plain = stage(level)
            before = LOSSY_LEVELS[3 * (refinement - 1) + plain - 1 :][:1] if refinement else ()
            return [*before, *LOSSY_LEVELS[3 * refinement : 3 * refinement + plain - 1]]
        if level == FIRST_EXACT:
            return []
        if self.binned and level in VALUE_LEVELS:
            return [level - 1, BINS + level]
        coarser = FIRST_EXACT if level == BIN_LEVELS[0] else level - 1
        return [coarser] if archival else [coarser, self.last_lossy]

    @property
    def last_lossy(self) -> int:
        """The last lossy level of the file."""
        return LOSSY_LEVELS[3 * self.refinements + 2]

    def needs(self, level: int, part: int, archival: bool) -> list[tuple[int, int]]:
        """(level, part) of the packets that a packet needs at first hand, but part 0 of its own level."""
        if part == 0 or level in (1, FIRST_EXACT):
            return []
        group = self.group(level, part)
        if level in LOSSY_LEVELS:
            needs = []
            for other in self.needed_levels(level, archival):
                same = stage(other)[0] == stage(level)[0]
                needs += self.meeting(other, group.grown(8 if same else 0).cut(*self.blocks))
            return needs
        k = self.grid_of(level)
        near = group.divided(2).grown(4).cut(*self.grids[k + 1])
        before, *others = self.needed_levels(level, archival)
        needs = self.meeting(before, near)
        if others == [BINS + level]:
            needs.append((BINS + level, part))
        elif others:
            seen = near.times(1 << (k + 1)).cut(*self.grids[0]).divided(BLOCK).grown(2).cut(*self.blocks)
            needs += self.meeting(self.last_lossy, seen)
        return needs
