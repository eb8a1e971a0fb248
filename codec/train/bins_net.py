"""The bins of near-lossless files in float, as they are trained, and the rate that training minimises.

See docs/architecture.md, "Bins". A phase's channels are G, R and B, in steps of 2 bound + 1; what is seen of
the pixels known is what a decoder would have. The two inner hidden layers serve all kinds of files and grids.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vbc.bitstream.container import MAX_BOUND
from vbc.codec.exact.bins import bins_base
from vbc.codec.exact.features import (
    BASE_PLANES,
    LOG_SCALE_RANGE,
    LOSSY_PLANES,
    RADIUS,
    phase_inputs,
)
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES
from vbc.codec.pixels.colour import rgb_to_ycocg
from vbc.codec.pixels.interlace import PHASE_OFFSET, PHASES
from vbc.codec.train.exact_net import ExactNet, PhaseNet, error_class, pad_edge
from vbc.codec.train.likelihood import logistic_nll
from vbc.codec.train.qconv import ACTIVATION_STEP, QConv, QualityBias
from vbc.kernels.predict import N_ERROR_CLASSES

FROM_YCOCG = ((1.0, 0.0, 0.5), (1.0, 0.5, -0.5), (1.0, -0.5, -0.5))
"""G, R and B of Y, Co and Cg."""
SCALES_FROM_YCOCG = ((1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.0, 0.5, 0.5))
"""About the scales of G, of R given G, and of B given both."""
FIRST_COEFFICIENTS = (4.0, 4.0, 1.0)
"""By which R follows G, B follows G and B follows R, in quarters."""


class BinEnds(nn.Module):
    """A phase network's own layers for bins: of archival files, or of a level class of layered ones.

    level_bias: of archival ones, float [3, width]; condition: of layered ones. bound_bias: float [8, width].
    """

    def __init__(self, planes: int, width: int, layered: bool):
        super().__init__()
        inputs = planes + LOSSY_PLANES * layered
        self.first = QConv(inputs, width, 3)
        self.head = QConv(width, 9, 1, head=True)
        self.skip = QConv(inputs, 9, 3, head=True, zero=True)
        self.condition = QualityBias(width) if layered else None
        self.level_bias = None if layered else nn.Parameter(torch.zeros(N_LEVEL_CLASSES, width))
        self.bound_bias = nn.Parameter(torch.zeros(MAX_BOUND, width))

    def start(self, first: QConv, head: QConv, skip: QConv) -> None:
        """Begin as the exact network does: Y, Co and Cg made G, R and B."""
        with torch.no_grad():
            self.first.load_state_dict(first.state_dict())
            for ours, theirs in ((self.head, head), (self.skip, skip)):
                for ours_of, theirs_of in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
                    ours_of.zero_()
                    for rows, mix in ((slice(0, 3), FROM_YCOCG), (slice(3, 6), SCALES_FROM_YCOCG)):
                        matrix = torch.tensor(mix)
                        ours_of[rows] = torch.einsum("ij,j...->i...", matrix, theirs_of[rows])
            self.head.bias[6:] = torch.tensor(FIRST_COEFFICIENTS)


class PhaseBins(nn.Module):
    """The network of a phase."""

    def __init__(self, planes: int, width: int):
        super().__init__()
        self.archival = BinEnds(planes, width, layered=False)
        self.layered = nn.ModuleList(BinEnds(planes, width, layered=True) for _ in range(N_LEVEL_CLASSES))
        self.second = QConv(width, width, 3)
        self.third = QConv(width, width, 3)
        self.surprise = nn.Parameter(torch.zeros(2, N_ERROR_CLASSES))

    def layered_ends(self, level_class: int) -> BinEnds:
        """Those of a level class in a layered file."""
        ends = self.layered[level_class]
        assert isinstance(ends, BinEnds)
        return ends

    def start(self, nets: Sequence[PhaseNet], surprise: Tensor) -> None:
        """Begin as the exact networks of the level classes do; what is shared as that of the finest grid."""
        finest = nets[0]
        self.archival.start(finest.first, finest.head, finest.skip)
        self.second.load_state_dict(finest.second.state_dict())
        self.third.load_state_dict(finest.third.state_dict())
        with torch.no_grad():
            self.surprise.copy_(surprise)
        for c, net in enumerate(nets):
            ours, theirs = self.layered_ends(c), net.layered
            ours.start(theirs.first, theirs.head, theirs.skip)
            assert ours.condition is not None
            ours.condition.load_state_dict(theirs.condition.state_dict())


class BinsNet(nn.Module):
    """The three phases' networks for bins."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.phases = nn.ModuleDict({p: PhaseBins(BASE_PLANES[p], width) for p in PHASES})

    def bins(self, phase: str) -> PhaseBins:
        """The network of a phase."""
        bins = self.phases[phase]
        assert isinstance(bins, PhaseBins)
        return bins

    def start(self, exact: ExactNet) -> None:
        """Begin as the exact networks do."""
        for p in PHASES:
            nets = [exact.net(p, c) for c in range(N_LEVEL_CLASSES)]
            self.bins(p).start(nets, exact.surprise[p])

    def phase(
        self,
        phase: str,
        planes: Tensor,
        bound: Tensor,
        level_class: int,
        guide: Tensor | None = None,
        q: Tensor | None = None,
    ) -> Tensor:
        """Entropy parameters of a phase, float [N, 9, h, w].

        planes, guide: as `ExactNet.phase`. bound: int64 [N], 1 to 8. q: float [N], in a layered file.
        Outputs: 3 mean offsets (pixel values of G, R, B), 3 log2 scales (octaves), 3 coefficients (G->R,
        G->B, R->B; quarters).
        """
        bins = self.bins(phase)
        x = planes.float() * ACTIVATION_STEP
        if guide is None:
            ends = bins.archival
            assert ends.level_bias is not None
            bias = ends.level_bias[level_class].view(1, -1, 1, 1)
        else:
            assert q is not None
            ends = bins.layered_ends(level_class)
            assert ends.condition is not None
            x, bias = torch.cat((x, guide.float() * ACTIVATION_STEP), 1), ends.condition(q.view(-1, 1, 1, 1))
        bias = bias + ends.bound_bias[bound - 1][..., None, None]
        x = x.contiguous(memory_format=torch.channels_last)
        h, w = x.shape[-2:]
        hidden = bins.third(bins.second(ends.first(x, bias)))
        out: Tensor = ends.head(hidden) + ends.skip(x[..., 2 : h - 2, 2 : w - 2])
        return out


def phase_bits(bins: PhaseBins, out: Tensor, base: Tensor, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Bits per position of the three channels of one phase, float [N, 3, h, w], and what is decoded, int16
    likewise, limited to 0..255.

    base, x: G, R and B, int16 [N, 3, h, w]. step: float [N, 1, 1].
    """
    k = out[:, 6:9].clamp(-8, 8) / 4
    residuals: list[Tensor] = []
    classes: list[Tensor] = []
    bits, decoded = [], []
    for c in range(3):
        mean, scale = base[:, c] + out[:, c], out[:, 3 + c].clamp(*LOG_SCALE_RANGE)
        for i, r in enumerate(residuals):
            mean = mean + k[:, c - 1 + i] * r
        if c:
            worst = classes[0] if c == 1 else torch.maximum(*classes)
            scale = (scale + bins.surprise[c - 1][worst]).clamp(*LOG_SCALE_RANGE)
        centre = mean.detach().round().clamp(0, 255)
        symbol = torch.round((x[:, c] - centre) / step)
        value = centre + symbol * step
        bits.append(logistic_nll((value - mean) / step, scale - torch.log2(step)))
        seen = value.clamp(0, 255)
        decoded.append(seen)
        residuals.append(seen - mean)
        classes.append(error_class(residuals[-1].detach(), scale.detach()))
    return torch.stack(bits, 1), torch.stack(decoded, 1).detach().to(torch.int16)


def training_bits(
    bins: BinsNet,
    rgb: Tensor,
    coarse: Tensor,
    bound: Tensor,
    level_class: int,
    lossy: Tensor | None = None,
    q: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Bits of one grid step, summed, and the grid as it is decoded, uint8 RGB [N, 3, 2h, 2w].

    rgb: the grid, uint8 [N, 3, 2h, 2w] (even sizes). coarse: every second row and column of it as decoded,
    uint8 [N, 3, h, w]. bound: int64 [N]. lossy: the lossy picture, as `rgb`, with qualities q [N].
    """
    step = (2 * bound + 1).float().view(-1, 1, 1)
    planes = {"A": pad_edge(rgb_to_ycocg(coarse))}
    guides = None
    if lossy is not None:
        offsets = {"A": (0, 0), **PHASE_OFFSET}
        guides = {p: pad_edge(rgb_to_ycocg(lossy[..., dy::2, dx::2])) for p, (dy, dx) in offsets.items()}
    total = rgb.new_zeros((), dtype=torch.float32)
    decoded = rgb.clone()
    decoded[..., ::2, ::2] = coarse
    for p in PHASES:
        dy, dx = PHASE_OFFSET[p]
        base, inputs, guide = phase_inputs(p, planes["A"], planes.get("D"), planes.get("H"), guides)
        out = bins.phase(p, inputs, bound, level_class, guide, q)
        own = bins_base(base[..., RADIUS:-RADIUS, RADIUS:-RADIUS])
        target = rgb[:, (1, 0, 2), dy::2, dx::2].to(torch.int16)
        bits, seen = phase_bits(bins.bins(p), out, own, target, step)
        total = total + bits.sum()
        here = seen[:, (1, 0, 2)].to(torch.uint8)
        decoded[..., dy::2, dx::2] = here
        if p == PHASES[-1]:
            break
        planes[p] = pad_edge(rgb_to_ycocg(here))
    return total, decoded
