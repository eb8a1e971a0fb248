"""The whole dataflow, both directions: image -> latents and grids -> groups -> lanes -> packets, and back.

See docs/architecture.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, Header, Limits
from vbc.bitstream.errors import Corrupt, FormatError, Truncated
from vbc.bitstream.geometry import LOSSY_LEVELS, is_bins, is_lossy, refinements_of
from vbc.bitstream.source import Buffer, Source, as_source
from vbc.codec.extra.carried import (
    encode_alpha,
    encode_low,
    pixel_hash,
    read_alpha,
    read_low,
    same_planes,
    shrink,
)
from vbc.codec.files.cutting import cut_file, described
from vbc.codec.files.image_io import Metadata
from vbc.codec.files.orientation import orientation_alone
from vbc.codec.flow.choose_quality import choose_quality
from vbc.codec.flow.decode_plan import DecodePlan, make_plan, read_packets
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.flow.encode_levels import (
    Packets,
    Progress,
    encode_exact,
    encode_lossy,
    encode_lossy_below,
    geometry_of,
    lossy_picture,
    n_bytes,
)
from vbc.codec.flow.encode_within import encode_lossy_within
from vbc.codec.flow.find_regions import with_regions
from vbc.codec.flow.packet_order import order_for
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model
from vbc.codec.regions import Region
from vbc.codec.settings import EncodeSettings


class SelfCheckFailed(RuntimeError):
    """The encoder's own decode of a lossless file differs from the image.

    A fault of this program or machine.
    """


@dataclass(frozen=True)
class Decoded:
    """A picture, or a region of one, and what it was made from.

    rgb: uint8 [3, H, W], of 16-bit samples the upper bytes. levels: the level numbers used that are complete.
    exact: whether the pixels are the encoder's input. alpha: uint8 [H, W], None where the file has none. low:
    uint8 [C, H, W], the low bytes of 16-bit samples, alpha's last; None in 8-bit files and where levels or
    the low bytes are missing.
    """

    rgb: Tensor
    header: Header
    levels: tuple[int, ...]
    exact: bool
    alpha: Tensor | None = None
    low: Tensor | None = None


@torch.no_grad()
def encode_image(
    rgb: Tensor,
    *,
    model: Model,
    settings: EncodeSettings = EncodeSettings(),  # noqa: B008 # frozen
    metadata: Metadata | None = None,
    gray: bool = False,
    alpha: Tensor | None = None,
    low: Tensor | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Encode uint8 RGB [3, H, W].

    alpha: uint8 [H, W], always stored exactly. low: uint8 [C, H, W], the low bytes of 16-bit samples, whose
    upper bytes are `rgb` and `alpha`; C is 1 for gray, else 3, and one more with alpha. A lossy file leaves
    them out.

    A lossless file is at most 1 % and 1 KiB larger than its samples and metadata: where lossy levels would
    make it larger (on noise), they are of a lower quality, which the header names. It has been decoded and
    compared; so has a near-lossless one, which is a lossless one where that is smaller. Raises
    SelfCheckFailed where the comparison fails, RegionError where the picture does not have the regions of
    interest.
    """
    report = progress or (lambda stage, fraction: None)
    rgb = rgb.to(model.device)
    picture = rgb[None].contiguous(memory_format=torch.channels_last)
    geometry = geometry_of(picture)
    settings = with_regions(model, picture, settings)
    if settings.regions is not None:
        settings.regions.check(geometry.width, geometry.height)
    meta = metadata or Metadata()
    all_bits = settings.lossless or low is None
    low = low if settings.lossless else None
    channels, n_pixels = 1 if gray else 3, rgb[0].numel()
    before = [
        (container.ICC, meta.icc),
        (container.ALPHA, None if alpha is None else encode_alpha(alpha, model)),
    ]
    after: list[tuple[int, bytes | None]] = []
    if settings.lossless:
        after.append((container.LOW, None if low is None else encode_low(low, rgb, alpha, model)))
    if settings.has_exact:
        after.append((container.PIXEL_HASH, pixel_hash(picture, alpha, low)))

    def pack(levels: "EncodedLevels", meta: Metadata = meta) -> bytes:
        binned = any(is_bins(level) for level, _, _ in levels.exact)
        exact = settings.has_exact and all_bits and not (settings.near and binned)
        flags = exact * container.LOSSLESS | (not settings.levels) * container.ARCHIVAL
        flags |= binned * settings.bound << container.BOUND_SHIFT
        described = [(container.EXIF, meta.exif), (container.XMP, meta.xmp)]
        lossy, fine = levels.lossy, levels.exact
        if settings.regions is not None:
            refinements = refinements_of(level for level, _, _ in levels.lossy)
            here = replace(geometry, refinements=refinements, binned=binned)
            lossy, fine = (
                order_for(settings.regions, part, here, not settings.levels, settings.roi_first)
                for part in (lossy, fine)
            )
        packets = [*single(before), *lossy, *single(described), *fine, *single(after if exact else [])]
        return container.write_file(
            packets,
            width=geometry.width,
            height=geometry.height,
            channels=channels,
            quality=levels.quality,
            flags=flags,
            model_hash=model.hash,
            tables_hash=model.tables.digest,
            bit_depth=8 if low is None else 16,
        )

    quality = QualityMap(settings.asked_quality)  # an archival file's says nothing
    if settings.max_bytes is not None and not settings.has_exact:
        report("lossy", 0.0)
        levels = lossy_levels_within(picture, model, settings, pack, meta, settings.max_bytes)
    else:
        if settings.levels:
            quality = choose_quality(model, picture, settings).refined(settings.asked_refinements)
        levels = encode_levels(picture, model, settings, quality, report)
    data = pack(levels)
    if settings.has_exact and (settings.levels or settings.progressive):
        bytes_a_pixel = (channels + (alpha is not None)) * (1 if low is None else 2)
        limit = size_limit(bytes_a_pixel * n_pixels) + sum(meta.n_bytes().values())
        # exact levels grow as the lossy ones shrink, to plain samples at worst
        for exact_bytes in (n_bytes(levels.exact), channels * n_pixels + len(levels.exact)):
            if len(data) <= limit:
                break
            others = len(data) - n_bytes(levels.lossy) - n_bytes(levels.exact)
            without_bins = replace(settings, progressive=False)
            levels = encode_levels(
                picture, model, without_bins, quality, report, limit - others - exact_bytes
            )
            data = pack(levels)
    if settings.max_bytes is not None:
        source = as_source(data)
        data = cut_file(source, container.unpack_header(source), settings.max_bytes, None)
    header = container.unpack_header(data)
    if header.lossless or settings.near:
        report("check", 0.9)
        del levels, before, after
        check_decode(
            data, model, rgb[1:2] if gray else rgb, alpha, low, 0 if header.lossless else header.bound
        )
    report("done", 1.0)
    return data


@dataclass(frozen=True)
class EncodedLevels:
    """The packets of the levels, and the quality that the lossy ones were coded with."""

    quality: int
    lossy: Packets
    exact: Packets


def lossy_levels_within(
    picture: Tensor,
    model: Model,
    settings: EncodeSettings,
    pack: Callable[[EncodedLevels, Metadata], bytes],
    metadata: Metadata,
    max_bytes: int,
) -> EncodedLevels:
    """The best lossy levels for a file of so many bytes, in place of a quality. pack: makes the file.

    The metadata that count are those that `cut_file` leaves. Where nothing fits, levels that are too large.
    """
    exif, xmp = metadata.exif, metadata.xmp
    lengths = (None if block is None else len(block) for block in (exif, xmp))
    keep_exif, keep_xmp = described(lengths, max_bytes)
    if exif is not None and not keep_exif:
        exif = orientation_alone(exif)
    kept = replace(metadata, exif=exif, xmp=xmp if keep_xmp else None)

    def file_bytes(packets: Packets) -> int:
        return len(pack(EncodedLevels(0, packets, []), kept))

    quality, packets = encode_lossy_within(
        picture, model, settings.levels, settings.asked_refinements, settings.tune, file_bytes, max_bytes
    )
    return EncodedLevels(quality.base, packets, [])


def encode_levels(
    picture: Tensor,
    model: Model,
    settings: EncodeSettings,
    quality: QualityMap,
    report: Progress,
    max_lossy_bytes: int | None = None,
) -> EncodedLevels:
    """All levels of uint8 RGB [1, 3, H, W]. max_lossy_bytes: what the lossy ones may take, for that at a
    lower quality."""
    guide = None
    packets: Packets = []
    if settings.levels:
        report("lossy", 0.0)
        if max_lossy_bytes is None:
            keep_all = settings.has_exact
            packets, latents = encode_lossy(picture, model, settings.levels, quality, keep_all=keep_all)
        else:
            quality, packets, latents = encode_lossy_below(picture, model, quality, max_lossy_bytes)
        if settings.has_exact:
            guide = lossy_picture(model, latents, (picture.shape[-2], picture.shape[-1]), quality)
        del latents  # six bytes a pixel
    exact: Packets = []
    if settings.has_exact:
        effort, bound, values = settings.effort, settings.bound, settings.lossless
        exact = encode_exact(picture, model, guide, quality.final, effort, report, bound, values)
    return EncodedLevels(quality.base, packets, exact)


def single(units: list[tuple[int, bytes | None]]) -> Packets:
    """Packets of units that are no levels, those that are there."""
    return [(unit, 0, payload) for unit, payload in units if payload is not None]


def size_limit(n_bytes: int) -> int:
    """What a lossless file of so many bytes of samples takes at most, beside its metadata."""
    return n_bytes + n_bytes // 100 + 1024


def check_decode(
    data: bytes,
    model: Model,
    rgb: Tensor,
    alpha: Tensor | None = None,
    low: Tensor | None = None,
    bound: int = 0,
) -> None:
    """Raises SelfCheckFailed unless a fresh decode of the bytes gives the picture, or one with no sample
    further from it than the bound.

    rgb: uint8 [3, H, W], or [1, H, W] where the picture is gray, which is G.
    """
    try:
        decoded = decode_image(data, model=model)
    except FormatError as e:
        raise SelfCheckFailed(f"the file just written does not decode: {e}") from e
    have = decoded.rgb if len(rgb) == 3 else decoded.rgb[1:2]
    extra = ((decoded.alpha, alpha), (decoded.low, low))
    if not within(have, rgb, bound) or not all(same_planes(*pair) for pair in extra):
        raise SelfCheckFailed("the decoded picture differs from the image; nothing is written")


def within(a: Tensor, b: Tensor, bound: int) -> bool:
    """Whether no two samples, uint8, are further apart than the bound."""
    if not bound:
        return torch.equal(a, b)
    return bool((torch.maximum(a, b) - torch.minimum(a, b)).max() <= bound)


@torch.no_grad()
def decode_image(
    data: Buffer | Source,
    *,
    model: Model,
    levels: int | None = None,
    region: Region | None = None,
    native: bool = False,
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Decoded:
    """Decode the first `levels` levels that the file has (all by default), all of the picture or a region of
    it.

    native: levels 1 and 2 at 1/4 and 1/2 of the size. allow_partial: make do with the packets that are
    there and sound. Raises a FormatError, RegionError for a region outside the picture.
    """
    report = progress or (lambda stage, fraction: None)
    source = as_source(data)
    header = container.unpack_header(source, limits)
    model.check(header)
    plan = make_plan(header, levels, region)
    if levels is None and region is None and not allow_partial:
        check_complete(source, header)
    packets = read_packets(source, header, plan, allow_partial)
    state = DecodeState(model, header)
    for level in plan.levels:
        report("lossy" if is_lossy(level) else "exact", done_before(header, level))
        state = state.advance_parts(level, packets[level])
    decoded = finish(state, plan, source, region, native, levels, allow_partial)
    report("done", 1.0)
    return decoded


def finish(
    state: DecodeState,
    plan: DecodePlan,
    source: Source,
    region: Region | None = None,
    native: bool = False,
    levels: int | None = None,
    allow_partial: bool = False,
) -> Decoded:
    """The picture of what is decoded, with alpha and low bytes. Raises Truncated, Corrupt."""
    header, model = state.header, state.model
    complete = tuple(level for level in plan.levels if state.has(level, plan.wanted[level]))
    last = [level for level in plan.levels if state.done.get(level)][-1]
    window = None if region is None else window_of(region)
    alpha = read_alpha(source, header, model, window)
    rgb = state.picture(last, plan.wanted, native)[0]
    if native and last < LOSSY_LEVELS:
        return Decoded(rgb, header, complete, False, shrink(alpha, 1 << LOSSY_LEVELS - last))
    if window is not None:
        rgb = rgb[:, *window]
    exact = header.lossless and plan.levels == container.levels_present(header) == complete
    low = None
    if exact and header.bit_depth == 16:
        low = read_low(source, header, model, rgb, alpha, window, allow_partial)
        exact = low is not None
    return Decoded(rgb, header, complete, exact, alpha, low)


def done_before(header: Header, level: int) -> float:
    """About how much of a decode is done before a level, 0..1."""
    return 0.0 if is_lossy(level) else 0.25 / 4 ** header.geometry.grid_index(level)


def window_of(region: Region) -> tuple[slice, slice]:
    """Rows and columns of a region."""
    x, y, width, height = region
    return slice(y, y + height), slice(x, x + width)


def check_complete(source: Source, header: Header) -> None:
    """Raises Truncated unless all bytes of the file are there."""
    if source.n_bytes < header.file_bytes:
        levels = container.complete_levels(header, container.usable(header, source.n_bytes))
        raise Truncated(header.file_bytes, source.n_bytes, levels)


def verify(data: Buffer | Source, *, model: Model, limits: Limits = DEFAULT_LIMITS) -> None:
    """Check every CRC, decode every level, compare the pixel hash. Raises a FormatError."""
    source = as_source(data)
    decoded = decode_image(source, model=model, limits=limits)
    for i, packet in enumerate(decoded.header.packets):
        payload = container.read_packet(source, decoded.header, i)
        if packet.unit == container.PIXEL_HASH and decoded.exact:
            if pixel_hash(decoded.rgb[None], decoded.alpha, decoded.low)[: len(payload)] != bytes(payload):
                raise Corrupt("the pixels differ from their hash")
