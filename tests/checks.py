"""The small vocabulary of the tests."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from vbc.bitstream import container
from vbc.bitstream.ans import LaneDecoder, LaneEncoder
from vbc.bitstream.errors import FormatError
from vbc.bitstream.tables import TableSet, normalise_counts
from vbc.codec.pipeline import Decoded


def check_inverse(f: Callable[[Any], Any], g: Callable[[Any], Any], x: Any) -> Any:
    """g(f(x)) is x; returns f(x)."""
    y = f(x)
    assert g(y) == x
    return y


def check_format_error(f: Callable[[], Any], *allowed: type[FormatError]) -> Any:
    """f raises one of the allowed errors (any FormatError where none is named) with a message; returns it."""
    with pytest.raises(allowed or FormatError) as caught:
        f()
    assert str(caught.value)
    return caught.value


def decoded_hash(decoded: Decoded) -> str:
    """SHA-256 over all that was decoded: RGB plane by plane, then alpha and low bytes where there are any."""
    digest = hashlib.sha256()
    for part in (decoded.rgb, decoded.alpha, decoded.low):
        if part is not None:
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def rebuild(header: container.Header, payloads: list[bytearray]) -> bytes:
    """The file again with other payloads, its checksums right."""
    return container.write_file(
        [(c.kind, c.number, bytes(p)) for c, p in zip(header.chunks, payloads, strict=True)],
        width=header.width,
        height=header.height,
        channels=header.channels,
        quality=header.quality,
        flags=header.flags,
        model_hash=header.model_hash,
        tables_hash=header.tables_hash,
        bit_depth=header.bit_depth,
    )


def truncations(data: bytes) -> Iterator[bytes]:
    """Every proper prefix."""
    return (data[:n] for n in range(len(data)))


def bit_flips(data: bytes, bits: Sequence[int] | None = None) -> Iterator[bytes]:
    """The data with one bit flipped: each of `bits`, or every one."""
    for bit in range(8 * len(data)) if bits is None else bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


Steps = list[tuple[np.ndarray, np.ndarray]]
"""Steps of a packet: (index int16 [n], symbol int16 [n]) each."""


def encode_lanes(tables: TableSet, steps: Steps) -> bytes:
    encoder = LaneEncoder(tables)
    for index, symbol in steps:
        encoder.put(index, symbol)
    return encoder.finish()


def decode_lanes(
    tables: TableSet, payload: bytes, indices: list[np.ndarray], max_symbols: int = 1 << 20
) -> list[np.ndarray]:
    decoder = LaneDecoder(tables, payload, max_symbols)
    symbols = [decoder.get(index) for index in indices]
    decoder.finish()
    return symbols


def check_lanes(tables: TableSet, steps: Steps) -> bytes:
    """The steps come back from their payload, with the type the decoder promises; returns the payload."""
    payload = encode_lanes(tables, steps)
    decoded = decode_lanes(tables, payload, [index for index, _ in steps], sum(len(i) for i, _ in steps))
    for (_, symbol), out in zip(steps, decoded, strict=True):
        assert out.dtype == np.int16
        np.testing.assert_array_equal(out, symbol)
    return payload


def laplace_tables(scales: Sequence[float]) -> TableSet:
    """One zero-centred table a scale, with an escape of about 2^-16."""
    distance = np.abs(np.arange(-127.0, 128.0))
    return TableSet(
        normalise_counts(np.stack([np.append(np.exp(-distance / s) / (2 * s), 1e-5) for s in scales]))
    )
