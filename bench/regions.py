"""Regions: time and bytes of a part of a large lossless file against all of it.

A square of 512 pixels whose corner lies on a corner of groups, and one that lies across them, of an archival
and a layered file; decoded from memory, with the bytes that `codec info` names for them. Beside them the
lanes of the finest level, each of which one thread of a device decodes, and the share of the index. Without
DIR the picture is generated; with it, it is a mosaic of the folder's photographs.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from bench import common, rivals
from bench.common import Results, Rgb, Row, say
from bench.speed import picture
from vbc.bitstream import container
from vbc.bitstream.ans import unpack_lanes
from vbc.bitstream.container import Header
from vbc.codec import api

SIDE, QUICK_SIDE = 8192, 640
REGION = 512
SHIFT = 136
"""By how much the second square misses the corners of groups: a quarter of its side and 8 pixels."""
MODES = {"archival": {"lossless": True, "levels": 0}, "layered": {"lossless": True}}
REPEATS = 5
BUDGET_S = 20.0
LANES_FOLLOW = (0, 2)
"""First bytes of a group's packet behind which lanes follow."""


def regions(side: int) -> dict[str, tuple[int, int, int, int]]:
    """Name -> region in the middle of a square picture."""
    corner = max(0, side // 2 - REGION) // REGION * REGION
    width = min(REGION, side)
    aligned = (corner, corner, width, width)
    shifted = min(corner + SHIFT, side - width)
    return {"aligned": aligned, "across": (shifted, shifted, width, width)}


def lanes_of(data: bytes, header: Header, level: int) -> list[int]:
    """Lanes of each group of an exact level that is coded."""
    found = []
    for n in range(header.geometry.n_groups(level)):
        i = header.find(level, 1 + n)
        if i is None:
            continue
        packet = container.read_packet(data, header, i)
        if packet[0] in LANES_FOLLOW:
            rows, cols = header.geometry.window(level, n)
            n_symbols = 3 * (rows.stop - rows.start) * (cols.stop - cols.start)
            found.append(unpack_lanes(packet[1:], n_symbols).n_words.size)
    return found


def about_file(mode: str, data: bytes) -> Row:
    """What the file is made of."""
    header = container.unpack_header(data)
    lanes = lanes_of(data, header, header.geometry.last_level)
    return {
        "setting": mode,
        "size": header.width,
        "n_bytes": len(data),
        "n_packets": len(header.packets),
        "index_bytes": header.index_bytes,
        "index_percent": 100 * header.index_bytes / len(data),
        "groups_of_lanes": len(lanes),
        "lanes": sum(lanes),
        "lanes_of_a_group": common.mean(lanes),
    }


def measure(mode: str, rgb: Rgb, data: bytes, model: object, repeats: int) -> Iterator[Row]:
    """Time and bytes of the whole picture and of each region. `exact`: whether the pixels are the input's."""
    decode = partial(rivals.decode_ours, data, model)  # type: ignore[arg-type]
    whole, whole_s = common.timed(decode, repeats, BUDGET_S)
    exact = bool(np.array_equal(whole, rgb))
    pixels = rgb.shape[0] * rgb.shape[1]
    about = {"setting": mode, "size": rgb.shape[1]}
    shares = {"time_share": 1.0, "bytes_share": 1.0, "pixels_share": 1.0}
    yield about | {"part": "whole", "time_s": whole_s, "n_bytes": len(data), "exact": exact} | shares
    for name, region in regions(rgb.shape[1]).items():
        part, time_s = common.timed(partial(decode, region=region), repeats, BUDGET_S)
        x, y, width, height = region
        n_bytes = sum(end - start for start, end in api.read_info(data, region=region).ranges)
        exact = bool(np.array_equal(part, rgb[y : y + height, x : x + width]))
        row = {"part": name, "time_s": time_s, "n_bytes": n_bytes, "exact": exact}
        shares = {"time_share": time_s / whole_s, "bytes_share": n_bytes / len(data)}
        yield about | row | shares | {"pixels_share": width * height / pixels}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a picture or a region is not exact."""
    p = common.parser("regions", __doc__, folder=False)
    p.add_argument("--side", type=int, help=f"of the square picture in pixels [default: {SIDE}]")
    p.add_argument("--threads", type=int, default=2, help="[default: %(default)s]")
    args = common.parse(p, argv)
    import torch

    torch.set_num_threads(args.threads)
    model = api.load(args.model)
    rgb = picture(args.side or (QUICK_SIDE if args.quick else SIDE), args.folder)
    exact = True
    with Results(args.out, "regions", args) as results:
        for mode, options in MODES.items():
            data = rivals.encode_ours(rgb, model, effort=0 if args.quick else 1, **options)
            file = results.add("file", threads=args.threads, **about_file(mode, data))
            say(
                f"{mode:9} {file['n_bytes']:,} bytes, index {file['index_percent']:.3f} %, "
                f"{file['lanes']} lanes of the finest level in {file['groups_of_lanes']} groups"
            )
            for row in measure(mode, rgb, data, model, 1 if args.quick else REPEATS):
                results.add("summary", threads=args.threads, **row)
                exact &= row["exact"]
                say(
                    f"    {row['part']:8} {row['time_s']:8.3f} s ({row['time_share']:7.2%})  "
                    f"{row['n_bytes']:12,} bytes ({row['bytes_share']:7.2%})  "
                    f"{row['pixels_share']:7.2%} of the pixels{'' if row['exact'] else '  DIFFERS'}"
                )
    return int(not exact)


if __name__ == "__main__":
    sys.exit(main())
