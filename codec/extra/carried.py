"""Alpha, low bytes and the pixel hash of a picture: what packets beside the levels carry (docs/format.md,
section 13)."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.errors import Corrupt, Truncated
from vbc.bitstream.source import Source
from vbc.codec.extra.extra_planes import Plane, decode_planes, encode_planes
from vbc.codec.model import Model

PIXEL_HASH_BYTES = 16

Window = tuple[slice, slice]


def encode_low(low: Tensor, rgb: Tensor, alpha: Tensor | None, model: Model) -> bytes:
    """Payload of the low bytes, uint8 [C, H, W]."""
    return encode_planes([p.numpy() for p in low], upper_planes(rgb, len(low), alpha), model)


def encode_alpha(alpha: Tensor, model: Model) -> bytes:
    """Payload of alpha, uint8 [H, W]."""
    return encode_planes([alpha.numpy()], [None], model)


def read_alpha(source: Source, header: Header, model: Model, window: Window | None) -> Tensor | None:
    """uint8 [H, W], or of a window of it; None where the file has no alpha. Raises Truncated, Corrupt."""
    i = header.find(container.ALPHA)
    if i is None:
        return None
    payload = container.read_packet(source, header, i)
    (plane,) = decode_planes(payload, (header.height, header.width), [None], model, window)
    return torch.from_numpy(plane)


def read_low(
    source: Source,
    header: Header,
    model: Model,
    rgb: Tensor,
    alpha: Tensor | None,
    window: Window | None,
    allow_partial: bool,
) -> Tensor | None:
    """uint8 [C, H, W], or None where they are missing or damaged and may be. Raises Truncated, Corrupt.

    rgb, alpha: the upper bytes, all of the three of a window of the picture where one is given.
    """
    i = header.find(container.LOW)
    assert i is not None, "files of 16 bits have low bytes"
    try:
        payload = container.read_packet(source, header, i)
    except (Truncated, Corrupt):
        if not allow_partial:
            raise
        return None
    references = upper_planes(rgb, header.channels + (alpha is not None), alpha)
    planes = decode_planes(payload, (header.height, header.width), references, model, window)
    return torch.from_numpy(np.stack(planes))


def upper_planes(rgb: Tensor, count: int, alpha: Tensor | None) -> list[Plane]:
    """The upper bytes that go with `count` planes of low bytes: gray or RGB, then alpha; uint8 [H, W]."""
    n_colours = count - (alpha is not None)
    return [p.cpu().numpy() for p in (*rgb[:n_colours], *([] if alpha is None else [alpha]))]


def shrink(alpha: Tensor | None, side: int) -> Tensor | None:
    """Alpha at a level's own size: rounded means of squares of side 2 or 4, the border repeated."""
    if alpha is None:
        return None
    rows, cols = (torch.arange(-(-n // side) * side).clamp_(max=n - 1) for n in alpha.shape)
    squares = alpha[rows][:, cols].view(len(rows) // side, side, len(cols) // side, side)
    return ((squares.sum((1, 3)) + side * side // 2) // (side * side)).to(torch.uint8)


def same_planes(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there and equal, or neither is."""
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def pixel_hash(picture: Tensor, alpha: Tensor | None = None, low: Tensor | None = None) -> bytes:
    """First 16 bytes of SHA-256 over the samples of uint8 [1, 3, H, W], pixel by pixel.

    Alpha and the planes of low bytes follow where they are there.
    """
    digest = hashlib.sha256(picture[0].permute(1, 2, 0).contiguous().cpu().numpy().data)
    for planes in (alpha, low):
        if planes is not None:
            digest.update(planes.contiguous().numpy().data)
    return digest.digest()[:PIXEL_HASH_BYTES]
