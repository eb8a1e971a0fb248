"""What can be seen of digits without knowing them: blur, the slant of their axis, ink at the border.

Pictures are probabilities of ink, float [N, 1, H, W].
"""

import math

import torch
from torch import Tensor

GREY = (0.1, 0.9)
"""Between these a pixel is neither ink nor none."""
INK = 0.5


def ink(x: Tensor) -> Tensor:
    """How much ink each picture has, in pixels: [N]."""
    return x.flatten(1).sum(1)


def blur(x: Tensor) -> float:
    """Grey pixels over ink, of all pictures together."""
    grey = (x > GREY[0]) & (x < GREY[1])
    return float(grey.double().sum() / x.double().sum().clamp_min(1e-9))


def axis_angle(x: Tensor) -> Tensor:
    """Angle of each picture's principal axis, from its second moments, in radians from -pi/2 to pi/2: [N]."""
    height, width = x.shape[-2:]
    y = torch.arange(height, dtype=torch.float64, device=x.device).view(1, -1, 1)
    at = torch.arange(width, dtype=torch.float64, device=x.device)
    mass = x[:, 0].double()
    total = mass.sum((1, 2), keepdim=True).clamp_min(1e-9)
    dx, dy = (
        at - (mass * at).sum((1, 2), keepdim=True) / total,
        y - (mass * y).sum((1, 2), keepdim=True) / total,
    )
    xx, yy, xy = ((mass * d).sum((1, 2)) for d in (dx * dx, dy * dy, dx * dy))
    return 0.5 * torch.atan2(2 * xy, xx - yy)


def angle_deviation(angles: Tensor) -> float:
    """Standard deviation of axes in degrees, as directions that come back after half a turn: [N]."""
    length = torch.polar(torch.ones_like(angles), 2 * angles).mean().abs().clamp(1e-12, 1)
    return math.degrees(0.5 * math.sqrt(-2 * math.log(float(length))))


def at_border(x: Tensor) -> float:
    """Share of pictures with ink in their outermost pixels."""
    inked = x[:, 0] > INK
    edge = inked[:, [0, -1]].flatten(1).any(1) | inked[:, :, [0, -1]].flatten(1).any(1)
    return float(edge.double().mean())
