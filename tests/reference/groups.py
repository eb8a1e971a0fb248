"""A group of an exact level while it is coded (docs/format.md, sections 11.1 to 11.6).

Pixels are int16 YCoCg-R [3, h, w].
"""

from dataclasses import dataclass

import numpy as np

from reference.geometry import Rectangle
from reference.lanes import Coder, Say, brief
from reference.lossy import NEAREST, PHASES, phase_part
from reference.networks import ZERO, around, compand, edge, layer
from reference.weights import Array, Weights

NEIGHBOURHOODS = {
    "D": ((("A", 0, 0), ("A", 0, 1), ("A", 1, 0), ("A", 1, 1)),),
    "H": ((("A", 0, 0), ("A", 0, 1)), (("D", -1, 0), ("D", 0, 0))),
    "V": (
        (("A", 0, 0), ("A", 1, 0)),
        (("D", 0, -1), ("D", 0, 0)),
        (("H", 0, -1), ("H", 0, 0), ("H", 1, -1), ("H", 1, 0)),
    ),
}

NEAR = {
    "D": {
        "A": [
            (-1, 0),
            (-1, 1),
            (0, -1),
            (0, 0),
            (0, 1),
            (0, 2),
            (1, -1),
            (1, 0),
            (1, 1),
            (1, 2),
            (2, 0),
            (2, 1),
        ]
    },
    "H": {
        "A": [(-1, 0), (-1, 1), (0, 0), (0, 1), (1, 0), (1, 1)],
        "D": [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1)],
    },
    "V": {
        "A": [(0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)],
        "D": [(-1, -1), (-1, 0), (0, -1), (0, 0), (1, -1), (1, 0)],
        "H": [(0, -1), (0, 0), (1, -1), (1, 0)],
    },
}
"""Near pixels that tuned means follow, by plane."""


def rgb_to_ycocg(rgb: Array) -> Array:
    """int16 YCoCg-R of uint8 RGB [3, h, w]."""
    r, g, b = rgb.astype(np.int16)
    co = r - b
    mid = b + (co >> 1)
    cg = g - mid
    return np.stack((mid + (cg >> 1), co, cg))


def ycocg_to_rgb(pixels: Array) -> Array:
    """The inverse; modulo 2^8."""
    y, co, cg = pixels
    mid = y - (cg >> 1)
    b = mid - (co >> 1)
    return np.stack((b + co, cg + mid, b)).astype(np.uint8)


def predicted_rgb(pixels: Array) -> Array:
    """As `ycocg_to_rgb`, limited to 0..255."""
    y, co, cg = pixels
    mid = y - (cg >> 1)
    b = mid - (co >> 1)
    return np.stack((b + co, cg + mid, b)).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Tuning:
    """Parameters of a phase: weight [6, w], bias [6]; around [3, g], near [3, n], before, widen [3, 2]."""

    weight: Array
    bias: Array
    around: Array
    near: Array
    before: Array
    widen: Array


def n_parameters(weights: Weights, phase: str) -> int:
    """How many symbols the tuning of a phase has at most."""
    return 6 * (1 + weights[f"exact.{phase}.tuning.scales"].shape[-1])


def n_near(phase: str) -> int:
    """How many near pixels the means of a phase follow."""
    return sum(map(len, NEAR[phase].values()))


def width_of(weights: Weights, phase: str) -> int:
    """Channels of the last hidden layer."""
    return len(weights[f"exact.{phase}0.third.bias"])


def read_tuning(weights: Weights, coder: Coder, level_class: int) -> dict[str, Tuning]:
    """The phases that are tuned, from part 0 of a level."""
    first = weights.number("exact.tuning_table")
    tunings = {}
    for phase in PHASES:
        flags = coder.step(np.full(6, first + 10))
        vectors = weights[f"exact.{phase}.tuning.vectors"][level_class]
        scales = weights[f"exact.{phase}.tuning.scales"][level_class]
        tuned = [n for n in range(6) if flags[n] > 0]
        tables = [first + (scales[n] + 2 * min(flags[n] - 1, 6)).clip(0, 22) for n in tuned]
        symbols = coder.step(np.concatenate([np.zeros(0, np.int32), *tables]))
        parameters = np.zeros(vectors.shape[:2], np.int32)
        for n, of_output in zip(tuned, np.split(symbols, max(len(tuned), 1)), strict=False):
            fineness = min(int(flags[n]) - 1, 6)
            total = vectors[n] @ of_output.clip(-1023, 1023).astype(np.int32)
            parameters[n] = ((total + (1 << (fineness + 5))) >> (fineness + 6)).clip(-127, 127)
        if not tuned:
            continue
        width, n_around = width_of(weights, phase), len(NEIGHBOURHOODS[phase])
        means, scaled = parameters[:3, width + 1 :], parameters[3:, width + 1 :]
        before, widen = (of[:, n_around + n_near(phase) :].copy() for of in (means, scaled))
        tunings[phase] = Tuning(
            weight=parameters[:, :width],
            bias=parameters[:, width],
            around=means[:, :n_around],
            near=means[:, n_around : n_around + n_near(phase)],
            before=before,
            widen=widen,
        )
    return tunings


@dataclass(frozen=True)
class Seen:
    """What all groups of a level look at.

    quality: that exact levels are told. k: the grid that the level completes. coarse, errors: grid k + 1 and
    its prior errors, [3, h, w]. lossy: the lossy picture on grid k, or None in an archival file.
    """

    weights: Weights
    quality: int
    k: int
    coarse: Array
    errors: Array
    lossy: Array | None
    say: Say


class Group:
    """A group of a level above 4 while its phases are coded.

    pixels, errors: of its parts of D, H and V, [3, h, w]. Positions count in the phases of the whole picture.
    """

    family = ""
    """What the names of its tensors have after the phase."""
    lowest = (0, -255, -255)
    """Of the means of the channels."""

    def __init__(self, seen: Seen, rectangle: Rectangle):
        self.weights, self.quality, self.say = seen.weights, seen.quality, seen.say
        self.coarse, self.coarse_errors, self.lossy = seen.coarse, seen.errors, seen.lossy
        self.level_class = min(seen.k, 2)
        self.part = rectangle.divided(2)
        blank = np.zeros((3, *rectangle.size), np.int16)
        self.pixels = {phase: phase_part(blank, phase).copy() for phase in PHASES}
        self.errors = {phase: self.pixels[phase].astype(np.int32) for phase in PHASES}

    @property
    def n_symbols(self) -> int:
        """The most symbols that the group can have."""
        return sum(pixels.size for pixels in self.pixels.values())

    def fill(self, phases: list[Array]) -> None:
        """Take plain pixels."""
        self.pixels = dict(zip(PHASES, phases, strict=True))

    def forget_errors(self) -> None:
        """A missing group has no prior errors."""
        self.errors = {phase: np.zeros_like(errors) for phase, errors in self.errors.items()}

    def seen(self, phase: str, rows: Array, columns: Array, errors: bool = False) -> Array:
        """Pixels (or prior errors) of A, D or H at these positions, as the group sees them."""
        whole = self.coarse_errors if errors else self.coarse
        if phase == "A":
            return edge(whole, rows, columns)
        own = (self.errors if errors else self.pixels)[phase]
        i, j = rows - self.part.top, columns - self.part.left
        if not own.size:
            return edge(whole[:, *self.part.slices], i, j)
        if errors or self.lossy is None:
            return edge(own, i, j)
        # in layered files the difference to the lossy picture is repeated, not the pixel
        inside = (start + np.arange(n) for start, n in zip(self.part.corner, own.shape[1:], strict=True))
        return self.lossy_seen(phase, rows, columns) + edge(own - self.lossy_seen(phase, *inside), i, j)

    def lossy_seen(self, phase: str, rows: Array, columns: Array) -> Array:
        """Pixels of the lossy picture on A or a phase."""
        assert self.lossy is not None
        plane = phase_part(self.lossy, phase)
        return edge(plane if plane.size else phase_part(self.lossy, "A"), rows, columns)

    def base_and_inputs(self, phase: str, i: Array, j: Array) -> tuple[Array, Array]:
        """Base int16 [3, h, w] and input planes [C, h, w] at these positions; arithmetic modulo 2^16."""
        four = [self.seen(plane, i + dy, j + dx) for plane, dy, dx in NEAREST[phase]]
        if self.lossy is None:
            base = (four[0] + four[1] + four[2] + four[3] + 2) >> 2
        else:
            places = zip(four, NEAREST[phase], strict=True)
            e = [n - self.lossy_seen(plane, i + dy, j + dx) for n, (plane, dy, dx) in places]
            base = self.lossy_seen(phase, i, j) + ((e[0] + e[1] + e[2] + e[3] + 2) >> 2)
        inputs = [n - base for n in four[:3]]
        if phase == "V":
            inputs += [self.seen("H", i, j - 1) - base, self.seen("H", i, j) - base]
        if self.lossy is not None:
            inputs.append(self.seen("A", i, j) - self.lossy_seen("A", i, j))
            inputs += [self.lossy_seen(p, i, j) - base for p in PHASES]
        return base, compand(np.concatenate(inputs))

    def parameters(self, phase: str, inputs: Array) -> tuple[Array, Array]:
        """Outputs [9, h, w] and features [w, h, w] from inputs at three more positions on each side."""
        name, ends = self.names(phase)
        x = inputs.astype(np.int32) + ZERO
        feature = layer(self.weights, f"{ends}.first", x, bias=self.bias(ends))
        feature = layer(self.weights, f"{name}.third", layer(self.weights, f"{name}.second", feature))
        skip = layer(self.weights, f"{ends}.skip", x[:, 2:-2, 2:-2], head=True)
        return layer(self.weights, f"{ends}.head", feature, head=True) + skip, feature

    def names(self, phase: str) -> tuple[str, str]:
        """Of the tensors of the hidden layers that all files share, and of those of this kind of file."""
        name = f"exact.{phase}{self.level_class}"
        return name, name if self.lossy is None else f"{name}.layered"

    def bias(self, ends: str) -> Array | None:
        """Of the first layer, where it is not the layer's own."""
        if self.lossy is None:
            return None
        bias: Array = self.weights[f"{ends}.condition"][self.quality]
        return bias

    def coded_base(self, base: Array) -> Array:
        """The base int16 [3, h, w] of the channels that are coded."""
        return base

    def decode_channel(self, coder: Coder, phase: str, c: int, mean: Array, scale: Array) -> Array:
        """The values of a channel, from its coded means and scales."""
        rounded = (mean + 8) >> 4
        key = 16 * (scale + 64) + mean - 16 * rounded + 8
        symbols = coder.step(self.weights.integers("exact.table_index")[c, key])
        return (rounded + symbols).astype(np.int16)

    def take(self, phase: str, values: Array) -> None:
        """Keep the pixels of decoded channels, [3, h, w]."""
        self.pixels[phase] = values

    def code(self, coder: Coder, tunings: dict[str, Tuning], network: bool = True) -> None:
        """All phases; without a network each pixel is its base."""
        for phase in PHASES:
            _, rows, columns = self.pixels[phase].shape
            if not rows or not columns:
                continue
            i = around(self.part.top, self.part.top + rows, 3)
            j = around(self.part.left, self.part.left + columns, 3)
            base, inputs = self.base_and_inputs(phase, i, j)
            base = base[:, 3:-3, 3:-3]
            if network:
                output, feature = self.parameters(phase, inputs)
                self.say(f"  phase {phase}: base {brief(base)}")
                self.say(f"    outputs at its first pixel {brief(output[:, 0, 0])}")
                self.code_phase(coder, phase, base, output, feature, tunings.get(phase))
            else:
                self.pixels[phase] = base

    def code_phase(
        self, coder: Coder, phase: str, base: Array, output: Array, feature: Array, tuning: Tuning | None
    ) -> None:
        """The three channels of a phase: pixels and prior errors."""
        log2_residual = self.weights.integers("exact.log2_residual")
        added = self.weights.integers(f"exact.{phase}{self.family}.surprise")
        coefficient = output.clip(-127, 127)
        base = self.coded_base(base)
        linear, follow = self.tuned_terms(phase, base, feature, tuning)
        values: list[Array] = []
        r: list[Array] = []
        ratio: list[Array] = []
        surprise: list[Array] = []
        for c in range(3):
            mean = 16 * base[c].astype(np.int32) + output[c]
            for b in range(c):
                mean = mean + ((coefficient[5 + c + b] * r[b] + 32) >> 6)
            scale = output[3 + c].clip(-64, 96)
            if c:
                scale = scale + added[c - 1, surprise[0] if c == 1 else np.maximum(*surprise)]
            coded_mean, coded_scale = mean, scale
            if tuning is not None:
                for b in range(c):
                    follow[c] += tuning.before[c, b] * r[b]
                coded_mean = mean + linear[c] + (follow[c] >> 8)
                change = np.full_like(mean, 128)
                for b in range(c):
                    change += tuning.widen[c, b] * ratio[b]
                coded_scale = scale + linear[3 + c] + (change >> 8)
            coded_mean = coded_mean.clip(16 * self.lowest[c], 16 * 255)
            coded_scale = coded_scale.clip(-64, 96)
            self.say(f"    channel {c}: means {brief(coded_mean)}; scales {brief(coded_scale)}")
            value = self.decode_channel(coder, phase, c, coded_mean, coded_scale)
            self.say(f"      values {brief(value)}")
            values.append(value)
            r.append(16 * value.astype(np.int32) - mean)
            ratio.append(log2_residual[np.abs(r[c]).clip(0, 8191)] - scale)
            surprise.append((((ratio[c] + 8) >> 4) + 4).clip(0, 8))
            self.errors[phase][c] = ((r[c] + 2) >> 2).clip(-127, 127)
        self.take(phase, np.stack(values))

    def tuned_terms(
        self, phase: str, base: Array, feature: Array, tuning: Tuning | None
    ) -> tuple[Array, Array]:
        """linear [6, h, w], and of follow [3, h, w] what prior errors and near pixels give, undivided."""
        _, rows, columns = feature.shape
        follow = np.full((3, rows, columns), 128, np.int32)
        if tuning is None:
            return np.zeros((6, rows, columns), np.int32), follow
        linear = np.tensordot(tuning.weight, feature, 1) + 64 * tuning.bias[:, None, None]
        i = np.arange(self.part.top, self.part.top + rows)
        j = np.arange(self.part.left, self.part.left + columns)
        for g, neighbourhood in enumerate(NEIGHBOURHOODS[phase]):
            for plane, dy, dx in neighbourhood:
                errors = self.seen(plane, i + dy, j + dx, errors=True)
                follow += 4 * tuning.around[:, g, None, None] * errors
        near = iter(tuning.near.T[:, :, None, None])
        for plane, places in NEAR[phase].items():
            for dy, dx in places:
                pixels = self.coded_base(self.seen(plane, i + dy, j + dx))
                follow += 8 * next(near) * (pixels.astype(np.int32) - base)
        return (linear + 128) >> 8, follow
