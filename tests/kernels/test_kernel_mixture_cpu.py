"""The mixture's bits on a CPU, tile by tile: values and gradient against the float64 definition."""

import pytest
import torch
from test_kernel_mixture import arguments, gradient_error, with_gradient

SHAPES = [(1, 1, 1, 1), (2, 5, 3, 7), (300, 2, 3, 3), (2, 10, 33, 37)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("low", [-7.0, -12.0])
def test_bits_and_gradient(shape: tuple[int, int, int, int], low: float) -> None:
    """float32 within 1e-4 of float64, relative to 1 and the value; the gradient within 1e-3."""
    params, x = arguments(*shape)
    want_bits, want_grad = with_gradient(params.double(), x, low)
    bits, grad = with_gradient(params, x, low)
    assert torch.allclose(bits.double(), want_bits, rtol=1e-4, atol=1e-4)
    assert gradient_error(grad, want_grad) <= 1e-3


def test_extremes() -> None:
    """Means and scales far outside: the error is float32's of such numbers, never an overflow or NaN."""
    params, x = arguments(2, 3, 4, 5)
    params[:, 3:12] *= 1000
    params[:, 12:21] *= 50
    params[:, 21:] *= 100
    want_bits, want_grad = with_gradient(params.double(), x, -7.0)
    bits, grad = with_gradient(params, x, -7.0)
    assert torch.isfinite(grad).all()
    assert torch.allclose(bits.double(), want_bits, rtol=1e-4, atol=1e-3)
    assert gradient_error(grad, want_grad) <= 0.3
