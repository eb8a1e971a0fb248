"""Measures of images, the Frechet distance, and pictures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vbc.codec.research.parts import frechet, measures, pictures
from vbc.codec.research.run import Setting


def random_images(n: int, side: int, seed: int = 0, channels: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, channels, side + 8, side + 8, generator=rng)
    return (torch.nn.functional.avg_pool2d(noise, 9, 1) * 255).to(torch.uint8)


def picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.copy()


def test_psnr() -> None:
    a = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] += 5
    assert measures.psnr(a, b).tolist() == [math.inf, pytest.approx(20 * math.log10(255 / 5))]


def test_sharpness() -> None:
    generator = torch.Generator().manual_seed(0)
    sharp = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(sharp.float(), 3, 1).to(torch.uint8)
    flat = torch.full_like(sharp, 90)
    assert (measures.sharpness(sharp) > 2 * measures.sharpness(blurred)).all()
    assert measures.sharpness(flat).tolist() == [pytest.approx(0, abs=1e-9)] * 2
    point = torch.zeros((1, 1, 3, 3), dtype=torch.uint8)
    point[0, 0, 1, 1] = 255
    assert measures.sharpness(point).item() == pytest.approx(4 / (1 / 9 + measures.DARK))
    assert torch.allclose(measures.sharpness(point.expand(1, 3, 3, 3)), measures.sharpness(point))


def test_distance_to_the_most_alike() -> None:
    x = torch.zeros((4, 1, 2, 2), dtype=torch.uint8)
    x[1], x[2], x[3] = 10, 30, 60
    assert measures.nearest_distance(x) == pytest.approx((10 + 10 + 20 + 30) / 4, rel=1e-3)
    assert measures.nearest_distance(torch.cat((x, x))) == pytest.approx(0, abs=0.1)


def test_ms_ssim_is_the_published_one() -> None:
    reference = pytest.importorskip("pytorch_msssim")
    a = random_images(2, 176)
    b = (a.int() + torch.randint(-9, 10, a.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    expected = reference.ms_ssim(a.double(), b.double(), data_range=255, size_average=False)
    assert torch.allclose(measures.ms_ssim(a, b.to(torch.uint8)), expected, atol=1e-6)


def test_ms_ssim_of_small_images() -> None:
    a = random_images(3, 32)
    noisy = (a.int() + 20 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 255)
    assert torch.allclose(measures.ms_ssim(a, a), torch.ones(3, dtype=torch.float64))
    assert (measures.ms_ssim(a, noisy.to(torch.uint8)) < 0.9).all()
    with pytest.raises(ValueError, match="8 pixels"):
        measures.ms_ssim(a[..., :8], a[..., :8])


def test_fine_detail() -> None:
    flat = torch.zeros(1, 1, 5, 6, dtype=torch.uint8)
    flat[..., 2:, :] = 90
    assert measures.fine_detail(flat).tolist() == [0.0]
    checks = torch.tensor([[0, 20], [20, 0]], dtype=torch.uint8).repeat(1, 1, 3, 3)
    assert measures.fine_detail(checks).tolist() == [100.0]


def test_frechet_distance_of_known_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    a = (a - a.mean(0)) @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(a.T)))
    scale, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, 3.0, -4.0])
    expected = 25 + float((scale.double() - 1).square().sum())
    assert frechet.frechet_distance(a, a * scale + shift) == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("labelled", [False, True])
def test_own_features_learn(labelled: bool, tmp_path: Path) -> None:
    """Images that get brighter towards the bottom, or with their label."""
    n, side = 128, 12
    labels = torch.arange(n) % 3
    ramp = torch.linspace(0, 120, side).view(1, 1, side, 1) + 40 * labels.view(n, 1, 1, 1)
    images = (ramp + 20 * torch.rand(n, 1, side, side)).to(torch.uint8)
    setting = Setting(tmp_path, tmp_path, 1.0, emit=list[str]().append)
    net = frechet.train_features(images, setting, labels=labels if labelled else None, steps=120)
    if labelled:
        assert (net(images).argmax(1) == labels).double().mean() > 0.8
    else:
        turned = net(images.rot90(2, (2, 3))).argmax(1) % frechet.TURNS
        assert (turned == 2).double().mean() > 0.8
    assert frechet.own_distance(net, images, images) == pytest.approx(0, abs=1e-5)
    assert frechet.own_distance(net, images, 255 - images) > frechet.own_distance(net, images, images.flip(3))


@pytest.mark.parametrize("turns", range(frechet.TURNS))
def test_what_is_done_to_images(turns: int) -> None:
    """What the own features learn: each damage once, on an image turned so often."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(0, 256, (3, 18, 18)).astype(np.uint8))
    straight = x.rot90(turns, (1, 2)).float()
    plain, halved, noisy, shuffled = (
        frechet.changed_image(x, turns + frechet.TURNS * damage, rng) for damage in range(frechet.DAMAGES)
    )
    assert torch.equal(plain, straight)
    assert halved.shape == straight.shape
    assert halved.std() < 0.6 * straight.std()
    difference = noisy - straight
    assert difference[(straight > 50) & (straight < 200)].std() == pytest.approx(frechet.NOISE, rel=0.2)
    assert noisy.min() >= 0
    assert noisy.max() <= 255
    assert torch.equal(shuffled.flatten(1).sort().values, straight.flatten(1).sort().values)
    assert torch.equal(shuffled[:, 16:], straight[:, 16:])
    assert not torch.equal(shuffled, straight)


def test_rows_and_grids(tmp_path: Path) -> None:
    gray = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 16, 20) * 60
    assert pictures.save_rows(tmp_path / "rows.png", {"x": gray, "y": gray[:2]}) == ["rows.png"]
    sheet = picture(tmp_path / "rows.png")
    assert sheet.size == (4 * (60 + 2), 2 * (48 + 12 + 2))
    assert [sheet.getpixel((62 * i + 30, 12 + 24)) for i in range(4)] == [(60 * i,) * 3 for i in range(4)]
    assert sheet.getpixel((62 * 3 + 30, 62 + 12 + 24)) == (255, 255, 255)
    pictures.save_grid(tmp_path / "grid.png", gray, 2)
    assert picture(tmp_path / "grid.png").size == (2 * 62, 2 * 50)


def test_heat_maps() -> None:
    coloured = pictures.heat(torch.tensor([[[0.0, 1.0, 2.0]], [[5.0, 5.0, 5.0]]]))
    assert coloured[0, :, 0].T.tolist() == [[0, 0, 0], [230, 80, 40], [255, 255, 255]]
    assert coloured[1].max() == 0


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert pictures.save_points(tmp_path / "p.png", {"a": torch.rand(9, 2)}) == ["p.png"]
    assert picture(tmp_path / "p.png").size[0] > 300
    names = pictures.save_curves(tmp_path / "c.png", {"a": ([1, 10], [2, 3])}, "bits", "dB", log_x=True)
    assert names == ["c.png"]
    assert picture(tmp_path / "c.png").size[0] > 300
