"""Spatial transformers: images moved by a few numbers, u, where u = 0 leaves them as they are.

Thesis on spatial transformers in VAEs. An inverse warp: output pixel g takes the input's value at T_u(g),
bilinear, coordinates clamped to the image (`vbc.kernels.research.glimpse_points`). Pixel centres are in
[-1, 1]^2, those of the corner pixels at its corners. The glimpses of `vbc.kernels.research.glimpse` are
affine and read zero outside, so a thin plate's warp cannot be made of them; the affine warp takes its inverse
there.
"""

import torch
from torch import Tensor, nn

from vbc.kernels.research.glimpse import invert
from vbc.kernels.research.glimpse_points import look_at

CONTROL_SIDE = 3
"""Control points of a thin plate: 3 x 3, regular on [-1, 1]^2."""


class Transformer(nn.Module):
    """Moves images [N, C, height, width] by u, float [N, n]. n: degrees of freedom."""

    n: int

    def points(self, u: Tensor) -> Tensor:
        """T_u of every pixel's centre, x and y: float [N, height, width, 2]."""
        raise NotImplementedError

    def forward(self, images: Tensor, u: Tensor) -> Tensor:
        """Output pixel g is the input at T_u(g): float [N, C, height, width]."""
        return look_at(images, self.points(u))


class Affine(Transformer):
    """T_u(g) = (I + u) [g; 1], u the rows of a 2 x 3 matrix: six degrees of freedom."""

    n = 6
    grid: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width
        ones = torch.ones(height * width, 1, dtype=torch.float64)
        at = torch.cat((pixel_centres(height, width), ones), 1).float()
        self.register_buffer("grid", at, persistent=False)  # [pixels, 3]

    def matrices(self, u: Tensor) -> Tensor:
        """The matrix of each T_u: [N, 2, 3]."""
        return torch.eye(2, 3, device=u.device, dtype=u.dtype) + u.view(-1, 2, 3)

    def points(self, u: Tensor) -> Tensor:
        return self.points_of(self.matrices(u))

    def points_of(self, matrices: Tensor) -> Tensor:
        """As `points`, of matrices [N, 2, 3]."""
        moved = matrices.reshape(-1, 3) @ self.grid.to(matrices).T
        return _by_pixel(moved.view(len(matrices), 2, -1), self.size)

    def back(self, images: Tensor, u: Tensor) -> Tensor:
        """The warp by the inverse of T_u, which exists: what u has moved goes back, blurred twice."""
        return look_at(images, self.points_of(invert(self.matrices(u))))


class Turn(Affine):
    """An affine warp of five degrees of freedom: angle psi, log Sx, log Sy, Tx, Ty (thesis, section V.iii).

    Its matrix is [[Sx cos psi, -Sx sin psi, Sx Tx], [Sy sin psi, Sy cos psi, Sy Ty]].
    """

    n = 5

    def matrices(self, u: Tensor) -> Tensor:
        psi, x, y = u[:, 0], u[:, 3], u[:, 4]
        rows = torch.stack((psi.cos(), -psi.sin(), x, psi.sin(), psi.cos(), y), 1).view(-1, 2, 3)
        return u[:, 1:3].exp().unsqueeze(2) * rows


class ThinPlate(Transformer):
    """The smoothest warp that moves nine control points by u, two numbers each: 18 degrees of freedom.

    T_u(g) = A [1; g] + sum_j w_j U(|g - c_j|), U(r) = r^2 log r^2, T_u(c_j) = c_j + u_j, sum_j w_j = 0 and
    sum_j w_j c_j' = 0. It is linear in u: g + sum_j k_j(g) u_j, with k_j(g) from one fixed inverse.
    """

    n = 2 * CONTROL_SIDE**2
    grid: Tensor
    kernel: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width
        grid, control = pixel_centres(height, width), pixel_centres(CONTROL_SIDE, CONTROL_SIDE)
        n_points = len(control)
        system = torch.zeros(n_points + 3, n_points + 3, dtype=torch.float64)
        system[:n_points] = _basis(control, control)
        system[n_points:, :n_points] = system[:n_points, n_points:].T
        kernel = _basis(grid, control) @ torch.linalg.inv(system)[:, :n_points]
        self.register_buffer("grid", grid.float(), persistent=False)  # [pixels, 2]
        self.register_buffer("kernel", kernel.float(), persistent=False)  # [pixels, 9]

    def points(self, u: Tensor) -> Tensor:
        # x and y of all pictures as rows of one matrix: a product of many small ones is several times as slow
        rows = u.view(len(u), -1, 2).mT.reshape(2 * len(u), -1)
        moved = (rows @ self.kernel.to(u).T).view(len(u), 2, -1)
        return _by_pixel(self.grid.to(u).T + moved, self.size)


def pixel_centres(height: int, width: int) -> Tensor:
    """x and y of the centres of pixels, row by row: float64 [height width, 2], sides from 2 pixels on."""
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in (height, width))
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), 1)


def _by_pixel(coordinates: Tensor, size: tuple[int, int]) -> Tensor:
    """From [N, 2, pixels] to [N, height, width, 2]."""
    return coordinates.mT.view(len(coordinates), *size, 2)


def _basis(at: Tensor, control: Tensor) -> Tensor:
    """U of the distances to the control points, 1, x, y: float64 [N, controls + 3]."""
    square = (at.unsqueeze(1) - control).square().sum(2)
    bending = torch.where(square > 0, square * square.clamp_min(1e-300).log(), 0)
    return torch.cat((bending, torch.ones_like(at[:, :1]), at), 1)
