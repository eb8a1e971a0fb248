"""A stack of bits on constriction's ANS coder: what is pushed under a distribution is popped under the same.

A pop from random bits is a draw from the distribution, and pushing the drawn symbols gives the bits back.
Symbols are integers; distributions are fixed-point tables of 24 bits that constriction makes of float64.
"""

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WORD_BITS = 32
LEAST_BITS = 64
"""What the coder's state holds; below it a pop would not be random any more."""
WIDE = 1 << 15
"""Half the window of a push, in symbols around the mean. Every symbol in a window has a mass of at least
2^-24, which takes 2^16 of them 0.4 % of all mass: 0.006 bits a symbol."""
HALF_BITS = 20
"""A symbol outside the window is pushed as the lowest one and two numbers of so many bits."""
REACH = 8
"""Half the window of a pop in standard deviations. It is narrow: of the 2^-24 a symbol nothing should be
left to draw far outside of the density."""
NARROWEST = 16
LEAST_DEVIATION = 0.25
"""Standard deviations are at least so many symbols wide."""


class RanDry(Exception):
    """The stack holds too few bits for a pop."""


class Stack:
    """A stack of bits. words: uint32 [n], the last one on top; the last one is not 0."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._coder = constriction.stream.stack.AnsCoder(words)

    @property
    def n_bits(self) -> int:
        """How many bits there are."""
        return int(self._coder.num_valid_bits())

    def words(self) -> NDArray[np.uint32]:
        """All of the stack."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words

    def push_gaussian(self, symbols: Ints, mean: Floats, deviation: Floats) -> None:
        """Push under N(mean, deviation^2), of which a symbol has the part within 1/2 of it. Inverse:
        pop_gaussian.

        symbols: int64 [n], no further than 2^39 from their means. mean, deviation: float64 [n].
        """
        offsets = symbols - np.rint(mean).astype(np.int64)
        far = np.flatnonzero(np.abs(offsets) >= WIDE)
        if far.size:
            biased = offsets[far] + (1 << (2 * HALF_BITS - 1))
            sizes = np.full(far.shape, 1 << HALF_BITS)
            self.push_uniform(biased >> HALF_BITS, sizes)
            self.push_uniform(biased & ((1 << HALF_BITS) - 1), sizes)
            symbols = symbols.copy()
            symbols[far] -= offsets[far] + WIDE
        self._push_gaussian(symbols, mean, deviation, WIDE)

    def pop_gaussian(self, mean: Floats, deviation: Floats) -> Ints:
        """Pop what `push_gaussian` pushed: int64 [n]."""
        symbols = self._pop_gaussian(mean, deviation, WIDE)
        far = np.flatnonzero(symbols - np.rint(mean).astype(np.int64) == -WIDE)
        if far.size:
            sizes = np.full(far.shape, 1 << HALF_BITS)
            low, high = self.pop_uniform(sizes), self.pop_uniform(sizes)
            symbols[far] += (high << HALF_BITS) + low - (1 << (2 * HALF_BITS - 1)) + WIDE
        return symbols

    def draw_gaussian(self, mean: Floats, deviation: Floats) -> Ints:
        """Pop symbols from N(mean, deviation^2) cut at eight deviations: int64 [n]. Inverse: give_back."""
        symbols = np.empty(mean.shape, np.int64)
        for window, at in _windows(deviation):
            symbols[at] = self._pop_gaussian(mean[at], deviation[at], window)
        return symbols

    def give_back(self, symbols: Ints, mean: Floats, deviation: Floats) -> None:
        """Push what `draw_gaussian` popped."""
        for window, at in reversed(_windows(deviation)):
            self._push_gaussian(symbols[at], mean[at], deviation[at], window)

    def push_uniform(self, symbols: Ints, sizes: Ints) -> None:
        """Push symbols of 0..size - 1, all alike. int64 [n] both; sizes from 2 to 2^24 - 1."""
        model = constriction.stream.model.Uniform()
        self._coder.encode_reverse(symbols.astype(np.int32), model, sizes.astype(np.int32))

    def pop_uniform(self, sizes: Ints) -> Ints:
        """Pop what `push_uniform` pushed: int64 [n]."""
        return self._pop(constriction.stream.model.Uniform(), sizes.astype(np.int32))

    def push_table(self, symbols: Ints, masses: Floats) -> None:
        """Push symbols under tables. masses: float64 [n, symbols], rows of any positive sum."""
        model = constriction.stream.model.Categorical(perfect=False)
        self._coder.encode_reverse(symbols.astype(np.int32), model, masses)

    def pop_table(self, masses: Floats) -> Ints:
        """Pop what `push_table` pushed: int64 [n]."""
        return self._pop(constriction.stream.model.Categorical(perfect=False), masses)

    def _push_gaussian(self, symbols: Ints, mean: Floats, deviation: Floats, window: int) -> None:
        centre = np.rint(mean)
        offsets = (symbols - centre.astype(np.int64)).astype(np.int32)
        model = constriction.stream.model.QuantizedGaussian(-window, window - 1)
        self._coder.encode_reverse(offsets, model, mean - centre, _floor(deviation))

    def _pop_gaussian(self, mean: Floats, deviation: Floats, window: int) -> Ints:
        centre = np.rint(mean)
        model = constriction.stream.model.QuantizedGaussian(-window, window - 1)
        return self._pop(model, mean - centre, _floor(deviation)) + centre.astype(np.int64)

    def _pop(self, model: Any, *parameters: Any) -> Ints:
        symbols: Ints = self._coder.decode(model, *parameters).astype(np.int64)
        if self.n_bits < LEAST_BITS:
            raise RanDry(f"{self.n_bits} bits are left")
        return symbols


def random_words(n: int) -> NDArray[np.uint32]:
    """The bits that a stack starts with, always the same; any bits would do, other data too."""
    return np.random.default_rng(0).integers(1, 1 << WORD_BITS, n, dtype=np.uint32)


def _floor(deviation: Floats) -> Floats:
    return np.maximum(deviation, LEAST_DEVIATION)


def _windows(deviation: Floats) -> list[tuple[int, Ints]]:
    """Half windows, powers of two, and the places that have each."""
    need = np.maximum(REACH * deviation, NARROWEST)
    exponents = np.minimum(np.ceil(np.log2(need)).astype(np.int64), WIDE.bit_length() - 1)
    return [(1 << int(e), np.flatnonzero(exponents == e)) for e in np.unique(exponents)]
