"""The files that are cut: ours in each mode, and those of progressive rivals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import rivals
from bench.common import Rgb
from vbc.bitstream.errors import Truncated
from vbc.bitstream.geometry import LOSSY_LEVELS, level_of
from vbc.codec.settings import TUNES, Tune

if TYPE_CHECKING:
    from vbc.codec.model import Model

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Cuts: of lossless files shares of the bytes of our layered file, of lossy ones of their own."""
RATES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.4)
"""Cuts of lossy files in bits per pixel: what published progressive codecs cover."""
LAYERED = "layered"
LOSSLESS_MODES: dict[str, dict[str, Any]] = {
    LAYERED: {},
    "archival": {"levels": 0},
    "layered, 1 refinement": {"refinements": 1},
    "progressive": {"progressive": True},
}
"""Name of our mode, and its options of `vbc.codec.encode` besides `lossless`."""
LOSSY_QUALITIES = (60, 90)
REFINEMENTS = (0, 1, 2)
LOSSY_JPEGS = ((75, "4:2:0"), (95, "4:4:4"))
"""Quality and subsampling."""
JPEG2000_LAYERS = "jpeg2000 layers"
JXL_OPTIONS = {
    "jpeg_xl -p e3": ("-d", "0", "-p", "-e", "3"),
    "jpeg_xl -p e9 -C 6": ("-d", "0", "-p", "-e", "9", "-C", "6"),
    "jpeg_xl -p d1": ("-d", "1", "-p", "-e", "7"),
}
"""Progressive JPEG XL: lossless, fast and small (in YCgCo), and lossy. A quick run takes the first."""

Decode = Callable[[bytes], Rgb | None]


@dataclass(frozen=True)
class Stream:
    """A file that is cut.

    decode: the picture of a prefix, None where there is none. first_bytes: where the first whole picture is
    complete, None where only trying tells. level_ends: of ours, in the order of the file, level number ->
    bytes from which on it can be decoded. tune, quality, refinements: of our lossy files, None of all others.
    """

    name: str
    data: bytes
    decode: Decode
    first_bytes: int | None = None
    level_ends: dict[int, int] | None = None
    tune: Tune | None = None
    quality: int | None = None
    refinements: int | None = None

    @property
    def stage_ends(self) -> list[int]:
        """Of our lossy file the bytes at which its first stage and each refinement is complete."""
        if self.level_ends is None or self.refinements is None:
            return []
        last_levels = (level_of(r, LOSSY_LEVELS) for r in range(self.refinements + 1))
        # a quality that is too low for all refinements that were asked for has fewer
        return [self.level_ends[level] for level in last_levels if level in self.level_ends]


def decode_ours_prefix(data: bytes, model: "Model") -> Rgb | None:
    """The best picture of a prefix; None before the end of the first group."""
    try:
        return rivals.decode_ours(data, model, allow_partial=True)
    except Truncated:
        return None


def our_file(name: str, data: bytes, model: "Model", **about: Any) -> Stream:
    """A stream of one of our files; about: tune, quality and refinements of a lossy one."""
    from vbc.codec import api

    ends = dict(sorted(api.read_info(data).level_ends.items(), key=lambda level_and_end: level_and_end[1]))
    decode = partial(decode_ours_prefix, model=model)
    return Stream(f"{rivals.OURS} {name}", data, decode, min(ends.values()), ends, **about)


def our_lossless(rgb: Rgb, model: "Model", quality: int | None) -> list[Stream]:
    """Our lossless file in each mode, the layered one first; quality: of the lossy levels."""
    files = []
    for mode, options in LOSSLESS_MODES.items():
        data = rivals.encode_ours(rgb, model, lossless=True, quality=quality, **options)
        files.append(our_file(mode, data, model))
    return files


def lossless_rivals(rgb: Rgb, budgets: Sequence[int], quick: bool) -> Iterator[Stream]:
    """Each rival's file of one image; budgets: bytes, rising, where the layers of JPEG 2000 shall end.

    Of JPEG XL's there is a lossy one too.
    """
    yield layered_jpeg2000(rgb, budgets)
    if rivals.installed("flif"):
        decode = partial(rivals.decode_or_none, rivals.decode_flif, shape=rgb.shape)
        yield Stream("flif interlaced", rivals.encode_flif(rgb, "-I"), decode)
    if rivals.installed("cjxl", "djxl"):
        decode = partial(rivals.decode_or_none, rivals.decode_djxl, shape=rgb.shape)
        for name, options in list(JXL_OPTIONS.items())[: 1 if quick else None]:
            yield Stream(name, rivals.encode_cjxl(rgb, *options), decode)


def layered_jpeg2000(rgb: Rgb, budgets: Sequence[int]) -> Stream:
    """Reversible JPEG 2000 with a layer that ends at each number of bytes, rising, and a last exact one."""
    data, ends = rivals.encode_layers(rgb, budgets)
    return Stream(JPEG2000_LAYERS, data, lambda head: rivals.decode_layers(data, ends, len(head)), ends[0])


def progressive_jpegs(rgb: Rgb) -> Iterator[Stream]:
    """A middling and a good progressive JPEG."""
    decode = partial(rivals.decode_jpeg_prefix, original=rgb)
    for quality, subsampling in LOSSY_JPEGS:
        codec = rivals.jpeg(quality, subsampling)
        data = codec.encode(rgb)
        yield Stream(f"{codec.name} {codec.setting}", data, decode, rivals.end_of_first_scan(data))


def lossy_name(tune: Tune, quality: int, refinements: int) -> str:
    """Of our lossy file, without the codec's name; the default tuning is not named."""
    plural = "" if refinements == 1 else "s"
    stages = f", {refinements} refinement{plural}" if refinements else ""
    return f"q{quality}{stages}" + ("" if tune == TUNES[0] else f" --tune {tune}")


def our_lossy(rgb: Rgb, models: dict[Tune, "Model"], quick: bool) -> Iterator[Stream]:
    """Our lossy files of each tuning, quality and number of refinements; quick: quality 60, and 0 and 2."""
    for tune, model in models.items():
        for quality in LOSSY_QUALITIES[: 1 if quick else None]:
            for refinements in REFINEMENTS[:: 2 if quick else 1]:
                about: dict[str, Any] = {"tune": tune, "quality": quality, "refinements": refinements}
                data = rivals.encode_ours(rgb, model, **about)
                yield our_file(lossy_name(tune, quality, refinements), data, model, **about)
