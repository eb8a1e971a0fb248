"""Nothing decides a pixel but integers: threads, tiles and batches make no difference."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from grouped import CASES, grouped_file
from pictures import photo
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.codec.entropy.coder import Counter, Discard, Means
from vbc.codec.exact import level as exact_level
from vbc.codec.exact.groups import GridStep, GroupBatch, phase_pixels
from vbc.codec.exact.level import code_groups, decode_groups, encode_level, fill_groups, put_group
from vbc.codec.exact.model import n_around
from vbc.codec.exact.planes import lossy_planes, phase_size
from vbc.codec.exact.tuning import code_tuning
from vbc.codec.flow import decode_state, encode_levels
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.model import Model, installed, load_model, model_hash
from vbc.codec.nets.int_nets import IntChain
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.pixels.borders import Window
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.settings import EncodeSettings
from vbc.codec.train.export import known_answers, stored_answers
from vbc.kernels.conv import IntConv, conv_int_reference

SHIPPED = Path(str(resources.files("vbc.codec") / "weights" / installed()[-1]["file"]))
LAYERED = EncodeSettings(lossless=True)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model()


def layers(model: Model) -> list[IntConv]:
    """Every integer layer of a model."""
    found: list[IntConv] = []
    chains = [*model.lossy.context.values(), *model.lossy.priors.values(), *model.lossy.neighbours.values()]
    for chain in [*chains, model.lossy.enhance]:
        found += [*chain.layers, chain.head]
    for phase in model.exact.phases.values():
        for net in (*phase.values, phase.bins):
            found += [net.second, net.third]
            for ends in (net.archival, *net.layered):
                found += [ends.first, ends.head, ends.skip]
    for chain in model.exact.values.chains.values():
        found += [*chain.layers, chain.head]
    return found


def test_shipped_weights_keep_the_accumulator_bound(shipped: Model) -> None:
    """127 * sum|W| + |b| + 2^(s-1) < 2^24 for every channel and every bias a layer is ever called with."""
    assert len(layers(shipped)) > 40
    for layer in layers(shipped):
        weight = layer.weight.long().abs().sum((1, 2, 3)) * 127 + (1 << (layer.shift.long() - 1))
        assert (weight + layer.bias.long().abs()).max() < 1 << 24
    chains = [
        *shipped.lossy.context.values(),
        *shipped.lossy.priors.values(),
        *shipped.lossy.neighbours.values(),
    ]
    pairs = [(c.layers[0], c.condition) for c in [*chains, shipped.lossy.enhance]]
    pairs += [(c.layers[0], c.condition) for c in shipped.exact.values.chains.values()]
    for phase in shipped.exact.phases.values():
        for net in (*phase.values, phase.bins):
            pairs += [(ends.first, ends.condition) for ends in (net.archival, *net.layered)]
    for layer, biases in pairs:
        room = (1 << 24) - layer.weight.long().abs().sum((1, 2, 3)) * 127 - (1 << (layer.shift.long() - 1))
        assert (biases.long().abs().amax(tuple(range(biases.dim() - 1))) < room).all()


def test_shipped_weights_are_small_and_hashed(shipped: Model) -> None:
    from safetensors.torch import load_file

    assert SHIPPED.stat().st_size <= 8_000_000
    tensors = load_file(SHIPPED)
    assert model_hash(tensors) == shipped.hash
    name = "exact.D0.second.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0, 0, 0] ^= 1
    assert model_hash(tensors) != shipped.hash
    tensors["analysis.analysis_in.bias"] += 1  # the encoder's alone
    assert model_hash(load_file(SHIPPED)) == shipped.hash


def test_known_answers(shipped: Model, tiny: Model, tiny_path: Path) -> None:
    assert known_answers(shipped) == stored_answers(SHIPPED)
    assert known_answers(tiny) == stored_answers(tiny_path)


def test_shipped_layers_equal_the_int64_definition(shipped: Model) -> None:
    generator = torch.Generator().manual_seed(5)
    for layer in layers(shipped):
        o, i, k, _ = layer.weight.shape
        x = torch.randint(0, 128, (1, i, 4 + k, 6 + k), generator=generator, dtype=torch.uint8)
        want = conv_int_reference(x, layer.weight, layer.bias, layer.shift, layer.head)
        assert torch.equal(layer(x), want), (o, i, k)


def test_decoding_does_not_depend_on_threads(shipped: Model) -> None:
    """Nor does encoding, but for the analysis, which is float: its file decodes to the same everywhere."""
    data = encode_image(photo(150, 131), model=shipped, settings=LAYERED)
    n = torch.get_num_threads()
    pictures = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pictures.append([decode_image(data, model=shipped, levels=k).rgb for k in (1, 2, 3, 8, None)])
    finally:
        torch.set_num_threads(n)
    for other in pictures[1:]:
        assert all(torch.equal(a, b) for a, b in zip(pictures[0], other, strict=True))


def test_encoding_is_reproducible(tiny: Model) -> None:
    x = photo(60, 61)
    assert encode_image(x, model=tiny, settings=LAYERED) == encode_image(x, model=tiny, settings=LAYERED)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["layered", "archival", "lossy"])
@pytest.mark.parametrize("most", [1, 1 << 11, 1 << 30])
def test_batches_of_groups_make_no_difference(
    tiny: Model, name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups one by one, some and all together: the same bytes, the same pixels."""
    for module in (decode_state, encode_levels):
        monkeypatch.setattr(module, "HOST_BLOCKS", min(most, 1 << 20))
    monkeypatch.setattr(exact_level, "HOST_BATCH", most)
    data, case = grouped_file(name), CASES[name]
    assert encode_image(case.rgb, model=tiny, settings=case.settings) == data
    monkeypatch.undo()
    want = decode_image(data, model=tiny)
    for module in (decode_state, encode_levels):
        monkeypatch.setattr(module, "HOST_BLOCKS", min(most, 1 << 20))
    monkeypatch.setattr(exact_level, "HOST_BATCH", most)
    assert torch.equal(decode_image(data, model=tiny).rgb, want.rgb)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["layered-tuned", "half-noise"])
@pytest.mark.parametrize("threaded", [False, True])
def test_a_following_thread_makes_no_difference(
    tiny: Model, name: str, threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_level, "FOLLOW_POSITIONS", 0 if threaded else 1 << 40)
    monkeypatch.setattr(exact_level, "HOST_BATCH", 1 << 10)  # several batches, three calls behind at most
    case = CASES[name]
    assert torch.equal(decode_image(grouped_file(name), model=tiny).rgb, case.rgb)
    if not case.tuned:
        assert encode_image(case.rgb, model=tiny, settings=case.settings) == grouped_file(name)


# one step of the exact levels


def make_step(model: Model, x: Tensor, layered: bool) -> GridStep:
    """From x_1 to x_0 of a picture [1, 3, H, W], with prior errors of noise."""
    coarse = rgb_to_ycocg(x[..., ::2, ::2])
    g = torch.Generator().manual_seed(4)
    errors = torch.randint(-127, 128, coarse.shape, generator=g, dtype=torch.int8)
    return GridStep(model.exact, coarse, errors, x.flip(-1) if layered else None, 0, 50)


def tiles(height: int, width: int, side: int) -> list[Window]:
    return [
        (slice(top, min(height, top + side)), slice(left, min(width, left + side)))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def picture(height: int, width: int) -> Tensor:
    return photo(height, width)[None].contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_parameters_do_not_depend_on_the_batch(shipped: Model, phase: str, layered: bool) -> None:
    """N groups of one shape together are what each of them is alone; so are parts of a group."""
    x = picture(75, 90)
    step = make_step(shipped, x, layered)
    windows = [w for w in tiles(75, 90, 20) if w[0].stop - w[0].start == w[1].stop - w[1].start == 20]
    together = GroupBatch(step, windows)
    alone = [GroupBatch(step, [window]) for window in windows]
    whole = GroupBatch(step, [(slice(0, 75), slice(0, 90))])
    for batch in (together, whole, *alone):
        for before in PHASES[: PHASES.index(phase)]:
            target = phase_pixels(x, batch.windows, before)
            batch.see(before, target)
            batch.code(before, Discard(), batch.parameters(before), None, target)
    joined = together.parameters(phase)
    around = list(together.seen.around(phase, joined.base, step.bound))
    assert len(around) == n_around(phase)
    for n, batch in enumerate(alone):
        single = batch.parameters(phase)
        for name in ("base", "out", "features"):
            assert torch.equal(getattr(single, name)[0], getattr(joined, name)[n])
        for mine, theirs in zip(batch.seen.around(phase, single.base, step.bound), around, strict=True):
            assert torch.equal(mine[0], theirs[n])
    h, w = phase_size(phase, 75, 90)
    entire = whole.parameters(phase)
    lossy = None
    for rows, cols in [(slice(r, r + 9), slice(c, c + 11)) for r in (0, 5, h - 9) for c in (0, 13, w - 11)]:
        seen = whole.seen.part(0, (rows, cols), phase)
        if layered:
            assert step.lossy is not None
            lossy = lossy_planes(step.lossy, [(rows, cols)])
        part = seen.parameters(step, lossy, phase, (9, 11))
        for name in ("base", "out", "features"):
            assert torch.equal(getattr(part, name), getattr(entire, name)[..., rows, cols])


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("side", [16, 32])
def test_groups_see_their_own_grid_only_inside(tiny: Model, layered: bool, side: int) -> None:
    """Pixels elsewhere in the finer grid change nothing, nor the coarser grid more than 4 positions away."""
    x = picture(70, 90)
    step, window = make_step(tiny, x, layered), tiles(70, 90, side)[5]
    rows, cols = window

    def coded(step: GridStep, x: Tensor) -> tuple[np.ndarray, dict[str, Tensor]]:
        counter, batch = Counter(len(tiny.tables)), GroupBatch(step, [window])
        code_groups([batch], [counter], lambda *_: None, x)
        return counter.counts, batch.errors

    want, errors = coded(step, x)
    other = x.flip(0, 2, 3).contiguous(memory_format=torch.channels_last)
    other[..., rows, cols] = x[..., rows, cols]
    far = torch.full_like(step.coarse, 77)
    near = (slice(max(0, s.start // 2 - 4), -(-s.stop // 2) + 4) for s in window)
    near_rows, near_cols = near
    far[..., near_rows, near_cols] = step.coarse[..., near_rows, near_cols]
    assert not torch.equal(far, step.coarse)
    moved = GridStep(step.model, far, step.errors, step.lossy, 0, 50)
    for changed_step, changed in ((step, other), (moved, x)):
        counts, missed = coded(changed_step, changed)
        assert np.array_equal(counts, want)
        assert all(torch.equal(missed[p], errors[p]) for p in PHASES)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("side", [40, 64, 512])
@pytest.mark.parametrize("size", [(131, 150), (129, 65), (33, 128)], ids=str)
def test_tuned_levels_come_back(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, layered: bool, side: int, size: tuple[int, int]
) -> None:
    """Two levels, the second following the prior errors of the first; in any order of groups."""
    monkeypatch.setattr(exact_level, "MIN_POSITIONS", 100)
    monkeypatch.setattr("vbc.codec.exact.tuning_fit.MIN_POSITIONS", 100)
    monkeypatch.setattr("vbc.codec.exact.tuning_fit.SIDE_BITS", -1e9)
    x = picture(*size)
    guide = x.roll(1, -1) if layered else None
    written: Tensor | None = None
    coarse, read = rgb_to_ycocg(x[..., ::4, ::4]), None
    for k in (1, 0):
        fine = x[..., :: 1 << k, :: 1 << k]
        windows = tiles(*fine.shape[-2:], side)
        lossy = None if guide is None else guide[..., :: 1 << k, :: 1 << k]
        step = GridStep(tiny.exact, coarse, written, lossy, k, 60)
        encoded = encode_level(tiny, step, windows, fine, 3, 2, True)
        shared, packets, written = encoded.shared, encoded.groups, encoded.errors
        assert shared is not None
        numbers = list(range(len(windows)))[::-1]
        parts = {n: [memoryview(packets[n])] for n in numbers}
        step = GridStep(tiny.exact, coarse, read, lossy, k, 60)
        there = torch.empty_like(fine, dtype=torch.int16, memory_format=torch.channels_last)
        missed = torch.empty_like(there, dtype=torch.int8)
        known = torch.zeros_like(coarse, dtype=torch.int8) if read is None else read
        given = {n: windows[n] for n in numbers}
        for done in decode_groups(tiny, step, given, parts, [memoryview(shared)]):
            for n, number in enumerate(done.numbers):
                put_group(there, coarse, windows[number], done.pixels, n)
                put_group(missed, known, windows[number], done.errors, n)
        assert torch.equal(there, rgb_to_ycocg(fine))
        assert torch.equal(missed, written)
        assert written.any()
        coarse, read = there, missed


def test_tuned_groups_need_what_they_share(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections are those of the level: another level's make another picture, or an error."""
    x = picture(40, 50)
    step, windows = make_step(tiny, x, False), tiles(40, 50, 512)
    monkeypatch.setattr(exact_level, "MIN_POSITIONS", 100)
    monkeypatch.setattr("vbc.codec.exact.tuning_fit.MIN_POSITIONS", 100)
    monkeypatch.setattr("vbc.codec.exact.tuning_fit.SIDE_BITS", -1e9)
    encoded = encode_level(tiny, step, windows, x, 3, 1, False)
    packets = encoded.groups
    assert encoded.shared is not None
    writer = tiny.writer(1)
    for phase in PHASES:
        code_tuning(tiny.exact, writer, phase, 0, None, torch.device("cpu"))
    untuned = bytes([exact_level.TUNED]) + writer.finish()[0]
    parts = {0: [memoryview(packets[0])]}
    for other in (untuned, None):
        shared_packet = None if other is None else memoryview(other)
        try:
            (done,) = decode_groups(tiny, step, {0: windows[0]}, parts, [shared_packet])
        except Corrupt:
            continue
        assert not torch.equal(done.pixels["D"], phase_pixels(x, windows, "D"))


@pytest.mark.parametrize("n_known", [0, 1])
def test_what_stands_for_missing_groups(tiny: Model, n_known: int) -> None:
    """With networks the prediction of zero residuals, without them the mean of four neighbours; no errors."""
    x = picture(41, 33)
    step = make_step(tiny, x, False)
    windows = tiles(41, 33, 16)[n_known:]
    for network in (False, True):
        filled: set[int] = set()
        for done in fill_groups(step, windows, network):
            filled |= set(done.numbers)
            assert not any(e.any() for e in done.errors.values())
            for n, number in enumerate(done.numbers):
                one = GroupBatch(step, [windows[number]])
                for phase in PHASES:
                    if one.is_empty(phase):
                        one.set_empty(phase)
                    elif network:
                        one.code(phase, Means(), one.parameters(phase), None, None)
                    else:
                        one.interpolate(phase)
                    assert torch.equal(one.pixels[phase][0], done.pixels[phase][n])
        assert filled == set(range(len(windows)))
    four = [step.coarse[..., dy : dy + 15, dx : dx + 15].int() for dy in (0, 1) for dx in (0, 1)]
    batch = GroupBatch(step, [(slice(0, 30), slice(0, 30))])
    batch.interpolate("D")
    assert torch.equal(batch.pixels["D"].int(), (sum(four) + 2) >> 2)


def test_one_group_or_many_code_every_pixel_once(tiny: Model) -> None:
    x = picture(61, 83)
    step = make_step(tiny, x, True)
    for side in (8, 512):
        counter = Counter(len(tiny.tables))
        for window in tiles(61, 83, side):
            code_groups([GroupBatch(step, [window])], [counter], lambda *_: None, x)
        assert counter.counts.sum() == 3 * (61 * 83 - 31 * 42)


# whole models


def test_extreme_planes_through_a_chain(shipped: Model) -> None:
    chain: IntChain = shipped.lossy.enhance
    n = chain.layers[0].weight.shape[1]
    for value in (-64, 63):
        planes = torch.full((1, n, 2 * chain.radius + 3, 2 * chain.radius + 2), value)
        out = chain(planes, 2)
        assert out.shape[-2:] == (3, 2)
        assert (out == out[..., :1, :1]).all()


def test_eight_pictures_decode_as_one(tiny: Model) -> None:
    """Eight files one after another leave nothing behind that changes the next."""
    files = [encode_image(photo(20 + i, 31), model=tiny, settings=LAYERED) for i in range(8)]
    first = [decode_image(f, model=tiny).rgb for f in files]
    again = [decode_image(f, model=tiny).rgb for f in reversed(files)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("small_groups")
def test_the_encoders_lossy_picture_is_the_decoders(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the exact levels of an encoder are guided by, in many groups, is what a decoder shows."""
    shown: list[Tensor] = []
    real = encode_levels.lossy_picture

    def spy(*arguments: object) -> Tensor:
        shown.append(real(*arguments))  # type: ignore[arg-type]
        return shown[-1]

    monkeypatch.setattr("vbc.codec.pipeline.lossy_picture", spy)
    case = CASES["layered"]
    data = encode_image(case.rgb, model=tiny, settings=case.settings)
    assert torch.equal(shown[0][0], decode_image(data, model=tiny, levels=3).rgb)


@pytest.mark.usefixtures("small_groups")
def test_states_of_one_file_do_not_disturb_each_other(tiny: Model) -> None:
    """`advance` gives a new state; what the one before has done stays what it was."""
    data = grouped_file("archival")
    header = container.unpack_header(data)
    state = DecodeState(tiny, header)
    seen = [state]
    for i, packet in enumerate(header.packets):
        if packet.level:
            body = {packet.part - 1: container.read_packet(data, header, i)}
            seen.append(seen[-1].advance(packet.level, body))
    counts = [sum(map(len, s.done.values())) for s in seen]
    assert counts == list(range(len(seen)))
    assert state.done == {}
