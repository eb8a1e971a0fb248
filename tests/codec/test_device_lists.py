"""Lists of files on the device path: decoded together to what each gives alone, with one wait a level.

The model is placed on the CPU, which is the device path in plain torch; on `meta` tensors, which hold no
values, whatever would wait for the device fails.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import decoded_hash, every_refinement, group_sides, payloads_of, rebuild
from grouped import ARCHIVAL, LAYERED, TINY, grouped_file
from pictures import noise, photo, soft_mask
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt, Truncated
from vbc.bitstream.geometry import is_lossy, rank
from vbc.codec import IncrementalReader, api
from vbc.codec.entropy.tensor_coder import TensorReader
from vbc.codec.exact import level as exact_level
from vbc.codec.flow import decode_list, decode_state
from vbc.codec.model import Model, load_model, place
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings
from vbc.kernels import predict

HEIGHT, WIDTH = 39, 201
CPU, META = torch.device("cpu"), torch.device("meta")
REFINED = EncodeSettings(quality=70, refinements=1)
TUNED = EncodeSettings(levels=0, lossless=True)
TUNED_LAYERED = EncodeSettings(lossless=True)
pytestmark = pytest.mark.usefixtures("small_groups")


@pytest.fixture(scope="module")
def placed(tiny: Model) -> Model:
    """The tiny model on the device path, in plain torch."""
    return place(tiny, CPU)


def pictures() -> list[Tensor]:
    """Three of one size; part of the last one is noise, which is stored plain."""
    rgb = photo(HEIGHT, WIDTH)
    noisy = rgb.clone()
    noisy[..., 64:104] = noise(HEIGHT, 40)
    return [rgb, 255 - rgb.flip(2), noisy]


@functools.cache
def files(settings: EncodeSettings, tuned: bool = False) -> tuple[bytes, ...]:
    """Their files, made by the host; tuned: with corrections of the exact levels, whether they pay or not."""
    with group_sides(), every_refinement(), pytest.MonkeyPatch.context() as patch:
        if tuned:
            for module in ("level", "tuning_fit"):
                patch.setattr(f"vbc.codec.exact.{module}.MIN_POSITIONS", 400)
            patch.setattr("vbc.codec.exact.tuning_fit.SIDE_BITS", -1e9)
        return tuple(encode_image(rgb, model=load_model(TINY), settings=settings) for rgb in pictures())


def batches_of(data: Sequence[bytes]) -> list[list[int]]:
    return decode_list.batches([container.unpack_header(one) for one in data])


def check_as_alone(data: Sequence[bytes], tiny: Model, placed: Model) -> None:
    """Decoded as a list on the device path, each file gives what it gives the host."""
    have = api.decode_images(list(data), "cpu", model=placed)
    for one, tensor in zip(data, have, strict=True):
        alone = api.decode_image(one, "cpu", model=tiny)
        assert tensor.dtype == alone.dtype
        assert torch.equal(tensor, alone)


# The same tensors


@pytest.mark.parametrize(
    ("settings", "tuned"),
    [
        (EncodeSettings(), False),
        (EncodeSettings(levels=1, quality=80), False),
        (REFINED, False),
        (ARCHIVAL, False),
        (LAYERED, False),
        (TUNED, True),
        (TUNED_LAYERED, True),
    ],
    ids=["lossy", "lossy-1", "refined", "archival", "layered", "archival-tuned", "layered-tuned"],
)
def test_one_batch(tiny: Model, placed: Model, settings: EncodeSettings, tuned: bool) -> None:
    """Files of one kind, of dozens of groups, are one batch."""
    data = files(settings, tuned)
    assert batches_of(data) == [[0, 1, 2]]
    assert max(packet.part for packet in container.unpack_header(data[0]).packets) > 3
    check_as_alone(data, tiny, placed)


def test_maps_of_some_groups_and_pictures_are_one_batch(tiny: Model, placed: Model) -> None:
    """In a batch of groups some have a map of qualities, and their numbers differ from picture to picture."""
    names = ("lossy-no-map", "lossy-some-maps", "lossy", "lossy-some-maps")
    data = [grouped_file(name) for name in names]
    assert batches_of(data) == [[0, 1, 2, 3]]
    check_as_alone(data, tiny, placed)
    check_as_alone(data[::-1], tiny, placed)
    assert len({decoded_hash(decode_image(one, model=tiny)) for one in data}) == 3


def modes(data: bytes, shared: bool = False) -> set[int]:
    """First bytes of the packets of groups of the last level; shared: of what the groups share."""
    header = container.unpack_header(data)
    last = header.geometry.last_level
    places = [i for i, p in enumerate(header.packets) if p.level == last and (p.part == 0) == shared]
    return {container.read_packet(data, header, i)[0] for i in places}


def test_tuned_and_untuned_are_one_batch(tiny: Model, placed: Model) -> None:
    """Each picture's groups follow its own corrections; a group may be plain in one picture alone."""
    data = [*files(TUNED, True), *files(ARCHIVAL)]
    assert modes(data[0]) == {exact_level.TUNED}
    assert modes(data[2]) == {exact_level.TUNED, exact_level.RAW}
    assert modes(data[3]) == {exact_level.CODED}
    assert modes(data[0], shared=True) == {exact_level.TUNED}
    assert modes(data[3], shared=True) == set()
    order = (3, 0, 5, 1, 4, 2)  # tuned ones are no range of the batch
    data = [data[i] for i in order]
    assert batches_of(data) == [[0, 1, 2, 3, 4, 5]]
    check_as_alone(data, tiny, placed)


def test_all_kinds_in_one_list(tiny: Model, placed: Model, tmp_path: Path) -> None:
    """What does not go together is decoded apart, and all come in the order of the list; paths do too."""
    model = load_model(TINY)
    gray = photo(HEIGHT, WIDTH)[:1].expand(3, -1, -1).contiguous()
    alpha = torch.from_numpy(soft_mask(HEIGHT, WIDTH))
    others = [
        encode_image(gray, model=model, settings=ARCHIVAL, gray=True),
        encode_image(photo(HEIGHT, WIDTH), model=model, alpha=alpha),
        encode_image(photo(HEIGHT, WIDTH - 1), model=model),
    ]
    data = [
        d for several in zip(files(EncodeSettings()), others, files(ARCHIVAL), strict=True) for d in several
    ]
    assert sorted(batches_of(data)) == [[0, 3, 6], [1, 2, 5, 8], [4], [7]]
    check_as_alone(data, tiny, placed)
    path = tmp_path / "one.vbc"
    path.write_bytes(data[3])
    have = api.decode_images([path, data[0], str(path)], "cpu", model=placed)
    for a, b in zip(have, (data[3], data[0], data[3]), strict=True):
        assert torch.equal(a, api.decode_image(b, "cpu", model=tiny))


def test_batches_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = files(EncodeSettings()) * 2
    monkeypatch.setattr(decode_list, "PIXELS_AT_ONCE", 4 * HEIGHT * WIDTH)
    assert batches_of(data) == [[0, 1, 2, 3], [4, 5]]
    monkeypatch.setattr(decode_list, "FILES_AT_ONCE", 2)
    assert batches_of(data) == [[0, 1], [2, 3], [4, 5]]
    monkeypatch.setattr(decode_list, "PIXELS_AT_ONCE", HEIGHT * WIDTH)
    assert batches_of(data) == [[0], [1], [2], [3], [4], [5]]


def test_packed_pictures_go_alone(tiny: Model, placed: Model) -> None:
    data = [encode_image(noise(1, 1), model=tiny, settings=ARCHIVAL)] * 2
    assert batches_of(data) == [[0], [1]]
    check_as_alone(data, tiny, placed)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_lists_go_together_on_devices_alone(
    device: str, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`decode_image` of a list: as `decode_images` on a device; on the CPU and for regions file by file."""
    asked = []

    def images(sources: list[bytes], device: str, **options: Any) -> list[Tensor]:
        asked.append((len(sources), device))
        return [torch.zeros(1)] * len(sources)

    monkeypatch.setattr(api, "decode_images", images)
    data = list(files(EncodeSettings()))
    assert len(api.decode_image(data, device, model=tiny)) == 3
    assert asked == ([(3, "cuda")] if device == "cuda" else [])
    region = (3, 5, 20, 11)
    for part in api.decode_image(data, "cpu", region=region, model=tiny):
        assert part.shape == (3, 11, 20)
    assert len(asked) == (device == "cuda")


# Damage


def damaged(data: bytes, level: int, part: int) -> bytes:
    """The file with a byte of a packet changed, its checksums right."""
    header = container.unpack_header(data)
    payloads = payloads_of(data)
    i = header.find(level, part)
    assert i is not None
    payloads[i][-1] ^= 0x55
    return rebuild(header, payloads)


@pytest.mark.parametrize(("level", "part"), [(1, 1), (3, 2), (9, 0), (9, 3)])
def test_damage_is_that_of_the_file_alone(tiny: Model, placed: Model, level: int, part: int) -> None:
    """One damaged file among sound ones: the error it raises by itself, and no other one."""
    sound = files(TUNED_LAYERED, True)
    broken = damaged(sound[1], level, part)
    with pytest.raises(Corrupt) as alone:
        api.decode_image(broken, "cpu", model=placed)
    with pytest.raises(Corrupt) as together:
        api.decode_images([sound[0], broken, sound[2]], "cpu", model=placed)
    assert str(together.value) == str(alone.value)
    check_as_alone(sound, tiny, placed)


def test_unlike_errors_of_a_list(placed: Model) -> None:
    """A file that ends too soon, one whose bytes differ from their checksum, and a missing one."""
    sound = files(EncodeSettings())
    with pytest.raises(Truncated):
        api.decode_images([sound[0], sound[1][:-1]], "cpu", model=placed)
    with pytest.raises(Corrupt):
        api.decode_images([sound[0], sound[1][:-1] + bytes([sound[1][-1] ^ 1])], "cpu", model=placed)
    with pytest.raises(FileNotFoundError):
        api.decode_images([sound[0], "missing.vbc"], "cpu", model=placed)


# Waiting


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups each wait was for; a reader that waits by itself fails, and so do calls in vain."""
    seen: list[int] = []
    real = exact_level.finish_all

    def count(readers: Sequence[TensorReader]) -> None:
        if readers:
            seen.append(sum(reader.verdict().numel() for reader in readers))
        if not any(reader.verdict().is_meta for reader in readers):
            real(readers)

    def alone(reader: TensorReader) -> None:
        raise AssertionError("a reader has waited by itself")

    for module in (exact_level, decode_state):
        monkeypatch.setattr(module, "finish_all", count)
    monkeypatch.setattr(TensorReader, "finish", alone)
    return seen


def groups_with_lanes(data: Sequence[bytes]) -> list[int]:
    """By level with lanes: how many groups and shared packets have some."""
    found: dict[int, int] = {}
    plain = {*exact_level.RAW_DEPTH, exact_level.PACKED}
    for one in data:
        header = container.unpack_header(one)
        for i, packet in enumerate(header.packets):
            mode = container.read_packet(one, header, i)[0]
            if packet.level and (is_lossy(packet.level) or mode not in plain):
                found[packet.level] = found.get(packet.level, 0) + 1
    return [found[level] for level in sorted(found, key=rank)]


@pytest.mark.parametrize("batch_positions", [1, 1 << 18])
@pytest.mark.parametrize("n_files", [1, 3])
def test_one_wait_a_level(
    placed: Model, waits: list[int], n_files: int, batch_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many batches, files and kinds of group; the readers of what groups share are in it."""
    for module, name in ((exact_level, "HOST_BATCH"), (decode_state, "HOST_BLOCKS")):
        monkeypatch.setattr(module, name, batch_positions)
    data = files(TUNED_LAYERED, True)[-n_files:]
    api.decode_images(data, "cpu", model=placed)
    assert waits == groups_with_lanes(data)


def test_the_host_finishes_group_by_group(tiny: Model, waits: list[int]) -> None:
    """It lets go of memory as it goes, and waits for nothing."""
    api.decode_images(files(TUNED_LAYERED, True)[:1], "cpu", model=tiny)
    assert waits == []


@pytest.mark.usefixtures("without_values")
@pytest.mark.parametrize(
    ("settings", "tuned"), [(EncodeSettings(), False), (REFINED, False), (LAYERED, False), (TUNED, True)]
)
def test_nothing_else_waits(tiny: Model, waits: list[int], settings: EncodeSettings, tuned: bool) -> None:
    """Between the waits no value of a tensor reaches the host."""
    data = files(settings, tuned)
    opened = [api.MemorySource(one) for one in data]
    headers = [container.unpack_header(one) for one in data]
    rgb = decode_list.decode_together(opened, headers, tiny.to(META))
    assert rgb.device == META
    assert rgb.shape == (3, 3, HEIGHT, WIDTH)
    assert waits == groups_with_lanes(data)


# One group of planes for several pictures


def test_slopes_of_several_pictures(tiny: Model, device: str) -> None:
    """The predictor's kernel and its definition, the slopes by position: as each picture by itself."""
    n = 700
    g = torch.Generator().manual_seed(5)

    def integers(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=g, dtype=torch.int32).to(device)

    base, out = integers(-255, 256, 3, n).short(), integers(-400, 400, 9, n)
    linear, moves, before = (
        integers(-90, 90, 6, n),
        integers(-9999, 9999, 3, n),
        integers(-127, 128, 3, 2, 3, 2),
    )
    values, picture = integers(-255, 256, 3, n).short(), integers(0, 3, n)
    maps = tiny.exact.maps["V"].to(torch.device(device))
    together = predict.Corrections(linear, moves, before, picture)
    mixed = predict.ChannelPredictor(base, out, together, maps)
    alone = [
        predict.ChannelPredictor(base, out, predict.Corrections(linear, moves, before[b]), maps)
        for b in range(3)
    ]
    for c in range(3):
        for tables in (predict.ChannelPredictor.tables, predict.ChannelPredictor.tables_reference):
            have = torch.stack(tables(mixed))
            for b, predictor in enumerate(alone):
                here = picture == b
                assert torch.equal(have[:, here], torch.stack(tables(predictor))[:, here])
        for predictor in (mixed, *alone):
            predictor.learn(values[c])


@pytest.mark.parametrize(
    ("before", "picture"), [((2, 3, 2), (10,)), ((3, 2, 3, 2), None), ((3, 2, 3, 2), (9,))]
)
def test_wrong_slopes(tiny: Model, before: tuple[int, ...], picture: tuple[int, ...] | None) -> None:
    zeros: Callable[..., Tensor] = functools.partial(torch.zeros, dtype=torch.int32)
    tuned = predict.Corrections(zeros(6, 10), zeros(3, 10), zeros(before), picture and zeros(picture))
    with pytest.raises(ValueError, match="before" if len(before) == 3 or picture is None else "picture"):
        predict.ChannelPredictor(zeros(3, 10).short(), zeros(9, 10), tuned, tiny.exact.maps["V"])


def test_runs() -> None:
    """Ranges of ascending numbers give them back; neighbours share one."""
    for numbers in itertools.chain.from_iterable(itertools.combinations(range(5), n) for n in range(6)):
        found = exact_level.runs(numbers)
        assert [b for run in found for b in range(run.start, run.stop)] == list(numbers)
        assert all(a.stop < b.start for a, b in itertools.pairwise(found))


# Files in pieces


def test_pieces_are_decoded_on_the_device(placed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(model: Model, device: str, header: container.Header) -> Model:
        asked.append(device)
        return model

    monkeypatch.setattr(api, "check_device", asked.append)
    monkeypatch.setattr(api, "load", load)
    data = files(LAYERED)[0]
    reader = IncrementalReader(model=placed, device="cuda:1")
    assert asked == ["cuda:1"]
    reader.feed(data)
    picture = reader.picture().picture.rgb
    assert asked == ["cuda:1"] * 2
    assert torch.equal(torch.from_numpy(picture).permute(2, 0, 1), pictures()[0])


def test_pieces_need_a_known_device() -> None:
    with pytest.raises(ValueError, match="cpu, cuda"):
        IncrementalReader(device="meta")
