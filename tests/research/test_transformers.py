"""Spatial transformers: the identity, known warps, the inverse, what a round trip loses."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.research.parts.transformers import Affine, ThinPlate, Transformer, Turn, pixel_centres
from vbc.kernels.research.glimpse import invert

SIDE = 28
KINDS = {"affine": Affine, "turn": Turn, "thin plate": ThinPlate}


def smooth_images(n: int) -> Tensor:
    """Blurred noise in 0..1 that fades to 0 towards the edge."""
    noise = torch.rand(n, 1, SIDE + 6, SIDE + 6, generator=torch.Generator().manual_seed(1))
    x = F.avg_pool2d(F.avg_pool2d(noise, 4, 1), 4, 1)
    fade = torch.hann_window(SIDE, periodic=False)
    return (x - 0.3) * 2.5 * fade * fade.unsqueeze(1)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_is_the_identity(kind: str) -> None:
    warp: Transformer = KINDS[kind](SIDE, 20)
    x = torch.rand(3, 2, SIDE, 20)
    assert torch.allclose(warp(x, torch.zeros(3, warp.n)), x, atol=1e-5)
    u = torch.zeros(3, warp.n, requires_grad=True)
    warp(x, u).square().sum().backward()
    assert u.grad is not None
    assert (u.grad.abs().sum(0) > 0).all()


def test_affine_is_that_of_torch() -> None:
    warp, x = Affine(9, 14), torch.rand(4, 3, 9, 14)
    u = 0.3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    grid = F.affine_grid(torch.eye(2, 3) + u.view(4, 2, 3), [4, 3, 9, 14], align_corners=True)
    want = F.grid_sample(x, grid, padding_mode="border", align_corners=True)
    assert torch.allclose(warp(x, u), want, atol=1e-5)


def test_coordinates_are_clamped() -> None:
    """A shift by the whole width shows the last column everywhere."""
    x = torch.rand(1, 1, SIDE, SIDE)
    u = torch.zeros(1, 6)
    u[0, 2] = 2.0
    assert torch.allclose(Affine(SIDE, SIDE)(x, u), x[..., -1:].expand_as(x), atol=1e-6)


def test_turn_by_a_quarter_and_halved() -> None:
    x = torch.rand(1, 1, SIDE, SIDE)
    quarter = torch.tensor([[torch.pi / 2, 0, 0, 0, 0]])
    assert torch.allclose(Turn(SIDE, SIDE)(x, quarter), x.rot90(1, (2, 3)), atol=1e-4)
    both = torch.tensor([[0.3, 0.2, -0.1, 0.4, -0.5]])
    c, s = torch.tensor(0.3).cos().item(), torch.tensor(0.3).sin().item()
    sx, sy = torch.tensor(0.2).exp().item(), torch.tensor(-0.1).exp().item()
    want = torch.tensor([[[sx * c, -sx * s, sx * 0.4], [sy * s, sy * c, sy * -0.5]]])
    assert torch.allclose(Turn(SIDE, SIDE).matrices(both), want)


def test_thin_plate_passes_through_its_control_points() -> None:
    """On a grid of 3 x 3 pixels the control points are the pixels."""
    warp = ThinPlate(3, 3)
    u = torch.randn(5, 18, generator=torch.Generator().manual_seed(3))
    want = pixel_centres(3, 3).float() + u.view(5, 9, 2)
    assert torch.allclose(warp.points(u).view(5, 9, 2), want, atol=1e-5)


def test_thin_plate_has_the_affine_warps() -> None:
    """Control points moved by an affine map move every pixel by it: nothing bends."""
    u = 0.3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    affine, control = Affine(SIDE, SIDE), Affine(3, 3)
    offsets = control.points(u).view(4, 9, 2) - pixel_centres(3, 3).float()
    assert torch.allclose(ThinPlate(SIDE, SIDE).points(offsets.flatten(1)), affine.points(u), atol=1e-5)


@pytest.mark.parametrize("kind", ["affine", "turn"])
def test_inverse_of_points(kind: str) -> None:
    """Points that go back and there again come out within 1e-5 of where they were."""
    warp = KINDS[kind](SIDE, SIDE)
    matrices = warp.matrices(poses(20, warp.n))
    back = warp.points_of(invert(matrices)).view(20, -1, 2)
    again = torch.cat((back, torch.ones_like(back[..., :1])), 2) @ matrices.mT
    assert torch.allclose(again, pixel_centres(SIDE, SIDE).float().expand_as(again), atol=1e-5)


@pytest.mark.parametrize("kind", ["affine", "turn"])
def test_round_trip_of_images(kind: str) -> None:
    """There and back, for poses as digits have them: as pixels are interpolated twice, the mean error is 1 %
    of the range of values (0.95 % affine, 1.23 % for turns). The warp itself changes them by 7 %."""
    warp, x = KINDS[kind](SIDE, SIDE), smooth_images(20)
    u = poses(20, warp.n)
    moved = warp(x, u)
    span = x.max() - x.min()
    assert (warp.back(moved, u) - x).abs().mean() / span < 0.015
    assert (moved - x).abs().mean() / span > 0.06


def poses(n: int, size: int) -> Tensor:
    return 0.15 * torch.randn(n, size, generator=torch.Generator().manual_seed(5))
