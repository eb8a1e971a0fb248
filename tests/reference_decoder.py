"""The reference decoder: a .vbc file to pixels with numpy and the standard library.

It was written from docs/format.md alone and imports nothing of vbc.

python tests/reference_decoder.py FILE.vbc WEIGHTS.safetensors [-o OUT.npy] [--levels N] [--native]
                                  [--partial] [--trace]
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reference import container
from reference.container import File
from reference.errors import Corrupt, ModelMissing, Truncated
from reference.exact import Grids
from reference.geometry import FIRST_EXACT, LOSSY_LEVELS, order
from reference.lanes import Say
from reference.lossy import LossyDecoder
from reference.planes import read_planes, shrink
from reference.weights import Array, Weights


@dataclass(frozen=True)
class Picture:
    """What a file holds, or a part of its levels.

    rgb: uint8 [3, H, W], of 16-bit samples the upper bytes; alpha: uint8 [H, W]; low: uint8 [C, H, W], the
    low bytes, alpha's last. The last two are None where the file does not have them or they are not used.
    gray: whether G stands for all three.
    """

    rgb: Array
    alpha: Array | None
    low: Array | None
    gray: bool

    def sha256(self) -> str:
        """Of RGB, plane by plane, then alpha, then the low bytes."""
        digest = hashlib.sha256()
        for part in (self.rgb, self.alpha, self.low):
            if part is not None:
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def samples(self) -> Array:
        """[H, W, C] of all channels there are, uint8 or uint16."""
        planes = [*(self.rgb[1:2] if self.gray else self.rgb), *([] if self.alpha is None else [self.alpha])]
        upper: Array = np.stack(planes, -1)
        if self.low is None:
            return upper
        deep: Array = (upper.astype(np.uint16) << 8) | np.stack(list(self.low), -1)
        return deep


def silent(line: str) -> None:
    """No trace."""


def decode(
    data: bytes,
    weights: Weights,
    *,
    levels: int | None = None,
    native: bool = False,
    partial: bool = False,
    say: Say = silent,
) -> Picture:
    """Decode the first `levels` levels of a file (default: all).

    native: levels 1 and 2 at 1/4 and 1/2 of the size. partial: make do with the usable packets of a prefix or
    of a damaged file; otherwise those raise Truncated and Corrupt. say: takes the lines of a trace.
    """
    file = File(data)
    gray = file.header.channels == 1
    header, geometry = file.header, file.geometry
    if (header.model_hash, header.tables_hash) != (weights.model_hash, weights.tables_hash):
        raise ModelMissing("the file was made with other weights")
    if not file.levels:
        raise Corrupt("the file has no levels")
    if levels is None and not partial and len(data) < file.end:
        raise Truncated(f"{file.end} bytes needed, {len(data)} there")
    payloads = file.usable(file.levels[:levels], partial)
    alpha = read_alpha(file, weights, say)
    exact = {key: body for key, body in payloads.items() if key[0] not in LOSSY_LEVELS}
    check_packed(file, exact)

    lossy = None
    if not header.archival:
        decoder = LossyDecoder(weights, geometry, header.quality, payloads, say)
        last = max((level for level, _ in payloads), key=order, default=0)
        if native and last in (1, 2):
            small = None if alpha is None else shrink(alpha, 8 // (2 * last))
            return Picture(decoder.native_picture(last), small, None, gray)
        lossy = decoder.picture()
    rgb = lossy
    if exact or lossy is None:
        rgb = Grids(weights, geometry, file.final_quality, header.bound, lossy, set(payloads), say).decode(
            exact
        )
    assert rgb is not None
    low = None
    if len(payloads) == len(file.level_packets):
        low = read_low(file, weights, rgb, alpha, partial, say)
    return Picture(rgb, alpha, low, gray)


def check_packed(file: File, exact: dict[tuple[int, int], bytes]) -> None:
    """Raises Corrupt where level 4 and what else the index has do not go together."""
    first = exact.get((FIRST_EXACT, 1))
    if first is None:
        return
    alone = file.levels[-1] == FIRST_EXACT
    packed = first[:1] == b"\4"
    if packed and not alone:
        raise Corrupt("exact levels beside a packed picture")
    if file.header.flags & container.LOSSLESS and alone and not packed and file.geometry.top:
        raise Corrupt("a lossless file lacks exact levels")


def read_alpha(file: File, weights: Weights, say: Say) -> Array | None:
    """The alpha plane, or None."""
    packet = file.single(container.ALPHA)
    if packet is None:
        return None
    return read_planes(file.payload(packet), file.geometry.grids[0], [None], weights, say)[0]


def read_low(
    file: File, weights: Weights, rgb: Array, alpha: Array | None, partial: bool, say: Say
) -> Array | None:
    """The low bytes uint8 [C, H, W], or None where they are not there."""
    packet = file.single(container.LOW)
    if packet is None:
        return None
    try:
        payload = file.payload(packet)
    except (Truncated, Corrupt):
        if partial:
            return None
        raise
    references = [*rgb[: file.header.channels], *([] if alpha is None else [alpha])]
    return np.stack(read_planes(payload, file.geometry.grids[0], references, weights, say))


def main() -> None:
    """Decode a file, print its size and hash, and write its samples if wanted."""
    parser = argparse.ArgumentParser(description="Decode a .vbc file with numpy alone.")
    parser.add_argument("file", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="a .npy file: [H, W, C], uint8 or uint16")
    parser.add_argument("--levels", type=int, help="how many of the file's levels to use")
    parser.add_argument("--native", action="store_true", help="levels 1 and 2 at their own size")
    parser.add_argument("--partial", action="store_true", help="make do with the usable packets")
    parser.add_argument("--trace", action="store_true", help="print intermediate values")
    options = parser.parse_args()
    picture = decode(
        options.file.read_bytes(),
        Weights(options.weights.read_bytes()),
        levels=options.levels,
        native=options.native,
        partial=options.partial,
        say=print if options.trace else silent,
    )
    samples = picture.samples()
    print(*samples.shape, samples.dtype, picture.sha256())
    if options.output:
        np.save(options.output, samples)


if __name__ == "__main__":
    main()
