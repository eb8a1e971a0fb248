"""One block of one phase of an exact level: from known planes to entropy parameters to symbols.

See docs/format.md, "Exact levels". Planes are int16 [1, 3, h, w] in YCoCg-R, channels last.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.codec.colour import rgb_to_ycocg
from vbc.codec.entropy.coder import Coder, Index
from vbc.codec.exact.networks import (
    HALO,
    N_SURPRISE,
    PHASE_OFFSET,
    PHASES,
    RADIUS,
    phase_inputs,
)
from vbc.codec.nets.int_nets import IntPhase
from vbc.kernels.conv import IntConv
from vbc.kernels.predict import PredictMaps

LOG_SCALE_MIN, LOG_SCALE_MAX = -64, 96
"""Sixteenths of an octave."""
FRACTIONS = 16
VALUE_RANGE = ((0, 255), (-255, 255), (-255, 255))
"""Of Y, Co and Cg."""
COEFFICIENT_MAX = 127
MISS_MAX = 127

Ints = NDArray[np.int32]
Window = tuple[slice, slice]
"""Rows and columns within a phase."""


AROUND: dict[str, tuple[tuple[tuple[str, int, int], ...], ...]] = {
    "D": ((("A", 0, 0), ("A", 0, 1), ("A", 1, 0), ("A", 1, 1)),),
    "H": ((("A", 0, 0), ("A", 0, 1)), (("D", -1, 0), ("D", 0, 0))),
    "V": (
        (("A", 0, 0), ("A", 1, 0)),
        (("D", 0, -1), ("D", 0, 0)),
        (("H", 0, -1), ("H", 0, 0), ("H", 1, -1), ("H", 1, 0)),
    ),
}
"""Groups of neighbours of a pixel whose misses tuned means follow: plane, rows down, columns right."""


@dataclass(frozen=True)
class ExactModel:
    """What the exact levels need: the phases' networks and the maps from parameters to tables."""

    phases: dict[str, IntPhase]
    log2_residual: NDArray[np.int16]
    table_index: NDArray[np.uint16]
    """[3 channels, (log-scale - min) * 16 + fraction]."""
    tuning_table: int
    maps: dict[str, PredictMaps] | None = None
    """The same maps by phase on the networks' device, where symbols are coded there."""


@dataclass(frozen=True)
class Parameters:
    """Entropy parameters of blocks before channels are known.

    base: int16 [N, 3, h, w]; out: int32 [N, 9, h, w]. features: the last hidden layer, uint8 [N, width, h,
    w].
    """

    base: Tensor
    out: Tensor
    features: Tensor

    def at(self, positions: Tensor) -> "Parameters":
        """Those of single positions (int64 [n], in the order of `by_position`): one row of n, on the CPU."""
        return Parameters(*(single(x, positions) for x in (self.base, self.out, self.features)))


@dataclass(frozen=True)
class Step:
    """What is known while a grid step is coded. planes: A, then D and H once coded, padded by `HALO`.

    misses: of the same, padded by 1: what predictions before tuning missed, int8 [1, 3, h+2, w+2], quarters
    of a pixel value. lossy: the lossy picture on the finer grid, uint8 RGB [1, 3, h, w], or None.
    """

    model: ExactModel
    planes: dict[str, Tensor]
    misses: dict[str, Tensor]
    lossy: Tensor | None
    level_class: int
    quality: int

    def parameters(self, phase: str, windows: list[Window]) -> Parameters:
        """Entropy parameters of one or several blocks of a phase, all of one size: N is their number."""
        net = self.model.phases[phase]
        before = ("A", *PHASES[: PHASES.index(phase)])
        known = {k: stack([window(self.planes[k], *w) for w in windows]) for k in before}
        lossy = None
        if self.lossy is not None:
            parts = [lossy_windows(self.lossy, *w) for w in windows]
            lossy = {p: stack([part[p] for part in parts]) for p in parts[0]}
        base, planes, guide = phase_inputs(phase, known["A"], known.get("D"), known.get("H"), lossy)
        features, out = net(planes, guide, self.level_class, self.quality)
        inner = base[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
        return Parameters(inner, out, features)

    def around(self, phase: str, windows: list[Window]) -> Tensor:
        """Sums of the misses around the pixels of blocks of one size: int16 [N, 3 K, h, w].

        By group of neighbours (`AROUND`), then channel.
        """
        return stack([torch.cat([self._group(g, *w) for g in AROUND[phase]], 1) for w in windows])

    def _group(self, neighbours: tuple[tuple[str, int, int], ...], rows: slice, cols: slice) -> Tensor:
        total = None
        for plane, dy, dx in neighbours:
            y, x = 1 + dy, 1 + dx
            part = self.misses[plane][..., rows.start + y : rows.stop + y, cols.start + x : cols.stop + x]
            total = part.to(torch.int16) if total is None else total.add_(part)
        assert total is not None
        return total


def stack(blocks: list[Tensor]) -> Tensor:
    """Blocks [1, C, h, w] along the batch, without a copy where there is one."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def by_channel(x: Tensor) -> Ints:
    """[N, C, h, w] to a contiguous array [C, N*h*w]."""
    return x.transpose(0, 1).contiguous().view(x.shape[1], -1).numpy()


def by_position(x: Tensor) -> Tensor:
    """[N, C, h, w] to [N*h*w, C]; a view where channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def single(x: Tensor, positions: Tensor) -> Tensor:
    """[1, C, 1, n]: x at single positions, int64 [n]; on the CPU."""
    return by_position(x)[positions].cpu().T[None, :, None]


def window(padded: Tensor, rows: slice, cols: slice) -> Tensor:
    """A block of a padded plane with its halo."""
    return padded[..., rows.start : rows.stop + 2 * HALO, cols.start : cols.stop + 2 * HALO]


def phase_view(fine: Tensor, phase: str) -> Tensor:
    """The pixels of a phase (or "A") within a grid."""
    dy, dx = PHASE_OFFSET.get(phase, (0, 0))
    return fine[..., dy::2, dx::2]


def lossy_windows(lossy: Tensor, rows: slice, cols: slice) -> dict[str, Tensor]:
    """Planes A, D, H, V of the lossy picture for a block with halo: int16 [1, 3, h+8, w+8].

    lossy: uint8 RGB [1, 3, h, w] on the finer grid.
    """
    out = {}
    for p in ("A", *PHASES):
        view = phase_view(lossy, p)
        if not view.numel():
            view = phase_view(lossy, "A")
        r, c = (
            torch.arange(part.start - HALO, part.stop + HALO, device=lossy.device).clamp_(0, n - 1)
            for part, n in zip((rows, cols), view.shape[-2:], strict=True)
        )
        out[p] = rgb_to_ycocg(view[..., r, :][..., c])
    return out


@dataclass(frozen=True)
class Tuning:
    """What tunes the outputs of a phase to one image.

    layer: corrections of three means and three log-scales from the last hidden layer. around: int32
    [groups of `AROUND`, 3], how a channel's mean follows the misses around it. before: int32 [2, 3, 2], how
    its mean follows the residuals of the channels before, and its log-scale their ratios to their scales.
    Slopes are in 256ths.
    """

    layer: IntConv
    around: Tensor
    before: Ints


class BlockPredictor:
    """Means and scales of the three channels of a block, each once the channels before it are known."""

    def __init__(
        self,
        model: ExactModel,
        phase: str,
        parameters: Parameters,
        tuned: Tuning | None = None,
        around: Tensor | None = None,
    ):
        self._model = model
        self._surprise = model.phases[phase].surprise.numpy()
        self._base16 = by_channel(parameters.base.to(torch.int32).mul_(16))
        self._out = by_channel(parameters.out)
        self._before = None if tuned is None else tuned.before
        if tuned is not None:
            assert around is not None
            self._corrections = by_channel(tuned.layer(parameters.features))
            self._moves: Ints = around_moves(around, tuned.around).transpose(0, 1).flatten(1).numpy()
        self._residuals: list[Ints] = []
        self._ratios: list[Ints] = []
        self._classes: list[Ints] = []
        self._plain: tuple[Ints, Ints] | None = None

    def predict(self, c: int) -> tuple[Ints, Ints]:
        """Mean and log2 scale of channel c: int32 [h*w].

        Mean in sixteenths of a pixel value, scale in sixteenths of an octave.
        """
        mean = self._base16[c] + self._out[c]
        for i, r in enumerate(self._residuals):
            coefficient = np.clip(self._out[6 + c - 1 + i], -COEFFICIENT_MAX, COEFFICIENT_MAX)
            mean += (coefficient * r + 32) >> 6
        scale = np.clip(self._out[3 + c], LOG_SCALE_MIN, LOG_SCALE_MAX)
        if c:
            seen = self._classes[0] if c == 1 else np.maximum(*self._classes)
            scale += self._surprise[c - 1][seen]
        self._plain = mean, scale
        if self._before is not None:
            mean, scale = mean + self._corrections[c], scale + self._corrections[3 + c]
            mean += follow(self._moves[c], self._before[0, c], self._residuals[:c])
            if c:
                scale += follow(np.int32(128), self._before[1, c], self._ratios[:c])
        low, high = VALUE_RANGE[c]
        return np.clip(mean, 16 * low, 16 * high), np.clip(scale, LOG_SCALE_MIN, LOG_SCALE_MAX)

    def seen(self) -> tuple[list[Ints], list[Ints]]:
        """Of the channels learnt: residuals and their ratios to their scales, sixteenths (of an octave)."""
        return self._residuals, self._ratios

    def learn(self, values: NDArray[np.int16]) -> None:
        """Take the channel just predicted as known.

        Later channels follow its residual to the untuned prediction.
        """
        assert self._plain is not None
        mean, scale = self._plain
        r = 16 * values.astype(np.int32) - mean
        ratio = self._model.log2_residual[np.minimum(np.abs(r), len(self._model.log2_residual) - 1)] - scale
        self._residuals.append(r)
        self._ratios.append(ratio)
        self._classes.append(surprise_class(ratio))

    def misses(self) -> NDArray[np.int8]:
        """Of the three channels once learnt: residuals in quarters of a pixel value, [3, h*w]."""
        return np.stack([np.clip((r + 2) >> 2, -MISS_MAX, MISS_MAX).astype(np.int8) for r in self._residuals])


def around_moves(around: Tensor, slopes: Tensor) -> Tensor:
    """What means are to move for the misses around them: int32 [N, 3, h*w], 1/4096 of a pixel value.

    The rounding constant is in it. around: as `Step.around`; slopes: as `Tuning.around`.
    """
    total = torch.full((), 128, dtype=torch.int32, device=around.device)
    for group, slope in zip(around.view(len(around), len(slopes), 3, -1).unbind(1), 4 * slopes, strict=True):
        total = total + group * slope[:, None]
    return total


def follow(start: Ints | np.int32, slopes: Ints, followed: list[Ints]) -> Ints:
    """(start + slopes (256ths) times what is followed) >> 8, start with the rounding constant."""
    total = start
    for slope, values in zip(slopes, followed, strict=False):
        total = total + slope * values
    return np.asarray(total >> 8, np.int32)


def surprise_class(ratio: Ints) -> Ints:
    """Sixteenths of an octave of a residual over its scale as whole octaves plus 4, limited to 0..8."""
    octaves: Ints = ((ratio + 8) >> 4) + 4
    return np.clip(octaves, 0, N_SURPRISE - 1)


def table_index(model: ExactModel, channel: int, mean: Ints, scale: Ints) -> tuple[Index, NDArray[np.int16]]:
    """The table of each position and the rounded mean that symbols are differences to."""
    rounded = (mean + 8) >> 4
    key = ((scale - LOG_SCALE_MIN) << 4) + (mean - (rounded << 4) + 8)
    return model.table_index[channel][key], rounded.astype(np.int16)


def code_block(
    model: ExactModel,
    phase: str,
    coder: Coder,
    parameters: Parameters,
    tuned: Tuning | None,
    around: Tensor | None,
    target: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Code the three channels of one block: int16 [3, h, w], and what was missed, int8 likewise.

    tuned, around: corrections of means and log-scales and the misses they follow, or None. target: int16
    [3, h, w] in an encoder.
    """
    predictor = BlockPredictor(model, phase, parameters, tuned, around)
    shape = parameters.base.shape[-2:]
    want = None if target is None else target.contiguous().numpy().reshape(3, -1)
    values = np.empty((3, shape[0] * shape[1]), np.int16)
    for c in range(3):
        mean, scale = predictor.predict(c)
        index, rounded = table_index(model, c, mean, scale)
        symbols = coder.code(index, None if want is None else want[c] - rounded)
        np.add(rounded, symbols, out=values[c])
        predictor.learn(values[c])
    return torch.from_numpy(values.reshape(3, *shape)), torch.from_numpy(
        predictor.misses().reshape(3, *shape)
    )
