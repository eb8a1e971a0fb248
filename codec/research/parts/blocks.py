"""Networks of the ssVAE thesis (chapter 5.3): dense blocks that close with channel attention, ELU, weight
norm whose first values come from the first batch, no batch norm.

A convolution is made by `conv` or `upscale`; `initialise_from_batch` then gives each of them outputs of
mean 0 and variance 1. The convolutions that end a network, `Output`, start at a bias instead: what they say
before training is chosen there. They compute in float32, also where the rest runs in bfloat16.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

ATTENTION_RATIO = 8
"""How many times narrower the bottleneck of the channel attention is (released code)."""
WIDENING = 4
"""A dense unit of growth G has 4 G channels inside."""
SMALLEST_STD = 1e-3
"""Outputs that vary less on the first batch are not scaled up further."""


def conv(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A weight-normed convolution that keeps the size, or divides it by the stride."""
    layer: nn.Conv2d = weight_norm(nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2))
    return layer


def upscale(n_in: int, n_out: int) -> nn.ConvTranspose2d:
    """A weight-normed transposed 3x3 convolution to twice the size."""
    plain = nn.ConvTranspose2d(n_in, n_out, 3, 2, 1, output_padding=1)
    layer: nn.ConvTranspose2d = weight_norm(plain, dim=1)  # of its output channels
    return layer


class Output(nn.Module):
    """The last convolution of a network, in the type of its parameters, float32. It starts at its bias: its
    weights are zero."""

    def __init__(self, n_in: int, start: Tensor, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, start.numel(), kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv.weight)
        with torch.no_grad():
            assert self.conv.bias is not None
            self.conv.bias.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y: Tensor = self.conv(x.to(self.conv.weight.dtype))
        return y


@torch.no_grad()
def initialise_from_batch(model: nn.Module, run: Callable[[], object]) -> None:
    """Scale and shift every weight-normed convolution so that its outputs on this batch have mean 0 and
    variance 1 in each channel (Salimans and Kingma 2016, arXiv:1602.07868).

    run: calls the model on the first batch. Layers are set in the order in which they run, each on what the
    layers set before it give; one that runs twice is set the first time.
    """
    done: set[nn.Module] = set()

    def hook(layer: nn.Module, _: object, y: Tensor) -> Tensor | None:
        if layer in done:
            return None
        done.add(layer)
        mean, std = y.float().mean((0, 2, 3)), y.float().std((0, 2, 3)).clamp_min(SMALLEST_STD)
        length = layer.get_parameter("parametrizations.weight.original0")
        length.div_(std.view_as(length))
        layer.get_parameter("bias").sub_(mean).div_(std)
        return ((y - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)).to(y.dtype)

    layers = [m for m in model.modules() if is_parametrized(m, "weight")]
    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        run()
    finally:
        for handle in hooks:
            handle.remove()


class DenseUnit(nn.Module):
    """1x1 to 4 G, 3x3 to G, beside the input: [N, C, H, W] to [N, C + G, H, W]."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.widen = conv(n_in, WIDENING * growth, 1)
        self.look = conv(WIDENING * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(torch.cat((x, self.look(F.elu(self.widen(x)))), 1))


class Attention(nn.Module):
    """Channel attention: the means of the channels, through a bottleneck, give each channel its gate."""

    def __init__(self, n: int) -> None:
        super().__init__()
        narrow = max(1, n // ATTENTION_RATIO)
        self.gate = nn.Sequential(nn.Conv2d(n, narrow, 1), nn.ELU(), nn.Conv2d(narrow, n, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x.mean((2, 3), keepdim=True))
        return gated


class Block(nn.Sequential):
    """`n_units` dense units of growth G and channel attention: `n_out` = n_in + n_units * G channels."""

    def __init__(self, n_in: int, growth: int, n_units: int) -> None:
        units = [DenseUnit(n_in + i * growth, growth) for i in range(n_units)]
        n_out = n_in + n_units * growth
        super().__init__(*units, Attention(n_out))
        self.n_out = n_out


class Encoder(nn.Module):
    """`n_down` times a block and a 3x3 convolution of stride 2, channels and growth doubled; a last block.

    [N, C, H, W] to [N, n_out, H / 2^n_down, W / 2^n_down].
    """

    def __init__(self, n_in: int, growth: int, n_units: int, n_down: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(n_down):
            block = Block(n_in, growth << i, n_units)
            n_in = 2 * block.n_out
            layers += [block, conv(block.n_out, n_in, 3, 2), nn.ELU()]
        last = Block(n_in, growth << n_down, n_units)
        self.layers = nn.Sequential(*layers, last)
        self.n_out = last.n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Decoder(nn.Module):
    """`n_up` times a block and a transposed 3x3 convolution, channels and growth halved.

    [N, C, H, W] to [N, n_out, H * 2^n_up, W * 2^n_up].
    """

    def __init__(self, n_in: int, growth: int, n_units: int, n_up: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(n_up):
            block = Block(n_in, max(1, growth >> i), n_units)
            n_in = max(1, block.n_out // 2)
            layers += [block, upscale(block.n_out, n_in), nn.ELU()]
        self.layers = nn.Sequential(*layers)
        self.n_out = n_in

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.layers(z)
        return y


def gaussian_start(n_latents: int) -> Tensor:
    """The bias of an output that a posterior or a prior is read from: N(0, I) before training."""
    return torch.zeros(2 * n_latents)


def n_parameters(model: nn.Module) -> int:
    """Trained numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
