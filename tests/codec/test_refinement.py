"""Refinements of the lossy levels: their integers, what an encoder does, files with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checks import every_refinement, payloads_of, rebuild
from grouped import grouped_file, header_of
from lossy_tools import NO_TABLE, Recorder, Replay, code_picture, many_qualities, windows
from numpy.typing import NDArray
from pictures import noise, photo
from safetensors.torch import load_file
from torch import Tensor

from vbc.bitstream import container
from vbc.bitstream.errors import Corrupt
from vbc.bitstream.geometry import SIDES, level_of
from vbc.codec import api
from vbc.codec.flow.decode_state import DecodeState
from vbc.codec.flow.encode_levels import encode_lossy, encode_lossy_below, n_bytes
from vbc.codec.lossy import analysis, coding
from vbc.codec.lossy.analysis import analyse
from vbc.codec.lossy.latents import LEVEL_LATENTS, latent_grid, level_latents
from vbc.codec.lossy.map_coding import refined_quality
from vbc.codec.lossy.model import LossyModel
from vbc.codec.lossy.quality_map import QualityMap
from vbc.codec.model import Model, WeightsError, build_model, place
from vbc.codec.pipeline import decode_image, encode_image, size_limit, verify
from vbc.codec.settings import EncodeSettings
from vbc.codec.train.frequency_tables import logistic_table, refinement_tables

Integers = NDArray[np.int64]


@pytest.fixture(scope="module")
def model(tiny: Model) -> LossyModel:
    return tiny.lossy


@pytest.fixture(scope="module")
def placed(tiny: Model) -> Model:
    """The path that a device takes, on the CPU."""
    return place(tiny, torch.device("cpu"))


# Integers


class Given:
    """A decoder of symbols that are given; it keeps the tables that it was asked for."""

    def __init__(self, symbols: Tensor):
        self.symbols = symbols

    def code(self, index: Tensor, symbols: Tensor | None) -> Tensor:
        self.index = index
        return self.symbols.masked_fill(index == NO_TABLE, 0)


def by_the_text(
    model: LossyModel,
    refinement: int,
    level: int,
    mean: Integers,
    scale: Integers,
    quality: Integers,
    coarse: Integers,
    symbols: Integers,
) -> tuple[Integers, Integers, Integers]:
    """docs/format.md section 9.5 with numpy: tables, latents and multiples, all [N, n, C]."""
    channels = level_latents(level)
    step = model.step.numpy().astype(np.int64)[quality][..., channels]
    for _ in range(refinement):
        step = (2 * step + 3) // 6
    log2_step = model.log2_step.numpy().astype(np.int64)[quality][..., channels]
    log2_step -= (25, 51, 76)[refinement - 1]
    away = wrapped(mean - coarse).clip(-(2**20), 2**20)
    quarter = (256 * np.abs(away) + step) // (2 * step)
    offset = np.minimum(quarter, 7) + (quarter >= 10) + (quarter >= 15)
    octaves = wrapped(scale - log2_step + 62) >> 2
    table = model.refine_table + 10 * octaves.clip(0, 25) + offset
    table[(octaves < 0) & (offset < 2)] = NO_TABLE
    move = np.where(table == NO_TABLE, 0, symbols).clip(-2047, 2047)
    move = np.where(away < 0, -move, move)
    latent = (coarse + ((move * step + 16) >> 5)).clip(-32768, 32767)
    return table, latent, (64 * wrapped(latent - mean).clip(-(2**20), 2**20) + step) // (2 * step)


def wrapped(x: Integers) -> Integers:
    """Modulo 2^32."""
    return x.astype(np.int32).astype(np.int64)


@pytest.mark.parametrize("refinement", [1, 2, 3])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_step_is_what_the_format_says(model: LossyModel, level: int, refinement: int) -> None:
    """Means near and far, scales of all sizes, symbols of all kinds; the extremes of each."""
    rng = np.random.default_rng(10 * level + refinement)
    n, c = 67, LEVEL_LATENTS[level - 1]
    shape = (2, n, c)
    coarse = rng.integers(-32768, 32768, shape) >> rng.integers(0, 14, shape)
    mean = coarse + (rng.integers(-40000, 40000, shape) >> rng.integers(2, 16, shape))
    scale = rng.integers(-200, 260, shape)
    symbols = rng.integers(-3, 4, shape)
    extreme = rng.random(shape) < 0.03
    ends = [-(2**31), 2**31 - 1, -(2**20), 2**24]
    mean[extreme], scale[extreme] = (rng.choice(ends, extreme.sum()) for _ in "ms")
    symbols[rng.random(shape) < 0.03] = 32767
    coarse[rng.random(shape) < 0.03] = -32768
    quality = rng.integers(0, 101, (2, n))

    coder = Given(torch.from_numpy(symbols.astype(np.int16)).transpose(1, 2).flatten(1))
    ints = [torch.from_numpy(x.astype(np.int32)) for x in (mean, scale, quality)]
    known = torch.from_numpy(coarse.astype(np.int16))
    z = coding.refine_latents(model, coder, level, refinement, *ints, known, None, True)
    step = coding.by_quality(model.steps[refinement], level, ints[2])
    multiple = coding.in_steps(ints[0], z, step)

    want = by_the_text(model, refinement, level, mean, scale, quality, coarse, symbols)
    table, latent, steps = want
    np.testing.assert_array_equal(coder.index.numpy(), table.transpose(0, 2, 1).reshape(2, -1))
    np.testing.assert_array_equal(z.numpy(), latent)
    np.testing.assert_array_equal((8 * multiple.int()).clamp(-64, 63).numpy(), (8 * steps).clip(-64, 63))
    assert set(np.unique(table[table < NO_TABLE])) >= {model.refine_table + 9, model.refine_table + 259}
    assert 0.02 < (table == NO_TABLE).mean() < 0.5


def test_a_coarse_cell_holds_three_fine_ones(model: LossyModel) -> None:
    """Three steps are the coarser one to within a 256th and what rounding adds."""
    for coarser, finer in zip(model.steps, model.steps[1:], strict=False):
        assert (3 * finer - coarser).abs().max() <= 1.5
        assert finer.min() >= 1
    for coarser, finer in zip(model.log2_steps, model.log2_steps[1:], strict=False):
        assert set((coarser - finer).flatten().tolist()) <= {25, 26}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (9, 66)])
def test_decoder_follows_encoder(model: LossyModel, size: tuple[int, int]) -> None:
    """Level by level and refinement by refinement, of groups with all kinds of qualities."""
    quality = many_qualities(size)
    rgb = photo(8 * size[0], 8 * size[1])[None].contiguous(memory_format=torch.channels_last)
    coarse, _ = code_picture(model, rgb, quality, sides=(256, 256, 256))
    group = windows(size, 256)
    for refinement in (1, 2, 3):
        target = analyse(model, rgb, refined_quality(quality, refinement))
        latents = torch.zeros_like(target)
        for level in (1, 2, 3):
            channels = level_latents(level)
            below = latents[:, : channels.start] if level > 1 else None
            known, recorder = coarse[:, channels], Recorder()
            arguments = level, below, group, quality
            coded = coding.code_groups(
                model, recorder, *arguments, target[:, channels], refinement=refinement, coarse=known
            )
            replay = Replay(recorder.steps)
            decoded = coding.code_groups(model, replay, *arguments, refinement=refinement, coarse=known)
            replay.finish()
            assert decoded.dtype == torch.int16
            assert decoded.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(decoded, coded)
            latents[:, channels] = coded
            step = model.steps[refinement][quality[0, 0].flatten().long()][:, channels]
            moved = (coded - known)[0].flatten(1).T.abs()
            assert (moved <= (step + 31) // 32).float().mean() > 0.8, "most stay in their cells"
            assert all(symbols.abs().max() <= 127 for _, symbols in recorder.steps)
        assert (latents != coarse).any()
        coarse = latents


def test_a_group_is_the_same_in_every_batch(model: LossyModel) -> None:
    rng = torch.Generator().manual_seed(1)
    size, refinement = (12, 20), 2
    latents = torch.randint(-900, 900, (1, 192, *size), generator=rng, dtype=torch.int16)
    target = torch.randint(-1800, 1800, (2, 192, 6, 8), generator=rng, dtype=torch.int16)
    group = [(slice(0, 6), slice(4, 12)), (slice(6, 12), slice(12, 20))]
    quality = many_qualities(size)
    for level in (1, 2, 3):
        channels = level_latents(level)
        below = latents[:, : channels.start] if level > 1 else None
        known = torch.cat([latents[:, channels, *window] for window in group])

        def code(
            recorder: Recorder,
            numbers: list[int],
            level: int = level,
            below: Tensor | None = below,
            known: Tensor = known,
        ) -> Tensor:
            return coding.code_groups(
                model,
                recorder,
                level,
                below,
                [group[i] for i in numbers],
                quality,
                target[numbers, level_latents(level)],
                refinement=refinement,
                coarse=known[numbers],
            )

        together = Recorder()
        coded = code(together, [0, 1])
        for i in (0, 1):
            alone = Recorder()
            assert torch.equal(code(alone, [i])[0], coded[i])
            for one, both in zip(alone.steps, together.group(i), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one, both, strict=True))


# Tables


def test_initial_tables_are_the_logistic_in_a_cell() -> None:
    tables = refinement_tables()
    assert tables.shape == (260, 256)
    np.testing.assert_allclose(tables.sum(1), 1)
    assert not tables[:, :126].any()
    assert not tables[:, 129:].any()
    thirds = tables[:, 126:129].reshape(26, 10, 3)
    np.testing.assert_allclose(thirds[:, 0, 0], thirds[:, 0, 2], err_msg="the mean in the middle")
    assert (np.diff(thirds[..., 2] / thirds[..., 0].clip(1e-300), axis=1) >= 0).all(), "towards the mean"
    for scale, offset in ((12, 2), (20, 5), (25, 0)):
        whole = logistic_table(offset / 4, (4 * scale - 60) / 16)[126:129]
        np.testing.assert_allclose(thirds[scale, offset], whole / whole.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lossy.refine_table", 1420, "lossy.refine_table leads beyond"),
        ("lossy.refine_table", None, "lossy.refine_table"),
        ("lossy.step", 13, "step below 14"),
    ],
)
def test_weights_that_cannot_refine(tiny_path: Path, name: str, value: int | None, message: str) -> None:
    tensors = load_file(tiny_path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = torch.full_like(tensors[name], value)
    with pytest.raises(WeightsError, match=message):
        build_model(tensors)


# What an encoder does


def test_the_best_move(model: LossyModel) -> None:
    """For squared error and bits together; only what is coded; nearest without a look at bits."""
    rng = torch.Generator().manual_seed(3)
    shape = (2, 50, LEVEL_LATENTS[1])
    exact = 2 * torch.randn(shape, generator=rng)
    table = model.refine_table + torch.randint(0, 260, shape, generator=rng).int()
    coded = torch.rand(shape, generator=rng) < 0.7
    quality = torch.randint(0, 101, shape[:2], generator=rng).int()
    arguments = (model, 2, quality, exact, table, coded)
    exact[0, 0, :3] = torch.tensor([40.0, -200.0, 9.0])
    coded[0, 0, :3] = True
    nearest = analysis.wanted_moves(*arguments, optimise=False)
    assert torch.equal(nearest, (exact.round().clamp(-127, 127) * coded).short())
    worth = analysis.step_worth(model, 2)[quality]
    cost = model.refine_cost[(table - model.refine_table).long()]

    def total(t: Tensor) -> Tensor:
        bits = cost.gather(-1, t[..., None].long() + 127)[..., 0]
        return (exact - t).square() * worth + bits

    chosen = analysis.wanted_moves(*arguments, optimise=True)
    assert torch.equal(chosen[0, 0, :3], nearest[0, 0, :3]), "no bits are worth so large an error"
    assert chosen.dtype == torch.int16
    assert not chosen[~coded].any()
    for other in (*(torch.full_like(chosen, t) for t in (-1, 0, 1)), nearest):
        assert (total(chosen) <= total(other))[coded].all()
    assert 0.001 < (chosen != nearest).float().mean() < 0.5
    later = analysis.wanted_moves(*arguments, optimise=True, later=1)
    assert (later != nearest).sum() < 0.2 * (chosen != nearest).sum(), "nearly nearest before refinements"


def test_qualities_of_stages() -> None:
    for base, wanted, want in (
        (60, 0, (60, 0)),
        (60, 1, (35, 1)),
        (60, 3, (10, 2)),
        (25, 1, (0, 1)),
        (24, 3, (24, 0)),
        (100, 3, (25, 3)),
    ):
        quality = QualityMap(base).refined(wanted)
        assert (quality.base, quality.refinements) == want
        assert quality.final == base
        assert quality.refined(wanted) == quality


@pytest.mark.parametrize(("quality", "asked", "got"), [(90, 1, 1), (90, 3, 3), (30, 3, 1), (20, 2, 0)])
def test_files(tiny: Model, quality: int, asked: int, got: int) -> None:
    """Levels in their order, a better picture with each refinement, at the quality that was asked for."""
    x = photo(61, 150)
    settings = EncodeSettings(quality=quality, tune="psnr", refinements=asked)
    with every_refinement():
        data = encode_image(x, model=tiny, settings=settings)
    header = container.unpack_header(data)
    assert container.levels_present(header) == (1, 2, 3, *range(33, 33 + 3 * got))
    assert list(dict.fromkeys(p.level for p in header.packets)) == list(container.levels_present(header))
    assert (header.quality, header.final_quality) == (quality - 25 * got, quality)
    errors = [
        (decode_image(data, model=tiny, levels=n).rgb.float() - x).square().mean().item()
        for n in range(3, 4 + 3 * got, 3)
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == got + 1
    one = encode_image(x, model=tiny, settings=replace(settings, refinements=0))
    assert errors[-1] < 1.5 * (decode_image(one, model=tiny).rgb.float() - x).square().mean().item()
    verify(data, model=tiny)


def test_more_bytes_than_allowed(tiny: Model) -> None:
    """The best quality below that fits, with as many of the refinements as it allows."""
    picture = photo(40, 48)[None].contiguous(memory_format=torch.channels_last)
    whole, some = (n_bytes(encode_lossy(picture, tiny, 3, QualityMap(q).refined(2))[0]) for q in (90, 45))
    counts = set()
    for limit in (whole - 1, some, 150):
        quality, packets, latents = encode_lossy_below(picture, tiny, QualityMap(90).refined(2), limit)
        assert n_bytes(packets) <= limit
        assert quality.refinements == min(2, quality.final // 25)
        assert {p[0] for p in packets} == {1, 2, 3, *range(33, 33 + 3 * quality.refinements)}
        again, same = encode_lossy(picture, tiny, 3, quality)
        assert again == packets
        assert torch.equal(same, latents)
        counts.add(quality.refinements)
    assert counts == {0, 1, 2}


@pytest.mark.parametrize("size", [(1, 1), (40, 48)])
def test_lossless(tiny: Model, size: tuple[int, int]) -> None:
    for x in (photo(*size), noise(*size)):
        settings = EncodeSettings(lossless=True, quality=90, refinements=2)
        with every_refinement():
            data = encode_image(x, model=tiny, settings=settings)
        assert len(data) <= size_limit(x.numel())
        decoded = decode_image(data, model=tiny)
        assert torch.equal(decoded.rgb, x)
        assert decoded.exact


# Decoding


def test_exact_levels_are_told_the_last_quality(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told the header's, they decode to another picture; the lossy levels do not ask."""
    x = photo(40, 48)
    with every_refinement():
        data = encode_image(x, model=tiny, settings=EncodeSettings(lossless=True, quality=70, refinements=1))
    assert torch.equal(decode_image(data, model=tiny).rgb, x)
    lossy = decode_image(data, model=tiny, levels=6).rgb
    monkeypatch.setattr(container.Header, "final_quality", property(lambda header: header.quality))
    assert torch.equal(decode_image(data, model=tiny, levels=6).rgb, lossy)
    try:
        assert not torch.equal(decode_image(data, model=tiny).rgb, x)
    except Corrupt:
        return  # lanes that were written for other tables


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["refined", "refined-twice"])
def test_planes_that_nothing_needs_are_dropped(tiny: Model, name: str) -> None:
    """In an encoder's order there are two planes of latents at most, and none after the picture."""
    data, header = grouped_file(name), header_of(name)
    state = DecodeState(tiny, header)
    for i, packet in enumerate(header.packets):
        state = state.advance(packet.level, {packet.part - 1: container.read_packet(data, header, i)})
        assert len(state.planes.latents) <= 2
    assert list(state.planes.latents) == [header.geometry.refinements]
    wanted = {n: list(range(header.geometry.n_groups(n))) for n in header.geometry.levels}
    state.picture(header.geometry.last_lossy, wanted)
    assert not state.planes.latents


@pytest.mark.usefixtures("small_groups")
def test_a_refinement_is_seen_where_it_is(tiny: Model) -> None:
    """Of level 3 the last packet changes its own square, and what the enhancement spreads."""
    data, header = grouped_file("refined"), header_of("refined")
    assert header.packets[-1].level == level_of(1, 3)
    before = decode_image(data[: header.ends[-2]], model=tiny, allow_partial=True).rgb
    changed = (decode_image(data, model=tiny).rgb != before).any(0)
    rows, cols = header.geometry.window(level_of(1, 3), header.packets[-1].part - 1)
    assert changed[8 * rows.start :, 8 * cols.start :].any()
    changed[tuple(slice(max(0, 8 * part.start - 16), 8 * part.stop + 16) for part in (rows, cols))] = False
    assert not changed.any()


def test_damaged_symbols(tiny: Model, placed: Model) -> None:
    """Flipped bits under right checksums: both paths show the same, or both refuse."""
    settings = EncodeSettings(quality=90, refinements=3)
    with every_refinement():
        data = encode_image(photo(30, 40), model=tiny, settings=settings)
    header = container.unpack_header(data)
    rng = np.random.default_rng(6)
    shown = 0
    for _ in range(40):
        payloads = payloads_of(data)
        target = payloads[int(rng.integers(3, len(payloads)))]
        target[int(rng.integers(len(target) // 2, len(target)))] ^= 1 << int(rng.integers(8))
        broken = rebuild(header, payloads)
        pictures = []
        for model in (tiny, placed):
            try:
                pictures.append(decode_image(broken, model=model).rgb)
            except Corrupt:
                pictures.append(torch.zeros(0))
        assert torch.equal(*pictures)
        shown += pictures[0].numel() > 0
    assert shown < 40, "some damage is noticed"


def test_info(tiny: Model) -> None:
    with every_refinement():
        data = encode_image(photo(30, 40), model=tiny, settings=EncodeSettings(quality=90, refinements=2))
    info = api.read_info(data)
    assert (info.refinements, info.final_quality - info.quality) == (2, 50)
    assert list(info.level_ends) == [1, 2, 3, *range(33, 39)]
    assert list(info.level_ends.values()) == sorted(info.level_ends.values())
    assert api.read_info(data, levels=4).ranges == ((0, info.level_ends[33]),)
    assert latent_grid(30, 40) == (4, 5)
    assert all(side % SIDES.refined[-1] == 0 for side in (*SIDES.refined, *SIDES.lossy))
