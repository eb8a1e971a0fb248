"""The discretised logistic: bits, gradients, table index, samples."""

import math

import pytest
import torch
from torch import Tensor

from vbc.codec.train.likelihood import logistic_nll
from vbc.kernels.logistic import (
    logistic_bits,
    logistic_bits_reference,
    logistic_sample,
    table_index,
    table_index_reference,
)

SHAPES = [(1,), (1, 1, 1, 1), (33, 17, 65), (2, 3, 1025)]


def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(math.prod(shape))
    residual = torch.randn(shape, generator=g) * torch.exp2(torch.rand(shape, generator=g) * 8)
    return residual.to(dtype), (torch.rand(shape, generator=g) * 14 - 5).to(dtype)


def with_gradients(residual: Tensor, log2_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits and the gradients of a weighted sum of them."""
    r, s = (t.detach().clone().requires_grad_() for t in (residual, log2_scale))
    bits = logistic_bits(r, s)
    weight = torch.arange(bits.numel(), device=bits.device).view(bits.shape) % 5 - 1.5
    (bits * weight).sum().backward()
    assert r.grad is not None
    assert s.grad is not None
    return bits.detach(), r.grad, s.grad


def test_training_means_the_same_on_every_device() -> None:
    """On CUDA `exact.logistic_nll` is `logistic_bits`."""
    residual, log2_scale = arguments((33, 65))
    want = logistic_nll(residual, log2_scale)
    torch.testing.assert_close(logistic_bits_reference(residual, log2_scale), want, rtol=1e-4, atol=1e-4)


def test_reference_is_the_definition() -> None:
    r = torch.arange(-40, 41, dtype=torch.float64) + 0.3
    s = torch.full_like(r, 1.5)
    p = torch.sigmoid((r + 0.5) / 2**1.5) - torch.sigmoid((r - 0.5) / 2**1.5)
    bits = logistic_bits_reference(r, s)
    assert torch.allclose(bits, -torch.log2(p), rtol=1e-9)
    assert float(torch.exp2(-bits).sum()) == pytest.approx(1, rel=1e-5)


def test_reference_gradients() -> None:
    r = torch.tensor([0.0, 0.3, -0.7, 3.0, -120.0, 0.5], dtype=torch.float64, requires_grad=True)
    for level in (-4.0, -1.0, 0.0, 0.9, 1.1, 6.0):
        s = torch.full((6,), level, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(logistic_bits_reference, (r, s))


@pytest.mark.parametrize("shape", SHAPES)
def test_bits_and_gradients(shape: tuple[int, ...], device: str) -> None:
    """float32 within 2e-5 of float64, relative to the larger of 1 and the value."""
    r, s = arguments(shape)
    want = with_gradients(r.double(), s.double())
    have = with_gradients(r.to(device), s.to(device))
    for h, w in zip(have, want, strict=True):
        assert h.dtype == torch.float32
        assert torch.allclose(h.cpu().double(), w, rtol=2e-5, atol=2e-5)


def test_half_precision(device: str) -> None:
    r, s = arguments((3, 70), torch.float16)
    want = with_gradients(r.double(), s.double())
    bits, d_r, d_s = with_gradients(r.to(device), s.to(device))
    assert (bits.dtype, d_r.dtype, d_s.dtype) == (torch.float32, torch.float16, torch.float16)
    assert torch.allclose(bits.cpu().double(), want[0], rtol=2e-5, atol=2e-5)
    assert torch.allclose(d_r.cpu().double(), want[1], rtol=2e-3, atol=2e-3)
    assert torch.allclose(d_s.cpu().double(), want[2], rtol=2e-3, atol=2e-3)


def test_any_scale_is_safe(device: str) -> None:
    scales = torch.tensor([-1e4, -200, -61, -60, -20, -4, 0, 10, 40, 60, 61, 200, 1e4])
    residuals = torch.tensor([0.0, 0.4999, 0.5, -0.5, 1, -30000, 1e6])
    r, s = (t.contiguous() for t in torch.broadcast_tensors(residuals[:, None], scales[None]))
    # at the very ends of clamp versions of torch differ in its gradient; a hair inside they do not
    want = with_gradients(r.double(), s.double() * (1 - 1e-12))
    have = with_gradients(r.to(device), s.to(device))
    for h, w in zip(have, want, strict=True):
        assert torch.isfinite(h).all()
        assert torch.allclose(h.cpu().double(), w, rtol=2e-5, atol=2e-5)
    # A mean offset within half a pixel costs nothing where the scale vanishes, and the bits grow with the
    # scale at its end.
    assert float(have[0][0, 0]) == 0
    assert float(have[0][0, 9]) == pytest.approx(62, abs=1e-3)


def test_table_index(device: str) -> None:
    mean16, scale16 = torch.meshgrid(
        torch.tensor([*range(-40, 41), 524279, -524280], dtype=torch.int32),
        torch.tensor([*range(-80, 130), -(2**30), 2**30], dtype=torch.int32),
        indexing="ij",
    )
    for low16, n_scales in ((-64, 41), (0, 1), (-64, 8192)):
        want = table_index_reference(mean16, scale16, low16, n_scales)
        have = table_index(mean16.to(device), scale16.to(device), low16, n_scales)
        assert [h.dtype for h in have] == [torch.uint16, torch.int16]
        for h, w in zip(have, want, strict=True):
            assert torch.equal(h.cpu().int(), w.int())


def test_table_index_by_hand() -> None:
    mean16 = torch.tensor([0, 7, 8, -8, -9, 23, 24], dtype=torch.int32)
    scale16 = torch.tensor([-64, -63, -62, -100, 96, 97, 10000], dtype=torch.int32)
    index, mean = table_index_reference(mean16, scale16, -64, 41)
    assert mean.tolist() == [0, 0, 1, 0, -1, 1, 2]
    assert (index.int() % 8).tolist() == [4, 7, 0, 0, 7, 7, 0]
    assert (index.int() // 8).tolist() == [0, 0, 1, 0, 40, 40, 40]


@pytest.mark.parametrize("n_scales", [0, 8193])
def test_table_index_limits(n_scales: int) -> None:
    zero = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="n_scales"):
        table_index(zero, zero, 0, n_scales)


@pytest.mark.parametrize("level", [-3.0, 0.0, 2.5])
def test_samples_have_the_distribution(level: float) -> None:
    """Evenly spaced uniform numbers give every value its probability to within two of them."""
    n = 20000
    u = (torch.arange(n) + 0.5) / n
    mean, scale = torch.full((n,), 5.3), torch.full((n,), level)
    y = logistic_sample(mean, scale, u)
    values = torch.arange(-30, 41, dtype=torch.float64)
    p = torch.exp2(-logistic_bits_reference(values - 5.3, torch.full_like(values, level)))
    counts = torch.tensor([int((y == v).sum()) for v in values.tolist()])
    assert ((counts - p * n).abs() < 2.5).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="shape"):
        logistic_bits(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="must be"):
        logistic_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float16))
    with pytest.raises(ValueError, match="must be"):
        table_index(torch.zeros(2), torch.zeros(2), 0, 4)
