"""Maps of qualities: their coding, what an encoder chooses, and what they do to files and pictures."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import check_format_error, decoded_hash, payloads_of, rebuild
from pictures import checker, constant, noise, photo
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.codec import api
from vbc.codec.flow.decode_state import CODED, CODED_WITH_MAP
from vbc.codec.lossy import quality_map
from vbc.codec.lossy.latents import latent_grid
from vbc.codec.lossy.map_coding import (
    COARSEST_TABLE,
    N_MAP_TABLES,
    SQUARE,
    VALUE_LIMIT,
    code_map,
    map_passes,
    map_size,
    on_blocks,
    qualities,
)
from vbc.codec.lossy.quality_map import QualityMap, values_for_the_eye
from vbc.codec.model import Model, load_model, place
from vbc.codec.pipeline import decode_image, encode_image, size_limit, verify
from vbc.codec.settings import TUNES, EncodeSettings, Tune

SIZES = ((1, 1), (1, 2), (4, 4), (5, 1), (1, 9), (8, 5), (13, 17), (33, 64), (128, 128))
"""In squares; a group has at most 128 x 128."""
Size = tuple[int, int]


@pytest.fixture(scope="module")
def placed(tiny: Model) -> Model:
    """The tiny model on the device path, in plain torch."""
    return place(tiny, torch.device("cpu"))


def whole_range(height: int, width: int) -> np.ndarray:
    """Values of every kind side by side."""
    values = np.random.default_rng(height * width).integers(-VALUE_LIMIT, VALUE_LIMIT + 1, (height, width))
    values.flat[0] = -VALUE_LIMIT
    return values


KINDS: dict[str, Callable[[int, int], np.ndarray]] = {
    "zeros": lambda h, w: np.zeros((h, w)),
    "lowest": lambda h, w: np.full((h, w), -VALUE_LIMIT),
    "highest": lambda h, w: np.full((h, w), VALUE_LIMIT),
    "in turn": lambda h, w: np.where(checker(h, w) > 0, VALUE_LIMIT, -VALUE_LIMIT),
    "slope": lambda h, w: (np.arange(h)[:, None] + np.arange(w)).clip(max=VALUE_LIMIT),
    "whole range": whole_range,
}


def values_of(*kinds: str, size: Size) -> Tensor:
    """int16 [N, 1, h, w]."""
    return torch.from_numpy(np.stack([KINDS[kind](*size) for kind in kinds]).astype(np.int16))[:, None]


# Coding


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_come_back(tiny: Model, placed: Model, size: Size) -> None:
    """Groups of all kinds in a batch, two of them without a map, on the host and on the device path."""
    wanted = values_of(*KINDS, "whole range", "highest", size=size)
    coded = torch.tensor([True] * len(KINDS) + [False, False])
    want = wanted.int().masked_fill(~coded[:, None, None, None], 0)
    first = tiny.lossy.map_table
    bodies = []
    for model in (tiny, placed):
        writer = model.writer(len(wanted))
        assert torch.equal(code_map(writer, first, size, coded, wanted), want)
        bodies.append(writer.finish())
        for reader_model in (tiny, placed):
            reader = reader_model.reader(bodies[-1], size[0] * size[1])
            got = code_map(reader, first, size, coded, None)
            reader.finish()
            assert got.dtype == torch.int32
            assert torch.equal(got, want)
    assert bodies[0] == bodies[1]
    alone = tiny.writer(1)
    code_map(alone, first, size, coded[:1], wanted[5:6])
    assert alone.finish()[0] == bodies[0][5], "a group's bytes do not depend on its batch"
    assert len(bodies[0][-1]) <= 4, "no symbols where there is no map"
    assert len(bodies[0][0]) <= len(bodies[0][5])


class Extremes:
    """A decoder of the largest symbols there are, in turn; it keeps the tables that were asked for."""

    def __init__(self) -> None:
        self.tables: list[Tensor] = []

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        self.tables.append(index.flatten())
        sign = torch.arange(index.numel()).view(index.shape) % 2
        return torch.where(sign > 0, 32767, -32768).to(torch.int16)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_symbols_beyond_the_range_are_limited(size: Size) -> None:
    coder = Extremes()
    values = code_map(coder, 700, size, torch.ones(2, dtype=torch.bool), None)
    assert set(values.unique().tolist()) <= {-VALUE_LIMIT, VALUE_LIMIT}
    tables = torch.cat(coder.tables)
    assert tables.numel() == values.numel(), "every square is coded once"
    assert 700 <= tables.min()
    assert tables.max() == 700 + COARSEST_TABLE == 700 + N_MAP_TABLES - 1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_passes_cover_every_square_once(size: Size) -> None:
    """What is predicted lies between the values known by then, and the table says how far these lie apart."""
    truth = torch.from_numpy(KINDS["whole range"](*size)).int()[None, None]
    values = torch.full_like(truth, 1000)
    seen = torch.zeros(size, dtype=torch.int)
    for order, (rows, cols, mean, table) in enumerate(map_passes(values)):
        seen[rows, cols] += 1
        assert mean.shape == table.shape == values[..., rows, cols].shape
        assert mean.numel()
        assert mean.abs().max() <= VALUE_LIMIT, "1000 is unknown"
        assert (table == COARSEST_TABLE).all() == (order == 0)
        assert not mean.any() or order
        values[..., rows, cols] = truth[..., rows, cols]
    assert (seen == 1).all()


def test_predictions_of_a_map() -> None:
    """A 5 x 5 map by hand: its A are the even positions, four of which are around each of D."""
    values = torch.zeros((1, 1, 5, 5), dtype=torch.int32)
    passes = map_passes(values)
    rows, cols, *_ = next(passes)
    values[..., rows, cols] = torch.tensor([[0, 2, 4], [1, 3, 5], [9, 9, -25]])
    rows, cols, mean, table = next(passes)
    assert (rows, cols) == (slice(1, None, 2), slice(1, None, 2))
    assert mean[0, 0].tolist() == [[(0 + 2 + 1 + 3 + 2) >> 2, 4], [6, (3 + 5 + 9 - 25 + 2) >> 2]]
    assert table[0, 0].tolist() == [[3, 3], [7, 7]]


@pytest.mark.parametrize(
    ("base", "value", "quality"), [(60, 0, 60), (60, -1, 57), (0, -33, 0), (0, 33, 99), (90, 33, 100)]
)
def test_quality_of_a_value(base: int, value: int, quality: int) -> None:
    assert qualities(torch.tensor([value]), base).item() == quality


def test_a_square_is_two_by_two_blocks() -> None:
    squares = torch.arange(6, dtype=torch.int32).view(1, 1, 2, 3)
    blocks = on_blocks(squares, 3, 5)
    assert blocks[0, 0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert map_size(3, 5) == (2, 3)
    assert torch.equal(QualityMap(50, squares.short()).on_blocks(3, 5, torch.device("cpu")), 50 + 3 * blocks)
    plain = QualityMap(50).on_blocks(3, 5, torch.device("cpu"))
    assert plain.shape == (1, 1, 3, 5)
    assert (plain == 50).all()


# What the encoder chooses


def chosen(picture: Tensor) -> Tensor:
    """Values [h, w] of a picture [3, H, W] that has a map."""
    values = values_for_the_eye(picture[None])
    assert values is not None
    assert values.dtype == torch.int16
    assert values.shape == (1, 1, *map_size(*latent_grid(*picture.shape[1:])))
    assert values.abs().max() <= VALUE_LIMIT
    return values[0, 0]


def test_the_dark_gets_finer() -> None:
    values = chosen(torch.cat((constant(64, 64, 20), constant(64, 64, 220)), 2))
    assert (values[:, :4] > 0).all()
    assert (values[:, 4:] < 0).all()


def test_texture_gets_coarser() -> None:
    values = chosen(torch.cat((constant(64, 64, 128), noise(64, 64)), 2))
    assert (values[:, :4] > 0).all()
    assert (values[:, 4:] < 0).all()


@pytest.mark.parametrize("value", [0, 3, 128, 255])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (17, 90)])
def test_flat_pictures_have_no_map(value: int, size: Size) -> None:
    assert values_for_the_eye(constant(*size, value)[None]) is None


@pytest.mark.parametrize("size", [(16, 40), (33, 65), (100, 17), (130, 250)])
def test_odd_sizes_and_bands(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    x = photo(*size)
    values = chosen(x)
    assert values.float().mean().abs() < 0.5, "some squares gain what others lose"
    monkeypatch.setattr(quality_map, "BAND_ROWS", 2 * SQUARE)
    assert (chosen(x) - values).abs().max() <= 1, "float, so a value may round either way"


# Files


def first_mode(data: bytes) -> int:
    """Of the first group of level 1."""
    place = container.unpack_header(data).find(1, 1)
    assert place is not None
    return payloads_of(data)[place][0]


@pytest.mark.parametrize("lossless", [False, True])
def test_modes_of_both_purposes(tiny: Model, lossless: bool) -> None:
    files = {
        (name, tune): encode_image(x, model=tiny, settings=EncodeSettings(lossless=lossless, tune=tune))
        for name, x in (("photo", photo(50, 70)), ("flat", constant(50, 70, 90)))
        for tune in ("eye", "psnr")
    }
    assert {key for key, data in files.items() if first_mode(data) == CODED_WITH_MAP} == {("photo", "eye")}
    assert {first_mode(data) for key, data in files.items() if key != ("photo", "eye")} == {CODED}
    assert files["flat", "eye"] == files["flat", "psnr"]
    for data in files.values():
        verify(data, model=tiny)


def test_archival_files_have_no_map(tiny: Model) -> None:
    both: list[bytes] = [
        encode_image(photo(50, 70), model=tiny, settings=EncodeSettings(0, lossless=True, tune=tune))
        for tune in ("eye", "psnr")
    ]
    assert both[0] == both[1]


def encode_with_values(
    monkeypatch: pytest.MonkeyPatch, x: Tensor, values: Tensor | None, model: Model, **settings: int
) -> bytes:
    """The file with a map that is given."""
    with monkeypatch.context() as patch:
        patch.setattr("vbc.codec.flow.choose_quality.values_for_the_eye", lambda picture: values)
        return encode_image(x, model=model, settings=EncodeSettings(**settings))


def test_a_map_spends_bits_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model = photo(96, 128), load_model()
    values = torch.zeros((1, 1, 6, 8), dtype=torch.int16)
    values[..., :4], values[..., 4:] = 6, -6
    errors = {}
    for name, given in (("left", values), ("right", -values), ("both", None)):
        data = encode_with_values(monkeypatch, x, given, model, quality=50)
        squares = (decode_image(data, model=model).rgb.float() - x).square().mean(0)
        errors[name] = squares[:, :64].mean(), squares[:, 64:].mean()
    assert errors["left"][0] < errors["both"][0] < errors["right"][0]
    assert errors["right"][1] < errors["both"][1] < errors["left"][1]


@pytest.mark.parametrize("size", [(1, 1), (15, 16), (17, 33), (70, 45)])
def test_wild_maps_decode_alike(
    monkeypatch: pytest.MonkeyPatch, tiny: Model, placed: Model, size: Size
) -> None:
    """Of all levels, lossy and exact, on both paths; encoded alike too."""
    values = values_of("whole range", size=map_size(*latent_grid(*size)))
    x = photo(*size)
    files = [
        encode_with_values(monkeypatch, x, values, model, levels=3, lossless=True) for model in (tiny, placed)
    ]
    assert files[0] == files[1]
    assert first_mode(files[0]) == CODED_WITH_MAP
    for levels in range(1, len(container.levels_present(container.unpack_header(files[0]))) + 1):
        host, device = (decode_image(files[0], model=m, levels=levels) for m in (tiny, placed))
        assert decoded_hash(host) == decoded_hash(device)
    assert torch.equal(host.rgb, x)


def test_a_map_of_zeros_says_what_no_map_says(monkeypatch: pytest.MonkeyPatch, tiny: Model) -> None:
    x = photo(70, 45)
    zeros = torch.zeros((1, 1, *map_size(*latent_grid(70, 45))), dtype=torch.int16)
    files = [encode_with_values(monkeypatch, x, values, tiny) for values in (zeros, None)]
    assert [first_mode(data) for data in files] == [CODED_WITH_MAP, CODED]
    assert len({decoded_hash(decode_image(data, model=tiny)) for data in files}) == 1
    assert payloads_of(files[0])[1:] == payloads_of(files[1])[1:]


@pytest.mark.parametrize("size", [(40, 48), (104, 120)])
def test_noise_with_a_map_is_not_larger_than_it_may_be(
    monkeypatch: pytest.MonkeyPatch, tiny: Model, size: Size
) -> None:
    x = noise(*size)
    values = values_of("whole range", size=map_size(*latent_grid(*size)))
    for quality in (0, 60, 100):
        data = encode_with_values(monkeypatch, x, values, tiny, quality=quality, lossless=True)
        assert len(data) <= size_limit(x.numel())
        assert container.unpack_header(data).quality <= quality
        assert torch.equal(decode_image(data, model=tiny).rgb, x)


# Damage


def test_damaged_maps(monkeypatch: pytest.MonkeyPatch, tiny: Model, placed: Model) -> None:
    """A flipped bit of level 1, its checksum right: Corrupt, or on both paths the same picture."""
    values = values_of("whole range", size=(5, 7))
    data = encode_with_values(monkeypatch, photo(80, 100), values, tiny, levels=1)
    header, (payload,) = container.unpack_header(data), payloads_of(data)
    n_corrupt = 0
    for bit in range(0, 8 * len(payload), 31):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        broken = rebuild(header, [damaged])
        shown = set()
        for model in (tiny, placed):
            try:
                shown.add(decoded_hash(decode_image(broken, model=model)))
            except Corrupt:
                shown.add("corrupt")
        assert len(shown) == 1, bit
        n_corrupt += shown == {"corrupt"}
    assert n_corrupt > 0


@pytest.mark.parametrize(("level", "mode"), [(1, 2), (1, 255), (2, 1), (3, 1), (3, 3)])
def test_modes_that_there_are_not(tiny: Model, placed: Model, level: int, mode: int) -> None:
    data = encode_image(photo(30, 40), model=tiny)
    header, payloads = container.unpack_header(data), payloads_of(data)
    place = header.find(level, 1)
    assert place is not None
    payloads[place][0] = mode
    for model in (tiny, placed):
        error = check_format_error(lambda m=model: decode_image(rebuild(header, payloads), model=m), Corrupt)
        assert f"mode {mode}" in str(error)


def test_a_map_where_none_is_announced(tiny: Model, placed: Model) -> None:
    """And none where one is: both lanes have symbols of another number."""
    for tune, mode in (("eye", CODED), ("psnr", CODED_WITH_MAP)):
        data = encode_image(photo(30, 40), model=tiny, settings=EncodeSettings(levels=1, tune=tune))
        header, (payload,) = container.unpack_header(data), payloads_of(data)
        payload[0] = mode
        broken = rebuild(header, [payload])
        for model in (tiny, placed):
            check_format_error(lambda m=model, data=broken: decode_image(data, model=m), Corrupt)


# The interface


def test_the_purpose_of_an_encoder() -> None:
    x = photo(40, 50).permute(1, 2, 0).numpy()
    files = [api.encode(x, tune=tune) for tune in TUNES]
    assert [first_mode(data) for data in files] == [CODED_WITH_MAP, CODED]
    assert api.encode(x) == files[0], "the eye is the default"
    with pytest.raises(ValueError, match="tune is eye or psnr, not 'ear'"):
        api.encode(x, tune="ear")  # type: ignore[arg-type]


def test_weights_are_for_a_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that encode are asked for by purpose."""
    asked: list[Tune] = []

    def load(model: None, device: str = "cpu", header: None = None, tune: Tune = "eye") -> Model:
        asked.append(tune)
        return load_model()

    monkeypatch.setattr(api, "load", load)
    for tune in TUNES:
        api.encode(photo(9, 9), levels=1, tune=tune)
    assert asked == list(TUNES)
