"""Payloads of the levels, both directions: what a level's chunk holds (docs/format.md, sections 8 and 9)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vbc.bitstream.container import LOSSY_LEVELS
from vbc.bitstream.errors import Corrupt
from vbc.codec.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.entropy.coder import Coder, Reader, Writer
from vbc.codec.entropy.tensor_coder import TensorCoder, TensorMeans, TensorReader, TensorWriter
from vbc.codec.exact import grids as exact_levels
from vbc.codec.exact.block import phase_view
from vbc.codec.exact.grids import Coded
from vbc.codec.exact.networks import PHASES
from vbc.codec.exact.tuning import MIN_POSITIONS
from vbc.codec.extra.packed_picture import decode_whole, encode_whole, rgb_tensor
from vbc.codec.lossy import coding as lossy_levels
from vbc.codec.lossy.latents import LEVEL_START
from vbc.codec.model import Model

CODED, RAW, TUNED, RAW_GRAY, WHOLE = range(5)
"""First byte of a level's payload: lanes follow, or plain samples, or lanes with output layers tuned to the
image, or plain samples of a picture whose planes are equal, or (level 4) the whole picture, packed."""
RAW_DEPTH = {RAW: 3, RAW_GRAY: 1}
"""Bytes of a plain pixel."""
SURELY_WHOLE = 1 / 50
"""A packed picture below this share of its samples is kept without a look at what the networks would give."""
QUALITY_STEP = 20
"""Between the qualities that are tried where lossy levels have little room."""

Progress = Callable[[str, float], None]


# Lossy levels


def encode_lossy(
    picture: Tensor, model: Model, levels: int, quality: int, filled: int = LOSSY_LEVELS
) -> tuple[list[bytes], Tensor]:
    """Payloads of the first lossy levels of uint8 [1, 3, H, W], and the latents as they will be decoded.

    filled: the levels above it have zeros for latents, which take a few bytes.
    """
    target = lossy_levels.analyse(model.lossy, picture, quality)
    target[:, LEVEL_START[filled] :] = 0
    payloads = []
    latents = None
    for level in range(1, levels + 1):
        writer = open_writer(model)
        part = target[:, LEVEL_START[level - 1] : LEVEL_START[level]]
        latents = code_lossy_level(model, writer, level, latents, picture_size(picture), quality, part)
        payloads.append(bytes([CODED]) + writer.finish())
    assert latents is not None
    return payloads, latents


def coarser_lossy(picture: Tensor, model: Model, quality: int, room: int) -> tuple[int, list[bytes], Tensor]:
    """The best lossy levels of at most `room` bytes: their quality, payloads and latents.

    Lower qualities are tried down to 0, then levels of zeros, from the last one on. All of them zeros are
    returned in any case: 0.002 bits a pixel and less than 64 bytes.
    """
    qualities = (*range(quality - QUALITY_STEP, 0, -QUALITY_STEP), 0)
    for q, filled in (*((q, LOSSY_LEVELS) for q in qualities), (0, 2), (0, 1)):
        payloads, latents = encode_lossy(picture, model, LOSSY_LEVELS, q, filled)
        if sum(map(len, payloads)) <= room:
            return q, payloads, latents
    return 0, *encode_lossy(picture, model, LOSSY_LEVELS, 0, filled=0)


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
    """Payloads of the exact levels of uint8 [1, 3, H, W], coarse to fine; one only where that is smaller.

    lossy: the lossy levels' picture, likewise.
    """
    sizes = exact_levels.grid_sizes(*picture_size(picture))
    top = len(sizes) - 1
    gray = torch.equal(picture[:, :1].expand_as(picture), picture)
    raw_mode, depth = (bytes([RAW_GRAY]), 1) if gray else (bytes([RAW]), 3)
    packed = encode_whole(picture, depth, effort)
    if packed is not None and len(packed) < SURELY_WHOLE * depth * picture[0, 0].numel():
        return [bytes([WHOLE]) + packed]
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
    if packed is not None and len(packed) < sum(map(len, payloads)):
        return [bytes([WHOLE]) + packed]
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
    if mode == WHOLE:
        if len(payloads) > 1:
            raise Corrupt("levels behind a packed picture")
        return decode_whole(body, size).to(model.device)
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
    return rgb_tensor(pixels.copy())


def split_payload(payload: memoryview) -> tuple[int, memoryview]:
    """Mode byte and the rest. Raises Corrupt for an empty payload."""
    if not len(payload):
        raise Corrupt("an empty level")
    return payload[0], payload[1:]


def picture_size(picture: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return picture.shape[-2], picture.shape[-1]
