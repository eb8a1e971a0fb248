"""Parts of files: prefixes, damaged packets, packets in other orders."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from checks import bit_flips, check_format_error, payloads_of, rebuild, rewritten, truncations
from grouped import CASES, grouped_file, header_of, level_places
from pictures import photo
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.errors import Corrupt, FormatError, Truncated
from vbc.bitstream.geometry import is_lossy, rank
from vbc.codec.flow.decode_plan import all_packets, make_plan
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image, encode_image, verify
from vbc.codec.pixels.colour import predicted_rgb, ycocg_to_rgb
from vbc.codec.settings import EncodeSettings

LAYERED = EncodeSettings(lossless=True)
ARCHIVAL = EncodeSettings(levels=0, lossless=True)
PARTS = (
    "lossy",
    "lossy-2",
    "lossy-some-maps",
    "refined",
    "refined-twice",
    "refined-layered",
    "layered-some-maps",
    "archival",
    "layered-tuned",
    "archival-tuned",
    "half-noise",
    "packed",
)


@pytest.fixture(scope="module")
def layered(tiny: Model) -> bytes:
    return encode_image(photo(37, 50), model=tiny, settings=LAYERED)


def states(data: bytes, header: Header, model: Model) -> Iterator[tuple[int, DecodeState]]:
    """What is decoded after each packet of a level, one packet at a time: with its place in the index."""
    state = DecodeState(model, header)
    for i in level_places(header):
        packet, shared = header.packets[i], header.find(header.packets[i].level)
        if packet.part:
            together = None if shared is None else container.read_packet(data, header, shared)
            body = {packet.part - 1: container.read_packet(data, header, i)}
            state = state.advance(packet.level, body, together)
        yield i, state


# prefixes


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", PARTS)
def test_every_packet_boundary(tiny: Model, name: str) -> None:
    """The picture of a prefix is that of a state which took its packets one by one."""
    data, header = grouped_file(name), header_of(name)
    wanted = make_plan(header, None, None).wanted
    seen = 0
    for i, state in states(data, header, tiny):
        end = header.ends[i]
        levels = container.complete_levels(header, container.usable(header, end))
        if end < len(data):
            with pytest.raises(Truncated) as caught:
                decode_image(data[:end], model=tiny)
            assert caught.value.levels_available == levels
            assert (caught.value.need, caught.value.have) == (len(data), end)
        started = [level for level, groups in state.done.items() if groups]
        seen += header.packets[i].part > 0
        if seen % (1 + len(header.packets) // 8):  # some eight pictures
            continue
        part = decode_image(data[:end], model=tiny, allow_partial=True)
        assert torch.equal(part.rgb, state.picture(max(started, key=rank), wanted)[0])
        assert part.levels == levels
        assert part.exact == (header.lossless and levels == container.levels_present(header))
    assert seen == sum(header.packets[i].part > 0 for i in level_places(header))


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["lossy", "lossy-some-maps", "refined-twice", "archival-tuned", "layered"])
def test_inside_a_packet_nothing_changes(tiny: Model, name: str) -> None:
    data, header = grouped_file(name), header_of(name)
    places = level_places(header)[1:]
    for i in places[:: 1 + len(places) // 4]:
        start, end = header.span(i)
        want = decode_image(data[:start], model=tiny, allow_partial=True)
        for cut in {start + 1, end - 1}:
            got = decode_image(data[:cut], model=tiny, allow_partial=True)
            assert torch.equal(got.rgb, want.rgb)
            assert got.levels == want.levels


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["lossy", "lossy-some-maps", "refined-twice", "archival-tuned", "layered"])
def test_groups_of_a_level_come_one_by_one(tiny: Model, name: str) -> None:
    """Of the last level each packet changes its own group's pixels alone, or for lossy ones those near."""
    data, header = grouped_file(name), header_of(name)
    level = container.levels_present(header)[-1]
    places = [i for i in level_places(header) if header.packets[i].level == level and header.packets[i].part]
    for i in places[:: 1 + len(places) // 6]:
        before = decode_image(data[: header.span(i)[0]], model=tiny, allow_partial=True).rgb
        after = decode_image(data[: header.ends[i]], model=tiny, allow_partial=True).rgb
        rows, cols = header.geometry.window(level, header.packets[i].part - 1)
        if is_lossy(level):
            rows, cols = (slice(max(0, 8 * s.start - 16), 8 * s.stop + 16) for s in (rows, cols))
        changed = (before != after).any(0)
        assert changed[rows, cols].any()
        changed[rows, cols] = False
        assert not changed.any()


def test_every_level_boundary(tiny: Model, layered: bytes) -> None:
    """At a level's end it decodes; one byte less, and the level before is the best there is."""
    header = container.unpack_header(layered)
    ends = container.level_ends(header)
    before = 0
    for n, end in enumerate(ends.values(), 1):
        want = decode_image(layered, model=tiny, levels=n)
        for cut in (end, end + 1):
            got = decode_image(layered[:cut], model=tiny, allow_partial=True)
            assert got.levels == tuple(ends)[:n]
            assert torch.equal(got.rgb, want.rgb)
            strict = decode_image(layered[:cut], model=tiny, levels=n)
            assert torch.equal(strict.rgb, want.rgb)
        if n > 1:
            short = decode_image(layered[: end - 1], model=tiny, allow_partial=True)
            assert short.levels == tuple(ends)[: n - 1]
        else:
            with pytest.raises(Truncated):
                decode_image(layered[: end - 1], model=tiny, allow_partial=True)
        for levels in (None, n):
            with pytest.raises(Truncated) as caught:
                decode_image(layered[: end - 1], model=tiny, levels=levels)
            assert caught.value.levels_available == tuple(ends)[: n - 1]
        assert end > before
        before = end


def test_an_exact_grid_keeps_its_pixels_when_finer_levels_are_missing(tiny: Model, layered: bytes) -> None:
    x = photo(37, 50)
    n_levels = len(container.level_ends(container.unpack_header(layered)))
    part = decode_image(layered, model=tiny, levels=n_levels - 1).rgb
    assert torch.equal(part[:, ::2, ::2], x[:, ::2, ::2])
    assert not torch.equal(part, x)
    part = decode_image(layered, model=tiny, levels=n_levels - 2).rgb
    assert torch.equal(part[:, ::4, ::4], x[:, ::4, ::4])
    lossy = decode_image(layered, model=tiny, levels=3).rgb
    part[:, ::4, ::4] = lossy[:, ::4, ::4]
    assert torch.equal(part, lossy), "all other pixels are those of the lossy picture"


def test_archival_prefix_predicts_the_rest(tiny: Model) -> None:
    x = photo(37, 50)
    data = encode_image(x, model=tiny, settings=ARCHIVAL)
    part = decode_image(data, model=tiny, levels=2)
    assert part.rgb.shape == x.shape
    assert not part.exact
    assert torch.equal(part.rgb[:, ::8, ::8], x[:, ::8, ::8]), "level 5 has every eighth pixel of this size"


def test_layered_prefix_of_all_but_the_last_grid(tiny: Model) -> None:
    """What is not known lies half way between the lossy picture and the network's prediction."""
    x = photo(37, 50)
    data = encode_image(x, model=tiny, settings=LAYERED)
    n_levels = len(container.levels_present(container.unpack_header(data)))
    lossy, part = (decode_image(data, model=tiny, levels=n).rgb.int() for n in (3, n_levels - 1))
    assert torch.equal(part[:, ::2, ::2], x[:, ::2, ::2].int())
    for row, column in ((0, 1), (1, 0), (1, 1)):
        shown, before, wanted = (p[:, row::2, column::2] for p in (part, lossy, x.int()))
        assert not torch.equal(shown, before)
        predicted = 2 * shown - before
        assert predicted.min() >= -1
        assert predicted.max() <= 255
        assert (predicted - wanted).square().sum() < (255 - wanted - wanted).square().sum(), "no noise"


def test_predicted_pixels_are_limited() -> None:
    """A predicted pixel of less than 0 is 0, not 255; one that RGB has is what it is."""
    values = torch.arange(-300, 301, 50, dtype=torch.int16)
    ycocg = torch.cartesian_prod(values, values, values).T[None, ..., None]
    y, co, cg = ycocg.int().unbind(1)
    t = y - (cg >> 1)
    b = t - (co >> 1)
    wanted = torch.stack((b + co, cg + t, b), 1)
    got = predicted_rgb(ycocg)
    assert torch.equal(got.int(), wanted.clamp(0, 255))
    inside = ((wanted >= 0) & (wanted <= 255)).all(1, keepdim=True).expand_as(got)
    assert inside.any()
    assert torch.equal(got[inside], ycocg_to_rgb(ycocg)[inside])


def test_every_truncation_of_a_small_file(tiny: Model) -> None:
    data = encode_image(photo(6, 9), model=tiny, settings=LAYERED)
    for prefix in truncations(data):
        check_format_error(lambda p=prefix: decode_image(p, model=tiny), Truncated)
        check_format_error(lambda p=prefix: verify(p, model=tiny), Truncated)


@pytest.mark.parametrize("name", ["alpha", "deep"])
@pytest.mark.usefixtures("small_groups")
def test_prefixes_with_extra_planes(tiny: Model, name: str) -> None:
    """Every prefix that shows a picture has its alpha; 16 bits are there when all of them are."""
    data, header = grouped_file(name), header_of(name)
    alpha, low = (CASES[name].others.get(kind) for kind in ("alpha", "low"))
    places = level_places(header)
    low_place = header.find(container.LOW)
    for i in range(len(header.packets)):
        for end in (header.ends[i] - 1, header.ends[i]):
            if end < header.ends[places[0]]:
                with pytest.raises(Truncated):
                    decode_image(data[:end], model=tiny, allow_partial=True)
            elif i == places[0] or i % 11 == 0 or i >= places[-1]:
                decoded = decode_image(data[:end], model=tiny, allow_partial=True)
                assert (decoded.alpha is None) == (alpha is None)
                assert alpha is None or torch.equal(decoded.alpha, alpha)
                has_low = low_place is not None and end >= header.ends[low_place]
                assert (decoded.low is not None) == has_low
                assert not has_low or torch.equal(decoded.low, low)
                assert decoded.exact == (has_low or (low is None and end >= header.ends[places[-1]]))


def test_fewer_levels_of_a_deep_file(tiny: Model) -> None:
    """The upper bytes; all levels by number are 16 bits again, and want the low bytes to be there."""
    low = photo(6, 9).flip(1)
    deep = encode_image(photo(6, 9), model=tiny, settings=LAYERED, low=low)
    header = container.unpack_header(deep)
    ends = container.level_ends(header)
    for n in range(1, len(ends)):
        decoded = decode_image(deep, model=tiny, levels=n)
        assert decoded.low is None
        assert not decoded.exact
    assert torch.equal(decode_image(deep, model=tiny, levels=len(ends)).low, low)
    cut = deep[: max(ends.values()) + 3]
    for levels in (None, len(ends)):
        with pytest.raises(Truncated) as caught:
            decode_image(cut, model=tiny, levels=levels)
        assert caught.value.levels_available == tuple(ends)
    assert decode_image(cut, model=tiny, levels=len(ends) - 1).low is None


# damage


def bad_pixels(header: Header, damaged: int) -> Tensor:
    """Bool [H, W]: the pixels that may differ once a packet is damaged, by what needs it."""
    good = container.usable(header, lambda i: i != damaged)
    geometry = header.geometry
    last = container.levels_present(header)[-1]
    out = torch.zeros(geometry.grids[0], dtype=torch.bool)
    for packet, is_good in zip(header.packets, good, strict=True):
        if is_good or not packet.part or (not is_lossy(last) and packet.level != last):
            continue
        rows, cols = geometry.window(packet.level, packet.part - 1)
        if last == 4:  # packed: the whole picture
            rows, cols = slice(None), slice(None)
        elif is_lossy(
            last
        ):  # a picture is made from blocks around, and what stands for level 3 from more of them
            margin = 8 * (10 if last < 3 else 2)
            rows, cols = (slice(max(0, 8 * s.start - margin), 8 * s.stop + margin) for s in (rows, cols))
        out[rows, cols] = True
    return out


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", [*PARTS, "layered", "alpha"])
def test_a_damaged_packet_spoils_what_needs_it(tiny: Model, name: str) -> None:
    """Without `allow_partial` an error; with it the pixels of its group and of those that depend on it."""
    data, header = grouped_file(name), header_of(name)
    whole = decode_image(data, model=tiny)
    rng = np.random.default_rng(2)
    differing = 0
    places = level_places(header)
    for i in places[:: max(1, len(places) // 7)]:
        start, end = header.span(i)
        (broken,) = bit_flips(data, [int(rng.integers(8 * start, 8 * end))])
        with pytest.raises(Corrupt, match=f"checksum of packet {i} "):
            decode_image(broken, model=tiny)
        bad = bad_pixels(header, i)
        try:
            part = decode_image(broken, model=tiny, allow_partial=True)
        except Corrupt:  # nothing is left without it
            assert bad.all()
            continue
        changed = (part.rgb != whole.rgb).any(0)
        assert not (changed & ~bad).any()
        differing += bool(changed.any())
        good = container.usable(header, lambda k, i=i: k != i)
        assert part.levels == container.complete_levels(header, good)
        assert not part.exact
        if whole.alpha is not None:
            assert torch.equal(part.alpha, whole.alpha)
    assert differing or name == "packed"


@pytest.mark.usefixtures("small_groups")
def test_some_damage_leaves_most_of_the_picture() -> None:
    """What the test above allows to differ is no more than it must be."""
    for name in ("archival", "layered", "lossy"):
        header = header_of(name)
        shares = [float(bad_pixels(header, i).float().mean()) for i in level_places(header)]
        assert shares[-1] < 0.2
        assert np.mean(shares) < 0.7


@pytest.mark.usefixtures("small_groups")
def test_many_damaged_packets(tiny: Model) -> None:
    """The same picture as of a state that never saw the packets which cannot be used."""
    for name in ("archival-tuned", "layered", "lossy", "refined-twice", "refined-layered"):
        data, header = grouped_file(name), header_of(name)
        wanted = make_plan(header, None, None).wanted
        rng = np.random.default_rng(9)
        for _ in range(2):
            hit = set(rng.choice(level_places(header)[1:], 4, replace=False).tolist())
            broken = bytearray(data)
            for i in hit:
                broken[header.ends[i] - 1] ^= 0x10
            good = container.usable(header, lambda i, hit=hit: i not in hit)
            state = DecodeState(tiny, header)
            for level in container.levels_present(header):
                parts = {
                    packet.part: container.read_packet(data, header, i)
                    for i, packet in enumerate(header.packets)
                    if packet.level == level and good[i]
                }
                state = state.advance_parts(level, parts)
            last = max((level for level, groups in state.done.items() if groups), key=rank)
            part = decode_image(bytes(broken), model=tiny, allow_partial=True)
            assert torch.equal(part.rgb, state.picture(last, wanted)[0])


def test_every_flipped_bit_is_noticed(tiny: Model, layered: bytes) -> None:
    rng = np.random.default_rng(3)
    for broken in bit_flips(layered, rng.integers(0, 8 * len(layered), 300).tolist()):
        check_format_error(lambda b=broken: verify(b, model=tiny))


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", CASES)
def test_damage_with_repaired_checksums(tiny: Model, name: str) -> None:
    """Whatever the lanes hold, the outcome is a FormatError or a picture of the declared size."""
    data, header = grouped_file(name), header_of(name)
    rng = np.random.default_rng(4)
    for _ in range(4):
        payloads = payloads_of(data)
        target = payloads[rng.integers(0, len(payloads))]
        for _ in range(int(rng.integers(1, 4))):
            target[rng.integers(0, len(target))] = rng.integers(0, 256)
        for partial in (False, True):
            try:
                decoded = decode_image(rebuild(header, payloads), model=tiny, allow_partial=partial)
            except FormatError:
                continue
            assert decoded.rgb.shape == (3, header.height, header.width)


@pytest.mark.parametrize(
    ("kind", "unit"), [("alpha", container.ALPHA), ("deep", container.ALPHA), ("deep", 69)]
)
def test_corrupted_planes_with_repaired_checksums(tiny: Model, kind: str, unit: int) -> None:
    x = photo(6, 9)
    low = {"low": torch.cat((x, x[:1].flip(2)))} if kind == "deep" else {}
    data = encode_image(x, model=tiny, settings=LAYERED, alpha=x[0].flip(0).contiguous(), **low)
    header = container.unpack_header(data)
    place = header.find(unit)
    assert place is not None
    rng = np.random.default_rng(5)
    for _ in range(20):
        payloads = payloads_of(data)
        target = payloads[place]
        if rng.integers(0, 4):
            target[rng.integers(0, len(target))] ^= 1 << rng.integers(0, 8)
        else:
            del target[rng.integers(0, len(target)) :]
        check_format_error(lambda p=payloads: verify(rebuild(header, p), model=tiny))


@pytest.mark.usefixtures("small_groups")
def test_packets_of_other_modes_are_corrupt(tiny: Model) -> None:
    """Modes that there are not, empty packets, tuned groups without what they share, or with a wrong one."""

    def check(
        name: str, level: int, part: int, body: bytes, message: str, without: int | None = None
    ) -> None:
        header, payloads = header_of(name), payloads_of(grouped_file(name))
        place = header.find(level, part)
        assert place is not None
        payloads[place] = bytearray(body)
        packets = [(p.unit, p.part, bytes(b)) for p, b in zip(header.packets, payloads, strict=True)]
        broken = rewritten(header, [p for i, p in enumerate(packets) if i != without])
        for partial in (False, True):
            with pytest.raises(Corrupt, match=message):
                decode_image(broken, model=tiny, allow_partial=partial)

    wrong = (("lossy", 1, 2), ("lossy", 3, 1), ("layered", 2, 1), ("layered", 3, 3), ("refined", 34, 2))
    for name, level, mode in wrong:
        check(name, level, 1, bytes([mode]) + bytes(9), f"mode {mode}")
        check(name, level, 1, b"", "empty packet")
    for name in ("archival", "layered"):
        last = header_of(name).geometry.last_level
        check(name, 4, 1, b"\0" + bytes(9), "mode 0")
        check(name, last, 2, b"\4" + bytes(9), "mode 4")
        check(name, last, 2, b"\1" + bytes(9), "plain group of 9 bytes")
        check(name, last, 2, b"\3" + bytes(9), "plain group of 9 bytes")
        check(name, last, 2, b"", "empty packet")
        check(name, last, 2, b"\0", "length of its lanes")
    header, payloads = header_of("archival-tuned"), payloads_of(grouped_file("archival-tuned"))
    last = header.geometry.last_level
    shared, first = header.find(last), header.find(last, 1)
    assert shared is not None
    assert first is not None
    check("archival-tuned", last, 1, bytes(payloads[first]), "without the packet that they share", shared)
    check("archival-tuned", last, 0, b"\0" + bytes(payloads[shared])[1:], "shared packet has mode 0")


# other orders


def in_other_order(header: Header, first: set[int], rng: np.random.Generator | None = None) -> list[int]:
    """Places of packets, those of `first` before all other levels; or in a random order that is allowed."""
    levels = level_places(header)
    before = [i for i in range(len(header.packets)) if i < levels[0]]
    after = [i for i in range(len(header.packets)) if i > levels[-1]]
    others = [i for i in range(levels[0], levels[-1]) if i not in levels]
    if rng is None:
        return [
            *before,
            *(i for i in levels if i in first),
            *(i for i in levels if i not in first),
            *others,
            *after,
        ]
    order: list[int] = []
    waiting = set(levels)
    while waiting:
        ready = [i for i in sorted(waiting) if not needed(header, i) & waiting]
        order.append(int(rng.choice(ready)))
        waiting.remove(order[-1])
    return [*before, *order, *others, *after]


def needed(header: Header, i: int) -> set[int]:
    """Places of the packets that a packet needs."""
    packet, geometry = header.packets[i], header.geometry
    if not packet.part:
        return set()
    shared = header.find(packet.level)
    found = set() if shared is None else {shared}
    for level, groups in geometry.needs(packet.level, packet.part - 1, header.archival).items():
        places = (header.find(level, n + 1) for n in geometry.numbers(level, groups))
        found |= {place for place in places if place is not None}
    return found


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    "name", ["layered-tuned", "archival-tuned", "lossy", "refined", "refined-layered", "alpha", "deep"]
)
def test_a_region_first(tiny: Model, name: str) -> None:
    """The file decodes to the same pixels, and a short prefix of it shows the region."""
    data, header, region = grouped_file(name), header_of(name), (150, 4, 30, 20)
    first = set(all_packets(header, make_plan(header, None, region)))
    payloads = payloads_of(data)
    order = in_other_order(header, first)
    packets = [(header.packets[i].unit, header.packets[i].part, bytes(payloads[i])) for i in order]
    other = rewritten(header, packets)
    moved = container.unpack_header(other)
    assert [p.part for p in moved.packets] != [p.part for p in header.packets]
    whole, again = decode_image(data, model=tiny), decode_image(other, model=tiny)
    assert torch.equal(again.rgb, whole.rgb)
    assert again.levels == whole.levels
    assert again.exact == whole.exact
    verify(other, model=tiny)
    n_first = sum(i in first for i in order if header.packets[i].level)
    levels = level_places(moved)
    prefix = other[: moved.ends[levels[n_first - 1]]]
    assert len(prefix) < 0.85 * len(data)
    part = decode_image(prefix, model=tiny, allow_partial=True)
    assert torch.equal(part.rgb[:, 4:24, 150:180], whole.rgb[:, 4:24, 150:180])


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize(
    "name",
    ["layered-tuned", "archival-tuned", "half-noise-layered", "lossy", "refined-twice", "refined-layered"],
)
def test_random_orders(tiny: Model, name: str) -> None:
    data, header = grouped_file(name), header_of(name)
    whole, payloads = decode_image(data, model=tiny), payloads_of(data)
    for seed in range(2):
        order = in_other_order(header, set(), np.random.default_rng(seed))
        packets = [(header.packets[i].unit, header.packets[i].part, bytes(payloads[i])) for i in order]
        other = rewritten(header, packets)
        assert other != data
        assert torch.equal(decode_image(other, model=tiny).rgb, whole.rgb)
        moved = container.unpack_header(other)
        wanted = make_plan(moved, None, None).wanted
        step = 1 + len(order) // 6
        for k, (i, state) in enumerate(states(other, moved, tiny)):
            done = [level for level, groups in state.done.items() if groups]
            if k % step == step - 1 and done:  # levels side by side, none of them complete
                part = decode_image(other[: moved.ends[i]], model=tiny, allow_partial=True)
                assert torch.equal(part.rgb, state.picture(max(done, key=rank), wanted)[0])
        assert torch.equal(state.picture(max(done, key=rank), wanted)[0], whole.rgb)


@pytest.mark.usefixtures("small_groups")
def test_packets_before_what_they_need_are_refused() -> None:
    header, payloads = header_of("layered"), payloads_of(grouped_file("layered"))
    packets = [(p.unit, p.part, bytes(b)) for p, b in zip(header.packets, payloads, strict=True)]
    late = next(i for i in level_places(header) if header.packets[i].level == 3)
    with pytest.raises(Corrupt, match="before"):
        rewritten(header, [packets[late], *packets[:late], *packets[late + 1 :]])
