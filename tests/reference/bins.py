"""Bins before values, and values after them (docs/format.md, sections 11.7 and 11.8).

What is coded is G, R and B, in this order; pixels are int16 YCoCg-R [3, h, w] as everywhere else.
"""

import numpy as np

from reference.geometry import Rectangle
from reference.groups import Group, Seen, rgb_to_ycocg, ycocg_to_rgb
from reference.lanes import Coder, brief
from reference.lossy import PHASES
from reference.networks import around, chain, compand, edge
from reference.weights import Array

OCTAVES = (0, 25, 37, 45, 51, 55, 59, 63, 65)
"""By how much the scale of a bin is less than that of a sample, in sixteenths of an octave, by bound."""
GRB = (1, 0, 2)
"""The order in which R, G and B are coded; it is its own inverse."""


def to_grb(pixels: Array) -> Array:
    """G, R and B of pixels, int32 0..255."""
    grb: Array = ycocg_to_rgb(pixels)[list(GRB)].astype(np.int32)
    return grb


def from_grb(grb: Array) -> Array:
    """The pixels of G, R and B, which are taken modulo 2^8."""
    return rgb_to_ycocg(grb[list(GRB)].astype(np.uint8))


class BinsGroup(Group):
    """A group of a level of bins.

    offsets, scales: by phase, int32 [3, h, w], what values see of it: by how much the coded mean is above the
    bin's value, in sixteenths, -128..127, and the coded scale; 0 and -64 where the group is not coded.
    """

    family = ".bins"
    lowest = (0, 0, 0)

    def __init__(self, seen: Seen, rectangle: Rectangle, bound: int):
        super().__init__(seen, rectangle)
        self.bound, self.step = bound, 2 * bound + 1
        self.offsets = {phase: np.zeros_like(errors) for phase, errors in self.errors.items()}
        self.scales = {phase: np.full_like(errors, -64) for phase, errors in self.errors.items()}

    def names(self, phase: str) -> tuple[str, str]:
        """All level classes share the hidden layers."""
        name = f"exact.{phase}.bins"
        return name, name if self.lossy is None else f"{name}.layered{self.level_class}"

    def bias(self, ends: str) -> Array:
        """The first layer is told the level class or the quality, and the bound."""
        told = self.level_class if self.lossy is None else self.quality
        total: Array = self.weights[f"{ends}.condition"][told] + self.weights[f"{ends}.bound"][self.bound - 1]
        return total

    def coded_base(self, base: Array) -> Array:
        """G, R and B, int16."""
        y, co, cg = base
        middle = y - (cg >> 1)
        b = middle - (co >> 1)
        return np.stack((cg + middle, b + co, b))

    def decode_channel(self, coder: Coder, phase: str, c: int, mean: Array, scale: Array) -> Array:
        """The bins of a channel."""
        rounded = (mean + 8) >> 4
        fraction = (2 * (mean - 16 * rounded) + self.step) // (2 * self.step)
        finer = np.maximum(scale - OCTAVES[self.bound], -64)
        tables = self.weights.integers("exact.bins_table_index")[c, 16 * (finer + 64) + fraction + 8]
        value = (rounded + self.step * coder.step(tables)).clip(0, 255)
        self.offsets[phase][c] = (mean - 16 * value).clip(-128, 127)
        self.scales[phase][c] = scale
        return value

    def take(self, phase: str, values: Array) -> None:
        """Keep the pixels of decoded bins."""
        self.pixels[phase] = from_grb(values)


class Values:
    """A group of values after bins.

    bins: the decoded group of bins of the same rectangle. coarse: the distances of the coarser grid of the
    whole picture, G, R and B, int32 [3, h, w].
    """

    def __init__(self, bins: BinsGroup, coarse: Array):
        self.weights, self.say, self.bins, self.coarse = bins.weights, bins.say, bins, coarse
        self.distances = {phase: np.zeros_like(offsets) for phase, offsets in bins.offsets.items()}

    def pixels(self) -> dict[str, Array]:
        """The group's pixels by phase."""
        return {
            phase: from_grb(to_grb(self.bins.pixels[phase]) + distance)
            for phase, distance in self.distances.items()
        }

    def code(self, coder: Coder) -> None:
        """Decode the distances of all phases."""
        for phase in PHASES:
            if self.distances[phase].size:
                output = chain(
                    self.weights, f"exact.{phase}.values", self.inputs(phase), self.bins.level_class
                )
                self.say(f"  values of phase {phase}: outputs at the first pixel {brief(output[:, 0, 0])}")
                self.code_phase(coder, phase, output)

    def inputs(self, phase: str) -> Array:
        """Input planes at two more positions on each side than the phase has."""
        rows, columns = (around(0, n, 2) for n in self.distances[phase].shape[1:])

        def seen(plane: Array) -> Array:
            if not plane.size:
                return np.zeros((3, rows.size, columns.size), np.int32)
            return edge(plane, rows, columns)

        planes = [compand(seen(self.bins.offsets[p])) for p in PHASES]
        planes.append((seen(self.bins.scales[phase]) >> 1).clip(-64, 63))
        known = [edge(self.coarse, rows + self.bins.part.top, columns + self.bins.part.left)]
        known += [seen(self.distances[p].clip(-128, 127)) for p in PHASES[: PHASES.index(phase)]]
        planes += [(16 * distance).clip(-64, 63) for distance in known]
        return np.concatenate(planes)

    def code_phase(self, coder: Coder, phase: str, output: Array) -> None:
        """The distances of the three channels of a phase."""
        first_table = self.weights.number("exact.values_table")
        coefficient = output.clip(-127, 127)
        distance = self.distances[phase]
        for c in range(3):
            mean = self.bins.offsets[phase][c] + output[c]
            for b in range(c):
                mean = mean + ((coefficient[5 + c + b] * 16 * distance[b] + 32) >> 6)
            quarter = (np.abs(mean) + 2) >> 2
            offset = quarter.clip(max=10) + (quarter >= 11) + (quarter >= 15)
            scale = (self.bins.scales[phase][c] + output[3 + c]).clip(-64, 96)
            octave = ((scale + 66) >> 2).clip(max=24)
            symbol = coder.step(first_table + 13 * octave + offset)
            distance[c] = np.where(mean < 0, -symbol, symbol).astype(np.int16)
            self.say(f"    channel {c}: means {brief(mean)}; scales {brief(scale)}")
            self.say(f"      distances {brief(distance[c])}")
