"""Renderings of the codec's levels 1 and 2: what the file says of them for certain, and the study, small."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import photo
from torch import Tensor

from vbc.bitstream.container import unpack_header
from vbc.codec.lossy.latents import LEVEL_START
from vbc.codec.model import load_model
from vbc.codec.pipeline import decode_image, encode_image
from vbc.codec.research.parts.adversarial import Adversaries
from vbc.codec.research.run import Setting
from vbc.codec.research.systems.photo_renderer import study
from vbc.codec.research.systems.photo_renderer.coded_tiles import (
    CodedTiles,
    code_tiles,
    off_centre,
    steps_of,
    symbols_returned,
    to_pixels,
    to_planes,
    within_cells,
)
from vbc.codec.research.systems.photo_renderer.study import KINDS, Judge, PhotoRenderer, renderer_loss
from vbc.codec.settings import EncodeSettings

SIDE = 32


@pytest.fixture(scope="module")
def tiles() -> CodedTiles:
    whole = photo(SIDE, 4 * SIDE)
    return code_tiles(load_model(), torch.stack(torch.split(whole, SIDE, 2)), (20, 80), 0)


def test_shown_is_what_a_decoder_shows(tiles: CodedTiles) -> None:
    model = load_model(tune="psnr")  # whose files have no map
    picture = tiles.original[0]
    for level in (1, 2):
        data = encode_image(picture, model=model, settings=EncodeSettings(levels=level, tune="psnr"))
        quality = unpack_header(data).quality
        coded = code_tiles(model, picture[None], (quality, quality), 0)
        assert torch.equal(decode_image(data, model=model).rgb, coded.shown[level][0])


@pytest.mark.parametrize("level", [1, 2])
def test_within_cells(tiles: CodedTiles, level: int) -> None:
    """Of noise too; a picture that agrees stays as it is, and no other one that agrees is nearer."""
    torch.manual_seed(0)
    latents = tiles.latents[:, : LEVEL_START[level]]
    steps = steps_of(load_model(), tiles.quality, LEVEL_START[level])
    planes = to_planes(tiles.shown[level]) + 40 * torch.randn(len(latents), 3, SIDE, SIDE)
    assert off_centre(planes, latents, steps).abs().max() > 1
    inside, off = within_cells(planes, latents, steps)
    assert torch.equal(off, off_centre(planes, latents, steps))
    assert off_centre(inside, latents, steps).abs().max() <= 0.5 + 1e-3
    assert torch.allclose(within_cells(inside, latents, steps)[0], inside, atol=1e-3)
    other, _ = within_cells(planes + torch.randn_like(planes), latents, steps)
    far, near = ((x - planes).square().flatten(1).sum(1) for x in (other, inside))
    assert (near < far).all()


def test_symbols_returned(tiles: CodedTiles) -> None:
    """Hardly any of noise; most of the original, whose latents they are, but for rounding by rate."""
    model, latents = load_model(), tiles.latents[:, : LEVEL_START[1]]
    noise = torch.from_numpy(np.random.default_rng(1).integers(0, 256, tiles.original.shape, np.uint8))
    assert symbols_returned(model, noise, latents, tiles.quality) < 30
    assert symbols_returned(model, tiles.original, latents, tiles.quality) > 80


def test_pixels_and_planes_are_inverses(tiles: CodedTiles) -> None:
    assert torch.equal(to_pixels(to_planes(tiles.original)).round().to(torch.uint8), tiles.original)


def test_a_new_renderer_changes_nothing(tiles: CodedTiles) -> None:
    shown = to_planes(tiles.shown[1])
    assert torch.allclose(PhotoRenderer()(shown, tiles.quality, 1), shown)


@pytest.mark.parametrize("name", KINDS)
def test_each_network_gets_its_own_gradient(tiles: CodedTiles, name: str) -> None:
    """And the discriminator none where there is no adversary."""
    torch.manual_seed(0)
    pair = Adversaries(PhotoRenderer(), Judge())
    for parameter in pair.generator.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    drawn = (tiles.original, tiles.shown[2], tiles.latents, tiles.quality)
    value, log = renderer_loss(pair, load_model(), KINDS[name])(drawn, 0)
    torch.autograd.backward(value)

    def moved(network: torch.nn.Module) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())

    assert moved(pair.generator)
    assert moved(pair.discriminator) == (KINDS[name].adversary > 0) == ("d" in log)
    assert all(math.isfinite(figure) for figure in log.values())


def test_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = photo(128, 256)
    few = torch.stack(torch.split(whole, 128, 2)).numpy()
    monkeypatch.setattr(study, "load_tiles", lambda folder: few)
    monkeypatch.setattr(study, "PLAN", replace(study.PLAN, steps=2, batch=2))
    lines: list[str] = []
    result = study.run(Setting(tmp_path, tmp_path, 0.01, emit=lines.append))
    for table in result.tables:
        assert [row.model for row in table.rows] == ["originals", "decoder", *KINDS]
        assert all(math.isfinite(v) for row in table.rows for v in row.figures.values())
    assert len(result.effects) == 8
    assert result.pictures == ["photographs.png"]
    assert (tmp_path / "photographs.png").exists()


def figures(sharpness: float, frechet: float, eye: float, returned: float) -> dict[str, float]:
    return {"sharpness": sharpness, "Frechet": frechet, "eye distance": eye, "symbols returned": returned}


@pytest.mark.parametrize("good", [False, True])
def test_claims(good: bool) -> None:
    """Each one follows its own figures."""
    plain, better, worse = figures(0.1, 5, 10, 90), figures(0.2, 3, 8, 95), figures(0.12, 6, 11, 80)
    by_name = {"decoder": plain, "no adversary": plain, study.CHOSEN: better if good else worse}
    effects = study.claims({1: by_name, 2: by_name})
    assert [effect.found for effect in effects] == [good] * 8


def test_crops_are_of_one_place(tiles: CodedTiles) -> None:
    """Pictures and latents are cut at the same blocks, level 1 and 2 by turns."""
    large = CodedTiles(
        *(_repeated(part) for part in (tiles.original, tiles.shown, tiles.latents)), tiles.quality
    )
    batch = study.crops(large, replace(study.PLAN, batch=2))
    for step in range(6):
        original, shown, latents, _ = batch(step)
        assert original.shape == shown.shape == (2, 3, study.CROP, study.CROP)
        assert latents.shape[1] == LEVEL_START[1 + step % 2]
        dc = (to_planes(shown)[:, :1].unfold(2, 8, 8).unfold(3, 8, 8)).mean((-1, -2))[:, 0]
        assert (dc - latents[:, 0] / 64).abs().mean() < 4


def _repeated(part: Tensor | dict[int, Tensor]) -> Tensor | dict[int, Tensor]:
    if isinstance(part, dict):
        return {key: _repeated(value) for key, value in part.items()}  # type: ignore[misc]
    return part.repeat(1, 1, 4, 4)
