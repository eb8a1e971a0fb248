"""The functions of `vbc.codec` for Python programs, on Pillow images, arrays and tensors.

Light until something is coded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from vbc.bitstream import container
from vbc.bitstream.container import DEFAULT_LIMITS, Limits
from vbc.bitstream.source import FileSource, MemorySource, as_source
from vbc.codec.files.reading import read_vbc
from vbc.codec.settings import AUTO, EncodeSettings, Tune

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from vbc.bitstream.source import Source as ByteSource
    from vbc.codec.files.image_io import Metadata, Picture
    from vbc.codec.model import Model
    from vbc.codec.pipeline import Decoded
    from vbc.codec.regions import Region, Roi

    Interest: TypeAlias = (
        Roi | Region | Sequence[Region] | NDArray[np.bool_] | NDArray[np.uint8] | Image.Image | None
    )
    AskedInterest: TypeAlias = Interest | Literal["auto"]
    Source: TypeAlias = bytes | str | PathLike[str]
    Weights: TypeAlias = Model | str | PathLike[str] | None

Device = str
"""Where networks run and symbols are decoded, decoded tensors are there too: "cpu", "cuda" or "cuda:N"."""
Progress = Callable[[str, float], None]
"""Called with the name of a stage and how much of it is done, 0..1."""
METADATA_UNITS = {"icc": container.ICC, "exif": container.EXIF, "xmp": container.XMP}


@dataclass(frozen=True)
class FileInfo:
    """What the header of a file says. Sizes and offsets are in bytes.

    n_bytes: of the file at hand; n_bytes_complete: of the whole file. levels: numbers of the levels that are
    complete at hand. channels: 1 or 3, alpha not among them. quality: of levels 1 to 3; final_quality: with
    all refinements. near: how far a sample of all bins can be from the picture's, 0 where the file does not
    have them. level_ends: level number -> number of bytes from which on it can be decoded. n_packets: of the
    whole file. header_bytes: where the first of them starts. ranges: the bytes that a region needs,
    (start, end) each, ascending; of all the file where no region is asked for.
    """

    width: int
    height: int
    channels: int
    bit_depth: int
    alpha: bool
    quality: int
    final_quality: int
    refinements: int
    lossless: bool
    near: int
    n_bytes: int
    n_bytes_complete: int
    levels: tuple[int, ...]
    level_ends: dict[int, int]
    metadata_bytes: dict[str, int]
    model_hash: str
    tables_hash: str
    n_packets: int
    header_bytes: int
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DecodedPicture:
    """A picture with its metadata, the levels it was made from, and whether it equals the original."""

    picture: "Picture"
    levels: tuple[int, ...]
    exact: bool


def encode(
    image: "Image.Image | NDArray[np.uint8] | NDArray[np.uint16] | Tensor | Picture",
    *,
    levels: int = 3,
    quality: int | None = None,
    lossless: bool = False,
    effort: int = 1,
    tune: Tune = "eye",
    max_bytes: int | None = None,
    roi: "AskedInterest" = None,
    roi_quality: int | None = None,
    roi_first: bool = False,
    refinements: int | None = None,
    near: int = 0,
    progressive: bool = False,
    metadata: "Metadata | None" = None,
    device: Device = "cpu",
    model: "Weights" = None,
    progress: Progress | None = None,
) -> bytes:
    """Encode an image to the bytes of a .vbc file.

    image: a Pillow image (RGB, RGBA, L, LA, 1, P, PA or I;16), an array uint8 or uint16 [H, W] or [H, W, C],
    or a tensor of these types [H, W] or [C, H, W]; C is 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA.
    Alpha is always kept exactly. 16 bits are kept by lossless files; lossy ones store the upper byte.
    levels, quality, lossless, effort, tune, max_bytes, roi_quality, roi_first, refinements, near,
    progressive: as `EncodeSettings`.
    roi: regions of interest: (x, y, width, height) in pixels, several of these, or a mask of the picture's
    size, a gray image or an array [H, W], bool or uint8, of which 128 and more is inside; or "auto" for those
    that the encoder finds, if any.
    metadata: None keeps what a Pillow image carries; `Metadata()` drops it.
    model: None for the shipped weights, a path, or a loaded model.

    A lossless file is at most 1 % and 1 KiB larger than its samples and metadata; for that, on noise, the
    lossy levels get a lower quality than asked for. It is decoded again and compared before it is returned,
    as a near-lossless one is; SelfCheckFailed where it differs.
    max_bytes counts all of the file. ICC and alpha are always kept, EXIF and XMP if they take a quarter of it
    at most; of larger EXIF the orientation is kept.
    Raises ValueError for options that do not go together and regions that the picture does not have,
    UnsupportedImage for images that cannot be coded and masks that are none, NothingLeft (a ValueError) where
    `max_bytes` is too little for any of the picture.
    """
    settings = EncodeSettings(
        levels,
        quality,
        lossless,
        effort,
        tune,
        max_bytes,
        roi=AUTO if isinstance(roi, str) and roi == AUTO else as_roi(roi),
        roi_quality=roi_quality,
        roi_first=roi_first,
        refinements=refinements,
        near=near,
        progressive=progressive,
    )
    return encode_with(settings, image, metadata=metadata, device=device, model=model, progress=progress)


def encode_with(
    settings: EncodeSettings,
    image: "Image.Image | NDArray[np.uint8] | NDArray[np.uint16] | Tensor | Picture",
    *,
    metadata: "Metadata | None" = None,
    device: Device = "cpu",
    model: "Weights" = None,
    progress: Progress | None = None,
) -> bytes:
    """As `encode`, with settings that were checked before."""
    import torch

    from vbc.codec import pipeline

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
        model=load(model, device, tune=settings.tune),
        settings=settings,
        metadata=picture.metadata if metadata is None else metadata,
        gray=picture.gray,
        alpha=alpha,
        low=low,
        progress=progress,
    )


def decode(
    data: "bytes | bytearray | memoryview | ByteSource",
    *,
    levels: int | None = None,
    region: "Region | None" = None,
    native: bool = False,
    device: Device = "cpu",
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "Image.Image":
    """Decode the bytes of a .vbc file to a Pillow image: L, LA, RGB, RGBA or I;16. Inverse of `encode`.

    Its metadata is in `info`. levels: use the first so many levels of the file; None: all. region: (x, y,
    width, height) in pixels, a part of the picture, for which only the packets that it needs are read.
    native: at the size of the last lossy level used instead of the full one. allow_partial: accept a file of
    which packets are missing or damaged. limits: what is refused before anything is decoded or allocated.
    Raises FormatError, and UnsupportedImage for 16 bits with colour or alpha, which Pillow cannot hold:
    `decode_image` can.
    """
    decoded = decode_picture(
        data,
        levels=levels,
        region=region,
        native=native,
        device=device,
        allow_partial=allow_partial,
        limits=limits,
        model=model,
    )
    return decoded.picture.to_pillow()


def decode_picture(
    data: "bytes | bytearray | memoryview | ByteSource",
    *,
    levels: int | None = None,
    region: "Region | None" = None,
    native: bool = False,
    device: Device = "cpu",
    allow_partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
    progress: Progress | None = None,
) -> DecodedPicture:
    """As `decode`, but says which levels were used and whether the pixels are the original's."""
    check_device(device)
    header = check_decode(data, levels, region, native, limits)
    from vbc.codec import pipeline

    decoded = pipeline.decode_image(
        data,
        model=load(model, device, header),
        levels=levels,
        region=region,
        native=native,
        allow_partial=allow_partial,
        limits=limits,
        progress=progress,
    )
    picture = picture_of(decoded, read_metadata(data, decoded.header, allow_partial))
    return DecodedPicture(picture, tuple(decoded.levels), decoded.exact)


@overload
def decode_image(
    source: "Source",
    device: Device = "cuda",
    *,
    region: "Region | None" = None,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "Tensor": ...
@overload
def decode_image(
    source: "list[Source]",
    device: Device = "cuda",
    *,
    region: "Region | None" = None,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "list[Tensor]": ...
def decode_image(
    source: "Source | list[Source]",
    device: Device = "cuda",
    *,
    region: "Region | None" = None,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "Tensor | list[Tensor]":
    """Decode files given as paths or bytes to tensors [C, H, W] on the device: uint8, uint16 for 16 bits.

    C is 1 for gray images, else 3, and one more with alpha, which comes last. region: (x, y, width, height),
    a part of the picture; of a path no more is read than it needs. A list gives a list: as `decode_images` on
    a device, unless a region is asked for; on the CPU file by file, as one picture fills it and several would
    take more memory. Raises FormatError for bad files, OSError for unreadable ones, ValueError for a region
    that is not inside the picture.
    """
    if isinstance(source, list):
        if region is None and device != "cpu":
            return decode_images(source, device, limits=limits, model=model)
        return [decode_image(s, device, region=region, limits=limits, model=model) for s in source]
    with _opened(source, limits) as data:
        return _decode_tensor(data, device, region, limits, model)


def decode_images(
    sources: "Sequence[Source]",
    device: Device,
    *,
    limits: Limits = DEFAULT_LIMITS,
    model: "Weights" = None,
) -> "list[Tensor]":
    """Decode files to tensors as `decode_image` does, those that go together as one batch.

    Together go 8-bit pictures without alpha of one size, quality, model and kind of file; tensors of one
    batch share its memory. Files on disk are opened twice, first for all headers. Raises what `decode_image`
    raises for a bad file.
    """
    check_device(device)
    # what is no file, such as a pipe, can be read once
    sources = [s if isinstance(s, bytes) or Path(s).is_file() else read_vbc(s, limits) for s in sources]
    headers = []
    for source in sources:
        with _opened(source, limits) as data:
            headers.append(check_decode(data, None, None, False, limits))
    from vbc.codec.flow import decode_list

    tensors: dict[int, Tensor] = {}
    for numbers in decode_list.batches(headers):
        with ExitStack() as stack:
            opened = [stack.enter_context(_opened(sources[i], limits)) for i in numbers]
            if len(numbers) == 1:
                tensors[numbers[0]] = _decode_tensor(opened[0], device, None, limits, model)
                continue
            together = [headers[i] for i in numbers]
            pictures = decode_list.decode_together(opened, together, load(model, device, together[0]))
        for i, header, rgb in zip(numbers, together, pictures, strict=True):
            tensors[i] = rgb[1:2] if header.channels == 1 else rgb
    return [tensors[i] for i in range(len(sources))]


@contextmanager
def _opened(source: "Source", limits: Limits) -> "Iterator[ByteSource]":
    """The bytes of a file given as a path or as bytes."""
    if isinstance(source, bytes):
        yield MemorySource(source)
        return
    with open(source, "rb") as f:
        yield FileSource(f) if f.seekable() else MemorySource(read_vbc(f, limits))


def _decode_tensor(
    source: "ByteSource", device: Device, region: "Region | None", limits: Limits, model: "Weights"
) -> "Tensor":
    check_device(device)
    header = check_decode(source, None, region, False, limits)
    from vbc.codec import pipeline

    decoded = pipeline.decode_image(source, model=load(model, device, header), region=region, limits=limits)
    if decoded.alpha is not None or decoded.low is not None:
        import torch

        from vbc.codec.files.image_io import Metadata

        samples = picture_of(decoded, Metadata()).samples()
        return torch.from_numpy(samples).permute(2, 0, 1).contiguous().to(device)
    return (decoded.rgb[1:2] if decoded.header.channels == 1 else decoded.rgb).to(device)


def strip(
    data: "bytes | bytearray | memoryview | ByteSource",
    outside_roi: "Interest",
    *,
    keep_metadata: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """The file again without the packets of levels that regions of the picture do not need.

    outside_roi: the regions, as `encode` takes them. Nothing is decoded, and the regions keep their pixels;
    around them the picture is what groups that they need too show, or what is predicted from coarser levels.
    Where something of the levels goes, low bytes and pixel hash go too, so samples of 16 bits keep their
    upper bytes alone, and the file is no lossless one any more. Alpha stays whole. Metadata stays unless
    `keep_metadata` says otherwise; ancillary packets, of which nothing is known, go.
    Raises FormatError for a bad file and for damaged packets among those that stay, NothingLeft where the
    file has no packet that the regions need, ValueError for regions that the picture does not have.
    """
    from vbc.bitstream.rewrite import rewrite
    from vbc.codec.files.cutting import NothingLeft
    from vbc.codec.flow.decode_plan import places_for

    roi = as_roi(outside_roi)
    if roi is None:
        raise ValueError("a region that is to stay is missing")
    source = as_source(data)
    header = container.unpack_header(source, limits)
    needed = set(places_for(header, roi))
    if not any(header.packets[i].part for i in needed):
        raise NothingLeft("the file has nothing of these regions")
    left_out = () if keep_metadata else METADATA_UNITS.values()
    places = (
        i
        for i, packet in enumerate(header.packets)
        if (i in needed if packet.level else not packet.is_ancillary and packet.unit not in left_out)
    )
    return rewrite(source, header, places)


def read_info(
    data: bytes,
    n_bytes: int | None = None,
    *,
    levels: int | None = None,
    region: "Region | None" = None,
    limits: Limits = DEFAULT_LIMITS,
) -> FileInfo:
    """Read the header.

    data: the file or its first bytes; n_bytes: size of the file where `data` is only the first bytes. levels,
    region: as `decode`, for the ranges of bytes that they need. Raises FormatError where the header is not
    valid, or the file longer than the header says, ValueError for a region that is not inside the picture.
    """
    from vbc.bitstream.errors import Corrupt
    from vbc.codec.flow.decode_plan import all_packets, make_plan

    header = container.unpack_header(data, limits)
    n_bytes = len(data) if n_bytes is None else n_bytes
    if n_bytes > header.file_bytes:
        raise Corrupt(f"{n_bytes - header.file_bytes} bytes after the last packet")
    ends = container.level_ends(header)
    ranges = [(0, header.file_bytes)]
    if levels is not None or region is not None:
        ranges = container.byte_ranges(header, all_packets(header, make_plan(header, levels, region)))
    return FileInfo(
        width=header.width,
        height=header.height,
        channels=header.channels,
        bit_depth=header.bit_depth,
        alpha=header.has(container.ALPHA),
        quality=header.quality,
        final_quality=header.final_quality,
        refinements=header.geometry.refinements,
        lossless=header.lossless,
        near=header.bound if header.geometry.last_bins in ends else 0,
        n_bytes=n_bytes,
        n_bytes_complete=header.file_bytes,
        levels=container.complete_levels(header, container.usable(header, n_bytes)),
        level_ends=ends,
        metadata_bytes={
            name: header.packets[i].length
            for name, unit in METADATA_UNITS.items()
            if (i := header.find(unit)) is not None
        },
        model_hash=header.model_hash.hex(),
        tables_hash=header.tables_hash.hex(),
        n_packets=len(header.packets),
        header_bytes=header.header_bytes,
        ranges=tuple(ranges),
    )


def cut(
    data: "bytes | bytearray | memoryview | ByteSource",
    *,
    max_bytes: int | None = None,
    stage: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """A shorter .vbc file of the same picture, made without decoding: fewer packets, as they are.

    data: the file, or of a file that is cut off what is there. stage: keep the levels up to this one, in the
    order of `FileInfo.levels`. max_bytes: of these keep the first ones in the file, as many as a file of that
    length holds. One of both at least. What stays beside the levels: `files.cutting.cut_file`. Where nothing
    need be left out it is the file unchanged. Where something of the picture is, the new file is not
    lossless, and 16-bit samples have 8 bits.
    Raises FormatError where the header or a packet that stays is bad, NothingLeft where nothing of the
    picture would stay, ValueError for arguments that name no length and no level.
    """
    from vbc.codec.files.cutting import cut_file

    if max_bytes is None and stage is None:
        raise ValueError("max_bytes or stage is wanted")
    for name, value in (("max_bytes", max_bytes), ("stage", stage)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is 1 or more, not {value}")
    source = as_source(data)
    return cut_file(source, container.unpack_header(source, limits), max_bytes, stage)


def verify(
    data: bytes, *, device: Device = "cpu", limits: Limits = DEFAULT_LIMITS, model: "Weights" = None
) -> None:
    """Check all checksums, decode everything and compare with the stored pixel hash.

    Raises FormatError at the first fault.
    """
    check_device(device)
    header = check_decode(data, None, None, False, limits)
    from vbc.codec import pipeline

    pipeline.verify(data, model=load(model, device, header), limits=limits)


def read_metadata(
    data: "bytes | bytearray | memoryview | ByteSource",
    header: container.Header,
    allow_partial: bool = False,
) -> "Metadata":
    """Metadata of a file; what lies behind the end of a truncated file is left out.

    allow_partial: what is damaged is left out too. Else raises Corrupt.
    """
    from vbc.bitstream.errors import Corrupt
    from vbc.codec.files.image_io import Metadata

    source = as_source(data)
    parts = {}
    for name, unit in METADATA_UNITS.items():
        i = header.find(unit)
        if i is None or header.ends[i] > source.n_bytes:
            continue
        try:
            parts[name] = bytes(container.read_packet(source, header, i))
        except Corrupt:
            if not allow_partial:
                raise
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


def as_roi(interest: "Interest") -> "Roi | None":
    """Whatever `encode` takes for regions of interest. Raises ValueError, UnsupportedImage."""
    from vbc.codec.regions import Roi, as_region

    if interest is None or isinstance(interest, Roi):
        return interest
    if isinstance(interest, Sequence):
        one = bool(interest) and isinstance(interest[0], int)
        return Roi(tuple(map(as_region, (interest,) if one else interest)))
    import numpy as np

    from vbc.codec.files.region_mask import roi_of_array, roi_of_picture

    return (
        roi_of_array(interest) if isinstance(interest, np.ndarray) else roi_of_picture(as_picture(interest))
    )


def check_decode(
    data: "bytes | bytearray | memoryview | ByteSource",
    levels: int | None,
    region: "Region | None",
    native: bool,
    limits: Limits,
) -> container.Header:
    """Refuse what can be refused before torch and the weights are loaded; returns the header.

    Raises a FormatError for a bad header or one above the limits, ValueError for levels below 1, for a region
    that is not inside the picture, and for one together with `native`.
    """
    if levels is not None and levels < 1:
        raise ValueError(f"levels is 1 or more, not {levels}")
    header = container.unpack_header(data, limits)
    if region is not None:
        from vbc.codec.regions import check_region

        if native:
            raise ValueError("a region goes with the full size, not with a level's own")
        check_region(region, header.width, header.height)
    return header


def check_device(device: Device) -> None:
    """Raise unless the networks can run there.

    ValueError for a device of another kind, `CudaMissing` where torch sees no such CUDA device,
    `TritonMissing` where triton is not installed (`kernels.dispatch`; both are RuntimeErrors).
    """
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"the codec runs on cpu, cuda and cuda:N, not on {device}")
    if kind == "cuda":
        from vbc.kernels.dispatch import HAVE_TRITON, TritonMissing, require_device

        require_device(device)
        if not HAVE_TRITON:
            raise TritonMissing("on CUDA the codec needs triton: pip install triton")


def load(
    model: "Weights",
    device: Device = "cpu",
    header: container.Header | None = None,
    tune: Tune = "eye",
) -> "Model":
    """The model on the device; loading is cached.

    None stands for the installed weights: those that a file's header names, or the newest that encode for
    `tune`; a path for others. Raises ModelMissing where none of the installed ones made the file.
    """
    from vbc.codec.model import load_model, mind_forks, model_of

    mind_forks()
    if model is None:
        loaded = load_model(tune=tune) if header is None else model_of(header)
    else:
        loaded = load_model(Path(model)) if isinstance(model, str | PathLike) else model
    return loaded.to(device)
