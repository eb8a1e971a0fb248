"""Bits-back coding of pictures, one after the other on one stack, for models with any number of levels.

A model names its parts in the order in which it generates: latents (u, z) and pictures (y, x), each given
some of the earlier ones. An encoder walks from the finest part to the coarsest. Before it pushes a part it
draws, from the bits already on the stack, the latents that this part is given; a decoder walks back and gives
the bits back. What a latent costs is the bits of its push less those of its draw: log q - log p.

The first draws need bits on the stack before there is any picture: the initial bits, which come out again
with the last picture. They may carry other data; counted as overhead they are spread over all pictures.

Decoding is exact where the networks give the same floats: same machine and versions, same threads, a picture
at a time. That serves experiments; a file format would need integer networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vbc.codec.research.parts.bits_back.densities import Density, DiagonalGaussian, as_code, on_lattice
from vbc.codec.research.parts.bits_back.pixels import PixelSteps
from vbc.codec.research.parts.bits_back.stack import WORD_BITS, Ints, RanDry, Stack, random_words

Known = dict[str, Tensor]
"""Parts by name: latents float32 [1, ...], pictures uint8 [1, C, H, W], on the model's device."""

LATTICE_BITS = 7
"""Latents are multiples of 1/128: a quarter of the smallest standard deviation that posteriors are allowed
(log-variance -7), so that what the lattice costs is far below one percent."""
FIRST_WORDS = 1 << 12
"""Initial words of the attempt that finds out how many are needed."""


@dataclass(frozen=True)
class LatentLevel:
    """A latent variable. shape: [1, ...].

    given, seen: names of the parts that prior and posterior look at; they get no others.
    """

    name: str
    shape: tuple[int, ...]
    prior: Callable[[Known], Density]
    posterior: Callable[[Known], DiagonalGaussian]
    given: tuple[str, ...] = ()
    seen: tuple[str, ...] = ("x",)


@dataclass(frozen=True)
class ImageLevel:
    """A picture. shape: [1, C, H, W]. given: names of the parts that its probabilities look at."""

    name: str
    shape: tuple[int, int, int, int]
    pixels: Callable[[Known], PixelSteps]
    given: tuple[str, ...]


Level = LatentLevel | ImageLevel


@dataclass(frozen=True)
class CodedModel:
    """A model as the coder sees it.

    levels: in the order of generation; the last one is the picture itself. images: from it, uint8
    [1, C, H, W], to all pictures by name; they are functions of it.
    """

    levels: Sequence[Level]
    images: Callable[[Tensor], Known] = lambda x: {"x": x}
    device: str = "cpu"


@dataclass(frozen=True)
class Coded:
    """Pictures in bytes. n_bits: what each level took, of all pictures together, initial bits not counted."""

    data: bytes
    initial_bits: int
    n_bits: dict[str, float]

    @property
    def net_bits(self) -> int:
        """Bits of the pictures without the initial ones."""
        return 8 * len(self.data) - self.initial_bits


@dataclass(frozen=True)
class Move:
    """A latent is drawn, or a part is put on the stack; a decoder undoes the one or the other."""

    kind: Literal["draw", "put"]
    level: Level


def encode_images(model: CodedModel, x: Tensor, lattice_bits: int = LATTICE_BITS) -> Coded:
    """Bytes of pictures, uint8 [N, C, H, W]. Inverse: decode_images.

    The initial bits are as few as the first pictures need. Raises ValueError for levels that cannot be coded
    in this order.
    """
    moves = plan_moves(model.levels)
    n_words = FIRST_WORDS
    while True:  # on a long stack first, to see how deep the first picture reaches
        try:
            _, lowest, _ = _encode(model, moves, x[:1], n_words, lattice_bits)
            break
        except RanDry:
            n_words *= 2
    n_words = n_words - lowest // WORD_BITS + 3
    while True:
        try:
            stack, _, n_bits = _encode(model, moves, x, n_words, lattice_bits)
            break
        except RanDry:  # a later picture reached deeper
            n_words += n_words // 8 + 1
    return Coded(stack.words().astype("<u4").tobytes(), WORD_BITS * n_words, n_bits)


def decode_images(model: CodedModel, coded: Coded, n: int, lattice_bits: int = LATTICE_BITS) -> Tensor:
    """The pictures of `encode_images`: uint8 [n, C, H, W].

    Raises ValueError where the initial bits do not come out again, which is how a wrong picture shows.
    """
    stack = Stack(np.frombuffer(coded.data, "<u4").astype(np.uint32))
    moves = plan_moves(model.levels)
    images = []
    with torch.inference_mode():
        for _ in range(n):
            known: Known = {}
            for move in reversed(moves):
                if move.kind == "put":
                    _take(stack, model, move.level, known, lattice_bits)
                else:
                    _give_back(stack, move.level, known, lattice_bits)
            images.append(known[model.levels[-1].name].cpu())
    if not np.array_equal(stack.words(), random_words(coded.initial_bits // WORD_BITS)):
        raise ValueError("the initial bits did not come out again: the pictures are not those encoded")
    return torch.cat(images[::-1])


def plan_moves(levels: Sequence[Level]) -> list[Move]:
    """What an encoder does with one picture, in order.

    Raises ValueError where a posterior looks at a part that its bits could not be given back without.
    """
    index = {level.name: i for i, level in enumerate(levels)}
    moves: list[Move] = []
    drawn: set[str] = set()
    for i in reversed(range(len(levels))):
        wanted = {*levels[i].given, levels[i].name}
        if any(index[name] >= i for name in levels[i].given):
            raise ValueError(f"{levels[i].name} is given a part that is generated after it")
        for level in reversed(levels[: i + 1]):
            if isinstance(level, ImageLevel) or level.name not in wanted - drawn:
                continue
            for name in level.seen:
                latent = isinstance(levels[index[name]], LatentLevel)
                if index[name] > i or (latent and name not in drawn):
                    raise ValueError(f"the posterior of {level.name} looks at {name}, unknown at its turn")
            moves.append(Move("draw", level))
            drawn.add(level.name)
        moves.append(Move("put", levels[i]))
    return moves


def _encode(
    model: CodedModel, moves: list[Move], x: Tensor, n_words: int, lattice_bits: int
) -> tuple[Stack, int, dict[str, float]]:
    """The stack after all pictures, the fewest bits it ever had, the bits of each level."""
    stack = Stack(random_words(n_words))
    lowest = stack.n_bits
    n_bits = {level.name: 0.0 for level in model.levels}
    with torch.inference_mode():
        for image in torch.split(x.cpu(), 1):
            known = {name: part.to(model.device) for name, part in model.images(image).items()}
            symbols: dict[str, Ints] = {}
            for move in moves:
                before = stack.n_bits
                if move.kind == "draw":
                    symbols[move.level.name] = _draw(stack, move.level, known, lattice_bits, model.device)
                else:
                    _put(stack, move.level, known, symbols, lattice_bits)
                n_bits[move.level.name] += stack.n_bits - before
                lowest = min(lowest, stack.n_bits)
    return stack, lowest, n_bits


def _draw(stack: Stack, level: Level, known: Known, lattice_bits: int, device: str) -> Ints:
    """Draw a latent from its posterior; it is known from then on. Inverse: _give_back."""
    assert isinstance(level, LatentLevel)
    symbols = stack.draw_gaussian(*on_lattice(level.posterior(_only(known, level.seen)), lattice_bits))
    known[level.name] = as_code(symbols, level.shape, lattice_bits).to(device)
    return symbols


def _give_back(stack: Stack, level: Level, known: Known, lattice_bits: int) -> None:
    assert isinstance(level, LatentLevel)
    symbols = np.rint(known[level.name].cpu().double().flatten().numpy() * (1 << lattice_bits))
    posterior = on_lattice(level.posterior(_only(known, level.seen)), lattice_bits)
    stack.give_back(symbols.astype(np.int64), *posterior)


def _put(stack: Stack, level: Level, known: Known, symbols: dict[str, Ints], lattice_bits: int) -> None:
    """Push a part given the parts it depends on. Inverse: _take."""
    given = _only(known, level.given)
    if isinstance(level, ImageLevel):
        level.pixels(given).push(stack, known[level.name])
    else:
        level.prior(given).push(stack, symbols[level.name], level.shape, lattice_bits)


def _take(stack: Stack, model: CodedModel, level: Level, known: Known, lattice_bits: int) -> None:
    given = _only(known, level.given)
    if isinstance(level, ImageLevel):
        known[level.name] = level.pixels(given).pop(stack, level.shape).to(model.device)
    else:
        symbols = level.prior(given).pop(stack, level.shape, lattice_bits)
        known[level.name] = as_code(symbols, level.shape, lattice_bits).to(model.device)


def _only(known: Known, names: tuple[str, ...]) -> Known:
    return {name: known[name] for name in names}
