"""A file again with fewer packets, or in another order. Nothing is decoded (docs/format.md, sections 2, 3).

Light to import, as the container is.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from .container import (
    ALPHA,
    LOSSLESS,
    LOW,
    PIXEL_HASH,
    Header,
    Packet,
    pack_header,
    packed_bytes,
    read_packet,
)
from .source import Buffer, Source, as_source

NOTHING: Mapping[int, bytes] = {}


def rewrite(
    data: Buffer | Source, header: Header, places: Iterable[int], replaced: Mapping[int, bytes] = NOTHING
) -> bytes:
    """The file of a header with just these of its packets, in this order.

    data: the file, or what is there of it. places: in the index, each once; packets that mean nothing without
    others that are left out go too (`kept_places`). replaced: by place, other payloads for packets of no
    level. Only packets that are kept are read. Raises Truncated and Corrupt where one is missing or damaged,
    Corrupt where the packets are no valid file.
    """
    source, kept = as_source(data), kept_places(header, places)
    new = reduced_header(header, kept, replaced)
    bodies = (replaced[i] if i in replaced else read_packet(source, header, i) for i in kept)
    return b"".join([pack_header(new), *bodies])


def reduced_header(header: Header, places: Iterable[int], replaced: Mapping[int, bytes] = NOTHING) -> Header:
    """The header of what `rewrite` makes. Raises Corrupt where the packets are no valid file.

    Lossless, and of 16 bits, if the other one is and all of the picture is kept.
    """
    kept = kept_places(header, places)
    packets = _packets(header, kept, replaced)
    if keeps_picture(header, kept):
        return replace(header, packets=packets)
    return replace(header, packets=packets, flags=header.flags & ~LOSSLESS, bit_depth=8)


def reduced_bytes(header: Header, places: Iterable[int], replaced: Mapping[int, bytes] = NOTHING) -> int:
    """The length of what `rewrite` makes, found faster than its header: validity is not looked at."""
    return packed_bytes(_packets(header, kept_places(header, places), replaced))


def kept_places(header: Header, places: Iterable[int]) -> list[int]:
    """The places of packets that mean something in a file of these packets, in the same order.

    Low bytes and pixel hash go where something of the picture is left out. What the groups of a level share
    goes where all these groups are.
    """
    asked = list(places)
    levels = {header.packets[i].level for i in asked if header.packets[i].part}
    useless = set() if keeps_picture(header, asked) else {LOW, PIXEL_HASH}
    packets = header.packets
    return [
        i
        for i in asked
        if packets[i].unit not in useless and (not packets[i].level or packets[i].level in levels)
    ]


def keeps_picture(header: Header, places: Iterable[int]) -> bool:
    """Whether these are all packets that the samples depend on: levels, alpha, low bytes."""
    kept = set(places)
    return all(i in kept for i, p in enumerate(header.packets) if p.level or p.unit in (ALPHA, LOW))


def _packets(header: Header, places: Iterable[int], replaced: Mapping[int, bytes]) -> tuple[Packet, ...]:
    return tuple(
        replace(header.packets[i], length=len(replaced[i]), crc32=zlib.crc32(replaced[i]))
        if i in replaced
        else header.packets[i]
        for i in places
    )
