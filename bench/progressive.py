"""Prefixes: the picture after a share of the bytes of our layered lossless file, and after each packet.

Against progressive rivals cut at the same byte and against dedicated files of that many bytes. A rival's
prefix is of its own progressive file; JPEG 2000 gets a quality layer for every cut. A dedicated file is the
largest that fits, found by search over the codec's quality. Quality is measured in several processes, the
time to the first picture afterwards in one, on the first images.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw

from bench import common, rivals
from bench.common import Results, Rgb, Row, say
from bench.rivals import Codec
from vbc.bitstream import container
from vbc.bitstream.errors import Truncated

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9, 1.0)
"""Cuts, of the bytes of our layered file."""
FIRST_IMAGES = 3
"""How many images the time to the first picture is measured on."""
FIRST_REPEATS = 5
MOST_PACKETS = 48
"""Of a file with more packets of groups, so many are looked at, evenly spaced, and the last."""
SHEET_WIDTH = 288
CAPTION = 16
"""Height in pixels."""
JXL_OPTIONS = {
    "jpeg_xl -p e3": ("-d", "0", "-p", "-e", "3"),
    "jpeg_xl -p e9 -C 6": ("-d", "0", "-p", "-e", "9", "-C", "6"),
    "jpeg_xl -p d1": ("-d", "1", "-p", "-e", "7"),
}
"""Progressive JPEG XL: lossless, fast and small (in YCgCo), and lossy. A quick run takes the first."""

Decode = Callable[[bytes], Rgb | None]


@dataclass(frozen=True)
class Stream:
    """A file that is cut. decode: the picture of a prefix, None where there is none.

    first_bytes: where the first whole picture is complete, None where only trying tells.
    """

    name: str
    data: bytes
    decode: Decode
    first_bytes: int | None = None


def measure_image(file: Path, model_path: Path | None, quality: int, quick: bool) -> list[Row]:
    """All rows of one image but the times."""
    import torch

    from vbc.codec import api

    torch.set_num_threads(1)
    photo = common.load_photo(file)
    model = api.load(model_path)
    data = rivals.encode_ours(photo.rgb, model, lossless=True, quality=quality)
    budgets = [int(share * len(data)) for share in SHARES]
    rows = [*our_levels(photo, data, model), *our_packets(photo, data, model)]
    for stream in progressive_files(photo.rgb, data, model, budgets, quick):
        n_bytes = len(stream.data)
        for share, budget in zip(SHARES, budgets, strict=True):
            rgb = stream.decode(stream.data[:budget])
            about = {"codec": stream.name, "what": "prefix", "share": share, "file_bytes": n_bytes}
            rows.append(about | quality_row(photo, rgb, min(budget, n_bytes)))
    for curve in dedicated_codecs(model, quick):
        fits = best_fits(curve, photo.rgb, budgets)
        for share, fit in zip(SHARES, fits, strict=True):
            if fit is not None:
                codec, coded = fit
                about = {"codec": codec.name, "what": "dedicated", "share": share, "setting": codec.setting}
                rows.append(about | quality_row(photo, codec.decode(coded), len(coded)))
    return [{"image": photo.name, "n_pixels": photo.n_pixels} | row for row in rows]


def first_pictures(file: Path, model_path: Path | None, quality: int, quick: bool) -> Iterator[Row]:
    """Bytes and time to the first picture of one image, for ours and each rival; one thread."""
    from vbc.codec import api

    photo = common.load_photo(file)
    model = api.load(model_path)
    data = rivals.encode_ours(photo.rgb, model, lossless=True, quality=quality)
    budgets = [int(share * len(data)) for share in SHARES]
    for stream in progressive_files(photo.rgb, data, model, budgets, quick):
        n_bytes = stream.first_bytes or shortest_prefix(stream.data, stream.decode)
        rgb, time_s = common.timed(partial(stream.decode, stream.data[:n_bytes]), FIRST_REPEATS)
        row = {"image": photo.name, "n_pixels": photo.n_pixels, "codec": stream.name, "what": "first"}
        yield row | {"time_ms": 1000 * time_s} | quality_row(photo, rgb, n_bytes)


def shortest_prefix(data: bytes, decode: Decode) -> int:
    """Bytes of the shortest prefix that gives a picture, found by bisection; all of them where none does."""
    low, high = 0, len(data)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if decode(data[:middle]) is None else (low, middle)
    return high


def quality_row(photo: common.Photo, rgb: Rgb | None, n_bytes: int) -> Row:
    """What a picture is worth; `decoded` is false where there was none.

    psnr_db is None for none and for an exact one.
    """
    row = {"n_bytes": n_bytes, "rate_bpp": 8 * n_bytes / photo.n_pixels, "decoded": rgb is not None}
    if rgb is None:
        return row | {"psnr_db": None, "msssim": None, "exact": False}
    psnr = common.psnr(photo.rgb, rgb)
    return row | {"psnr_db": psnr, "msssim": common.ms_ssim(photo.rgb, rgb), "exact": psnr is None}


def our_levels(photo: common.Photo, data: bytes, model: object) -> Iterator[Row]:
    """Our file cut at the end of each level."""
    from vbc.codec import api

    for level, end in api.read_info(data).level_ends.items():
        rgb = decode_ours_prefix(data[:end], model)
        about = {
            "codec": rivals.OURS,
            "what": "level",
            "level": level,
            "file_bytes": len(data),
            "share": end / len(data),
        }
        yield about | quality_row(photo, rgb, end)


def our_packets(photo: common.Photo, data: bytes, model: object) -> Iterator[Row]:
    """Our file cut at the end of each packet that holds a group."""
    header = container.unpack_header(data)
    groups = [i for i, packet in enumerate(header.packets) if packet.level and packet.part]
    step = -(-len(groups) // MOST_PACKETS)
    for i in sorted({*groups[::step], groups[-1]}):
        packet, end = header.packets[i], header.ends[i]
        about = {"codec": rivals.OURS, "what": "packet", "level": packet.level, "part": packet.part}
        about |= {"file_bytes": len(data), "share": end / len(data)}
        yield about | quality_row(photo, decode_ours_prefix(data[:end], model), end)


def decode_ours_prefix(data: bytes, model: object) -> Rgb | None:
    """The best picture of a prefix; None before the end of the first group."""
    try:
        return rivals.decode_ours(data, model, allow_partial=True)  # type: ignore[arg-type]
    except Truncated:
        return None


def progressive_files(
    rgb: Rgb, data: bytes, model: object, budgets: list[int], quick: bool
) -> Iterator[Stream]:
    """Ours and each rival's file of one image; budgets: where the layers of JPEG 2000 shall end."""
    from vbc.codec import api

    first = min(api.read_info(data).level_ends.values())
    yield Stream(rivals.OURS, data, partial(decode_ours_prefix, model=model), first)
    layered, ends = rivals.encode_layers(rgb, budgets[:-1])
    yield Stream(
        "jpeg2000 layers", layered, lambda head: rivals.decode_layers(layered, ends, len(head)), ends[0]
    )
    for quality, subsampling in ((75, "4:2:0"), (95, "4:4:4")):
        codec = rivals.jpeg(quality, subsampling)
        coded = codec.encode(rgb)
        decode = partial(rivals.decode_jpeg_prefix, original=rgb)
        yield Stream(f"{codec.name} {codec.setting}", coded, decode, rivals.end_of_first_scan(coded))
    if rivals.installed("flif"):
        decode = partial(rivals.decode_or_none, rivals.decode_flif, shape=rgb.shape)
        yield Stream("flif interlaced", rivals.encode_flif(rgb, "-I"), decode)
    if rivals.installed("cjxl", "djxl"):
        decode = partial(rivals.decode_or_none, rivals.decode_djxl, shape=rgb.shape)
        for name, options in list(JXL_OPTIONS.items())[: 1 if quick else None]:
            yield Stream(name, rivals.encode_cjxl(rgb, *options), decode)


# Dedicated files


def dedicated_codecs(model: object, quick: bool) -> list[list[Codec]]:
    """For each codec its settings from small files to large ones."""
    curves = [
        [rivals.ours(model, f"q{q}", quality=q) for q in range(0, 101, 2)],  # type: ignore[arg-type]
        [rivals.jpeg(q, "4:2:0") for q in range(1, 96)],
        [rivals.jpeg2000(24 * 0.9**k) for k in range(60, 1, -1)],
    ]
    if not quick:
        curves.append([rivals.avif(q, 6) for q in range(2, 99, 4)])
    return curves


def best_fits(curve: list[Codec], rgb: Rgb, budgets: list[int]) -> list[tuple[Codec, bytes] | None]:
    """For each number of bytes the last setting whose file fits, found by bisection; None where none fits.

    None too where even the last setting takes less than half of the bytes: the codec has no file for so many.
    """
    coded: dict[int, bytes] = {}

    def size(i: int) -> int:
        if i not in coded:
            coded[i] = curve[i].encode(rgb)
        return len(coded[i])

    fits: list[tuple[Codec, bytes] | None] = []
    for budget in budgets:
        low, high = -1, len(curve)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) <= budget else (low, middle)
        fitting = low >= 0 and (low < len(curve) - 1 or 2 * size(low) >= budget)
        fits.append((curve[low], coded[low]) if fitting else None)
    return fits


# Summary, plot, contact sheet


def summarise(rows: list[Row]) -> Row:
    """Means over the images that gave a picture.

    n_decoded says how many did, n_exact how many of these are the original.
    """
    return {
        "codec": rows[0]["codec"],
        "what": rows[0]["what"],
        "share": rows[0].get("share"),
        "level": rows[0].get("level"),
        "n_images": len(rows),
        "n_decoded": sum(r["decoded"] for r in rows),
        "n_exact": sum(r["exact"] for r in rows),
        "rate_bpp": common.mean(r["rate_bpp"] for r in rows),
        "psnr_db": common.mean(r["psnr_db"] for r in rows),
        "msssim": common.mean(r["msssim"] for r in rows),
        "file_bpp": common.mean(8 * r["file_bytes"] / r["n_pixels"] for r in rows if "file_bytes" in r),
    }


def summaries(rows: list[Row]) -> Iterator[Row]:
    """Of prefixes and dedicated files by share, of levels by number, of packets all together, of first
    pictures by codec."""
    for what, key in (("prefix", "share"), ("dedicated", "share"), ("level", "level")):
        chosen = [r for r in rows if r["what"] == what]
        for (_, value), found in common.group(chosen, "codec", key).items():
            total = summarise(found)
            share = value if key == "share" else common.mean(r["share"] for r in found)
            yield total | {"share": share}
    packets = [r for r in rows if r["what"] == "packet"]
    if packets:
        yield {
            "codec": rivals.OURS,
            "what": "packet",
            "n_images": len(common.group(packets, "image")),
            "n_packets": len(packets),
            "largest_fall_db": largest_fall(packets),
        }
    for (name,), found in common.group([r for r in rows if r["what"] == "first"], "codec").items():
        yield {
            "codec": name,
            "what": "first",
            "n_images": len(found),
            "n_bytes": common.mean(r["n_bytes"] for r in found),
            "psnr_db": common.mean(r["psnr_db"] for r in found),
            "time_ms": common.mean(r["time_ms"] for r in found),
        }


def largest_fall(packets: list[Row]) -> float:
    """By how many dB the next packet of an image has made its picture worse, at most."""
    worst = 0.0
    for found in common.group(packets, "image").values():
        qualities = [r["psnr_db"] for r in found if r["psnr_db"] is not None]
        worst = max([worst, *(a - b for a, b in pairwise(qualities))])
    return worst


def plot(path: Path, points: list[Row]) -> None:
    """PSNR over the share of bytes: prefixes drawn, dedicated files dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(8.5, 6), layout="constrained")
    for what, style in (("prefix", "-"), ("dedicated", ":")):
        for (name,), curve in common.group([r for r in points if r["what"] == what], "codec").items():
            xy = sorted((100 * r["share"], r["psnr_db"]) for r in curve if r["psnr_db"] is not None)
            if xy:
                width = 2.5 if name == rivals.OURS else 1
                label = name if what == "prefix" else f"{name}, dedicated file"
                ax.plot(*zip(*xy, strict=True), style, marker=".", linewidth=width, label=label)
    ticks = [round(100 * share) for share in SHARES]
    ax.set(xscale="log", xlabel="bytes, % of our layered lossless file", ylabel="RGB PSNR, dB")
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def contact_sheet(path: Path, file: Path, model_path: Path | None, quality: int) -> None:
    """One image at each level, and beside it a JPEG of quality 75 cut at the same byte."""
    from vbc.codec import api

    photo = common.load_photo(file)
    model = api.load(model_path)
    data = rivals.encode_ours(photo.rgb, model, lossless=True, quality=quality)
    jpeg = rivals.jpeg(75).encode(photo.rgb)
    ends = api.read_info(data).level_ends
    height = round(SHEET_WIDTH * photo.rgb.shape[0] / photo.rgb.shape[1])
    sheet = Image.new("RGB", (2 * SHEET_WIDTH, len(ends) * (height + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (level, end) in enumerate(ends.items()):
        pair = (
            (f"vbc, level {level}", decode_ours_prefix(data[:end], model), end),
            (jpeg_caption(jpeg, end), rivals.decode_jpeg_prefix(jpeg[:end], photo.rgb), min(end, len(jpeg))),
        )
        for column, (label, rgb, n_bytes) in enumerate(pair):
            x, y = column * SHEET_WIDTH, row * (height + CAPTION)
            found = "no picture"
            if rgb is not None:
                psnr = common.psnr(photo.rgb, rgb)
                found = "exact" if psnr is None else f"{psnr:.1f} dB"
                sheet.paste(Image.fromarray(rgb).resize((SHEET_WIDTH, height)), (x, y + CAPTION))
            draw.text((x + 4, y + 2), f"{label}: {n_bytes:,} bytes, {found}", fill="black")
    sheet.save(path, optimize=True)


def jpeg_caption(jpeg: bytes, end: int) -> str:
    """What the column beside ours shows."""
    return "JPEG q75, cut" if end < len(jpeg) else "JPEG q75, whole"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where our whole file is not exact."""
    p = common.parser("progressive", __doc__)
    p.add_argument("--quality", type=int, default=60, help="of the lossy levels [default: %(default)s]")
    p.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    args = common.parse(p, argv)
    import torch

    files = common.image_files(args.folder, args.images)
    work = partial(measure_image, model_path=args.model, quality=args.quality, quick=args.quick)
    rows: list[Row] = []
    with Results(args.out, "progressive", args) as results:
        for file, found in zip(files, common.each_image(work, files, args.jobs), strict=True):
            rows += [results.add("row", **row) for row in found]
            say(f"{file.name}: {len(found)} pictures")
        torch.set_num_threads(1)
        for file in files[:FIRST_IMAGES]:  # nothing else runs any more
            for row in first_pictures(file, args.model, args.quality, args.quick):
                rows.append(results.add("row", **row))
        points = [results.add("summary", **row) for row in summaries(rows)]
        for r in points:
            if r["what"] == "prefix":
                psnr = "-" if r["psnr_db"] is None else f"{r['psnr_db']:.2f}"
                say(
                    f"{r['codec']:20} {r['share']:6.0%} {psnr:>6} dB, "
                    f"{r['n_decoded']} of {r['n_images']}, {r['n_exact']} exact"
                )
            elif r["what"] == "packet":
                say(f"{r['n_packets']} packets, none costs more than {r['largest_fall_db']:.2f} dB")
        plot(args.out / "progressive.png", points)
        contact_sheet(args.out / "levels.png", files[0], args.model, args.quality)
    whole = [r for r in rows if r["codec"] == rivals.OURS and r["what"] == "prefix" and r["share"] == 1]
    return int(not all(r["exact"] for r in whole))


if __name__ == "__main__":
    sys.exit(main())
