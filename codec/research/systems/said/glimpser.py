"""The glimpser without VAE (thesis, section 6.2.2): a box through 8x8 pixels is pasted over the canvas, and
the squared error is all that counts. Without this bottleneck one box over everything would win."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Loss, Plan, Valued, random_batch
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.said.boxes import Boxes, random_boxes
from vbc.codec.research.systems.said.model import GlimpseNet, enlarged, pasted, seen, shrunk

DEVIATION = 0.1
"""Of the four numbers of a box around what the network says, in training: z_where is Normal."""
BATCH, RATE, RATE_END, MOST_STEPS = 32, 1e-3, 1e-5, 100_000

Chooser = Callable[[Tensor, Tensor], Boxes]
"""From pictures and canvases to boxes."""


class Glimpser(nn.Module):
    """A glimpse network that sees where the canvas is wrong."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = GlimpseNet(channels)

    def where(self, x: Tensor, canvas: Tensor) -> Tensor:
        """Means of z_where: [N, 4]."""
        where: Tensor = self.net((x - canvas).abs())
        return where

    def look(self, x: Tensor, canvas: Tensor) -> Boxes:
        """Boxes at the means."""
        return Boxes.of(self.where(x, canvas))


def through(x: Tensor, canvas: Tensor, boxes: Boxes) -> Tensor:
    """Canvases with what 8x8 pixels keep of the pictures in boxes."""
    patch = seen(x, boxes)
    return pasted(canvas, boxes, patch, torch.ones_like(patch[:, :1]))[0]


def losses(model: Glimpser, x: Tensor, n_glimpses: int) -> Iterator[Valued]:
    """Squared error of each canvas in turn, summed over a picture; each starts on a constant one."""
    canvas = enlarged(shrunk(x), x.shape[-1])
    for _ in range(n_glimpses):
        where = model.where(x, canvas)
        after = through(x, canvas, Boxes.of(where + DEVIATION * torch.randn_like(where)))
        yield (x - after).square().flatten(1).sum(1).mean(), {}
        canvas = after.detach()


def trained(images: Tensor, n_glimpses: int, seconds: float, setting: Setting, name: str) -> Glimpser:
    """A glimpser trained for some seconds on images uint8 [N, C, 64, 64]."""
    plan = Plan(MOST_STEPS, BATCH, RATE, RATE_END, warmup=50, seed=setting.seed, log_every=100)

    def loss_of(model: Glimpser, plan: Plan) -> Loss:
        return lambda x, step: losses(model, x.float() / 255, n_glimpses)

    batches = random_batch(images, BATCH, setting.seed)
    return fit(lambda: Glimpser(images.shape[1]), loss_of, batches, plan, seconds, setting, name)


@torch.no_grad()
def followed(x: Tensor, n_glimpses: int, choose: Chooser) -> tuple[Tensor, Tensor, Tensor]:
    """Mean squared errors in squared grey values, [N, K + 1], boxes in pixels, [N, K, 4], and canvases,
    [K + 1, N, C, 64, 64], of pictures float [N, C, 64, 64]."""
    side = x.shape[-1]
    canvases, edges = [enlarged(shrunk(x), side)], []
    for _ in range(n_glimpses):
        boxes = choose(x, canvases[-1])
        canvases.append(through(x, canvases[-1], boxes))
        edges.append(boxes.edges(side))
    errors = [255**2 * (x - canvas).square().flatten(1).mean(1) for canvas in canvases]
    return torch.stack(errors, 1).cpu(), torch.stack(edges, 1).cpu(), torch.stack(canvases).cpu()


def best_of(tries: int, seed: int) -> Chooser:
    """For each picture that of so many random boxes which leaves the least error; 1: a random box."""
    generator = torch.Generator().manual_seed(seed)

    def choose(x: Tensor, canvas: Tensor) -> Boxes:
        drawn = [
            Boxes(*(part.to(x.device) for part in random_boxes(len(x), generator))) for _ in range(tries)
        ]
        if tries == 1:
            return drawn[0]
        left = [(x - through(x, canvas, boxes)).square().flatten(1).sum(1) for boxes in drawn]
        best, every = torch.stack(left).argmin(0), torch.arange(len(x), device=x.device)
        return Boxes(*(torch.stack(parts)[best, every] for parts in zip(*drawn, strict=True)))

    return choose
