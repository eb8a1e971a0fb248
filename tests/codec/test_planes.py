"""Extra planes: pairs, sizes, every mode and predictor, and what damage can cause."""

import tracemalloc
import zlib
from itertools import product

import numpy as np
import pytest
import torch
from checks import check_format_error, truncations
from pictures import SIZES, checker, noise, photo, soft_mask

from vbc.bitstream.errors import Corrupt
from vbc.bitstream.varint import pack_varints, unpack_varints
from vbc.codec.entropy.coder import Writer
from vbc.codec.extra import extra_planes as planes
from vbc.codec.extra.extra_planes import (
    CODED,
    CONSTANT,
    DEFLATED,
    GRADIENT,
    LEFT,
    NONE,
    RAW,
    REFERENCE,
    UP,
    Plane,
    add_prediction,
    class_tables,
    decode_planes,
    encode_planes,
    remove_prediction,
)
from vbc.codec.model import Model

PREDICTORS = (NONE, LEFT, UP, GRADIENT, REFERENCE)


def noise_plane(height: int, width: int) -> Plane:
    return noise(height, width)[0].numpy()


def constant(height: int, width: int) -> Plane:
    return np.full((height, width), 255, np.uint8)


def half_noise(height: int, width: int) -> Plane:
    """Silent blocks beside blocks of every size of residual."""
    plane = noise_plane(height, width)
    plane[:, : width // 2] = 7
    plane[: height // 2] >>= 5
    return plane


def photo_plane(height: int, width: int) -> Plane:
    return photo(height, width)[1].numpy()


CONTENTS = {f.__name__: f for f in (noise_plane, constant, half_noise, photo_plane, soft_mask, checker)}


def check_planes(
    given: list[Plane], model: Model, references: list[Plane | None] | None = None
) -> list[tuple[int, int]]:
    """The planes come back, in few bytes; returns mode and predictor of each."""
    references = references or [None] * len(given)
    payload = encode_planes(given, references, model)
    assert len(payload) <= sum(p.size + 7 for p in given)
    decoded = decode_planes(memoryview(payload), given[0].shape, references, model)
    for one, other in zip(given, decoded, strict=True):
        assert other.dtype == np.uint8
        assert np.array_equal(one, other)
    lengths, at = unpack_varints(memoryview(payload), len(given))
    starts = [at + sum(lengths[:i]) for i in range(len(given))]
    return [(payload[start], payload[start + 1]) for start in starts]


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_prediction_is_a_pair(predictor: int, size: tuple[int, int]) -> None:
    plane, reference = noise_plane(*size), noise_plane(*size)[::-1].copy()
    before = plane.copy()
    residual = remove_prediction(plane, predictor, reference)
    assert np.array_equal(plane, before)
    assert np.array_equal(add_prediction(residual, predictor, reference), plane)


def test_predictors_by_definition() -> None:
    plane = noise_plane(5, 6).astype(np.int64)
    padded = np.pad(plane, ((1, 0), (1, 0)))
    w, n, nw = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    for predictor, predicted in ((NONE, 0 * w), (LEFT, w), (UP, n), (GRADIENT, w + n - nw)):
        residual = remove_prediction(plane.astype(np.uint8), predictor)
        assert np.array_equal(residual, (plane - predicted) % 256)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("size", [*SIZES, (70, 101)], ids=str)
def test_planes_come_back(tiny: Model, content: str, size: tuple[int, int]) -> None:
    check_planes([CONTENTS[content](*size)], tiny)


def test_every_mode_is_chosen_where_it_is_best(tiny: Model) -> None:
    size = (70, 101)
    low = noise_plane(*size)
    modes = check_planes(
        [noise_plane(*size), constant(*size), checker(*size), photo_plane(*size), low, low],
        tiny,
        [None, None, None, None, None, low.copy()],
    )
    assert [mode for mode, _ in modes] == [RAW, CONSTANT, DEFLATED, CODED, RAW, CONSTANT]
    assert modes[-1] == (CONSTANT, REFERENCE)  # 8-bit samples times 257


def test_small_costs(tiny: Model) -> None:
    """A constant plane costs four bytes at any size; a hard mask little; smooth planes far less than raw."""
    assert len(encode_planes([constant(300, 700)], [None], tiny)) == 4
    y, x = np.mgrid[:128, :128]
    hard = ((x - 60) ** 2 + (y - 70) ** 2 < 50**2).astype(np.uint8) * 255
    assert len(encode_planes([hard], [None], tiny)) < 600
    assert len(encode_planes([soft_mask(128, 128)], [None], tiny)) < 128 * 128 / 4


def test_steps_cross_regions(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many regions, some silent; a reader and a writer agree on their order."""
    monkeypatch.setattr(planes, "REGION", 64)
    plane = photo_plane(150, 260)
    plane[60:140, 50:200] = 9
    assert check_planes([plane], tiny)[0][0] == CODED


def body(model: Model, residual: np.ndarray, classes: np.ndarray, predictor: int = NONE) -> bytes:
    """A coded plane written by hand: residuals int16 of all pixels of its classes' blocks."""
    writer = Writer(model.tables, 1)
    index = class_tables(model)[np.full((1, residual.size), int(classes.max()) - 1)]
    writer.code(torch.from_numpy(index), torch.from_numpy(residual.astype(np.int16).reshape(1, -1)))
    packed = zlib.compress(classes.astype(np.uint8).tobytes())
    return bytes([CODED, predictor]) + pack_varints([len(packed)]) + packed + writer.finish()[0]


def payload_of(plane: bytes) -> bytes:
    return pack_varints([len(plane)]) + plane


def test_a_plane_written_by_hand(tiny: Model) -> None:
    residual = np.arange(-128, 127, dtype=np.int16).reshape(15, 17)
    payload = payload_of(body(tiny, residual, np.array([20])))
    (plane,) = decode_planes(memoryview(payload), (15, 17), [None], tiny)
    assert np.array_equal(plane, residual.astype(np.uint8))


def test_damage_is_corrupt(tiny: Model) -> None:
    size = (15, 17)
    n = size[0] * size[1]
    residual = np.arange(n).reshape(size) % 200 - 100
    one = np.array([20])
    good = body(tiny, residual, one)
    wide = residual.copy()
    wide[3, 3] = 300
    low = residual.copy()
    low[3, 3] = -129
    for plane in (
        b"",
        b"\1",
        b"\1\0",
        b"\1\0\0\0",
        bytes([RAW, NONE]) + bytes(n - 1),
        bytes([RAW, NONE]) + bytes(n + 1),
        bytes([RAW, 5]) + bytes(n),
        bytes([RAW, REFERENCE]) + bytes(n),
        bytes([4, NONE]) + bytes(n),
        bytes([DEFLATED, NONE]) + zlib.compress(bytes(n - 1)),
        bytes([DEFLATED, NONE]) + zlib.compress(bytes(n + 1)),
        bytes([DEFLATED, NONE]) + zlib.compress(bytes(n)) + b"\0",
        bytes([DEFLATED, NONE]) + zlib.compress(bytes(n))[:-1],
        bytes([DEFLATED, NONE]) + b"no stream",
        bytes([CODED, NONE]),
        good + bytes(4),
        good[:-4],
        body(tiny, wide, one),
        body(tiny, low, one),
        body(tiny, residual[:-1], one),
        body(tiny, np.concatenate((residual, residual)), one),
        body(tiny, residual, np.array([20, 20])),
        good.replace(zlib.compress(b"\x14"), zlib.compress(b"\x2a")),  # class 42
    ):
        check_format_error(lambda p=plane: decode_one(payload_of(p), size, tiny), Corrupt)
    assert np.array_equal(decode_one(payload_of(good), size, tiny)[0], residual.astype(np.uint8))
    for payload in (b"", payload_of(good) + b"\0", b"\xff\xff\xff\xff\xff", b"\xff\xff\xff\xff\x0f" + good):
        check_format_error(lambda p=payload: decode_one(p, size, tiny), Corrupt)


def decode_one(payload: bytes, size: tuple[int, int], model: Model) -> list[Plane]:
    return decode_planes(memoryview(payload), size, [None], model)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_windows_of_planes(tiny: Model, predictor: int) -> None:
    """A window of a plane, of which the reference is given on the window alone."""
    size, window = (70, 101), (slice(13, 50), slice(90, 101))
    reference = soft_mask(*size)
    plane = add_prediction(half_noise(*size) >> 6, predictor, reference)
    whole_reference = reference if predictor == REFERENCE else None
    payload = memoryview(encode_planes([plane, plane], [whole_reference, None], tiny))
    part = None if whole_reference is None else reference[window]
    got = decode_planes(payload, size, [part, None], tiny, window)
    assert np.array_equal(got[0], plane[window])
    assert np.array_equal(got[1], plane[window])


@pytest.mark.parametrize("content", ["half_noise", "checker", "constant"])
def test_every_truncation_is_corrupt(tiny: Model, content: str) -> None:
    size = (20, 33)
    payload = encode_planes([CONTENTS[content](*size)], [None], tiny)
    for prefix in truncations(payload):
        check_format_error(lambda p=prefix: decode_one(p, size, tiny), Corrupt)


def test_mutations_are_corrupt_or_planes(tiny: Model) -> None:
    size = (40, 33)
    rng = np.random.default_rng(8)
    outcomes = {True: 0, False: 0}
    files = [
        encode_planes([CONTENTS[c](*size)], [None], tiny) for c in ("half_noise", "checker", "photo_plane")
    ]
    for file, _ in product(files, range(100)):
        payload = bytearray(file)
        for _ in range(int(rng.integers(1, 4))):
            payload[rng.integers(0, len(payload))] = rng.integers(0, 256)
        try:
            (plane,) = decode_one(bytes(payload), size, tiny)
        except Corrupt:
            outcomes[False] += 1
        else:
            assert plane.shape == size
            outcomes[True] += 1
    assert all(outcomes.values())


def test_a_bomb_is_refused_in_little_memory(tiny: Model) -> None:
    """A stream of 8 MiB for a plane of 255 pixels, as samples and as classes."""
    bomb = zlib.compress(bytes(8 << 20))
    coded = bytes([CODED, NONE]) + pack_varints([len(bomb)]) + bomb
    for plane in (bytes([DEFLATED, NONE]) + bomb, coded):
        payload = payload_of(plane)
        tracemalloc.start()
        check_format_error(lambda p=payload: decode_one(p, (15, 17), tiny), Corrupt)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 1 << 20
