"""Study `ssvae-bits`: what the thesis counted as values for compression in bits and in bytes.

Ideal costs of the levels; quantised latents charged by the model and beside JPEG; bits-back coding, decoded
again, beside lossless codecs on the same pictures.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vbc.codec.research.parts.bits_back import decode_images, encode_images
from vbc.codec.research.parts.data_sets import cifar
from vbc.codec.research.parts.importance import bits_per_dim, mean_terms
from vbc.codec.research.parts.pictures import save_curves
from vbc.codec.research.run import Effect, Result, Row, Setting, Study, Table
from vbc.codec.research.systems.ssvae.coding import Kept, coded_model, keep_quantised, keep_view
from vbc.codec.research.systems.ssvae.comparison import (
    FULL_BUDGET_S,
    TRAINING_SHARE,
    alike,
    frozen,
    samples,
    seeded,
)
from vbc.codec.research.systems.ssvae.crossover import SETS_32
from vbc.codec.research.systems.ssvae.earlier_runs import load_or_train
from vbc.codec.research.systems.ssvae.model import SsVae

BATCH = 32
STEPS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Widths of the latents' bins, in units of the prior's standard deviation for a normal prior."""
QUALITIES = (1, 2, 4, 7, 11, 16, 23, 32, 45, 60, 75, 88, 95)
MOST_COLUMNS = 16
"""Pictures in a row of a sheet at most."""
PARTS = ("u", "y", "z", "x")
THESIS_PARTS = {"u": 0.385, "y": 0.583, "z": 0.291, "x": 2.398, "sum": 3.656}
"""Table 7.2 for CIFAR-10, in bits per sub-pixel of x."""
WITHIN = 0.02
"""How far the bytes may be from the negative bound."""

Curve = list[tuple[float, float]]
"""Bits per sub-pixel and PSNR in dB."""


def run(setting: Setting) -> Result:
    """The CIFAR models of `ssvae-32`, or ones trained here."""
    data = cifar(setting.data)
    entrants = SETS_32["cifar"][1]
    seconds = TRAINING_SHARE * setting.budget_s
    models, said = load_or_train("ssvae-32", entrants, data, setting, BATCH, seconds)
    vae, ssvae = (models[entrant.name] for entrant in entrants)
    size = samples(setting.budget_s)
    test = data.test[: size.others].to(setting.device)
    costs = level_costs(ssvae, test, setting)
    kept, curves, lossy = lossy_costs(vae, ssvae, test[:256], setting)
    n_coded = 100 if setting.budget_s >= FULL_BUDGET_S else 3
    coded, lossless = lossless_costs({"VAE": vae, "ssVAE": ssvae}, test[:n_coded], setting)
    pictures = save_curves(setting.out / "rate.png", _drawn(curves), "bits per sub-pixel", "PSNR, dB")
    notes = [
        said,
        "u is charged its density under the flow times its bin's volume, z the mass of its bin under "
        "p(z|y, u); y its bits-back cost, RE_y + KL_u. Codes that are not sent stand at their prior means.",
        f"JPEG: the {len(test[:256])} pictures in one sheet, so that its tables count once.",
        f"Lossless: {n_coded} pictures; bits-back bytes are counted without the initial bits, which the "
        "table states; files of other codecs one for each picture, and one for all in a sheet.",
    ]
    return Result([costs, kept, coded], [*lossy, *lossless], notes, pictures)


def level_costs(model: SsVae, x: Tensor, setting: Setting) -> Table:
    """Bits of u, y given u, z, x given y and z, per sub-pixel of x."""
    terms = mean_terms(model, x, seeded(setting))
    nats = {"u": terms["KL_u"], "y": terms["RE_y"], "z": terms["KL_z"], "x": terms["RE_x"]}
    figures = {part: bits_per_dim(nats[part], x[0].numel()) for part in PARTS}
    row = Row("ssVAE", {**figures, "sum": sum(figures.values())}, THESIS_PARTS)
    units = {key: "bits per sub-pixel of x" for key in (*PARTS, "sum")}
    return Table("Ideal cost of each level", units, [row])


def lossy_costs(
    vae: SsVae, ssvae: SsVae, x: Tensor, setting: Setting
) -> tuple[Table, dict[str, Curve], list[Effect]]:
    """What is kept, by bin width: bits, PSNR, and JPEG's PSNR at the same bits."""
    jpeg = jpeg_curve(x.cpu())
    ways: dict[str, Callable[[Tensor, float], Kept]] = {
        "VAE: z": lambda part, step: keep_quantised(vae, part, 1, step),
        "RS1: u": lambda part, step: keep_quantised(ssvae, part, 1, step),
        "RS2: u, z": lambda part, step: keep_quantised(ssvae, part, 2, step),
        "CR: y, z": lambda part, step: keep_view(ssvae, part, step, seeded(setting)),
        "SR: y": lambda part, step: keep_view(ssvae, part, None, seeded(setting)),
    }
    values = {"VAE: z": 1024, "RS1: u": 1024, "RS2: u, z": 2048, "CR: y, z": 1792, "SR: y": 768}
    rows, curves = [], {"JPEG": jpeg}
    for name, way in ways.items():
        curves[name] = []
        for step in STEPS if name != "SR: y" else (math.nan,):
            parts = [way(part, step) for part in torch.split(x, 32)]
            pictures = torch.cat([part.pictures for part in parts]).cpu()
            rate = float(torch.cat([part.n_bits for part in parts]).mean()) / x[0].numel()
            quality = alike(pictures, x.cpu())
            curves[name].append((rate, quality["psnr"]))
            figures = {"values": float(values[name]), "bin": step, "rate": rate, **quality}
            full_name = name if math.isnan(step) else f"{name}, bins of {step:g}"
            rows.append(Row(full_name, {**figures, "jpeg_psnr": at_rate(jpeg, rate)}))
    units = {
        "values": "numbers sent",
        "bin": "width",
        "rate": "bits per sub-pixel",
        "psnr": "dB",
        "ms_ssim": "",
        "jpeg_psnr": "dB at that rate",
    }
    return Table("Quantised latents", units, rows), curves, lossy_effects(curves)


def lossy_effects(curves: dict[str, Curve]) -> list[Effect]:
    """What the thesis proposed of its modes, at the finest bins, and JPEG at equal bits."""
    best = {name: curve[0] for name, curve in curves.items() if name != "JPEG"}
    said = ", ".join(f"{name} {psnr:.2f} dB at {rate:.3f}" for name, (rate, psnr) in best.items())
    rs1, rs2, cr, sr = (best[name][1] for name in ("RS1: u", "RS2: u, z", "CR: y, z", "SR: y"))
    ahead = [
        f"{name} at {rate:.3f}"
        for name, curve in curves.items()
        for rate, psnr in curve
        if name != "JPEG" and psnr > at_rate(curves["JPEG"], rate)
    ]
    return [
        Effect("Quality rises with each latent sent: RS1 < RS2", rs1 < rs2, f"{said} bits per sub-pixel"),
        Effect("CR is the best of the modes", cr > max(rs1, rs2, sr), f"CR {cr:.2f} dB; {said}"),
        Effect(
            "768 values of y (SR) show more than 1024 of u (RS1): left open by the thesis",
            sr > rs1,
            f"SR {sr:.2f} dB at {best['SR: y'][0]:.3f}, RS1 {rs1:.2f} dB at {best['RS1: u'][0]:.3f} bits",
        ),
        Effect(
            "At equal bits some mode is nearer to the picture than JPEG, by PSNR (ours)",
            bool(ahead),
            f"ahead of JPEG: {', '.join(ahead) or 'none'}",
        ),
    ]


def lossless_costs(models: dict[str, SsVae], x: Tensor, setting: Setting) -> tuple[Table, list[Effect]]:
    """Bits-back bytes of pictures, level by level, decoded again, beside files of other codecs."""
    n_values = x.numel()
    rows, effects = [], []
    for name, model in models.items():
        coder = coded_model(model, x)
        with frozen():
            coded = encode_images(coder, x)
            exact = torch.equal(decode_images(coder, coded, len(x)), x.cpu())
        bound = bits_per_dim(mean_terms(model, x.repeat(4, 1, 1, 1), seeded(setting))["total"], x[0].numel())
        rate = coded.net_bits / n_values
        figures = {
            "rate": rate,
            "bound": bound,
            "initial": coded.initial_bits / n_values,
            **{f"of_{part}": bits / n_values for part, bits in coded.n_bits.items()},
        }
        rows.append(Row(f"{name}, bits-back", figures))
        effects += [
            Effect(f"{name}: the pictures are decoded exactly", exact, f"{len(x)} pictures"),
            Effect(
                f"{name}: bits-back takes the negative bound, within 2 %",
                abs(rate / bound - 1) <= WITHIN,
                f"{rate:.4f} and {bound:.4f} bits per sub-pixel, {100 * (rate / bound - 1):+.2f} %",
            ),
        ]
    pictures = [np.ascontiguousarray(p) for p in x.cpu().permute(0, 2, 3, 1).numpy()]
    whole = sheet(x.cpu())
    for codec, encode in lossless_codecs().items():
        each = sum(len(encode(p)) for p in pictures)
        figures = {"rate": 8 * each / n_values, "sheet": 8 * len(encode(whole)) / whole.size}
        rows.append(Row(codec, figures))
    units = {
        "rate": "bits per sub-pixel",
        "bound": "bits per sub-pixel, negative ELBO",
        "sheet": "bits per sub-pixel, all pictures in one file",
        "initial": "bits per sub-pixel, initial bits",
        **{f"of_{part}": "bits per sub-pixel of x" for part in PARTS},
    }
    return Table("Lossless", units, rows), effects


def lossless_codecs() -> dict[str, Callable[[NDArray[np.uint8]], bytes]]:
    """Codecs from uint8 [H, W, 3] to a file; JPEG XL where imagecodecs is installed."""
    import vbc.codec

    found: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
        "this package": lambda x: vbc.codec.encode(x, lossless=True),
        "PNG": lambda x: _pillow(x, "PNG", optimize=True),
        "WebP": lambda x: _pillow(x, "WEBP", lossless=True, quality=100, method=6),
    }
    try:
        import imagecodecs
    except ImportError:
        return found
    found["JPEG XL"] = lambda x: bytes(imagecodecs.jpegxl_encode(x, lossless=True, effort=9))
    return found


def jpeg_curve(x: Tensor) -> Curve:
    """JPEG of all pictures in one sheet: rates rise; PSNR is the mean over pictures."""
    whole = sheet(x)
    curve = []
    for quality in QUALITIES:
        data = _pillow(whole, "JPEG", quality=quality, optimize=True)
        back = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        pictures = from_sheet(back, len(x), x.shape[-1])
        curve.append((8 * len(data) / x.numel(), alike(pictures, x)["psnr"]))
    return curve


def at_rate(curve: Curve, rate: float) -> float:
    """PSNR of a curve at a rate, linear between its points; not a number outside."""
    rates, psnr = zip(*sorted(curve), strict=True)
    return float(np.interp(rate, rates, psnr, left=math.nan, right=math.nan))


def sheet(x: Tensor) -> NDArray[np.uint8]:
    """Pictures uint8 [N, 3, S, S] as one, row by row, uint8 [rows * S, columns * S, 3]: of up to 16 columns
    as many as fill all rows."""
    n, c, h, w = x.shape
    columns = sheet_columns(n)
    rows = x.view(n // columns, columns, c, h, w).permute(0, 3, 1, 4, 2)
    return np.ascontiguousarray(rows.reshape(-1, columns * w, c).numpy())


def from_sheet(whole: NDArray[np.uint8], n: int, side: int) -> Tensor:
    """Inverse of `sheet` for n pictures of a side."""
    rows = torch.from_numpy(whole.copy()).view(-1, side, sheet_columns(n), side, 3).permute(0, 2, 4, 1, 3)
    return rows.reshape(-1, 3, side, side).contiguous()


def sheet_columns(n: int) -> int:
    """The greatest divisor of n up to 16."""
    return next(columns for columns in range(MOST_COLUMNS, 0, -1) if n % columns == 0)


def _pillow(x: NDArray[np.uint8], kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(x).save(out, kind, **options)
    return out.getvalue()


def _drawn(curves: dict[str, Curve]) -> dict[str, tuple[list[float], list[float]]]:
    return {
        name: ([rate for rate, _ in curve], [psnr for _, psnr in curve]) for name, curve in curves.items()
    }


STUDY = Study(
    "ssVAE as a coder: latents in bits beside JPEG, bits-back bytes",
    "ssVAE thesis, its proposal on compression",
    "20m",
    run,
)
