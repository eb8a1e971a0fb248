"""Maps adjusted to what the eye sees of errors: where errors are found, and what that does to qualities."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pictures import constant, noise, photo, smooth
from test_choose_quality import for_the_eye
from torch import Tensor

import vbc.codec.flow.adjust_map as module
import vbc.codec.flow.choose_quality as choosing
import vbc.codec.lossy.square_errors as squares_module
from vbc.codec.flow.adjust_map import adjusted, latents_in_use, moves
from vbc.codec.flow.choose_quality import choose_quality
from vbc.codec.flow.encode_levels import encode_lossy
from vbc.codec.lossy.eye_distance import HAND_SCALE, SCALES, WINDOW_REACH, eye_terms, weights
from vbc.codec.lossy.map_coding import MAP_UNIT, SQUARE, VALUE_LIMIT
from vbc.codec.lossy.quality_map import QualityMap, as_values, change_for_the_eye
from vbc.codec.lossy.square_errors import HALO, square_errors
from vbc.codec.model import Model, load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.settings import EncodeSettings, Tune

SIZES = ((1, 1), (7, 300), (16, 16), (33, 65), (130, 17))


def with_noise_in(x: Tensor, row: int, col: int, amount: int = 24) -> Tensor:
    """A picture [3, H, W] with noise in one square."""
    out = x.clone()
    part = out[:, row * SQUARE : (row + 1) * SQUARE, col * SQUARE : (col + 1) * SQUARE]
    errors = noise(*part.shape[1:]).int() % (2 * amount + 1) - amount
    part.copy_((part.int() + errors).clamp(0, 255))
    return out


# Errors


@pytest.mark.parametrize("make", [photo, noise, constant])
@pytest.mark.parametrize("size", SIZES)
def test_equal_pictures_have_no_errors(size: tuple[int, int], make: Callable[[int, int], Tensor]) -> None:
    x = make(*size)[None]
    errors = square_errors(x, x)
    assert errors.shape == (1, 1, -(-size[0] // SQUARE), -(-size[1] // SQUARE))
    assert errors.dtype == torch.float32
    assert (errors.abs() < 1e-4).all()


def test_errors_are_found_where_they_are() -> None:
    x = smooth(112, 144)
    errors = square_errors(x[None], with_noise_in(x, 2, 6)[None])[0, 0]
    assert errors.argmax() == 2 * errors.shape[1] + 6
    beside = torch.nn.functional.pad(errors, (1, 1, 1, 1))[2:5, 6:9].sum()
    assert beside > 0.95 * errors.sum()
    assert errors[2, 6] > 0.5 * errors.sum()


def test_their_mean_is_about_the_distance_by_hand() -> None:
    """But for windows across the borders, which the distance leaves out."""
    x = photo(256, 320)[None]
    coarse = x // 16 * 16 + 8
    by_hand = HAND_SCALE * (eye_terms(x, coarse) * weights()[1]).sum().item()
    assert square_errors(x, coarse).mean().item() == pytest.approx(by_hand, rel=0.1)


@pytest.mark.parametrize("size", [(40, 200), (129, 81)])
def test_tiles_do_not_show(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = photo(*size)[None]
    coarse = x // 16 * 16 + 8
    whole = square_errors(x, coarse)
    monkeypatch.setattr(squares_module, "TILE", 2 * SQUARE)
    assert torch.allclose(square_errors(x, coarse), whole, rtol=1e-3)
    assert HALO >= WINDOW_REACH << SCALES - 1


# Latents in use


def test_latents_in_use(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """None are in zeros, half of those as large as their step; 192 in each of a square's four blocks."""
    quality = QualityMap(60, torch.tensor([[[[0, 5, -5]]]], dtype=torch.int16))
    latents = torch.zeros(1, 192, 2, 5, dtype=torch.int16)
    assert not latents_in_use(tiny.lossy, latents, quality).any()
    step = tiny.lossy.step[quality.on_blocks(2, 5, latents.device)[0, 0]].permute(2, 0, 1)[None]
    large = (1000 * step / 32).round().clamp_(max=32767).to(torch.int16)
    monkeypatch.setattr(module, "BAND_BLOCKS", 5)
    counts = latents_in_use(tiny.lossy, large, quality)
    assert counts.shape == (1, 1, 1, 3)
    assert (counts <= 768).all()
    assert (counts > 700).all()
    halved = latents_in_use(tiny.lossy, (step / 32).round().to(torch.int16), quality)
    assert (halved > 0.4 * 768).all()
    assert (halved < 0.6 * 768).all()


# Moves


def test_moves_are_towards_equal_errors() -> None:
    errors = torch.full((1, 1, 8, 8), 1.0)
    errors[..., 3, 4], errors[..., 5, 5] = 6.0, 0.1
    move = moves(errors, torch.full_like(errors, 50.0))
    assert move.argmax() == 3 * 8 + 4
    assert move.argmin() == 5 * 8 + 5
    assert move.mean().item() == pytest.approx(0, abs=1e-5)
    assert move[..., 0, 0].abs() < 1


def test_what_nobody_sees_moves_nothing() -> None:
    errors = 0.01 * torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    assert moves(errors, torch.full_like(errors, 10.0)).abs().max() < MAP_UNIT / 2


def test_what_costs_more_gets_less() -> None:
    in_use = torch.full((1, 1, 4, 4), 50.0)
    in_use[..., 1, 2] = 400.0
    move = moves(torch.ones(1, 1, 4, 4), in_use)
    assert move.argmin() == 1 * 4 + 2


@pytest.mark.parametrize("error", [0.0, 1e-30, 1e30])
def test_moves_are_limited(error: float) -> None:
    errors = torch.ones(1, 1, 5, 5)
    errors[..., 0, 0] = error
    move = moves(errors, torch.full_like(errors, 10.0))
    assert move.isfinite().all()
    assert move.abs().max() <= 2 * module.MAX_MOVE
    assert not moves(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)).any()


# The encoder


def test_a_square_with_a_large_error_gets_finer(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    x = smooth(96, 128)[None]
    change = change_for_the_eye(x)
    quality = QualityMap(60, as_values(change))
    before = adjusted(tiny, x, quality, change)
    picture_of = module.lossy_picture

    def damaged(*args: object) -> Tensor:
        return with_noise_in(picture_of(*args)[0], 2, 3, 60)[None]

    monkeypatch.setattr(module, "lossy_picture", damaged)
    after = adjusted(tiny, x, quality, change)
    assert after[..., 2, 3] > before[..., 2, 3] + 1.5
    assert (after - before).argmax() == 2 * 8 + 3
    assert after.mean().item() == pytest.approx(change.mean().item(), abs=1e-3)


def test_it_is_deterministic(tiny: Model) -> None:
    x, model = photo(130, 90), for_the_eye(tiny)
    files = {encode_image(x, model=model, settings=EncodeSettings(effort=2)) for _ in range(2)}
    assert len(files) == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [photo, noise, constant])
def test_every_picture_is_coded(
    size: tuple[int, int], make: Callable[[int, int], Tensor], tiny: Model
) -> None:
    model, picture = for_the_eye(tiny), make(*size)
    quality = choose_quality(model, picture[None], EncodeSettings(effort=2))
    assert quality.values is None or quality.values.abs().max() <= VALUE_LIMIT
    data = encode_image(picture, model=model, settings=EncodeSettings(effort=2))
    assert decode_image(data, model=model).rgb.shape == picture.shape
    exact = encode_image(picture, model=model, settings=EncodeSettings(effort=2, lossless=True))
    assert torch.equal(decode_image(exact, model=model).rgb, picture)


def test_a_constant_picture_keeps_one_quality() -> None:
    x, model = constant(64, 80, 128), load_model()
    efforts = [choose_quality(model, x[None], EncodeSettings(effort=effort)) for effort in (1, 2)]
    assert efforts[0] == efforts[1]
    assert efforts[0].values is None


@pytest.mark.parametrize(("effort", "tune"), [(0, "eye"), (1, "eye"), (2, "psnr"), (2, "eye")])
def test_only_effort_2_for_the_eye_adjusts(
    effort: int, tune: Tune, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(choosing, "adjusted", lambda *args: (seen.append(args), args[3])[1])
    choose_quality(for_the_eye(tiny), photo(64, 64)[None], EncodeSettings(effort=effort, tune=tune))
    assert len(seen) == ((effort, tune) == (2, "eye"))


def test_moving_nothing_gives_the_file_of_effort_1(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "adjusted", lambda model, picture, quality, change: change)
    x, model = photo(100, 75), for_the_eye(tiny)
    files = {encode_image(x, model=model, settings=EncodeSettings(effort=effort)) for effort in (0, 1, 2)}
    assert len(files) == 1


def test_errors_become_more_even() -> None:
    """With the weights that are shipped, on a picture that is half photograph, half texture."""
    model = load_model()
    x = torch.cat((photo(128, 96), smooth(128, 96, 2)), 2)[None]
    change = change_for_the_eye(x)

    def spread(change: Tensor) -> float:
        quality = QualityMap(60, as_values(change))
        _, latents = encode_lossy(x, model, 3, quality)
        decoded = module.lossy_picture(model, latents, (128, 192), quality)
        return moves(square_errors(x, decoded), latents_in_use(model.lossy, latents, quality)).std().item()

    once = adjusted(model, x, replace(QualityMap(60), values=as_values(change)), change)
    assert spread(once) < spread(change)
