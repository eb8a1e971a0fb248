"""The small vocabulary of the tests."""

import hashlib
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from vbc.bitstream import container
from vbc.bitstream.ans import LaneDecoder, LaneEncoder
from vbc.bitstream.errors import FormatError
from vbc.bitstream.geometry import Sides
from vbc.bitstream.tables import TableSet, normalise_counts
from vbc.codec.model import Model
from vbc.codec.pipeline import Decoded, decode_image


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


def check_cheap(f: Callable[[], object], seconds: float, peak_bytes: int | None = None) -> None:
    """f takes less processor time than so many seconds, in the best of five tries, as a collection of garbage
    or a neighbour on the core may hit any one; with `peak_bytes`, at most that much memory in every one."""
    spent = []
    for _ in range(5):
        if peak_bytes is not None:
            tracemalloc.start()
        started = time.process_time()
        f()
        spent.append(time.process_time() - started)
        if peak_bytes is not None:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < peak_bytes
        if spent[-1] < seconds:
            return
    raise AssertionError(f"took {min(spent):.3g} s of processor time, more than {seconds}")


def decoded_hash(decoded: Decoded) -> str:
    """SHA-256 over all that was decoded: RGB plane by plane, then alpha and low bytes where there are any."""
    digest = hashlib.sha256()
    for part in (decoded.rgb, decoded.alpha, decoded.low):
        if part is not None:
            digest.update(part.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


SMALL_SIDES = Sides(lossy=(8, 4, 4), refined=(8, 4, 2), exact=(32, 16, 16))
"""Groups of level 1 of 64 x 64 pixels, of refinements of level 3 of 16 x 16, of all other levels of 32 x 32
or so."""


@contextmanager
def group_sides(sides: Sides = SMALL_SIDES) -> Iterator[None]:
    """A format with groups of other sides, for files that are written and read inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbc.bitstream.geometry.SIDES", sides)
        patch.setattr("vbc.codec.lossy.synthesis.SQUARE", sides.lossy[-1])
        patch.setattr("vbc.codec.lossy.synthesis.REFINED_SQUARE", sides.refined[-1])
        yield


@contextmanager
def every_refinement() -> Iterator[None]:
    """An encoder that writes all refinements asked for, and all their packets, whether they pay or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vbc.codec.flow.encode_levels.that_pay", lambda packets, geometry: set(packets))
        patch.setattr("vbc.codec.lossy.quality_map.CLAMPED_SHARE", 1.0)
        yield


def decode_answer(data: bytes, model: Model, answer: str) -> Decoded:
    """Decode a file as one of its golden answers names it: "3", "native-1" or "region 10,20,30,40"."""
    if answer.startswith("region "):
        x, y, width, height = map(int, answer.removeprefix("region ").split(","))
        return decode_image(data, model=model, region=(x, y, width, height))
    native = answer.startswith("native-")
    return decode_image(data, model=model, levels=int(answer.removeprefix("native-")), native=native)


def payloads_of(data: bytes) -> list[bytearray]:
    """The payload of each packet, in the order of the file."""
    header = container.unpack_header(data)
    return [bytearray(container.read_packet(data, header, i)) for i in range(len(header.packets))]


def rebuild(header: container.Header, payloads: Sequence[bytes | bytearray]) -> bytes:
    """The file again with other payloads, its checksums right."""
    packets = [(p.unit, p.part, bytes(body)) for p, body in zip(header.packets, payloads, strict=True)]
    return rewritten(header, packets)


def rewritten(header: container.Header, packets: Sequence[tuple[int, int, bytes]], **changed: Any) -> bytes:
    """A file of other packets (unit, part, payload), its header the same but for what has `changed`."""
    names = ("width", "height", "channels", "quality", "flags", "model_hash", "tables_hash", "bit_depth")
    return container.write_file(packets, **{name: getattr(header, name) for name in names} | changed)


def file_without_levels(model: Model) -> bytes:
    """A valid header with an ICC profile and nothing else."""
    return container.write_file(
        [(container.ICC, 0, b"profile")],
        width=9,
        height=9,
        channels=3,
        quality=0,
        flags=0,
        model_hash=model.hash,
        tables_hash=model.tables.digest,
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
