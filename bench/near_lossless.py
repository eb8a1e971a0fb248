"""Near-lossless: bytes, quality and speed of files whose samples are off by a bound at most, ours, rivals'.

Every one is decoded, and its largest error measured. Codecs with a nearly lossless mode that keeps no bound
are measured too. Ratios are to JPEG-LS at the same bound in the same run.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from bench import common, rivals
from bench.common import Results, Rgb, Row, say
from bench.rate_distortion import EYE
from bench.rivals import Codec

if TYPE_CHECKING:
    from vbc.codec.model import Model

BOUNDS = (1, 2, 4)
MAX_BOUND = 8
REPEATS = 3
"""Of each coding; the median counts. What takes more than `BUDGET_S` altogether is done once."""
BUDGET_S = 0.5
WARM_SIDE = 64
"""Side of the crop that each codec handles before it is timed."""
REFERENCE = rivals.JPEG_LS


def our_codec(model: "Model", bound: int) -> Codec:
    """Our file of a bound, without lossy levels; 0: the archival file, which is lossless."""
    if bound == 0:
        return rivals.ours(model, "archival", lossless=True, levels=0)
    return rivals.ours(model, "near", near=bound, levels=0)


def codecs(model: "Model", bounds: Sequence[int], quick: bool) -> Iterator[tuple[int | None, Codec]]:
    """All that are measured, with the bound that they keep; None for those that keep none."""
    for bound in bounds:
        yield bound, our_codec(model, bound)
        for codec in rivals.near_lossless(bound):
            yield bound, codec
    for codec in rivals.near_lossless_unbounded(quick):
        yield None, codec


def largest_error(a: Rgb, b: Rgb) -> int:
    """By how much a sample of R, G or B differs at most. Raises ValueError for different shapes."""
    if a.shape != b.shape:
        raise ValueError(f"a picture of {b.shape} for one of {a.shape}")
    return int(np.abs(a.astype(np.int16) - b).max())


def measure(bound: int | None, codec: Codec, photo: common.Photo) -> Row:
    """Size, quality and times of one image."""
    data, encode_s = common.timed(lambda: codec.encode(photo.rgb), REPEATS, BUDGET_S)
    rgb, decode_s = common.timed(lambda: codec.decode(data), REPEATS, BUDGET_S)
    return {
        "bound": bound,
        "codec": codec.name,
        "setting": codec.setting,
        "image": photo.name,
        "n_pixels": photo.n_pixels,
        "n_bytes": len(data),
        "rate_bpsp": 8 * len(data) / photo.rgb.size,
        "largest_error": largest_error(photo.rgb, rgb),
        "psnr_db": common.psnr(photo.rgb, rgb),
        EYE: common.ssimulacra2(photo.rgb, rgb),
        "encode_s": encode_s,
        "decode_s": decode_s,
    }


def summarise(rows: list[Row], reference: Row | None) -> Row:
    """One line for a codec at a bound: means over the images, speeds of all pixels over all seconds.

    kept: whether no sample is off by more than the bound; None for a codec that promises none. reference: the
    summary of JPEG-LS at this bound over as many images, None where there is none. ratio_bytes: of the bytes
    of all images; ratio_encode, ratio_decode: of the speeds.
    """
    n_pixels = sum(r["n_pixels"] for r in rows)
    error = max(r["largest_error"] for r in rows)
    bound = rows[0]["bound"]
    total: Row = {
        "bound": bound,
        "codec": rows[0]["codec"],
        "setting": rows[0]["setting"],
        "n_images": len(rows),
        "n_bytes": sum(r["n_bytes"] for r in rows),
        "rate_bpsp": common.mean(r["rate_bpsp"] for r in rows),
        "largest_error": error,
        "kept": None if bound is None else error <= bound,
        "psnr_db": common.mean(r["psnr_db"] for r in rows),
        EYE: common.mean(r[EYE] for r in rows),
        "encode_mps": n_pixels / sum(r["encode_s"] for r in rows) / 1e6,
        "decode_mps": n_pixels / sum(r["decode_s"] for r in rows) / 1e6,
    }
    ratios = {"ratio_bytes": "n_bytes", "ratio_encode": "encode_mps", "ratio_decode": "decode_mps"}
    return total | {
        ratio: None if reference is None else total[field] / reference[field]
        for ratio, field in ratios.items()
    }


def summaries(rows: list[Row]) -> Iterator[Row]:
    """Every codec at every bound; no ratio where JPEG-LS coded other images than the codec."""
    references = {r["bound"]: r for r in map(alone, reference_rows(rows)) if r["bound"] is not None}
    for (bound, _, _), found in common.group(rows, "bound", "codec", "setting").items():
        reference = references.get(bound)
        comparable = reference is not None and reference["n_images"] == len(found)
        yield summarise(found, reference if comparable else None)


def reference_rows(rows: list[Row]) -> list[list[Row]]:
    """The rows of JPEG-LS, bound by bound."""
    return list(common.group([r for r in rows if r["codec"] == REFERENCE], "bound").values())


def alone(rows: list[Row]) -> Row:
    """A summary without a reference."""
    return summarise(rows, None)


def bounds_of(text: str) -> list[int]:
    """Bounds from a list with commas, rising. Raises ArgumentTypeError for what is none."""
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise argparse.ArgumentTypeError(f"bounds are numbers with commas, not {text!r}") from None
    if not 0 <= found[0] <= found[-1] <= MAX_BOUND:
        raise argparse.ArgumentTypeError(f"a bound is 0 (lossless) to {MAX_BOUND}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a bound is broken or a codec fails."""
    p = common.parser("near_lossless", __doc__)
    p.add_argument(
        "--bounds",
        type=bounds_of,
        default=list(BOUNDS),
        metavar="N,...",
        help="largest errors of a sample; 0 is lossless [default: 1,2,4]",
    )
    p.add_argument("--threads", type=int, default=1, help="of our codec [default: 1, as the rivals]")
    args = common.parse(p, argv)
    import torch

    from vbc.codec import api

    torch.set_num_threads(args.threads)
    photos = [common.load_photo(f) for f in common.image_files(args.folder, args.images)]
    rows: list[Row] = []
    failed = False
    with Results(args.out, "near_lossless", args) as results:
        for bound, codec in codecs(api.load(args.model), args.bounds, args.quick):
            with suppress(Exception):  # loads libraries; what goes wrong comes up again below
                codec.decode(codec.encode(photos[0].rgb[:WARM_SIDE, :WARM_SIDE]))
            for photo in photos:
                try:
                    rows.append(results.add("row", **measure(bound, codec, photo)))
                except Exception as e:  # one codec or image that fails must not cost the others' results
                    failed = True
                    about = {"bound": bound, "codec": codec.name, "setting": codec.setting}
                    results.add("error", **about, image=photo.name, message=str(e))
                    say(f"{codec.name} {codec.setting}, bound {bound}, {photo.name}: {type(e).__name__}: {e}")
        for total in summaries(rows):
            threads = args.threads if rivals.is_ours(total["codec"]) else 1
            results.add("summary", threads=threads, **total)
            failed |= total["kept"] is False
            say(line(total))
    return int(failed)


def line(total: Row) -> str:
    """What is said of a summary."""
    bound = "no bound" if total["bound"] is None else f"bound {total['bound']}"
    broken = "  BOUND BROKEN" if total["kept"] is False else ""
    psnr = "lossless" if total["psnr_db"] is None else f"{total['psnr_db']:.2f} dB"
    ratio = "" if total["ratio_bytes"] is None else f"  {total['ratio_bytes']:.3f} of JPEG-LS"
    return (
        f"{bound:8} {total['codec']:8} {total['setting']:22} {total['rate_bpsp']:.4f} bpsp  error at most "
        f"{total['largest_error']:3}  {psnr}  {total['encode_mps']:.3f} / {total['decode_mps']:.3f} MP/s"
        f"{ratio}{broken}"
    )


if __name__ == "__main__":
    sys.exit(main())
