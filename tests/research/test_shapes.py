"""Drawn shapes: pictures in parts that fit together exactly."""

from dataclasses import replace

import pytest
import torch

from vbc.codec.research.parts.shapes import COLOURS, SHAPES, Drawing, draw, recomposed

MOVING = Drawing(reach=0.6, radius=(0.25, 0.4), most=2)


@pytest.mark.parametrize("drawing", [Drawing(), MOVING, replace(MOVING, side=64, most=3)])
def test_parts_make_the_picture(drawing: Drawing) -> None:
    scenes = draw(drawing, 60, 1)
    inside = scenes.masks.bool().expand_as(scenes.images)
    assert (scenes.images.shape, scenes.images.dtype) == ((60, 3, drawing.side, drawing.side), torch.uint8)
    assert torch.equal(scenes.images, recomposed(scenes.foregrounds, scenes.masks, scenes.backgrounds))
    assert torch.equal(scenes.foregrounds, scenes.images * scenes.masks)
    assert torch.equal(scenes.images[~inside], scenes.backgrounds[~inside])
    assert scenes.masks.flatten(1).sum(1).min() > 0
    assert int(scenes.masks.max()) == 1


def test_a_function_of_the_seed() -> None:
    one, again, other = (draw(MOVING, 20, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.images, other.images)


def test_no_object_has_the_colour_of_its_ground() -> None:
    scenes = draw(replace(MOVING, colours=("red", "green")), 400, 3)
    assert not (scenes.colour == scenes.ground).any()
    assert set(scenes.shape.tolist()) == set(range(len(SHAPES)))
    names = list(COLOURS)
    assert {names[n] for n in scenes.colour.tolist()} == {"red", "green"}
    apart = (scenes.images.int() - scenes.backgrounds.int()).abs().sum(1)[scenes.masks[:, 0].bool()]
    assert apart.min() > 20


def test_labels_say_what_is_there() -> None:
    scenes = draw(replace(Drawing(), colours=("blue",), shapes=("circle",)), 30, 4)
    middle = scenes.images[:, :, 16, 16].float()
    wanted = torch.tensor(COLOURS["blue"]).float()
    assert (middle - wanted).abs().max() <= 12
    area = scenes.masks.float().mean((1, 2, 3))
    assert 0.09 < area.min() < area.max() < 0.2  # circles of 0.8 of the radius


def test_black_is_black_and_photographs_are_grounds() -> None:
    photographs = torch.randint(1, 256, (5, 3, 32, 32), dtype=torch.uint8)
    scenes = draw(replace(Drawing(), colours=("black",)), 40, 5, photographs)
    assert not scenes.foregrounds.any()
    assert (scenes.ground == -1).all()
    assert all(any(torch.equal(ground, p) for p in photographs) for ground in scenes.backgrounds)


def test_places_reach_as_far_as_they_should() -> None:
    def centres(drawing: Drawing) -> torch.Tensor:
        masks = draw(drawing, 200, 6).masks[:, 0].float()
        at = (torch.arange(32) + 0.5) / 16 - 1
        weight = masks.sum((1, 2))
        return torch.stack(((masks.sum(1) * at).sum(1) / weight, (masks.sum(2) * at).sum(1) / weight), 1)

    assert centres(Drawing()).abs().max() < 0.06
    moving = centres(replace(MOVING, most=1))
    assert 0.5 < moving.abs().max() < 0.66
