"""Output layers tuned to one image: small integer corrections that a level's shared packet holds.

See docs/format.md, section 11.6, and docs/decisions/0002-tuned-output-layers.md; `tuning_fit` finds them.
"""

import functools

import torch
from torch import Tensor

from vbc.bitstream.tables import NO_TABLE
from vbc.codec.entropy.coder import Coder
from vbc.codec.exact.model import ExactModel, Tuning, n_around
from vbc.codec.pixels.interlace import PHASES
from vbc.kernels.conv import ACTIVATION_MAX, IntConv

OUTPUTS = 6
"""Three means, three log-scales."""
SHIFT = 8
"""A correction's unit: one activation step moves a mean by 2^-8 sixteenths."""
WEIGHT_MAX = 127
BIAS_UNIT = 64
"""A bias counts as the weight of an activation of 64."""


def code_tuning(
    model: ExactModel,
    coder: Coder,
    phase: str,
    wanted: Tensor | None,
    device: torch.device,
    n_pictures: int = 1,
) -> tuple[Tuning, ...] | None:
    """Code whether a phase is tuned, then its corrections, for each picture; None where the host knows that
    there are none.

    coder: of as many groups as pictures. wanted: in an encoder, of one picture, the corrections as
    `fit_tuning` gives them, or None for none; ignored by a decoder. The corrections of an untuned phase are
    zeros where other pictures are tuned, and on another device than the CPU, as the host does not wait to
    see.
    """
    width, followed = model.phases[phase].width, n_around(phase)
    n, places = OUTPUTS * (width + 1), slope_places(followed, device)
    size = (n_pictures, n + len(places))
    table = torch.full(size, model.tuning_table, dtype=torch.int16, device=device)
    given = torch.zeros_like(table) if wanted is None else tuning_symbols(wanted, width).to(device)[None]
    flag = coder.code(table[:, :1], torch.full_like(table[:, :1], wanted is not None))
    got = coder.code(torch.where(flag != 0, table, NO_TABLE), given)
    if device.type == "cpu" and not flag.any():
        return None
    delta = got.clamp(-WEIGHT_MAX, WEIGHT_MAX).int()
    layers = delta[:, :n].reshape(n_pictures, OUTPUTS, width + 1)
    weights = layers[..., :width].to(torch.int8).contiguous().view(n_pictures, OUTPUTS, width, 1, 1)
    biases = layers[..., width] * BIAS_UNIT
    shift = torch.full((OUTPUTS,), SHIFT, dtype=torch.int32, device=device)
    slopes = torch.zeros((n_pictures, 2, 3, followed + 2), dtype=torch.int32, device=device)
    slopes.view(n_pictures, -1).index_copy_(1, places, delta[:, n:])
    return tuple(
        Tuning(
            IntConv.trusted(weight, bias, shift, head=True),
            of_all[0, :, :followed].T.contiguous(),
            of_all[:, :, followed:].contiguous(),
        )
        for weight, bias, of_all in zip(weights, biases, slopes, strict=True)
    )


def tuning_symbols_at_most(model: ExactModel) -> int:
    """Symbols of a level's shared packet with all phases tuned."""
    return sum(
        1 + OUTPUTS * (model.phases[p].width + 1) + int(used_slopes(n_around(p)).sum()) for p in PHASES
    )


@functools.cache
def slope_places(around: int, device: torch.device) -> Tensor:
    """Places of the slopes that there are among [2, 3, around + 2]: int64, kept: bringing them there
    waits."""
    return used_slopes(around).flatten().nonzero()[:, 0].to(device)


def tuning_symbols(wanted: Tensor, width: int) -> Tensor:
    """The corrections as they are coded, int16 [n]: of the last hidden layer, then the slopes that there
    are."""
    layer, slopes = wanted[..., : width + 1], wanted[..., width + 1 :]
    return torch.cat((layer.flatten(), slopes[used_slopes(slopes.shape[-1] - 2)])).to(torch.int16)


def used_slopes(around: int) -> Tensor:
    """Which slopes there are: bool [2 (mean, log-scale), 3 channels, around + 2].

    A mean follows what is around it (`model.n_around`) and the channels before, a log-scale those channels.
    """
    used = torch.zeros((2, 3, around + 2), dtype=torch.bool)
    used[0, :, :around] = True
    for c in range(3):
        used[:, c, around : around + c] = True
    return used


assert ACTIVATION_MAX * WEIGHT_MAX * 64 < 1 << 24, "a tuned layer of up to 64 features is always exact"
