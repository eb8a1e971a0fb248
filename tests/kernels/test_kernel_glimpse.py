"""Glimpses: crop and paste in float with gradients, and through boxes in integers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.kernels.research.glimpse import crop, invert, paste
from vbc.kernels.research.glimpse_box import crop_boxes, invert_boxes, paste_boxes, resample_boxes_reference

SIZES = [
    # images, channels, height, width, glimpses, side
    (1, 1, 1, 1, 1, 1),
    (2, 3, 17, 13, 5, 6),
    (3, 2, 9, 33, 7, 17),
]


def scene(n: int, c: int, h: int, w: int, g: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, transforms (turned, scaled, partly outside), index."""
    r = torch.Generator().manual_seed(h * w + g)
    images = torch.randn(n, c, h, w, generator=r)
    transforms = torch.randn(g, 2, 3, generator=r) * 0.4 + torch.tensor([[0.6, 0, 0], [0, 0.6, 0]])
    return images, transforms, torch.randint(0, n, (g,), generator=r)


def with_gradients(f: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = f(*leaves)
    factor = torch.arange(y.numel(), device=y.device).view(y.shape) % 5 - 1.5
    (y * factor).sum().backward()
    return [y.detach(), *(t.grad for t in leaves if t.grad is not None)]


def close(have: list[Tensor], want: list[Tensor]) -> None:
    """float32 within 2e-4 of the largest value of float64."""
    assert len(have) == len(want) == 3
    for a, b in zip(have, want, strict=True):
        assert a.dtype == torch.float32
        assert float((a.cpu().double() - b).abs().max()) <= 2e-4 * (1 + float(b.abs().max()))


@pytest.mark.parametrize("size", SIZES)
def test_reference_is_grid_sample(size: tuple[int, ...]) -> None:
    n, c, h, w, g, side = size
    images, transforms, index = scene(n, c, h, w, g)
    images, transforms = images.double(), transforms.double()
    grid = F.affine_grid(transforms, [g, c, side, side], align_corners=False)
    want = F.grid_sample(images[index], grid, align_corners=False)
    assert torch.allclose(crop(images, transforms, index, side), want, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_crop(size: tuple[int, ...], device: str) -> None:
    n, c, h, w, g, side = size
    images, transforms, index = scene(n, c, h, w, g)
    want = with_gradients(lambda a, b: crop(a, b, index, side), images.double(), transforms.double())
    at = index.to(device)
    close(with_gradients(lambda a, b: crop(a, b, at, side), images.to(device), transforms.to(device)), want)


@pytest.mark.parametrize("size", SIZES)
def test_paste(size: tuple[int, ...], device: str) -> None:
    n, c, h, w, g, side = size
    patches = torch.randn(g, c, side, side, generator=torch.Generator().manual_seed(2))
    _, transforms, index = scene(n, c, h, w, g)

    def both(p: Tensor, t: Tensor) -> Tensor:
        return torch.cat(paste(p, t, index.to(p.device), (n, h, w)), 1)

    want = with_gradients(both, patches.double(), transforms.double())
    close(with_gradients(both, patches.to(device), transforms.to(device)), want)


def test_gradients_of_the_reference() -> None:
    images, transforms, index = scene(2, 1, 5, 4, 2)
    a, b = images.double().requires_grad_(), transforms.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: crop(a, b, index, 3), (a, b))
    patches = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: paste(a, b, index, (2, 4, 5)), (patches, b))


def test_paste_puts_back_what_crop_took(device: str) -> None:
    """Whole-pixel boxes: the crop is a slice, its paste restores the slice, and the coverage is 1 there."""
    image = torch.randn(1, 2, 12, 16, generator=torch.Generator().manual_seed(1))
    transform = torch.tensor([[[0.5, 0.0, -0.25], [0.0, 2 / 3, 1 / 6]]])  # columns 2..9, rows 3..10
    index = torch.zeros(1, dtype=torch.int64)
    taken = crop(image.to(device), transform.to(device), index.to(device), 8)
    assert torch.allclose(taken.cpu()[0], image[0, :, 3:11, 2:10], atol=1e-5)
    total, cover = paste(taken, transform.to(device), index.to(device), (1, 12, 16))
    inside = torch.zeros(1, 1, 12, 16)
    inside[:, :, 3:11, 2:10] = 1
    assert torch.allclose(cover.cpu(), inside, atol=1e-5)
    assert torch.allclose(total.cpu(), image * inside, atol=1e-4)


def test_far_outside_is_zero(device: str) -> None:
    images, transforms, index = scene(1, 2, 5, 5, 3)
    transforms[:, :, 2] = torch.tensor([[9.0, 0], [1e30, -1e30], [0, -1e9]])
    assert not crop(images.to(device), transforms.to(device), index.to(device), 4).cpu().any()


def test_invert() -> None:
    _, t, _ = scene(1, 1, 3, 3, 4)
    t = t.double()
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(4, 1, 3)
    product = torch.cat((t, last), 1) @ torch.cat((invert(t), last), 1)
    assert torch.allclose(product, torch.eye(3, dtype=torch.float64).expand(4, -1, -1), atol=1e-9)


def box_scene(n: int, g: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    r = torch.Generator().manual_seed(h * w + g)
    start = torch.randint(-3 << 16, max(h, w) << 16, (g, 2), generator=r)
    step = torch.randint(1, 3 << 16, (g, 2), generator=r)
    boxes = torch.cat((start, step), 1)
    boxes[0] = torch.tensor([-(2**30), 2**30, 2**30, -(2**30)])
    return boxes, torch.randint(0, n, (g,), generator=r)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_boxes(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    n, c, h, w, g, side = size
    low, high = (0, 256) if dtype == torch.uint8 else (-16383, 16384)
    r = torch.Generator().manual_seed(9)
    images = torch.randint(low, high, (n, c, h, w), generator=r).to(dtype)
    patches = torch.randint(low, high, (g, c, side, side), generator=r).to(dtype)
    boxes, index = box_scene(n, g, h, w)
    each = torch.arange(g)
    want = resample_boxes_reference(images, boxes, index, each, (g, side, side))[0].to(dtype)
    have = crop_boxes(*(t.to(device) for t in (images, boxes, index)), side)
    assert have.dtype == dtype
    assert torch.equal(have.cpu(), want)
    wanted = resample_boxes_reference(patches, boxes, each, index, (n, h, w))
    found = paste_boxes(*(t.to(device) for t in (patches, boxes, index)), (n, h, w))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.int32
        assert torch.equal(a.cpu(), b)


def test_boxes_by_hand() -> None:
    """A quarter between two pixels, and half a pixel over the edge, where the outside counts as 0."""
    image = torch.tensor([[[[10, 20, 40]]]], dtype=torch.uint8)
    zero = torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[1 << 14, 0, 1 << 16, 1 << 16]])
    assert resample_boxes_reference(image, box, zero, zero, (1, 1, 3))[0].tolist() == [[[[13, 25, 30]]]]
    box[0, 1] = -(1 << 15)
    total, cover = resample_boxes_reference(image, box, zero, zero, (1, 1, 3))
    assert total.tolist() == [[[[6, 13, 15]]]]
    assert cover.tolist() == [[[[32768, 32768, 24576]]]]


def test_boxes_whole_pixels_round_trip(device: str) -> None:
    image = torch.randint(
        0, 256, (1, 3, 10, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(6)
    )
    boxes = torch.tensor([[2 << 16, 3 << 16, 1 << 16, 1 << 16]])
    zero = torch.zeros(1, dtype=torch.int64)
    taken = crop_boxes(*(t.to(device) for t in (image, boxes, zero)), 5)
    assert torch.equal(taken.cpu()[0], image[0, :, 3:8, 2:7])
    total, cover = paste_boxes(taken, invert_boxes(boxes).to(device), zero.to(device), (1, 10, 11))
    inside = torch.zeros(1, 1, 10, 11, dtype=torch.int32)
    inside[:, :, 3:8, 2:7] = 1
    assert torch.equal(cover.cpu(), inside << 16)
    assert torch.equal(total.cpu(), image * inside)


def test_wrong_arguments() -> None:
    images, transforms, index = scene(2, 1, 4, 4, 3)
    boxes = torch.ones(3, 4, dtype=torch.int64)
    for wrong in (
        lambda: crop(images, transforms, index + 2, 3),
        lambda: crop(images, transforms[:2], index, 3),
        lambda: crop(images, transforms, index, 0),
        lambda: crop(images.half(), transforms, index, 3),
        lambda: paste(images[:1], transforms, index, (2, 0, 4)),
        lambda: crop_boxes(images, boxes, index, 3),
        lambda: crop_boxes(images.to(torch.uint8), boxes, index - 9, 3),
        lambda: crop_boxes(images.to(torch.uint8), boxes << 48, index, 3),
        lambda: invert_boxes(boxes * 0),
    ):
        with pytest.raises(ValueError, match="must"):
            wrong()
