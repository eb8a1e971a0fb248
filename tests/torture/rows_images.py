"""The row about image files: whatever they hold, reading them gives a picture or says why not, and a picture
that was read can be encoded, decoded and written again."""

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from torture.material import TINY, key, mutate
from torture.tally import Slice, Tally
from vbc.codec import api
from vbc.codec.files.image_io import (
    ALPHA_FORMATS,
    DEEP_FORMATS,
    FORMATS,
    OUTPUT_FORMATS,
    Metadata,
    Picture,
    UnsupportedImage,
    read_picture,
    write_picture,
)

SUFFIXES = {kind: suffix for suffix, kind in OUTPUT_FORMATS.items()}
"""One ending for each kind of file that can be written."""
MAX_ENCODED = 1 << 12
"""Pixels of a picture that is encoded: damaged headers tell of larger ones, which would take seconds."""
TIFF_COMPRESSIONS = ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4", "lzma", "zstd")


@functools.cache
def image_files() -> dict[str, bytes]:
    """Small valid files of every format and mode that can be written here, with metadata where it fits."""
    rng = np.random.default_rng(18)
    samples = rng.integers(0, 256, (13, 17, 4)).astype(np.uint8)
    samples[:8] = samples[0, 0]
    rgba, rgb = Image.fromarray(samples), Image.fromarray(samples[..., :3])
    gray = Image.fromarray(samples[..., 0])
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    block = exif.tobytes()
    files: dict[str, bytes] = {}

    def add(name: str, im: Image.Image, kind: str, **options: object) -> None:
        out = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):  # not every format has every mode or compression
            im.save(out, kind, **options)
            files[name] = out.getvalue()

    modes = (rgb, rgba, gray, gray.convert("1"), rgb.quantize(16), rgba.convert("LA"), rgb.convert("CMYK"))
    for kind in FORMATS:
        extra = {"exif": block, "icc_profile": b"profile" * 9} if kind in ("PNG", "JPEG", "WEBP") else {}
        for im in modes:
            add(f"{kind} {im.mode}", im, kind, **extra)
    for compression in TIFF_COMPRESSIONS:
        add(
            f"TIFF {compression}",
            gray.convert("1") if compression == "group4" else rgb,
            "TIFF",
            compression=compression,
        )
    add("progressive JPEG", rgb, "JPEG", progressive=True)
    add("lossless WebP", rgba, "WEBP", lossless=True)
    add("animated GIF", rgb, "GIF", save_all=True, append_images=[gray])
    deep = rng.integers(0, 65536, (7, 9, 4)).astype(np.uint16)
    for n_channels in (1, 2, 3, 4):
        picture = Picture.from_samples(deep[..., :n_channels], Metadata(exif=block[6:], xmp=b"<x/>"))
        for suffix in (".png", ".tif", ".ppm"):
            with contextlib.suppress(UnsupportedImage):
                files[f"deep {n_channels} {suffix}"] = write_picture(picture, suffix, exact=True)
    return files


def image_mutations(todo: Slice) -> Tally:
    """Row 18: damaged image files give a picture or UnsupportedImage, nothing else.

    What is a picture goes all the way, through a .vbc file into every kind of image file.
    """
    tally = Tally()
    with silence():
        for n in todo:
            read_damaged(n, tally)
    return tally


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """libtiff writes what it thinks of a file to standard error itself."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def read_damaged(n: int, tally: Tally) -> None:
    """Case n of row 18."""
    files = image_files()
    name = list(files)[n % len(files)]
    data = mutate(files[name], np.random.default_rng((18, n)), list(files.values()))
    with tally.case(f"row 18 case {n} ({name})"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        try:
            picture = read_picture(data)
        except UnsupportedImage:
            tally.count("UnsupportedImage")
            return
        tally.count("picture")
        height, width, _ = picture.rgb.shape
        if height * width > MAX_ENCODED:
            tally.count("too large to encode")
            return
        what = f"row 18 case {n} ({name})"
        if n % 4:
            data = api.encode(picture, levels=0, lossless=True, effort=0, model=TINY)
        else:
            data = api.encode(picture, levels=1, model=TINY)
        decoded = api.decode_picture(data, model=TINY)
        tally.check(decoded.picture.metadata == picture.metadata, f"{what}: other metadata")
        if n % 4:
            tally.check(key(decoded.picture.samples()) == key(picture.samples()), f"{what}: other pixels")
        write_everywhere(decoded.picture, what, tally)


def write_everywhere(picture: Picture, what: str, tally: Tally) -> None:
    """Write a picture in every format that has room for its samples, and read the exact ones back.

    A format may refuse its metadata (JPEG has 64 kB for EXIF) and its size, by UnsupportedImage.
    """
    wanted = picture.samples()
    for kind, suffix in SUFFIXES.items():
        fits = (picture.alpha is None or kind in ALPHA_FORMATS) and (
            picture.low is None or kind in DEEP_FORMATS
        )
        try:
            data = write_picture(picture, suffix, exact=True)
        except UnsupportedImage:
            tally.count(f"no {kind}")
            tally.check(not fits or has_limits(picture, kind), f"{what}: not written as {kind}")
            continue
        tally.count("written")
        tally.check(fits, f"{what}: {kind} has no room for it")
        if kind in ("PNG", "PPM", "TIFF"):
            again = read_picture(data)
            samples = again.samples()
            if kind == "TIFF":  # whose orientation turns it: the same samples, elsewhere
                samples, sorted_wanted = (np.sort(x.reshape(-1, x.shape[2]), 0) for x in (samples, wanted))
                tally.check(np.array_equal(samples, sorted_wanted), f"{what}: other pixels in TIFF")
            else:
                tally.check(np.array_equal(samples, wanted), f"{what}: other pixels in {kind}")
            if kind == "PNG":
                tally.check(again.metadata == picture.metadata, f"{what}: other metadata in PNG")


def has_limits(picture: Picture, kind: str) -> bool:
    """Whether the format may refuse this picture whatever its channels are: its size, its metadata's size."""
    meta = picture.metadata
    if kind == "TIFF":
        return picture.low is not None and picture.gray and picture.alpha is not None
    long = max(len(meta.exif or b""), len(meta.xmp or b"")) > 60_000
    return kind in ("JPEG", "WEBP") and (long or max(picture.rgb.shape) > 16_383)
