"""A distance between pictures as the eye sees them: what the lossy levels are trained and encoded by.

The distance is made like SSIMULACRA 2 (Sneyers, Cloudinary and libjxl, 2022): pictures in XYB, the colour
space of JPEG XL (ISO/IEC 18181-1; constants as in libjxl's `opsin_params.h`), SSIM (Wang et al. 2004, "Image
quality assessment: from error visibility to structural similarity"), added and lost detail, their means and
4-norms, on several scales. It is simpler: four scales in place of six, averaged in XYB and not in linear
light, windows inside the picture alone. Two sets of weights are added up: one fitted to what SSIMULACRA 2
says of distorted training tiles (`scripts/fit_eye_distance.py`), and one set by hand, which looks at what the
fitted one leaves to others: a metric has blind spots, and a network finds them.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

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
NORMS, PLANES = ("mean", "peak"), ("X", "Y", "B")
KINDS = ("structure", "added", "lost")
"""Terms of a scale: 1 - SSIM, detail that the original has not, and detail of it that is gone."""
FITTED_WEIGHTS: dict[tuple[int, str, str, str], float] = {
    (0, "structure", "peak", "X"): 0.15,
    (0, "structure", "peak", "Y"): 4.71,
    (0, "added", "mean", "X"): 8.55,
    (0, "added", "mean", "B"): 9.34,
    (0, "lost", "mean", "X"): 0.81,
    (0, "lost", "peak", "X"): 0.79,
    (0, "lost", "peak", "Y"): 32.57,
    (0, "lost", "peak", "B"): 11.76,
    (1, "structure", "mean", "Y"): 1.03,
    (1, "structure", "peak", "Y"): 11.65,
    (1, "lost", "peak", "X"): 9.54,
    (1, "lost", "peak", "Y"): 12.66,
    (2, "structure", "mean", "Y"): 240.60,
    (2, "structure", "peak", "X"): 2.59,
    (3, "structure", "mean", "B"): 33.24,
    (3, "structure", "peak", "X"): 2.36,
    (3, "structure", "peak", "Y"): 65.54,
    (3, "added", "mean", "B"): 97.23,
    (3, "added", "peak", "X"): 18.08,
    (3, "added", "peak", "Y"): 8.33,
    (3, "added", "peak", "B"): 43.03,
}
"""By scale (0 is the full size), kind, norm and plane; what is not named has none. By
`scripts/fit_eye_distance.py`: non-negative least squares on relative errors of SSIMULACRA 2's sum before its
last mapping."""
SCORE_CUBIC = (2.326765642916932, -0.020884521182843837, 6.248496625763138e-05)
SCORE_EXPONENT = 0.6276336467831387
"""SSIMULACRA 2's last mapping of its sum s: 100 - 10 (a s + b s^2 + c s^3)^exponent."""
HAND_PLANES = (0.25, 1.0, 0.25)
"""X, Y, B: the eye resolves brightness best. By hand, as are the next two; on every scale."""
HAND_PEAK = 0.5
"""Of the 4-norm of 1 - SSIM, which sees the few worst places; the mean has 1."""
HAND_LOST = 2.0
"""Of the mean of lost detail, the texture that squared error lets go first."""
HAND_SCALE = 12.9
"""Brings the distance by hand to the size of the fitted one: the ratio of their means on the same tiles."""
HAND_SHARE = 0.25
"""Of the distance by hand in the loss's distance; the fitted one has the rest."""
PEAK_FLOOR = 1e-12
"""Below (1/1000)^4 the fourth root is nearly straight, so that its gradient stays finite at zero."""


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


def error_planes(a: Tensor, b: Tensor) -> Tensor:
    """How the picture b differs from the original a on one scale, place by place; XYB [N, 3, H, W].

    Returns [N, kind, plane, H-10, W-10], 0 or more: `KINDS`; X, Y, B; of the windows that lie inside.
    """
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    structure = (2 * covariance + CONTRAST_FLOOR) / (var_a + var_b + CONTRAST_FLOOR)
    error = (1 - (1 - (mean_a - mean_b) ** 2) * structure).clamp_min(0)  # 1 - SSIM
    inside = (..., slice(WINDOW_REACH, -WINDOW_REACH), slice(WINDOW_REACH, -WINDOW_REACH))
    detail_a, detail_b = (a[inside] - mean_a).abs(), (b[inside] - mean_b).abs()
    change = (1 + detail_b) / (1 + detail_a) - 1
    return torch.stack((error, change.clamp_min(0), (-change).clamp_min(0)), 1)


def scale_terms(a: Tensor, b: Tensor) -> Tensor:
    """How the picture b differs from the original a on one scale; XYB [N, 3, H, W].

    Returns [N, kind, norm, plane]: `KINDS`; mean and 4-norm; X, Y, B.
    """
    kinds = error_planes(a, b)
    peak = ((kinds**4).mean((-1, -2)) + PEAK_FLOOR) ** 0.25 - PEAK_FLOOR**0.25
    return torch.stack((kinds.mean((-1, -2)), peak), 2)


def eye_terms(a: Tensor, b: Tensor) -> Tensor:
    """How b differs from the original a: [N, scale, kind, norm, plane], as `scale_terms`; differentiable.

    a, b: RGB [N, 3, H, W], 0..255 (clamped). Of scales that a small picture has not all terms are 0. Raises
    ValueError below 16 pixels a side and where shapes differ.
    """
    if a.shape != b.shape or min(a.shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"pictures of {tuple(a.shape)} and {tuple(b.shape)}; need equal ones, sides >= {SMALLEST_SIDE}"
        )
    with torch.autocast(a.device.type, enabled=False):  # variances are small differences of large numbers
        a, b = xyb(a.float()), xyb(b.float())
        scales: list[Tensor] = []
        for _ in range(SCALES):
            if min(a.shape[-2:]) < SMALLEST_SIDE:
                scales.append(torch.zeros_like(scales[0]))
                continue
            scales.append(scale_terms(a, b))
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return torch.stack(scales, 1)


@functools.cache
def weights() -> tuple[Tensor, Tensor]:
    """The fitted weights and those by hand, float32 [scale, kind, norm, plane]."""
    fitted, hand = (torch.zeros(SCALES, len(KINDS), 2, 3) for _ in range(2))
    for (scale, kind, norm, plane), weight in FITTED_WEIGHTS.items():
        fitted[scale, KINDS.index(kind), NORMS.index(norm), PLANES.index(plane)] = weight
    planes = torch.tensor(HAND_PLANES)
    hand[:, 0, 0], hand[:, 0, 1], hand[:, 2, 0] = planes, HAND_PEAK * planes, HAND_LOST * planes
    return fitted, hand


def eye_distance(a: Tensor, b: Tensor) -> Tensor:
    """How different b looks from the original a, float32 [N]; arguments and errors as `eye_terms`.

    On photographs about SSIMULACRA 2's sum: 1 is hardly visible, 10 is bad.
    """
    terms = eye_terms(a, b)
    fitted, hand = (w.to(terms.device) for w in weights())
    weight = (1 - HAND_SHARE) * fitted + HAND_SHARE * HAND_SCALE * hand
    distance: Tensor = (terms * weight).sum((1, 2, 3, 4))
    return distance


def predicted_score(terms: Tensor) -> float:
    """What SSIMULACRA 2 says of a picture: 100 for no difference, 90 for one that nobody sees, below 0 for
    bad ones.

    terms: as `eye_terms`, of pieces of the picture of one size. Photographs are told within about 3 points.
    """
    mean, peak = terms[:, :, :, 0].mean(0), (terms[:, :, :, 1] ** 4).mean(0) ** 0.25
    total = float((torch.stack((mean, peak), 2) * weights()[0].to(terms.device)).sum())
    bent = sum(c * total ** (n + 1) for n, c in enumerate(SCORE_CUBIC))
    return 100 - 10 * float(max(0.0, bent) ** SCORE_EXPONENT)
