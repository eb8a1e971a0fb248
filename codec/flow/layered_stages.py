"""How many refinements a layered lossless file has: those whose bits the exact levels give back, nearly."""

from dataclasses import replace

from torch import Tensor

from vbc.bitstream.geometry import LOSSY_LEVELS
from vbc.codec.flow.choose_quality import sample_of
from vbc.codec.flow.encode_levels import encode_exact, encode_lossy, lossy_picture, n_bytes
from vbc.codec.lossy.map_coding import SQUARE
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model

PRICE = 0.02
"""Share of a file that a refinement may cost beyond what the exact levels save by it. On photographs it costs
1.0 to 1.2 %, on noise 15 %. Nothing would be kept at 0: as an exact picture alone a file is smallest."""


def with_stages_that_pay(model: Model, picture: Tensor, quality: QualityMap) -> QualityMap:
    """The map with the first of its refinements only, as many as pay; without the others it is as coarse as
    those leave it.

    picture: uint8 RGB [1, 3, H, W]. Exact levels need all packets of the last refinement, so it is kept or
    dropped whole. From the last one on each is tried both ways, by coding a sample of the picture
    (`sample_of`) to the last bit at effort 0.
    """
    if not quality.refinements:
        return quality
    sample, values = picture, quality.values
    if min(picture.shape[-2:]) >= SQUARE:
        sample, values = sample_of(picture, quality.values)
    count = quality.refinements
    with_all = _n_bytes(model, sample, replace(quality, values=values))
    while count:
        without = _n_bytes(model, sample, replace(quality, values=values, refinements=count - 1))
        if with_all - without <= PRICE * without:
            break
        with_all, count = without, count - 1
    return replace(quality, refinements=count)


def _n_bytes(model: Model, sample: Tensor, quality: QualityMap) -> int:
    """Bytes of all levels of a picture uint8 RGB [1, 3, H, W]."""
    packets, latents = encode_lossy(sample, model, LOSSY_LEVELS, quality)
    height, width = sample.shape[-2:]
    guide = lossy_picture(model, latents, (height, width), quality)
    exact = encode_exact(sample, model, guide, quality.final, 0, lambda stage, fraction: None)
    return n_bytes(packets) + n_bytes(exact)
