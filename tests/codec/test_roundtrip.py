"""Whole files of the tiny model: lossless ones are equal, and no larger than they may be."""

import numpy as np
import pytest
import torch
from checks import payloads_of, rebuild
from pictures import CONTENTS, SIZES, checker, noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.codec import api
from vbc.codec.exact.groups import GroupBatch
from vbc.codec.extra import carried
from vbc.codec.files.image_io import Metadata, UnsupportedImage
from vbc.codec.flow import encode_levels
from vbc.codec.flow.encode_levels import (
    encode_exact,
    encode_lossy,
    encode_lossy_below,
    lossy_picture,
    n_bytes,
)
from vbc.codec.lossy.quality_map import QualityMap, values_for_the_eye
from vbc.codec.model import Model
from vbc.codec.pipeline import SelfCheckFailed, decode_image, encode_image, size_limit, verify
from vbc.codec.settings import EncodeSettings

LAYERED = EncodeSettings(lossless=True)
ARCHIVAL = EncodeSettings(levels=0, lossless=True)


def lossless(levels: int, **others: int) -> EncodeSettings:
    """3: layered, 0: archival."""
    return EncodeSettings(levels=levels, lossless=True, **others)


@pytest.fixture(scope="module")
def layered(tiny: Model) -> bytes:
    return encode_image(photo(37, 50), model=tiny, settings=LAYERED)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("levels", [0, 3])
def test_lossless_is_equal(tiny: Model, content: str, size: tuple[int, int], levels: int) -> None:
    x = CONTENTS[content](*size)
    data = encode_image(x, model=tiny, settings=lossless(levels, quality=35))
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, x)
    verify(data, model=tiny)


@pytest.mark.parametrize("effort", [0, 1, 2])
def test_every_effort_is_lossless(tiny: Model, effort: int) -> None:
    x = photo(230, 250)  # large enough for tuned output layers
    data = encode_image(x, model=tiny, settings=lossless(0, effort=effort))
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


def test_tuning_makes_files_smaller(tiny: Model) -> None:
    x = photo(230, 250)
    plain, tuned = (len(encode_image(x, model=tiny, settings=lossless(0, effort=e))) for e in (0, 2))
    assert tuned < plain


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_lossy_sizes(tiny: Model, size: tuple[int, int], levels: int) -> None:
    data = encode_image(photo(*size), model=tiny, settings=EncodeSettings(levels))
    decoded = decode_image(data, model=tiny)
    assert decoded.rgb.shape == (3, *size)
    assert decoded.levels == tuple(range(1, levels + 1))
    side = {1: 4, 2: 2, 3: 1}[levels]
    native = decode_image(data, model=tiny, native=True).rgb
    assert native.shape == (3, -(-size[0] // side), -(-size[1] // side))


@pytest.mark.parametrize("quality", [0, 100])
def test_extreme_qualities(tiny: Model, quality: int) -> None:
    x = CONTENTS["stripes"](40, 33)
    data = encode_image(x, model=tiny, settings=lossless(3, quality=quality))
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


def test_settings_that_do_not_go_together() -> None:
    for levels, is_lossless in ((0, False), (1, True), (2, True), (4, False), (-1, False), (4, True)):
        with pytest.raises(ValueError, match="levels"):
            EncodeSettings(levels, lossless=is_lossless)
    for quality in (-1, 101):
        with pytest.raises(ValueError, match="quality is 0 to 100"):
            EncodeSettings(quality=quality)
    for effort in (-1, 3):
        with pytest.raises(ValueError, match="effort is 0 to 2"):
            EncodeSettings(effort=effort)
    for refinements in (-1, 4):
        with pytest.raises(ValueError, match="refinements is 0 to 3"):
            EncodeSettings(refinements=refinements)
    for levels, is_lossless in ((1, False), (2, False), (0, True)):
        with pytest.raises(ValueError, match="refinements go with levels 3"):
            EncodeSettings(levels, lossless=is_lossless, refinements=1)


# groups


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", [(33, 65), (97, 32), (1, 200), (130, 1), (64, 64), (34, 130)], ids=str)
@pytest.mark.parametrize("levels", [0, 3])
def test_lossless_in_many_groups(tiny: Model, content: str, size: tuple[int, int], levels: int) -> None:
    """The last row or column of groups may be of a single row or column."""
    x = CONTENTS[content](*size)
    data = encode_image(x, model=tiny, settings=lossless(levels))
    geometry = container.unpack_header(data).geometry
    assert geometry.n_groups(geometry.last_level) > 2
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, x)
    assert len(data) <= size_limit(x.numel())


@pytest.mark.parametrize("size", [(3, 1030), (1030, 5), (513, 1)], ids=str)
@pytest.mark.parametrize("levels", [0, 3])
def test_lossless_in_the_groups_of_the_format(tiny: Model, size: tuple[int, int], levels: int) -> None:
    x = photo(*size)
    data = encode_image(x, model=tiny, settings=lossless(levels))
    assert max(packet.part for packet in container.unpack_header(data).packets) > 1
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, x)


@pytest.mark.parametrize(("mode", "content"), [(1, "photo"), (3, "gray"), (4, "graphic")])
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 5)], ids=str)
def test_pictures_of_level_4_alone(tiny: Model, size: tuple[int, int], mode: int, content: str) -> None:
    """They are stored plain, in three planes or one, or packed; none is predicted."""
    x = photo(*size)
    if content != "photo":
        x = x[:1].expand(3, -1, -1).contiguous() if content == "gray" else torch.zeros_like(x)
    data = encode_image(x, model=tiny, settings=ARCHIVAL)
    header = container.unpack_header(data)
    assert [(packet.unit, packet.part) for packet in header.packets] == [(4, 1), (container.PIXEL_HASH, 0)]
    few = mode == 4 and size != (8, 8)  # a few pixels pack no smaller
    assert payloads_of(data)[0][0] == (3 if few else mode)
    assert torch.equal(decode_image(data, model=tiny).rgb, x)


# the size of lossless files


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (64, 65), (200, 180)], ids=str)
@pytest.mark.parametrize("kind", ["noise", "gray", "alpha", "deep"])
def test_noise_hardly_grows(tiny: Model, size: tuple[int, int], kind: str, levels: int) -> None:
    x, extra = noise(*size), noise(size[0], 3 * size[1])[0].view(size[0], 3, -1).permute(1, 0, 2).contiguous()
    others: dict[str, object] = {}
    n_samples = x.numel()
    if kind == "gray":
        x, others = x[:1].expand(3, -1, -1).contiguous(), {"gray": True}
        n_samples //= 3
    elif kind == "alpha":
        others = {"alpha": extra[0]}
        n_samples += extra[0].numel()
    elif kind == "deep":
        others = {"low": extra}
        n_samples *= 2
    metadata = Metadata(exif=b"MM" + bytes(700))
    data = encode_image(x, model=tiny, settings=lossless(levels), metadata=metadata, **others)
    assert len(data) <= n_samples * 1.01 + 1024 + 702
    decoded = decode_image(data, model=tiny)
    assert torch.equal(decoded.rgb, x)
    assert decoded.exact


def test_the_highest_quality_that_fits(tiny: Model) -> None:
    """Noise at quality 90: the header names the highest quality whose file is not too large."""
    x = noise(104, 120)
    limit = size_limit(x.numel())
    data = encode_image(x, model=tiny, settings=lossless(3, quality=90))
    quality = container.unpack_header(data).quality
    assert 0 < quality < 90
    assert len(data) <= limit
    n_lossy = sum(p.length for p in container.unpack_header(data).packets if 1 <= p.level <= 3)
    others = len(data) - n_lossy
    picture = x[None].contiguous(memory_format=torch.channels_last)
    # plain samples, whatever the quality, so that only the lossy levels change the size
    assert {body[0] for body in payloads_of(data)[3:-1]} == {1}
    values = values_for_the_eye(picture)
    assert values is not None
    sizes = [
        n_bytes(encode_lossy(picture, tiny, 3, QualityMap(q, values))[0]) for q in (quality, quality + 1)
    ]
    assert sizes[0] == n_lossy
    assert others + sizes[1] > limit


@pytest.mark.parametrize("with_map", [False, True])
@pytest.mark.parametrize("asked", [0, 1, 37, 100])
def test_the_search_for_a_quality(tiny: Model, asked: int, with_map: bool) -> None:
    """The highest below the one asked for that fits, for every budget; zeros where none fits."""
    picture = photo(72, 88)[None].contiguous(memory_format=torch.channels_last)
    values = values_for_the_eye(picture) if with_map else None
    assert (values is not None) == with_map
    maps = [QualityMap(q, values) for q in range(asked + 1)]
    sizes = [n_bytes(encode_lossy(picture, tiny, 3, quality)[0]) for quality in maps[:asked]]
    assert sizes == sorted(sizes), "on a photograph they grow"
    budgets = {sizes[asked // 2], sizes[asked // 2] - 1, sizes[0], sizes[-1] + 1} if sizes else set()
    for budget in {0, 60, *budgets}:
        quality, packets, latents = encode_lossy_below(picture, tiny, maps[asked], budget)
        fitting = [q for q in range(asked) if sizes[q] <= budget]
        if fitting:
            assert sizes[quality.base] == sizes[fitting[-1]], "one of those that fill the budget"
            assert quality.values is values, "the map stays"
            assert packets == encode_lossy(picture, tiny, 3, quality)[0]
        else:
            assert quality == QualityMap(0)
            assert n_bytes(packets) <= max(budget, 64)
        decoded = lossy_picture(tiny, latents, (72, 88), quality)
        assert decoded.shape == picture.shape


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
    settings = lossless(levels)
    data = encode_image(x, model=tiny, settings=settings, gray=gray, alpha=given_alpha, low=given_low)
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, x)
    for got, want in ((decoded.alpha, given_alpha), (decoded.low, given_low)):
        assert (got is None) == (want is None)
        assert want is None or torch.equal(got, want)
    assert decoded.header.bit_depth == (8 if given_low is None else 16)
    verify(data, model=tiny)
    n_raw = sum(p.numel() for p in (x[:1] if gray else x, given_alpha, given_low) if p is not None)
    assert len(data) <= size_limit(n_raw)


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
    data = encode_image(photo(17, 23), model=tiny, settings=EncodeSettings(2), alpha=alpha)
    for n, side in ((1, 4), (2, 2)):
        decoded = decode_image(data, model=tiny, levels=n, native=True)
        padded = np.pad(alpha.numpy(), ((0, -17 % side), (0, -23 % side)), mode="edge").astype(float)
        squares = padded.reshape(padded.shape[0] // side, side, -1, side)
        assert decoded.alpha.shape == decoded.rgb.shape[1:]
        assert np.array_equal(decoded.alpha, np.floor(squares.mean((1, 3)) + 0.5))


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


# the encoder checks itself


def test_the_encoder_checks_the_extra_planes(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = carried.decode_planes

    def faulty(*arguments: object) -> list[np.ndarray]:
        planes = real(*arguments)  # type: ignore[arg-type]
        planes[-1][-1, -1] ^= 1
        return planes

    alpha, low = extra_planes("mask", 5, 6)
    monkeypatch.setattr(carried, "decode_planes", faulty)
    for given in ({"alpha": alpha}, {"low": low[:3]}):
        with pytest.raises(SelfCheckFailed):
            encode_image(photo(5, 6), model=tiny, settings=ARCHIVAL, **given)


@pytest.mark.parametrize("levels", [0, 3])
def test_the_encoder_checks_the_pixels(tiny: Model, monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    """A decoder that gets a pixel wrong that nothing else depends on."""
    real = GroupBatch.code

    def faulty(self: GroupBatch, phase: str, *rest: object) -> None:
        real(self, phase, *rest)  # type: ignore[arg-type]
        if phase == "V" and self.step.level_class == 0 and rest[-1] is None:
            self.pixels[phase][..., -1, -1] ^= 1

    monkeypatch.setattr(GroupBatch, "code", faulty)
    with pytest.raises(SelfCheckFailed, match="differs"):
        encode_image(photo(20, 20), model=tiny, settings=lossless(levels))


def test_a_file_that_does_not_decode_is_not_returned(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode_exact

    def faulty(*arguments: object) -> list[tuple[int, int, bytes]]:
        return [(level, part, body[:-1]) for level, part, body in real(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr("vbc.codec.pipeline.encode_exact", faulty)
    with pytest.raises(SelfCheckFailed, match="does not decode"):
        encode_image(photo(20, 20), model=tiny, settings=ARCHIVAL)


def test_wrong_pixels_fail_verification(tiny: Model, layered: bytes) -> None:
    payloads = payloads_of(layered)
    payloads[-1][0] ^= 1  # the pixel hash
    broken = rebuild(container.unpack_header(layered), payloads)
    assert decode_image(broken, model=tiny).exact
    with pytest.raises(Corrupt, match="pixels differ"):
        verify(broken, model=tiny)


def test_progress_is_reported(tiny: Model) -> None:
    said: list[tuple[str, float]] = []
    data = encode_image(
        photo(40, 30), model=tiny, settings=LAYERED, progress=lambda stage, part: said.append((stage, part))
    )
    assert [stage for stage, _ in said][:2] == ["lossy", "exact"]
    assert said[-1] == ("done", 1.0)
    assert [part for _, part in said] == sorted(part for _, part in said)
    said.clear()
    decode_image(data, model=tiny, progress=lambda stage, part: said.append((stage, part)))
    assert [part for _, part in said] == sorted(part for _, part in said)
    assert said[-1] == ("done", 1.0)
    assert {stage for stage, _ in said} == {"lossy", "exact", "done"}


def test_a_packed_picture_saves_the_networks_work(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packing is surely better, the levels are not even tried."""
    monkeypatch.setattr(encode_levels, "encode_level", lambda *arguments: pytest.fail("tried"))
    encode_image(torch.zeros((3, 90, 90), dtype=torch.uint8), model=tiny, settings=ARCHIVAL)
