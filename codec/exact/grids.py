"""Coding of the exact levels in integers, both directions in one traversal (docs/format.md, "Exact levels").

A grid step goes from x_s to x_{s-1}; within it the phases D, H, V follow each other, within a phase the
coding blocks in raster order, within a block the channels Y, Co, Cg.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.colour import rgb_to_ycocg, ycocg_to_rgb
from vbc.codec.entropy.coder import Coder
from vbc.codec.entropy.tensor_coder import TensorCoder
from vbc.codec.exact.block import ExactModel, Parameters, Step, Tuning, Window, code_block, phase_view
from vbc.codec.exact.block_device import (
    DeviceTuning,
    code_block_on_device,
    code_tuning_on_device,
    fit_tuning_from_device,
)
from vbc.codec.exact.networks import HALO, N_LEVEL_CLASSES, PHASE_OFFSET, PHASES
from vbc.codec.exact.tuning import MIN_POSITIONS, code_tuning, fit_tuning
from vbc.codec.tiles import Follower, blocks

BASE_SIDE = 8
"""The coarsest grid has no side above this and is stored raw."""
BLOCK_SIDE = 512
"""Side of a coding block on the coarse grid: 1024 pixels of the picture."""

FOLLOW_PIXELS = 60_000
"""Symbols of larger grids are coded on a thread of their own, while the networks go on: over the next block
of a phase, and in an encoder, which knows all pixels, over the next phase."""


def grid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of x_0, x_1, ... down to the raw base grid."""
    sizes = [(height, width)]
    while max(sizes[-1]) > BASE_SIDE:
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes


def phase_size(phase: str, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a phase in a grid of this size."""
    dy, dx = PHASE_OFFSET[phase]
    return (height + 1 - dy) // 2, (width + 1 - dx) // 2


def extend(x: Tensor, height: int, width: int, halo: int = HALO) -> Tensor:
    """Replicate the last row and column up to this size, then a border: channels-last."""
    n, c, h, w = x.shape
    size = (n, c, height + 2 * halo, width + 2 * halo)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows, cols = slice(halo, halo + h), slice(halo, halo + w)
    out[..., rows, cols] = x
    out[..., rows, :halo] = x[..., :1]
    out[..., rows, halo + w :] = x[..., -1:]
    out[..., :halo, :] = out[..., halo : halo + 1, :]
    out[..., halo + h :, :] = out[..., halo + h - 1 : halo + h, :]
    return out


@dataclass(frozen=True)
class Coded:
    """What a grid step coded: by phase its pixels, int16 [1, 3, .., ..], and its misses, int8 likewise.

    For misses see `exact_block.Step`; those of the finest grid are not kept, nor pixels that an encoder had.
    """

    pixels: dict[str, Tensor]
    misses: dict[str, Tensor]


def code_step(
    model: ExactModel,
    coder: Coder | TensorCoder,
    coarse: Tensor,
    size: tuple[int, int],
    level: int,
    target: Tensor | None = None,
    lossy: Tensor | None = None,
    quality: int = 0,
    tuned: bool = False,
    effort: int = 1,
    misses: Tensor | None = None,
    block: int = BLOCK_SIDE,
) -> Coded:
    """Code the pixels of a grid x_{level-1} that its coarser grid lacks.

    coarse: int16 YCoCg-R [1, 3, ceil(h/2), ceil(w/2)]. size: (h, w) of the finer grid. target: that grid as
    uint8 RGB [1, 3, h, w] in an encoder. lossy: the lossy levels' picture on it, likewise, in a layered file.
    tuned: whether output layers tuned to the image are in the level; effort: 1 or 2, how carefully an encoder
    finds them. misses: of the coarser grid, int8 as `coarse`, None for zeros. With a `TensorCoder` all
    tensors are where the model is. The values do not depend on `block`; the order of symbols does, so the
    format fixes it.
    """
    n_h, n_w = coarse.shape[-2:]
    missed = torch.zeros_like(coarse, dtype=torch.int8) if misses is None else misses
    planes, miss_planes = {"A": extend(coarse, n_h, n_w)}, {"A": extend(missed, n_h, n_w, 1)}
    step = Step(model, planes, miss_planes, lossy, min(level - 1, N_LEVEL_CLASSES - 1), quality)
    coded = Coded({}, {})
    tunings: dict[str, Tuning | DeviceTuning | None] = {}

    def begin(p: str, whole: Parameters | None) -> None:
        wanted = None
        if target is not None and coded.pixels[p][0, 0].numel() >= MIN_POSITIONS:
            fit = fit_tuning_from_device if isinstance(coder, TensorCoder) else fit_tuning
            wanted = fit(step, p, whole, coded.pixels[p], effort)
        if isinstance(coder, TensorCoder):
            tunings[p] = code_tuning_on_device(model, coder, p, wanted, coarse.device)
        else:
            tunings[p] = code_tuning(model, coder, p, wanted)

    def code(p: str, part: Window, known: Parameters) -> None:
        pixels, tuning = coded.pixels[p][0, :, *part], tunings.get(p)
        around = None if tuning is None else step.around(p, [part])
        want = None if target is None else pixels
        if isinstance(coder, TensorCoder):
            assert model.maps is not None
            assert not isinstance(tuning, Tuning)
            values, missed = code_block_on_device(model.maps[p], coder, known, tuning, around, want)
        else:
            assert not isinstance(tuning, DeviceTuning)
            values, missed = code_block(model, p, coder, known, tuning, around, want)
        if target is None:
            pixels.copy_(values)
        if p in coded.misses:
            coded.misses[p][0, :, *part] = missed

    def finish(p: str) -> None:
        # a phase without pixels (one row or column) still stands among its neighbours' inputs
        some = coded.pixels[p].numel() > 0
        step.misses[p] = extend(coded.misses[p], n_h, n_w, 1) if some else step.misses["A"]
        if level == 1:  # of the finest grid nothing is kept that no one asks for: it is 6 bytes a pixel
            del coded.misses[p]
        if target is not None:
            del coded.pixels[p]

    nothing_ahead = isinstance(coder, TensorCoder) or (target is None and max(n_h, n_w) <= block)
    with Follower(not nothing_ahead and size[0] * size[1] >= FOLLOW_PIXELS) as follow:
        for p in PHASES:
            h, w = phase_size(p, *size)
            last = p == PHASES[-1]
            if target is None:
                coded.pixels[p] = empty_planes(h, w, torch.int16, coarse.device)
            else:
                coded.pixels[p] = rgb_to_ycocg(phase_view(target, p))
            if level > 1 or not last:
                coded.misses[p] = empty_planes(h, w, torch.int8, coarse.device)
            parts = list(blocks(h, w, block))
            whole = step.parameters(p, parts) if len(parts) == 1 else None
            if tuned:
                follow(begin, p, whole)
            for part in parts:
                follow(code, p, part, step.parameters(p, [part]) if whole is None else whole)
            if last:
                break
            if target is None:
                follow(finish, p)
                follow.wait()
                step.planes[p] = extend(coded.pixels[p], n_h, n_w) if parts else step.planes["A"]
            else:
                step.planes[p] = extend(coded.pixels[p], n_h, n_w) if parts else step.planes["A"]
                follow(finish, p)
    return coded


def empty_planes(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Three planes of unset values, [1, 3, h, w], channels last."""
    size = (1, 3, height, width)
    return torch.empty(size, dtype=dtype, device=device, memory_format=torch.channels_last)


def assemble(coarse: Tensor, phases: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """The finer grid [1, 3, h, w] from its coarser grid and phases, of pixels or misses."""
    fine = empty_planes(*size, coarse.dtype, coarse.device)
    for p, plane in {"A": coarse, **phases}.items():
        phase_view(fine, p).copy_(plane)
    return fine


def assemble_misses(coarse: Tensor | None, coded: Coded, size: tuple[int, int]) -> Tensor | None:
    """The misses of the finer grid; None, which stands for zeros, after a level without any (a raw one)."""
    if len(coded.misses) < len(PHASES):
        return None
    if coarse is None:
        n_h, n_w = (size[0] + 1) // 2, (size[1] + 1) // 2
        coarse = torch.zeros((1, 3, n_h, n_w), dtype=torch.int8, device=coded.misses["D"].device)
    return assemble(coarse, coded.misses, size)


def assemble_rgb(coarse: Tensor, phases: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """As `assemble` of pixels, but uint8 RGB: the finest grid takes half the memory."""
    fine = empty_planes(*size, torch.uint8, coarse.device)
    for p, plane in {"A": coarse, **phases}.items():
        phase_view(fine, p).copy_(ycocg_to_rgb(plane))
    return fine
