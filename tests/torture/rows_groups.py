"""The row about groups and packets: regions, cut and stripped files, other orders, single damaged packets."""

import functools
import io

import numpy as np

from torture.material import (
    TINY,
    Entry,
    Samples,
    all_files,
    grouped_files,
    key,
    picture_key,
    rewritten,
    shows_group,
    subset,
    usable_packets,
)
from torture.rows_bytes import attempt, fed
from torture.tally import Slice, Tally
from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.errors import Corrupt, Truncated
from vbc.bitstream.geometry import BLOCK, LOSSY_LEVELS, PICTURE_REACH, is_lossy
from vbc.codec import api

Region = tuple[int, int, int, int]
ORDER = {container.ICC: 0, container.ALPHA: 1, container.LOW: 3, container.PIXEL_HASH: 4}
"""Where units that are no levels stand among the levels' packets, which have 2; the others stand anywhere."""
CACHED_PICTURES = 64


@functools.lru_cache(CACHED_PICTURES)
def whole(name: str, levels: int | None = None) -> Samples:
    """The picture of the first levels of a file, all of it."""
    return api.decode_picture(all_files()[name], levels=levels, model=TINY).picture.samples()


def random_region(rng: np.random.Generator, width: int, height: int) -> Region:
    """A region that often starts, ends or lies at borders of blocks and groups, and often is small."""

    def span(size: int) -> tuple[int, int]:
        marks = [0, size, *range(8, size, 8), *([511, 512, 513] if size > 513 else [])]
        a, b = (int(rng.choice(marks) if rng.random() < 0.5 else rng.integers(0, size + 1)) for _ in range(2))
        start, end = min(a, b), max(a, b)
        if rng.random() < 0.6:
            end = start + int(rng.integers(1, 9))
        start = min(start, size - 1)
        return start, max(start + 1, min(end, size)) - start

    (x, w), (y, h) = span(width), span(height)
    return x, y, w, h


def cropped(samples: Samples, region: Region) -> Samples:
    """A region of a picture."""
    x, y, width, height = region
    return samples[y : y + height, x : x + width]


def upper(samples: Samples) -> Samples:
    """Samples of 8 bits: of 16 the upper bytes."""
    return (samples >> 8).astype(np.uint8) if samples.dtype == np.uint16 else samples


def group_cases(todo: Slice) -> Tally:
    """Row 19: the parts of a file give the parts of its picture, in whatever order they come, and what is
    damaged costs what needs it alone."""
    tally = Tally()
    small = [name for name, data in all_files().items() if len(data) < 8192]
    names = [*grouped_files(), *todo.some(small)]
    kinds = (region_case, stripped_case, cut_case, order_case, damage_case)
    for n in todo:
        rng = np.random.default_rng((19, n))
        name, kind = names[n // len(kinds) % len(names)], kinds[n % len(kinds)]
        what = f"row 19 case {n} ({kind.__name__}, {name})"
        with tally.case(what):
            kind(tally, what, name, rng)
    return tally


def region_case(tally: Tally, what: str, name: str, rng: np.random.Generator) -> None:
    """A region is the crop of the picture, and needs no byte outside the ranges that are named for it."""
    data = all_files()[name]
    header = container.unpack_header(data)
    n_levels = len(container.levels_present(header))
    levels = None if rng.random() < 0.5 else int(rng.integers(1, n_levels + 1))
    region = random_region(rng, header.width, header.height)
    got = api.decode_picture(data, levels=levels, region=region, model=TINY)
    right = key(got.picture.samples()) == key(cropped(whole(name, levels), region))
    tally.check(right, f"{what}: levels {levels}, region {region}: not the crop")
    ranges = api.read_info(data, levels=levels, region=region).ranges
    sparse = bytearray(ranges[-1][1])
    for start, end in ranges:
        sparse[start:end] = data[start:end]
    # metadata is not among the ranges: partial decoding leaves it out where it is damaged
    got = api.decode_picture(sparse, levels=levels, region=region, allow_partial=True, model=TINY)
    right = key(got.picture.samples()) == key(cropped(whole(name, levels), region))
    tally.check(right, f"{what}: levels {levels}, region {region}: the ranges are not enough")


def stripped_case(tally: Tally, what: str, name: str, rng: np.random.Generator) -> None:
    """A file without the packets that a region does not need still gives the region."""
    data = all_files()[name]
    header = container.unpack_header(data)
    region = random_region(rng, header.width, header.height)
    groups = header.geometry.region_groups(region, last_used(header), header.archival)
    keep = [not p.level or not p.part or p.part - 1 in groups.get(p.level, ()) for p in header.packets]
    stripped = subset(data, keep)
    tally.count("packets left out", keep.count(False))
    got = api.decode_picture(stripped, region=region, model=TINY)
    wanted = cropped(whole(name), region)
    if not container.unpack_header(stripped).lossless:
        wanted = upper(wanted)  # the low bytes went with the packets
    tally.check(key(got.picture.samples()) == key(wanted), f"{what}: region {region}")


def cut_case(tally: Tally, what: str, name: str, rng: np.random.Generator) -> None:
    """A prefix, made into a file of its own, is a valid file with the prefix's picture."""
    data = all_files()[name]
    header = container.unpack_header(data)
    cut = int(rng.integers(header.header_bytes, len(data) + 1))
    keep = usable_packets(header, cut)
    if not shows_group(header, keep):
        return
    own = subset(data, keep)
    prefix = api.decode_picture(data[:cut], allow_partial=True, model=TINY)
    got = api.decode_picture(own, model=TINY)
    tally.check(key(got.picture.samples()) == key(prefix.picture.samples()), f"{what}: cut at {cut}")
    tally.check(got.levels == prefix.levels, f"{what}: cut at {cut}: {got.levels}, {prefix.levels}")
    tally.check(got.picture.metadata == prefix.picture.metadata, f"{what}: cut at {cut}: metadata")
    if all(keep):
        api.verify(own, model=TINY)


def order_case(tally: Tally, what: str, name: str, rng: np.random.Generator) -> None:
    """Packets in another order that respects what they need: the same picture, whole and in pieces."""
    data = all_files()[name]
    header = container.unpack_header(data)
    order = random_order(header, rng)
    payloads: list[Entry] = [
        (header.packets[i].unit, header.packets[i].part, data[slice(*header.span(i))]) for i in order
    ]
    other = rewritten(header, payloads)
    tally.count("orders that differ", order != list(range(len(order))))
    api.verify(other, model=TINY)
    got = api.decode_picture(other, model=TINY)
    tally.check(key(got.picture.samples()) == key(whole(name)), f"{what}: {order}")
    mean = max(1, len(other) // 20)
    pieces = fed(io.BytesIO(other), lambda: int(rng.geometric(1 / mean)), lambda: rng.random() < 0.2)
    tally.check(pieces[1:3] == ("", key(whole(name))), f"{what}: {order}, in pieces: {pieces[1:]}")


def random_order(header: Header, rng: np.random.Generator) -> list[int]:
    """Places of all packets in an order that a file may have, chosen packet by packet."""
    left = list(range(len(header.packets)))
    order: list[int] = []
    while left:
        ready = [i for i in left if all(j not in left for j in stands_before(header, i))]
        i = ready[int(rng.integers(0, len(ready)))]
        left.remove(i)
        order.append(i)
    return order


def stands_before(header: Header, i: int) -> list[int]:
    """Places of the packets that packet i must stand behind."""
    packet = header.packets[i]
    rank = 2 if packet.level else ORDER.get(packet.unit)
    if rank is None:
        return []
    before = [j for j, p in enumerate(header.packets) if (2 if p.level else ORDER.get(p.unit, rank)) < rank]
    if packet.part:
        needed = header.geometry.needs(packet.level, packet.part - 1, header.archival)
        parts = [(packet.level, 0)]
        parts += [(lvl, 1 + n) for lvl, r in needed.items() for n in header.geometry.numbers(lvl, r)]
        before += [j for j in (header.find(*part) for part in parts) if j is not None]
    return before


def damage_case(tally: Tally, what: str, name: str, rng: np.random.Generator) -> None:
    """A damaged packet is Corrupt; where a partial picture will do, it costs what needs it alone."""
    data = all_files()[name]
    header = container.unpack_header(data)
    i = int(rng.integers(0, len(header.packets)))
    packet = header.packets[i]
    start, end = header.span(i)
    damaged = bytearray(data)
    damaged[int(rng.integers(start, end))] ^= 1 << int(rng.integers(0, 8))
    what = f"{what}: unit {packet.unit}, part {packet.part}"
    error = attempt(lambda: api.verify(bytes(damaged), model=TINY))
    tally.check(isinstance(error, Corrupt), f"{what}: {error!r}")
    if packet.unit == container.ALPHA:
        return  # a picture without its alpha is another one
    keep = usable_packets(header, lambda j: j != i)
    tally.check(container.usable(header, lambda j: j != i) == keep, f"{what}: other packets are usable")
    partial = attempt(lambda: api.decode_picture(damaged, allow_partial=True, model=TINY))
    if not shows_group(header, keep):
        tally.check(isinstance(partial, Corrupt | Truncated), f"{what}: {partial!r}")
        return
    assert isinstance(partial, api.DecodedPicture), partial
    got = partial.picture.samples()
    tally.check(key(got) == picture_key(name, keep), f"{what}: not what is left")
    lost = lost_pixels(header, keep)
    same = (upper(got) == upper(whole(name))).reshape(header.height, header.width, -1).all(2)
    tally.check(bool((same | lost).all()), f"{what}: pixels differ that do not need it")
    regions = (random_region(rng, header.width, header.height) for _ in range(20))
    beside = next((r for r in regions if not needs_packet(header, r, i)), None)
    if packet.level and beside is not None:
        # a partial picture need not be allowed: nothing of the region is damaged
        crop = api.decode_picture(damaged, region=beside, model=TINY).picture.samples()
        tally.count("regions beside the damage")
        tally.check(key(crop) == key(cropped(whole(name), beside)), f"{what}: region {beside}")


def last_used(header: Header) -> int:
    """The level that completes the picture of all levels of a file."""
    exact = not is_lossy(container.levels_present(header)[-1])
    return header.geometry.last_level if exact else header.geometry.last_lossy


def needs_packet(header: Header, region: Region, i: int) -> bool:
    """Whether a region's picture of all levels needs packet i."""
    packet = header.packets[i]
    groups = header.geometry.region_groups(region, last_used(header), header.archival)
    return packet.level in groups and (packet.part == 0 or packet.part - 1 in groups[packet.level])


def lost_pixels(header: Header, keep: tuple[bool, ...]) -> np.ndarray:
    """Where the picture may differ for packets that cannot be used: bool [H, W]."""
    lost = np.zeros((header.height, header.width), bool)
    geometry, present = header.geometry, container.levels_present(header)
    level = last_used(header)
    exact = not is_lossy(level)
    if present[-1] == LOSSY_LEVELS + 1:  # the whole picture, packed
        lost[:] = not keep[header.find(LOSSY_LEVELS + 1, 1) or 0]
        return lost
    for n in range(geometry.n_groups(level)):
        i = header.find(level, 1 + n)
        if i is not None and keep[i]:
            continue
        rows, cols = geometry.window(level, n)
        if not exact:
            rows, cols = (
                slice(max(0, part.start - PICTURE_REACH) * BLOCK, (part.stop + PICTURE_REACH) * BLOCK)
                for part in (rows, cols)
            )
        lost[rows, cols] = True
    return lost
