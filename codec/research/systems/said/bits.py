"""What glimpses cost and what they gain in bits, where to stop, and the same in bits that a file would have.

The error of a canvas is coded as Gaussian noise of one empirical variance per picture, at a precision of one
grey value: D_t = N/2 log2(2 pi e (SSE_t / N + 1/12)). A glimpse gains what D falls by.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.systems.said.boxes import Boxes, box_bits, grid_boxes, random_boxes
from vbc.codec.research.systems.said.model import Canvas, Said, error_variance, latent_nats, seen

LN2 = math.log(2)
BATCH = 100
"""Pictures that are followed at a time."""
SCALE_BITS = 8.0
"""Real bits: of the error's deviation, in eighths of an octave."""
CONTINUE_BITS = 1.0
"""Real bits: for each glimpse, that there is one; the last bit of a picture says that there is none."""

Chooser = Callable[[Tensor, Canvas, int], Boxes]
"""From pictures, canvases and the number of the glimpse to its boxes."""


class Course(NamedTuple):
    """Bits of N pictures over K glimpses.

    base: of the first canvas, [N]. residual: D_0 to D_K, [N, K + 1]. latents, position: of each glimpse,
    [N, K]. square: summed squared error of 0..1 over three channels (a grey picture's counts three times),
    [N, K + 1]. edges: of the boxes in pixels, [N, K, 4].
    """

    base: Tensor
    residual: Tensor
    latents: Tensor
    position: Tensor
    square: Tensor
    edges: Tensor

    @property
    def gains(self) -> Tensor:
        """By how much each glimpse lowers D: [N, K]."""
        return self.residual[:, :-1] - self.residual[:, 1:]

    @property
    def totals(self) -> Tensor:
        """Bits of all together after 0 to K glimpses, positions paid for: [N, K + 1]."""
        spent = torch.cumsum(self.latents + self.position, 1)
        return self.base[:, None] + self.residual + torch.cat((torch.zeros_like(spent[:, :1]), spent), 1)


class Coding(Protocol):
    """How boxes and latents get into bits."""

    def place(self, boxes: Boxes, side: int) -> tuple[Boxes, Tensor]:
        """The boxes that a decoder knows, and bits of each, [N]."""

    def send(self, code: Gaussian) -> tuple[Tensor, Tensor]:
        """The latents that a decoder knows, [N, 10], and bits of each picture's, [N]."""

    def residual(self, x: Tensor, values: Tensor) -> Tensor:
        """Bits of what canvases miss of pictures, both 0..1: [N]."""


class Ideal:
    """The thesis' bits: a draw from q(z | x) for KL(q || p), which bits-back coding comes to, L_pos for the
    box, and D_t."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def place(self, boxes: Boxes, side: int) -> tuple[Boxes, Tensor]:
        """The boxes as they are."""
        return boxes, boxes.position_nats() / LN2

    def send(self, code: Gaussian) -> tuple[Tensor, Tensor]:
        """A draw."""
        return code.sample(self.generator), latent_nats(code) / LN2

    def residual(self, x: Tensor, values: Tensor) -> Tensor:
        """D_t."""
        variance = 255.0**2 * error_variance(x, values)
        return 0.5 * x[0].numel() * torch.log2(2 * math.pi * math.e * variance)


class Real:
    """Bits that need no bits-back: means on a grid of N(0, 1), edges of boxes at whole pixels, the error as
    whole grey values of a Gaussian whose deviation is sent. step: of the grid."""

    def __init__(self, step: float) -> None:
        self.step = step

    def place(self, boxes: Boxes, side: int) -> tuple[Boxes, Tensor]:
        """Edges at whole pixels, each box as likely as any other."""
        n = len(boxes.centre)
        return boxes.rounded(side), torch.full(
            (n,), box_bits(side) + CONTINUE_BITS, device=boxes.centre.device
        )

    def send(self, code: Gaussian) -> tuple[Tensor, Tensor]:
        """The grid point next to the mean."""
        z = (code.mean / self.step).round() * self.step
        return z, -torch.log2(_mass(z, self.step / 2)).sum(1).float()

    def residual(self, x: Tensor, values: Tensor) -> Tensor:
        """-log2 of the Gaussian's mass on each grey value, the first and the last reaching to infinity."""
        deviation = (255.0**2 * error_variance(x, values)).sqrt()
        deviation = torch.exp2((8 * torch.log2(deviation)).round() / 8).view(-1, 1, 1, 1).double()
        true, mean = (255 * x).round().double(), 255 * values.double()
        low = torch.where(true == 0, -math.inf, (true - 0.5 - mean) / deviation)
        high = torch.where(true == 255, math.inf, (true + 0.5 - mean) / deviation)
        # from the nearer side, where the difference of two small numbers is exact
        flip = low + high > 0
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        far = -torch.special.log_ndtr(high) / LN2  # about right where the mass itself underflows
        bits = torch.where(mass > 1e-280, -torch.log2(mass.clamp_min(1e-300)), far)
        return (bits.flatten(1).sum(1) + SCALE_BITS + CONTINUE_BITS).float()


@torch.no_grad()
def follow(
    model: Said, images: Tensor, n_glimpses: int, coding: Coding, choose: Chooser | None = None
) -> tuple[Course, Tensor]:
    """Bits of pictures over so many glimpses, and the canvases of the first batch, [K + 1, N, C, 64, 64].

    images: uint8 [N, C, 64, 64]. choose: the glimpse network where there is none.
    """
    device = next(model.parameters()).device
    parts, shown = [], None
    for part in torch.split(images, BATCH):
        course, canvases = _follow(model, part.to(device).float() / 255, n_glimpses, coding, choose)
        parts.append(course)
        shown = canvases if shown is None else shown
    assert shown is not None
    return Course(*(torch.cat(values).cpu() for values in zip(*parts, strict=True))), shown.cpu()


def _follow(
    model: Said, x: Tensor, n_glimpses: int, coding: Coding, choose: Chooser | None
) -> tuple[Course, Tensor]:
    side = x.shape[-1]
    canvas, base = model.start(x)
    canvases, latents, position, edges = [canvas.values], [], [], []
    for t in range(n_glimpses):
        wanted = model.look(x, canvas) if choose is None else choose(x, canvas, t)
        boxes, place_bits = coding.place(wanted, side)
        z, latent_bits = coding.send(model.vae.encode(seen(x, boxes)))
        canvas = model.put(canvas, boxes, model.vae.decode(z))
        canvases.append(canvas.values)
        latents.append(latent_bits)
        position.append(place_bits)
        edges.append(boxes.edges(side))
    residual = torch.stack([coding.residual(x, values) for values in canvases], 1)
    square = torch.stack([(x - values).square().flatten(1).sum(1) for values in canvases], 1)
    square = square * (3 / x.shape[1])
    course = Course(
        base, residual, torch.stack(latents, 1), torch.stack(position, 1), square, torch.stack(edges, 1)
    )
    return course, torch.stack(canvases)


def stops(gains: Tensor, costs: Tensor) -> Tensor:
    """How many glimpses are used: all before the first one that costs more than it gains. Both [N, K]."""
    return (costs <= gains).long().cumprod(1).sum(1)


def honest_stops(course: Course) -> Tensor:
    """Where description length says to stop, positions paid for: int64 [N]."""
    return stops(course.gains, course.latents + course.position)


def at_stop(values: Tensor, stop: Tensor) -> Tensor:
    """Of values after 0 to K glimpses [N, K + 1] those at the stop: [N]."""
    return values.gather(1, stop[:, None]).squeeze(1)


def split_bits(course: Course, stop: Tensor) -> dict[str, float]:
    """Mean bits of a picture at its stop: base, boxes, latents, residual and their sum."""
    used = torch.arange(course.latents.shape[1]) < stop[:, None]
    parts = {
        "base": course.base,
        "boxes": (course.position * used).sum(1),
        "latents": (course.latents * used).sum(1),
        "residual": at_stop(course.residual, stop),
    }
    means = {name: float(bits.double().mean()) for name, bits in parts.items()}
    return {**means, "total": sum(means.values())}


def at_random(seed: int) -> Chooser:
    """Random boxes."""
    generator = torch.Generator().manual_seed(seed)

    def choose(x: Tensor, canvas: Canvas, t: int) -> Boxes:
        boxes = random_boxes(len(x), generator)
        return Boxes(boxes.centre.to(x.device), boxes.width.to(x.device))

    return choose


def on_grid(columns: int) -> Chooser:
    """Squares that cover the picture, row by row."""

    def choose(x: Tensor, canvas: Canvas, t: int) -> Boxes:
        boxes = grid_boxes(len(x), columns)[t]
        return Boxes(boxes.centre.to(x.device), boxes.width.to(x.device))

    return choose


def greedy(model: Said, tries: int, seed: int) -> Chooser:
    """For each picture that of `tries` random boxes which lowers the total most, latents at their means."""
    draw = at_random(seed)

    def choose(x: Tensor, canvas: Canvas, t: int) -> Boxes:
        best = torch.full((len(x),), math.inf, device=x.device)
        chosen = draw(x, canvas, t)
        for _ in range(tries):
            boxes = draw(x, canvas, t)
            code = model.vae.encode(seen(x, boxes))
            after = model.put(canvas, boxes, model.vae.decode(code.mean))
            nats = 0.5 * x[0].numel() * error_variance(x, after.values).log()
            nats = nats + latent_nats(code) + boxes.position_nats()
            better = nats < best
            best = torch.where(better, nats, best)
            chosen = Boxes(*(torch.where(better[:, None], a, b) for a, b in zip(boxes, chosen, strict=True)))
        return chosen

    return choose


def _mass(z: Tensor, half: float) -> Tensor:
    """What N(0, 1) puts within `half` of z, from the side where it is exact."""
    far = z.double().abs()
    mass: Tensor = torch.special.ndtr(half - far) - torch.special.ndtr(-half - far)
    return mass
