"""Study `patch-vae`: bits of z and of x given z for patch-VAEs p|i and global VAEs, tables 2 and 3 of the
thesis on patch-VAEs; what the latents alone show; how fast independent blocks decode.

The thesis' CelebA column stands beside 64x64 photographs, its CIFAR-10 column beside the part of CIFAR-10 at
hand.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vbc.codec.research.parts.data_sets import Split, cifar, photographs
from vbc.codec.research.parts.local_pixelcnn import LocalPixelCNN, to_blocks
from vbc.codec.research.parts.pictures import save_curves, save_rows
from vbc.codec.research.run import Result, Row, Setting, Study, Table
from vbc.codec.research.systems.patch_vae import global_vae
from vbc.codec.research.systems.patch_vae.claims import decoding_speed, tables_2_and_3
from vbc.codec.research.systems.patch_vae.model import (
    CONTROLS,
    THESIS,
    PatchVAE,
    form,
    random_patches,
    rates,
    reconstruct,
    trained,
    whole_patches,
)
from vbc.kernels.research.masked_conv import RASTER

UNITS = {
    "z": "bits",
    "z per pixel": "bits",
    "CE": "bits/dim",
    "total": "bits/dim",
    "PSNR of E[x|z]": "dB",
}
GLOBAL_UNITS = {"z": "bits", "z per pixel": "bits"}
SPEED_UNITS = {"steps": "", "parallel": "ms", "raster steps": "", "raster": "ms", "times faster": ""}

# Tables 2 and 3: bits of z, CE in bits/dim; CelebA, then CIFAR-10
FIGURES = {
    "3|1": ((13.44, 4.84), (12.04, 5.31)),
    "9|1": ((32.71, 5.08), (38.67, 5.46)),
    "9|3": ((10.50, 4.17), (9.83, 4.60)),
    "15|1": ((74.93, 4.94), (57.51, 5.64)),
    "15|3": ((32.02, 4.15), (25.76, 4.60)),
    "15|5": ((13.83, 4.11), (11.59, 4.33)),
}
GLOBAL_BITS = {
    "VAE_32d": (173.90, 175.01),
    "VAE_256d": (622.83, 589.11),
    "VAE_4096d": (830.37, 811.42),
    "beta-VAE_32d": (11.62, None),
    "beta-VAE_256d": (7.52, None),
}
THESIS_PIXELS = 4096
"""Pixels by which table 2 divides the bits of a global code, on CIFAR-10 too."""
PATCH_SHARE, GLOBAL_SHARE = 1.0, 0.6
"""Parts of the budget for a patch-VAE and for a global VAE."""
NAMES = (*THESIS, *CONTROLS)
TEST_PATCHES = 4096
SHOWN = 8
DRAWS = 4
"""Samples whose mean stands for E[x|z] where pixels depend on each other; their spread is allowed for."""
MEASURED_IMAGES = 24
RASTER_STEPS = 100
"""Steps of raster order that are timed; an image takes one for each pixel."""


@dataclass(frozen=True)
class Set:
    """A data set. column: its column of the thesis' tables."""

    name: str
    load: Callable[[Setting], Split]
    column: int


SETS = (
    Set("CIFAR", lambda setting: cifar(setting.data), 1),
    Set("photographs", lambda setting: photographs(setting.data, 64), 0),
)


def run(setting: Setting) -> Result:
    """All models on both sets; a set's models share its half of the budget."""
    parts = len(SETS) * (PATCH_SHARE * len(NAMES) + GLOBAL_SHARE * len(global_vae.THESIS))
    found = [on_set(data, setting.budget_s / parts, setting) for data in SETS]
    return Result(
        tables=[table for result in found for table in result.tables],
        effects=[effect for result in found for effect in result.effects],
        notes=notes(),
        pictures=[name for result in found for name in result.pictures],
    )


def on_set(data: Set, unit: float, setting: Setting) -> Result:
    """Train and measure all models on one set. unit: seconds of training of a patch-VAE over its share."""
    split = data.load(setting)
    train, test = torch.cat((split.train, split.valid)), split.test
    models = {
        name: trained(form(name), train, PATCH_SHARE * unit, setting, f"{data.name} {name}") for name in NAMES
    }
    rows = [patch_row(model, test, data.column, setting) for model in models.values()]
    speeds = [speed_row(m, test[:1].to(setting.device)) for m in models.values() if m.form.block > 1]
    global_rows = []
    for kind in global_vae.THESIS:
        code = global_vae.trained(kind, train, GLOBAL_SHARE * unit, setting, f"{data.name} {kind.name}")
        global_rows.append(global_row(code, test, data.column, setting))
    size = "x".join(str(side) for side in test.shape[-2:])
    tables = [
        Table(f"patch-VAE p|i on {data.name}", UNITS, rows),
        Table(f"Global codes on {data.name}", GLOBAL_UNITS, global_rows),
        Table(f"Decoding an image of {size} pixels, {data.name}", SPEED_UNITS, speeds),
    ]
    figures = ({row.model: row.figures for row in part} for part in (rows, global_rows))
    effects = [*tables_2_and_3(data.name, *figures), decoding_speed(data.name, speeds)]
    shown = show({name: models[name] for name in THESIS}, test, setting)
    pictures = save_rows(setting.out / f"reconstructions-{data.name}.png", shown)
    path, axes = setting.out / f"rate-fidelity-{data.name}.png", ("bits of z per pixel", "PSNR of E[x|z], dB")
    return Result(tables, effects, [], pictures + save_curves(path, curves(rows), *axes, log_x=True))


def global_row(model: global_vae.GlobalVAE, test: Tensor, column: int, setting: Setting) -> Row:
    """Bits of a global code."""
    bits = global_vae.code_bits(model, test.to(setting.device))
    known = GLOBAL_BITS[model.form.name][column]
    thesis = {} if known is None else {"z": known, "z per pixel": known / THESIS_PIXELS}
    return Row(model.form.name, {"z": bits, "z per pixel": bits / test[0, 0].numel()}, thesis)


def patch_row(model: PatchVAE, test: Tensor, column: int, setting: Setting) -> Row:
    """Rates on test patches drawn once for all models of a size, and the fidelity of z alone."""
    side, seed = model.form.patch, setting.seed
    patches = random_patches(test, side, TEST_PATCHES, 0)(0).to(setting.device)
    figures = rates(model, patches, seed) | {
        "PSNR of E[x|z]": fidelity(model, test[:MEASURED_IMAGES].to(setting.device), seed)
    }
    if model.form.name not in FIGURES:
        return Row(model.form.name, figures)
    bits, ce = FIGURES[model.form.name][column]
    thesis = {"z": bits, "z per pixel": bits / side**2, "CE": ce, "total": ce + bits / model.dimensions}
    return Row(model.form.name, figures, thesis)


def fidelity(model: PatchVAE, images: Tensor, seed: int) -> float:
    """PSNR in dB of E[x|z] with z of q(z|x). What sampling adds to the squared error is subtracted."""
    generator = torch.Generator().manual_seed(seed)
    mean, spread = reconstruct(
        model, images, lambda z: model.decoder.expected(z, DRAWS, generator), generator
    )
    error = (mean - whole_patches(images, model.form.patch).float()).square().double().mean()
    return float(10 * torch.log10(255.0**2 / (error - spread.double().mean())))


def show(models: dict[str, PatchVAE], test: Tensor, setting: Setting) -> dict[str, Tensor]:
    """Rows of images: the originals, and for each model a sample of p(x|z) and E[x|z]."""
    images = test[:SHOWN].to(setting.device)
    generator = torch.Generator().manual_seed(setting.seed)
    rows = {"original": images}
    for name, model in models.items():

        def decode(z: Tensor, model: PatchVAE = model) -> tuple[Tensor, Tensor]:
            mean, _ = model.decoder.expected(z, DRAWS, generator)
            return model.decoder.sample(z, generator), mean.round().to(torch.uint8)

        rows[f"{name} sample"], rows[f"{name} mean"] = reconstruct(model, images, decode, generator)
    return rows


def curves(rows: list[Row]) -> dict[str, tuple[list[float], list[float]]]:
    """Fidelity over bits of z per pixel, one line for each size of block."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted(rows, key=lambda row: row.figures["z per pixel"]):
        if row.model in THESIS:
            xs, ys = found.setdefault(f"blocks of {form(row.model).block}", ([], []))
            xs.append(row.figures["z per pixel"])
            ys.append(row.figures["PSNR of E[x|z]"])
    return found


@torch.no_grad()
def speed_row(model: PatchVAE, image: Tensor) -> Row:
    """Time to decode an image from its codes, all blocks at once, and in raster order by the same network.

    In raster order a step computes the next pixel from the neighbourhood that it depends on, no more.
    """
    pixels, side = model.decoder.pixels, model.form.block
    assert isinstance(pixels, LocalPixelCNN)
    generator = torch.Generator().manual_seed(1)
    whole = whole_patches(image, model.form.patch)
    z = model.encode(to_blocks(whole, model.form.patch)).mean
    parallel = milliseconds(lambda: model.decoder.sample(z, generator), whole.is_cuda)

    raster = LocalPixelCNN(side, model.channels, pixels.features, model.decoder.start, order=RASTER)
    raster.load_state_dict(pixels.state_dict())
    raster.to(image.device)
    reach = raster.reach
    around = image[..., : reach + 1, : 2 * reach + 1].contiguous()
    h = torch.zeros((1, pixels.features, *around.shape[-2:]), device=image.device)

    def steps() -> None:
        for _ in range(RASTER_STEPS):
            maps = raster(around, h)[..., -1:, reach : reach + 1]
            model.decoder.mixture.sample(maps, generator)

    n_pixels = whole[0, 0].numel()
    in_raster = milliseconds(steps, whole.is_cuda) / RASTER_STEPS * n_pixels
    figures = {
        "steps": float(side * side),
        "parallel": parallel,
        "raster steps": float(n_pixels),
        "raster": in_raster,
        "times faster": in_raster / parallel,
    }
    return Row(model.form.name, figures)


def milliseconds(f: Callable[[], object], cuda: bool) -> float:
    """Wall time of a call, the best of three after one to warm up."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        f()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times[1:])


def notes() -> list[str]:
    return [
        "CE is without the KL term; total is what bits-back coding takes: CE + z / (3 p^2).",
        "|1: each colour has a mixture of its own; |1 colour: with colour coefficients, as in |3 and |5.",
        f"PSNR: z of q(z|x); E[x|z] exactly for |1, else the mean of {DRAWS} samples, whose variance is "
        "subtracted.",
        "Global codes: images at their own size, 32x32 for CIFAR (the thesis divides by 64x64 there too), "
        "Gaussian pixels of learned variance (beta-VAE: 1), Adam from 1e-3, not 1e-4: there are few steps.",
        "Decoding: the part of an image that whole patches fill. Raster order takes the same network; "
        "a step computes no more than the next pixel's neighbourhood.",
    ]


STUDY = Study(
    about="patch-VAE p|i: what a patch's code keeps when blocks of its pixels predict themselves",
    source="patch-VAE thesis, section 5, tables 2 and 3",
    budget="45m",
    run=run,
)
