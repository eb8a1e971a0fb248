"""Export: float networks to the integers of the file format (docs/architecture.md, "Exact integer networks").

Every network input is a plane of integers -64..63 that the integer layers see as 0..127; the 64 is folded
into the bias.
"""

import torch
from torch import Tensor

from vbc.codec.lossy.latents import STEP_OCTAVES, STEP_UNIT, dct_matrix, latent_order
from vbc.codec.nets.int_nets import N_LEVEL_CLASSES, ZERO, Tensors
from vbc.codec.pixels.interlace import PHASES
from vbc.codec.train.bins_net import BinEnds, BinsNet
from vbc.codec.train.exact_net import ExactNet
from vbc.codec.train.lossy_net import Chain, LossyNet
from vbc.codec.train.qconv import (
    ACTIVATION_MAX,
    ACTIVATION_STEP,
    Q_MAX,
    WEIGHT_MAX,
    QConv,
    QualityBias,
    weight_shift,
)
from vbc.codec.train.values_net import ValuesNet
from vbc.kernels.predict import N_ERROR_CLASSES

ACCUMULATOR_LIMIT = 1 << 24
LOG_RESIDUALS = 8192


def export_conv(layer: QConv, zero: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight int8 [O, I, k, k], shift int32 [O], bias int32 [O], and the factor from float biases to it.

    zero: the input's zero point. A channel whose accumulator could reach 2^24 loses weight bits until it
    holds.
    """
    weight, bias = (x.detach().double().cpu() for x in (layer.weight, layer.bias))
    shift = weight_shift(weight)
    while True:
        scale = torch.exp2(shift.double())
        w = torch.round(weight * scale.view(-1, 1, 1, 1)).clamp(-WEIGHT_MAX, WEIGHT_MAX)
        b = torch.round(bias * scale / ACTIVATION_STEP) - zero * w.sum((1, 2, 3))
        # the bias twice: conditions move it
        peak = ACTIVATION_MAX * w.abs().sum((1, 2, 3)) + 2 * b.abs() + scale
        over = peak >= ACCUMULATOR_LIMIT
        if not over.any():
            return w.to(torch.int8), shift.int(), b.int(), scale / ACTIVATION_STEP
        shift = shift - over.long()


def put_conv(out: Tensors, name: str, layer: QConv, zero: int = 0) -> Tensor:
    """Export a layer under `name`; returns the factor from a float bias to the accumulator."""
    weight, shift, bias, factor = export_conv(layer, zero)
    out[f"{name}.weight"], out[f"{name}.shift"], out[f"{name}.bias"] = weight, shift, bias
    return factor


def quality_biases(condition: QualityBias) -> Tensor:
    """The condition's values float64 [101, width] at every quality."""
    q = torch.arange(Q_MAX + 1).double()
    t = q / (Q_MAX / 2) - 1
    powers = torch.stack((torch.ones_like(t), t, t * t), 1)
    return powers @ condition.coefficients.detach().double().cpu()


def put_chain(out: Tensors, name: str, chain: Chain) -> None:
    """Export a chain: its layers, and its first biases int32 [uses, width]."""
    for i, layer in enumerate(chain.layers):
        assert isinstance(layer, QConv)
        put_conv(out, f"{name}.{i}", layer, ZERO if i == 0 else 0)
    put_conv(out, f"{name}.head", chain.head)
    first = chain.layers[0]
    assert isinstance(first, QConv)
    *_, bias, factor = export_conv(first, ZERO)
    out[f"{name}.condition"] = (bias + torch.round(chain.use_bias.detach().double().cpu() * factor)).int()


def export_exact(net: ExactNet) -> Tensors:
    """All integers of the exact levels but the tables."""
    out: Tensors = {}
    for p in PHASES:
        for c in range(N_LEVEL_CLASSES):
            n, name = net.net(p, c), f"exact.{p}{c}"
            put_conv(out, f"{name}.first", n.first, ZERO)
            put_conv(out, f"{name}.second", n.second)
            put_conv(out, f"{name}.third", n.third)
            put_conv(out, f"{name}.head", n.head)
            put_conv(out, f"{name}.skip", n.skip, ZERO)
            ends, prefix = n.layered, f"{name}.layered"
            factor = put_conv(out, f"{prefix}.first", ends.first, ZERO)
            put_conv(out, f"{prefix}.head", ends.head)
            put_conv(out, f"{prefix}.skip", ends.skip, ZERO)
            moved = torch.round(quality_biases(ends.condition) * factor)
            out[f"{prefix}.condition"] = (out[f"{prefix}.first.bias"] + moved).int()
        out[f"exact.{p}.surprise"] = torch.round(net.surprise[p].detach().cpu() * 16).to(torch.int16)
        assert out[f"exact.{p}.surprise"].shape == (2, N_ERROR_CLASSES)
    r = torch.arange(LOG_RESIDUALS).double() / 16
    out["exact.log2_residual"] = torch.round(16 * torch.log2(r + 0.25)).to(torch.int16)
    return out


def export_bins(net: BinsNet) -> Tensors:
    """All integers of the bins but the tables."""
    out: Tensors = {}
    for p in PHASES:
        bins = net.bins(p)
        archival, name = bins.archival, f"exact.{p}.bins"
        assert archival.level_bias is not None
        put_conv(out, f"{name}.second", bins.second)
        put_conv(out, f"{name}.third", bins.third)
        put_bin_ends(out, name, archival, archival.level_bias.detach().double().cpu())
        for c in range(N_LEVEL_CLASSES):
            ends = bins.layered_ends(c)
            assert ends.condition is not None
            put_bin_ends(out, f"{name}.layered{c}", ends, quality_biases(ends.condition))
        out[f"{name}.surprise"] = torch.round(bins.surprise.detach().cpu() * 16).to(torch.int16)
    return out


def export_values(net: ValuesNet) -> Tensors:
    """All integers of the values that follow bins but the tables."""
    out: Tensors = {}
    for p in PHASES:
        put_chain(out, f"exact.{p}.values", net.chain(p))
    return out


def put_bin_ends(out: Tensors, name: str, ends: BinEnds, conditions: Tensor) -> None:
    """Export the layers for bins of one kind of file. conditions: float64 [rows, width]."""
    factor = put_conv(out, f"{name}.first", ends.first, ZERO)
    put_conv(out, f"{name}.head", ends.head)
    put_conv(out, f"{name}.skip", ends.skip, ZERO)
    out[f"{name}.condition"] = (out[f"{name}.first.bias"] + torch.round(conditions * factor)).int()
    by_bound = ends.bound_bias.detach().double().cpu()
    out[f"{name}.bound"] = torch.round(by_bound * factor).int()


def integer_basis(n: int, bits: int = 12) -> Tensor:
    """The separable n x n DCT as integers, int64 [n*n frequencies (raster), n*n samples], times 2^bits."""
    d = dct_matrix(n)
    return torch.round(torch.einsum("ui,vj->uvij", d, d).reshape(n * n, n * n) * 2**bits).long()


def export_lossy(net: LossyNet) -> Tensors:
    """All integers of the lossy levels but the tables, and the float analysis network of the encoder."""
    out: Tensors = {}
    for p in PHASES:
        put_chain(out, f"lossy.context.{p}", net.context_chain(p))
    put_chain(out, "lossy.prior2", net.prior2)
    put_chain(out, "lossy.prior3", net.prior3)
    put_chain(out, "lossy.neighbours2", net.neighbours2)
    put_chain(out, "lossy.neighbours3", net.neighbours3)
    put_chain(out, "lossy.enhance", net.enhance)
    q = torch.arange(Q_MAX + 1).double()
    log2_step = net.log2_step.detach().double().cpu()[None] - q[:, None] * STEP_OCTAVES
    out["lossy.step"] = torch.round(torch.exp2(log2_step) * STEP_UNIT).int()
    out["lossy.log2_step"] = torch.round(log2_step * 16).to(torch.int16)
    out["lossy.first_scale"] = torch.round(net.first_scale.detach().cpu() * 16).to(torch.int16)
    for n in (2, 4, 8):
        out[f"lossy.basis{n}"] = integer_basis(n).to(torch.int16)
    for part in ("analysis_in", "analysis_mid", "analysis_out"):
        out[f"analysis.{part}.weight"] = getattr(net, part).weight.detach().float().cpu()
        out[f"analysis.{part}.bias"] = getattr(net, part).bias.detach().float().cpu()
    out["analysis.condition"] = quality_biases(net.analysis_condition).float()
    assert len(latent_order()) == out["lossy.step"].shape[1]
    return out
