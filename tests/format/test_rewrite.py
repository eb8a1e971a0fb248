"""Files rewritten with fewer packets: what they still promise, and what is refused."""

import pytest
from checks import check_format_error

from vbc.bitstream import container
from vbc.bitstream.container import ALPHA, EXIF, ICC, LOSSLESS, LOW, PIXEL_HASH, Header
from vbc.bitstream.errors import Corrupt, Truncated
from vbc.bitstream.rewrite import reduced_bytes, reduced_header, rewrite

LAYERED = (
    (ICC, 0),
    (ALPHA, 0),
    (1, 1),
    (2, 1),
    (3, 1),
    (EXIF, 0),
    (4, 1),
    (5, 0),
    (5, 1),
    (LOW, 0),
    (PIXEL_HASH, 0),
)
"""Units and parts of a 16-bit file of 9 x 9 pixels."""
LOSSY = tuple(range(6))


def written() -> tuple[bytes, Header]:
    """That file; each payload says its unit and part, 20 times."""
    data = container.write_file(
        [(unit, part, f"{unit}/{part} ".encode() * 4) for unit, part in LAYERED],
        width=9,
        height=9,
        channels=3,
        quality=33,
        flags=LOSSLESS,
        model_hash=b"a model.",
        tables_hash=b"tables..",
        bit_depth=16,
    )
    return data, container.unpack_header(data)


def test_all_packets_give_the_same_file() -> None:
    data, header = written()
    assert rewrite(data, header, range(len(LAYERED))) == data
    assert reduced_bytes(header, range(len(LAYERED))) == len(data)


@pytest.mark.parametrize(
    ("left_out", "lossless", "kept"),
    [
        ((5,), True, (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)),  # EXIF
        ((10,), True, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)),  # pixel hash
        ((9,), False, (0, 1, 2, 3, 4, 5, 6, 7, 8)),  # low bytes
        ((1,), False, (0, 2, 3, 4, 5, 6, 7, 8)),  # alpha
        ((8,), False, (0, 1, 2, 3, 4, 5, 6)),  # the only group of level 5
        ((7,), False, (0, 1, 2, 3, 4, 5, 6, 8)),  # what it needs is there, as far as a container sees
        ((6, 7, 8), False, LOSSY),
    ],
)
def test_what_is_kept(left_out: tuple[int, ...], lossless: bool, kept: tuple[int, ...]) -> None:
    data, header = written()
    places = [i for i in range(len(LAYERED)) if i not in left_out]
    out = rewrite(data, header, places)
    new = container.unpack_header(out)
    assert new == reduced_header(header, places)
    assert len(out) == reduced_bytes(header, places)
    assert tuple((p.unit, p.part) for p in new.packets) == tuple(LAYERED[i] for i in kept)
    for i, place in enumerate(kept):
        assert container.read_packet(out, new, i) == container.read_packet(data, header, place)
    assert new.lossless == lossless
    assert new.bit_depth == (16 if lossless and LOW in {p.unit for p in new.packets} else 8)
    assert (new.quality, new.model_hash, new.archival) == (33, b"a model.", False)


def test_another_order() -> None:
    data, header = written()
    new = container.unpack_header(rewrite(data, header, (5, *LOSSY[:5])))
    assert [p.unit for p in new.packets] == [EXIF, ICC, ALPHA, 1, 2, 3]


def test_another_payload() -> None:
    data, header = written()
    out = rewrite(data, header, LOSSY, {5: b"II*\0"})
    new = container.unpack_header(out)
    assert bytes(container.read_packet(out, new, 5)) == b"II*\0"
    assert len(out) == reduced_bytes(header, LOSSY, {5: b"II*\0"})


@pytest.mark.parametrize("places", [(2, 4), (3, 2), (2, 3, 4, 6, 6), (2, 3, 4, 7, 8), (6, 7, 8)])
def test_no_valid_file(places: tuple[int, ...]) -> None:
    """Something needed is missing, comes too late, or comes twice."""
    data, header = written()
    check_format_error(lambda: rewrite(data, header, places), Corrupt)


def test_only_the_packets_kept_are_read() -> None:
    data, header = written()
    start, end = header.span(4)
    assert rewrite(data[:end], header, LOSSY[:5]) == rewrite(data, header, LOSSY[:5])
    assert check_format_error(lambda: rewrite(data[: end - 1], header, LOSSY[:5]), Truncated).need == end
    damaged = data[:start] + b"?" + data[start + 1 :]
    check_format_error(lambda: rewrite(damaged, header, LOSSY[:5]), Corrupt)
    assert rewrite(damaged, header, LOSSY[:4]) == rewrite(data, header, LOSSY[:4])
