"""Drawn scenes of several objects: what is said of them is what they show."""

import numpy as np
import pytest
import torch

from vbc.codec.research.parts import scenes
from vbc.codec.research.parts.scenes import Scenes


def digits(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Full squares of ink inside a frame, as digits fill at most."""
    x = torch.zeros(n, 1, 28, 28, dtype=torch.uint8)
    x[:, :, 4:24, 4:24] = 255
    return x, torch.arange(n) % 10


def drawn(name: str, n: int = 40, seed: int = 1) -> Scenes:
    if name == "digits":
        return scenes.digit_scenes(*digits(), n, seed)
    return scenes.sprite_scenes(n, seed) if name == "sprites" else scenes.solid_scenes(n, seed)


@pytest.mark.parametrize("name", ["digits", "sprites", "solids"])
def test_truth_agrees_with_itself(name: str) -> None:
    """Objects are numbered without gaps, show inside their boxes, and nothing else is said to be there."""
    found, again, other = drawn(name), drawn(name), drawn(name, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(found.images, other.images)
    n, most = found.kinds.shape
    assert found.images.shape == (n, 1 if name == "digits" else 3, 64, 64)
    assert torch.equal((found.kinds >= 0).sum(1), found.counts)
    assert int(found.counts.min()) >= 1
    for owner, boxes, count in zip(found.owner, found.boxes, found.counts.tolist(), strict=True):
        assert sorted(set(owner.flatten().tolist()) - {0}) == list(range(1, count + 1))
        assert not boxes[count:].any()
        for k, (left, top, right, bottom) in enumerate(boxes[:count].tolist()):
            rows, columns = (owner == k + 1).nonzero().T
            assert left - 1 <= columns.min() + 0.5
            assert columns.max() + 0.5 <= right + 1
            assert top - 1 <= rows.min() + 0.5
            assert rows.max() + 0.5 <= bottom + 1
    assert torch.equal(found.masks, found.owner > 0)
    assert 0.01 < float(found.masks.float().mean()) < 0.5
    assert most in (scenes.MOST_DIGITS, scenes.MOST_SPRITES, scenes.MOST_SOLIDS)


def test_digits_keep_apart_and_are_counted() -> None:
    found = drawn("digits", 200)
    assert set(found.counts.tolist()) == {1, 2, 3, 4, 5}
    side = 20 * 64 / 84
    for boxes, count in zip(found.boxes, found.counts.tolist(), strict=True):
        corner = boxes[:count, :2]
        gaps = (corner[:, None] - corner).abs().amax(2) + 99 * torch.eye(count)
        assert float(gaps.min()) >= side - 1e-3
        assert torch.allclose(boxes[:count, 2:] - corner, torch.tensor(side))
        assert float(boxes[:count].max()) <= 64
    # full squares: all ink is owned but for some of the borders, which resizing blurs
    ink = found.images[:, 0] >= scenes.INK
    assert float((found.owner[ink] > 0).float().mean()) > 0.85
    assert ink[found.masks].all()
    five = scenes.digit_scenes(*digits(), 20, 1, fewest=5)
    assert set(five.counts.tolist()) == {5}


def test_the_flat_parts_of_sprite_scenes() -> None:
    """Each object is of one colour, unlike the ground's, and at least as much of it shows as must."""
    found = drawn("sprites", 60)
    for image, owner, count in zip(found.images, found.owner, found.counts.tolist(), strict=True):
        for k in range(count + 1):
            shown = image[:, owner == k].unique(dim=1)
            assert shown.shape[1] == 1
            assert int((owner == k).sum()) >= scenes.SMALLEST_VISIBLE
        ground = image[:, owner == 0][:, 0].int()
        for k in range(1, count + 1):
            assert int((image[:, owner == k][:, 0].int() - ground).abs().max()) >= scenes.CONTRAST


def test_solids_differ_from_their_ground() -> None:
    """Ground without objects is grey and nearly flat but for shadows and noise; solids are of two sizes."""
    found = drawn("solids", 60)
    ground = found.images.float().std(1)[~found.masks]
    assert float(ground.median()) < 2 * scenes.SOLID_NOISE
    width = found.boxes[..., 2] - found.boxes[..., 0]
    widths = width[(found.kinds >= 0) & (width > 0)]
    assert 0.1 < float((widths > 13).float().mean()) < 0.9
    assert float(widths.max()) <= 22
    assert set(found.kinds.flatten().tolist()) == {-1, 0, 1}


def test_ink_on_photographs() -> None:
    grey = drawn("digits", 30)
    photographs = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
    found = scenes.on_photographs(grey, photographs, 1)
    assert found.images.shape == (30, 3, 64, 64)
    bare = (grey.images == 0).expand(-1, 3, -1, -1)
    assert (found.images[bare] == 128).all()
    assert ((found.images.int() - 128).abs().amax(1)[grey.images[:, 0] == 255] >= 70).all()


def test_frames() -> None:
    boxes = torch.tensor([[[2.0, 3.0, 6.0, 8.0], [0.0, 0.0, 0.0, 0.0]]])
    x = scenes.with_boxes(torch.zeros(1, 1, 10, 10, dtype=torch.uint8), boxes)
    rows, columns = x[0].amax(0).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 2, 5)
    assert len(rows) == 2 * (4 + 5) - 4
    assert x[0, :, 3, 2].tolist() == [255, 0, 0]


def test_scenes_in_colour() -> None:
    grey = drawn("digits", 3)
    assert torch.equal(grey.in_colour().images[:, 2], grey.images[:, 0])
    assert np.array_equal(grey.first(2).counts, grey.counts[:2])
