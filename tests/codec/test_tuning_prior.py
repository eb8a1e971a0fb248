"""What is known of corrections beforehand: from tiles to a normal prior to the directions that are coded."""

import numpy as np
import pytest
import torch
from pictures import photo
from torch import Tensor

from vbc.codec.exact.model import OUTPUTS, n_around, used_slopes
from vbc.codec.exact.tuning import N_TUNING_TABLES
from vbc.codec.model import Model, build_model
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train import tuning_prior
from vbc.codec.train.bins_net import BinsNet
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.export import export_model
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.tuning_prior import Evidence


def random_curvature(rng: torch.Generator, n: int, strength: float) -> Tensor:
    x = torch.randn((2, 3, n, 4 * n), generator=rng)
    return strength * x @ x.mT


def test_the_prior_is_found_again() -> None:
    """Corrections drawn from a known prior, seen through noise that the curvature tells: expectation
    maximisation finds its covariances."""
    rng = torch.Generator().manual_seed(1)
    n, tiles = 4, 1500
    root = torch.randn((2, 3, n, n), generator=rng).double() * torch.tensor([20.0, 6.0, 2.0, 10.0])
    truth = root @ root.mT
    curvatures, slopes = [], []
    for _ in range(tiles):
        h = random_curvature(rng, n, 0.02).double()
        correction = root @ torch.randn((2, 3, n, 1), generator=rng).double()
        noise = torch.linalg.cholesky(h) @ torch.randn((2, 3, n, 1), generator=rng).double()
        curvatures.append(h.float())
        slopes.append((h @ correction + noise)[..., 0].float())
    found = tuning_prior.fit_prior(torch.stack(curvatures), torch.stack(slopes))
    spread = truth.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((found - truth).abs() / (spread[..., None] * spread[..., None, :])).max() < 0.12


def test_directions_make_prior_and_curvature_diagonal() -> None:
    rng = torch.Generator().manual_seed(2)
    covariance, curvature = (random_curvature(rng, 6, 1.0).double() for _ in range(2))
    covariance[1, 2, 3] = 0  # a correction that there is not
    covariance[1, 2, :, 3] = 0
    vectors, strengths = tuning_prior.directions(covariance, curvature)
    torch.testing.assert_close(vectors @ vectors.mT, covariance, rtol=1e-5, atol=1e-5)
    diagonal = torch.diag_embed(strengths)
    torch.testing.assert_close(vectors.mT @ curvature @ vectors, diagonal, rtol=1e-5, atol=1e-3)
    assert (strengths.diff() <= 0).all()
    assert (vectors[1, 2, 3].abs() < 1e-6).all()
    assert strengths[1, 2, -1] == pytest.approx(0, abs=1e-3)


def test_a_typical_tile_is_not_the_smoothest_one() -> None:
    curvature = torch.eye(3).expand(5, 2, 3, 3, 3).clone()
    curvature[0] *= 1000
    positions = torch.tensor([100, 100, 100, 100, 200])
    curvature[4] *= 2
    want = torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3) / 100
    torch.testing.assert_close(tuning_prior.typical(curvature, positions), want)


@pytest.fixture(scope="module")
def small() -> Model:
    torch.manual_seed(5)
    return build_model(export_model(ExactNet(8), LossyNet(), None, bins=BinsNet(8)))


def test_tiles_tell_of_every_phase_and_level_class(small: Model) -> None:
    tile = photo(128, 128).numpy()
    found = tuning_prior.observe(small, np.stack([tile] * 4), seed=0)
    assert {(e.phase, e.level_class) for e in found} == {(p, c) for p in PHASES for c in range(3)}
    for e in found:
        n = 8 + 1 + n_around(e.phase) + 2
        assert e.curvature.shape == (2, 3, n, n)
        assert e.slope.shape == (2, 3, n)
        assert e.positions in {64 * 64, 32 * 32, 16 * 16}
        assert torch.isfinite(e.slope).all()
        torch.testing.assert_close(e.curvature, e.curvature.mT)
        assert torch.linalg.eigvalsh(e.curvature.double()).min() > -1e-3 * e.curvature.abs().max()
        there = used_slopes(n_around(e.phase))
        assert not e.slope[..., 9:][~there].any(), "slopes that there are not"
    again = tuning_prior.observe(small, np.stack([tile] * 4), seed=0)
    assert all(torch.equal(a.slope, b.slope) for a, b in zip(found, again, strict=True))


def test_the_basis_fits_into_its_tensors(small: Model) -> None:
    """Of too few tiles and of huge curvatures: shapes, ranges, and a model that loads."""
    rng = torch.Generator().manual_seed(3)
    evidence = []
    for phase in PHASES:
        n = 8 + 1 + n_around(phase) + 2
        for level_class in range(3):
            for strength in (1e-6, 1.0, 1e6):
                h = random_curvature(rng, n, strength)
                slope = (h @ torch.randn((2, 3, n, 1), generator=rng))[..., 0]
                evidence.append(Evidence(phase, level_class, 300, h, slope))
    tensors = tuning_prior.tuning_basis(evidence)
    for phase in PHASES:
        n = 8 + 1 + n_around(phase) + 2
        kept = min(n, tuning_prior.DIRECTIONS)
        vectors, scales = (tensors[f"exact.{phase}.tuning.{name}"] for name in ("vectors", "scales"))
        assert vectors.shape == (3, OUTPUTS, n, kept)
        assert scales.shape == (3, OUTPUTS, kept)
        assert vectors.any()
        assert 0 <= scales.min() <= scales.max() < N_TUNING_TABLES
