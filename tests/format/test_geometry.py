"""Geometry: levels and groups of awkward sizes; what groups need, against looking at position by position."""

import random
import subprocess
import sys
from functools import cache
from itertools import product

import pytest
from checks import check_cheap

from vbc.bitstream.geometry import (
    Geometry,
    Rectangle,
    Sides,
    is_bins,
    is_level,
    is_lossy,
    is_value,
    level_of,
    rank,
    refinements_of,
    stage_of,
)

TINY = Sides(lossy=(4, 2, 2), refined=(4, 2, 1), exact=(6, 4, 2))
SIZES = [(1, 1), (1, 9), (9, 1), (8, 8), (17, 23), (100, 31), (1, 300), (257, 129), (150, 211)]
KINDS = [
    (False, 0, False),
    (False, 1, False),
    (False, 3, False),
    (True, 0, False),
    (False, 0, True),
    (False, 2, True),
    (True, 0, True),
]
"""Archival, refinements, bins."""
Needs = dict[int, set[tuple[int, int]]]
"""Level -> (row, column) of the groups."""


@cache
def by_hand(geometry: Geometry, level: int, row: int, col: int, archival: bool) -> Needs:
    """docs/format.md section 4 for one group: each position it sees, and the group that has it."""

    def seen(first: int, last: int, size: int) -> set[int]:
        return {min(max(p, 0), size - 1) for p in range(first, last + 1)}

    out: Needs = {}
    axes: dict[int, list[set[int]]] = {}
    for axis, i in enumerate((row, col)):
        mine = [p for p in range(geometry.level_size(level)[axis]) if p // geometry.side(level) == i]
        if level <= 3:
            for other in range(1, level):
                size = geometry.level_size(other)[axis]
                axes.setdefault(other, []).append(seen(mine[0] - 8, mine[-1] + 8, size))
        elif 33 <= level <= 41:
            size = geometry.level_size(1)[axis]
            axes.setdefault(level - (33 if level < 36 else 3) + (level < 36), []).append(set(mine))
            for other in range(level - (level - 33) % 3, level):
                axes.setdefault(other, []).append(seen(mine[0] - 8, mine[-1] + 8, size))
        elif level > 4:
            exact = level - 66 if level > 70 else level
            finer = geometry.top - (exact - 4)
            size = geometry.grids[finer + 1][axis]
            coarse = seen(mine[0] // 2 - 4, mine[-1] // 2 + 4, size)
            axes.setdefault(4 if exact == 5 else level - 1, []).append(coarse)
            if geometry.binned and level < 71:
                axes.setdefault(66 + level, []).append(set(mine))
            elif not archival:
                pixels = {
                    x
                    for c in coarse
                    for x in range(c << finer + 1, c + 1 << finer + 1)
                    if x < geometry.grids[0][axis]
                }
                blocks = {x // 8 for x in pixels}
                size = geometry.level_size(3)[axis]
                last = 32 + 3 * geometry.refinements if geometry.refinements else 3
                axes.setdefault(last, []).append(seen(min(blocks) - 2, max(blocks) + 2, size))
    for other, (rows, cols) in axes.items():
        side = geometry.side(other)
        out[other] = set(product({p // side for p in rows}, {p // side for p in cols}))
    return out


def closure_by_hand(geometry: Geometry, start: Needs, archival: bool) -> Needs:
    """Group after group, until nothing new is needed."""
    out: Needs = {}
    todo = [(level, group) for level, groups in start.items() for group in groups]
    while todo:
        level, group = todo.pop()
        if group in out.setdefault(level, set()):
            continue
        out[level].add(group)
        needs = by_hand(geometry, level, *group, archival)
        todo += [(other, g) for other, groups in needs.items() for g in groups]
    return out


def pairs(rectangle: Rectangle) -> set[tuple[int, int]]:
    return set(product(*rectangle))


def test_grids_and_levels() -> None:
    one = Geometry(1, 1)
    assert (one.grids, one.top, one.last_level, one.n_parts) == (((1, 1),), 0, 4, 8 + 18)
    eight = Geometry(8, 7)
    assert (eight.grids, eight.last_level) == (((7, 8),), 4)
    nine = Geometry(9, 3)
    assert nine.grids == ((3, 9), (2, 5))
    assert (nine.last_level, nine.grid_index(4), nine.grid_index(5)) == (5, 1, 0)
    kodak = Geometry(768, 512)
    assert kodak.grids[-1] == (4, 6)
    assert kodak.last_level == 4 + 7
    assert [kodak.level_size(n) for n in (1, 3, 4, 5, 11)] == [
        (64, 96),
        (64, 96),
        (4, 6),
        (8, 12),
        (512, 768),
    ]
    assert [kodak.side(n) for n in range(1, 12)] == [256, 128, 64, 8, 128, 128, 128, 128, 128, 256, 512]
    assert [kodak.side(n) for n in range(33, 42)] == 3 * [256, 64, 32]
    assert kodak.levels == [1, 2, 3, *range(33, 42), *range(4, 12)]
    assert [kodak.group_counts(n) for n in (1, 2, 4, 9, 10, 11)] == [
        (1, 1),
        (1, 1),
        (1, 1),
        (1, 2),
        (1, 2),
        (1, 2),
    ]
    thin = Geometry(65_535, 1)
    assert (thin.last_level, thin.n_groups(1), thin.n_groups(thin.last_level)) == (4 + 13, 32, 128)
    assert thin.n_parts == sum(thin.n_groups(n) + 1 for n in (*range(1, 18), *range(33, 42)))


def test_levels_of_bins() -> None:
    """docs/format.md section 4: level 66 + n has the grid and the groups of exact level n."""
    kodak = Geometry(768, 512, binned=True)
    assert kodak.levels == [1, 2, 3, *range(33, 42), 4, *range(71, 78), *range(5, 12)]
    assert kodak.last_bins == 77
    for level in range(5, 12):
        assert kodak.grid_index(66 + level) == kodak.grid_index(level)
        assert kodak.level_size(66 + level) == kodak.level_size(level)
        assert kodak.side(66 + level) == kodak.side(level)
        assert kodak.group_counts(66 + level) == kodak.group_counts(level)
    assert kodak.n_parts - Geometry(768, 512).n_parts == sum(kodak.n_groups(n) + 1 for n in range(5, 12))
    for size in ((1, 1), (8, 7)):  # level 4 is the picture
        small = Geometry(*size, binned=True)
        assert (small.levels, small.last_bins) == (Geometry(*size).levels, 4)
        assert small.n_parts == Geometry(*size).n_parts
    assert Geometry(65_535, 1, binned=True).last_bins == 83


def test_kinds_of_levels() -> None:
    """docs/format.md sections 3 and 4: lossy, exact, bins, and units that are no level."""
    for kind, levels in (
        (is_lossy, {*range(1, 4), *range(33, 42)}),
        (is_bins, {*range(71, 99)}),
        (is_value, {*range(5, 33)}),
    ):
        assert {n for n in (*range(1, 42), *range(71, 99)) if kind(n)} == levels
    assert {unit for unit in range(256) if is_level(unit)} == {*range(1, 64), *range(71, 99)}
    known = [1, 2, 3, *range(33, 42), 4, *range(71, 99), *range(5, 33)]
    assert [rank(level) for level in known] == list(range(1, len(known) + 1))


def test_numbers_of_refinements() -> None:
    """docs/format.md section 4: refinement r of level n is level 32 + 3 (r - 1) + n."""
    for r, n in product(range(4), range(1, 4)):
        level = level_of(r, n)
        assert level == (n if r == 0 else 32 + 3 * (r - 1) + n)
        assert stage_of(level) == (r, n)
        assert is_lossy(level)
    assert not any(is_lossy(level) for level in range(4, 33))
    assert not any(is_lossy(level) for level in range(71, 99))
    assert sorted(range(1, 42), key=rank) == [1, 2, 3, *range(33, 42), *range(4, 33)]
    assert [rank(level) for level in (1, 3, 33, 41, 4)] == [1, 3, 4, 12, 13]
    found = [refinements_of(n) for n in ((), (1, 2), (3, 33), (35,), (36, 4, 71), (41, 17, 98), (2, 71))]
    assert found == [0, 0, 1, 1, 2, 3, 0]
    assert [Geometry(9, 9, refinements=r).last_lossy for r in range(4)] == [3, 35, 38, 41]


@pytest.mark.parametrize("sides", [TINY, Sides()])
@pytest.mark.parametrize("size", [*SIZES, (65_535, 1), (2, 65_535), (1500, 1201)])
def test_windows_tile_each_level(size: tuple[int, int], sides: Sides) -> None:
    geometry = Geometry(*size, sides=sides, binned=True)
    for level in geometry.levels:
        rows, cols = geometry.level_size(level)
        side, counts = geometry.side(level), geometry.group_counts(level)
        assert level != 4 or counts == (1, 1)
        area = 0
        for group in (0, geometry.n_groups(level) - 1) if size[0] > 1000 else range(geometry.n_groups(level)):
            window = geometry.window(level, group)
            assert window[0].start % side == window[1].start % side == 0
            assert 0 <= window[0].start < window[0].stop <= rows
            assert 0 <= window[1].start < window[1].stop <= cols
            area += (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
            met = geometry.groups_meeting(level, *window)
            assert geometry.numbers(level, met) == [group]
        if size[0] <= 1000:
            assert area == rows * cols
        assert geometry.numbers(
            level, geometry.groups_meeting(level, slice(-5, rows + 9), slice(0, cols))
        ) == list(range(counts[0] * counts[1]))
        for nothing in (slice(3, 3), slice(-9, 0), slice(rows, rows + 4), slice(5, 2)):
            assert geometry.numbers(level, geometry.groups_meeting(level, nothing, slice(0, cols))) == []


@pytest.mark.parametrize(("archival", "refinements", "binned"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_needs(size: tuple[int, int], archival: bool, refinements: int, binned: bool) -> None:
    geometry = Geometry(*size, sides=TINY, refinements=refinements, binned=binned)
    for level in geometry.levels:
        groups = list(enumerate(product(*map(range, geometry.group_counts(level)))))
        for group, place in groups if len(groups) < 30 else random.Random(level).sample(groups, 30):
            found = geometry.needs(level, group, archival)
            assert {other: pairs(r) for other, r in found.items()} == by_hand(
                geometry, level, *place, archival
            )


@pytest.mark.parametrize(("archival", "refinements", "binned"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_closure(size: tuple[int, int], archival: bool, refinements: int, binned: bool) -> None:
    """A rectangle a level is no more than what is needed group by group; of refined levels about as much."""
    geometry = Geometry(*size, sides=TINY, refinements=refinements, binned=binned)
    rng = random.Random(sum(size))
    for level in geometry.levels:
        first = [rng.randrange(n) for n in geometry.group_counts(level)]
        last = [rng.randrange(i, n) for i, n in zip(first, geometry.group_counts(level), strict=True)]
        rows, cols = (range(i, j + 1) for i, j in zip(first, last, strict=True))
        start = {level: (rows, cols)}
        found = geometry.closure(start, archival)
        assert list(found) == sorted(found, key=rank)
        wanted = closure_by_hand(geometry, {level: pairs((rows, cols))}, archival)
        groups = {n: pairs(r) for n, r in found.items()}
        check_about(groups, wanted)
        assert groups == wanted or refinements or 33 <= level <= 41
        assert groups == closure_by_hand(geometry, groups, archival), "closed"


def check_about(found: Needs, wanted: Needs) -> None:
    """No group that is wanted is missing, and few are there beside."""
    assert found.keys() == wanted.keys()
    assert all(found[n] >= wanted[n] for n in wanted)
    assert sum(map(len, found.values())) <= 1.5 * sum(map(len, wanted.values()))


@pytest.mark.parametrize(("archival", "refinements", "binned"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_regions(size: tuple[int, int], archival: bool, refinements: int, binned: bool) -> None:
    geometry = Geometry(*size, sides=TINY, refinements=refinements, binned=binned)
    width, height = size
    rng = random.Random(width)
    for _ in range(4):
        x, y = rng.randrange(width), rng.randrange(height)
        region = (x, y, rng.randint(1, width - x), rng.randint(1, height - y))
        blocks = [
            {
                p
                for p in range(first // 8 - 2, (first + n - 1) // 8 + 3)
                if 0 <= p < geometry.level_size(3)[axis]
            }
            for axis, first, n in ((0, y, region[3]), (1, x, region[2]))
        ]
        side = geometry.side(geometry.last_level)
        pixels = {(r // side, c // side) for r in range(y, y + region[3]) for c in range(x, x + region[2])}
        for level in geometry.levels:
            if stage_of(level)[0] > refinements and is_lossy(level):
                continue
            picture = level_of(stage_of(level)[0] if is_lossy(level) else refinements, 3)
            square = geometry.side(picture)
            squares = {(r // square, c // square) for r in blocks[0] for c in blocks[1]}
            start: Needs = {} if archival else {picture: squares}
            if not is_lossy(level):
                # the picture of bins where the last level is one of them
                start[geometry.last_bins if level > 70 else geometry.last_level] = pixels
            wanted = closure_by_hand(geometry, start, archival)
            wanted = {n: wanted[n] for n in sorted(wanted, key=rank) if rank(n) <= rank(level)}
            found = geometry.region_groups(region, level, archival)
            assert list(found) == list(wanted)
            groups = {}
            for n, numbers in found.items():
                assert numbers == sorted(numbers)
                groups[n] = {divmod(number, geometry.group_counts(n)[1]) for number in numbers}
            check_about(groups, wanted)
            assert groups == wanted or refinements


def test_whole_picture_is_a_region() -> None:
    for archival, binned in product((False, True), (False, True)):
        geometry = Geometry(1500, 1201, binned=binned)
        last = geometry.last_level
        found = geometry.region_groups((0, 0, 1500, 1201), last, archival)
        levels = [
            *([] if archival else [1, 2, 3]),
            4,
            *(range(71, 67 + last) if binned else ()),
            *range(5, last + 1),
        ]
        assert list(found) == levels
        assert found == {n: list(range(geometry.n_groups(n))) for n in levels}


def test_large_pictures_are_quick() -> None:
    """Measured: 0.3 ms for a group of each level of a fresh 8192 x 8192."""

    def one_group_of_each_level() -> None:
        geometry = Geometry(8191, 8192)
        for level in range(1, geometry.last_level + 1):
            geometry.closure({level: (range(0, 1), range(0, 1))}, archival=False)
        assert geometry.n_parts == 1207 + 3 * (16 + 256 + 1024 + 3)

    check_cheap(one_group_of_each_level, 0.1)


def test_sides_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Geometry(100, 100).n_parts
    monkeypatch.setattr("vbc.bitstream.geometry.SIDES", TINY)
    assert Geometry(100, 100).n_parts == Geometry(100, 100, sides=TINY).n_parts > before


def test_light_to_import() -> None:
    code = (
        "import sys, vbc.bitstream.geometry, vbc.bitstream.container, vbc.codec.files.reading;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
