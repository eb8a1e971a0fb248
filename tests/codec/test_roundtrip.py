"""Files of the tiny model: lossless is equal, prefixes decode, damage is noticed."""

import numpy as np
import pytest
import torch
from checks import rebuild
from pictures import CONTENTS, SIZES, checker, noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt, FormatError, ModelMissing, Truncated
from vbc.codec import api
from vbc.codec.exact.grids import Coded
from vbc.codec.files.image_io import Metadata, UnsupportedImage
from vbc.codec.model import Model
from vbc.codec.pipeline import SelfCheckFailed, decode_image, encode_image, verify
from vbc.codec.train.export import PseudoRandom


@pytest.fixture(scope="module")
def layered(tiny: Model) -> bytes:
    return encode_image(photo(37, 50), model=tiny, lossless=True)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("levels", [0, 3])
def test_lossless_is_equal(tiny: Model, content: str, size: tuple[int, int], levels: int) -> None:
    x = CONTENTS[content](*size)
    data = encode_image(x, model=tiny, levels=levels, lossless=True, quality=35)
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, x)
    verify(data, model=tiny)


@pytest.mark.parametrize("effort", [0, 1, 2])
def test_every_effort_is_lossless(tiny: Model, effort: int) -> None:
    x = photo(230, 250)  # large enough for tuned output layers
    data = encode_image(x, model=tiny, levels=0, lossless=True, effort=effort)
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


def test_tuning_makes_files_smaller(tiny: Model) -> None:
    x = photo(230, 250)
    plain, tuned = (len(encode_image(x, model=tiny, levels=0, lossless=True, effort=e)) for e in (0, 2))
    assert tuned < plain


def test_noise_never_grows(tiny: Model) -> None:
    x = noise(64, 65)
    assert len(encode_image(x, model=tiny, levels=0, lossless=True)) <= x.numel() * 1.01 + 1024


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_lossy_sizes(tiny: Model, size: tuple[int, int], levels: int) -> None:
    data = encode_image(photo(*size), model=tiny, levels=levels)
    decoded = decode_image(data, model=tiny)
    assert decoded.rgb.shape == (3, *size)
    assert decoded.levels == tuple(range(1, levels + 1))
    side = {1: 4, 2: 2, 3: 1}[levels]
    native = decode_image(data, model=tiny, native=True).rgb
    assert native.shape == (3, -(-size[0] // side), -(-size[1] // side))


@pytest.mark.parametrize("quality", [0, 100])
def test_extreme_qualities(tiny: Model, quality: int) -> None:
    x = CONTENTS["stripes"](40, 33)
    data = encode_image(x, model=tiny, quality=quality, lossless=True)
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


def test_levels_and_lossless_must_go_together(tiny: Model) -> None:
    for levels, lossless in ((0, False), (1, True), (2, True), (4, False), (-1, False)):
        with pytest.raises(ValueError, match="cannot be coded"):
            encode_image(photo(8, 8), model=tiny, levels=levels, lossless=lossless)


def test_every_level_boundary(tiny: Model, layered: bytes) -> None:
    """At a level's end it decodes; one byte less, and the level before is the best there is."""
    header = container.unpack_header(layered)
    ends = container.level_ends(header)
    before = 0
    for n, end in enumerate(ends.values(), 1):
        want = decode_image(layered, model=tiny, levels=n)
        for cut in (end, end + 1):
            got = decode_image(layered[:cut], model=tiny, allow_partial=True)
            assert got.levels == tuple(ends)[:n]
            assert torch.equal(got.rgb, want.rgb)
        if n > 1:
            short = decode_image(layered[: end - 1], model=tiny, allow_partial=True)
            assert short.levels == tuple(ends)[: n - 1]
        else:
            with pytest.raises(Truncated):
                decode_image(layered[: end - 1], model=tiny, allow_partial=True)
        with pytest.raises(Truncated) as caught:
            decode_image(layered[: end - 1], model=tiny)
        assert caught.value.levels_available == tuple(ends)[: n - 1]
        assert end > before
        before = end


def test_an_exact_grid_keeps_its_pixels_when_finer_levels_are_missing(tiny: Model, layered: bytes) -> None:
    x = photo(37, 50)
    n_levels = len(container.level_ends(container.unpack_header(layered)))
    part = decode_image(layered, model=tiny, levels=n_levels - 1).rgb
    assert torch.equal(part[:, ::2, ::2], x[:, ::2, ::2])
    assert not torch.equal(part, x)


def test_archival_prefix_predicts_the_rest(tiny: Model) -> None:
    x = photo(37, 50)
    data = encode_image(x, model=tiny, levels=0, lossless=True)
    part = decode_image(data, model=tiny, levels=2)
    assert part.rgb.shape == x.shape
    assert not part.exact


def test_every_truncation_of_a_small_file(tiny: Model) -> None:
    data = encode_image(photo(6, 9), model=tiny, lossless=True)
    for n in range(len(data)):
        with pytest.raises(FormatError):
            decode_image(data[:n], model=tiny)


def test_corruption_is_noticed(tiny: Model, layered: bytes) -> None:
    rng = np.random.default_rng(3)
    for bit in rng.integers(0, 8 * len(layered), 300):
        broken = bytearray(layered)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            verify(bytes(broken), model=tiny)


def test_corruption_with_repaired_checksums(tiny: Model, layered: bytes) -> None:
    """Whatever the lanes hold, the outcome is a FormatError or a picture of the declared size."""
    header = container.unpack_header(layered)
    rng = np.random.default_rng(4)
    for _ in range(150):
        payloads = [bytearray(container.read_chunk(layered, header, i)) for i in range(len(header.chunks))]
        target = payloads[rng.integers(0, len(payloads))]
        for _ in range(int(rng.integers(1, 4))):
            target[rng.integers(0, len(target))] = rng.integers(0, 256)
        broken = rebuild(header, payloads)
        try:
            assert decode_image(broken, model=tiny).rgb.shape == (3, 37, 50)
        except FormatError:
            pass


# alpha and 16 bits


def extra_planes(content: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Alpha and four planes of low bytes."""
    if content == "noise":
        rows = noise(5 * height, width)[0]
    elif content == "constant":
        rows = CONTENTS["constant"](5 * height, width)[0]
    else:
        rows = torch.from_numpy(np.concatenate([soft_mask(height, width), checker(4 * height, width)]))
    planes = rows.reshape(5, height, width)
    return planes[0], planes[1:]


@pytest.mark.parametrize("content", ["noise", "constant", "mask"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 23)], ids=str)
@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("kind", ["alpha", "low", "alpha low", "gray low", "gray alpha low"])
def test_extra_planes_are_equal(
    tiny: Model, content: str, size: tuple[int, int], levels: int, kind: str
) -> None:
    alpha, low = extra_planes(content, *size)
    gray = "gray" in kind
    x = CONTENTS["noise" if content == "noise" else "photo"](*size)
    x = x[1:2].expand(3, -1, -1).contiguous() if gray else x
    given_alpha = alpha if "alpha" in kind else None
    given_low = low[: (1 if gray else 3) + ("alpha" in kind)] if "low" in kind else None
    data = encode_image(
        x, model=tiny, levels=levels, lossless=True, gray=gray, alpha=given_alpha, low=given_low
    )
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, x)
    for got, want in ((decoded.alpha, given_alpha), (decoded.low, given_low)):
        assert (got is None) == (want is None)
        assert want is None or torch.equal(got, want)
    assert decoded.header.bit_depth == (8 if given_low is None else 16)
    verify(data, model=tiny)
    if not levels:  # lossy levels of noise come on top
        n_raw = sum(p.numel() for p in (x[:1] if gray else x, given_alpha, given_low) if p is not None)
        assert len(data) <= n_raw * 1.01 + 1024


@pytest.fixture(scope="module")
def with_alpha(tiny: Model) -> bytes:
    return encode_image(photo(6, 9), model=tiny, lossless=True, alpha=extra_planes("mask", 6, 9)[0])


@pytest.fixture(scope="module")
def deep(tiny: Model) -> bytes:
    alpha, low = extra_planes("noise", 6, 9)
    return encode_image(photo(6, 9), model=tiny, lossless=True, alpha=alpha, low=low)


@pytest.mark.parametrize("name", ["with_alpha", "deep"])
def test_every_truncation_with_extra_planes(tiny: Model, name: str, request: pytest.FixtureRequest) -> None:
    """Every prefix that shows a picture has its alpha; 16 bits are there when all of them are."""
    data: bytes = request.getfixturevalue(name)
    header = container.unpack_header(data)
    ends = container.level_ends(header)
    alpha, low = extra_planes("noise" if name == "deep" else "mask", 6, 9)
    low_end = next(
        (e for c, e in zip(header.chunks, header.chunk_ends, strict=True) if c.kind == container.LOW), None
    )
    for n in range(len(data)):
        there = tuple(level for level, end in ends.items() if end <= n)
        with pytest.raises(Truncated) as caught:
            decode_image(data[:n], model=tiny)
        assert caught.value.levels_available == (there if n >= header.header_bytes else ())
        if not there:
            with pytest.raises(Truncated):
                decode_image(data[:n], model=tiny, allow_partial=True)
            continue
        if n not in ends.values() and n not in header.chunk_ends and n % 29:
            continue  # between two ends nothing changes; a sample of them is decoded
        decoded = decode_image(data[:n], model=tiny, allow_partial=True)
        assert decoded.levels == there
        assert torch.equal(decoded.alpha, alpha)
        if low_end is not None and n >= low_end:
            assert torch.equal(decoded.low, low)
            assert decoded.exact
        else:
            assert decoded.low is None
            assert decoded.exact == (low_end is None and len(there) == len(ends))


def test_fewer_levels_of_a_deep_file(tiny: Model, deep: bytes) -> None:
    """The upper bytes; all levels by number are 16 bits again, and want the low bytes to be there."""
    header = container.unpack_header(deep)
    n_levels = len(container.level_ends(header))
    for n in range(1, n_levels):
        assert decode_image(deep, model=tiny, levels=n).low is None
    assert decode_image(deep, model=tiny, levels=n_levels).low is not None
    cut = deep[: max(container.level_ends(header).values()) + 3]
    with pytest.raises(Truncated) as caught:
        decode_image(cut, model=tiny, levels=n_levels)
    assert caught.value.levels_available == tuple(container.level_ends(header))


def test_lossy_files_keep_alpha_and_drop_low_bytes(tiny: Model) -> None:
    alpha, low = extra_planes("mask", 17, 23)
    data = encode_image(photo(17, 23), model=tiny, alpha=alpha, low=low)
    for n in (1, 2, 3):
        decoded = decode_image(data, model=tiny, levels=n)
        assert decoded.header.bit_depth == 8
        assert decoded.low is None
        assert torch.equal(decoded.alpha, alpha)


def test_alpha_at_a_levels_own_size(tiny: Model) -> None:
    alpha = extra_planes("noise", 17, 23)[0]
    data = encode_image(photo(17, 23), model=tiny, levels=2, alpha=alpha)
    for n, side in ((1, 4), (2, 2)):
        decoded = decode_image(data, model=tiny, levels=n, native=True)
        padded = np.pad(alpha.numpy(), ((0, -17 % side), (0, -23 % side)), mode="edge").astype(float)
        squares = padded.reshape(padded.shape[0] // side, side, -1, side)
        assert decoded.alpha.shape == decoded.rgb.shape[1:]
        assert np.array_equal(decoded.alpha, np.floor(squares.mean((1, 3)) + 0.5))


def test_corrupted_planes_with_repaired_checksums(tiny: Model, with_alpha: bytes, deep: bytes) -> None:
    rng = np.random.default_rng(5)
    failed = 0
    for data, kind in ((with_alpha, container.ALPHA), (deep, container.ALPHA), (deep, container.LOW)):
        header = container.unpack_header(data)
        for _ in range(20):
            payloads = [bytearray(container.read_chunk(data, header, i)) for i in range(len(header.chunks))]
            target = payloads[[c.kind for c in header.chunks].index(kind)]
            if rng.integers(0, 4):
                target[rng.integers(0, len(target))] ^= 1 << rng.integers(0, 8)
            else:
                del target[rng.integers(0, len(target)) :]
            try:
                verify(rebuild(header, payloads), model=tiny)
            except FormatError:
                failed += 1
            else:
                assert [bytes(p) for p in payloads] == [
                    bytes(container.read_chunk(data, header, i)) for i in range(len(header.chunks))
                ]
    assert failed == 60


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2"])
@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_python_functions_with_every_kind_of_samples(tiny: Model, n_channels: int, dtype: str) -> None:
    """Array and tensor in, tensor and Pillow image out, metadata beside them."""
    rng = np.random.default_rng(n_channels)
    top = np.iinfo(dtype).max
    given = rng.integers(0, top + 1, (5, 7, n_channels)).astype(dtype)
    native = given.astype(given.dtype.newbyteorder("="))
    meta = Metadata(icc=b"profile", exif=b"MM\0*\0\0\0\x08\0\0", xmp=b"<xmp/>")
    data = api.encode(given, lossless=True, levels=0, metadata=meta, model=tiny)
    api.verify(data, model=tiny)
    assert (
        api.encode(
            torch.from_numpy(native).permute(2, 0, 1), lossless=True, levels=0, metadata=meta, model=tiny
        )
        == data
    )
    tensor = api.decode_image(data, device="cpu", model=tiny)
    assert tensor.shape == (n_channels, 5, 7)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), native)
    info = api.read_info(data)
    assert (info.channels, info.alpha) == (1 if n_channels < 3 else 3, n_channels % 2 == 0)
    assert info.bit_depth == 8 * native.itemsize
    mode = {1: ("L", "I;16"), 2: ("LA", None), 3: ("RGB", None), 4: ("RGBA", None)}[n_channels]
    wanted = mode[native.itemsize - 1]
    if wanted is None:
        with pytest.raises(UnsupportedImage, match="decode_image"):
            api.decode(data, model=tiny)
        return
    im = api.decode(data, model=tiny)
    assert im.mode == wanted
    assert im.info["icc_profile"] == b"profile"
    assert im.info["xmp"] == b"<xmp/>"
    assert np.array_equal(np.asarray(im).reshape(native.shape), native)
    assert api.encode(im, lossless=True, levels=0, metadata=meta, model=tiny) == data


def test_the_encoder_checks_the_extra_planes(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import vbc.codec.pipeline as pipeline

    real = pipeline.decode_planes

    def faulty(*arguments: object) -> list[np.ndarray]:
        planes = real(*arguments)
        planes[-1][-1, -1] ^= 1
        return planes

    alpha, low = extra_planes("mask", 5, 6)
    monkeypatch.setattr(pipeline, "decode_planes", faulty)
    for given in ({"alpha": alpha}, {"low": low[:3]}):
        with pytest.raises(SelfCheckFailed):
            encode_image(photo(5, 6), model=tiny, levels=0, lossless=True, **given)


def test_another_models_file(tiny: Model, layered: bytes) -> None:
    header = container.unpack_header(layered)
    payloads = [bytearray(container.read_chunk(layered, header, i)) for i in range(len(header.chunks))]
    other = container.Header(**{**header.__dict__, "model_hash": b"notyours"})
    with pytest.raises(ModelMissing) as caught:
        decode_image(rebuild(other, payloads), model=tiny)
    assert caught.value.wanted == b"notyours"


def test_wrong_pixels_fail_verification(tiny: Model, layered: bytes) -> None:
    header = container.unpack_header(layered)
    payloads = [bytearray(container.read_chunk(layered, header, i)) for i in range(len(header.chunks))]
    payloads[-1][0] ^= 1  # the pixel hash
    broken = rebuild(header, payloads)
    assert decode_image(broken, model=tiny).exact
    with pytest.raises(Corrupt, match="pixels differ"):
        verify(broken, model=tiny)


def test_the_encoder_checks_itself(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    import vbc.codec.payloads as levels

    real = levels.decode_step

    def faulty(*arguments: object, **named: object) -> Coded:
        coded = real(*arguments, **named)
        coded.pixels["D"][..., -1, -1] ^= 1
        return coded

    monkeypatch.setattr(levels, "decode_step", faulty)
    with pytest.raises(SelfCheckFailed):
        encode_image(photo(20, 20), model=tiny, levels=0, lossless=True)


def test_fixed_symbols_are_fixed() -> None:
    coder = PseudoRandom()
    first = coder.code(np.zeros(5, np.uint16), None)
    assert first.tolist() == PseudoRandom().code(np.zeros(5, np.uint16), None).tolist()
