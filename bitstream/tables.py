"""Frequency tables: which symbol costs how many bits (docs/format.md, section 6)."""

import hashlib
import math
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

TOTAL_BITS = 24
"""Every row sums to 2^24, the coder's precision. With 2^16, 255 letters of at least 1 took 0.4 % of every
table: 0.006 bits a symbol."""

ALPHABET = 256
"""Residuals -127..127 and the escape: one byte a symbol."""

ESCAPE = 255
"""Alphabet index of the escape; index a below it means the residual a - 127."""

SYMBOL_MAX = 127
"""Largest residual with an alphabet index of its own."""

MAX_TABLES = 2048
"""About 40 scales x 8 fractional means x 3 shapes, and as many again for all else; 1 MiB of integers."""

NO_TABLE = MAX_TABLES
"""Stands in place of a table where nothing is coded."""

COST_UNIT = 2048
"""Code lengths are counted in integers, 1/2048 bit each: 24 bits still fit a uint16."""

DIGEST_BYTES = 8
"""Enough against accident; weights are not chosen by an adversary."""


class TableSet:
    """A set of integer frequency tables with their entropy models; immutable.

    frequencies: integers [T, 256], 1 <= T <= 2048, every entry >= 1, every row summing to 2^24; kept as
    read-only uint32.
    costs: uint16 [T * 256], the ideal code length of each entry in 1/2048 bit, for encoders to choose by.
    digest: the first 8 bytes of SHA-256 over the little-endian uint32 entries, row after row.
    Raises ValueError where the frequencies are not such a set.
    """

    __slots__ = ("_models", "costs", "digest", "frequencies")
    _models: list[Any]
    costs: NDArray[np.uint16]
    digest: bytes
    frequencies: NDArray[np.uint32]

    def __init__(self, frequencies: NDArray[Any]) -> None:
        if frequencies.ndim != 2 or frequencies.shape[1] != ALPHABET or frequencies.dtype.kind not in "iu":
            raise ValueError(f"tables must be integers [T, 256], not {frequencies.dtype} {frequencies.shape}")
        if not 1 <= len(frequencies) <= MAX_TABLES:
            raise ValueError(f"{len(frequencies)} tables, allowed are 1 to {MAX_TABLES}")
        if frequencies.min() < 1 or frequencies.max() > 1 << TOTAL_BITS:
            raise ValueError(f"a frequency lies outside 1..{1 << TOTAL_BITS}")
        if (frequencies.sum(axis=1, dtype=np.int64) != 1 << TOTAL_BITS).any():
            raise ValueError(f"a table does not sum to {1 << TOTAL_BITS}")
        stored = frequencies.astype("<u4")
        stored.setflags(write=False)
        costs = np.rint((TOTAL_BITS - np.log2(stored.astype(np.float64))) * COST_UNIT).astype(np.uint16)
        object.__setattr__(self, "frequencies", stored)
        object.__setattr__(self, "costs", costs.reshape(-1))
        object.__setattr__(self, "digest", hashlib.sha256(stored.tobytes()).digest()[:DIGEST_BYTES])
        object.__setattr__(self, "_models", [None] * len(stored))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"TableSet is immutable: {name}")

    def __len__(self) -> int:
        return len(self.frequencies)

    def model(self, table: int) -> Any:
        """The `constriction` model of one table, built at first use (90 µs) and kept.

        Two threads may build the same model at the same time; they are equal, and one of them stays.
        """
        model = self._models[table]
        if model is None:
            # perfect=False would shift probability mass: only the perfect model has exactly these frequencies
            probabilities = self.frequencies[table] / float(1 << TOTAL_BITS)
            model = self._models[table] = constriction.stream.model.Categorical(probabilities, perfect=True)
        return model


def normalise_counts(weights: NDArray[np.float64], least: int = 1) -> NDArray[np.uint32]:
    """Round weights to frequencies: proportional, but at least `least`, each row summing to 2^24.

    weights: float64 [T, 256], finite, >= 0, each row with a positive finite sum; least: 1 to 2^16. Returns
    uint32 [T, 256]. What rounding down leaves over goes to the largest remainders, of equal ones to the lower
    index: the result depends on the weights alone. Raises ValueError where the weights are not of this form.
    """
    if weights.ndim != 2 or weights.shape[1] != ALPHABET:
        raise ValueError(f"weights must have the shape [T, {ALPHABET}], not {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("weights must be finite and not negative")
    if not 1 <= least <= (1 << TOTAL_BITS) // ALPHABET:
        raise ValueError(f"least must be 1 to {(1 << TOTAL_BITS) // ALPHABET}, not {least}")
    return np.stack([_normalise_row(row, least) for row in weights.astype(np.float64)])


def _normalise_row(weights: NDArray[np.float64], least: int) -> NDArray[np.uint32]:
    peak = float(weights.max())
    if peak == 0:
        raise ValueError("a row of weights sums to zero")
    weights = weights / peak  # the sum of a row may overflow where its entries do not
    rare = np.zeros(ALPHABET, bool)
    while True:
        left = (1 << TOTAL_BITS) - least * int(rare.sum())
        ideal = np.where(rare, least, weights * (left / math.fsum(weights[~rare].tolist())))
        rarer = ideal < least
        if not rarer.any():
            break
        rare |= rarer
    frequencies = np.floor(ideal).astype(np.int64)
    left = (1 << TOTAL_BITS) - int(frequencies.sum())
    frequencies[np.argsort(frequencies - ideal, kind="stable")[:left]] += 1
    return frequencies.astype(np.uint32)
