"""Unsigned LEB128 numbers in shortest form: seven bits a byte, the low ones first, in all but the last the
top bit set."""

from collections.abc import Iterable

from .errors import Corrupt

COUNT_BITS = 32
"""Counts stay below 2^32: the largest picture allowed has 2^30 subpixels."""


def pack_varints(values: Iterable[int], bits: int = COUNT_BITS) -> bytes:
    """One number after the other, each in 0..2^bits-1. Inverse: unpack_varints."""
    out = bytearray()
    for value in values:
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{value} is outside 0..2^{bits}-1")
        while value >= 0x80:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def unpack_varints(data: memoryview, count: int, at: int = 0) -> tuple[list[int], int]:
    """Read `count` numbers below 2^32 from byte `at` on; returns them and where they end.

    Every number takes a byte, so a wrong count ends within the data. Raises Corrupt.
    """
    values = []
    for _ in range(count):
        value, at = unpack_varint(data, at)
        values.append(value)
    return values, at


def unpack_varint(data: memoryview | bytes, at: int, bits: int = COUNT_BITS) -> tuple[int, int]:
    """Read a number from byte `at` on; returns it and where it ends.

    Raises Corrupt where the data end before it, or it is not in its shortest form, or is 2^bits or more.
    """
    start, value = at, 0
    while True:
        if at >= len(data):
            raise Corrupt("a number runs past the end")
        byte = data[at]
        value |= (byte & 0x7F) << 7 * (at - start)
        at += 1
        if byte < 0x80:
            break
        if 7 * (at - start) >= bits:
            raise Corrupt(f"a number is not below 2^{bits}")
    if value >> bits or (byte == 0 and at - start > 1):
        raise Corrupt(f"a number is not in its shortest form or not below 2^{bits}")
    return value, at
