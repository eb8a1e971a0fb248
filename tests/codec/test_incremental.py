"""Files that arrive in pieces: the same pictures as of prefixes, each packet decoded once."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from checks import check_format_error, payloads_of, rewritten
from grouped import grouped_file, header_of, level_places

from vbc.bitstream import container
from vbc.bitstream.container import Limits
from vbc.bitstream.errors import Corrupt, FormatError, LimitExceeded, ModelMissing, NotVbc, Truncated
from vbc.codec import IncrementalReader, api
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.model import Model
from vbc.kernels.conv import IntConv


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    "name",
    [
        "lossy",
        "lossy-some-maps",
        "lossy-2",
        "refined-twice",
        "refined-layered",
        "archival",
        "layered-tuned",
        "half-noise",
        "deep-gray-alpha",
        "packed",
    ],
)
def test_pictures_are_those_of_prefixes(tiny: Model, name: str) -> None:
    """A picture after each packet, or some of them, is what decoding that prefix gives."""
    data, header = grouped_file(name), header_of(name)
    places = level_places(header)
    every = 1 if len(places) < 20 else len(places) // 7
    reader = IncrementalReader(model=tiny)
    at, levels = 0, []
    for i, end in enumerate(header.ends):
        levels += reader.feed(data[at:end])
        at = end
        assert reader.n_packets == i + 1
        assert tuple(levels) == reader.levels
        assert reader.levels == container.complete_levels(header, container.usable(header, end))
        if i < places[0] or (i % every and i < places[-1]):
            continue
        got = reader.picture()
        want = api.decode_picture(data[:end], allow_partial=True, model=tiny)
        assert np.array_equal(got.picture.samples(), want.picture.samples())
        assert (got.levels, got.exact) == (want.levels, want.exact)
        assert reader.picture() is got, "kept until a packet is added"
    assert reader.complete
    reader.finish()
    assert reader.picture().exact == header.lossless


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["lossy", "alpha"])
def test_pictures_at_a_levels_own_size(tiny: Model, name: str) -> None:
    data, header = grouped_file(name), header_of(name)
    reader = IncrementalReader(model=tiny)
    at = 0
    for level, end in list(container.level_ends(header).items())[:4]:
        reader.feed(data[at:end])
        at = end
        got = reader.picture(native=True).picture
        want = api.decode_picture(data, levels=level, native=True, model=tiny).picture
        assert np.array_equal(got.samples(), want.samples())
        assert not np.array_equal(got.rgb.shape, reader.picture().picture.rgb.shape) or level > 2


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_pieces_make_no_difference(tiny: Model, size: int) -> None:
    data, header = grouped_file("lossy"), header_of("lossy")
    reader = IncrementalReader(model=tiny)
    completed = [level for at in range(0, len(data), size) for level in reader.feed(data[at : at + size])]
    assert completed == [1, 2, 3]
    assert reader.header == header
    assert reader.complete
    want = api.decode_picture(data, model=tiny).picture
    assert np.array_equal(reader.picture().picture.samples(), want.samples())


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["layered-tuned", "archival", "half-noise-layered", "refined-layered"])
def test_every_packet_is_decoded_once(tiny: Model, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    real = DecodeState.advance

    def spy(self: DecodeState, level: int, packets: dict[int, memoryview], *shared: object) -> DecodeState:
        decoded.extend((level, n + 1) for n in packets)
        return real(self, level, packets, *shared)  # type: ignore[arg-type]

    data, header = grouped_file(name), header_of(name)  # before the spy: an encoder decodes too
    monkeypatch.setattr(DecodeState, "advance", spy)
    reader = IncrementalReader(model=tiny)
    for at in range(0, len(data), 600):
        reader.feed(data[at : at + 600])
        if reader.levels:
            reader.picture()
    wanted = [(p.level, p.part) for p in header.packets if p.level and p.part]
    assert sorted(decoded) == sorted(wanted)


@contextmanager
def counted_work() -> Iterator[list[int]]:
    """The multiplications of all integer networks."""
    work: list[int] = []
    real = IntConv.__call__

    def count(self: IntConv, *arguments: object, **named: object) -> object:
        out = real(self, *arguments, **named)  # type: ignore[arg-type]
        work.append(out[:, 0].numel() * self.weight.numel())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntConv, "__call__", count)
        yield work


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    ("name", "most"),
    [("lossy", 2.4), ("refined-twice", 3.2), ("layered", 2.1), ("layered-tuned", 2.1), ("archival", 2.1)],
)
def test_what_a_picture_of_each_level_costs(tiny: Model, name: str, most: float) -> None:
    """The networks' work, over that of one decode; entropy decoding, which is done once, comes beside it.

    Lossy pictures are worked out once a level; an exact level's networks, in layered files those of the last
    one, run once to predict and once to
    decode.
    """
    data, header = grouped_file(name), header_of(name)
    with counted_work() as once:
        api.decode_picture(data, model=tiny)
    reader = IncrementalReader(model=tiny)
    with counted_work() as shown:
        at = 0
        for end in container.level_ends(header).values():
            reader.feed(data[at:end])
            reader.picture()
            at = end
    assert sum(once) <= sum(shown) < most * sum(once)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["archival", "lossy"])
def test_nothing_to_show_yet(tiny: Model, name: str) -> None:
    """Truncated says how much is needed for the first picture; the command line shows the same."""
    data, header = grouped_file(name), header_of(name)
    need = header.ends[level_places(header)[0]]
    for n in (0, 9, 30, header.header_bytes - 1, header.header_bytes, need - 1):
        reader = IncrementalReader(model=tiny)
        assert reader.feed(data[:n]) == ()
        assert (reader.header is not None) == (n >= header.header_bytes)
        error = check_format_error(reader.picture, Truncated)
        assert error.have <= n
        assert error.need == (need if n >= header.header_bytes else error.need) > n
        check_format_error(reader.finish, Truncated)
        assert not reader.complete
    reader.feed(data[need - 1 :])
    assert reader.picture().exact == header.lossless


@pytest.mark.usefixtures("small_groups")
def test_a_damaged_packet_ends_it(tiny: Model) -> None:
    """What came before can still be shown; every further piece raises the same error."""
    data, header = grouped_file("layered"), header_of("layered")
    for i in (2, 20, len(header.packets) - 2):
        broken = bytearray(data)
        broken[header.ends[i] - 1] ^= 4
        reader = IncrementalReader(model=tiny)
        with pytest.raises(Corrupt, match=f"checksum of packet {i} ") as caught:
            reader.feed(bytes(broken))
        assert reader.n_packets == i
        for call in (lambda r=reader: r.feed(b""), reader.finish):
            with pytest.raises(Corrupt) as again:
                call()
            assert again.value is caught.value
        start = header.span(i)[0]
        got, want = reader.picture(), api.decode_picture(data[:start], allow_partial=True, model=tiny)
        assert np.array_equal(got.picture.samples(), want.picture.samples())
        assert got.levels == want.levels == reader.levels


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_bad_headers_and_limits(tiny: Model, piece: int) -> None:
    data = grouped_file("lossy-2")

    def feed(given: bytes, **options: Limits) -> None:
        reader = IncrementalReader(model=tiny, **options)
        for at in range(0, min(len(given), 400), piece):
            reader.feed(given[at : at + piece])

    check_format_error(lambda: feed(b"GIF89a" + data[6:]), NotVbc)
    check_format_error(lambda: feed(data, limits=Limits(max_pixels=100)), LimitExceeded)
    check_format_error(lambda: feed(data[:13] + b"\xff" + data[14:]), Corrupt)


@pytest.mark.usefixtures("small_groups")
def test_bytes_behind_the_file(tiny: Model) -> None:
    """However they come, the file's picture stays."""
    data = grouped_file("lossy")
    for first in (len(data) - 5, len(data), 40):
        reader = IncrementalReader(model=tiny)
        reader.feed(data[:first])
        with pytest.raises(Corrupt, match="1 bytes after the last packet"):
            reader.feed(data[first:] + b"x")
        assert reader.levels == (1, 2, 3)
        assert reader.picture().levels == (1, 2, 3)
        assert not reader.complete


@pytest.mark.usefixtures("small_groups")
def test_weights_that_are_not_installed() -> None:
    """The tiny model is none of the installed ones."""
    reader = IncrementalReader()
    data = grouped_file("lossy")
    reader.feed(data)
    assert reader.complete
    check_format_error(reader.picture, ModelMissing)


@pytest.mark.usefixtures("small_groups")
def test_levels_side_by_side(tiny: Model) -> None:
    """Groups of several levels in turn, as in a file that serves a region first."""
    data, header = grouped_file("archival-tuned"), header_of("archival-tuned")
    geometry, payloads = header.geometry, payloads_of(data)
    by_need: list[int] = []
    for column in range(7):
        last = geometry.last_level
        closure = geometry.closure({last: (range(2), range(column + 1))}, archival=True)
        for level, groups in closure.items():
            for part in (0, *(n + 1 for n in geometry.numbers(level, groups))):
                place = header.find(level, part)
                if place is not None and place not in by_need:
                    by_need.append(place)
    by_need += [i for i in range(len(header.packets)) if i not in by_need]
    order = [(header.packets[i].unit, header.packets[i].part, bytes(payloads[i])) for i in by_need]
    other = rewritten(header, order)
    moved = container.unpack_header(other)
    reader = IncrementalReader(model=tiny)
    at = 0
    for end in moved.ends[2::5]:
        reader.feed(other[at:end])
        at = end
        want = api.decode_picture(other[:end], allow_partial=True, model=tiny)
        assert np.array_equal(reader.picture().picture.samples(), want.picture.samples())
    reader.feed(other[at:])
    assert reader.picture().exact


def test_errors_are_format_errors(tiny: Model) -> None:
    """Bytes at random, and files with random bytes changed: nothing but a FormatError comes out."""
    rng = np.random.default_rng(6)
    data = grouped_file("packed")
    for _ in range(60):
        broken = bytearray(data[: int(rng.integers(1, len(data)))])
        broken[int(rng.integers(0, len(broken)))] ^= 1 << int(rng.integers(0, 8))
        reader = IncrementalReader(model=tiny)
        with suppress(FormatError):
            reader.feed(bytes(broken))
        check_format_error(reader.finish)
