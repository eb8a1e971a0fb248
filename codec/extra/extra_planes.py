"""Extra planes, always exact: alpha, and the low bytes of 16-bit samples (docs/format.md, section 13).

A plane is uint8 [H, W]. One fixed predictor serves a whole plane, so that decoding is a running sum;
residuals are coded block by block with the model's own tables, deflated, or stored, whichever is smallest.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vbc.bitstream.errors import Corrupt
from vbc.bitstream.tables import ESCAPE, SYMBOL_MAX, TOTAL_BITS, TableSet
from vbc.bitstream.varint import pack_varints, unpack_varints
from vbc.codec.entropy.coder import ESCAPE_BITS, Coder, Reader, Writer
from vbc.codec.model import Model
from vbc.kernels.predict import FRACTIONS, LOG_SCALE_MAX, LOG_SCALE_MIN

Plane = NDArray[np.uint8]
Window = tuple[slice, slice]

RAW, CONSTANT, DEFLATED, CODED = range(4)
"""First byte of a plane: residuals follow as bytes, as one byte that all of them equal, as a zlib stream, in
lanes."""

NONE, LEFT, UP, GRADIENT, REFERENCE = range(5)
"""Second byte of a plane, the predictor: 0, W, N, W + N - NW, or the reference; beyond the border is 0."""

BLOCK = 32
"""Side of the squares that have a class each: a class costs at most a byte for 1024 pixels."""

REGION = 1024
"""Side of the squares that are one step of the lanes: bounds the memory of sorting."""

SAMPLE_STRIPS = 16
"""Rows of blocks from which the predictor is chosen: half a million pixels of a large plane tell enough."""

SAMPLE_BYTES = 1 << 18
"""What is deflated on trial before all of a large plane is: lanes are several times as fast."""

Index = NDArray[np.int16]
Classes = NDArray[np.uint8]
"""uint8 [ceil(H / 32), ceil(W / 32)]: 0 silent (all residuals zero), k > 0 the k-th of `class_tables`."""


def encode_planes(planes: Sequence[Plane], references: Sequence[Plane | None], model: Model) -> bytes:
    """The planes, uint8 [H, W] each, as a payload. Inverse: decode_planes.

    references: for each plane one of its shape that a decoder knows by then, or None. The payload is at most
    seven bytes a plane larger than the plane.
    """
    bodies = [_encode_plane(p, r, model) for p, r in zip(planes, references, strict=True)]
    return b"".join([pack_varints([len(body) for body in bodies]), *bodies])


def decode_planes(
    payload: memoryview,
    size: tuple[int, int],
    references: Sequence[Plane | None],
    model: Model,
    window: Window | None = None,
) -> list[Plane]:
    """As many planes as there are references, each uint8 of the size (height, width), or windows of them.

    window: rows and columns; the references are then of that size.

    What is allocated is bounded by the size, which the caller has checked. Raises Corrupt.
    """
    lengths, at = unpack_varints(payload, len(references))
    if at + sum(lengths) != len(payload):
        raise Corrupt("the lengths of planes do not add up to the payload")
    planes = []
    for length, reference in zip(lengths, references, strict=True):
        planes.append(_decode_plane(payload[at : at + length], size, reference, model, window))
        at += length
    return planes


def remove_prediction(plane: Plane, predictor: int, reference: Plane | None = None) -> Plane:
    """Residuals uint8 [H, W], modulo 256. Inverse: add_prediction."""
    residual = plane.copy()
    if predictor == REFERENCE:
        assert reference is not None
        residual -= reference
    if predictor in (LEFT, GRADIENT):
        residual[:, 1:] -= plane[:, :-1]
    if predictor in (UP, GRADIENT):
        residual[1:] -= residual[:-1].copy() if predictor == GRADIENT else plane[:-1]
    return residual


def add_prediction(residual: Plane, predictor: int, reference: Plane | None = None) -> Plane:
    """The plane, in the memory of its residuals. Raises Corrupt for a predictor that there is not."""
    if predictor > REFERENCE or (predictor == REFERENCE and reference is None):
        raise Corrupt(f"a plane with predictor {predictor}")
    if reference is not None and predictor == REFERENCE:
        residual += reference
    if predictor in (UP, GRADIENT):
        np.cumsum(residual, axis=0, dtype=np.uint8, out=residual)
    if predictor in (LEFT, GRADIENT):
        np.cumsum(residual, axis=1, dtype=np.uint8, out=residual)
    return residual


def class_tables(model: Model) -> Index:
    """The table of each class from 1 on: those of channel Y without a fraction, by scale; uint16 [41]."""
    scales = np.arange(0, LOG_SCALE_MAX - LOG_SCALE_MIN + 1, 4)
    tables = model.exact.maps["D"].tables[0].cpu().numpy()
    index: Index = tables[scales * FRACTIONS + FRACTIONS // 2]
    return index


def _encode_plane(plane: Plane, reference: Plane | None, model: Model) -> bytes:
    choices = [NONE, LEFT, UP, GRADIENT] + ([REFERENCE] if reference is not None else [])
    for predictor in (choices[0], choices[-1]):
        residual = remove_prediction(plane, predictor, reference)
        if (residual == residual[0, 0]).all():
            return bytes([CONSTANT, predictor, residual[0, 0]])
    tables = class_tables(model)
    cost = _symbol_bits(model.tables, tables)
    sample = _sample(plane), None if reference is None else _sample(reference)
    bits = [_choose_classes(remove_prediction(sample[0], p, sample[1]), cost)[1] for p in choices]
    best = choices[int(np.argmin(bits))]
    residual = remove_prediction(plane, best, reference)
    classes, _ = _choose_classes(residual, cost)
    writer = Writer(model.tables, 1)
    _code(writer, plane.shape, classes, tables, residual)
    packed = zlib.compress(classes.tobytes(), 9)
    coded = bytes([CODED, best]) + pack_varints([len(packed)]) + packed + writer.finish()[0]
    found = [coded, bytes([RAW, NONE]) + plane.tobytes()]
    for predictor in {NONE, best}:  # without a predictor: samples of few bits, shifted up
        data = residual if predictor == best else plane
        start = max(0, (plane.size - SAMPLE_BYTES) // 2)
        trial = data.reshape(-1)[start : start + SAMPLE_BYTES]
        if len(zlib.compress(trial.tobytes())) * plane.size < min(map(len, found)) * trial.size:
            found.append(bytes([DEFLATED, predictor]) + zlib.compress(data.tobytes()))
    return min(found, key=len)


def _decode_plane(
    body: memoryview, size: tuple[int, int], reference: Plane | None, model: Model, window: Window | None
) -> Plane:
    if len(body) < 2:
        raise Corrupt("a plane of less than two bytes")
    mode, predictor, rest = body[0], body[1], body[2:]
    n_pixels = size[0] * size[1]
    if mode == CODED:
        residual = _read_lanes(rest, size, model)
    elif mode == DEFLATED:
        residual = np.frombuffer(bytearray(_inflate(rest, n_pixels)), np.uint8).reshape(size)
    elif mode == CONSTANT and len(rest) == 1:
        residual = np.full(size, rest[0], np.uint8)
    elif mode == RAW and len(rest) == n_pixels:
        residual = np.frombuffer(bytearray(rest), np.uint8).reshape(size)
    else:
        raise Corrupt(f"a plane of {len(body)} bytes with mode {mode}")
    if window is None:
        return add_prediction(residual, predictor, reference)
    if predictor == REFERENCE:  # position by position, so that no more of the reference is needed
        return add_prediction(residual[window].copy(), predictor, reference)
    return add_prediction(residual, predictor)[window].copy()


def _read_lanes(body: memoryview, size: tuple[int, int], model: Model) -> Plane:
    """Residuals of mode CODED."""
    tables = class_tables(model)
    (length,), at = unpack_varints(body, 1)
    shape = _n_blocks(size[0]), _n_blocks(size[1])
    if length > len(body) - at:
        raise Corrupt("the classes of a plane run past its end")
    packed = _inflate(body[at : at + length], shape[0] * shape[1])
    classes = np.frombuffer(packed, np.uint8).reshape(shape)
    if classes.max() > tables.size:
        raise Corrupt(f"a block of class {classes.max()}, the last one is {tables.size}")
    reader = Reader(model.tables, [body[at + length :]], size[0] * size[1])
    residual = _code(reader, size, classes, tables, None)
    reader.finish()
    return residual


def _code(
    coder: Coder, size: tuple[int, ...], classes: Classes, tables: Index, residual: Plane | None
) -> Plane:
    """One step for each region that is not silent; returns the residuals. Raises Corrupt."""
    out = np.zeros(size, np.uint8)
    for rows, cols in _regions(*size):
        part = out[rows, cols]
        squares = classes[_blocks(rows), _blocks(cols)].repeat(BLOCK, 0).repeat(BLOCK, 1)
        squares = squares[: part.shape[0], : part.shape[1]]
        coded = squares > 0
        if not coded.any():
            continue
        index = tables[squares[coded] - 1]
        want = None if residual is None else residual[rows, cols][coded].view(np.int8).astype(np.int16)
        wanted = None if want is None else torch.from_numpy(want)[None]
        symbols = coder.code(torch.from_numpy(index)[None], wanted)[0].numpy()
        if symbols.min() < -128 or symbols.max() > SYMBOL_MAX:
            raise Corrupt("a residual of a plane has more than 8 bits")
        part[coded] = symbols.astype(np.int8).view(np.uint8)
    return out


def _choose_classes(residual: Plane, cost: NDArray[np.float32]) -> tuple[Classes, float]:
    """The cheapest class of each block, and the bits of all residuals under them. cost: [41, 256]."""
    height, width = residual.shape
    n_cols = _n_blocks(width)
    classes = np.zeros((_n_blocks(height), n_cols), np.uint8)
    column = np.arange(width) // BLOCK * 256
    bits = 0.0
    for i, row in enumerate(classes):
        strip = residual[i * BLOCK : (i + 1) * BLOCK]
        key = (strip + np.uint8(SYMBOL_MAX)) + column  # -128 wraps to the escape's index
        counts = np.bincount(key.reshape(-1), minlength=n_cols * 256).reshape(n_cols, 256)
        block_bits = counts.astype(np.float32) @ cost.T
        best = block_bits.argmin(1)
        silent = counts[:, SYMBOL_MAX] == counts.sum(1)
        row[:] = np.where(silent, 0, best + 1)
        bits += float(block_bits[np.arange(n_cols), best][~silent].sum())
    return classes, bits


def _symbol_bits(tables: TableSet, index: Index) -> NDArray[np.float32]:
    """Bits of each letter under each of the tables, the escape with its value: float32 [len(index), 256]."""
    bits = TOTAL_BITS - np.log2(tables.frequencies[index].astype(np.float32))
    bits[:, ESCAPE] += ESCAPE_BITS
    return bits


def _sample(plane: Plane) -> Plane:
    """Strips of 32 rows spread evenly over a large plane; a small one as it is."""
    n = _n_blocks(plane.shape[0])
    if n <= SAMPLE_STRIPS:
        return plane
    starts = [i * n // SAMPLE_STRIPS * BLOCK for i in range(SAMPLE_STRIPS)]
    return np.concatenate([plane[start : start + BLOCK] for start in starts])


def _inflate(data: memoryview, n_bytes: int) -> bytes:
    """A zlib stream of so many bytes, never more. Raises Corrupt unless it is just that."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, n_bytes + 1)
    except zlib.error as e:
        raise Corrupt(f"a deflated plane: {e}") from e
    if len(out) != n_bytes or not stream.eof or stream.unused_data:
        raise Corrupt(f"a deflated plane does not hold {n_bytes} bytes")
    return out


def _regions(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, REGION):
        for left in range(0, width, REGION):
            yield slice(top, top + REGION), slice(left, left + REGION)


def _blocks(pixels: slice) -> slice:
    """The blocks of a region's side."""
    return slice(pixels.start // BLOCK, pixels.stop // BLOCK)


def _n_blocks(side: int) -> int:
    return -(-side // BLOCK)
