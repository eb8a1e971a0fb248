"""Files decoded together on a device: pictures that one by one would not fill it.

Pictures of one size go through networks, predictor and lanes as one batch, each group in all of them at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import Header
from vbc.bitstream.errors import FormatError
from vbc.bitstream.source import Source
from vbc.codec.flow.decode_plan import make_plan, read_packets
from vbc.codec.flow.decode_state import BASE_LEVEL, DecodeState
from vbc.codec.model import Model
from vbc.codec.pipeline import check_complete, decode_image

PIXELS_AT_ONCE = 1 << 24
"""Pixels of the pictures that are decoded together: what fills a GPU, at some 100 bytes each."""
FILES_AT_ONCE = 256
"""Files that are open at a time; systems allow a process 1024 or less."""


def batches(headers: Sequence[Header]) -> list[list[int]]:
    """Numbers of files that are decoded together, ascending in each batch.

    Together go pictures of one size, quality, kind and model, and the same groups. Alone go those with alpha
    or 16 bits, those that may be packed pictures, and those too large for company.
    """
    found: list[list[int]] = []
    open_batches: dict[object, list[int]] = {}
    for i, header in enumerate(headers):
        most = min(FILES_AT_ONCE, PIXELS_AT_ONCE // (header.width * header.height))
        key = _alike(header) if most > 1 else None
        batch = None if key is None else open_batches.get(key)
        if batch is None or len(batch) == most:
            batch = []
            found.append(batch)
            if key is not None:
                open_batches[key] = batch
        batch.append(i)
    return found


def _alike(header: Header) -> object | None:
    """What files that are decoded together have in common; None for one that is decoded alone."""
    levels = container.levels_present(header)
    if header.has(container.ALPHA) or header.bit_depth == 16 or not levels or levels[-1] == BASE_LEVEL:
        return None
    groups = frozenset((p.level, p.part) for p in header.packets if p.level and p.part)
    kind = header.quality, header.flags, header.model_hash, header.tables_hash
    return header.width, header.height, kind, groups


@torch.no_grad()
def decode_together(sources: Sequence[Source], headers: Sequence[Header], model: Model) -> Tensor:
    """The whole pictures of the files of a batch: uint8 RGB [B, 3, H, W], channels last.

    Raises what `pipeline.decode_image` raises for the first file that it cannot decode.
    """
    try:
        return _decode(sources, headers, model)
    except FormatError:
        for source in sources:
            decode_image(source, model=model)
        raise


def _decode(sources: Sequence[Source], headers: Sequence[Header], model: Model) -> Tensor:
    plan = make_plan(headers[0], None, None)
    packets = []
    for source, header in zip(sources, headers, strict=True):
        model.check(header)
        check_complete(source, header)
        packets.append(read_packets(source, header, plan, allow_partial=False))
    state = DecodeState(model, headers[0], n_pictures=len(headers))
    for level in plan.levels:
        of_level = [of_one[level] for of_one in packets]
        groups = {part - 1: [parts[part] for parts in of_level] for part in of_level[0] if part}
        state = state.advance_together(level, groups, [parts.get(0) for parts in of_level])
    return state.picture(plan.levels[-1], plan.wanted)
