"""A map of qualities adjusted to what the eye sees: finer where errors show, coarser where nothing does.

`values_for_the_eye` guesses from the original where errors will show. Here the picture is coded, and what
became of each square is looked at. Nothing here decides what a bit means.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec.flow.encode_levels import encode_lossy, lossy_picture
from vbc.codec.lossy.analysis import BAND_BLOCKS
from vbc.codec.lossy.latents import LATENT_UNIT, STEP_UNIT
from vbc.codec.lossy.map_coding import SQUARE_BLOCKS
from vbc.codec.lossy.model import LossyModel
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.lossy.square_errors import square_errors
from vbc.codec.model import Model

ERROR_SLOPE = 3.0
"""Units of quality that a square gains for each octave of error per latent in use. An octave of error is 8 to
16 units; but maps cost bits, and no bits mend all of an error."""
UNSEEN = 0.05
"""Added to all errors; 1 is hardly visible. What nobody sees is no reason to move a square."""
IDLE_LATENTS = 8.0
"""Added to the latents in use of each square, of 768: one that is all flat costs hardly anything."""
MAX_MOVE = 12.0
"""Units of quality that a square is moved by at most."""


def adjusted(model: Model, picture: Tensor, quality: QualityMap, change: Tensor) -> Tensor:
    """The change after a look at the coded picture: squares are moved by what is seen of their errors.

    picture: uint8 RGB [1, 3, H, W]. quality: what it is coded with. change: float32 [1, 1, h, w], what the
    values of that map are before rounding, as `change_for_the_eye`. Likewise returned, of the same mean.
    """
    _, latents = encode_lossy(picture, model, LOSSY_LEVELS, quality)
    decoded = lossy_picture(model, latents, (picture.shape[-2], picture.shape[-1]), quality)
    move = moves(square_errors(picture, decoded), latents_in_use(model.lossy, latents, quality))
    return change + move


def moves(errors: Tensor, in_use: Tensor) -> Tensor:
    """Units of quality that squares are moved by, for equal error per latent in use: float32 [1, 1, h, w].

    errors, in_use: likewise, as `square_errors` and `latents_in_use`. A finer step lowers the error of a
    square by a share of it, and costs as many bits as there are latents in use. So where one over the other
    is the same everywhere, a bit does the same good everywhere. Their mean is 0.
    """
    octaves = torch.log2(errors + UNSEEN) - torch.log2(in_use + IDLE_LATENTS)
    move = (ERROR_SLOPE * (octaves - octaves.mean())).clamp_(-MAX_MOVE, MAX_MOVE)
    return move - move.mean()


def latents_in_use(model: LossyModel, latents: Tensor, quality: QualityMap) -> Tensor:
    """How many latents of each square are larger than their step: float32 [1, 1, h, w] on the host.

    A latent of the size of a step counts as half a one. latents: int16 [1, 192, h8, w8], eighths. Works
    through bands.
    """
    height, width = latents.shape[-2:]
    qualities = quality.on_blocks(height, width, latents.device)[0, 0]
    counts = torch.empty(height, width)
    rows = max(1, BAND_BLOCKS // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        step = model.step[qualities[band]].mul(LATENT_UNIT / STEP_UNIT).cpu()
        size = latents[0, :, band].permute(1, 2, 0).cpu().float().abs_()
        counts[band] = (size / (size + step)).sum(-1)
    extended = F.pad(counts[None, None], (0, -width % SQUARE_BLOCKS, 0, -height % SQUARE_BLOCKS), "replicate")
    return F.avg_pool2d(extended, SQUARE_BLOCKS) * SQUARE_BLOCKS**2
