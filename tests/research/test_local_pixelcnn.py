"""The local PixelCNN: which pixels a pixel's distribution may depend on, and that sampling keeps to it."""

import pytest
import torch
from torch import Tensor

from vbc.codec.research.parts.likelihoods import ColourMixture
from vbc.codec.research.parts.local_pixelcnn import LocalPixelCNN, block_conv, from_blocks, to_blocks
from vbc.kernels.research.masked_conv import RASTER, masked_conv_reference, patches


def network(side: int, channels: int = 1) -> LocalPixelCNN:
    """A network whose weights are not those of its start, where the maps depend on nothing."""
    torch.manual_seed(side)
    net = LocalPixelCNN(side, channels, 4, ColourMixture(channels, 2).start(), width=8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_blocks_come_back() -> None:
    x = torch.arange(2 * 3 * 6 * 9).view(2, 3, 6, 9)
    blocks = to_blocks(x, 3)
    assert torch.equal(blocks[1], x[0, :, :3, 3:6])
    assert torch.equal(from_blocks(blocks, 6, 9), x)
    with pytest.raises(ValueError, match="do not tile"):
        to_blocks(x, 4)


@pytest.mark.parametrize(
    ("side", "k", "kind"), [(3, 3, "A"), (3, 3, "B"), (5, 5, "A"), (5, 3, "B"), (2, 5, "A")]
)
def test_a_convolution_of_blocks_is_the_masked_one_of_the_image(side: int, k: int, kind: str) -> None:
    """Values and gradients, in float64."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2 * side, 3 * side, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, k, k, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True)
    ours = from_blocks(block_conv(to_blocks(x, side), w, b, patches(side), kind), 2 * side, 3 * side)
    known = masked_conv_reference(x, w, b, patches(side), kind)
    torch.testing.assert_close(ours, known)
    upstream = torch.randn_like(known)
    for ours_, known_ in zip(
        *(torch.autograd.grad(y, (x, w, b), upstream) for y in (ours, known)), strict=True
    ):
        torch.testing.assert_close(ours_, known_)


def test_raster_order_is_that_of_one_block() -> None:
    torch.manual_seed(0)
    x, w, b = torch.randn(1, 2, 4, 7), torch.randn(3, 2, 3, 3), torch.zeros(3)
    for kind in "AB":
        known = masked_conv_reference(x, w, b, RASTER, kind)
        torch.testing.assert_close(block_conv(x, w, b, RASTER, kind), known)


@pytest.mark.parametrize("side", [2, 3, 5])
def test_a_pixel_sees_earlier_ones_of_its_block_only(side: int) -> None:
    net = network(side)
    x = pixels(2, 1, side, side)
    h = torch.randn(2, 4, side, side)
    with torch.no_grad():
        before = net(x, h)
        for t in range(side * side):
            changed = x.clone()
            changed[0, 0].view(-1)[t] ^= 128
            moved = (net(changed, h) != before).any(1)
            assert not moved[1].any(), "another block's distributions changed"
            at = moved[0].flatten().nonzero().flatten()
            assert (at > t).all()
            assert t % side == side - 1 or t + 1 in at  # its neighbour to the right does see it


@pytest.mark.parametrize(("side", "channels"), [(3, 1), (3, 3), (5, 3)])
def test_sampling_follows_the_order_of_the_density(side: int, channels: int) -> None:
    """Each pixel is drawn from what the network says of it once the whole sample is known."""
    net, mixture = network(side, channels), ColourMixture(channels, 2)
    h = torch.randn(4, 4, side, side)
    generator = torch.Generator().manual_seed(0)
    used: list[Tensor] = []

    def draw(maps: Tensor) -> Tensor:
        used.append(maps)
        return mixture.sample(maps, generator)

    x = net.sample(h, draw)
    assert len(used) == side * side
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(used, 3).view(4, -1, side, side), net(x, h))


def test_masses_of_a_pixel_sum_to_one_given_the_earlier_ones() -> None:
    net, mixture = network(3), ColourMixture(1, 2)
    x = pixels(1, 1, 3, 3).repeat(256, 1, 1, 1)
    x[:, 0, 2, 2] = torch.arange(256)
    with torch.no_grad():
        maps = net(x, torch.randn(1, 4, 3, 3).expand(256, -1, -1, -1)).double()
    last = torch.zeros(1, 3, 3, dtype=torch.bool)
    last[0, 2, 2] = True
    assert mixture.nats(maps, x, last).neg().exp().sum().item() == pytest.approx(1, abs=1e-9)
    earlier = mixture.nats(maps, x, ~last)
    assert torch.equal(earlier, earlier[:1].expand(256))
