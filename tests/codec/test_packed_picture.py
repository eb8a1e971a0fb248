"""Pictures packed whole: pairs, predictors, which pictures are packed, and what damage can cause."""

import contextlib
import lzma
import tracemalloc

import numpy as np
import pytest
import torch
from checks import bit_flips, check_format_error, rewritten, truncations
from pictures import SIZES, checker, constant, from_array, noise, photo, stripes
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.codec.exact.level import PACKED
from vbc.codec.extra import packed_picture
from vbc.codec.extra.extra_planes import GRADIENT, LEFT, NONE, UP
from vbc.codec.extra.packed_picture import decode_packed, encode_packed
from vbc.codec.flow import encode_levels
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.model import Model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings


def screen(height: int, width: int) -> Tensor:
    """uint8 [3, height, width]: the same few shapes again and again on a plain ground."""
    rng = np.random.default_rng(3)
    letters = rng.choice([0, 90, 255], (6, 7, 5, 3)).astype(np.uint8)
    rgb = np.full((height + 8, width + 6, 3), (240, 244, 250), np.uint8)
    for y in range(0, height, 11):
        for x in range(0, width, 6):
            rgb[y : y + 7, x : x + 5] = letters[rng.integers(0, 6)]
    return from_array(rgb[:height, :width])


def body_of(data: bytes) -> memoryview:
    """The payload of level 4, without its mode."""
    header = container.unpack_header(data)
    place = header.find(4, 1)
    assert place is not None
    payload = container.read_packet(data, header, place)
    assert payload[0] == PACKED
    return payload[1:]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("predictor", [NONE, LEFT, UP, GRADIENT])
def test_pack_and_unpack_are_inverse(size: tuple[int, int], depth: int, predictor: int) -> None:
    for make in (screen, noise, constant, stripes):
        picture = make(*size)[None]
        if depth == 1:
            picture = picture[:, :1].expand(-1, 3, -1, -1).contiguous()
        body = packed_picture._pack(picture[0, :depth].permute(1, 2, 0).numpy(), predictor)
        assert body[:2] == bytes([depth, predictor])
        assert torch.equal(decode_packed(memoryview(body), size), picture)


def test_what_is_packed() -> None:
    assert encode_packed(noise(64, 64)[None], 3, 2) is None
    assert encode_packed(photo(300, 300)[None], 3, 2) is None
    for picture in (screen(200, 300), constant(5, 5), from_array(checker(90, 70)[..., None].repeat(3, 2))):
        sizes = [len(encode_packed(picture[None], 3, effort) or b"") for effort in (0, 1, 2)]
        assert sizes[0] == sizes[1] >= sizes[2] > 0


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(("levels", "effort"), [(0, 1), (3, 1), (0, 2), (0, 0)])
def test_a_graphic_is_one_exact_level(tiny: Model, levels: int, effort: int, gray: bool) -> None:
    picture = screen(70, 90)
    if gray:
        picture = picture[:1].expand(3, -1, -1).contiguous()
    settings = EncodeSettings(levels, lossless=True, effort=effort)
    data = encode_image(picture, model=tiny, settings=settings, gray=gray)
    header = container.unpack_header(data)
    assert list(container.level_ends(header)) == [*range(1, levels + 1), 4]
    assert header.lossless
    assert body_of(data)[0] == (1 if gray else 3)
    decoded = decode_image(data, model=tiny)
    assert decoded.exact
    assert torch.equal(decoded.rgb, picture)
    assert len(body_of(data)) < picture.numel() // 8


def test_networks_are_kept_where_they_are_smaller(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = screen(70, 90)
    packed = encode_packed(picture[None], 3, 1)
    assert packed is not None
    padded = packed + bytes(picture.numel())
    monkeypatch.setattr(encode_levels, "encode_packed", lambda *a: padded)
    data = encode_image(picture, model=tiny, settings=EncodeSettings(0, lossless=True))
    assert len(container.level_ends(container.unpack_header(data))) > 1


def bodies() -> dict[str, bytes]:
    """Bodies for a picture of 9 x 10 that no encoder writes."""
    plain = bytes(9 * 10 * 3)

    def packed(data: bytes, **filters: int) -> bytes:
        return lzma.compress(
            data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096, **filters}]
        )

    return {
        "empty": b"",
        "no stream": b"\x03\x00",
        "depth 0": b"\x00\x00" + packed(b""),
        "depth 2": b"\x02\x00" + packed(bytes(180)),
        "predictor 4": b"\x03\x04" + packed(plain),
        "too little": b"\x03\x00" + packed(plain[1:]),
        "too much": b"\x03\x00" + packed(plain + b"\0"),
        "far too much": b"\x03\x00" + packed(bytes(1 << 24)),
        "gray for colour": b"\x01\x00" + packed(plain),
        "bytes behind": b"\x03\x00" + packed(plain) + b"\0",
        "no end": b"\x03\x00" + packed(plain)[:-1],
        "another container": b"\x03\x00" + lzma.compress(plain),
        "noise": b"\x03\x00" + np.random.default_rng(1).bytes(200),
    }


@pytest.mark.parametrize("name", bodies())
def test_wrong_bodies_are_corrupt(name: str) -> None:
    with pytest.raises(Corrupt):
        decode_packed(memoryview(bodies()[name]), (9, 10))


def test_far_too_much_is_not_allocated() -> None:
    body = memoryview(bodies()["far too much"])
    tracemalloc.start()
    with pytest.raises(Corrupt):
        decode_packed(body, (9, 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_damage_is_an_error_or_a_picture() -> None:
    body = encode_packed(screen(40, 50)[None], 3, 1)
    assert body is not None
    for prefix in truncations(body):
        check_format_error(lambda p=prefix: decode_packed(memoryview(p), (40, 50)), Corrupt)
    for changed in bit_flips(body):
        with contextlib.suppress(Corrupt):
            assert decode_packed(memoryview(changed), (40, 50)).shape == (1, 3, 40, 50)


def test_exact_levels_beside_a_packed_picture(tiny: Model) -> None:
    """Whoever decodes level 4 refuses them, also where no other level is wanted."""
    picture = screen(20, 30)
    data = encode_image(picture, model=tiny, settings=EncodeSettings(0, lossless=True))
    header, packed = container.unpack_header(data), bytes([PACKED]) + body_of(data)
    assert torch.equal(decode_image(data, model=tiny, levels=1).rgb, picture)
    for part, payload in ((0, b"\x02"), (1, b"\x00")):
        both = rewritten(header, [(4, 1, packed), (5, part, payload)], flags=container.ARCHIVAL)
        for levels in (None, 1):
            with pytest.raises(Corrupt, match="beside"):
                decode_image(both, model=tiny, levels=levels)


def test_only_a_packed_picture_makes_level_4_alone_lossless(tiny: Model) -> None:
    """The header says lossless: plain samples of the base grid are not the picture."""
    data = encode_image(screen(20, 30), model=tiny, settings=EncodeSettings(0, lossless=True))
    state = DecodeState(tiny, container.unpack_header(data))
    with pytest.raises(Corrupt, match="lossless but has only the base grid"):
        state.advance(4, {0: memoryview(bytes([1]) + bytes(3 * 5 * 8))})
