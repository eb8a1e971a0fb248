"""Study `pmi-merge`: areas of a patch merged by what they tell of each other.

Thesis on patch-VAEs, section 3 (a negative result, without network, threshold or figures): pointwise mutual
information pmi(x, y) = log p(x|y) - log p(x); from single pixels upwards, neighbouring areas of large pmi
are merged. A raster PixelCNN cannot give p(x|y) of any two areas; here one small network is trained on
random areas, one of them visible, one to be coded, the rest unknown.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from vbc.codec.research.parts.area_merging import Value, merged
from vbc.codec.research.parts.data_sets import cifar
from vbc.codec.research.parts.fit import fit
from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.local_pixelcnn import LocalPixelCNN, keep_scale
from vbc.codec.research.parts.loop import Loss, Plan
from vbc.codec.research.parts.pictures import save_rows
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.kernels.research.masked_conv import RASTER

SIDE = 8
COMPONENTS = 5
WIDTH = 32
PAIR_PATCHES, MERGED_PATCHES, SHOWN = 256, 32, 12
AREAS = (32, 16, 8)
"""Numbers of areas that are left when the merging is looked at."""
LN2 = math.log(2)
NATS_AT_ONCE = 512
"""Patches in one pass of the network."""
UNITS = {
    "pmi of neighbours": "bits/subpixel",
    "asymmetry": "",
    "Spearman with gradient": "",
}
MERGE_UNITS = {"gradient in merged areas": "", "variance explained": ""}


class AreaDensity(nn.Module):
    """p(area | another area) of 8x8 RGB patches, for areas of any form.

    The area is coded pixel by pixel in raster order; the visible one and the masks of both come in through
    plain convolutions that reach over the whole patch.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 5
        for k in (5, 5, 5, 3):
            layers += [keep_scale(nn.Conv2d(n_in, WIDTH, k, padding=k // 2), k * k * n_in), nn.ReLU()]
            n_in = WIDTH
        self.context = nn.Sequential(*layers, keep_scale(nn.Conv2d(WIDTH, WIDTH, 1), WIDTH))
        self.mixture = ColourMixture(3, COMPONENTS)
        self.pixels = LocalPixelCNN(SIDE, 3, WIDTH, self.mixture.start(), WIDTH, RASTER)

    def nats(self, x: Tensor, area: Tensor, visible: Tensor) -> Tensor:
        """-log p(x in area | x in visible) [N]. x: uint8 [N, 3, 8, 8]; area, visible: bool [N, 8, 8],
        disjoint."""
        known = (x.float() / 127.5 - 1) * visible.unsqueeze(1)
        h = self.context(torch.cat((known, torch.stack((visible, area), 1).float()), 1))
        return self.mixture.nats(self.pixels(x * area.unsqueeze(1), h), x, area)


def random_areas(n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Disjoint areas to be coded and visible, bool [n, 8, 8] each: rectangles, some with holes, a third of
    the visible ones empty. No area to be coded is empty."""

    def rectangles() -> Tensor:
        sides = np.rint(2 ** rng.uniform(0, 3, (2, n))).astype(np.int64)
        first = np.floor(rng.random((2, n)) * (SIDE - sides + 1)).astype(np.int64)
        at = np.arange(SIDE)
        rows, columns = (
            (at >= start[:, None]) & (at < (start + side)[:, None])
            for start, side in zip(first, sides, strict=True)
        )
        return torch.from_numpy(rows[:, :, None] & columns[:, None, :])

    area, visible = rectangles(), rectangles()
    holes = torch.from_numpy(rng.random((2, n, SIDE, SIDE)) < rng.uniform(0.3, 2, (2, n, 1, 1)))
    whole = area.clone()
    area &= holes[0]
    area = torch.where(area.flatten(1).any(1)[:, None, None], area, whole)
    visible &= holes[1] & ~area & torch.from_numpy(rng.random(n) > 1 / 3)[:, None, None]
    return area, visible


def batches_of(images: Tensor, size: int, seed: int) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Patches and two areas of each."""
    n, _, h, w = images.shape

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((seed, step))
        at = [torch.from_numpy(rng.integers(m, size=(size, 1, 1))) for m in (n, h - SIDE + 1, w - SIDE + 1)]
        offsets = torch.arange(SIDE)
        x = images[at[0], :, at[1] + offsets[:, None], at[2] + offsets].permute(0, 3, 1, 2).contiguous()
        return x, *random_areas(size, rng)

    return batch


def loss_of(model: AreaDensity, plan: Plan) -> Loss:
    """Nats of a value, over all values that are coded."""

    def loss(batch: tuple[Tensor, Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        return model.nats(*batch).sum() / (3 * batch[1].sum()), {}

    return loss


@torch.no_grad()
def nats_of(model: AreaDensity, x: Tensor, area: Tensor, visible: Tensor) -> Tensor:
    """As `AreaDensity.nats`, in parts: float64 [N]."""
    parts = (torch.split(t, NATS_AT_ONCE) for t in (x, area, visible))
    return torch.cat([model.nats(*part) for part in zip(*parts, strict=True)]).double()


def pmi(model: AreaDensity, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """log p(a|b) - log p(a) and log p(b|a) - log p(b), nats, [N] each; equal for true densities."""
    none = torch.zeros_like(a)
    ab = nats_of(model, x, a, none) - nats_of(model, x, a, b)
    return ab, nats_of(model, x, b, none) - nats_of(model, x, b, a)


def squares() -> list[tuple[Tensor, Tensor]]:
    """All pairs of adjacent 2x2 areas on a grid: masks, bool [8, 8]."""

    def mask(i: int, j: int) -> Tensor:
        area = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        area[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = True
        return area

    half = SIDE // 2
    beside = [(mask(i, j), mask(i, j + 1)) for i in range(half) for j in range(half - 1)]
    return beside + [(mask(i, j), mask(i + 1, j)) for i in range(half - 1) for j in range(half)]


def gradient(x: Tensor) -> Tensor:
    """Energy of each pixel's differences to its neighbours to the right and below, mean of colours: [N, 8,
    8]."""
    v = x.double()
    down = torch.diff(v, dim=2, append=v[:, :, -1:]).square()
    return (down + torch.diff(v, dim=3, append=v[..., -1:]).square()).mean(1)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two lists; equal values take ranks in the order they stand in."""
    ranks = torch.stack([t.argsort(stable=True).argsort().double() for t in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def by_pmi(model: AreaDensity) -> Value:
    """pmi, the mean of both directions, per subpixel of the smaller area."""

    def value(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        smaller = torch.minimum(a.flatten(1).sum(1), b.flatten(1).sum(1))
        return sum(pmi(model, x, a, b), torch.zeros(len(x), device=x.device)) / (6 * smaller)

    return value


def by_chance(seed: int) -> Value:
    """Random values, smaller for larger areas as pmi per subpixel tends to be: the control."""
    rng = np.random.default_rng(seed)

    def value(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.from_numpy(rng.random(len(x))) / (a.flatten(1).sum(1) + b.flatten(1).sum(1)).cpu()

    return value


def gradient_of_merged(x: Tensor, labels: Tensor) -> float:
    """Gradient energy in areas of more than one pixel over that of all pixels; above 1 where edges merge
    first."""
    energy = gradient(x).cpu()
    sizes = torch.stack([torch.bincount(one.flatten(), minlength=SIDE * SIDE)[one] for one in labels])
    return float(energy[sizes > 1].mean() / energy.mean())


def variance_explained(x: Tensor, labels: Tensor) -> float:
    """The share of the patches' variance that is between their areas: high where borders of areas are
    edges."""
    v = x.cpu().double().flatten(2)
    one = torch.nn.functional.one_hot(labels.flatten(1), SIDE * SIDE).double()
    means = (v @ one) / one.sum(1).clamp_min(1).unsqueeze(1)
    filled = means @ one.transpose(1, 2)
    spread = (v - v.mean(2, keepdim=True)).square().sum()
    return float(1 - (v - filled).square().sum() / spread)


def coloured(labels: Tensor) -> Tensor:
    """Areas in random colours: uint8 [N, 3, 8, 8]."""
    colours = np.random.default_rng(1).integers(40, 256, (SIDE * SIDE, 3), dtype=np.uint8)
    return torch.from_numpy(colours)[labels].permute(0, 3, 1, 2)


def run(setting: Setting) -> Result:
    """Train the density, value pairs of 2x2 areas, merge areas by pmi and by chance."""
    split = cifar(setting.data)
    images = torch.cat((split.train, split.valid))
    plan = Plan(20_000, 64, rate=3e-3, rate_end=1e-5, warmup=20, seed=setting.seed, clip=1.0, log_every=100)
    batches = batches_of(images, plan.batch, setting.seed)
    model = fit(AreaDensity, loss_of, batches, plan, setting.budget_s, setting, "areas")
    x = batches_of(split.test, PAIR_PATCHES, 0)(0)[0].to(setting.device)
    pairs = pair_figures(model, x)
    x = x[:MERGED_PATCHES]
    ways = {"pmi": merged(x, by_pmi(model), AREAS), "chance": merged(x, by_chance(setting.seed), AREAS)}
    rows = [
        Row(
            f"{left} areas, merged by {way}",
            {
                "gradient in merged areas": gradient_of_merged(x, labels[left]),
                "variance explained": variance_explained(x, labels[left]),
            },
        )
        for way, labels in ways.items()
        for left in AREAS
    ]
    rows_shown = {"patches": x[:SHOWN]} | {
        f"{left} areas by {way}": coloured(labels[left][:SHOWN])
        for way, labels in ways.items()
        for left in AREAS
    }
    tables = [
        Table("pmi of adjacent 2x2 areas, 8x8 patches of CIFAR", UNITS, [Row("AreaDensity", pairs)]),
        Table("Areas merged by pmi and by chance", MERGE_UNITS, rows),
    ]
    pictures = save_rows(setting.out / "areas.png", rows_shown)
    return Result(tables, effects_of(pairs, {row.model: row.figures for row in rows}), notes(), pictures)


def pair_figures(model: AreaDensity, x: Tensor) -> dict[str, float]:
    """Over all pairs of adjacent 2x2 areas of patches: mean pmi, its asymmetry, its rank correlation."""
    values, energies = [], []
    energy = gradient(x)
    for a, b in squares():
        masks = (mask.to(x.device).expand(len(x), -1, -1) for mask in (a, b))
        values.append(torch.stack(pmi(model, x, *masks), 1).cpu())
        energies.append(energy[:, a | b].mean(1).cpu())
    both, gradients = torch.cat(values), torch.cat(energies)
    mean = both.mean(1)
    figures = (
        float(mean.mean()) / (12 * LN2),
        float((both[:, 0] - both[:, 1]).abs().mean() / mean.abs().mean()),
        spearman(mean, gradients),
    )
    return dict(zip(UNITS, figures, strict=True))


def effects_of(pairs: dict[str, float], merging: dict[str, dict[str, float]]) -> list[Effect]:
    """Claims of section 3. pairs: of `pair_figures`. merging: figures by name of row."""
    rank = pairs["Spearman with gradient"]
    found = {way: merging[f"{AREAS[0]} areas, merged by {way}"] for way in ("pmi", "chance")}
    few = {way: merging[f"{AREAS[-1]} areas, merged by {way}"]["variance explained"] for way in found}
    ratio = {way: found[way]["gradient in merged areas"] for way in found}
    return [
        Effect(
            "Edges share more information than patches of one texture: pmi rises with gradient energy.",
            rank > 0,
            f"Rank correlation {rank:.2f} over pairs of adjacent 2x2 areas.",
        ),
        Effect(
            "Edges merge first, textures do not.",
            ratio["pmi"] > max(1.0, ratio["chance"]),
            f"With {AREAS[0]} areas left, merged ones have {ratio['pmi']:.2f} times the patch's gradient "
            f"energy, {ratio['chance']:.2f} times where merged by chance.",
        ),
        Effect(
            "Final areas follow edges.",
            few["pmi"] > few["chance"],
            f"{AREAS[-1]} areas explain {100 * few['pmi']:.0f} % of the variance, "
            f"{100 * few['chance']:.0f} % where merged by chance.",
        ),
        Effect(
            "Parts of an eye share little, so merging pairs misses eyes.",
            None,
            "Patches of 8x8 pixels of CIFAR hold no eyes that a measure could be made for.",
        ),
    ]


def notes() -> list[str]:
    return [
        "Pairs are merged by pmi per subpixel of the smaller area, the mean of both directions.",
        "Asymmetry: mean |pmi(x,y) - pmi(y,x)| over mean |pmi|; 0 for true densities.",
        f"{PAIR_PATCHES} test patches for pairs, {MERGED_PATCHES} for merging.",
        "Within an area the density reaches four rows up, so log p of large areas is somewhat low.",
    ]


STUDY = Study(
    about="areas of a patch merged by pointwise mutual information",
    source="patch-VAE thesis, section 3, figure 1",
    budget="15m",
    run=run,
)
