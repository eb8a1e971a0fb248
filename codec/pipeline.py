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
from vbc.codec.exact import PHASES
from vbc.codec.exact_block import phase_view
from vbc.codec.image_io import Metadata
from vbc.codec.lossy import LEVEL_START
from vbc.codec.model import Model
from vbc.codec.tuning import MIN_POSITIONS

CODED, RAW, TUNED = 0, 1, 2
"""First byte of a level's payload: lanes follow, or plain samples, or lanes with output layers tuned to the
image."""
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

    rgb: uint8 [3, H, W]. levels: the level numbers used. exact: whether the pixels are the encoder's input.
    """

    rgb: Tensor
    header: Header
    levels: tuple[int, ...]
    exact: bool


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
    progress: Progress | None = None,
) -> bytes:
    """Encode uint8 RGB [3, H, W] with the first `levels` lossy levels and, if lossless, all exact ones.

    A lossless result has been decoded and compared. Raises ValueError for levels and lossless that do not go
    together, SelfCheckFailed where the comparison fails.
    """
    if levels not in ((0, LOSSY_LEVELS) if lossless else range(1, LOSSY_LEVELS + 1)):
        with_or_without = "with" if lossless else "without"
        raise ValueError(f"{levels} lossy levels {with_or_without} exact levels cannot be coded")
    report = progress or (lambda stage, fraction: None)
    picture = rgb[None].contiguous(memory_format=torch.channels_last)
    meta = metadata or Metadata()
    lossy, exact = encode_levels(picture, model, levels, quality, lossless, effort, report)
    chunks: list[tuple[int, int, bytes | None]] = [
        (container.ICC, 0, meta.icc),
        *((container.LEVEL, 1 + i, p) for i, p in enumerate(lossy)),
        (container.EXIF, 0, meta.exif),
        (container.XMP, 0, meta.xmp),
        *((container.LEVEL, LOSSY_LEVELS + 1 + i, p) for i, p in enumerate(exact)),
        (container.PIXEL_HASH, 0, pixel_hash(picture) if lossless else None),
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
    )
    if lossless:
        report("check", 0.9)
        del lossy, exact, chunks
        check_lossless(data, model, rgb)
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


def check_lossless(data: bytes, model: Model, rgb: Tensor) -> None:
    """Raises SelfCheckFailed unless a fresh decode of the bytes gives the picture."""
    try:
        same = torch.equal(decode_image(data, model=model).rgb, rgb)
    except FormatError as e:
        raise SelfCheckFailed(f"the file just written does not decode: {e}") from e
    if not same:
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
    lossy_count = sum(n <= LOSSY_LEVELS for n in numbers)
    picture = None
    if lossy_count:
        report("lossy", 0.0)
        latents = decode_lossy([payloads[n] for n in numbers[:lossy_count]], model, size, header.quality)
        if native and lossy_count < LOSSY_LEVELS:
            latents = complete(latents, model, header.quality, level=2)
            small = lossy_levels.native_picture(model.lossy, latents, size, lossy_count)
            return Decoded(small[0], header, numbers, False)
        latents = complete(latents, model, header.quality)
        picture = lossy_levels.synthesise(model.lossy, latents, size, lossy_count, header.quality)
        del latents  # six bytes a pixel
    if len(numbers) > lossy_count:
        exact = [payloads[n] for n in numbers[lossy_count:]]
        picture = decode_exact(exact, model, size, picture, header.quality, report)
    assert picture is not None
    all_exact = bool(header.flags & container.LOSSLESS) and numbers == tuple(container.level_ends(header))
    report("done", 1.0)
    return Decoded(picture[0], header, numbers, all_exact)


def verify(data: bytes, *, model: Model, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check every CRC, decode every level, compare the pixel hash. Raises a FormatError."""
    decoded = decode_image(data, model=model, limits=limits)
    for i, chunk in enumerate(decoded.header.chunks):
        payload = container.read_chunk(data, decoded.header, i)
        if chunk.kind == container.PIXEL_HASH and decoded.exact:
            if pixel_hash(decoded.rgb[None])[: len(payload)] != bytes(payload):
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
        writer = Writer(model.tables)
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
        reader = Reader(model.tables, body)
        latents = code_lossy_level(model, reader, level, latents, size, quality, None)
        reader.finish()
    assert latents is not None
    return latents


def code_lossy_level(
    model: Model,
    coder: Coder,
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
    payloads = [bytes([RAW]) + samples(grid(picture, top))]
    for s in range(top, 0, -1):
        writer = Writer(model.tables)
        target = grid(picture, s - 1)
        guide = None if lossy is None else grid(lossy, s - 1)
        coarse = rgb_to_ycocg(grid(picture, s))
        tuned = effort > 0 and coarse.shape[-2] * coarse.shape[-1] >= MIN_POSITIONS
        exact_levels.code_step(
            model.exact, writer, coarse, sizes[s - 1], s, target, guide, quality, tuned, effort
        )
        coded = bytes([TUNED if tuned else CODED]) + writer.finish()
        if len(coded) > 1 + 3 * (target[0, 0].numel() - coarse[0, 0].numel()):
            coded = bytes([RAW]) + b"".join(samples(phase_view(target, p)) for p in PHASES)
        payloads.append(coded)
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
    if mode != RAW:
        raise Corrupt(f"the base grid has mode {mode}")
    coarse = rgb_to_ycocg(from_samples(body, *sizes[top]))
    missing = top + 1 - len(payloads)
    last = 0 if lossy is None else missing  # the finest grid to work out
    known = ycocg_to_rgb(coarse)
    for s in range(top, last, -1):
        if s > missing:
            phases = decode_step(payloads[top - s + 1], model, coarse, sizes[s - 1], s, lossy, quality)
            report("exact", 1 / 4 ** (s - 1))
        else:
            phases = exact_levels.code_step(model.exact, Means(), coarse, sizes[s - 1], s)
        if s - 1 > last:
            coarse = exact_levels.assemble(coarse, phases, sizes[s - 1])
        else:
            known = exact_levels.assemble_rgb(coarse, phases, sizes[s - 1])
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
) -> dict[str, Tensor]:
    """The phases of grid x_{s-1}, int16, from x_s and the level's payload."""
    mode, body = split_payload(payload)
    if mode == RAW:
        phases: dict[str, Tensor] = {}
        at = 0
        for p in PHASES:
            shape = exact_levels.phase_size(p, *size)
            n = 3 * shape[0] * shape[1]
            phases[p] = rgb_to_ycocg(from_samples(body[at : at + n], *shape))
            at += n
        if at != len(body):
            raise Corrupt(f"a raw level of {len(body)} bytes, {at} expected")
    elif mode in (CODED, TUNED):
        reader = Reader(model.tables, body)
        guide = None if lossy is None else grid(lossy, s - 1)
        phases = exact_levels.code_step(
            model.exact, reader, coarse, size, s, None, guide, quality, mode == TUNED
        )
        reader.finish()
    else:
        raise Corrupt(f"a level has mode {mode}")
    return phases


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


def samples(rgb: Tensor) -> bytes:
    """uint8 [1, 3, h, w] as bytes, pixel by pixel."""
    return rgb[0].permute(1, 2, 0).contiguous().numpy().tobytes()


def from_samples(body: memoryview, height: int, width: int) -> Tensor:
    """Inverse of `samples`: a channels-last tensor.

    Raises Corrupt where the length is not that of the size.
    """
    if len(body) != 3 * height * width:
        raise Corrupt(f"{len(body)} bytes of samples, {3 * height * width} expected")
    flat = np.frombuffer(body, np.uint8).copy()
    return torch.from_numpy(flat).view(1, height, width, 3).permute(0, 3, 1, 2)


def split_payload(payload: memoryview) -> tuple[int, memoryview]:
    """Mode byte and the rest. Raises Corrupt for an empty payload."""
    if not len(payload):
        raise Corrupt("an empty level")
    return payload[0], payload[1:]


def picture_size(picture: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return picture.shape[-2], picture.shape[-1]


def pixel_hash(picture: Tensor) -> bytes:
    """First 16 bytes of SHA-256 over the samples of uint8 [1, 3, H, W], pixel by pixel."""
    pixels = picture[0].permute(1, 2, 0).contiguous().numpy()
    return hashlib.sha256(pixels.data).digest()[:PIXEL_HASH_BYTES]
