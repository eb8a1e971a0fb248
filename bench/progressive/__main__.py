"""Prefixes: the picture after a share of the bytes, after each level and stage, of lossless and lossy files.

Lossless files are cut at shares of the bytes of our layered file, so that all are compared at equal bytes;
JPEG 2000 gets a quality layer for every cut. Beside them stand dedicated files, the largest that fit, found
by search over the codec's quality. Lossy files are cut at shares of their own bytes, at numbers of bits per
pixel, and at the end of each stage and between; how much larger such a prefix is than a dedicated file of the
same PSNR or SSIMULACRA 2 is read from files without refinements. Published curves (CSV with the columns
codec, rate_bpp, psnr_db) join with --published. Quality is measured in several processes, the time to the
first picture afterwards in one, on the first images.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import common
from bench.common import Results, Row, say
from bench.progressive import drawing, measure, summary


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a whole lossless file of ours is not exact."""
    p = common.parser("progressive", __doc__)
    p.add_argument("--quality", type=int, help="of the lossy levels of lossless files [default: the codec's]")
    p.add_argument("--published", type=Path, help="CSV of published progressive curves of the same images")
    p.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    args = common.parse(p, argv)
    import torch

    published = summary.read_published(args.published) if args.published else []
    files = common.image_files(args.folder, args.images)
    work = partial(measure.measure_image, model_path=args.model, quality=args.quality, quick=args.quick)
    rows: list[Row] = []
    with Results(args.out, "progressive", args) as results:
        for file, found in zip(files, common.each_image(work, files, args.jobs), strict=True):
            rows += [results.add("row", **row) for row in found]
            say(f"{file.name}: {len(found)} pictures")
        torch.set_num_threads(1)
        for file in files[: measure.FIRST_IMAGES]:  # nothing else runs any more
            for row in measure.first_pictures(file, args.model, args.quality, args.quick):
                rows.append(results.add("row", **row))
        for row in published:
            results.add("published", **row)
        points = [*summary.summaries(rows), *summary.published_at_rates(published)]
        points = [results.add("summary", **row) for row in points]
        for line in summary.lines(points):
            say(line)
        drawing.plot_lossless(args.out / "progressive.png", points)
        drawing.plot_lossy(args.out / "progressive_lossy.png", points, published)
        drawing.contact_sheet(args.out / "levels.png", files[0], args.model, args.quality)
    return int(not all(map(measure.is_exact, rows)))


if __name__ == "__main__":
    sys.exit(main())
