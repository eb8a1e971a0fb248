"""A distance between pictures as the eye sees them, and the loss that tunes the lossy levels by it.

The distance is made like SSIMULACRA 2 (Sneyers, Cloudinary and libjxl, 2022): pictures in XYB, the colour
space of JPEG XL (ISO/IEC 18181-1; constants as in libjxl's `opsin_params.h`), SSIM (Wang et al. 2004, "Image
quality assessment: from error visibility to structural similarity") and loss of detail, on several scales.
It is simpler: four scales in place of six, weights set by hand in place of 108 fitted ones, no term for
added edges, scales averaged in XYB and not in linear light, windows inside the picture alone.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vbc.codec.pixels.colour import opponent_to_rgb, rgb_to_opponent
from vbc.codec.train.lossy_loss import lossy_loss, squared_error
from vbc.codec.train.lossy_net import LossyNet
from vbc.codec.train.qconv import Q_MAX
from vbc.codec.train.training_loop import Loss
from vbc.codec.train.training_tiles import batches

CONES = (
    (0.3, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)
"""What long, medium and short cones take of linear red, green and blue; rows sum to 1."""
CONE_BIAS = 0.0037930732552754493
"""Keeps the slope of the cube root finite in black."""
SCALES = 4
"""A training tile of 128 pixels has four scales of at least `SMALLEST_SIDE`."""
SMALLEST_SIDE = 16
"""A window of 11 then still has 36 places in a scale."""
WINDOW_REACH, WINDOW_SIGMA = 5, 1.5
"""The Gaussian window of SSIM, in pixels."""
CONTRAST_FLOOR = 0.0009
"""The constant C2 of SSIM, 0.03^2: contrasts below it count as none."""
PLANE_WEIGHTS = (0.25, 1.0, 0.25)
"""X, Y, B: the eye resolves brightness best. By hand, as are the next two."""
PEAK_WEIGHT = 0.5
"""Of the 4-norm, which sees the few worst places; the mean has 1."""
DETAIL_WEIGHT = 2.0
"""Of lost detail, the texture that squared error lets go first."""
PEAK_FLOOR = 1e-12
"""Below (1/1000)^4 the fourth root is nearly straight, so that its gradient stays finite at zero."""

SQUARED_SHARE = 0.2
"""Of squared error in the distortion: it holds the colours and what the windows do not see."""
FIT_BATCHES = 16
"""256 tiles tell kappa, a mean, within some 5 %."""
FLAT = (1e-2, 1e-4)
"""Squared error and eye distance are taken as at least this in kappa: flat tiles have neither."""


def xyb(rgb: Tensor) -> Tensor:
    """X, Y and B - Y, scaled and shifted to about 0..1 as in SSIMULACRA 2, of sRGB [N, 3, H, W], 0..255."""
    c = (rgb / 255).clamp(0, 1)
    linear = torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    cones = torch.einsum("ij,njhw->nihw", linear.new_tensor(CONES), linear) + CONE_BIAS
    long, medium, short = (cones ** (1 / 3) - CONE_BIAS ** (1 / 3)).unbind(1)
    x, y = (long - medium) / 2, (long + medium) / 2
    return torch.stack((14 * x + 0.42, y + 0.01, short - y + 0.55), 1)


def blur(planes: Tensor) -> Tensor:
    """Gaussian means [N, C, H-10, W-10] of the windows that lie inside."""
    reach = torch.arange(-WINDOW_REACH, WINDOW_REACH + 1, device=planes.device, dtype=planes.dtype)
    window = torch.softmax(-(reach**2) / (2 * WINDOW_SIGMA**2), 0)  # normalised exp
    n = planes.shape[1]
    rows = F.conv2d(planes, window.view(1, 1, -1, 1).expand(n, 1, -1, 1), groups=n)
    return F.conv2d(rows, window.view(1, 1, 1, -1).expand(n, 1, 1, -1), groups=n)


def scale_distance(a: Tensor, b: Tensor) -> Tensor:
    """Distance [N] on one scale of the picture b from the original a; XYB [N, 3, H, W]."""
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    structure = (2 * covariance + CONTRAST_FLOOR) / (var_a + var_b + CONTRAST_FLOOR)
    error = (1 - (1 - (mean_a - mean_b) ** 2) * structure).clamp_min(0)  # 1 - SSIM
    inside = (..., slice(WINDOW_REACH, -WINDOW_REACH), slice(WINDOW_REACH, -WINDOW_REACH))
    detail_a, detail_b = (a[inside] - mean_a).abs(), (b[inside] - mean_b).abs()
    lost = (1 - (1 + detail_b) / (1 + detail_a)).clamp_min(0)
    peak = ((error**4).mean((-1, -2)) + PEAK_FLOOR) ** 0.25 - PEAK_FLOOR**0.25
    by_plane = error.mean((-1, -2)) + PEAK_WEIGHT * peak + DETAIL_WEIGHT * lost.mean((-1, -2))
    distance: Tensor = (by_plane * by_plane.new_tensor(PLANE_WEIGHTS)).sum(1)
    return distance


def eye_distance(a: Tensor, b: Tensor) -> Tensor:
    """How different b looks from the original a; differentiable, 0 where they are equal.

    a, b: RGB [N, 3, H, W], 0..255 (clamped). Returns float32 [N]. Small pictures have fewer scales. Raises
    ValueError below 16 pixels a side and where shapes differ.
    """
    if a.shape != b.shape or min(a.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"pictures of {tuple(a.shape)} and {tuple(b.shape)}; need equal ones, sides >= {SMALLEST_SIDE}"
        )
    with torch.autocast(a.device.type, enabled=False):  # variances are small differences of large numbers
        a, b = xyb(a.float()), xyb(b.float())
        total = a.new_zeros(len(a))
        for _ in range(SCALES):
            if min(a.shape[-2:]) < SMALLEST_SIDE:
                break
            total = total + scale_distance(a, b)
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total


def plane_distance(planes: Tensor, target: Tensor) -> Tensor:
    """`eye_distance` [N] of opponent planes centred on zero from their target."""
    return eye_distance(opponent_to_rgb(target) + 128, opponent_to_rgb(planes) + 128)


def fit_kappa(net: LossyNet, tiles: NDArray[np.uint8], seed: int = 1) -> float:
    """Squared error that one unit of eye distance is worth so that both weigh alike.

    The geometric mean of their ratio over the first batches, at random qualities: a function of the network,
    the tiles (uint8 [N, 3, 128, 128]) and the seed.
    """
    device = net.log2_step.device
    random = torch.Generator().manual_seed(seed)
    source = batches(tiles, 16, seed, 0)
    logs = []
    for _ in range(FIT_BATCHES):
        target = rgb_to_opponent(next(source).to(device).float() - 128)
        q = torch.randint(0, Q_MAX + 1, (len(target),), generator=random).float().to(device)
        with torch.no_grad():
            planes = net.synthesise(torch.cat(net(target, q)[0], 1), q, 3)
            mse, eye = squared_error(planes, target), plane_distance(planes, target)
        logs.append((mse.clamp_min(FLAT[0]) / eye.clamp_min(FLAT[1])).log().mean().item())
    return math.exp(sum(logs) / len(logs))


def eye_loss(net: LossyNet, kappa: float) -> Loss:
    """`lossy_loss` with 0.2 MSE + 0.8 kappa eye distance as distortion. kappa: `fit_kappa` of the start."""

    def distortion(planes: Tensor, target: Tensor) -> Tensor:
        eye = kappa * plane_distance(planes, target)
        return SQUARED_SHARE * squared_error(planes, target) + (1 - SQUARED_SHARE) * eye

    return lossy_loss(net, distortion)
