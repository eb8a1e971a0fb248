"""Study `patch-maps`: where in a face the patches with codes like a query's are.

Thesis on patch-VAEs, section 7.2, figures 6 and 7: d(u, v) = ||mu_u - mu_v|| between the codes at all
positions; the queries are the right eye and hair. The thesis shows maps and gives no numbers. Here toy faces
tell where the other eye is, so that its rank among all positions can be measured.
"""

import math
import time

import torch
from torch import Tensor

from vbc.codec.research.parts.pictures import heat, save_rows
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.patch_vae.faces import code_maps, face_models, faces, steps_said
from vbc.codec.research.systems.patch_vae.model import THESIS

MEASURED, SHOWN = 200, 6
HAIR = (32.0, 12.0)
"""A place in the hair of every toy face, x and y in pixels."""
UNITS = {"other eye": "percentile", "standard error": "points", "nearer positions": "", "a map": "ms"}


def position_of(point: Tensor, patch: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Row and column, int64 [N], of the patches whose centres are nearest to points, x and y in pixels [N,
    2]."""
    at = (point - patch / 2).round().long()
    return at[:, 1].clamp(0, rows - 1), at[:, 0].clamp(0, columns - 1)


def distances(codes: Tensor, query: tuple[Tensor, Tensor]) -> Tensor:
    """||mu - mu_query|| at every position: float32 [N, H, W] of codes [N, k, H, W]; query: rows and columns
    [N]."""
    n = torch.arange(len(codes))
    asked = codes[n, :, query[0], query[1]].float()
    return (codes.float() - asked[:, :, None, None]).square().sum(1).sqrt()


def percentile(
    distance: Tensor, query: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], radius: int
) -> Tensor:
    """Share of positions that are farther than the wanted one, in percent [N]; 50 by chance, 100 where it is
    nearest.

    distance: [N, H, W]. Positions within `radius` rows and columns of the query do not count.
    """
    n, rows, columns = distance.shape
    away = torch.maximum(
        (torch.arange(rows).view(1, -1, 1) - query[0].view(-1, 1, 1)).abs(),
        (torch.arange(columns).view(1, 1, -1) - query[1].view(-1, 1, 1)).abs(),
    )
    counts = away > radius
    here = distance[torch.arange(n), wanted[0], wanted[1]].view(-1, 1, 1)
    # ties, as with a constant code, count half
    farther = (distance > here).double() + 0.5 * (distance == here).double()
    counts[torch.arange(n), wanted[0], wanted[1]] = False
    return 100 * (farther * counts).sum((1, 2)) / counts.sum((1, 2))


def run(setting: Setting) -> Result:
    """Train the models on toy faces, rank the left eye by its likeness to the right one, draw maps."""
    train, test = faces()
    models = face_models(setting, train.images, setting.budget_s / len(THESIS))
    images, eyes = test.images[:MEASURED], test.eyes[:MEASURED]
    hair = torch.tensor(HAIR).expand(SHOWN, 2)
    rows, by_eye, by_hair = [], {}, {}
    for name, model in models.items():
        started = time.perf_counter()
        codes = code_maps(model, images).cpu()
        queries = position_of(eyes[:, 1], model.form.patch, *codes.shape[-2:])
        distance = distances(codes, queries)
        ms = 1e3 * (time.perf_counter() - started) / len(images)
        wanted = position_of(eyes[:, 0], model.form.patch, *codes.shape[-2:])
        ranks = percentile(distance, queries, wanted, model.form.patch // 2)
        error = float(ranks.std()) / len(ranks) ** 0.5
        nearer = (1 - float(ranks.mean()) / 100) * distance[0].numel()
        rows.append(Row(name, dict(zip(UNITS, (float(ranks.mean()), error, nearer, ms), strict=True))))
        by_eye[name] = heat(-distance[:SHOWN])
        hair_at = position_of(hair, model.form.patch, *codes.shape[-2:])
        by_hair[name] = heat(-distances(codes[:SHOWN], hair_at))
    shown = {"faces": images[:SHOWN]}
    pictures = save_rows(setting.out / "like-the-right-eye.png", shown | by_eye)
    pictures += save_rows(setting.out / "like-hair.png", shown | by_hair)
    table = Table("The other eye among all positions, toy faces", UNITS, rows)
    return Result(
        [table],
        effects_of({row.model: row.figures for row in rows}),
        [*notes(), steps_said(setting)],
        pictures,
    )


def effects_of(figures: dict[str, dict[str, float]]) -> list[Effect]:
    """Claims of section 7.2, from figures by model. Better: by more than two standard errors."""
    said = ", ".join(
        f"{name}: {row['other eye']:.2f} +- {row['standard error']:.2f}" for name, row in figures.items()
    )

    def better(a: str, b: str) -> bool:
        one, other = figures[a], figures[b]
        error = math.hypot(one["standard error"], other["standard error"])
        return one["other eye"] - other["other eye"] > 2 * error

    return [
        Effect(
            "The codes of 9|1 mark both eyes: better than those of 3|1, 9|3 and 15|5.",
            all(better("9|1", name) for name in ("3|1", "9|3", "15|5")),
            f"Percentile of the other eye: {said}.",
        ),
        Effect(
            "15|3 marks eyes in part: less than 9|1, more than 15|5.",
            better("9|1", "15|3") and better("15|3", "15|5"),
            f"Percentile of the other eye: {said}.",
        ),
        Effect(
            "3|1 follows edges and colours, 15|1 is very specific.",
            None,
            "Said of pictures, without a measure; the maps are drawn.",
        ),
        Effect(
            "Maps of codes are far faster than maps of pmi.",
            None,
            "The time of a map is measured; pmi of all positions is not: its network knows 8x8 pixels.",
        ),
    ]


def notes() -> list[str]:
    return [
        f"{MEASURED} test faces; the query is the eye on the right, wanted is the other.",
        "Percentile: positions farther than the wanted one; those within p // 2 of the query do not count.",
        "nearer positions: how many are nearer to the query's code than the other eye's, on average.",
        "a map: codes at all positions and their distances, one image.",
    ]


STUDY = Study(
    about="maps of the patches whose codes are like those of an eye or of hair, on toy faces",
    source="patch-VAE thesis, section 7.2, figures 6 and 7",
    budget="15m",
    run=run,
)
