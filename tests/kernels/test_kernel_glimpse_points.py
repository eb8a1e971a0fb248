"""Glimpses at any points: the fast paths are the definition, values and gradients, at and beyond the edge."""

import pytest
import torch
from test_kernel_glimpse import close, with_gradients
from torch import Tensor

from vbc.kernels.research.glimpse_points import look_at, look_at_reference

SIZES = [
    # images, channels, height and width, of the output
    (1, 1, 1, 1, 1, 1),
    (2, 3, 17, 13, 5, 6),
    (3, 2, 1, 9, 17, 33),
    (2, 1, 9, 1, 3, 100),
]


def scene(n: int, c: int, h: int, w: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images, and points of which about a third lie outside, some far away."""
    r = torch.Generator().manual_seed(h * w + height)
    points = 0.7 * torch.randn(n, height, width, 2, generator=r)
    points[0, 0, 0] = torch.tensor([1e30, -1e30])
    return torch.randn(n, c, h, w, generator=r), points


@pytest.mark.parametrize("size", SIZES)
def test_the_path_of_the_cpu_is_the_definition(size: tuple[int, ...]) -> None:
    tensors = scene(*size)
    want = with_gradients(look_at_reference, *(t.double() for t in tensors))
    close(with_gradients(look_at, *tensors), want)


@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_are_the_definition(size: tuple[int, ...], device: str) -> None:
    tensors = scene(*size)
    want = with_gradients(look_at_reference, *(t.double() for t in tensors))
    close(with_gradients(look_at, *(t.to(device) for t in tensors)), want)


def test_gradients_of_the_reference() -> None:
    images, points = (t.double().requires_grad_() for t in scene(2, 2, 5, 4, 3, 3))
    assert torch.autograd.gradcheck(look_at_reference, (images, points))


def test_corners_and_middle_by_hand(device: str) -> None:
    """The edge repeats outside; half way between all four pixels is their mean."""
    image = torch.tensor([[[[1.0, 2.0], [4.0, 9.0]]]])
    points = torch.tensor([[[[-1, -1], [1, -1], [-3, 1], [9, 9], [0, 0], [0.5, -1]]]])
    want = torch.tensor([1, 2, 4, 9, 4, 1.75])
    assert torch.equal(look_at_reference(image, points).flatten(), want)
    assert torch.allclose(look_at(image.to(device), points.to(device)).cpu().flatten(), want)


def test_wrong_arguments() -> None:
    images, points = scene(2, 1, 4, 4, 3, 3)
    for wrong in (
        lambda: look_at(images, points[:1]),
        lambda: look_at(images, points[..., :1]),
        lambda: look_at(images.half(), points),
        lambda: look_at(images, points.double()),
        lambda: look_at(images[:, :0], points),
        lambda: look_at(images, points[:, :0]),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()
