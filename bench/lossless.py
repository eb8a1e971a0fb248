"""Lossless: bits per subpixel and speed of our archival and layered files and of the rivals.

Every one is decoded and compared.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from bench import common, rivals
from bench.common import Results, Row, say
from bench.rivals import Codec

REPEATS = 3
"""Of each coding; the median counts. What takes more than `BUDGET_S` altogether is done once."""
BUDGET_S = 0.5
WARM_SIDE = 64
"""Side of the crop that each codec handles before it is timed."""


def our_codecs(model_path: Path | None, quick: bool) -> list[Codec]:
    """Archival and layered files at each effort."""
    from vbc.codec import api
    from vbc.codec.settings import MAX_EFFORT

    model = api.load(model_path)
    efforts = (0, 1) if quick else range(MAX_EFFORT + 1)
    archival = [
        rivals.ours(model, f"archival, effort {e}", lossless=True, levels=0, effort=e) for e in efforts
    ]
    layered = [rivals.ours(model, f"layered, effort {e}", lossless=True, effort=e) for e in efforts]
    return archival + layered


def measure(codec: Codec, photo: common.Photo) -> Row:
    """Size and times of one image. `exact`: whether the decoded array equals the input's."""
    data, encode_s = common.timed(lambda: codec.encode(photo.rgb), REPEATS, BUDGET_S)
    rgb, decode_s = common.timed(lambda: codec.decode(data), REPEATS, BUDGET_S)
    return {
        "codec": codec.name,
        "setting": codec.setting,
        "image": photo.name,
        "n_pixels": photo.n_pixels,
        "n_bytes": len(data),
        "rate_bpsp": 8 * len(data) / photo.rgb.size,
        "encode_s": encode_s,
        "decode_s": decode_s,
        "exact": bool(np.array_equal(rgb, photo.rgb)),
    }


def summarise(rows: list[Row]) -> Row:
    """One line for a codec: mean bits per subpixel of the images, speeds of all pixels over all seconds."""
    n_pixels = sum(r["n_pixels"] for r in rows)
    return {
        "codec": rows[0]["codec"],
        "setting": rows[0]["setting"],
        "n_images": len(rows),
        "n_bytes": sum(r["n_bytes"] for r in rows),
        "rate_bpsp": common.mean(r["rate_bpsp"] for r in rows),
        "encode_mps": n_pixels / sum(r["encode_s"] for r in rows) / 1e6,
        "decode_mps": n_pixels / sum(r["decode_s"] for r in rows) / 1e6,
        "exact": all(r["exact"] for r in rows),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a decoded picture differs or a rival fails."""
    p = common.parser("lossless", __doc__)
    p.add_argument("--threads", type=int, default=1, help="of our codec [default: 1, as the rivals]")
    args = common.parse(p, argv)
    import torch

    torch.set_num_threads(args.threads)
    photos = [common.load_photo(f) for f in common.image_files(args.folder, args.images)]
    codecs = our_codecs(args.model, args.quick) + rivals.lossless(args.quick)
    failed = False
    with Results(args.out, "lossless", args) as results:
        for codec in codecs:
            rows = []
            with suppress(
                Exception
            ):  # loads libraries and packs weights; what goes wrong comes up again below
                codec.decode(codec.encode(photos[0].rgb[:WARM_SIDE, :WARM_SIDE]))
            for photo in photos:
                try:
                    rows.append(results.add("row", **measure(codec, photo)))
                except Exception as e:  # one codec or image that fails must not cost the others' results
                    failed = True
                    results.add(
                        "error", codec=codec.name, setting=codec.setting, image=photo.name, message=str(e)
                    )
                    say(f"{codec.name} {codec.setting} {photo.name}: {type(e).__name__}: {e}")
            if rows:
                total = results.add(
                    "summary", threads=args.threads if codec.name == rivals.OURS else 1, **summarise(rows)
                )
                failed |= not total["exact"]
                say(
                    f"{codec.name:10} {codec.setting:22} {total['rate_bpsp']:.4f} bpsp  "
                    f"{total['encode_mps']:8.3f} / {total['decode_mps']:8.3f} MP/s  "
                    f"{'' if total['exact'] else 'DIFFERS'}"
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
