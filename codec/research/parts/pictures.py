"""Pictures of a run: rows of images, maps in colour, curves. Each function returns the names of its files.

Images are uint8 [N, C, H, W] with one channel or three.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vbc.codec.files.image_io import write_atomic

GAP = 2
"""Pixels between images."""
CAPTION = 12
"""Pixels of the line above a row that names it."""
SMALLEST_SIDE = 48
"""Images are enlarged by a whole factor to at least so many pixels."""
HEAT = ((0, 0, 0), (120, 20, 110), (230, 80, 40), (250, 200, 60), (255, 255, 255))
"""Colours of a map from its least value to its greatest."""
CURVE_INCHES = (6.0, 4.0)


def save_grid(path: Path, images: Tensor, columns: int) -> list[str]:
    """Images row by row in so many columns, as PNG."""
    rows = {str(n): part for n, part in enumerate(torch.split(images, columns))}
    return save_rows(path, rows, captions=False)


def save_rows(path: Path, rows: Mapping[str, Tensor], captions: bool = True) -> list[str]:
    """A row of images for each name, under its name, as PNG. Rows may differ in the size of their images."""
    scale = max(1, -(-SMALLEST_SIDE // max(min(row.shape[-2:]) for row in rows.values())))
    strips = {name: row_of(images, scale) for name, images in rows.items()}
    above = CAPTION if captions else 0
    width = max(strip.width for strip in strips.values())
    height = sum(strip.height + above + GAP for strip in strips.values())
    sheet = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(sheet), 0
    for name, strip in strips.items():
        if captions:
            draw.text((1, y), name, fill="black")
        sheet.paste(strip, (0, y + above))
        y += strip.height + above + GAP
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    write_atomic(path, out.getvalue())
    return [path.name]


def row_of(images: Tensor, scale: int) -> Image.Image:
    """Images side by side, each pixel enlarged to scale x scale."""
    x = images.cpu().expand(-1, 3, -1, -1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    n, _, height, width = x.shape
    out = np.full((height, n * (width + GAP), 3), 255, np.uint8)
    for i, image in enumerate(x.permute(0, 2, 3, 1).numpy()):
        out[:, i * (width + GAP) : i * (width + GAP) + width] = image
    return Image.fromarray(out)


def tiled(images: Tensor, columns: int) -> Tensor:
    """Images side by side without gaps, in so many columns, as one: uint8 [1, C, rows H, columns W]."""
    rows = [torch.cat(list(row), -1) for row in torch.split(images, columns)]
    return torch.cat(rows, -2).unsqueeze(0)


def heat(values: Tensor) -> Tensor:
    """Maps in colour: float [N, H, W], dark at each map's least value, to uint8 [N, 3, H, W]."""
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    at = ((values - low) / (high - low).clamp_min(1e-12)).cpu().double().numpy() * (len(HEAT) - 1)
    channels = [np.interp(at, np.arange(len(HEAT)), [colour[c] for colour in HEAT]) for c in range(3)]
    return torch.from_numpy(np.stack(channels, 1).round().astype(np.uint8))


def save_points(path: Path, groups: Mapping[str, Tensor]) -> list[str]:
    """Points in the plane, float [N, 2], a colour for each name, as PNG; nothing where matplotlib is not
    installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=CURVE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for name, points in groups.items():
        x, y = points.cpu().double().numpy().T
        axes.scatter(x, y, s=4, linewidths=0, label=name)
    axes.set_axis_off()
    axes.legend(fontsize="small", markerscale=3)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    write_atomic(path, out.getvalue())
    return [path.name]


def save_curves(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    log_x: bool = False,
) -> list[str]:
    """Points joined by lines, a line for each name, as PNG; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    figure = Figure(figsize=CURVE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for name, (xs, ys) in curves.items():
        axes.plot(xs, ys, marker="o", markersize=3, linewidth=1, label=name)
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    write_atomic(path, out.getvalue())
    return [path.name]
