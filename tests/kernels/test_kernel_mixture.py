"""The mixture of logistics: bits and gradients against float64, and what it must sum to."""

import pytest
import torch
from torch import Tensor

from vbc.kernels.research.mixture import (
    mixture_bits,
    mixture_bits_reference,
    mixture_mean,
    mixture_mean_reference,
    mixture_sample,
    mixture_sample_reference,
)

SHAPES = [(1, 1, 1, 1), (2, 5, 3, 7), (1, 10, 33, 17)]


def arguments(n: int, k: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k * h * w)
    params = torch.randn(n, 10 * k, h, w, generator=g)
    params[:, 4 * k : 7 * k] = params[:, 4 * k : 7 * k] * 2 - 3
    x = torch.randint(0, 256, (n, 3, h, w), generator=g)
    x = torch.where(torch.rand(x.shape, generator=g) < 0.2, 0, x)
    return params, torch.where(torch.rand(x.shape, generator=g) < 0.2, 255, x).to(torch.uint8)


def with_gradient(params: Tensor, x: Tensor, low: float) -> tuple[Tensor, Tensor]:
    p = params.detach().clone().requires_grad_()
    bits = mixture_bits(p, x, low)
    weight = torch.arange(bits.numel(), device=bits.device).view(bits.shape) % 5 - 1.5
    (bits * weight).sum().backward()
    assert p.grad is not None
    return bits.detach(), p.grad


def gradient_error(have: Tensor, want: Tensor) -> float:
    """Largest difference in a pixel over 1 + its largest gradient."""
    error, largest = (g.abs().amax(1) for g in (have.cpu().double() - want, want))
    return float((error / (1 + largest)).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("low", [-7.0, -12.0])
def test_bits_and_gradient(shape: tuple[int, int, int, int], low: float, device: str) -> None:
    """float32 within 1e-4 of float64, relative to 1 and the value; the gradient within 1e-3."""
    params, x = arguments(*shape)
    want_bits, want_grad = with_gradient(params.double(), x, low)
    bits, grad = with_gradient(params.to(device), x.to(device), low)
    assert torch.allclose(bits.cpu().double(), want_bits, rtol=1e-4, atol=1e-4)
    assert gradient_error(grad, want_grad) <= 1e-3


def test_reference_gradient() -> None:
    params, x = arguments(1, 2, 3, 3)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 255
    p = params.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: mixture_bits_reference(p, x, -12.0), p)


@pytest.mark.parametrize("spread", [-20.0, -6.0, -3.0, 3.0])
def test_probabilities_sum_to_one(spread: float) -> None:
    """Over red, with green and blue so wide that each of their edge bins holds one half."""
    params, _ = arguments(1, 3, 1, 1)
    params[:, 12:15] = spread
    params[:, 15:21] = 40
    x = torch.zeros(256, 3, 1, 1, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(256)
    bits = mixture_bits_reference(params.double().expand(256, -1, -1, -1), x)
    assert float(torch.exp2(-bits).sum()) == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("size", [30, 1000])
def test_extremes(size: float, device: str) -> None:
    """Logarithms up to 1e3 and 1e6: the error is float32's of such numbers, never an overflow or NaN."""
    params, x = arguments(2, 3, 4, 5)
    params[:, 3:12] *= size
    params[:, 12:21] *= 50
    params[:, 21:] *= 100
    params[:, :3] *= 30
    want_bits, want_grad = with_gradient(params.double(), x, -7.0)
    bits, grad = with_gradient(params.to(device), x.to(device), -7.0)
    assert torch.isfinite(bits).all()
    assert torch.isfinite(grad).all()
    assert torch.allclose(bits.cpu().double(), want_bits, rtol=1e-4, atol=1e-3)
    assert gradient_error(grad, want_grad) <= 3e-4 * size


def test_mean_and_samples(device: str) -> None:
    """Rounding apart, equal to float64: at most one value in 500 may fall into the next bin."""
    params, _ = arguments(2, 4, 19, 21)
    uniform = torch.rand(2, 4, 19, 21, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6)
    pairs = (
        (mixture_mean(params.to(device)), mixture_mean_reference(params.double())),
        (
            mixture_sample(params.to(device), uniform.to(device)),
            mixture_sample_reference(params.double(), uniform.double()),
        ),
    )
    for have, want in pairs:
        off = (have.cpu().int() - want.int()).abs()
        assert int(off.max()) <= 2
        assert float((off > 0).float().mean()) < 0.002


def test_samples_have_the_distribution() -> None:
    """Evenly spaced uniform numbers give every red value its probability to within a few of them."""
    n = 20000
    params, _ = arguments(1, 1, 1, 1)
    params[:, 4:7] = -3
    params = params.double().expand(n, -1, -1, -1)
    uniform = torch.full((n, 4, 1, 1), 0.5, dtype=torch.float64)
    uniform[:, 1, 0, 0] = (torch.arange(n) + 0.5) / n
    y = mixture_sample_reference(params, uniform)[:, 0, 0, 0]
    flat = params[:256].clone()
    flat[:, 5:7] = 40
    x = torch.zeros(256, 3, 1, 1, dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(256)
    p = torch.exp2(-mixture_bits_reference(flat, x)) * 4
    assert ((torch.bincount(y.long(), minlength=256) - p.flatten() * n).abs() < 2.5).all()


def test_wrong_arguments() -> None:
    params, x = arguments(1, 2, 3, 3)
    with pytest.raises(ValueError, match="10K"):
        mixture_bits(params[:, :19], x)
    with pytest.raises(ValueError, match="shape"):
        mixture_bits(params, x[:, :2])
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        mixture_bits(params, x.float())
