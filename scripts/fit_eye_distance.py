"""Fit the weights of `codec.lossy.eye_distance` to SSIMULACRA 2 on distorted squares of training tiles.

    python scripts/fit_eye_distance.py ../shared/data/train

Prints the weights to put into `FITTED_WEIGHTS`, and how well they tell the scores of pictures left out.
"""

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.optimize import brentq, nnls
from ssimulacra2 import compute_ssimulacra2

from vbc.codec.lossy.eye_distance import (
    KINDS,
    NORMS,
    PLANES,
    SCALES,
    SCORE_CUBIC,
    SCORE_EXPONENT,
    eye_terms,
    weights,
)
from vbc.codec.train.export import squares_of_tiles
from vbc.codec.train.training_tiles import load_tiles

SIDE = 2
"""Pictures are squares of 2x2 tiles: below 256 pixels SSIMULACRA 2 has fewer scales and other weights."""
PER_PICTURE = 5
NAMES = ("jpeg", "jpeg444", "webp", "avif", "avif", "noise", "blur")
LEFT_OUT = 0.2


def distorted(tile: Image.Image, name: str, quality: int, rng: np.random.Generator) -> Image.Image:
    """A picture after a codec, with noise of one or all channels, or blurred."""
    if name == "blur":
        return tile.filter(ImageFilter.GaussianBlur(quality / 60))
    if name == "noise":
        x = np.asarray(tile).astype(np.float64)
        channels = rng.choice([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
        return Image.fromarray((x + rng.normal(0, quality / 8, x.shape) * channels).clip(0, 255).astype("u1"))
    out = io.BytesIO()
    if name.startswith("jpeg"):
        tile.save(out, "JPEG", quality=quality, subsampling=0 if name == "jpeg444" else 2)
    else:
        tile.save(out, name, quality=quality, **({"speed": 8} if name == "avif" else {}))
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def weighted_sum(score: float) -> float:
    """SSIMULACRA 2's sum of a score."""
    wanted = ((100 - score) / 10) ** (1 / SCORE_EXPONENT)
    sum_of = brentq(lambda s: sum(c * s ** (n + 1) for n, c in enumerate(SCORE_CUBIC)) - wanted, 0, 2000)
    return float(sum_of)


def as_tensor(image: Image.Image) -> torch.Tensor:
    """RGB float [1, 3, H, W]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float()


def measure(pictures: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.float64], ...]:
    """Terms [N, T] and sums [N] of distorted pictures, uint8 [M, 3, H, W]."""
    terms, sums = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("a.png", "b.png")]
        for picture in pictures:
            image = Image.fromarray(picture.transpose(1, 2, 0))
            image.save(paths[0])
            for name in rng.choice(NAMES, PER_PICTURE, replace=False):
                other = distorted(image, str(name), int(rng.integers(20, 90)), rng)
                other.save(paths[1])
                score = compute_ssimulacra2(*paths)
                if 0 < score < 96:  # beyond, the mapping is nearly flat
                    terms.append(eye_terms(as_tensor(image), as_tensor(other)).flatten().numpy())
                    sums.append(weighted_sum(score))
    return np.array(terms, np.float64), np.array(sums)


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--count", type=int, default=300)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    torch.set_grad_enabled(False)
    tiles = load_tiles(arguments.tiles)
    picked = rng.permutation(len(tiles))[: arguments.count * SIDE * SIDE]
    terms, sums = measure(squares_of_tiles(tiles[picked], SIDE), rng)
    n = int(len(sums) * (1 - LEFT_OUT))
    weight = 1 / np.maximum(sums, 2)  # relative errors, but for scores that nobody tells apart
    fitted, _ = nnls(terms[:n] * weight[:n, None], (sums * weight)[:n])
    shape = (SCALES, len(KINDS), len(NORMS), len(PLANES))
    for value, (scale, kind, norm, plane) in zip(fitted, np.ndindex(*shape), strict=True):
        if round(value, 2):
            print(f'    ({scale}, "{KINDS[kind]}", "{NORMS[norm]}", "{PLANES[plane]}"): {value:.2f},')
    hand = weights()[1].flatten().double().numpy()
    for name, w in (("fitted", fitted), ("by hand", hand)):
        told, true = (terms @ w)[n:], sums[n:]
        correlation = np.corrcoef(np.log(told), np.log(true))[0, 1]
        print(f"# {name}: correlation of logarithms {correlation:.4f}, mean ratio {np.mean(true / told):.2f}")


if __name__ == "__main__":
    main()
