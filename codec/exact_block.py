"""One block of one phase of an exact level: from known planes to entropy parameters to symbols.

See docs/format.md, "Exact levels". Planes are int16 [1, 3, h, w] in YCoCg-R, channels last.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vbc.codec.coder import Coder, Index
from vbc.codec.colour import rgb_to_ycocg
from vbc.codec.exact import (
    HALO,
    N_SURPRISE,
    PHASE_OFFSET,
    PHASES,
    RADIUS,
    phase_inputs,
)
from vbc.codec.integer import IntPhase
from vbc.kernels.conv import IntConv

LOG_SCALE_MIN, LOG_SCALE_MAX = -64, 96
"""Sixteenths of an octave."""
FRACTIONS = 16
VALUE_RANGE = ((0, 255), (-255, 255), (-255, 255))
"""Of Y, Co and Cg."""
COEFFICIENT_MAX = 127

Ints = NDArray[np.int32]
Window = tuple[slice, slice]
"""Rows and columns within a phase."""


@dataclass(frozen=True)
class ExactModel:
    """What the exact levels need: the phases' networks and the maps from parameters to tables."""

    phases: dict[str, IntPhase]
    log2_residual: NDArray[np.int16]
    table_index: NDArray[np.uint16]
    """[3 channels, (log-scale - min) * 16 + fraction]."""
    tuning_table: int


@dataclass(frozen=True)
class Parameters:
    """Entropy parameters of blocks before channels are known.

    base: int16 [N, 3, h, w]; out: int32 [N, 9, h, w]. features: the last hidden layer, uint8 [N, width, h,
    w]. tuned: corrections of means and log-scales, int32 [N, 6, h, w].
    """

    base: Tensor
    out: Tensor
    features: Tensor
    tuned: Tensor | None


@dataclass(frozen=True)
class Step:
    """What is known while a grid step is coded. planes: A, then D and H once coded, padded by `HALO`.

    lossy: the lossy picture on the finer grid, uint8 RGB [1, 3, h, w], or None.
    """

    model: ExactModel
    planes: dict[str, Tensor]
    lossy: Tensor | None
    level_class: int
    quality: int

    def parameters(self, phase: str, windows: list[Window], tuned: IntConv | None = None) -> Parameters:
        """Entropy parameters of one or several blocks of a phase, all of one size: N is their number."""
        net = self.model.phases[phase]
        known = {k: stack([window(v, *w) for w in windows]) for k, v in self.planes.items()}
        lossy = None
        if self.lossy is not None:
            parts = [lossy_windows(self.lossy, *w) for w in windows]
            lossy = {p: stack([part[p] for part in parts]) for p in parts[0]}
        base, planes, guide = phase_inputs(phase, known["A"], known.get("D"), known.get("H"), lossy)
        features, out = net(planes, guide, self.level_class, self.quality)
        inner = base[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
        corrections = None if tuned is None else tuned(features)
        return Parameters(inner, out, features, corrections)


def stack(blocks: list[Tensor]) -> Tensor:
    """Blocks [1, C, h, w] along the batch, without a copy where there is one."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def by_channel(x: Tensor) -> Ints:
    """[N, C, h, w] to a contiguous array [C, N*h*w]."""
    return x.transpose(0, 1).contiguous().view(x.shape[1], -1).numpy()


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
        r = torch.arange(rows.start - HALO, rows.stop + HALO).clamp_(0, view.shape[-2] - 1)
        c = torch.arange(cols.start - HALO, cols.stop + HALO).clamp_(0, view.shape[-1] - 1)
        out[p] = rgb_to_ycocg(view[..., r, :][..., c])
    return out


class BlockPredictor:
    """Means and scales of the three channels of a block, each once the channels before it are known."""

    def __init__(self, model: ExactModel, phase: str, parameters: Parameters):
        self._model = model
        self._surprise = model.phases[phase].surprise.numpy()
        self._base16 = by_channel(parameters.base.to(torch.int32).mul_(16))
        self._out = by_channel(parameters.out)
        self._tuned = None if parameters.tuned is None else by_channel(parameters.tuned)
        self._residuals: list[Ints] = []
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
        if self._tuned is not None:
            mean, scale = mean + self._tuned[c], scale + self._tuned[3 + c]
        low, high = VALUE_RANGE[c]
        return np.clip(mean, 16 * low, 16 * high), np.clip(scale, LOG_SCALE_MIN, LOG_SCALE_MAX)

    def learn(self, values: NDArray[np.int16]) -> None:
        """Take the channel just predicted as known.

        Later channels follow its residual to the untuned prediction.
        """
        assert self._plain is not None
        mean, scale = self._plain
        r = 16 * values.astype(np.int32) - mean
        self._residuals.append(r)
        self._classes.append(surprise_class(self._model.log2_residual, r, scale))


def surprise_class(log2_residual: NDArray[np.int16], residual: Ints, scale: Ints) -> Ints:
    """Octaves of a residual (sixteenths) over its scale, rounded, plus 4, limited to 0..8."""
    size = log2_residual[np.minimum(np.abs(residual), len(log2_residual) - 1)]
    octaves: Ints = ((size - scale + 8) >> 4) + 4
    return np.clip(octaves, 0, N_SURPRISE - 1)


def table_index(model: ExactModel, channel: int, mean: Ints, scale: Ints) -> tuple[Index, NDArray[np.int16]]:
    """The table of each position and the rounded mean that symbols are differences to."""
    rounded = (mean + 8) >> 4
    key = ((scale - LOG_SCALE_MIN) << 4) + (mean - (rounded << 4) + 8)
    return model.table_index[channel][key], rounded.astype(np.int16)


def code_block(
    model: ExactModel, phase: str, coder: Coder, parameters: Parameters, target: Tensor | None
) -> Tensor:
    """Code the three channels of one block: int16 [3, h, w].

    target: int16 [3, h, w] in an encoder.
    """
    predictor = BlockPredictor(model, phase, parameters)
    shape = parameters.base.shape[-2:]
    want = None if target is None else target.contiguous().numpy().reshape(3, -1)
    values = np.empty((3, shape[0] * shape[1]), np.int16)
    for c in range(3):
        mean, scale = predictor.predict(c)
        index, rounded = table_index(model, c, mean, scale)
        symbols = coder.code(index, None if want is None else want[c] - rounded)
        np.add(rounded, symbols, out=values[c])
        if c < 2:
            predictor.learn(values[c])
    return torch.from_numpy(values.reshape(3, *shape))
