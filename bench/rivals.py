"""The codecs that are compared, ours among them: a name, a setting, and two inverse functions each.

Everything runs in process through the codec's own library, one thread, except FLIF, progressive JPEG XL and
near-lossless WebP: those are programs (`flif`, `cjxl`, `djxl`, `cwebp`), used where installed, and the times
of their processes count as theirs.
"""

import io
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, features

from bench.common import Rgb, say

if TYPE_CHECKING:
    from vbc.codec.model import Model

OURS = "vbc"
QUALITIES = tuple(range(0, 101, 10))
JPEG_QUALITIES = (2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98)
WEBP_QUALITIES = (0, 5, 10, 20, 30, 45, 60, 75, 85, 92, 97, 100)
AVIF_QUALITIES = (2, 10, 20, 30, 40, 50, 60, 70, 80, 90, 96)
AVIF_SLOW_QUALITIES = (5, 22, 40, 50, 60, 70, 80, 88)
JXL_DISTANCES = (25, 18, 12, 8, 5.5, 4, 3, 2, 1.4, 1.0, 0.7, 0.5, 0.3)
JPEG2000_RATES = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Bits per pixel."""
JPEG_LS = "jpeg_ls"
JXL_NEAR_DISTANCES = (0.1, 0.2, 0.4)
"""Better than what is called visually lossless, which is 1."""
WEBP_NEAR_LEVELS = (80, 60, 40, 20, 0)
"""Each changes up to one more of the lowest bits of a sample."""
QUICK_STRIDE = 3
"""A quick sweep takes every third point."""
END_OF_CODESTREAM = b"\xff\xd9"
"""In JPEG and JPEG 2000."""
START_OF_SCAN = b"\xff\xda"
LAYER_ATTEMPTS = 4


@dataclass(frozen=True)
class Codec:
    """A codec at one setting. encode: uint8 [H, W, 3] to bytes; decode: back."""

    name: str
    setting: str
    encode: Callable[[Rgb], bytes]
    decode: Callable[[bytes], Rgb]


def versions() -> dict[str, str]:
    """Of the libraries behind the rivals."""
    import imagecodecs

    names = {
        "jpg": "libjpeg API",
        "webp": "libwebp",
        "avif": "libavif",
        "jpg_2000": "openjpeg",
        "zlib": "zlib",
    }
    found = {label: features.version(name) for name, label in names.items()}
    found["libjpeg-turbo"] = features.version_feature("libjpeg_turbo")
    found["libjxl"] = imagecodecs.jpegxl_version().removeprefix("libjxl ")
    found["charls"] = imagecodecs.jpegls_version().removeprefix("charls ")
    if shutil.which("cjxl"):
        found["cjxl"] = subprocess.run(["cjxl", "--version"], capture_output=True, text=True).stdout.split(
            "\n"
        )[0]
    return {label: str(version) for label, version in found.items() if version}


# Ours


def encode_ours(rgb: Rgb, model: "Model", **options: Any) -> bytes:
    """A .vbc file; options as of `vbc.codec.encode`. Lossless ones have been decoded and compared."""
    from vbc.codec import api

    return api.encode(rgb, model=model, **options)


def decode_ours(data: bytes, model: "Model", **options: Any) -> Rgb:
    """Options as of `vbc.codec.decode`."""
    from vbc.codec import api

    return api.decode_picture(data, model=model, **options).picture.rgb


def ours(model: "Model", setting: str, device: str = "cpu", name: str = OURS, **options: Any) -> Codec:
    """Our codec with these options of `vbc.codec.encode`, its networks on this device both ways.

    name: of the curve, our codec's own or that and the option that tells it apart.
    """
    encode = partial(encode_ours, model=model, device=device, **options)
    return Codec(name, setting, encode, partial(decode_ours, model=model, device=device))


def is_ours(name: str) -> bool:
    """Whether a codec's name is of one of our curves."""
    return name.split()[0] == OURS


# Pillow and imagecodecs


def encode_pillow(rgb: Rgb, kind: str, **options: Any) -> bytes:
    """A file by Pillow."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, kind, **options)
    return out.getvalue()


def decode_pillow(data: bytes) -> Rgb:
    """Any file that Pillow reads, as RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def encode_jxl(rgb: Rgb, **options: Any) -> bytes:
    """JPEG XL by libjxl, one thread."""
    import imagecodecs

    return bytes(imagecodecs.jpegxl_encode(rgb, numthreads=1, **options))


def decode_jxl(data: bytes) -> Rgb:
    """JPEG XL by libjxl, one thread."""
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def encode_jpegls(rgb: Rgb, bound: int) -> bytes:
    """JPEG-LS by CharLS, no sample off by more than the bound; 0: lossless."""
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(rgb, level=bound))


def decode_jpegls(data: bytes) -> Rgb:
    """JPEG-LS by CharLS."""
    import imagecodecs

    return np.asarray(imagecodecs.jpegls_decode(data))


def encode_jxl_steps(rgb: Rgb, bound: int) -> bytes:
    """Lossless JPEG XL of which step of 2 bound + 1 each sample lies in, so that none is off by more."""
    steps = (rgb // (2 * bound + 1)).astype(np.uint8)
    return encode_jxl(steps, lossless=True, effort=7)


def decode_jxl_steps(data: bytes, bound: int) -> Rgb:
    """The middles of the steps. Inverse of `encode_jxl_steps` but for the bound."""
    middles = decode_jxl(data).astype(np.int16) * (2 * bound + 1) + bound
    return np.minimum(middles, 255).astype(np.uint8)


def pillow(name: str, setting: str, kind: str, **options: Any) -> Codec:
    """A codec of Pillow's."""
    return Codec(name, setting, partial(encode_pillow, kind=kind, **options), decode_pillow)


def jxl(name: str, setting: str, **options: Any) -> Codec:
    """JPEG XL by libjxl."""
    return Codec(name, setting, partial(encode_jxl, **options), decode_jxl)


# Programs


@contextmanager
def files(rgb: Rgb | None) -> Iterator[tuple[Path, Path]]:
    """A folder for a program: the path of a PPM with the image, if any, and of the file beside it."""
    with tempfile.TemporaryDirectory() as folder:
        ppm = Path(folder, "image.ppm")
        if rgb is not None:
            Image.fromarray(rgb).save(ppm)
        yield ppm, Path(folder, "coded")


def call(*command: str | Path) -> None:
    """Run a program. Raises CalledProcessError."""
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def encode_flif(rgb: Rgb, *options: str) -> bytes:
    """FLIF by its program."""
    with files(rgb) as (ppm, coded):
        target = coded.with_suffix(".flif")
        call("flif", "-e", *options, ppm, target)
        return target.read_bytes()


def decode_flif(data: bytes) -> Rgb:
    """FLIF by its program; a truncated file gives what is there."""
    with files(None) as (ppm, coded):
        source = coded.with_suffix(".flif")
        source.write_bytes(data)
        call("flif", "-d", source, ppm)
        return decode_pillow(ppm.read_bytes())


def encode_cjxl(rgb: Rgb, *options: str) -> bytes:
    """JPEG XL by its program, one thread."""
    with files(rgb) as (ppm, coded):
        target = coded.with_suffix(".jxl")
        call("cjxl", ppm, target, "--num_threads=0", *options)  # 0: no thread besides its own
        return target.read_bytes()


def decode_djxl(data: bytes) -> Rgb:
    """JPEG XL by its program, one thread; of a truncated file what is there. Raises CalledProcessError."""
    with files(None) as (ppm, coded):
        source = coded.with_suffix(".jxl")
        source.write_bytes(data)
        call("djxl", source, ppm, "--num_threads=0", "--allow_partial_files")
        return decode_pillow(ppm.read_bytes())


def encode_cwebp_near(rgb: Rgb, level: int) -> bytes:
    """WebP's near-lossless mode by its program; level: 100 changes nothing, 0 most."""
    with files(rgb) as (ppm, coded):
        target = coded.with_suffix(".webp")
        call("cwebp", "-near_lossless", str(level), "-m", "6", ppm, "-o", target)
        return target.read_bytes()


@cache
def installed(*programs: str) -> bool:
    """Whether the programs are there; says so once where not."""
    missing = [p for p in programs if shutil.which(p) is None]
    if missing:
        say(f"note: {' and '.join(missing)} not installed, left out")
    return not missing


# The rivals of each question


def lossless(quick: bool = False) -> list[Codec]:
    """Lossless rivals, fast to slow."""
    rivals = [
        pillow("png", "optimize", "PNG", optimize=True),
        jxl("jpeg_xl", "e1", lossless=True, effort=1),
        jxl("jpeg_xl", "e3", lossless=True, effort=3),
        pillow("webp", "m4 q75", "WEBP", lossless=True, method=4, quality=75, exact=True),
        pillow("jpeg2000", "reversible, one layer", "JPEG2000", irreversible=False, mct=1),
        jxl("jpeg_xl", "e7", lossless=True, effort=7),
    ]
    if installed("flif"):
        for setting, option in (("interlaced", "-I"), ("not interlaced", "-N")):
            rivals.append(Codec("flif", setting, partial(_flif, option), decode_flif))
    if not quick:
        rivals.append(jxl("jpeg_xl", "e9", lossless=True, effort=9))
        rivals.append(pillow("webp", "m6 q100", "WEBP", lossless=True, method=6, quality=100, exact=True))
    return rivals


def _flif(option: str, rgb: Rgb) -> bytes:
    return encode_flif(rgb, option)


def near_lossless(bound: int) -> list[Codec]:
    """Rivals none of whose samples is off by more than the bound; 0: lossless.

    JPEG-LS is made for that. JPEG XL stands for what any lossless codec does behind samples in steps.
    """
    return [
        Codec(JPEG_LS, "", partial(encode_jpegls, bound=bound), decode_jpegls),
        Codec(
            "jpeg_xl",
            "e7, samples in steps",
            partial(encode_jxl_steps, bound=bound),
            partial(decode_jxl_steps, bound=bound),
        ),
    ]


def near_lossless_unbounded(quick: bool = False) -> list[Codec]:
    """Rivals for nearly lossless files that keep no bound: WebP's mode, and JPEG XL at small distances."""
    rivals = [
        jxl("jpeg_xl", f"e7 d{d}", distance=d, effort=7) for d in JXL_NEAR_DISTANCES[: 1 if quick else None]
    ]
    if installed("cwebp"):
        for level in WEBP_NEAR_LEVELS[: 1 if quick else None]:
            rivals.append(
                Codec(
                    "webp", f"near_lossless {level}", partial(encode_cwebp_near, level=level), decode_pillow
                )
            )
    return rivals


def lossy(quick: bool = False) -> list[Codec]:
    """Lossy rivals at all points of their sweeps; a curve has one name.

    Left out is what brings its codec nothing: on Kodak JPEG XL at effort 9 has effort 7's curve, and AVIF at
    speed 1 is 1 % better than at 2.
    """
    curves: list[list[Codec]] = [
        [jpeg(q, "4:2:0") for q in JPEG_QUALITIES],
        [jpeg(q, "4:4:4") for q in JPEG_QUALITIES],
        [pillow("webp m6", f"q{q}", "WEBP", quality=q, method=6) for q in WEBP_QUALITIES],
        *([avif(q, 6, tune) for q in AVIF_QUALITIES] for tune in ("psnr", "iq")),
        [jxl("jpeg_xl e7", f"d{d}", distance=d, effort=7) for d in JXL_DISTANCES],
        [jpeg2000(rate) for rate in JPEG2000_RATES],
    ]
    if quick:
        return [codec for curve in curves for codec in curve[::QUICK_STRIDE]]
    curves += [[avif(q, 2, tune) for q in AVIF_SLOW_QUALITIES] for tune in ("psnr", "ssim")]
    return [codec for curve in curves for codec in curve]


def jpeg(quality: int, subsampling: str = "4:2:0") -> Codec:
    """Progressive JPEG with optimal Huffman tables."""
    name = f"jpeg {subsampling}"
    options = {"quality": quality, "subsampling": subsampling, "optimize": True, "progressive": True}
    return pillow(name, f"q{quality}", "JPEG", **options)


def avif(quality: int, speed: int = 6, tune: str = "psnr") -> Codec:
    """AVIF by libaom, 4:4:4, one thread; tune: what it optimises: psnr, ssim, or what the eye sees (iq)."""
    options = {"quality": quality, "speed": speed, "subsampling": "4:4:4", "codec": "aom", "max_threads": 1}
    return pillow(f"avif s{speed} {tune}", f"q{quality}", "AVIF", advanced={"tune": tune}, **options)


def jpeg2000(rate_bpp: float) -> Codec:
    """JPEG 2000, the 9/7 wavelet, at a target rate."""
    options = {"irreversible": True, "mct": 1, "quality_mode": "rates", "quality_layers": [24 / rate_bpp]}
    return pillow("jpeg2000", f"r{rate_bpp}", "JPEG2000", **options)


# Progressive rivals


def encode_layers(rgb: Rgb, budgets: Sequence[int]) -> tuple[bytes, list[int]]:
    """Reversible JPEG 2000 with a layer for each budget (bytes, rising) and a last exact one.

    Returns the file and the byte each layer ends at. The library misses its targets by a little, so they are
    corrected until every layer but the last fits its budget.
    """
    options = {
        "irreversible": False,
        "mct": 1,
        "no_jp2": True,
        "quality_mode": "rates",
        "progression": "LRCP",
    }
    targets = list(map(float, budgets))
    for _ in range(LAYER_ATTEMPTS):
        layers = [max(rgb.size / max(t, 1.0), 1.001) for t in targets] + [1]
        encode = partial(encode_pillow, rgb, "JPEG2000", quality_layers=layers, **options)
        data = encode()
        # the same packets once more with their lengths: a file that is cut needs none
        _, lengths = _packets(encode(plt=True))
        start, _ = _packets(data)
        if len(lengths) % len(layers):
            raise ValueError(f"{len(lengths)} packets in {len(layers)} layers")
        per_layer = len(lengths) // len(layers)
        ends = (start + np.cumsum(lengths)[per_layer - 1 :: per_layer]).tolist()
        over = [max(0, end - budget) for end, budget in zip(ends, budgets, strict=False)]
        if not any(over):
            break
        targets = [t - 1.5 * o for t, o in zip(targets, over, strict=True)]
    return data, ends


def decode_layers(data: bytes, ends: Sequence[int], n_bytes: int) -> Rgb | None:
    """The layers of `encode_layers` that are complete in the first bytes, from those bytes alone.

    None before the first.
    """
    n_layers = sum(end <= n_bytes for end in ends)
    if not n_layers:
        return None
    kept = data[: ends[n_layers - 1]]
    tile_length = kept.index(b"\xff\x90\x00\x0a") + 6  # Psot of the only tile-part; 0 says "to the end"
    kept = kept[:tile_length] + bytes(4) + kept[tile_length + 4 :] + END_OF_CODESTREAM
    with Image.open(io.BytesIO(kept)) as image:
        assert isinstance(image, ImageFile.ImageFile)
        (tile,) = image.tile
        kind, reduce, _, *rest = tile.args  # type: ignore[misc]
        image.tile = [tile._replace(args=(kind, reduce, n_layers, *rest))]
        return np.asarray(image.convert("RGB"))


def _packets(codestream: bytes) -> tuple[int, list[int]]:
    """Where the packets begin, and the lengths that PLT markers give them."""
    at, lengths, value = 2, [], 0
    while True:
        marker, length = struct.unpack_from(">HH", codestream, at)
        if marker == 0xFF93:  # start of data
            return at + 2, lengths
        if marker == 0xFF58:  # packet lengths, seven bits a byte
            for byte in codestream[at + 5 : at + 2 + length]:
                value = value << 7 | byte & 127
                if not byte & 128:
                    lengths.append(value)
                    value = 0
        at += 2 + length


def end_of_first_scan(data: bytes) -> int:
    """Where the first scan of a progressive JPEG is complete, the coarse one of the whole picture."""
    return data.index(START_OF_SCAN, data.index(START_OF_SCAN) + len(START_OF_SCAN))


def decode_jpeg_prefix(data: bytes, original: Rgb) -> Rgb | None:
    """The first bytes of a progressive JPEG by Pillow.

    Or their complete scans alone, if that comes closer to the original. None where it sees no picture.
    """
    whole_scans = data[: max(data.rfind(START_OF_SCAN), 0)] + END_OF_CODESTREAM
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        pictures = [decode_or_none(decode_pillow, d, original.shape) for d in (data, whole_scans)]
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    there = [p for p in pictures if p is not None]
    return min(there, key=lambda p: float(np.square(original - p.astype(np.float32)).sum()), default=None)


def decode_or_none(decode: Callable[[bytes], Rgb], data: bytes, shape: tuple[int, ...]) -> Rgb | None:
    """What a decoder makes of the first bytes of a file.

    None where it fails or the picture is of another size.
    """
    try:
        rgb = decode(data)
    except (subprocess.CalledProcessError, OSError):
        return None
    return rgb if rgb.shape == shape else None
