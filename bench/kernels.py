"""How fast is each kernel, against torch and against the machine? `python -m bench.kernels [--quick]`

One JSON line for the machine's measured rates, then one per kernel: its time, that of the same arithmetic
in eager torch and under torch.compile, and the least time the machine needs: bytes moved over the measured
copy rate, or operations over the measured matrix product rate, whichever is longer. Times are medians. On
the CPU the kernels' CPU paths are measured.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vbc.kernels.conv import IntConv
from vbc.kernels.dispatch import require_device
from vbc.kernels.logistic import (
    logistic_bits,
    logistic_bits_reference,
    table_index,
    table_index_reference,
)
from vbc.kernels.predict import N_KEYS, ChannelPredictor, Corrections, PredictMaps
from vbc.kernels.rans import TOTAL, cumulative_tables, decode_step, open_lanes
from vbc.kernels.research.glimpse import crop, paste, resample_reference
from vbc.kernels.research.glimpse_box import crop_boxes, resample_boxes_reference
from vbc.kernels.research.glimpse_points import look_at, look_at_reference
from vbc.kernels.research.masked_conv import CHECKERBOARD, IntMaskedConv, masked_conv, n_products, plan
from vbc.kernels.research.mixture import mixture_bits, mixture_bits_reference

Run = Callable[[], object]


@dataclass
class Case:
    """One measurement. n_bytes: read and written at least. n_ops: two per multiplication, of products of
    `numbers`."""

    name: str
    kernel: Run
    eager: Run | None
    n_bytes: int
    n_ops: int = 0
    numbers: str = "float32"


def median_ms(run: Run, device: torch.device, budget_s: float = 0.5) -> float:
    """Median time of one call after two calls to warm up."""
    times: list[float] = []
    for _ in range(2):
        run()
    spent = 0.0
    while spent < budget_s or len(times) < 5:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            before = time.perf_counter()
            run()
            times.append((time.perf_counter() - before) * 1e3)
        spent += times[-1] / 1e3
    return statistics.median(times)


def machine_rates(device: torch.device, quick: bool) -> dict[str, float]:
    """Copy rate in bytes per second (read and written) and matrix product rates in operations per second."""
    n = 1 << (24 if quick else 28)
    a = torch.zeros(n, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    rates = {"copy": 2 * n / (median_ms(lambda: b.copy_(a), device) * 1e-3)}
    side = 1024 if quick or device.type == "cpu" else 8192
    torch.backends.cuda.matmul.allow_tf32 = False
    x = torch.randn(side, side, device=device)
    operations = 2 * side**3
    rates["float32"] = operations / (median_ms(lambda: x @ x, device) * 1e-3)
    if device.type == "cuda":
        half = x.half()
        rates["float16"] = operations / (median_ms(lambda: half @ half, device) * 1e-3)
        left = torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device)
        right = left.t().contiguous().t()
        rates["int8"] = operations / (median_ms(lambda: torch._int_mm(left, right), device) * 1e-3)
    return rates


def n_bytes(*tensors: Tensor) -> int:
    """Their storage."""
    return sum(t.numel() * t.element_size() for t in tensors)


def with_backward(f: Callable[..., Tensor], *leaves: Tensor) -> Run:
    """Forward and backward of the sum."""

    def run() -> None:
        for t in leaves:
            t.grad = None
        f(*leaves).sum().backward()

    return run


def conv_cases(device: torch.device, side: int) -> Iterator[Case]:
    """The layers of the exact levels' networks."""
    for c, o, k, head in ((48, 48, 3, False), (15, 48, 3, False), (48, 9, 1, True)):
        x = torch.randint(0, 128, (1, c, side, side), dtype=torch.uint8, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randint(-30, 31, (o, c, k, k), dtype=torch.int8, device=device)
        bias, shift = torch.zeros(o, dtype=torch.int32, device=device), torch.full((o,), 8, device=device)
        conv = IntConv(weight, bias, shift, head)
        xf = x.float().contiguous(memory_format=torch.channels_last)
        wf = weight.float().contiguous(memory_format=torch.channels_last)

        def eager(xf: Tensor = xf, wf: Tensor = wf, head: bool = head) -> Tensor:
            y = torch.floor(F.conv2d(xf, wf) * 2.0**-8 + 0.5)
            return y if head else y.clamp(0, 127)

        y = conv(x)
        yield Case(
            f"conv {c}-{o} {k}x{k}{' head' if head else ''}",
            lambda conv=conv, x=x: conv(x),
            eager,
            n_bytes(x, weight, y),
            2 * y.numel() * c * k * k,
            "int8",
        )


def logistic_cases(device: torch.device, side: int) -> Iterator[Case]:
    """Likelihoods with their gradients, and the table index."""
    r = torch.randn(1, 9, side, side, device=device, requires_grad=True)
    s = torch.randn(1, 9, side, side, device=device, requires_grad=True)
    f, g = with_backward(logistic_bits, r, s), with_backward(logistic_bits_reference, r, s)
    yield Case("logistic bits and gradient", f, g, 7 * n_bytes(r))
    k = 5
    params = torch.randn(1, 10 * k, side, side, device=device, requires_grad=True)
    x = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, device=device)
    yield Case(
        "mixture bits and gradient",
        with_backward(lambda p: mixture_bits(p, x), params),
        with_backward(lambda p: mixture_bits_reference(p, x), params),
        3 * n_bytes(params) + 2 * n_bytes(x),
    )
    mean = torch.randint(-4000, 4000, (1, 9, side, side), dtype=torch.int32, device=device)
    scale = torch.randint(-64, 96, (1, 9, side, side), dtype=torch.int32, device=device)
    yield Case(
        "table index",
        lambda: table_index(mean, scale, -64, 41),
        lambda: table_index_reference(mean, scale, -64, 41),
        3 * n_bytes(mean),
    )


def masked_cases(device: torch.device, side: int) -> Iterator[Case]:
    """The checkerboard context of level 1, 96 channels, 5x5."""
    c, o, k = 96, 96, 5
    mask = torch.zeros(2, 1, 1, k, k, device=device)
    for cell in (0, 1):
        for _, _, index in plan(CHECKERBOARD, k, "A").cells[cell].taps:
            mask[cell].view(-1)[index] = 1
    x = torch.randn(1, c, side, side, device=device).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(o, c, k, k, device=device), torch.zeros(o, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    products = n_products(plan(CHECKERBOARD, k, "A").cells, 2, side, side) * c * o

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * mask[1], bias, padding=k // 2)

    yield Case(
        "masked conv and gradient",
        with_backward(lambda *t: masked_conv(*t, CHECKERBOARD, "A"), *leaves),
        with_backward(dense, *leaves),
        5 * n_bytes(x),
        6 * products,
    )
    xi = torch.randint(0, 128, x.shape, dtype=torch.uint8, device=device)
    xi = xi.contiguous(memory_format=torch.channels_last)
    wi = torch.randint(-20, 21, weight.shape, dtype=torch.int8, device=device)
    layer = IntMaskedConv(wi, bias.detach().int(), torch.full((o,), 8, device=device), CHECKERBOARD, "A")
    xf, wf = xi.float().contiguous(memory_format=torch.channels_last), wi.float() * mask[1]
    yield Case(
        "masked conv, integers",
        lambda: layer(xi),
        lambda: torch.floor(F.conv2d(xf, wf, padding=k // 2) * 2.0**-8 + 0.5).clamp(0, 127),
        2 * n_bytes(xi) + n_bytes(wi),
        2 * products,
        "int8",
    )


def predict_cases(device: torch.device, side: int) -> Iterator[Case]:
    """Tables and means of the last channel, which follows both others."""
    n = side * side
    base = torch.randint(-255, 256, (3, n), dtype=torch.int16, device=device)
    out = torch.randint(-500, 500, (9, n), dtype=torch.int32, device=device)
    linear = torch.randint(-50, 50, (6, n), dtype=torch.int32, device=device)
    moves = torch.randint(-9999, 9999, (3, n), dtype=torch.int32, device=device)
    before = torch.randint(-50, 50, (2, 3, 2), dtype=torch.int32, device=device)
    size = torch.randint(-32, 150, (8192,), dtype=torch.int16, device=device)
    surprise = torch.randint(-40, 40, (2, 9), dtype=torch.int16, device=device)
    tables = torch.randint(0, 740, (3, N_KEYS), dtype=torch.int16, device=device)
    maps = PredictMaps(size, surprise, tables)

    def predictor() -> ChannelPredictor:
        """A fresh one: what one has worked out it keeps."""
        made = ChannelPredictor(base, out, Corrections(linear, moves, before), maps)
        made.learn(base[0])
        made.learn(base[1])
        return made

    moved = 2 * n_bytes(base) + n_bytes(out, linear, moves) + 4 * n
    yield Case("channel tables", lambda: predictor().tables(), lambda: predictor().tables_reference(), moved)


def lane_cases(device: torch.device, n_groups: int, n_lanes: int, lane_bits: int = 11) -> Iterator[Case]:
    """One step of groups of so many lanes: 2^lane_bits symbols each, in runs of 256, about 3 bits a symbol,
    written by constriction."""
    import constriction

    length, run = 1 << lane_bits, 256
    f = np.exp(-np.abs(np.arange(256) - 127.0) / 3)
    f = np.maximum(1, np.floor(f / f.sum() * (TOTAL - 256))).astype(np.int64)
    f[f.argmax()] += TOTAL - f.sum()
    model = constriction.stream.model.Categorical(f / float(TOTAL), perfect=True)
    # the last letter would be an escape
    symbols = np.random.default_rng(0).choice(255, length, p=f[:255] / f[:255].sum()).astype(np.int32)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, model)
    lane = coder.get_compressed().view(np.int32)
    total, n = n_groups * n_lanes, n_lanes * length
    lanes = open_lanes(
        torch.from_numpy(np.tile(lane, total)),
        torch.full((total,), lane.size),
        torch.empty(0, dtype=torch.int16),
        torch.zeros(total, dtype=torch.int64),
        torch.full((n_groups,), n_lanes),
        torch.full((n_groups,), lane_bits),
    ).to(device)
    # tables of equal content: every run opens a row of its own
    cumulative = cumulative_tables(torch.from_numpy(f).expand(length // run, -1)).to(device)
    tables = torch.arange(length // run, dtype=torch.int16, device=device).repeat_interleave(run)
    tables = tables.repeat(n_lanes).expand(n_groups, n).contiguous()
    order = torch.randperm(n, device=device).expand(n_groups, n).contiguous()
    count = torch.full((n_groups,), n, device=device)
    changing = ("remaining", "state", "next_escape", "escapes_left", "decoded")

    def decode() -> Tensor:
        fresh = replace(lanes, **{name: getattr(lanes, name).clone() for name in changing})
        return decode_step(fresh, tables, order, count, cumulative)

    expected = torch.from_numpy(symbols - 127).to(torch.int16).to(device).repeat(n_lanes)
    if not torch.equal(decode().gather(1, order), expected.expand(n_groups, n)):
        raise SystemExit("the lanes do not decode to what was encoded")
    moved = 4 * lane.size * total + n_bytes(tables, order) + 2 * n_groups * n
    yield Case(f"{n_groups} groups of {n_lanes} lanes of {length} symbols", decode, None, moved)


def glimpse_cases(device: torch.device, side: int) -> Iterator[Case]:
    """Sixteen glimpses of 64x64 from each of eight images."""
    n, g, patch = 8, 128, 64
    images = torch.rand(n, 3, side, side, device=device, requires_grad=True)
    transforms = (torch.rand(g, 2, 3, device=device) * 0.4 - 0.2).requires_grad_()
    index = torch.arange(g, device=device) % n
    each = torch.arange(g, device=device)

    def sampled(images: Tensor, transforms: Tensor) -> Tensor:
        grid = F.affine_grid(transforms, [g, 3, patch, patch], align_corners=False)
        return F.grid_sample(images[index], grid, align_corners=False)

    out = 4 * g * 3 * patch * patch
    yield Case(
        "crop and gradient",
        with_backward(lambda a, b: crop(a, b, index, patch), images, transforms),
        with_backward(sampled, images, transforms),
        n_bytes(images) + 6 * out,
    )
    patches = torch.rand(g, 3, patch, patch, device=device)
    boxes = transforms.detach() + torch.tensor([[0.3, 0, 0], [0, 0.3, 0]], device=device)
    yield Case(
        "paste",
        lambda: paste(patches, boxes, index, (n, side, side)),
        lambda: resample_reference(patches, boxes, each, index, (n, side, side)),
        out + 4 * n * 4 * side * side,
    )
    each_image = torch.rand(g, 3, patch, patch, device=device, requires_grad=True)
    points = (torch.rand(g, patch, patch, 2, device=device) * 2 - 1).requires_grad_()
    yield Case(
        "look at points and gradient",
        with_backward(look_at, each_image, points),
        with_backward(look_at_reference, each_image, points),
        4 * n_bytes(each_image, points),
    )
    pixels = torch.randint(0, 256, images.shape, dtype=torch.uint8, device=device)
    fixed = torch.randint(1 << 15, 3 << 16, (g, 4), device=device)
    yield Case(
        "crop boxes",
        lambda: crop_boxes(pixels, fixed, index, patch),
        lambda: resample_boxes_reference(pixels, fixed, index, each, (g, patch, patch)),
        5 * out // 4,
    )


def all_cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Every case; quick ones are 64 times smaller."""
    yield from conv_cases(device, 128 if quick else 1024)
    yield from logistic_cases(device, 128 if quick else 1024)
    yield from predict_cases(device, 128 if quick else 1024)
    yield from masked_cases(device, 32 if quick else 256)
    if device.type == "cuda":  # on the CPU constriction decodes
        yield from lane_cases(device, 64, 64)
        yield from lane_cases(device, 6, 64)
    yield from glimpse_cases(device, 64 if quick else 512)


def measure(case: Case, device: torch.device, rates: dict[str, float]) -> dict[str, object]:
    """The line of one case."""
    line: dict[str, object] = {"kernel": case.name, "time_ms": round(median_ms(case.kernel, device), 4)}
    if case.eager is not None:
        line["eager_ms"] = round(median_ms(case.eager, device), 4)
        try:
            line["compiled_ms"] = round(median_ms(torch.compile(case.eager, dynamic=False), device), 4)
        except Exception as e:  # the compiler may be missing or refuse; the other columns stand
            line["compiled_error"] = f"{type(e).__name__}: {str(e).strip().splitlines()[0][:120]}"
    bytes_ms = case.n_bytes / rates["copy"] * 1e3
    numbers = case.numbers if case.numbers in rates else "float32"
    ops_ms = case.n_ops / rates[numbers] * 1e3
    line["bound_ms"] = round(max(bytes_ms, ops_ms), 4)
    line["bound"] = "bytes" if bytes_ms >= ops_ms else f"{numbers} operations"
    line["times_bound"] = round(float(str(line["time_ms"])) / max(bytes_ms, ops_ms), 2)
    return line


def main() -> None:
    """Parse the arguments and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only kernels whose name holds one of these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    options = parser.parse_args()
    device = require_device(options.device)
    rates = machine_rates(device, options.quick)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        json.dumps(
            {"device": name, "torch": torch.__version__, **{k: f"{v:.3g}/s" for k, v in rates.items()}}
        )
    )
    for case in all_cases(device, options.quick):
        if not options.names or any(n in case.name for n in options.names):
            print(json.dumps(measure(case, device, rates)), flush=True)


if __name__ == "__main__":
    main()
