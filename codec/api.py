"""The functions of `vbc.codec` for Python programs, on Pillow images, arrays and tensors.

Light until something is coded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, Limits
from vbc.codec.files.reading import read_vbc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from vbc.codec.files.image_io import Metadata, Picture
    from vbc.codec.model import Model
    from vbc.codec.pipeline import Decoded

    Source: TypeAlias = bytes | str | PathLike[str]
    Weights: TypeAlias = Model | str | PathLike[str] | None

Device = Literal["cpu", "cuda"]
Progress = Callable[[str, float], None]
"""Called with the name of a stage and how much of it is done, 0..1."""
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
"""Where networks run and symbols are decoded; decoded tensors are there too."""
MAX_EFFORT = 2
"""0: none, 1 (the default): output layers tuned to the image from samples, 2: tuned from all pixels."""
LOSSY_LEVELS = container.LOSSY_LEVELS
METADATA_KINDS = {"icc": container.ICC, "exif": container.EXIF, "xmp": container.XMP}


@dataclass(frozen=True)
class FileInfo:
    """What the header of a file says. Sizes and offsets are in bytes.

    n_bytes: of the file at hand; n_bytes_complete: of the whole file. levels: numbers of the levels that are
    complete at hand. channels: 1 or 3, alpha not among them. level_ends: level number -> number of bytes
    from which on it can be decoded.
    """

    width: int
    height: int
    channels: int
    bit_depth: int
    alpha: bool
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
    image: "Image.Image | NDArray[np.uint8] | NDArray[np.uint16] | Tensor | Picture",
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

    image: a Pillow image (RGB, RGBA, L, LA, 1, P, PA or I;16), an array uint8 or uint16 [H, W] or [H, W, C],
    or a tensor of these types [H, W] or [C, H, W]; C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.
    Alpha is always kept exactly. 16 bits are kept by lossless files; lossy ones store the upper byte.
    levels: lossy levels to store, 1..3, or 0 for an archival file (lossless only).
    quality: of the lossy levels, 0..100; on photographs that spans about 0.05 to 2.4 bits per pixel.
    effort: for the exact levels; 0: no tuning, 1: output layers tuned to the image from samples of it,
    2: tuned from all pixels (of a phase of a grid at most about 400,000), graphics packed in every way.
    Decoding is the same.
    metadata: None keeps what a Pillow image carries; `Metadata()` drops it.
    model: None for the shipped weights, a path, or a loaded model.

    A lossless file is at most 1 % and 1 KiB larger than its samples and metadata; for that, on noise, the
    lossy levels get a lower quality than asked for. It is decoded again and compared before it is returned;
    SelfCheckFailed where it differs.
    Raises ValueError for options that do not go together, UnsupportedImage for images that cannot be coded.
    """
    import torch

    from vbc.codec import pipeline

    n_levels = check_options(levels, quality, lossless, effort)
    check_device(device)
    picture = as_picture(image)
    rgb, alpha, low = (
        # torch warns of read-only memory
        None if p is None else torch.from_numpy(p if p.flags.writeable else p.copy())
        for p in (picture.rgb, picture.alpha, picture.low)
    )
    assert rgb is not None
    return pipeline.encode_image(
        rgb.permute(2, 0, 1),
        model=load(model, device),
        levels=n_levels,
        quality=quality,
        lossless=lossless,
        effort=effort,
        metadata=picture.metadata if metadata is None else metadata,
        gray=picture.gray,
        alpha=alpha,
        low=low,
        progress=progress,
    )


def decode(
    data: bytes,
    *,
    levels: int | None = None,
    native: bool = False,
    device: Device = "cpu",
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "Image.Image":
    """Decode the bytes of a .vbc file to a Pillow image: L, LA, RGB, RGBA or I;16. Inverse of `encode`.

    Its metadata is in `info`. levels: use the first so many levels of the file; None: all. native: at the
    size of the last lossy level used instead of the full one. allow_partial: accept a file whose end is
    missing. limits: what is refused before anything is decoded or allocated. Raises FormatError, and
    UnsupportedImage for 16 bits with colour or alpha, which Pillow cannot hold: `decode_image` can.
    """
    decoded = decode_picture(
        data,
        levels=levels,
        native=native,
        device=device,
        allow_partial=allow_partial,
        limits=limits,
        model=model,
    )
    return decoded.picture.to_pillow()


def decode_picture(
    data: bytes,
    *,
    levels: int | None = None,
    native: bool = False,
    device: Device = "cpu",
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
    progress: Progress | None = None,
) -> DecodedPicture:
    """As `decode`, but says which levels were used and whether the pixels are the original's."""
    check_device(device)
    check_decode(data, levels, limits)
    from vbc.codec import pipeline

    decoded = pipeline.decode_image(
        data,
        model=load(model, device),
        levels=levels,
        native=native,
        allow_partial=allow_partial,
        limits=limits,
        progress=progress,
    )
    picture = picture_of(decoded, read_metadata(data, decoded.header))
    return DecodedPicture(picture, tuple(decoded.levels), decoded.exact)


@overload
def decode_image(
    source: "Source", device: Device = "cuda", *, limits: Limits = DEFAULT_LIMITS, model: "Weights" = None
) -> "Tensor": ...
@overload
def decode_image(
    source: "list[Source]",
    device: Device = "cuda",
    *,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "list[Tensor]": ...
def decode_image(
    source: "Source | list[Source]",
    device: Device = "cuda",
    *,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "Tensor | list[Tensor]":
    """Decode files given as paths or bytes to tensors [C, H, W] on the device: uint8, uint16 for 16 bits.

    C is 1 for gray images, else 3, and one more with alpha, which comes last. A list gives a list. Raises
    FormatError for bad files, OSError for unreadable ones.
    """
    if isinstance(source, list):
        return [decode_image(s, device, limits=limits, model=model) for s in source]
    data = source if isinstance(source, bytes) else read_vbc(source, limits)
    check_decode(data, None, limits)
    check_device(device)
    from vbc.codec import pipeline

    decoded = pipeline.decode_image(data, model=load(model, device), limits=limits)
    if decoded.alpha is not None or decoded.low is not None:
        import torch

        from vbc.codec.files.image_io import Metadata

        samples = picture_of(decoded, Metadata()).samples()
        return torch.from_numpy(samples).permute(2, 0, 1).contiguous().to(device)
    return (decoded.rgb[1:2] if decoded.header.channels == 1 else decoded.rgb).to(device)


def read_info(data: bytes, n_bytes: int | None = None, *, limits: Limits = DEFAULT_LIMITS) -> FileInfo:
    """Read the header.

    data: the file or its first bytes; n_bytes: size of the file where `data` is only the first bytes. Raises
    FormatError where the header is not valid, or the file longer than the header says.
    """
    from vbc.bitstream.errors import Corrupt

    header = container.unpack_header(data, limits)
    n_bytes = len(data) if n_bytes is None else n_bytes
    if n_bytes > header.file_bytes:
        raise Corrupt(f"{n_bytes - header.file_bytes} bytes after the last chunk")
    sizes = {chunk.kind: chunk.length for chunk in header.chunks}
    return FileInfo(
        width=header.width,
        height=header.height,
        channels=header.channels,
        bit_depth=header.bit_depth,
        alpha=header.has(container.ALPHA),
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


def verify(
    data: bytes, *, device: Device = "cpu", limits: Limits = DEFAULT_LIMITS, model: "Weights" = None
) -> None:
    """Check all checksums, decode everything and compare with the stored pixel hash.

    Raises FormatError at the first fault.
    """
    check_device(device)
    check_decode(data, None, limits)
    from vbc.codec import pipeline

    pipeline.verify(data, model=load(model, device), limits=limits)


def read_metadata(data: bytes, header: container.Header) -> "Metadata":
    """Metadata of a file; what lies behind the end of a truncated file is left out. Raises Corrupt."""
    from vbc.codec.files.image_io import Metadata

    names = {kind: name for name, kind in METADATA_KINDS.items()}
    parts = {}
    for i, (chunk, end) in enumerate(zip(header.chunks, header.chunk_ends, strict=True)):
        if chunk.kind in names and end <= len(data):
            parts[names[chunk.kind]] = bytes(container.read_chunk(data, header, i))
    return Metadata(**parts)


def picture_of(decoded: "Decoded", metadata: "Metadata") -> "Picture":
    """What the pipeline decoded, as a picture with its metadata."""
    from vbc.codec.files.image_io import Picture

    return Picture(
        decoded.rgb.permute(1, 2, 0).cpu().numpy(),
        decoded.header.channels == 1,
        metadata,
        None if decoded.alpha is None else decoded.alpha.cpu().numpy(),
        None if decoded.low is None else decoded.low.cpu().numpy(),
    )


def as_picture(
    image: "Image.Image | NDArray[np.uint8] | NDArray[np.uint16] | Tensor | Picture",
) -> "Picture":
    """Whatever `encode` takes, as a picture. Raises UnsupportedImage."""
    import numpy as np
    from PIL import Image

    from vbc.codec.files.image_io import Metadata, Picture, UnsupportedImage, check_size, from_pillow

    if isinstance(image, Picture):
        return image
    if isinstance(image, Image.Image):
        return from_pillow(image)
    planes = np.asarray(image if isinstance(image, np.ndarray) else image.cpu().numpy())
    if planes.ndim == 3 and not isinstance(image, np.ndarray):
        planes = planes.transpose(1, 2, 0)
    if planes.ndim == 2:
        planes = planes[..., None]
    planes = planes.astype(planes.dtype.newbyteorder("="), copy=False)
    if planes.dtype not in (np.uint8, np.uint16) or planes.ndim != 3 or not 1 <= planes.shape[2] <= 4:
        raise UnsupportedImage(
            f"{planes.dtype} of shape {planes.shape}; uint8 or uint16 with 1 to 4 channels is wanted"
        )
    check_size(planes.shape[1], planes.shape[0])
    return Picture.from_samples(planes, Metadata())


def check_decode(data: bytes, levels: int | None, limits: Limits) -> None:
    """Refuse what can be refused before torch and the weights are loaded.

    Raises a FormatError for a bad header or one above the limits, ValueError for levels below 1.
    """
    if levels is not None and levels < 1:
        raise ValueError(f"levels is 1 or more, not {levels}")
    container.unpack_header(data, limits)


def check_device(device: Device) -> None:
    """Raise unless the networks can run there.

    ValueError for a device of another kind, `CudaMissing` where torch sees no CUDA device, `TritonMissing`
    where triton is not installed (`kernels.dispatch`; both are RuntimeErrors).
    """
    if device not in DEVICES:
        raise ValueError(f"the codec runs on {' and '.join(DEVICES)}, not on {device}")
    if device == "cuda":
        from vbc.kernels.dispatch import HAVE_TRITON, TritonMissing, require_device

        require_device(device)
        if not HAVE_TRITON:
            raise TritonMissing("on CUDA the codec needs triton: pip install triton")


def load(model: "Weights", device: Device = "cpu") -> "Model":
    """The model on the device; None stands for the shipped weights, a path for others. Loading is cached."""
    from vbc.codec.model import load_model

    if model is None:
        loaded = load_model()
    else:
        loaded = load_model(Path(model)) if isinstance(model, str | PathLike) else model
    return loaded.to(device)
