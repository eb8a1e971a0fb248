"""How alike two sets of images are, and how much fine detail one has. Images: uint8 [N, C, H, W]."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MSSSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Wang et al. 2003, finest scale first."""
WINDOW, WINDOW_SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
LUMA = (0.299, 0.587, 0.114)
DARK = 0.05
"""Added to a local mean before it divides: black grounds have no contrast of their own."""


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, over all subpixels: float [N]; infinite where equal."""
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image, at most 1: float [N].

    Of the five scales those are used that an 11-tap window fits into, with their weights divided by their
    sum: all from 161 pixels on, two for 32 pixels. Raises ValueError for a side below 11.
    """
    side = min(a.shape[-2:])
    if side < WINDOW:
        raise ValueError(f"a side of {side} pixels is below the window's {WINDOW}")
    scales = [weight for n, weight in enumerate(MSSSIM_WEIGHTS) if side / 2**n > WINDOW - 1]
    x, y = a.double(), b.double()
    product = torch.ones(len(a), dtype=torch.float64, device=a.device)
    for n, weight in enumerate(scales):
        if n:
            odd = [side % 2 for side in x.shape[-2:]]
            x, y = (F.avg_pool2d(t, 2, padding=odd) for t in (x, y))
        luminance, contrast = _similarity(x, y)
        kept = luminance * contrast if n == len(scales) - 1 else contrast
        product = product * kept.clamp_min(0).pow(weight / sum(scales)).mean(1)
    return product


def fine_detail(x: Tensor) -> Tensor:
    """Energy of detail that half the resolution cannot show: float [N], squared pixel values.

    The mean square of what remains of an image without the mean of each 2 x 2 pixels.
    """
    cut = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2].double()
    coarse = F.avg_pool2d(cut, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return (cut - coarse).square().flatten(1).mean(1)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means over each channel of the luminance term and of contrast and structure: float64 [N, C] each."""
    channels = x.shape[1]
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    taps = torch.exp(-(at**2) / (2 * WINDOW_SIGMA**2))
    taps = (taps / taps.sum()).expand(channels, 1, 1, WINDOW)

    def blurred(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, taps, groups=channels), taps.transpose(-1, -2), groups=channels)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * covariance + c2) / (var_x + var_y + c2)
    return luminance.flatten(2).mean(2), contrast.flatten(2).mean(2)


def sharpness(x: Tensor) -> Tensor:
    """Mean of |Laplacian| over local mean of luma (Zeng's thesis, equation 3.4, made a mean): float [N].

    Luma is 0..1, the local mean that of 3 x 3 pixels plus `DARK`; the border is left out.
    """
    y = x.double() / 255
    if x.shape[1] == 3:
        y = (y * torch.tensor(LUMA, dtype=y.dtype, device=y.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    cross = y.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    laplacian, local = F.conv2d(y, cross).abs(), F.avg_pool2d(y, 3, 1)
    return (laplacian / (local + DARK)).flatten(1).mean(1)


def nearest_distance(x: Tensor) -> float:
    """How far a set's images are from the most alike other one: mean over the set of the root mean square
    difference, in grey values. Small where a generator repeats itself."""
    flat = x.flatten(1).float()
    apart = torch.cdist(flat, flat)
    apart.fill_diagonal_(torch.inf)
    return float(apart.amin(1).mean()) / math.sqrt(flat.shape[1])
