"""Alpha and the low bytes of 16-bit samples (docs/format.md, section 13). Planes are uint8 [H, W]."""

import zlib
from collections.abc import Sequence

import numpy as np

from reference.container import Cursor
from reference.errors import Corrupt
from reference.geometry import ceil_div
from reference.lanes import NOTHING, Lanes, Say
from reference.weights import Array, Weights

PLAIN, CONSTANT, DEFLATED, LANES = range(4)
NONE, LEFT, UP, GRADIENT, REFERENCE = range(5)
SQUARE = 32
"""Side of the squares that have a class each."""
STEP_SIDE = 1024
"""Side of the squares that are a step each."""
N_CLASSES = 41


def read_planes(
    payload: bytes, size: tuple[int, int], references: Sequence[Array | None], weights: Weights, say: Say
) -> list[Array]:
    """As many planes as references, each of this size."""
    cursor = Cursor(payload)
    lengths = [cursor.varint() for _ in references]
    bodies = [cursor.take(length) for length in lengths]
    if cursor.rest():
        raise Corrupt("bytes after the last plane")
    say(f"planes of {lengths} bytes, modes {[body[0] for body in bodies if body]}")
    return [
        read_plane(body, size, reference, weights, say)
        for body, reference in zip(bodies, references, strict=True)
    ]


def read_plane(
    body: bytes, size: tuple[int, int], reference: Array | None, weights: Weights, say: Say
) -> Array:
    """One plane."""
    cursor = Cursor(body)
    mode, predictor = cursor.u8(), cursor.u8()
    rest = cursor.rest()
    n_pixels = size[0] * size[1]
    if mode == PLAIN and len(rest) == n_pixels:
        residual = np.frombuffer(rest, np.uint8).reshape(size)
    elif mode == CONSTANT and len(rest) == 1:
        residual = np.full(size, rest[0], np.uint8)
    elif mode == DEFLATED:
        residual = np.frombuffer(inflate(rest, n_pixels), np.uint8).reshape(size)
    elif mode == LANES:
        residual = read_residuals(rest, size, weights, say)
    else:
        raise Corrupt(f"a plane of mode {mode} and {len(rest)} bytes")
    return add_prediction(residual, predictor, reference)


def read_residuals(body: bytes, size: tuple[int, int], weights: Weights, say: Say) -> Array:
    """The residuals of a plane in lanes."""
    cursor = Cursor(body)
    height, width = size
    shape = ceil_div(height, SQUARE), ceil_div(width, SQUARE)
    packed = inflate(cursor.take(cursor.varint()), shape[0] * shape[1])
    classes = np.frombuffer(packed, np.uint8).reshape(shape)
    if classes.max() > N_CLASSES:
        raise Corrupt(f"a class of {classes.max()}")
    class_tables = weights["exact.table_index"][0, 64 * np.arange(N_CLASSES) + 8]
    tables_of = np.concatenate(([NOTHING], class_tables))
    tables = tables_of[classes].repeat(SQUARE, 0).repeat(SQUARE, 1)[:height, :width]
    lanes = Lanes(weights.starts, cursor.rest(), height * width, say)
    residual = np.zeros(size, np.int32)
    for top in range(0, height, STEP_SIDE):
        for left in range(0, width, STEP_SIDE):
            part = slice(top, top + STEP_SIDE), slice(left, left + STEP_SIDE)
            residual[part] = lanes.step(tables[part])
    lanes.finish()
    if residual.min() < -128 or residual.max() > 127:
        raise Corrupt("a residual of more than eight bits")
    return residual.astype(np.uint8)


def inflate(data: bytes, n_bytes: int) -> bytes:
    """A zlib stream that holds just so many bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, n_bytes + 1)
    except zlib.error as e:
        raise Corrupt(f"a zlib stream: {e}") from e
    if len(out) != n_bytes or not stream.eof or stream.unused_data:
        raise Corrupt("a zlib stream of another size")
    return out


def add_prediction(residual: Array, predictor: int, reference: Array | None) -> Array:
    """The plane of residuals under a predictor."""
    if predictor > REFERENCE or (predictor == REFERENCE and reference is None):
        raise Corrupt(f"predictor {predictor}")
    plane = residual.copy()
    if predictor == REFERENCE:
        plane += reference
    if predictor in (UP, GRADIENT):  # each row adds the one above; the gradient is both sums
        plane = np.cumsum(plane, axis=0, dtype=np.uint8)
    if predictor in (LEFT, GRADIENT):
        plane = np.cumsum(plane, axis=1, dtype=np.uint8)
    return plane


def shrink(alpha: Array, side: int) -> Array:
    """Alpha at 1/side of its size, rounded up."""
    height, width = alpha.shape
    rows, columns = ceil_div(height, side), ceil_div(width, side)
    padded = np.pad(alpha, ((0, rows * side - height), (0, columns * side - width)), mode="edge")
    squares = padded.astype(np.int64).reshape(rows, side, columns, side).sum((1, 3))
    out: Array = ((squares + side * side // 2) // (side * side)).astype(np.uint8)
    return out
