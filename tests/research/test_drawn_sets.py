"""Generated data: sprites from factors, toy faces with attributes."""

import math

import numpy as np
import pytest
import torch

from vbc.codec.research.parts import sprites, toy_faces
from vbc.codec.research.parts.toy_faces import BOXES, SHARES


def sprite(
    shape: int, scale: int = 5, turn: int = 0, column: int = 16, row: int = 16, side: int = 64
) -> torch.Tensor:
    return sprites.render(np.array([[shape, scale, turn, column, row]]), side)[0, 0]


def test_how_many_sprites_there_are() -> None:
    assert math.prod(sprites.SIZES) == 737_280
    factors = sprites.random_factors(4000, np.random.default_rng(0))
    for f, size in zip(factors.T, sprites.SIZES, strict=True):
        assert sorted(set(f.tolist())) == list(range(size))


@pytest.mark.parametrize("side", [32, 64])
def test_sprites_are_inside_and_binary(side: int) -> None:
    factors = sprites.random_factors(600, np.random.default_rng(1))
    factors[:, 1] = 5
    factors[:, 3:] = np.random.default_rng(2).choice([0, 31], (600, 2))
    x = sprites.render(factors, side)
    assert (x.shape, x.dtype) == ((600, 1, side, side), torch.uint8)
    assert set(x.flatten().tolist()) == {0, 1}
    for border in (x[..., 0], x[..., -1], x[..., 0, :], x[..., -1, :]):
        assert not border.any()


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_scales_and_positions_of_sprites(shape: int) -> None:
    areas = [int(sprite(shape, scale).sum()) for scale in range(6)]
    assert areas == sorted(areas)
    assert areas[5] / areas[0] == pytest.approx(4, rel=0.1)
    ys, xs = sprite(shape, column=31, row=0).nonzero().float().T
    assert xs.mean() == pytest.approx(48, abs=1.5)
    assert ys.mean() == pytest.approx(16, abs=1.5)


def test_symmetries_of_sprites() -> None:
    quarter, half, eighth = 10, 20, 5
    square, ellipse, heart = 0, 1, 2
    assert not (sprite(square) ^ sprite(square, turn=quarter)).any()
    assert (sprite(square) ^ sprite(square, turn=eighth)).any()
    assert not (sprite(ellipse) ^ sprite(ellipse, turn=half)).any()
    assert (sprite(ellipse) ^ sprite(ellipse, turn=quarter)).any()
    assert (sprite(heart) ^ sprite(heart, turn=half)).any()
    turned = [sprite(heart, turn=n).sum().item() for n in range(40)]
    assert max(turned) - min(turned) < 0.1 * max(turned)


@pytest.mark.parametrize("factors", [[3, 0, 0, 0, 0], [0, 0, 40, 0, 0], [0, 0, 0, -1, 0], [0, 0, 0, 0]])
def test_factors_that_there_are_not(factors: list[int]) -> None:
    with pytest.raises(ValueError, match="factors"):
        sprites.render(np.array([factors]))


def test_faces_are_a_function_of_the_seed() -> None:
    one, again, other = (toy_faces.toy_faces(60, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.images, other.images)
    assert (one.images.shape, one.images.dtype) == ((60, 3, 64, 64), torch.uint8)
    assert (one.attributes.shape, one.attributes.dtype) == ((60, 12), torch.bool)
    assert one.eyes.shape == (60, 2, 2)


def test_attributes_have_their_shares() -> None:
    faces = toy_faces.toy_faces(500, 3)
    for share, found in zip(SHARES.values(), faces.attributes.double().mean(0).tolist(), strict=True):
        assert found == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 500))
    together = np.corrcoef(faces.attributes.numpy().T)
    assert np.abs(together - np.eye(12)).max() < 0.2


def test_attributes_show_in_their_boxes() -> None:
    """Faces that differ in one attribute alone differ inside its box."""
    plain = np.zeros((40, 12), bool)
    for n, name in enumerate(SHARES):
        with_it = plain.copy()
        with_it[:, n] = True
        pictures = [
            toy_faces._paint(toy_faces._draw(flags, np.random.default_rng(7))) for flags in (plain, with_it)
        ]
        change = np.abs(pictures[1] - pictures[0]).sum((0, 1))
        left, top, right, bottom = BOXES.get(name, (0, 0, 64, 64))
        inside = change[top:bottom, left:right].sum()
        assert inside > 0.97 * change.sum() > 0, name
    assert set(SHARES) - set(BOXES) == {"pale"}


def test_eyes_are_where_they_are_said_to_be() -> None:
    faces = toy_faces.toy_faces(200, 5)
    plain = ~faces.attributes[:, [0, 7, 11]].any(1)  # no glasses, hat, shut eyes
    images, eyes = faces.images[plain].float(), faces.eyes[plain]
    x, y = (eyes[..., k].round().long().sub(1) for k in (0, 1))
    white = []
    for offset in (-3, 3):
        both = [images[torch.arange(len(x)), :, y[:, side], x[:, side] + offset].mean(1) for side in (0, 1)]
        white.append(torch.stack(both).mean())
    assert min(white) > 170
