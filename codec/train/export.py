"""From trained networks to the weights file: integers, refit tables, known answers (docs/training.md)."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vbc.codec.colour import rgb_to_ycocg
from vbc.codec.entropy.coder import Counter, Index, Symbols
from vbc.codec.exact import grids as exact_levels
from vbc.codec.exact.networks import ExactNet
from vbc.codec.files.image_io import write_atomic
from vbc.codec.lossy import coding as lossy_levels
from vbc.codec.lossy.latents import LEVEL_START
from vbc.codec.model import Model, build_model
from vbc.codec.payloads import code_lossy_level, complete, grid
from vbc.codec.train.export_nets import Tensors, export_exact, export_lossy
from vbc.codec.train.frequency_tables import initial_tables, refit_tables
from vbc.codec.train.lossy_net import LossyNet

LAYERED_QUALITIES = (10, 100)
"""Range of qualities that exact levels are trained and tables refit with."""
KNOWN_SIZES = ((1, 1), (23, 40))


class Discard:
    """A coder that keeps nothing: the encoder's traversal without its output."""

    def code(self, index: Index, symbols: Symbols | None) -> Symbols:
        """The symbols."""
        assert symbols is not None
        return symbols


class PseudoRandom:
    """Symbols from a fixed generator in place of a file, to pin what the decoder makes of them."""

    def __init__(self) -> None:
        self._rng = np.random.Generator(np.random.PCG64(1))

    def code(self, index: Index, symbols: Symbols | None) -> Symbols:
        """Residuals of -3..3, or fewer for the single flag of a tuned phase."""
        if index.size == 1:
            return np.ones(1, np.int16)
        return self._rng.integers(-3, 4, index.size).astype(np.int16)


def lossy_pictures(model: Model, tiles: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Tiles uint8 [N, 3, H, W] with their lossy pictures at random qualities.

    Returns uint8 [N, 7, H, W], the last plane the quality.
    """
    rng = np.random.default_rng(seed)
    out = np.empty((len(tiles), 7, *tiles.shape[2:]), np.uint8)
    with torch.no_grad():
        for i, tile in enumerate(tiles):
            quality = int(rng.integers(LAYERED_QUALITIES[0], LAYERED_QUALITIES[1] + 1))
            x = torch.from_numpy(tile)[None]
            out[i, :3], out[i, 6] = tile, quality
            out[i, 3:6] = lossy_picture(model, x, quality, Discard())[0].numpy()
    return out


def lossy_picture(model: Model, x: Tensor, quality: int, coder: Discard | Counter) -> Tensor:
    """What the three lossy levels make of uint8 [1, 3, H, W]."""
    size = (x.shape[-2], x.shape[-1])
    target = lossy_levels.analyse(model.lossy, x, quality)
    latents = None
    for level in (1, 2, 3):
        part = target[:, LEVEL_START[level - 1] : LEVEL_START[level]]
        latents = code_lossy_level(model, coder, level, latents, size, quality, part)
    assert latents is not None
    return lossy_levels.synthesise(model.lossy, latents, size, 3, quality)


def count_symbols(model: Model, tiles: NDArray[np.uint8], seed: int) -> Counter:
    """Symbols that the integer model codes on tiles, archival and layered."""
    counter = Counter(len(model.tables))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for i, tile in enumerate(tiles):
            x = torch.from_numpy(tile)[None].contiguous(memory_format=torch.channels_last)
            quality = int(rng.integers(0, 101))
            lossy = lossy_picture(model, x, quality, counter)
            code_exact(model, counter, x, lossy if i % 3 == 0 else None, quality)
    return counter


def code_exact(model: Model, coder: Counter, x: Tensor, lossy: Tensor | None, quality: int) -> None:
    """Run the exact levels' encoder over uint8 [1, 3, H, W]."""
    sizes = exact_levels.grid_sizes(x.shape[-2], x.shape[-1])
    for s in range(len(sizes) - 1, 0, -1):
        guide = None if lossy is None else grid(lossy, s - 1)
        coarse = rgb_to_ycocg(grid(x, s))
        exact_levels.code_step(model.exact, coder, coarse, sizes[s - 1], s, grid(x, s - 1), guide, quality)


def export_model(exact: ExactNet, lossy: LossyNet, tiles: NDArray[np.uint8] | None) -> Tensors:
    """Tensors of a weights file.

    The tables are refit on what the integer model codes of the tiles, where given.
    """
    first, prior = initial_tables()
    tensors = {**export_exact(exact), **export_lossy(lossy), **first}
    if tiles is not None:
        counter = count_symbols(build_model(tensors), tiles, seed=2)
        tensors["tables"] = refit_tables(prior, counter)
    return {k: v.contiguous() for k, v in tensors.items()}


def known_answers(model: Model) -> dict[str, str]:
    """SHA-256 prefixes of what the decoder makes of fixed symbols, by size and kind.

    They are equal on every device.
    """
    out = {}
    with torch.no_grad():
        for size in KNOWN_SIZES:
            latents = None
            coder = PseudoRandom()
            for level in (1, 2, 3):
                latents = code_lossy_level(model, coder, level, latents, size, 60, None)
                full = complete(latents, model, 60)
                lossy = lossy_levels.synthesise(model.lossy, full, size, level, 60)
                out[f"{size} level {level}"] = digest(lossy)
            kinds = (("archival", None, False), ("tuned", None, True), ("layered", lossy, False))
            for kind, guide, tuned in kinds:
                coder = PseudoRandom()
                sizes = exact_levels.grid_sizes(*size)
                x, misses = rgb_to_ycocg(grid(lossy, len(sizes) - 1)), None
                for s in range(len(sizes) - 1, 0, -1):
                    part = None if guide is None else grid(guide, s - 1)
                    finer = sizes[s - 1]
                    coded = exact_levels.code_step(
                        model.exact, coder, x, finer, s, None, part, 60, tuned, misses=misses
                    )
                    x = exact_levels.assemble(x, coded.pixels, finer)
                    misses = exact_levels.assemble_misses(misses, coded, finer)
                out[f"{size} {kind}"] = digest(x)
    return out


def digest(x: Tensor) -> str:
    """First 16 hex digits of SHA-256 over an integer tensor, row by row."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:16]


def save_model(path: Path, tensors: Tensors) -> Model:
    """Write a weights file with its known answers; returns the model."""
    model = build_model(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save(tensors, metadata={"format": "vbc-model-1", **known_answers(model)}))
    return model


def stored_answers(path: Path) -> dict[str, str]:
    """The known answers in a weights file."""
    with safe_open(path, "pt") as f:
        return {k: v for k, v in f.metadata().items() if k != "format"}
