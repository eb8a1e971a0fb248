"""Shorter files from whole ones, without decoding: the first levels, or what a number of bytes holds.

Light: no torch, numpy or Pillow.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vbc.bitstream import container
from vbc.bitstream.container import ALPHA, EXIF, ICC, LOW, PIXEL_HASH, XMP, Header
from vbc.bitstream.geometry import rank
from vbc.bitstream.rewrite import reduced_bytes, rewrite
from vbc.bitstream.source import Source
from vbc.codec.files.orientation import orientation_alone

DESCRIBING = 4
"""EXIF and XMP may take one byte in so many of a budget before the picture is thought of."""


class NothingLeft(ValueError):
    """Nothing of the picture would be left.

    need: bytes of the shortest file that shows some of it; 0 where the levels asked for are not there.
    """

    def __init__(self, what: str, need: int = 0) -> None:
        super().__init__(what, need)
        self.what = what
        self.need = need

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Draft:
    """Packets chosen from a file: their places in its index, and other payloads for some of them."""

    header: Header
    places: frozenset[int] = frozenset()
    replaced: Mapping[int, bytes] = field(default_factory=dict)

    def add(self, places: Iterable[int]) -> "Draft":
        """With these packets too, as they are in the file."""
        new = frozenset(places)
        replaced = {i: body for i, body in self.replaced.items() if i not in new}
        return Draft(self.header, self.places | new, replaced)

    def add_replaced(self, place: int, payload: bytes) -> "Draft":
        """With this packet too, its payload another one."""
        return Draft(self.header, self.places | {place}, {**self.replaced, place: payload})

    def add_fitting(self, units: Iterable[int], max_bytes: int) -> "Draft":
        """With the packets of these units too that find room, the first ones first."""
        draft = self
        for i in _find(self.header, units):
            more = draft.add([i])
            draft = more if more.n_bytes <= max_bytes else draft
        return draft

    def add_longest(self, places: Sequence[int], max_bytes: int) -> "Draft":
        """With as many of these packets as find room, from the first one on; none may be here already."""
        count = bisect_right(range(len(places) + 1), max_bytes, key=lambda n: self.add(places[:n]).n_bytes)
        return self.add(places[: max(0, count - 1)])

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return reduced_bytes(self.header, sorted(self.places), self.replaced)

    @property
    def shows_something(self) -> bool:
        """Whether a group of a level is there."""
        return any(self.header.packets[i].part for i in self.places)

    def write(self, source: Source) -> bytes:
        """The file. Raises Truncated and Corrupt where a packet is missing or damaged."""
        return rewrite(source, self.header, sorted(self.places), self.replaced)


def cut_file(source: Source, header: Header, max_bytes: int | None, stage: int | None) -> bytes:
    """The file with fewer packets: of the levels up to `stage` the first ones, as many as fit `max_bytes`.

    None: no limit. Where nothing need be left out, the file as it is.

    ICC and alpha stay: colours mean nothing without them. So does the orientation that EXIF tells. EXIF and
    XMP stay, in this order, if they take a quarter of `max_bytes` at most or find room behind the levels, and
    without `max_bytes` always. Ancillary packets go. Raises NothingLeft; Truncated and Corrupt where a packet
    that stays is missing or damaged.
    """
    every = [i for i, packet in enumerate(header.packets) if packet.level]
    levels = [i for i in every if stage is None or rank(header.packets[i].level) <= rank(stage)]
    if len(levels) == len(every) and (max_bytes is None or header.file_bytes <= max_bytes):
        return _whole(source, header)
    draft = Draft(header).add(_find(header, (ICC, ALPHA)))
    if not draft.add(levels).shows_something:
        raise NothingLeft("the file has no level" + ("" if stage is None else f" up to {stage}"))
    if max_bytes is None:
        return draft.add(_find(header, (EXIF, XMP))).add(levels).write(source)
    draft = _longest(_with_orientation(draft, source), levels, max_bytes)
    if draft.places.issuperset(every) and header.lossless:
        draft = draft.add_fitting((LOW, PIXEL_HASH), max_bytes)
    return draft.add_fitting((EXIF, XMP), max_bytes).write(source)


def described(lengths: Iterable[int | None], max_bytes: int) -> list[bool]:
    """Which of EXIF and XMP, of these lengths, are kept in a file of a budget whatever the picture needs."""
    room, keep = max_bytes // DESCRIBING, []
    for length in lengths:
        keep.append(length is not None and length <= room)
        room -= length if length is not None and keep[-1] else 0
    return keep


def _longest(draft: Draft, levels: Sequence[int], max_bytes: int) -> Draft:
    """The draft with as much of the levels as fits beside EXIF and XMP; without those where nothing would.

    Raises NothingLeft.
    """
    header = draft.header
    places = [header.find(unit) for unit in (EXIF, XMP)]
    keep = described((None if i is None else header.packets[i].length for i in places), max_bytes)
    whole = [i for i, kept in zip(places, keep, strict=True) if kept and i is not None]
    for start in (draft.add(whole), draft):
        found = start.add_longest(levels, max_bytes)
        if found.shows_something:
            return found
    first = next(n for n, i in enumerate(levels) if header.packets[i].part)
    need = draft.add(levels[: first + 1]).n_bytes
    raise NothingLeft(f"nothing of the picture fits into {max_bytes} bytes; {need} show some of it", need)


def _with_orientation(draft: Draft, source: Source) -> Draft:
    """The draft with the orientation in EXIF, and nothing else of that; as it is if that is upright."""
    i = draft.header.find(EXIF)
    if i is None:
        return draft
    block = bytes(container.read_packet(source, draft.header, i))
    alone = orientation_alone(block)
    return draft if alone is None else draft.add_replaced(i, alone)


def _whole(source: Source, header: Header) -> bytes:
    """All bytes of the file. Raises Truncated and Corrupt unless all packets are there and sound."""
    for i in range(len(header.packets)):
        container.read_packet(source, header, i)
    return bytes(source.read(0, header.file_bytes))


def _find(header: Header, units: Iterable[int]) -> list[int]:
    """The places of packets of these units, of no level, that are there."""
    return [i for unit in units if (i := header.find(unit)) is not None]
