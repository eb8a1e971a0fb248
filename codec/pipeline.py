"""The whole dataflow, both directions: image -> latents -> lanes -> container, and back.

See docs/architecture.md.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, Header, Limits
from vbc.bitstream.errors import Corrupt, FormatError, ModelMissing, Truncated
from vbc.codec import exact_levels, lossy_levels
from vbc.codec.coder import Coder, Reader, Writer
from vbc.codec.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.device import TensorCoder, TensorMeans, TensorReader, TensorWriter
from vbc.codec.exact import PHASES
from vbc.codec.exact_block import phase_view
from vbc.codec.exact_levels import Coded
from vbc.codec.image_io import Metadata
from vbc.codec.lossy import LEVEL_START
from vbc.codec.model import Model
from vbc.codec.planes import Plane, decode_planes, encode_planes
from vbc.codec.tuning import MIN_POSITIONS

CODED, RAW, TUNED, RAW_GRAY = range(4)
"""First byte of a level's payload: lanes follow, or plain samples, or lanes with output layers tuned to the
image, or plain samples of a picture whose planes are equal."""
RAW_DEPTH = {RAW: 3, RAW_GRAY: 1}
"""Bytes of a plain pixel."""
PIXEL_HASH_BYTES = 16
LOSSY_LEVELS = container.LOSSY_LEVELS

Progress = Callable[[str, float], None]


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

    A lossless result has been decoded and compared. Raises ValueError for levels and lossless that do not go
    together, SelfCheckFailed where the comparison fails.
    """
    if levels not in ((0, LOSSY_LEVELS) if lossless else range(1, LOSSY_LEVELS + 1)):
        with_or_without = "with" if lossless else "without"
        raise ValueError(f"{levels} lossy levels {with_or_without} exact levels cannot be coded")
    report = progress or (lambda stage, fraction: None)
    rgb = rgb.to(model.device)
    picture = rgb[None].contiguous(memory_format=torch.channels_last)
    meta = metadata or Metadata()
    low = low if lossless else None
    lossy, exact = encode_levels(picture, model, levels, quality, lossless, effort, report)
    chunks: list[tuple[int, int, bytes | None]] = [
        (container.ICC, 0, meta.icc),
        (container.ALPHA, 0, None if alpha is None else encode_planes([alpha.numpy()], [None], model)),
        *((container.LEVEL, 1 + i, p) for i, p in enumerate(lossy)),
        (container.EXIF, 0, meta.exif),
        (container.XMP, 0, meta.xmp),
        *((container.LEVEL, LOSSY_LEVELS + 1 + i, p) for i, p in enumerate(exact)),
        (container.LOW, 0, None if low is None else encode_low(low, rgb, alpha, model)),
        (container.PIXEL_HASH, 0, pixel_hash(picture, alpha, low) if lossless else None),
    ]
    data = container.write_file(
        [(kind, number, body) for kind, number, body in chunks if body is not None],
        width=picture.shape[-1],
        height=picture.shape[-2],
        channels=1 if gray else 3,
        quality=quality,
        flags=container.LOSSLESS if lossless else 0,
        model_hash=model.hash,
        tables_hash=model.tables.digest,
        bit_depth=8 if low is None else 16,
    )
    if lossless:
        report("check", 0.9)
        del lossy, exact, chunks
        check_lossless(data, model, rgb, alpha, low)
    report("done", 1.0)
    return data


def encode_levels(
    picture: Tensor, model: Model, levels: int, quality: int, lossless: bool, effort: int, report: Progress
) -> tuple[list[bytes], list[bytes]]:
    """Payloads of the lossy and of the exact levels of uint8 [1, 3, H, W]."""
    if not levels:
        return [], encode_exact(picture, model, None, quality, effort, report)
    report("lossy", 0.0)
    payloads, latents = encode_lossy(picture, model, levels, quality)
    if not lossless:
        return payloads, []
    guide = lossy_levels.synthesise(model.lossy, latents, picture_size(picture), levels, quality)
    del latents  # six bytes a pixel
    return payloads, encode_exact(picture, model, guide, quality, effort, report)


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


# Lossy levels


def encode_lossy(picture: Tensor, model: Model, levels: int, quality: int) -> tuple[list[bytes], Tensor]:
    """Payloads of the first lossy levels of uint8 [1, 3, H, W], and the latents as they will be decoded."""
    target = lossy_levels.analyse(model.lossy, picture, quality)
    payloads = []
    latents = None
    for level in range(1, levels + 1):
        writer = open_writer(model)
        part = target[:, LEVEL_START[level - 1] : LEVEL_START[level]]
        latents = code_lossy_level(model, writer, level, latents, picture_size(picture), quality, part)
        payloads.append(bytes([CODED]) + writer.finish())
    assert latents is not None
    return payloads, latents


def decode_lossy(payloads: list[memoryview], model: Model, size: tuple[int, int], quality: int) -> Tensor:
    """The latents of the levels given: int16 [1, 6, 48 or 192, h, w]."""
    latents = None
    for level, payload in enumerate(payloads, 1):
        mode, body = split_payload(payload)
        if mode != CODED:
            raise Corrupt(f"level {level} has mode {mode}")
        reader = open_reader(model, body)
        latents = code_lossy_level(model, reader, level, latents, size, quality, None)
        reader.finish()
    assert latents is not None
    return latents


def code_lossy_level(
    model: Model,
    coder: Coder | TensorCoder,
    level: int,
    below: Tensor | None,
    size: tuple[int, int],
    quality: int,
    target: Tensor | None,
) -> Tensor:
    """Code one lossy level; returns all latents up to it."""
    if below is None:
        return lossy_levels.code_level1(model.lossy, coder, lossy_levels.latent_grid(*size), quality, target)
    return torch.cat((below, lossy_levels.code_level(model.lossy, coder, level, below, quality, target)), 1)


def complete(latents: Tensor, model: Model, quality: int, level: int = LOSSY_LEVELS) -> Tensor:
    """All latents up to `level`: the priors' means stand for the levels that are missing."""
    while latents.shape[1] < LEVEL_START[level]:
        missing = LEVEL_START.index(latents.shape[1]) + 1
        means = lossy_levels.missing_level(model.lossy, missing, latents, quality)
        latents = torch.cat((latents, means), 1)
    return latents


# Exact levels


def encode_exact(
    picture: Tensor, model: Model, lossy: Tensor | None, quality: int, effort: int, report: Progress
) -> list[bytes]:
    """Payloads of the exact levels of uint8 [1, 3, H, W], coarse to fine.

    lossy: the lossy levels' picture, likewise.
    """
    sizes = exact_levels.grid_sizes(*picture_size(picture))
    top = len(sizes) - 1
    gray = torch.equal(picture[:, :1].expand_as(picture), picture)
    raw_mode, depth = (bytes([RAW_GRAY]), 1) if gray else (bytes([RAW]), 3)
    payloads = [raw_mode + samples(grid(picture, top)[:, :depth])]
    misses = None
    for s in range(top, 0, -1):
        writer = open_writer(model)
        target = grid(picture, s - 1)
        guide = None if lossy is None else grid(lossy, s - 1)
        coarse = rgb_to_ycocg(grid(picture, s))
        tuned = effort > 0 and coarse.shape[-2] * coarse.shape[-1] >= MIN_POSITIONS
        coded = exact_levels.code_step(
            model.exact, writer, coarse, sizes[s - 1], s, target, guide, quality, tuned, effort, misses
        )
        payload = bytes([TUNED if tuned else CODED]) + writer.finish()
        if len(payload) > 1 + depth * (target[0, 0].numel() - coarse[0, 0].numel()):
            payload = raw_mode + b"".join(samples(phase_view(target, p)[:, :depth]) for p in PHASES)
            coded = Coded({}, {})
        misses = exact_levels.assemble_misses(misses, coded, sizes[s - 1])
        payloads.append(payload)
        report("exact", 0.5 / 4 ** (s - 1))
    return payloads


def decode_exact(
    payloads: list[memoryview],
    model: Model,
    size: tuple[int, int],
    lossy: Tensor | None,
    quality: int,
    report: Progress,
) -> Tensor:
    """uint8 [1, 3, H, W] from the exact levels given, coarse to fine.

    What is missing comes from the lossy levels or from means.
    """
    sizes = exact_levels.grid_sizes(*size)
    top = len(sizes) - 1
    if len(payloads) > len(sizes):
        raise Corrupt("more exact levels than the size has")
    mode, body = split_payload(payloads[0])
    if mode not in RAW_DEPTH:
        raise Corrupt(f"the base grid has mode {mode}")
    coarse = rgb_to_ycocg(from_samples(body, *sizes[top], RAW_DEPTH[mode]).to(model.device))
    missing = top + 1 - len(payloads)
    last = 0 if lossy is None else missing  # the finest grid to work out
    known = ycocg_to_rgb(coarse)
    misses = None
    for s in range(top, last, -1):
        if s > missing:
            payload = payloads[top - s + 1]
            coded = decode_step(payload, model, coarse, sizes[s - 1], s, lossy, quality, misses)
            report("exact", 1 / 4 ** (s - 1))
        else:
            means = Means() if model.cumulative is None else TensorMeans()
            coded = exact_levels.code_step(model.exact, means, coarse, sizes[s - 1], s)
        if s - 1 > last:
            coarse = exact_levels.assemble(coarse, coded.pixels, sizes[s - 1])
            misses = exact_levels.assemble_misses(misses, coded, sizes[s - 1])
        else:
            known = exact_levels.assemble_rgb(coarse, coded.pixels, sizes[s - 1])
    if lossy is None or not missing:
        return known
    grid(lossy, missing).copy_(known)
    return lossy


def decode_step(
    payload: memoryview,
    model: Model,
    coarse: Tensor,
    size: tuple[int, int],
    s: int,
    lossy: Tensor | None,
    quality: int,
    misses: Tensor | None,
) -> Coded:
    """The phases of grid x_{s-1} from x_s, its misses and the level's payload."""
    mode, body = split_payload(payload)
    if mode in RAW_DEPTH:
        phases: dict[str, Tensor] = {}
        at = 0
        for p in PHASES:
            shape = exact_levels.phase_size(p, *size)
            n = RAW_DEPTH[mode] * shape[0] * shape[1]
            part = from_samples(body[at : at + n], *shape, RAW_DEPTH[mode])
            phases[p] = rgb_to_ycocg(part.to(model.device))
            at += n
        if at != len(body):
            raise Corrupt(f"a raw level of {len(body)} bytes, {at} expected")
        return Coded(phases, {})
    if mode in (CODED, TUNED):
        reader = open_reader(model, body)
        guide = None if lossy is None else grid(lossy, s - 1)
        coded = exact_levels.code_step(
            model.exact, reader, coarse, size, s, None, guide, quality, mode == TUNED, misses=misses
        )
        reader.finish()
        return coded
    raise Corrupt(f"a level has mode {mode}")


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


def open_writer(model: Model) -> Writer | TensorWriter:
    """An encoder for one level, where the model codes its symbols."""
    return Writer(model.tables) if model.cumulative is None else TensorWriter(model.tables)


def open_reader(model: Model, body: memoryview) -> Reader | TensorReader:
    """A decoder for one level, likewise. Raises Corrupt."""
    return Reader(model.tables, body) if model.cumulative is None else TensorReader(model.cumulative, body)


class Means:
    """Stands in for a decoder where a level is missing.

    Every residual is zero, so every pixel its prediction.
    """

    def code(self, index: np.ndarray, symbols: np.ndarray | None) -> np.ndarray:
        """Zeros."""
        return np.zeros(index.shape, np.int16)


def grid(picture: Tensor, s: int) -> Tensor:
    """x_s: every 2^s-th row and column."""
    return picture[..., :: 1 << s, :: 1 << s]


def samples(planes: Tensor) -> bytes:
    """uint8 [1, C, h, w] as bytes, pixel by pixel."""
    return planes[0].permute(1, 2, 0).contiguous().cpu().numpy().tobytes()


def from_samples(body: memoryview, height: int, width: int, depth: int = 3) -> Tensor:
    """Inverse of `samples` for RGB: a channels-last tensor [1, 3, h, w]; depth 1 is one byte for all three.

    Raises Corrupt where the length is not that of the size.
    """
    if len(body) != depth * height * width:
        raise Corrupt(f"{len(body)} bytes of samples, {depth * height * width} expected")
    pixels = np.frombuffer(body, np.uint8).reshape(height, width, depth)
    rgb = pixels.repeat(3, axis=2) if depth == 1 else pixels.copy()
    return torch.from_numpy(rgb)[None].permute(0, 3, 1, 2)


def split_payload(payload: memoryview) -> tuple[int, memoryview]:
    """Mode byte and the rest. Raises Corrupt for an empty payload."""
    if not len(payload):
        raise Corrupt("an empty level")
    return payload[0], payload[1:]


def picture_size(picture: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return picture.shape[-2], picture.shape[-1]


def pixel_hash(picture: Tensor, alpha: Tensor | None = None, low: Tensor | None = None) -> bytes:
    """First 16 bytes of SHA-256 over the samples of uint8 [1, 3, H, W], pixel by pixel.

    Alpha and the planes of low bytes follow where they are there.
    """
    digest = hashlib.sha256(picture[0].permute(1, 2, 0).contiguous().cpu().numpy().data)
    for planes in (alpha, low):
        if planes is not None:
            digest.update(planes.contiguous().numpy().data)
    return digest.digest()[:PIXEL_HASH_BYTES]
