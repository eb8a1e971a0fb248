"""The acceptance list (docs/reliability.md) with small numbers; scripts/torture has the full ones.

Row 16 is tests/command/test_cli.py's here, and of row 3 the findings of earlier fuzzing are replayed. Row 11
looks at every fifth file: tests/codec/test_golden.py has them all.
"""

import pytest
from torture import ROWS
from torture.material import TINY, all_files, decoded_key, grouped_files, picture_key, subset
from torture.tally import Slice, Tally
from torture.targets import SEEDS, TARGETS, seeds

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.codec import IncrementalReader, api

QUICK = {row: quick for row, (_, _, quick, _) in ROWS.items() if quick}


STEPS = {7, 20}
"""Rows whose number is a step: a smaller one means more cases."""


def test_every_row_has_a_function() -> None:
    assert list(ROWS) == list(range(1, 24))
    assert set(ROWS) - set(QUICK) == {3, 16}


@pytest.mark.parametrize("row", QUICK)
def test_row(row: int) -> None:
    tally = ROWS[row][0](Slice(QUICK[row], quick=True))
    assert tally.cases
    assert not tally.failures, "\n".join(tally.said)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_of_fuzzing(target: str) -> None:
    """Every input that once got through is kept."""
    kept = sorted((SEEDS / target).iterdir())
    assert kept, "a seed is never deleted"
    for path in kept:
        TARGETS[target](path.read_bytes())
    for data in list(seeds(target).values())[::5]:
        TARGETS[target](data)


def test_files_of_groups_are_of_every_kind() -> None:
    """Several groups of lossy and exact levels; lanes, plain samples, and lanes tuned by a shared packet."""
    modes: set[int] = set()
    shared = 0
    for name, data in grouped_files().items():
        header = container.unpack_header(data)
        last = max(container.levels_present(header))
        assert header.geometry.n_groups(last) > 1, name
        modes |= {data[header.span(i)[0]] for i, p in enumerate(header.packets) if p.level == last and p.part}
        shared += header.find(last, 0) is not None
    assert modes == {0, 1, 2, 3}
    assert shared


@pytest.mark.parametrize("quick", [False, True])
def test_rows_have_refinements(quick: bool) -> None:
    """Among the files that rows damage, and among those of groups, lossy and layered."""
    chosen = Slice(1, quick=quick).some(all_files())
    headers = [container.unpack_header(all_files()[name]) for name in chosen]
    assert any(header.geometry.refinements for header in headers)
    refined = [
        h for data in grouped_files().values() if (h := container.unpack_header(data)).geometry.refinements
    ]
    assert {header.lossless for header in refined} == {False, True}
    assert max(header.geometry.refinements for header in refined) > 1


def test_what_is_left_of_refinements() -> None:
    """A file of its own of level 1 and its refinement, without the levels between."""
    data = all_files()["refined groups"]
    header = container.unpack_header(data)
    keep = tuple(packet.level in (1, 33) for packet in header.packets)
    own = container.unpack_header(subset(data, keep))
    assert {packet.level for packet in own.packets} == {1, 33}
    damaged = bytearray(data)
    for i, stays in enumerate(keep):
        damaged[header.span(i)[0]] ^= not stays
    assert picture_key("refined groups", keep) == decoded_key(damaged, allow_partial=True)
    level_1 = tuple(packet.level == 1 for packet in header.packets)
    assert picture_key("refined groups", keep) != picture_key("refined groups", level_1)


# the harness itself can fail


def test_a_tally_notices() -> None:
    tally = Tally()
    with tally.case("fine"):
        pass
    assert (tally.cases, tally.failures) == (1, 0)

    class PanicException(BaseException):
        """As Rust libraries raise it."""

    for error in (ValueError("a"), PanicException("b")):
        with tally.case("bad"):
            raise error
    with tally.case("slow", seconds=0.0):
        pass
    assert (tally.cases, tally.failures) == (4, 3)
    with pytest.raises(KeyboardInterrupt), tally.case("stopped"):
        raise KeyboardInterrupt


def test_slices_cover_every_case_once() -> None:
    parts = [list(Slice(10, part, 3)) for part in range(3)]
    assert sorted(n for part in parts for n in part) == list(range(10))


@pytest.mark.parametrize("row", [1, 2, 7, 8, 14, 19, 20, 21, 22, 23])
def test_rows_notice_a_broken_decoder(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that lets anything out, or shows something else, fails every row that looks."""

    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("not a FormatError")

    monkeypatch.setattr(api, "decode_picture", broken)
    n = QUICK[row] if row in STEPS else min(QUICK[row], 10)
    tally = ROWS[row][0](Slice(n, quick=True))
    assert tally.failures


@pytest.mark.parametrize("sizes", [[1 << 20], [100, 1 << 20], [1] * 4000])
def test_bytes_too_many_cost_no_level(sizes: list[int]) -> None:
    """However a file with a byte too many is cut, its levels stay and the byte is an error."""
    data = (TINY.parent / "gray.vbc").read_bytes() + b"x"
    reader = IncrementalReader(model=TINY)

    def feed_all(rest: bytes) -> None:
        for size in sizes:
            reader.feed(rest[:size])
            rest = rest[size:]

    with pytest.raises(Corrupt, match="after the last packet"):
        feed_all(data)
    assert len(reader.levels) == len(api.read_info((TINY.parent / "gray.vbc").read_bytes()).levels)
    assert reader.picture().exact
