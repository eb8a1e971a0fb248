"""Blocks of the exact levels on a device: `exact_block.code_block` and `tuning.code_tuning` in tensors.

Nothing here waits for the device but fitting, which is the encoder's.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.entropy.tensor_coder import NO_TABLE, TensorCoder
from vbc.codec.exact.block import (
    AROUND,
    ExactModel,
    Parameters,
    Step,
    Window,
    around_moves,
    by_position,
)
from vbc.codec.exact.tuning import (
    BIAS_UNIT,
    OUTPUTS,
    SHIFT,
    WEIGHT_MAX,
    fit_tuning,
    tuning_symbols,
    used_slopes,
)
from vbc.kernels.conv import IntConv
from vbc.kernels.predict import Corrections, PredictMaps, channel_tables, misses


def predict_maps(model: ExactModel, phase: str, device: torch.device) -> PredictMaps:
    """A phase's look-up tables on a device."""
    parts = (model.log2_residual, model.phases[phase].surprise, model.table_index)
    return PredictMaps(*(torch.as_tensor(x).to(device, torch.int16) for x in parts))


@dataclass(frozen=True)
class DeviceTuning:
    """As `exact_block.Tuning`, with the slopes of the channels before on the device too, int32 [2, 3, 2]."""

    layer: IntConv
    around: Tensor
    before: Tensor


def code_block_on_device(
    maps: PredictMaps,
    coder: TensorCoder,
    parameters: Parameters,
    tuned: DeviceTuning | None,
    around: Tensor | None,
    target: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Code the three channels of one block, on the device of the parameters.

    Arguments and result as in `exact_block.code_block`.
    """
    h, w = parameters.base.shape[-2:]
    base, out = by_position(parameters.base), by_position(parameters.out)
    corrections = None
    if tuned is not None:
        assert around is not None
        moves = around_moves(around, tuned.around)[0].T.contiguous()
        corrections = Corrections(by_position(tuned.layer(parameters.features)), moves, tuned.before)
    values = torch.empty_like(base) if target is None else by_position(target[None])
    for c in range(3):
        index, rounded = channel_tables(base, out, corrections, values, c, maps)
        symbols = coder.code(index, None if target is None else values[:, c] - rounded)
        if target is None:
            torch.add(rounded, symbols, out=values[:, c])
    missed = misses(base, out, values, maps)
    return values.view(h, w, 3).permute(2, 0, 1), missed.view(h, w, 3).permute(2, 0, 1)


def code_tuning_on_device(
    model: ExactModel, coder: TensorCoder, phase: str, wanted: Tensor | None, device: torch.device
) -> DeviceTuning:
    """Code whether a phase is tuned and its corrections, as `tuning.code_tuning`.

    The corrections of an untuned phase are zeros, so that the host need not know which one it is.
    """
    width, around = model.phases[phase].width, len(AROUND[phase])
    n, places = OUTPUTS * (width + 1), slope_places(around, device)
    table = torch.full((n + len(places),), model.tuning_table, dtype=torch.int16, device=device)
    given = torch.zeros_like(table) if wanted is None else tuning_symbols(wanted, width).to(device)
    flag = coder.code(table[:1], torch.full_like(table[:1], wanted is not None))
    got = coder.code(torch.where(flag != 0, table, NO_TABLE), given)
    delta = got.clamp(-WEIGHT_MAX, WEIGHT_MAX).int()
    layer = delta[:n].view(OUTPUTS, width + 1)
    weight = layer[:, :width].to(torch.int8).contiguous().view(OUTPUTS, width, 1, 1)
    shift = torch.full((OUTPUTS,), SHIFT, dtype=torch.int32, device=device)
    conv = IntConv.trusted(weight, layer[:, width] * BIAS_UNIT, shift, head=True)
    slopes = torch.zeros((2, 3, around + 2), dtype=torch.int32, device=device)
    slopes.view(-1).index_copy_(0, places, delta[n:])
    return DeviceTuning(conv, slopes[0, :, :around].T.contiguous(), slopes[:, :, around:].contiguous())


@functools.cache
def slope_places(around: int, device: torch.device) -> Tensor:
    """Places of the slopes there are among [2, 3, around + 2]: int64, kept, as bringing them there waits."""
    return used_slopes(around).flatten().nonzero()[:, 0].to(device)


class HostStep(Step):
    """A step whose networks run on a device while their results come to the host, for fitting."""

    def parameters(self, phase: str, windows: list[Window]) -> Parameters:
        """As `Step.parameters`, on the CPU."""
        p = super().parameters(phase, windows)
        return Parameters(p.base.cpu(), p.out.cpu(), p.features.cpu())

    def around(self, phase: str, windows: list[Window]) -> Tensor:
        """As `Step.around`, on the CPU."""
        return super().around(phase, windows).cpu()


def fit_tuning_from_device(
    step: Step, phase: str, whole: Parameters | None, target: Tensor, effort: int
) -> Tensor | None:
    """`tuning.fit_tuning` where planes and networks are on a device.

    The fit itself is the host's, on few positions.
    """
    host = HostStep(step.model, step.planes, step.misses, step.lossy, step.level_class, step.quality)
    return fit_tuning(host, phase, whole, target.cpu(), effort)
