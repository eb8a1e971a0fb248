"""Graphics: the whole picture as one LZMA stream, in place of the exact levels (docs/format.md, 11.1).

Screens, diagrams and scanned text repeat themselves over distances that no network sees. Where a sample says
that they do, the encoder tries this as well and keeps the smaller.
"""

import lzma
import zlib

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vbc.bitstream.errors import Corrupt
from vbc.codec.extra.extra_planes import GRADIENT, LEFT, NONE, UP, add_prediction, remove_prediction
from vbc.codec.pixels.samples import rgb_tensor

MAX_DISTANCE = 1 << 24
"""Bytes that a repetition may lie back: what a decoder has to remember."""
STRIPS, STRIP_ROWS = 8, 8
"""The sample: rows of the picture, spread evenly."""
MAX_SAMPLE_RATE = 0.25
"""Size of the deflated sample, as a share of its samples, above which packing is not tried. The Kodak
photographs are at 0.52 and more; a photograph would take a second a megapixel to pack."""

Pixels = NDArray[np.uint8]


def encode_packed(picture: Tensor, depth: int, effort: int) -> bytes | None:
    """uint8 [1, 3, H, W] packed, or None where a sample shows that it does not pay. Inverse: decode_packed.

    depth: 3, or 1 for a picture whose planes are equal. effort: 2 tries all predictors, less the two that
    promise most.
    """
    pixels = picture[0, :depth].permute(1, 2, 0).cpu().numpy()
    sample = _sample(pixels)
    sizes: dict[int, int] = {}
    for predictor in (UP, NONE, LEFT, GRADIENT):
        sizes[predictor] = len(zlib.compress(_residuals(sample, predictor).tobytes(), 1))
        if sizes[predictor] > 2 * MAX_SAMPLE_RATE * sample.size:  # a photograph: no other one will halve it
            return None
    best = min(sizes, key=lambda p: sizes[p])
    if sizes[best] > MAX_SAMPLE_RATE * sample.size:
        return None
    # repetitions that a short sample does not show are longest without a predictor
    return min((_pack(pixels, p) for p in (sizes if effort > 1 else {NONE, best})), key=len)


def _pack(pixels: Pixels, predictor: int) -> bytes:
    data = _residuals(pixels, predictor).tobytes()
    head = bytes([pixels.shape[2], predictor])
    return head + lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(len(data)))


def decode_packed(body: memoryview, size: tuple[int, int]) -> Tensor:
    """uint8 [1, 3, H, W], channels last, of the size (height, width). Raises Corrupt.

    What is allocated is bounded by the size, which the caller has checked.
    """
    if len(body) < 2 or body[0] not in (1, 3) or body[1] > GRADIENT:
        raise Corrupt("a packed picture of a kind that there is not")
    depth, predictor = body[0], body[1]
    n_bytes = size[0] * size[1] * depth
    stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(n_bytes))
    try:
        data = stream.decompress(body[2:], n_bytes + 1)
    except lzma.LZMAError as e:
        raise Corrupt(f"a packed picture: {e}") from e
    if len(data) != n_bytes or not stream.eof or stream.unused_data:
        raise Corrupt(f"a packed picture does not hold {n_bytes} bytes")
    pixels = np.frombuffer(bytearray(data), np.uint8).reshape(*size, depth)
    for plane in range(depth):
        add_prediction(pixels[..., plane], predictor)
    if depth == 3:
        pixels[..., ::2] += pixels[..., 1:2]
    return rgb_tensor(pixels)


def _filters(n_bytes: int) -> list[dict[str, int]]:
    distance = max(4096, min(n_bytes, MAX_DISTANCE))
    return [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": distance, "lc": 3, "lp": 0, "pb": 0}]


def _residuals(pixels: Pixels, predictor: int) -> Pixels:
    """uint8 [H, W, C]: red and blue less green, then each plane less its prediction, modulo 256."""
    planes = pixels.copy()
    if planes.shape[2] == 3:
        planes[..., ::2] -= planes[..., 1:2]
    return np.stack([remove_prediction(plane, predictor) for plane in np.moveaxis(planes, 2, 0)], axis=2)


def _sample(pixels: Pixels) -> Pixels:
    """Strips of rows spread evenly over a large picture; a small one as it is."""
    height = len(pixels)
    if height <= STRIPS * STRIP_ROWS:
        return pixels
    starts = [i * (height - STRIP_ROWS) // (STRIPS - 1) for i in range(STRIPS)]
    return np.concatenate([pixels[start : start + STRIP_ROWS] for start in starts])
