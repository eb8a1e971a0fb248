"""The whole dataflow, both directions: image -> latents -> lanes -> container, and back.

See docs/architecture.md.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, LOSSY_LEVELS, Header, Limits
from vbc.bitstream.errors import Corrupt, FormatError, ModelMissing, Truncated
from vbc.codec.extra.extra_planes import Plane, decode_planes, encode_planes
from vbc.codec.files.image_io import Metadata
from vbc.codec.lossy import coding as lossy_levels
from vbc.codec.model import Model
from vbc.codec.payloads import (
    Progress,
    coarser_lossy,
    complete,
    decode_exact,
    decode_lossy,
    encode_exact,
    encode_lossy,
    picture_size,
)

PIXEL_HASH_BYTES = 16


Chunk = tuple[int, int, bytes | None]
"""Kind, number and payload; None for metadata that is not there."""


class SelfCheckFailed(RuntimeError):
    """The encoder's own decode of a lossless file differs from the image.

    A fault of this program or machine.
    """


@dataclass(frozen=True)
class Decoded:
    """A picture and what it was made from.

    rgb: uint8 [3, H, W], of 16-bit samples the upper bytes. levels: the level numbers used. exact: whether
    the pixels are the encoder's input. alpha: uint8 [H, W], None where the file has none. low: uint8
    [C, H, W], the low bytes of 16-bit samples, alpha's last; None in 8-bit files and where levels or the
    low bytes are missing.
    """

    rgb: Tensor
    header: Header
    levels: tuple[int, ...]
    exact: bool
    alpha: Tensor | None = None
    low: Tensor | None = None


@torch.no_grad()
def encode_image(
    rgb: Tensor,
    *,
    model: Model,
    levels: int = 3,
    quality: int = 60,
    lossless: bool = False,
    effort: int = 1,
    metadata: Metadata | None = None,
    gray: bool = False,
    alpha: Tensor | None = None,
    low: Tensor | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Encode uint8 RGB [3, H, W] with the first `levels` lossy levels and, if lossless, all exact ones.

    alpha: uint8 [H, W], always stored exactly. low: uint8 [C, H, W], the low bytes of 16-bit samples, whose
    upper bytes are `rgb` and `alpha`; C is 1 for gray, else 3, and one more with alpha. A lossy file leaves
    them out.

    A lossless file is at most 1 % and 1 KiB larger than its samples and metadata: where lossy levels would
    make it larger (on noise), they are of a lower quality, which the header names. It has been decoded and
    compared.

    Raises ValueError for levels and lossless that do not go together, SelfCheckFailed where the comparison
    fails.
    """
    if levels not in ((0, LOSSY_LEVELS) if lossless else range(1, LOSSY_LEVELS + 1)):
        with_or_without = "with" if lossless else "without"
        raise ValueError(f"{levels} lossy levels {with_or_without} exact levels cannot be coded")
    report = progress or (lambda stage, fraction: None)
    rgb = rgb.to(model.device)
    picture = rgb[None].contiguous(memory_format=torch.channels_last)
    meta = metadata or Metadata()
    low = low if lossless else None
    coded = encode_levels(picture, model, levels, quality, lossless, effort, report)
    channels, n_pixels = 1 if gray else 3, rgb[0].numel()
    before: list[Chunk] = [(container.ICC, 0, meta.icc)]
    if alpha is not None:
        before.append((container.ALPHA, 0, encode_planes([alpha.numpy()], [None], model)))
    after: list[Chunk] = []
    if low is not None:
        after.append((container.LOW, 0, encode_low(low, rgb, alpha, model)))
    if lossless:
        after.append((container.PIXEL_HASH, 0, pixel_hash(picture, alpha, low)))

    def pack(quality: int, lossy: list[bytes], exact: list[bytes]) -> bytes:
        chunks = [
            *before,
            *((container.LEVEL, 1 + i, p) for i, p in enumerate(lossy)),
            (container.EXIF, 0, meta.exif),
            (container.XMP, 0, meta.xmp),
            *((container.LEVEL, LOSSY_LEVELS + 1 + i, p) for i, p in enumerate(exact)),
            *after,
        ]
        return container.write_file(
            [(kind, number, body) for kind, number, body in chunks if body is not None],
            width=picture.shape[-1],
            height=picture.shape[-2],
            channels=channels,
            quality=quality,
            flags=container.LOSSLESS if lossless else 0,
            model_hash=model.hash,
            tables_hash=model.tables.digest,
            bit_depth=8 if low is None else 16,
        )

    data = pack(*coded)
    if lossless and levels:
        bytes_a_pixel = (channels + (alpha is not None)) * (1 if low is None else 2)
        limit = size_limit(bytes_a_pixel * n_pixels) + sum(meta.n_bytes().values())
        # exact levels grow as the lossy ones shrink, to plain samples at worst
        for exact_bytes in (sum(map(len, coded[2])), channels * n_pixels + len(coded[2])):
            if len(data) <= limit:
                break
            others = len(data) - sum(map(len, coded[1] + coded[2]))
            room = limit - others - exact_bytes
            del coded, data
            coded = encode_levels(picture, model, levels, quality, lossless, effort, report, room)
            data = pack(*coded)
    if lossless:
        report("check", 0.9)
        del coded, before, after
        check_lossless(data, model, rgb, alpha, low)
    report("done", 1.0)
    return data


def size_limit(n_bytes: int) -> int:
    """What a lossless file of so many bytes of samples takes at most, beside its metadata."""
    return n_bytes + n_bytes // 100 + 1024


def encode_levels(
    picture: Tensor,
    model: Model,
    levels: int,
    quality: int,
    lossless: bool,
    effort: int,
    report: Progress,
    room: int | None = None,
) -> tuple[int, list[bytes], list[bytes]]:
    """The quality, and the payloads of the lossy and of the exact levels of uint8 [1, 3, H, W].

    room: the bytes that the lossy levels may take; the quality returned is the highest that fits.
    """
    if not levels:
        return quality, [], encode_exact(picture, model, None, quality, effort, report)
    report("lossy", 0.0)
    if room is None:
        payloads, latents = encode_lossy(picture, model, levels, quality)
    else:
        quality, payloads, latents = coarser_lossy(picture, model, quality, room)
    if not lossless:
        return quality, payloads, []
    guide = lossy_levels.synthesise(model.lossy, latents, picture_size(picture), levels, quality)
    del latents  # six bytes a pixel
    return quality, payloads, encode_exact(picture, model, guide, quality, effort, report)


def check_lossless(
    data: bytes, model: Model, rgb: Tensor, alpha: Tensor | None = None, low: Tensor | None = None
) -> None:
    """Raises SelfCheckFailed unless a fresh decode of the bytes gives the picture."""
    try:
        decoded = decode_image(data, model=model)
    except FormatError as e:
        raise SelfCheckFailed(f"the file just written does not decode: {e}") from e
    extra = ((decoded.alpha, alpha), (decoded.low, low))
    if not torch.equal(decoded.rgb, rgb) or not all(same_planes(*pair) for pair in extra):
        raise SelfCheckFailed("the decoded picture differs from the image; nothing is written")


@torch.no_grad()
def decode_image(
    data: bytes,
    *,
    model: Model,
    levels: int | None = None,
    native: bool = False,
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Decoded:
    """Decode the first `levels` levels that the file has (all by default).

    native: levels 1 and 2 at 1/4 and 1/2 of the size. allow_partial: make do with the levels that are
    complete. Raises a FormatError; Truncated names the complete levels.
    """
    header = container.unpack_header(data, limits)
    check_model(header, model)
    report = progress or (lambda stage, fraction: None)
    payloads = read_levels(data, header, levels, allow_partial)
    numbers = tuple(payloads)
    size = (header.height, header.width)
    alpha = read_alpha(data, header, model)
    lossy_count = sum(n <= LOSSY_LEVELS for n in numbers)
    picture = None
    if lossy_count:
        report("lossy", 0.0)
        latents = decode_lossy([payloads[n] for n in numbers[:lossy_count]], model, size, header.quality)
        if native and lossy_count < LOSSY_LEVELS:
            latents = complete(latents, model, header.quality, level=2)
            small = lossy_levels.native_picture(model.lossy, latents, size, lossy_count)
            return Decoded(small[0], header, numbers, False, shrink(alpha, 1 << LOSSY_LEVELS - lossy_count))
        latents = complete(latents, model, header.quality)
        picture = lossy_levels.synthesise(model.lossy, latents, size, lossy_count, header.quality)
        del latents  # six bytes a pixel
    if len(numbers) > lossy_count:
        exact = [payloads[n] for n in numbers[lossy_count:]]
        picture = decode_exact(exact, model, size, picture, header.quality, report)
    assert picture is not None
    all_exact = bool(header.flags & container.LOSSLESS) and numbers == tuple(container.level_ends(header))
    low = None
    if all_exact and header.bit_depth == 16:
        low = read_low(data, header, model, picture[0], alpha, allow_partial)
        all_exact = low is not None
    report("done", 1.0)
    return Decoded(picture[0], header, numbers, all_exact, alpha, low)


def verify(data: bytes, *, model: Model, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check every CRC, decode every level, compare the pixel hash. Raises a FormatError."""
    decoded = decode_image(data, model=model, limits=limits)
    for i, chunk in enumerate(decoded.header.chunks):
        payload = container.read_chunk(data, decoded.header, i)
        if chunk.kind == container.PIXEL_HASH and decoded.exact:
            if pixel_hash(decoded.rgb[None], decoded.alpha, decoded.low)[: len(payload)] != bytes(payload):
                raise Corrupt("the pixels differ from their hash")


def check_model(header: Header, model: Model) -> None:
    """Raises ModelMissing unless the file was made with this model."""
    for wanted, have in ((header.model_hash, model.hash), (header.tables_hash, model.tables.digest)):
        if wanted != have:
            raise ModelMissing(wanted)


def read_levels(
    data: bytes, header: Header, levels: int | None, allow_partial: bool
) -> dict[int, memoryview]:
    """The checked payloads of the levels to decode, by number. Raises Truncated, Corrupt."""
    ends = container.level_ends(header)
    check_numbers(tuple(ends))
    wanted = list(ends)[:levels]
    available = container.available_levels(len(data), header)
    if allow_partial:
        wanted = [n for n in wanted if n in available]
    if not wanted:
        need = min(ends.values(), default=header.file_bytes)
        if len(data) < need:
            raise Truncated(need, len(data), available)
        raise Corrupt("the file has no such level")
    if levels is None and not allow_partial and len(data) < header.file_bytes:
        raise Truncated(header.file_bytes, len(data), available)
    chunks = {c.number: i for i, c in enumerate(header.chunks) if c.kind == container.LEVEL}
    return {n: container.read_chunk(data, header, chunks[n]) for n in wanted}


def check_numbers(levels: tuple[int, ...]) -> None:
    """Raises Corrupt unless the levels are 1..n, or 4..m, or 1..m: all that any encoder writes."""
    lossy = [n for n in levels if n <= LOSSY_LEVELS]
    exact = [n for n in levels if n > LOSSY_LEVELS]
    whole = not exact or len(lossy) in (0, LOSSY_LEVELS)
    if not whole or lossy != list(range(1, len(lossy) + 1)) or exact != list(range(4, 4 + len(exact))):
        raise Corrupt(f"levels {levels} do not go together")


# Extra planes


def encode_low(low: Tensor, rgb: Tensor, alpha: Tensor | None, model: Model) -> bytes:
    """Payload of the low bytes, uint8 [C, H, W]."""
    return encode_planes([p.numpy() for p in low], upper_planes(rgb, len(low), alpha), model)


def read_alpha(data: bytes, header: Header, model: Model) -> Tensor | None:
    """uint8 [H, W], or None where the file has no alpha. Raises Truncated, Corrupt."""
    for i, chunk in enumerate(header.chunks):
        if chunk.kind == container.ALPHA:
            payload = container.read_chunk(data, header, i)
            (plane,) = decode_planes(payload, (header.height, header.width), [None], model)
            return torch.from_numpy(plane)
    return None


def read_low(
    data: bytes, header: Header, model: Model, rgb: Tensor, alpha: Tensor | None, allow_partial: bool
) -> Tensor | None:
    """uint8 [C, H, W], or None where they are missing and may be. Raises Truncated, Corrupt."""
    i = next(i for i, chunk in enumerate(header.chunks) if chunk.kind == container.LOW)
    if allow_partial and len(data) < header.chunk_ends[i]:
        return None
    payload = container.read_chunk(data, header, i)
    references = upper_planes(rgb, header.channels + (alpha is not None), alpha)
    planes = decode_planes(payload, (header.height, header.width), references, model)
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
