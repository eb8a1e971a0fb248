"""Files of the tiny model: lossless is equal, prefixes decode, damage is noticed."""

import numpy as np
import pytest
import torch
from pictures import CONTENTS, SIZES, noise, photo
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt, FormatError, ModelMissing, Truncated
from vbc.codec.export import PseudoRandom
from vbc.codec.model import Model
from vbc.codec.pipeline import SelfCheckFailed, decode_image, encode_image, verify


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


def rebuild(header: container.Header, payloads: list[bytearray]) -> bytes:
    return container.write_file(
        [(c.kind, c.number, bytes(p)) for c, p in zip(header.chunks, payloads, strict=True)],
        width=header.width,
        height=header.height,
        channels=header.channels,
        quality=header.quality,
        flags=header.flags,
        model_hash=header.model_hash,
        tables_hash=header.tables_hash,
    )


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
    import vbc.codec.pipeline as pipeline

    real = pipeline.decode_step

    def faulty(*arguments: object, **named: object) -> dict[str, Tensor]:
        phases = real(*arguments, **named)
        phases["D"][..., -1, -1] ^= 1
        return phases

    monkeypatch.setattr(pipeline, "decode_step", faulty)
    with pytest.raises(SelfCheckFailed):
        encode_image(photo(20, 20), model=tiny, levels=0, lossless=True)


def test_fixed_symbols_are_fixed() -> None:
    coder = PseudoRandom()
    first = coder.code(np.zeros(5, np.uint16), None)
    assert first.tolist() == PseudoRandom().code(np.zeros(5, np.uint16), None).tolist()
