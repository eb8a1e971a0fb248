"""The functions of `vbc.codec` for Python programs, on Pillow images, arrays and tensors.

Light until something is coded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from vbc.bitstream import container

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from vbc.codec.image_io import Metadata, Picture
    from vbc.codec.model import Model

    Source: TypeAlias = bytes | str | PathLike[str]
    Weights: TypeAlias = Model | str | PathLike[str] | None

Device = Literal["cpu", "cuda"]
Progress = Callable[[str, float], None]
"""Called with the name of a stage and how much of it is done, 0..1."""
DEVICES: tuple[Device, ...] = ("cpu",)
"""Where the networks can run; decoded tensors can be put anywhere."""
MAX_EFFORT = 2
"""0: none, 1 (the default): output layers tuned to the image from samples, 2: tuned from all pixels."""
LOSSY_LEVELS = container.LOSSY_LEVELS
METADATA_KINDS = {"icc": container.ICC, "exif": container.EXIF, "xmp": container.XMP}


@dataclass(frozen=True)
class FileInfo:
    """What the header of a file says. Sizes and offsets are in bytes.

    n_bytes: of the file at hand; n_bytes_complete: of the whole file. levels: numbers of the levels that are
    complete at hand. level_ends: level number -> number of bytes from which on it can be decoded.
    """

    width: int
    height: int
    channels: int
    bit_depth: int
    quality: int
    lossless: bool
    n_bytes: int
    n_bytes_complete: int
    levels: tuple[int, ...]
    level_ends: dict[int, int]
    metadata_bytes: dict[str, int]
    model_hash: str
    tables_hash: str


@dataclass(frozen=True)
class DecodedPicture:
    """A picture with its metadata, the levels it was made from, and whether it equals the original."""

    picture: "Picture"
    levels: tuple[int, ...]
    exact: bool


def check_options(levels: int | None, quality: int, lossless: bool, effort: int) -> int:
    """The number of lossy levels to store. Raises ValueError where the options do not go together."""
    n_levels = LOSSY_LEVELS if levels is None else levels
    if lossless and n_levels not in (0, LOSSY_LEVELS):
        raise ValueError(
            f"lossless goes with levels {LOSSY_LEVELS} (layered) or 0 (archival), not {n_levels}"
        )
    if not lossless and not 1 <= n_levels <= LOSSY_LEVELS:
        raise ValueError(f"levels is 1 to {LOSSY_LEVELS}, or 0 together with lossless, not {n_levels}")
    if not 0 <= quality <= 100:
        raise ValueError(f"quality is 0 to 100, not {quality}")
    if not 0 <= effort <= MAX_EFFORT:
        raise ValueError(f"effort is 0 to {MAX_EFFORT}, not {effort}")
    return n_levels


def encode(
    image: "Image.Image | NDArray[np.uint8] | Tensor | Picture",
    *,
    levels: int = LOSSY_LEVELS,
    quality: int = 60,
    lossless: bool = False,
    effort: int = 1,
    metadata: "Metadata | None" = None,
    device: Device = "cpu",
    model: "Weights" = None,
    progress: Progress | None = None,
) -> bytes:
    """Encode an image to the bytes of a .vbc file.

    image: a Pillow image (RGB, L, 1 or P, without transparency), uint8 array [H, W] or [H, W, 3], or uint8
    tensor [1, H, W] or [3, H, W].
    levels: lossy levels to store, 1..3, or 0 for an archival file (lossless only).
    quality: of the lossy levels, 0..100; on photographs that spans about 0.03 to 1.9 bits per pixel.
    effort: for the exact levels; 0: no tuning, 1: output layers tuned to the image from samples of it,
    2: tuned from all pixels (of a phase of a grid at most about 400,000). Decoding is the same.
    metadata: None keeps what a Pillow image carries; `Metadata()` drops it.
    model: None for the shipped weights, a path, or a loaded model.

    A lossless file is decoded again and compared before it is returned; SelfCheckFailed where it differs.
    Raises ValueError for options that do not go together, UnsupportedImage for images that cannot be coded.
    """
    import torch

    from vbc.codec import pipeline

    n_levels = check_options(levels, quality, lossless, effort)
    check_device(device)
    picture = as_picture(image)
    pixels = (
        picture.rgb if picture.rgb.flags.writeable else picture.rgb.copy()
    )  # torch warns of read-only memory
    rgb = torch.from_numpy(pixels).permute(2, 0, 1)
    return pipeline.encode_image(
        rgb,
        model=load(model),
        levels=n_levels,
        quality=quality,
        lossless=lossless,
        effort=effort,
        metadata=picture.metadata if metadata is None else metadata,
        gray=picture.gray,
        progress=progress,
    )


def decode(
    data: bytes,
    *,
    levels: int | None = None,
    native: bool = False,
    device: Device = "cpu",
    allow_partial: bool = False,
    model: "Weights" = None,
) -> "Image.Image":
    """Decode the bytes of a .vbc file to a Pillow image of mode RGB or L. Inverse of `encode`.

    Its metadata is in `info`. levels: use the first so many levels of the file; None: all. native: at the
    size of the last lossy level used instead of the full one. allow_partial: accept a file whose end is
    missing. Raises FormatError.
    """
    decoded = decode_picture(
        data, levels=levels, native=native, device=device, allow_partial=allow_partial, model=model
    )
    return decoded.picture.to_pillow()


def decode_picture(
    data: bytes,
    *,
    levels: int | None = None,
    native: bool = False,
    device: Device = "cpu",
    allow_partial: bool = False,
    model: "Weights" = None,
    progress: Progress | None = None,
) -> DecodedPicture:
    """As `decode`, but says which levels were used and whether the pixels are the original's."""
    from vbc.codec import pipeline
    from vbc.codec.image_io import Picture

    check_device(device)
    decoded = pipeline.decode_image(
        data, model=load(model), levels=levels, native=native, allow_partial=allow_partial, progress=progress
    )
    rgb = decoded.rgb.permute(1, 2, 0).cpu().numpy()
    picture = Picture(rgb, decoded.header.channels == 1, read_metadata(data, decoded.header))
    return DecodedPicture(picture, tuple(decoded.levels), decoded.exact)


@overload
def decode_image(source: "Source", device: Device = "cuda", *, model: "Weights" = None) -> "Tensor": ...
@overload
def decode_image(
    source: "list[Source]", device: Device = "cuda", *, model: "Weights" = None
) -> "list[Tensor]": ...
def decode_image(
    source: "Source | list[Source]", device: Device = "cuda", *, model: "Weights" = None
) -> "Tensor | list[Tensor]":
    """Decode files given as paths or bytes to uint8 tensors [C, H, W] on the device.

    C is 1 for gray images, else 3. A list gives a list. Raises FormatError for bad files, OSError for
    unreadable ones.
    """
    from vbc.codec import pipeline

    if isinstance(source, list):
        loaded = load(model)
        return [decode_image(s, device, model=loaded) for s in source]
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    decoded = pipeline.decode_image(data, model=load(model))
    return (decoded.rgb[1:2] if decoded.header.channels == 1 else decoded.rgb).to(device)


def read_info(data: bytes, n_bytes: int | None = None) -> FileInfo:
    """Read the header.

    data: the file or its first bytes; n_bytes: size of the file where `data` is only the first bytes. Raises
    FormatError where the header is not valid, or the file longer than the header says.
    """
    from vbc.bitstream.errors import Corrupt

    header = container.unpack_header(data, container.DEFAULT_LIMITS)
    n_bytes = len(data) if n_bytes is None else n_bytes
    if n_bytes > header.file_bytes:
        raise Corrupt(f"{n_bytes - header.file_bytes} bytes after the last chunk")
    sizes = {chunk.kind: chunk.length for chunk in header.chunks}
    return FileInfo(
        width=header.width,
        height=header.height,
        channels=header.channels,
        bit_depth=header.bit_depth,
        quality=header.quality,
        lossless=bool(header.flags & container.LOSSLESS),
        n_bytes=n_bytes,
        n_bytes_complete=header.file_bytes,
        levels=container.available_levels(n_bytes, header),
        level_ends=container.level_ends(header),
        metadata_bytes={name: sizes[kind] for name, kind in METADATA_KINDS.items() if kind in sizes},
        model_hash=header.model_hash.hex(),
        tables_hash=header.tables_hash.hex(),
    )


def verify(data: bytes, *, device: Device = "cpu", model: "Weights" = None) -> None:
    """Check all checksums, decode everything and compare with the stored pixel hash.

    Raises FormatError at the first fault.
    """
    from vbc.codec import pipeline

    check_device(device)
    pipeline.verify(data, model=load(model))


def read_metadata(data: bytes, header: container.Header) -> "Metadata":
    """Metadata of a file; what lies behind the end of a truncated file is left out. Raises Corrupt."""
    from vbc.codec.image_io import Metadata

    names = {kind: name for name, kind in METADATA_KINDS.items()}
    parts = {}
    for i, (chunk, end) in enumerate(zip(header.chunks, header.chunk_ends, strict=True)):
        if chunk.kind in names and end <= len(data):
            parts[names[chunk.kind]] = bytes(container.read_chunk(data, header, i))
    return Metadata(**parts)


def as_picture(image: "Image.Image | NDArray[np.uint8] | Tensor | Picture") -> "Picture":
    """Whatever `encode` takes, as a picture. Raises UnsupportedImage."""
    import numpy as np
    from PIL import Image

    from vbc.codec.image_io import Metadata, Picture, UnsupportedImage, check_size, from_pillow

    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        return from_pillow(image)
    planes = np.asarray(image) if isinstance(image, np.ndarray) else image.cpu().permute(1, 2, 0).numpy()
    if planes.ndim == 2:
        planes = planes[..., None]
    if planes.dtype != np.uint8 or planes.ndim != 3 or planes.shape[2] not in (1, 3):
        raise UnsupportedImage(
            f"{planes.dtype} of shape {planes.shape}; uint8 with 1 or 3 channels is wanted"
        )
    check_size(planes.shape[1], planes.shape[0])
    gray = planes.shape[2] == 1
    return Picture(np.repeat(planes, 3, axis=2) if gray else planes, gray, Metadata())


def check_device(device: Device) -> None:
    """Raise ValueError unless the networks can run there."""
    if device not in DEVICES:
        raise ValueError(f"the networks of this version run on {' and '.join(DEVICES)}, not on {device}")


def load(model: "Weights") -> "Model":
    """The model itself; None stands for the shipped weights, a path for others. Loading is cached."""
    from vbc.codec.model import load_model

    if model is None:
        return load_model()
    return load_model(Path(model)) if isinstance(model, str | PathLike) else model
