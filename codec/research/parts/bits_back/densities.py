"""Densities of latent variables on a lattice: a value is k / 2^lattice_bits with an integer k.

Each density pushes and pops integers; the two are inverses and know nothing of a model's parts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vbc.codec.research.parts.bits_back.stack import Floats, Ints, Stack

Coupling = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From z, float32 [1, ...], to log-scales and shifts of its shape: v = (z - shift) exp(-log_scale). Both are
0 where the coupling keeps z, and depend on nothing but what it keeps."""

DENOMINATOR_BITS = 12
"""A coupling's scale is a fraction of so many bits; its error of 2^-13 is far below what a flow learns."""
LARGEST_NUMERATOR = (1 << 20) - 1
"""Keeps the rounding of a uniform distribution, numerator / 2^24, below a tenth of a bit."""


class DiagonalGaussian(Protocol):
    """Mean and natural logarithm of the variance: float [1, ...] both."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def log_var(self) -> Tensor: ...


class Density(Protocol):
    """p(z) over one code on a lattice."""

    def push(self, stack: Stack, symbols: Ints, shape: Sequence[int], lattice_bits: int) -> None:
        """Push the symbols, int64 [n], of a code of that shape ([1, ...])."""

    def pop(self, stack: Stack, shape: Sequence[int], lattice_bits: int) -> Ints:
        """Pop what `push` pushed."""


@dataclass(frozen=True)
class GaussianDensity:
    """A diagonal Gaussian."""

    gaussian: DiagonalGaussian

    def push(self, stack: Stack, symbols: Ints, shape: Sequence[int], lattice_bits: int) -> None:
        stack.push_gaussian(symbols, *on_lattice(self.gaussian, lattice_bits))

    def pop(self, stack: Stack, shape: Sequence[int], lattice_bits: int) -> Ints:
        return stack.pop_gaussian(*on_lattice(self.gaussian, lattice_bits))


@dataclass(frozen=True)
class MixtureDensity:
    """A mixture of diagonal Gaussians over the whole code.

    weights: float [K]. mean, log_var: float [K, ...]. The component is a latent variable of its own: drawn
    from its posterior given the code, which gives bits back, and pushed under the weights.
    """

    weights: Tensor
    mean: Tensor
    log_var: Tensor

    def push(self, stack: Stack, symbols: Ints, shape: Sequence[int], lattice_bits: int) -> None:
        k = int(stack.pop_table(self._posterior(symbols, lattice_bits))[0])
        stack.push_gaussian(symbols, *self._component(k, lattice_bits))
        stack.push_table(np.array([k]), self._weights())

    def pop(self, stack: Stack, shape: Sequence[int], lattice_bits: int) -> Ints:
        k = int(stack.pop_table(self._weights())[0])
        symbols = stack.pop_gaussian(*self._component(k, lattice_bits))
        stack.push_table(np.array([k]), self._posterior(symbols, lattice_bits))
        return symbols

    def _weights(self) -> Floats:
        return as_floats(self.weights).reshape(1, -1)

    def _component(self, k: int, lattice_bits: int) -> tuple[Floats, Floats]:
        scale = float(1 << lattice_bits)
        return as_floats(self.mean[k]) * scale, np.exp(0.5 * as_floats(self.log_var[k])) * scale

    def _posterior(self, symbols: Ints, lattice_bits: int) -> Floats:
        """p(component | code): float64 [1, K]."""
        z = torch.from_numpy(symbols / float(1 << lattice_bits))
        mean, log_var = (part.detach().cpu().double().flatten(1) for part in (self.mean, self.log_var))
        each = -0.5 * ((z - mean) ** 2 * torch.exp(-log_var) + log_var).sum(1)
        posterior = torch.softmax(each + torch.log(self.weights.detach().cpu().double()), 0)
        return posterior.numpy().reshape(1, -1)


@dataclass(frozen=True)
class FlowDensity:
    """N(0, I) behind a flow of affine couplings, which stand in their order from z to v.

    A flow that is computed in floats does not invert exactly. Here a scale is a fraction m / 2^12 and a shift
    an integer, and scaling is exact (Zhang et al. 2021, arXiv:2111.00965): a remainder r of 0..m - 1 is
    popped, the number m k + r is read as 2^12 k' + r', and r' is pushed. The bits are those of the Jacobian,
    log2(2^12 / m); k' is the scaled value rounded down or up. Squeezing and splitting are matters of the
    couplings, which all see the code in its one shape.
    """

    couplings: Sequence[Coupling]
    device: str = "cpu"

    def push(self, stack: Stack, symbols: Ints, shape: Sequence[int], lattice_bits: int) -> None:
        symbols = symbols.copy()
        for coupling in self.couplings:
            at, numerator, shift = self._fractions(coupling, symbols, shape, lattice_bits)
            whole = numerator * (symbols[at] - shift) + stack.pop_uniform(numerator)
            symbols[at] = whole >> DENOMINATOR_BITS
            remainder = whole & ((1 << DENOMINATOR_BITS) - 1)
            stack.push_uniform(remainder, np.full(at.shape, 1 << DENOMINATOR_BITS))
        stack.push_gaussian(symbols, *_base(symbols.size, lattice_bits))

    def pop(self, stack: Stack, shape: Sequence[int], lattice_bits: int) -> Ints:
        symbols = stack.pop_gaussian(*_base(math.prod(shape), lattice_bits))
        for coupling in reversed(self.couplings):
            at, numerator, shift = self._fractions(coupling, symbols, shape, lattice_bits)
            remainder = stack.pop_uniform(np.full(at.shape, 1 << DENOMINATOR_BITS))
            whole = (symbols[at] << DENOMINATOR_BITS) + remainder
            symbols[at] = whole // numerator + shift
            stack.push_uniform(whole % numerator, numerator)
        return symbols

    def _fractions(
        self, coupling: Coupling, symbols: Ints, shape: Sequence[int], lattice_bits: int
    ) -> tuple[Ints, Ints, Ints]:
        """Where a coupling changes the code, numerators of its scales there, shifts in lattice steps."""
        z = as_code(symbols, shape, lattice_bits).to(self.device)
        log_scale, shift = map(as_floats, coupling(z))
        at = np.flatnonzero((log_scale != 0) | (shift != 0))
        numerator = np.rint(np.exp(-log_scale[at]) * (1 << DENOMINATOR_BITS))
        steps = np.rint(shift[at] * (1 << lattice_bits))
        return at, numerator.clip(2, LARGEST_NUMERATOR).astype(np.int64), steps.astype(np.int64)


def as_code(symbols: Ints, shape: Sequence[int], lattice_bits: int) -> Tensor:
    """The values of lattice points: int64 [n] to float32 of a shape."""
    return torch.from_numpy((symbols / float(1 << lattice_bits)).astype(np.float32)).view(*shape)


def on_lattice(gaussian: DiagonalGaussian, lattice_bits: int) -> tuple[Floats, Floats]:
    """Means and standard deviations in steps of the lattice: float64 [n] each."""
    scale = float(1 << lattice_bits)
    return as_floats(gaussian.mean) * scale, np.exp(0.5 * as_floats(gaussian.log_var)) * scale


def as_floats(x: Tensor) -> Floats:
    """float64 [n] of a tensor of any shape."""
    out: Floats = x.detach().cpu().double().flatten().numpy()
    return out


def _base(n: int, lattice_bits: int) -> tuple[Floats, Floats]:
    return np.zeros(n), np.full(n, float(1 << lattice_bits))
