"""The exact levels' networks in float, as they are trained, and the rate that training minimises.

See docs/architecture.md, "Exact levels".
"""

import torch
from torch import Tensor, nn

from vbc.codec.exact.features import (
    BASE_PLANES,
    HALO,
    LOG_SCALE_RANGE,
    LOSSY_PLANES,
    RADIUS,
    phase_inputs,
)
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.interlace import PHASE_OFFSET, PHASES
from vbc.codec.train.likelihood import logistic_nll
from vbc.codec.train.qconv import ACTIVATION_STEP, QConv, QualityBias
from vbc.kernels.predict import N_ERROR_CLASSES


class LayeredEnds(nn.Module):
    """A phase network's layers in a layered file."""

    def __init__(self, planes: int, width: int):
        super().__init__()
        self.first = QConv(planes + LOSSY_PLANES, width, 3)
        self.head = QConv(width, 9, 1, head=True)
        self.skip = QConv(planes + LOSSY_PLANES, 9, 3, head=True, zero=True)
        self.condition = QualityBias(width)


class PhaseNet(nn.Module):
    """Entropy parameters of one phase on grids of one level class.

    Input planes are int -64..63 standing for sixteenths, as all activations do.
    """

    def __init__(self, planes: int, width: int):
        super().__init__()
        self.first = QConv(planes, width, 3)
        self.second = QConv(width, width, 3)
        self.third = QConv(width, width, 3)
        self.head = QConv(width, 9, 1, head=True)
        self.skip = QConv(planes, 9, 3, head=True, zero=True)
        self.layered = LayeredEnds(planes, width)
        with torch.no_grad():
            self.head.weight.mul_(0.3)
            self.head.bias[3:6] = torch.tensor([1.0, 0.5, 0.5])
        self.copy_to_layered()

    def copy_to_layered(self) -> None:
        """Let the layered ends begin as the archival ones, blind to the lossy picture."""
        with torch.no_grad():
            for ours, theirs in ((self.layered.first, self.first), (self.layered.skip, self.skip)):
                ours.weight.zero_()
                ours.weight[:, : theirs.weight.shape[1]] = theirs.weight
                ours.bias.copy_(theirs.bias)
            self.layered.head.load_state_dict(self.head.state_dict())

    def forward(self, planes: Tensor, lossy: Tensor | None = None, q: Tensor | None = None) -> Tensor:
        """Entropy parameters, float [N, 9, h, w].

        planes: float [N, planes, h+6, w+6] in units of 1/16; lossy: [N, 12, h+6, w+6] likewise.
        Outputs: 3 mean offsets (pixel values), 3 log2 scales (octaves), 3 coefficients (Y->Co, Y->Cg,
        Co->Cg; quarters).
        """
        first, head, skip = self.first, self.head, self.skip
        bias = None
        if lossy is not None:
            assert q is not None
            first, head, skip = self.layered.first, self.layered.head, self.layered.skip
            planes, bias = torch.cat((planes, lossy), 1), self.layered.condition(q.view(-1, 1, 1, 1))
        x = self.third(self.second(first(planes, bias)))
        h, w = planes.shape[-2:]
        out: Tensor = head(x) + skip(planes[..., 2 : h - 2, 2 : w - 2])
        return out


class ExactNet(nn.Module):
    """The networks of the exact levels: one for each phase and level class.

    What known pixels and a lossy picture are worth depends on the grid: on coarse ones the lossy picture says
    most of the detail, on the finest little. surprise: by phase, float [2, 9], octaves that are added to the
    scales of Co and Cg.
    """

    def __init__(self, width: int = 48):
        super().__init__()
        self.width = width
        self.nets = nn.ModuleDict(
            {f"{p}{c}": PhaseNet(BASE_PLANES[p], width) for p in PHASES for c in range(N_LEVEL_CLASSES)}
        )
        self.surprise = nn.ParameterDict({p: torch.zeros(2, N_ERROR_CLASSES) for p in PHASES})

    def net(self, phase: str, level_class: int) -> PhaseNet:
        """The network of a phase on grids of a level class."""
        net = self.nets[f"{phase}{level_class}"]
        assert isinstance(net, PhaseNet)
        return net

    def phase(
        self,
        phase: str,
        planes: Tensor,
        level_class: int,
        guide: Tensor | None = None,
        q: Tensor | None = None,
    ) -> Tensor:
        """Entropy parameters of a phase.

        From its integer planes and, in a layered file, those of the lossy picture.
        """
        x = (planes.float() * ACTIVATION_STEP).contiguous(memory_format=torch.channels_last)
        lossy = None if guide is None else guide.float() * ACTIVATION_STEP
        out: Tensor = self.net(phase, level_class)(x, lossy, q)
        return out


def error_class(residual: Tensor, log2_scale: Tensor) -> Tensor:
    """Class of how large a decoded residual was against its scale, in octaves.

    int64 0..8, 4 where |residual| equals the scale.
    """
    ratio = torch.log2(residual.abs() + 0.25) - log2_scale
    return (torch.round(ratio) + 4).clamp(0, N_ERROR_CLASSES - 1).long()


def phase_bits(net: ExactNet, phase: str, out: Tensor, base: Tensor, x: Tensor) -> Tensor:
    """Bits per position of the three channels of one phase: float [N, 3, h, w].

    base, x: int16 [N, 3, h, w].
    """
    lut = net.surprise[phase]
    r = (x - base).float() - out[:, 0:3]
    ls = out[:, 3:6].clamp(*LOG_SCALE_RANGE)
    k = out[:, 6:9].clamp(-8, 8) / 4
    r_co = r[:, 1] - k[:, 0] * r[:, 0]
    r_cg = r[:, 2] - k[:, 1] * r[:, 0] - k[:, 2] * r_co
    s_y = error_class(r[:, 0].detach(), ls[:, 0].detach())
    ls_co = (ls[:, 1] + lut[0][s_y]).clamp(*LOG_SCALE_RANGE)
    s_co = error_class(r_co.detach(), ls_co.detach())
    ls_cg = (ls[:, 2] + lut[1][torch.maximum(s_y, s_co)]).clamp(*LOG_SCALE_RANGE)
    return logistic_nll(torch.stack((r[:, 0], r_co, r_cg), 1), torch.stack((ls[:, 0], ls_co, ls_cg), 1))


def step_planes(x: Tensor) -> dict[str, Tensor]:
    """Planes A, D, H, V of a grid of even sizes, padded by `HALO`."""
    offsets = {"A": (0, 0), **PHASE_OFFSET}
    return {p: pad_edge(x[..., dy::2, dx::2]) for p, (dy, dx) in offsets.items()}


def inputs_with_gradient(
    phase: str, a: Tensor, d: Tensor | None, h: Tensor | None, lossy: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`phase_inputs` of a lossy picture in float that is trained too: the same integers, with the gradient of
    what they are without rounding."""
    whole = {name: plane.detach().to(torch.int16) for name, plane in lossy.items()}
    base, planes, guide = phase_inputs(phase, a, d, h, whole)
    smooth_base, smooth_planes, smooth_guide = phase_inputs(phase, a, d, h, lossy)
    assert guide is not None
    assert smooth_guide is not None
    pairs = ((base, smooth_base), (planes, smooth_planes), (guide, smooth_guide))
    first, second, third = (exact + (smooth - smooth.detach()) for exact, smooth in pairs)
    return first, second, third


def training_bits(
    net: ExactNet, x: Tensor, level_class: int, lossy: Tensor | None = None, q: Tensor | None = None
) -> Tensor:
    """Bits of one grid step, summed, for x: int16 YCoCg-R [N, 3, 2h, 2w] (even sizes).

    lossy: the lossy picture, likewise; whole numbers in float where it is trained too.
    """
    planes = step_planes(x)
    guides = None if lossy is None else step_planes(lossy)
    total = x.new_zeros((), dtype=torch.float32)
    for p in PHASES:
        if guides is not None and guides[p].is_floating_point():
            base, inputs, guide = inputs_with_gradient(p, planes["A"], planes["D"], planes["H"], guides)
        else:
            base, inputs, guide = phase_inputs(p, planes["A"], planes["D"], planes["H"], guides)
        out = net.phase(p, inputs, level_class, guide, q)
        inner = slice(RADIUS, -RADIUS)
        target = planes[p][..., HALO:-HALO, HALO:-HALO]
        total = total + phase_bits(net, p, out, base[..., inner, inner], target).sum()
    return total


def pad_edge(x: Tensor) -> Tensor:
    """Replicate the border by `HALO` positions: [N, C, h+8, w+8]."""
    h, w = x.shape[-2:]
    rows, cols = (torch.arange(-HALO, n + HALO, device=x.device).clamp_(0, n - 1) for n in (h, w))
    return x[..., rows, :][..., cols]
