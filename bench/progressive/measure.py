"""All that is measured of one image: every file, every cut. Runs in a process of its own."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from bench import common, rivals
from bench.common import Rgb, Row
from bench.progressive import dedicated, streams
from bench.progressive.streams import RATES, SHARES, Decode, Stream
from bench.progressive.summary import order
from bench.rate_distortion import EYE
from vbc.bitstream import container
from vbc.codec.settings import TUNES, Tune

FIRST_IMAGES = 3
"""How many images the time to the first picture is measured on."""
FIRST_REPEATS = 5
"""How often the first picture is decoded; the median time counts."""
MOST_PACKETS = 48
"""Of a file with more packets of groups, so many are looked at, evenly spaced, and the last."""
BETWEEN = (0.25, 0.5, 0.75)
"""Cuts between the ends of two stages, as shares of the bytes from one to the next."""


class Judge:
    """Quality of pictures of one photograph. A picture that comes again is not scored again."""

    def __init__(self, photo: common.Photo):
        self.photo = photo
        self._scores: dict[bytes, float | None] = {}

    def row(self, rgb: Rgb | None, n_bytes: int, eye: bool = True) -> Row:
        """What a picture is worth; `decoded` is false where there was none.

        psnr_db is None for none and for an exact one; ssimulacra2, too, where `eye` is false.
        """
        row = {
            "n_bytes": n_bytes,
            "rate_bpp": 8 * n_bytes / self.photo.n_pixels,
            "decoded": rgb is not None,
        }
        if rgb is None:
            return row | {"psnr_db": None, EYE: None, "exact": False}
        psnr = common.psnr(self.photo.rgb, rgb)
        return row | {"psnr_db": psnr, EYE: self._score(rgb) if eye else None, "exact": psnr is None}

    def _score(self, rgb: Rgb) -> float | None:
        key = hashlib.sha256(rgb.tobytes()).digest()
        if key not in self._scores:
            self._scores[key] = common.ssimulacra2(self.photo.rgb, rgb)
        return self._scores[key]


def measure_image(file: Path, model_path: Path | None, quality: int | None, quick: bool) -> list[Row]:
    """All rows of one image but the times.

    quality: of the lossy levels of our lossless files; None: the codec's own.
    """
    import torch

    torch.set_num_threads(1)
    photo = common.load_photo(file)
    judge = Judge(photo)
    rows = [
        *lossless_rows(judge, model_path, quality, quick),
        *lossy_rows(judge, model_path, quick),
    ]
    return [{"image": photo.name, "n_pixels": photo.n_pixels} | row for row in rows]


def lossless_rows(judge: Judge, model_path: Path | None, quality: int | None, quick: bool) -> Iterator[Row]:
    """Lossless files, and JPEGs beside them, cut at shares of our layered file; dedicated files of that
    size."""
    from vbc.codec import api

    rgb = judge.photo.rgb
    model = api.load(model_path)
    ours = streams.our_lossless(rgb, model, quality)
    layered = ours[0]
    budgets = [int(share * len(layered.data)) for share in SHARES]
    for stream in [*ours, *streams.lossless_rivals(rgb, budgets[:-1], quick)]:
        rows = [*at_bytes(judge, stream, "prefix", budgets), *at_levels(judge, stream), whole(judge, stream)]
        yield from rows
        yield order(stream.name, rows)
    for stream in streams.progressive_jpegs(
        rgb
    ):  # whole, and by their own bytes, they are among the lossy ones
        yield from at_bytes(judge, stream, "prefix", budgets)
    yield from at_packets(judge, layered)
    for curve in dedicated.dedicated_codecs(model, quick):
        fits = dedicated.best_fits(curve, rgb, budgets)
        for share, fit in zip(SHARES, fits, strict=True):
            if fit is not None:
                codec, coded = fit
                about = {"codec": codec.name, "what": "dedicated", "share": share, "setting": codec.setting}
                yield about | judge.row(codec.decode(coded), len(coded))


def lossy_rows(judge: Judge, model_path: Path | None, quick: bool) -> Iterator[Row]:
    """Lossy files, cut at shares of their own bytes, at rates and between stages; ours with their excess."""
    from vbc.codec import api

    rgb, n_pixels = judge.photo.rgb, judge.photo.n_pixels
    models = {tune: api.load(model_path, tune=tune) for tune in TUNES}
    curves: dict[Tune, list[Row]] = {}
    for tune, model in models.items():
        curves[tune] = []
        for codec in dedicated.our_curve(model, tune, quick):
            coded = codec.encode(rgb)
            about = {"codec": codec.name, "what": "curve", "setting": codec.setting, "tune": tune}
            curves[tune].append(about | judge.row(codec.decode(coded), len(coded)))
        yield from curves[tune]
    rate_budgets = [int(rate * n_pixels / 8) for rate in RATES]
    for stream in [*streams.our_lossy(rgb, models, quick), *streams.progressive_jpegs(rgb)]:
        own = [int(share * len(stream.data)) for share in SHARES]
        rows = [
            *at_bytes(judge, stream, "own_prefix", own),
            *at_stages(judge, stream),
            whole(judge, stream),
            *at_rates(judge, stream, rate_budgets),
        ]
        if stream.tune is not None:
            about_file = {"tune": stream.tune, "quality": stream.quality, "refinements": stream.refinements}
            rows = [row | about_file | dedicated.excess(row, curves[stream.tune]) for row in rows]
        yield from rows
        yield order(stream.name, rows)
    yield from at_rates(judge, streams.layered_jpeg2000(rgb, rate_budgets), rate_budgets)


def cut_row(judge: Judge, stream: Stream, what: str, n_bytes: int, eye: bool = True) -> Row:
    """The picture of the first bytes of a file."""
    about = {"codec": stream.name, "what": what, "file_bytes": len(stream.data)}
    return about | judge.row(stream.decode(stream.data[:n_bytes]), min(n_bytes, len(stream.data)), eye)


def at_bytes(judge: Judge, stream: Stream, what: str, budgets: Sequence[int]) -> Iterator[Row]:
    """The file cut at the bytes that stand for the shares."""
    for share, budget in zip(SHARES, budgets, strict=True):
        yield cut_row(judge, stream, what, budget) | {"share": share}


def at_levels(judge: Judge, stream: Stream) -> Iterator[Row]:
    """Our file cut at the end of each level; nothing of others."""
    for level, end in (stream.level_ends or {}).items():
        yield cut_row(judge, stream, "level", end) | {"level": level, "share": end / len(stream.data)}


def at_stages(judge: Judge, stream: Stream) -> Iterator[Row]:
    """Our lossy file cut at the end of its first stage (0) and of each refinement (1, 2), and between
    (0.5)."""
    ends = stream.stage_ends
    for stage, end in enumerate(ends):
        yield cut_row(judge, stream, "stage", end) | {"stage": stage, "share": end / len(stream.data)}
    for stage, (end, following) in enumerate(pairwise(ends)):
        for part in BETWEEN:
            n_bytes = round(end + part * (following - end))
            share = n_bytes / len(stream.data)
            yield cut_row(judge, stream, "stage", n_bytes) | {"stage": stage + part, "share": share}


def at_rates(judge: Judge, stream: Stream, budgets: Sequence[int]) -> Iterator[Row]:
    """The file cut at each number of bits per pixel that it has; PSNR alone, as of published curves."""
    for rate, budget in zip(RATES, budgets, strict=True):
        if budget <= len(stream.data):
            yield cut_row(judge, stream, "rate", budget, eye=False) | {"rate": rate}


def whole(judge: Judge, stream: Stream) -> Row:
    """The whole file."""
    rate_bpsp = 8 * len(stream.data) / judge.photo.rgb.size
    return cut_row(judge, stream, "file", len(stream.data)) | {"rate_bpsp": rate_bpsp}


def at_packets(judge: Judge, stream: Stream) -> Iterator[Row]:
    """Our file cut at the end of each packet that holds a group, PSNR alone: there are many."""
    header = container.unpack_header(stream.data)
    groups = [i for i, packet in enumerate(header.packets) if packet.level and packet.part]
    step = -(-len(groups) // MOST_PACKETS)
    for i in sorted({*groups[::step], groups[-1]}):
        packet, end = header.packets[i], header.ends[i]
        about = {"level": packet.level, "part": packet.part, "share": end / len(stream.data)}
        yield cut_row(judge, stream, "packet", end, eye=False) | about


def first_pictures(file: Path, model_path: Path | None, quality: int | None, quick: bool) -> Iterator[Row]:
    """Bytes and time to the first picture of one image, for ours and each rival; one thread."""
    from vbc.codec import api

    photo = common.load_photo(file)
    judge = Judge(photo)
    ours = streams.our_lossless(photo.rgb, api.load(model_path), quality)
    budgets = [int(share * len(ours[0].data)) for share in SHARES[:-1]]
    theirs = [*streams.lossless_rivals(photo.rgb, budgets, quick), *streams.progressive_jpegs(photo.rgb)]
    for stream in [*ours, *theirs]:
        n_bytes = stream.first_bytes or shortest_prefix(stream.data, stream.decode)
        rgb, time_s = common.timed(partial(stream.decode, stream.data[:n_bytes]), FIRST_REPEATS)
        row = {"image": photo.name, "n_pixels": photo.n_pixels, "codec": stream.name, "what": "first"}
        yield row | {"time_ms": 1000 * time_s} | judge.row(rgb, n_bytes)


def shortest_prefix(data: bytes, decode: Decode) -> int:
    """Bytes of the shortest prefix that gives a picture, found by bisection; all of them where none does."""
    low, high = 0, len(data)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decode(data[:middle]) is None else (low, middle)
    return high


def is_exact(row: Row) -> bool:
    """Whether a row is not of a whole lossless file of ours, or of one that is exact."""
    modes = {f"{rivals.OURS} {mode}" for mode in streams.LOSSLESS_MODES}
    return row["what"] != "file" or row["codec"] not in modes or bool(row["exact"])
