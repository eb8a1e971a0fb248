"""The lossy levels in integers: groups, both directions, and pictures from them."""

from typing import Any

import numpy as np
import pytest
import torch
from lossy_tools import (
    NO_TABLE,
    SIDES,
    Recorder,
    Replay,
    Zeros,
    batches,
    code_picture,
    cut,
    many_qualities,
    one_quality,
    windows,
)
from pictures import photo
from torch import Tensor

from vbc.codec.lossy import analysis, coding, synthesis
from vbc.codec.lossy.features import INTEGERS, quality_planes
from vbc.codec.lossy.latents import LEVEL_LATENTS, LEVEL_START, latent_grid, level_latents
from vbc.codec.lossy.model import LossyModel
from vbc.codec.model import Model, load_model
from vbc.kernels.conv import IntConv

QUALITY = 70
SIZES = ((1, 1), (1, 9), (70, 1), (65, 3), (64, 64), (5, 130), (129, 70))
"""In blocks."""


@pytest.fixture(scope="module")
def model(tiny: Model) -> LossyModel:
    return tiny.lossy


@pytest.fixture(scope="module")
def shipped() -> LossyModel:
    return load_model().lossy


def picture(size: tuple[int, int]) -> Tensor:
    """uint8 RGB [1, 3, H, W] of about so many blocks, its last ones not whole."""
    h, w = (8 * n - 3 for n in size)
    return photo(max(h, 1), max(w, 1))[None].contiguous(memory_format=torch.channels_last)


def random_latents(size: tuple[int, int], seed: int = 1) -> Tensor:
    """int16 [1, 192, h, w], large for low frequencies."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.cat([torch.full((n,), s) for n, s in zip(LEVEL_LATENTS, (3000, 600, 60), strict=True)])
    values = torch.randn((1, 192, *size), generator=rng) * scale.view(1, -1, 1, 1)
    return values.round().clamp(-32768, 32767).to(torch.int16)


# Coding


@pytest.mark.parametrize("size", SIZES)
def test_decoder_follows_encoder(shipped: LossyModel, size: tuple[int, int]) -> None:
    quality = many_qualities(size, 50, 90)
    latents, recorders = code_picture(shipped, picture(size), quality)
    for level in (1, 2, 3):
        channels = level_latents(level)
        below = latents[:, : channels.start] if level > 1 else None
        for group, recorder in zip(batches(size, SIDES[level - 1]), recorders[level - 1], strict=True):
            replay = Replay(recorder.steps)
            decoded = coding.code_groups(shipped, replay, level, below, group, quality)
            replay.finish()
            assert decoded.dtype == torch.int16
            assert decoded.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(decoded, cut(latents[:, channels], group))
    n_coded = sum(int((index < NO_TABLE).sum()) for r in recorders for c in r for index, _ in c.steps)
    assert 0 < n_coded
    assert n_coded < latents.numel() / 2 or size[0] * size[1] < 50, "in larger pictures most are skipped"
    assert any(symbols.any() for c in recorders[0] for _, symbols in c.steps)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_step_is_what_the_format_says(shipped: LossyModel, level: int) -> None:
    """Tables, order, and latents within half a quantiser step of what was wanted, from small to extreme."""
    rng = np.random.default_rng(level)
    c, n = LEVEL_LATENTS[level - 1], 41
    mean, target = (rng.integers(-32768, 32768, (2, n, c)) >> rng.integers(0, 12, (2, n, c)) for _ in "mt")
    target = 2 * target.clip(-16384, 16383)
    log_scale = rng.integers(-100, 200, (2, n, c))
    recorder = Recorder()
    ints = (torch.from_numpy(x.astype(np.int32)) for x in (mean, log_scale))
    wanted = torch.from_numpy(target.astype(np.int16))
    quality = torch.from_numpy(rng.integers(0, 101, (2, n), np.int32))
    symbols, z = coding.code_latents(shipped, recorder, level, *ints, quality, wanted, optimise=False)
    ((index, recorded),) = recorder.steps

    step, log2_step = steps_at(shipped, level, quality)
    scale = ((log_scale - log2_step + 64 + 2) >> 2).clip(0, 47)
    table = np.where(scale < 1, NO_TABLE, shipped.first_table + 48 * (level - 1) + scale)
    np.testing.assert_array_equal(index.numpy(), table.transpose(0, 2, 1).reshape(2, -1))
    k = recorded.numpy().astype(int).reshape(2, c, n).transpose(0, 2, 1)
    np.testing.assert_array_equal(symbols.numpy(), k)
    np.testing.assert_array_equal(z.numpy(), (mean + ((k * step + 16) >> 5)).clip(-32768, 32767))
    excess = np.abs(z.numpy() / 8 - target / 16) - step / 256 / 2
    assert excess[(scale >= 3) & (np.abs(k) < 2047)].max() <= 1 / 8
    assert np.abs(k).max() > 127, "beyond the tables"


def steps_at(model: LossyModel, level: int, quality: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Quantiser steps and their logarithms, of the level's latents at qualities [...]: int64 [..., C]."""
    where = (quality.numpy(), level_latents(level))
    step, log2_step = (t.numpy().astype(int)[where] for t in (model.step, model.log2_step))
    return step, log2_step


@pytest.mark.parametrize("level", [2, 3])
def test_odd_parity_follows_the_symbols_of_even_parity(shipped: LossyModel, level: int) -> None:
    """Step by step as in the format, with numpy, but for the networks."""
    h, w, c, channels = 6, 7, LEVEL_LATENTS[level - 1], level_latents(level)
    below, target = random_latents((h, w))[:, : channels.start], random_latents((h, w), seed=2)[:, channels]
    group = windows((h, w), 64)
    recorder = Recorder()
    quality = many_qualities((h, w))
    coded = coding.code_groups(shipped, recorder, level, below, group, quality, target)
    (_, first), (index, second) = recorder.steps
    even = ((np.arange(h)[:, None] + np.arange(w)) % 2 == 0).ravel()

    parameters = coding.prior_parameters(shipped, level, below, group, quality)[0].numpy()
    step, log2_step = steps_at(shipped, level, quality[0, 0])
    k = np.zeros((h * w, c), int)
    k[even] = first.numpy().reshape(c, -1).T
    assert k.any()
    relative = (parameters[..., c:] - log2_step + 2) >> 2
    q = quality_planes(INTEGERS, quality)[0].permute(1, 2, 0).numpy()
    planes = np.concatenate((8 * k.reshape(h, w, c), relative, q), 2).clip(-64, 63)
    net = shipped.neighbours[level]
    padded = np.pad(planes, ((net.radius,) * 2, (net.radius,) * 2, (0, 0)), mode="edge")
    change = net(torch.from_numpy(padded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    mean = 2 * parameters[..., :c] + ((change[..., :c] * step + 256) >> 9)
    scale = ((parameters[..., c:] + change[..., c:] - log2_step + 66) >> 2).clip(0, 47)
    table = np.where(scale < 1, NO_TABLE, shipped.first_table + 48 * (level - 1) + scale)
    np.testing.assert_array_equal(index[0].numpy(), table.reshape(-1, c)[~even].T.ravel())
    k[~even] = second.numpy().reshape(c, -1).T
    latents = (mean.reshape(-1, c) + ((k * step.reshape(-1, c) + 16) >> 5)).clip(-32768, 32767)
    np.testing.assert_array_equal(coded[0].permute(1, 2, 0).reshape(-1, c)[~even].numpy(), latents[~even])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_group_is_the_same_in_every_batch(model: LossyModel, level: int) -> None:
    size = (19, 45)
    latents, target = random_latents(size), 2 * random_latents(size, seed=2)[:, level_latents(level)]
    below = latents[:, : LEVEL_START[level - 1]] if level > 1 else None
    quality = many_qualities(size)
    group = [(slice(r, r + 9), slice(c, c + 14)) for r in (0, 10) for c in (0, 14, 31)]
    together = Recorder()
    coded = coding.code_groups(model, together, level, below, group, quality, cut(target, group))
    for i, window in enumerate(group):
        alone = Recorder()
        one = coding.code_groups(model, alone, level, below, [window], quality, cut(target, [window]))
        assert torch.equal(one[0], coded[i])
        for (index, symbols), (index_i, symbols_i) in zip(alone.steps, together.group(i), strict=True):
            assert torch.equal(index, index_i)
            assert torch.equal(symbols, symbols_i)
    assert len({tuple(z.flatten().tolist()) for z in coded}) == len(group), "groups differ"


@pytest.mark.parametrize("level", [2, 3])
def test_a_prior_sees_across_borders_as_far_as_its_radius(model: LossyModel, level: int) -> None:
    size, channels = (24, 24), LEVEL_START[level - 1]
    below = random_latents(size)[:, :channels]
    group = [(slice(8, 16), slice(8, 16))]
    quality = one_quality(size, QUALITY)
    plain = coding.prior_means(model, level, below, group, quality)
    reach = model.priors[level].radius + 1
    assert reach <= 8, "needs lie within 8 blocks"
    for distance in range(1, 8):
        changed = below.clone()
        changed[..., 8 - distance, :] += 1000
        moved = coding.prior_means(model, level, changed, group, quality)
        assert torch.equal(moved, plain) == (distance > reach)
        other = quality.clone()
        other[..., 8 - distance, :] = 100
        moved = coding.prior_means(model, level, below, group, other)
        assert torch.equal(moved, plain) == (distance > reach - 1), "qualities are seen as far as the radius"


@pytest.mark.parametrize("level", [2, 3])
def test_zero_symbols_give_the_prior_means_at_even_parity(model: LossyModel, level: int) -> None:
    size = (7, 11)
    below = random_latents(size)[:, : LEVEL_START[level - 1]]
    group = windows(size, 64)
    quality = many_qualities(size)
    means = coding.prior_means(model, level, below, group, quality)
    coded = coding.code_groups(model, Zeros(), level, below, group, quality)
    even = (torch.arange(7)[:, None] + torch.arange(11)) % 2 == 0
    assert torch.equal(coded[..., even], means[..., even])
    assert means.any()


def test_memory_formats_make_no_difference(model: LossyModel) -> None:
    latents = random_latents((6, 13))
    group = windows((6, 13), 64)
    quality = many_qualities((6, 13))
    for level in (2, 3):
        rows_last = latents[:, : LEVEL_START[level - 1]].contiguous()
        channels_last = rows_last.contiguous(memory_format=torch.channels_last)
        a, b = (coding.prior_means(model, level, z, group, quality) for z in (rows_last, channels_last))
        assert torch.equal(a, b)
    levels = np.array([[3]])
    a, b = (
        synthesis.synthesise(model, latents.contiguous(memory_format=layout), (48, 100), levels, quality)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert torch.equal(a, b)


def test_groups_of_several_shapes_are_refused(model: LossyModel) -> None:
    group = [(slice(0, 4), slice(0, 4)), (slice(4, 6), slice(0, 4))]
    quality = one_quality((6, 4), 50)
    with pytest.raises(ValueError, match="one size"):
        coding.code_groups(model, Zeros(), 1, None, group, quality)
    with pytest.raises(ValueError, match="one size"):
        coding.code_groups(model, Zeros(), 1, None, [], quality)
    with pytest.raises(ValueError, match="one size"):
        coding.code_maps(model, Zeros(), group, 50, torch.ones(2, dtype=torch.bool))


# The encoder's choices


def test_rounding_for_rate_and_distortion(model: LossyModel) -> None:
    """Symbols stay or move one towards zero, where that makes bits and squared error together smaller."""
    rng = torch.Generator().manual_seed(5)
    exact = 3 * torch.randn((1, 500, 144), generator=rng)
    symbols = exact.round()
    table = model.first_table + 96 + torch.randint(3, 48, symbols.shape, generator=rng).int()
    arguments = (exact.clone(), symbols.clone(), table.clone())
    quality = torch.full((1, 500), QUALITY, dtype=torch.int32)
    chosen = analysis.rdo_round(model, 3, quality, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, (exact, symbols, table), strict=True))
    moved = chosen != symbols
    assert 0.005 < moved.float().mean() < 0.5
    assert torch.equal(chosen[moved], (symbols - symbols.sign())[moved])
    cost = lambda s: model.cost[(table - model.first_table).long(), analysis.letter(s)]  # noqa: E731
    assert (cost(chosen) < cost(symbols))[moved].all(), "for bits alone"
    coarse = analysis.rdo_round(model, 3, 0 * quality + 100, *arguments) != symbols
    assert (coarse == moved).float().mean() > 0.9, "lambda follows the step"


def test_analysis_in_bands(shipped: LossyModel) -> None:
    x = photo(100, 60)[None]
    quality = many_qualities((13, 8))
    a, b = (analysis.analyse(shipped, x, quality, band_blocks=n) for n in (16384, 20))
    assert a.shape == (1, 192, 13, 8)
    assert (a.int() - b.int()).abs().max() <= 1, "float, so a sixteenth may round either way"


# Pictures


def test_synthesis_does_not_depend_on_tiles(shipped: LossyModel) -> None:
    size = (21, 18)
    latents = random_latents(size)
    quality = many_qualities(size)
    (whole,) = synthesis.synthesise_windows(shipped, latents, [(slice(0, 21), slice(0, 18))], 2, quality)
    for side in (1, 3, 4, 5, 20):
        for group in batches(size, side):
            rgb = synthesis.synthesise_windows(shipped, latents, group, 2, quality)
            for part, (rows, cols) in zip(rgb, group, strict=True):
                at = whole[:, 8 * rows.start : 8 * rows.stop, 8 * cols.start : 8 * cols.stop]
                assert torch.equal(part, at)


def test_a_quality_is_seen_near_its_blocks(model: LossyModel) -> None:
    """In the picture: on its own blocks, and five cells of two pixels around them."""
    size = (96, 128)
    latents, levels = random_latents((12, 16)), np.array([[3]])
    plain = synthesis.synthesise(model, latents, size, levels, one_quality((12, 16), QUALITY))
    quality = one_quality((12, 16), QUALITY)
    quality[..., 4:6, 8:10] = 5
    moved = (synthesis.synthesise(model, latents, size, levels, quality) != plain).any(1)[0]
    rows, cols = (moved.any(dim).nonzero()[:, 0] for dim in (1, 0))
    assert moved[32:48, 64:80].float().mean() > 0.1
    assert 32 - 10 <= rows.min() < rows.max() < 48 + 10
    assert 64 - 10 <= cols.min() < cols.max() < 80 + 10


def test_squares_of_several_levels(model: LossyModel) -> None:
    """Each square is that of a picture all of whose squares have its level; 0 counts as 1."""
    size = (8 * 130 - 5, 8 * 66 - 1)
    latents = random_latents(latent_grid(*size))
    levels = np.array([[3, 1], [0, 2], [2, 3]])
    quality = many_qualities(latent_grid(*size))
    mixed = synthesis.synthesise(model, latents, size, levels, quality)
    assert mixed.shape == (1, 3, *size)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    for level in range(4):
        uniform = synthesis.synthesise(model, latents, size, np.full((3, 2), max(level, 1)), quality)
        for row, col in np.argwhere(levels == level):
            at = (..., slice(512 * row, 512 * row + 512), slice(512 * col, 512 * col + 512))
            assert torch.equal(mixed[at], uniform[at])


def test_only_the_squares_asked_for_are_written(model: LossyModel) -> None:
    size = (8 * 65, 8 * 66 - 1)
    latents, levels = random_latents(latent_grid(*size)), np.full((2, 2), 3)
    quality = many_qualities(latent_grid(*size))
    whole = synthesis.synthesise(model, latents, size, levels, quality)
    out = torch.full_like(whole, 77)
    same = synthesis.synthesise(model, latents, size, levels, quality, squares=[(0, 1), (1, 0)], out=out)
    assert same is out
    for row, col in np.ndindex(2, 2):
        at = (..., slice(512 * row, 512 * row + 512), slice(512 * col, 512 * col + 512))
        assert torch.equal(out[at], whole[at] if row != col else torch.full_like(whole[at], 77))


@pytest.mark.parametrize("level", [1, 2])
def test_a_native_picture_is_a_small_picture(shipped: LossyModel, level: int) -> None:
    """It comes near the mean of the pixels that a pixel of it stands for."""
    x = picture((9, 12))
    latents, _ = code_picture(shipped, x, one_quality((9, 12), 90))
    side = 8 // (2 * level)
    small = synthesis.native_picture(shipped, latents, (x.shape[-2], x.shape[-1]), level)
    assert small.shape[-2:] == (-(-x.shape[-2] // side), -(-x.shape[-1] // side))
    h, w = (n // side for n in x.shape[-2:])
    means = torch.nn.functional.avg_pool2d(x.float(), side)
    assert (small[..., :h, :w] - means).abs().mean() < 6


# Devices


def test_decoding_never_needs_a_value(model: LossyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that have none everything runs and has the right shape."""

    def convolve(layer: IntConv, x: Tensor, *rest: object, **options: Any) -> Tensor:
        assert x.device.type == layer.weight.device.type == "meta"
        side = layer.weight.shape[-1] - 1
        shape = (x.shape[0], layer.weight.shape[0], x.shape[2] - side, x.shape[3] - side)
        return torch.empty(
            shape,
            dtype=torch.int32 if layer.head else torch.uint8,
            device="meta",
            memory_format=torch.channels_last,
        )

    monkeypatch.setattr(IntConv, "__call__", convolve)
    meta = model.to(torch.device("meta"))
    size = (67, 5)
    latents = torch.zeros((1, 192, *size), dtype=torch.int16, device="meta")
    quality = one_quality(size, 50).to("meta")
    for level in (1, 2, 3):
        below = latents[:, : LEVEL_START[level - 1]] if level > 1 else None
        for group in batches(size, 64):
            coded = coding.code_groups(meta, Zeros(), level, below, group, quality)
            assert coded.device.type == "meta"
            assert coded.shape == cut(latents[:, level_latents(level)], group).shape
            if level == 1:
                with_map = torch.ones(len(group), dtype=torch.bool, device="meta")
                assert coding.code_maps(meta, Zeros(), group, 50, with_map).shape == coded[:, :1].shape
            if below is not None:
                assert coding.prior_means(meta, level, below, group, quality).shape == coded.shape
    levels = np.array([[3], [1]])
    assert synthesis.synthesise(meta, latents, (530, 40), levels, quality).device.type == "meta"
    assert synthesis.native_picture(meta, latents, (530, 40), 1).shape == (1, 3, 133, 10)
