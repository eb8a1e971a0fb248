"""Measures of decoders and renderers: error, spread, sharpness, classes, own Frechet distance, variety."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vbc.codec.research.parts.frechet import own_distance, train_features
from vbc.codec.research.parts.gaussians import Gaussian
from vbc.codec.research.parts.measures import nearest_distance, sharpness
from vbc.codec.research.parts.picture_vae import CHUNK, PictureVae, codes_of, drawn, pictures_of
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.lsr_gan.models import Pictures

N_MEASURED = 1000
"""Test pictures, or as many as there are, and pictures made from random codes."""
N_SPREAD, DRAWS = 64, 8
"""Pictures whose codes are drawn several times, and how often."""
CELL = 0.5
"""Step of the grid that codes are rounded to where a picture has to return its code's symbols."""
CLUSTERS, ROUNDS = 10, 20
FEATURE_STEPS, FEATURE_SHARE = 4000, 1.5
"""Steps of the classifier at most; steps for each second of the budget."""


class Bench:
    """Test pictures and the classifier that judges pictures made of them.

    Where classes are not known, those of k-means on the features of a network that tells turns and damage
    stand for them: then there is relative accuracy alone.
    """

    def __init__(self, data: Pictures, setting: Setting):
        steps = max(1, min(FEATURE_STEPS, int(FEATURE_SHARE * setting.budget_s)))
        self.net = train_features(data.train, setting, labels=data.train_labels, steps=steps)
        self.test = data.test[:N_MEASURED].to(setting.device)
        self.labels = None if data.test_labels is None else data.test_labels[:N_MEASURED].to(setting.device)
        self.centres = None if self.labels is not None else _k_means(self._features(data.train), setting.seed)
        self.seed = setting.seed
        self.classes = self.classify(self.test)

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        device = next(self.net.parameters()).device
        return torch.cat([self.net.features(part.to(device)) for part in torch.split(x, CHUNK)])

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Class of each picture, int64 [N]."""
        features = self._features(x)
        if self.centres is not None:
            return torch.cdist(features, self.centres).argmin(1)
        logits: Tensor = self.net.head(features)
        return logits.argmax(1)

    def of_test(self) -> dict[str, float]:
        """Of the test pictures themselves."""
        figures = {"sharpness": float(sharpness(self.test).mean()), "variety": nearest_distance(self.test)}
        return figures | ({} if self.labels is None else {"absolute": self._right(self.classes, self.labels)})

    @torch.no_grad()
    def measure(self, vae: PictureVae, made: nn.Module) -> dict[str, float]:
        """Figures of a network from this VAE's codes to pictures, its own decoder or a renderer.

        MSE: squared error of pictures 0..1, summed over values, z from q(z|x). spread: variance over z of
        one picture, summed alike. Accuracies and share of symbols in percent, sharpness and variety as in
        `measures`, Frechet distances with codes of test pictures and with random ones.
        """
        torch.manual_seed(self.seed)
        q = codes_of(vae.encoder, self.test)
        z = drawn(q)
        shown, invented = pictures_of(made, z), pictures_of(made, torch.randn_like(z))
        classes = self.classify(shown)
        figures = {
            "MSE": summed_error(self.test, shown),
            "spread": spread(made, Gaussian(*(part[:N_SPREAD] for part in q))),
            "relative": self._right(classes, self.classes),
            "sharpness": float(sharpness(shown).mean()),
            "Frechet, test z": own_distance(self.net, self.test, shown),
            "Frechet, random z": own_distance(self.net, self.test, invented),
            "variety": nearest_distance(invented),
            "same symbol": same_symbols(vae, made, q.mean),
        }
        return figures | ({} if self.labels is None else {"absolute": self._right(classes, self.labels)})

    @staticmethod
    def _right(classes: Tensor, wanted: Tensor) -> float:
        return 100 * float((classes == wanted).double().mean())


def summed_error(a: Tensor, b: Tensor) -> float:
    """Squared error of pictures as 0..1, summed over their values, mean over pictures; both uint8."""
    return float(((a.float() - b.float()) / 255).square().flatten(1).sum(1).mean())


@torch.no_grad()
def spread(made: Callable[[Tensor], Tensor], q: Gaussian) -> float:
    """Variance of the pictures made from several codes of one posterior, in the unit of `summed_error`."""
    pictures = torch.stack([made(drawn(q)) / 2 for _ in range(DRAWS)])
    return float(pictures.var(0).flatten(1).sum(1).mean())


@torch.no_grad()
def same_symbols(vae: PictureVae, made: Callable[[Tensor], Tensor], mean: Tensor) -> float:
    """Percent of the latents, rounded to a grid of `CELL`, that encoding the picture made of them returns."""
    symbols = (mean / CELL).round()
    again = (codes_of(vae.encoder, pictures_of(made, symbols * CELL)).mean / CELL).round()
    return 100 * float((symbols == again).double().mean())


def _k_means(features: Tensor, seed: int) -> Tensor:
    """Centres of clusters: float [10, F]."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(features), generator=generator)[:CLUSTERS]
    centres = features[first.to(features.device)]
    for _ in range(ROUNDS):
        nearest = torch.cdist(features, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centres)).unsqueeze(1)
        sums = torch.zeros_like(centres).index_add(0, nearest, features)
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return centres
