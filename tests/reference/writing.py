"""The encoder's halves of docs/format.md, sections 2, 3 and 7, for files made by hand."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from reference.container import HEADER, LEVEL_UNITS, MAGIC, MAJOR, Header
from reference.lanes import ESCAPE, NOTHING, SYMBOL_MAX
from reference.weights import Array


def varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_lanes(starts: list[list[int]], steps: Sequence[tuple[Array, Array]], chunk_bits: int = 8) -> bytes:
    """The lane payload of steps (tables, symbols), arrays of one shape each."""
    lanes: list[list[tuple[int, int]]] = []
    for tables, symbols in steps:
        flat, values = tables.reshape(-1), symbols.reshape(-1)
        order = np.argsort(flat, kind="stable")[: np.count_nonzero(flat != NOTHING)]
        for j in range(-(-order.size >> chunk_bits)):
            part = order[j << chunk_bits : (j + 1) << chunk_bits]
            if j == len(lanes):
                lanes.append([])
            lanes[j] += zip(flat[part].tolist(), values[part].tolist(), strict=True)
    escapes = [[value for _, value in lane if abs(value) > SYMBOL_MAX] for lane in lanes]
    words = [encode_lane(starts, lane) for lane in lanes]
    n_escapes = sum(map(len, escapes))
    numbers = [sum(map(len, lanes)), len(lanes), n_escapes]
    numbers += [len(lane) for lane in escapes] if n_escapes else []
    numbers += [len(lane) for lane in words]
    return b"".join(
        (
            bytes([chunk_bits]),
            *map(varint, numbers),
            *(struct.pack("<h", value) for lane in escapes for value in lane),
            *(struct.pack("<I", word) for lane in words for word in lane),
        )
    )


def encode_lane(starts: list[list[int]], symbols: list[tuple[int, int]]) -> list[int]:
    """The words of a lane of (table, symbol)."""
    state, words = 0, []
    for table, symbol in reversed(symbols):
        letter = symbol + SYMBOL_MAX if abs(symbol) <= SYMBOL_MAX else ESCAPE
        start = starts[table][letter]
        span = starts[table][letter + 1] - start
        if state >> 40 >= span:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // span << 24) + start + state % span
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    return words


def write_file(header: Header, packets: Sequence[tuple[int, int, bytes]]) -> bytes:
    """A file of packets (unit, part, payload) in their order."""
    index = b"".join(map(write_run, runs(packets)))
    return join_file(header, index, b"".join(payload for _, _, payload in packets))


def runs(packets: Sequence[tuple[int, int, bytes]]) -> list[list[tuple[int, int, bytes]]]:
    """The packets in runs as long as they can be."""
    found: list[list[tuple[int, int, bytes]]] = []
    for packet in packets:
        unit, part, _ = packet
        if found and unit in LEVEL_UNITS and found[-1][-1][:2] == (unit, part - 1):
            found[-1].append(packet)
        else:
            found.append([packet])
    return found


def write_run(packets: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The entries of a run."""
    unit, first, _ = packets[0]
    head = bytes([unit]) + (varint(first) + varint(len(packets)) if unit in LEVEL_UNITS else b"")
    return head + b"".join(varint(len(body)) + struct.pack("<I", zlib.crc32(body)) for _, _, body in packets)


def join_file(header: Header, index: bytes, payloads: bytes) -> bytes:
    """Header, index and payloads with their checksums; the index is taken as it is."""
    start = HEADER.pack(
        MAGIC,
        MAJOR,
        0,
        header.flags,
        header.width,
        header.height,
        header.channels,
        header.bit_depth,
        header.colour,
        header.quality,
        header.model_hash,
        header.tables_hash,
        len(index),
    )
    checked = start + struct.pack("<I", zlib.crc32(start))
    return checked + index + struct.pack("<I", zlib.crc32(index)) + payloads
