"""How well a BFVAE keeps foreground and background apart: swaps, extraction, what each code tells."""

import torch
from torch import Tensor

from vbc.codec.research.parts.measures import psnr
from vbc.codec.research.parts.probes import network_accuracy
from vbc.codec.research.parts.shapes import Scenes, recomposed
from vbc.codec.research.systems.bfvae.model import Bfvae, codes


def rolled(scenes: Scenes) -> Scenes:
    """The same pictures in an order in which each stands where its neighbour stood: partners for swaps."""
    return Scenes(*(part.roll(1, 0) for part in scenes))


def swapped(model: Bfvae, grounds: Scenes, objects: Scenes) -> Tensor:
    """Backgrounds of the first pictures with the foregrounds of the second: uint8, on the CPU."""
    z_f = model.encode_front(objects.foregrounds, objects.masks).mean
    return model.compose(model.encode_back(grounds.images).mean, z_f).cpu()


def true_swap(grounds: Scenes, objects: Scenes) -> Tensor:
    """What `swapped` should give."""
    return recomposed(objects.foregrounds, objects.masks, grounds.backgrounds)


def inside_error(made: Tensor, wanted: Tensor, masks: Tensor) -> float:
    """Root mean squared error inside the masks, in grey values."""
    squares = (made.float() - wanted.float()).square() * masks
    return float((squares.sum() / (masks.sum() * made.shape[1])).sqrt())


def separation(model: Bfvae, scenes: Scenes) -> dict[str, float]:
    """Figures of how the parts recombine, on test pictures.

    reconstruction, swap, extraction: PSNR in dB, against x, the true recomposition, the true background.
    object left: error of the extracted background where the object was, as a share of the object's own
    difference from the background there: 100 where it is still in place.
    """
    others = rolled(scenes)
    ground = model.extract(scenes.images).cpu()
    left = inside_error(ground, scenes.backgrounds, scenes.masks)
    whole = inside_error(scenes.images, scenes.backgrounds, scenes.masks)
    pairs = {
        "reconstruction": (swapped(model, scenes, scenes), scenes.images),
        "swap": (swapped(model, scenes, others), true_swap(scenes, others)),
        "extraction": (ground, scenes.backgrounds),
    }
    return {name: mean_psnr(*pair) for name, pair in pairs.items()} | {"object left": 100 * left / whole}


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures, in dB; pictures that are equal count as 60."""
    return float(psnr(a, b).clamp_max(60.0).mean())


def told(model: Bfvae, train: Scenes, test: Scenes, label: str, seed: int) -> dict[str, float]:
    """Percent of right answers of a two-layer network from each code to a label of the first object.

    label: a field of `Scenes`. Keys: "z_f train", "z_b train", "z_f test", "z_b test".
    """
    figures: dict[str, float] = {}
    for name, encode in codes(model).items():
        x, y = encode(train), encode(test)
        wanted, wanted_test = (getattr(part, label).to(x.device) for part in (train, test))
        shares = network_accuracy(x, wanted, y, wanted_test, seed)
        figures |= {f"{name} train": 100 * shares[0], f"{name} test": 100 * shares[1]}
    return dict(sorted(figures.items(), key=lambda item: item[0][4:], reverse=True))


def group_share(points: Tensor, groups: Tensor) -> float:
    """Share of the variance of points [N, d] that lies between groups, int64 [N] from 0."""
    total = (points - points.mean(0)).square().sum()
    counts = torch.bincount(groups).unsqueeze(1)
    sums = points.new_zeros(len(counts), points.shape[1]).index_add(0, groups, points)
    within = (points - (sums / counts.clamp_min(1))[groups]).square().sum()
    return 1 - float(within) / max(float(total), 1e-12)


def principal_plane(x: Tensor) -> Tensor:
    """Points [N, d] in the plane of their two greatest variances: [N, 2]."""
    centred = (x - x.mean(0)).double()
    directions = torch.linalg.eigh(torch.cov(centred.T))[1][:, -2:]
    plane: Tensor = (centred @ directions.flip(1)).float()
    return plane
