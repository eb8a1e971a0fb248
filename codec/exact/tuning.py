"""Output layers tuned to one image: small integer corrections that a level's shared packet holds.

See docs/format.md, section 11.6, and docs/decisions/0002-tuned-output-layers.md; `tuning_fit` finds them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.bitstream.tables import NO_TABLE
from vbc.codec.entropy.coder import Coder
from vbc.codec.exact.model import MAX_DIRECTIONS, OUTPUTS, ExactModel, Tuning, n_around
from vbc.codec.pixels.interlace import PHASES
from vbc.kernels.conv import ACTIVATION_MAX, IntConv

SHIFT = 8
"""A correction's unit: one activation step moves a mean by 2^-8 sixteenths."""
WEIGHT_MAX = 127
BIAS_UNIT = 64
"""A bias counts as the weight of an activation of 64."""
VECTOR_SHIFT = 6
"""Vectors of a basis are in 2^-6 of a correction's unit, before they are made finer."""
SYMBOL_LIMIT = 1023
"""Largest symbol along a direction."""
FINEST = 6
"""Steps along directions are divided by up to 2^6: the more positions, the better they can be told."""
N_TUNING_TABLES = 23
NARROWEST_TABLE = -4.0
"""Octaves of the logistic scale that the first tuning table stands for; every further one is half an octave
wider."""
FLAG_TABLE = 10
"""The table of whether outputs are tuned, and how finely."""


@dataclass(frozen=True)
class CodedTuning:
    """Corrections of a phase as they are coded, int16: flags [6], 0 for an output that is not tuned, else one
    more than how often its steps are halved; symbols [6, directions]."""

    flags: Tensor
    symbols: Tensor


def code_tuning(
    model: ExactModel,
    coder: Coder,
    phase: str,
    level_class: int,
    wanted: CodedTuning | None,
    device: torch.device,
    n_pictures: int = 1,
) -> tuple[Tuning, ...] | None:
    """Code which outputs of a phase are tuned, then their corrections, for each picture; None where the host
    knows that there are none.

    coder: of as many groups as pictures. wanted: in an encoder, of one picture, the corrections as
    `fit_tuning` gives them, or None for none; ignored by a decoder. The corrections of untuned outputs are
    zeros.
    """
    basis, width, followed = model.tuning[phase], model.phases[phase].width, n_around(phase)
    table = torch.full(
        (n_pictures, OUTPUTS), model.tuning_table + FLAG_TABLE, dtype=torch.int16, device=device
    )
    flags = coder.code(table, torch.zeros_like(table) if wanted is None else wanted.flags.to(device)[None])
    fineness = (flags - 1).clamp(0, FINEST)[..., None]
    tables = (basis.scales[level_class] + 2 * fineness).clamp(0, N_TUNING_TABLES - 1) + model.tuning_table
    tables = torch.where(flags[..., None] > 0, tables, NO_TABLE).to(torch.int16).flatten(1)
    given = torch.zeros_like(tables) if wanted is None else wanted.symbols.to(device).flatten()[None]
    got = coder.code(tables, given).view(n_pictures, OUTPUTS, -1)
    if device.type == "cpu" and not (flags > 0).any():
        return None
    delta = corrections(basis.vectors[level_class], got, fineness)
    weights = delta[..., :width].to(torch.int8).contiguous().view(n_pictures, OUTPUTS, width, 1, 1)
    biases = delta[..., width] * BIAS_UNIT
    shift = torch.full((OUTPUTS,), SHIFT, dtype=torch.int32, device=device)
    slopes = delta[..., width + 1 :].reshape(n_pictures, 2, 3, followed + 2)
    return tuple(
        Tuning(
            IntConv.trusted(weight, bias, shift, head=True),
            of_all[0, :, :followed].T.contiguous(),
            of_all[:, :, followed:].contiguous(),
        )
        for weight, bias, of_all in zip(weights, biases, slopes, strict=True)
    )


def corrections(vectors: Tensor, symbols: Tensor, fineness: Tensor) -> Tensor:
    """Corrections int32 [B, 6, n], -127..127, of symbols [B, 6, directions] along vectors int32 [6, n,
    directions]; fineness: [B, 6, 1]."""
    limited = symbols.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT).int()
    total = (vectors * limited[:, :, None]).sum(-1, dtype=torch.int32)
    shift = (fineness + VECTOR_SHIFT).int()
    half = torch.ones_like(shift) << (shift - 1)
    return ((total + half) >> shift).clamp_(-WEIGHT_MAX, WEIGHT_MAX)


def tuning_symbols_at_most(model: ExactModel) -> int:
    """Symbols of a level's shared packet with all phases tuned."""
    return sum(OUTPUTS * (1 + model.tuning[p].scales.shape[-1]) for p in PHASES)


assert ACTIVATION_MAX * WEIGHT_MAX * 64 < 1 << 24, "a tuned layer of up to 64 features is always exact"
assert MAX_DIRECTIONS * SYMBOL_LIMIT * (1 << 15) + (1 << (VECTOR_SHIFT + FINEST)) < 1 << 31
