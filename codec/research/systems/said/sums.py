"""The sum task (thesis, table 6.2): do the latents of five glimpses say what five digits add up to?

A network gives each glimpse a number, and the numbers are added. Boxes are those of the glimpse network, or
the true ones; the VAE's encoder is as it was trained, or is trained on with the network.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.loop import Loss, Plan, batch_indices
from vbc.codec.research.parts.scenes import MOST_DIGITS, SIDE, Scenes
from vbc.codec.research.run import Row, Setting
from vbc.codec.research.systems.said.bits import Ideal, follow
from vbc.codec.research.systems.said.boxes import Boxes
from vbc.codec.research.systems.said.model import LATENTS, PatchVae, Said, seen

HIDDEN = 128
BATCH, RATE, RATE_END, MOST_EPOCHS = 64, 1e-3, 1e-5, 100
COLUMNS = ("fixed train", "fixed test", "tuned train", "tuned test")
UNITS = dict.fromkeys((*COLUMNS, "guess"), "%")
"""guess: share of test scenes whose sum is the mean of all, rounded."""
THESIS = {
    "true boxes": (30.3, 29.2, 97.5, 92.3),
    "SPAIR (50 latents)": (25.8, 24.0, 24.6, 22.0),
    "SPACE": (15.1, 14.4, 42.3, 30.1),
    "SAID": (22.3, 21.3, 57.8, 31.9),
}


class Adder(nn.Module):
    """From what glimpses show to the sum: encoder means, three dense layers to a number, added up. start: the
    number that is said of every glimpse at first."""

    def __init__(self, vae: PatchVae, tuned: bool, start: float) -> None:
        super().__init__()
        self.vae = PatchVae(vae.channels)
        self.vae.load_state_dict(vae.state_dict())
        self.vae.requires_grad_(False)
        self.vae.encoder.requires_grad_(tuned)
        last = nn.Linear(HIDDEN, 1)
        nn.init.constant_(last.bias, start)
        self.number = nn.Sequential(
            nn.Linear(LATENTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last
        )

    def forward(self, patches: Tensor) -> Tensor:
        """patches: float [N, 5, C, 8, 8]. Returns [N]."""
        means = self.vae.encode(patches.flatten(0, 1)).mean
        numbers: Tensor = self.number(means)
        return numbers.view(patches.shape[:2]).sum(1)


def glimpsed(model: Said, scenes: Scenes, seed: int) -> Tensor:
    """What the first five boxes of the glimpse network show: float [N, 5, C, 8, 8]."""
    course, _ = follow(model, scenes.images, MOST_DIGITS, Ideal(seed))
    return shown(scenes, course.edges)


def shown(scenes: Scenes, edges: Tensor) -> Tensor:
    """What boxes in pixels, [N, K, 4], show: float [N, K, C, 8, 8]."""
    x = scenes.images.float() / 255
    return torch.stack([seen(x, Boxes.between(box, SIDE)) for box in edges.unbind(1)], 1)


def sums(scenes: Scenes) -> Tensor:
    """What the digits add up to: float [N]."""
    return scenes.kinds.clamp_min(0).sum(1).float()


@torch.no_grad()
def share_right(adder: Adder, patches: Tensor, wanted: Tensor, device: str) -> float:
    """Share of sums that are right when rounded, in percent."""
    adder.eval()
    found = torch.cat([adder(part.to(device)).cpu() for part in torch.split(patches, 500)])
    return 100 * float((found.round() == wanted).double().mean())


def row(
    name: str,
    vae: PatchVae,
    boxed: Callable[[Scenes], Tensor],
    train: Scenes,
    test: Scenes,
    seconds: float,
    setting: Setting,
) -> Row:
    """A line of table 6.2. boxed: what the boxes of scenes show. seconds: of training, for both encoders."""
    parts = {name: (boxed(scenes), sums(scenes)) for name, scenes in (("train", train), ("test", test))}
    patches, wanted = parts["train"]
    mean, spread = wanted.mean().item(), wanted.std().item()
    figures = {}
    for kind in ("fixed", "tuned"):

        def make(kind: str = kind) -> Adder:
            return Adder(vae, kind == "tuned", mean / MOST_DIGITS)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            index = torch.from_numpy(batch_indices(len(patches), BATCH, setting.seed, step))
            return patches[index], wanted[index]

        def loss_of(adder: Adder, plan: Plan) -> Loss:
            def loss(drawn: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
                return F.mse_loss(adder(drawn[0]) / spread, drawn[1] / spread), {}

            return loss

        plan = Plan(
            MOST_EPOCHS * len(patches) // BATCH, BATCH, RATE, RATE_END, seed=setting.seed, log_every=500
        )
        adder = fit(make, loss_of, batch, plan, seconds / 2, setting, f"sums {name} {kind}")
        for part, (x, y) in parts.items():
            figures[f"{kind} {part}"] = share_right(adder, x, y, setting.device)
    thesis = dict(zip(COLUMNS, THESIS[name], strict=True)) if name in THESIS else {}
    figures["guess"] = 100 * float((parts["test"][1] == round(mean)).double().mean())
    return Row(name, figures, thesis)
