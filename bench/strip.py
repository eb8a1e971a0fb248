"""The README's strip of pictures: what the levels of one lossless file show, whole and in detail, with bytes.

`python -m bench.strip` makes it of the generated example, `python -m bench.strip PHOTO` of another picture.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bench import common, rivals
from bench.common import Rgb, say
from bench.progressive.streams import decode_ours_prefix
from vbc.codec.example import make_example

PANEL_WIDTH = 252
"""Pixels: four panels are as wide as a README is shown."""
GAP, CAPTION = 4, 24
"""Pixels between panels, and of the line above each."""
DETAIL = 2
"""Screen pixels on each side for one pixel of the picture, in the lower half."""
DETAIL_AT = (0.04, 0.48)
"""Where the detail starts, as shares of width and height; in the example: a ball before hills."""
SHOWN = (1, 2, 3)
"""The levels before the last one."""


def panel(rgb: Rgb, caption: str) -> Image.Image:
    """A picture whole, below it a detail, above both a caption."""
    height, width = rgb.shape[:2]
    panel_height = round(PANEL_WIDTH * height / width)
    picture = Image.fromarray(rgb)
    out = Image.new("RGB", (PANEL_WIDTH, CAPTION + GAP + 2 * panel_height), "white")
    whole = picture.resize((PANEL_WIDTH, panel_height), Image.Resampling.LANCZOS)
    out.paste(whole, (0, CAPTION))
    x, y = round(DETAIL_AT[0] * width), round(DETAIL_AT[1] * height)
    part = picture.crop((x, y, x + PANEL_WIDTH // DETAIL, y + panel_height // DETAIL))
    detail = part.resize((PANEL_WIDTH, panel_height), Image.Resampling.NEAREST)
    out.paste(detail, (0, CAPTION + panel_height + GAP))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(out).text((0, 2), caption, fill="black", font=font)
    return out


def strip(rgb: Rgb, model_path: Path | None = None, quality: int = 60) -> Image.Image:
    """Panels of the lossy levels and of the exact picture, all from prefixes of one file."""
    from vbc.codec import api

    model = api.load(model_path)
    data = rivals.encode_ours(rgb, model, lossless=True, quality=quality)
    ends = api.read_info(data).level_ends
    shown = {level: ends[level] for level in SHOWN} | {max(ends): len(data)}
    panels = []
    for level, n_bytes in shown.items():
        decoded = decode_ours_prefix(data[:n_bytes], model)
        assert decoded is not None
        psnr = common.psnr(rgb, decoded)
        what = "all levels: exact" if psnr is None else f"level {level}: {psnr:.1f} dB"
        panels.append(panel(decoded, f"{what}, {n_bytes:,} bytes"))
    out = Image.new("RGB", (len(panels) * (PANEL_WIDTH + GAP) - GAP, panels[0].height), "white")
    for i, part in enumerate(panels):
        out.paste(part, (i * (PANEL_WIDTH + GAP), 0))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Write the strip."""
    p = argparse.ArgumentParser(prog="python -m bench.strip", description=__doc__)
    p.add_argument("photo", type=Path, nargs="?", help="a picture [default: the generated example]")
    p.add_argument("--out", type=Path, default=Path("docs/results/strip.png"), help="[default: %(default)s]")
    p.add_argument("--model", type=Path, help="weights [default: the shipped ones]")
    p.add_argument("--quality", type=int, default=60, help="of the lossy levels [default: %(default)s]")
    args = p.parse_args(argv)
    rgb = make_example() if args.photo is None else common.load_photo(args.photo).rgb
    strip(rgb, args.model, args.quality).save(args.out, optimize=True)
    say(str(args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
