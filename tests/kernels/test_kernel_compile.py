"""Every kernel compiles for Hopper GPUs (sm_90), with no GPU needed.

The interpreter accepts more than the compiler does. Convolutions are compiled through their launcher, for the
layers of the shipped weights, so that it is the code that runs: Triton compiles for a launch's constants, the
alignment of its tensors and the numbers among its arguments.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vbc.codec.model import load_model
from vbc.kernels import conv, logistic, predict, rans
from vbc.kernels.conv import IntConv
from vbc.kernels.research import glimpse, glimpse_box, glimpse_points, masked_conv, mixture

INT8, HALF, INT, FLOAT, BYTE, LONG, SHORT = "*i8", "*fp16", "*i32", "*fp32", "*u8", "*i64", "*i16"
Case = tuple[str, Any, dict[str, str], dict[str, Any]]
"""Name, kernel, types of the arguments that are not int32, compile-time constants (1 is one, too)."""
MAX_COMPILED = 56
"""Kernels that the layers of a model may need: each takes a GPU's user up to a second, once."""


def cases() -> Iterator[Case]:
    """The kernels without layers, in all their forms."""
    masked = {"bias": INT, "shift": INT, "cells": INT, "taps": INT}
    form = {"BIAS": True, "HEAD": False, "ROWS": 32, "COLS": 32, "DEPTH": 32}
    ones = {"n_images": 1, "height": 1, "width": 1, "c_in": 1, "c_out": 1, "period": 1}
    eight, floats = {"x": INT8, "weight": INT8, "y": BYTE}, {"x": FLOAT, "weight": FLOAT, "y": FLOAT}
    halves = {"x": HALF, "weight": HALF, "y": HALF}
    kernel = masked_conv._masked_kernel
    yield "masked int8", kernel, masked | eight, form | {"FORM": "int8"}
    yield "masked carrier", kernel, masked | halves | {"y": INT}, form | {"FORM": "float16", "HEAD": True}
    yield "masked float", kernel, masked | floats | {"bias": FLOAT}, form | {"FORM": "float"} | ones
    yield "masked half", kernel, masked | halves | {"bias": FLOAT}, form | {"FORM": "float"}
    types = {"x": FLOAT, "g": FLOAT, "out": FLOAT, "cells": INT, "numbers": INT, "starts": INT}
    tile = {"K": 3, "ROWS": 16, "SIZE_C": 16, "SIZE_O": 32}
    yield "weight gradient", masked_conv._weight_kernel, types, tile
    yield "weight gradient 1x1", masked_conv._weight_kernel, types, tile | ones | {"splits": 1, "blocks_c": 1}

    size = {"SIZE": 256}
    yield "bits", logistic._bits_kernel, {"residual": FLOAT, "log2_scale": FLOAT, "bits": FLOAT}, size
    types = {"residual": HALF, "log2_scale": HALF, "grad": FLOAT, "d_residual": HALF, "d_scale": HALF}
    yield "bits gradient", logistic._bits_grad_kernel, types, size
    types = {"mean16": INT, "log2_scale16": INT, "index": "*u16", "mean": SHORT}
    yield "table index", logistic._index_kernel, types, size
    types = {"params": FLOAT, "x": BYTE, "bits": FLOAT, "lse_logits": FLOAT, "lse_joint": FLOAT}
    low = {"min_log_scale": "fp32"}
    yield "mixture", mixture._bits_kernel, types | low, {"K": 10, "area": 1, **size}
    types |= {"grad": FLOAT, "d_params": FLOAT}
    yield "mixture gradient", mixture._bits_grad_kernel, types | low, {"K": 10, **size}
    types = {"params": FLOAT, "uniform": FLOAT, "y": BYTE}
    yield "mixture mean", mixture._draw_kernel, types | low, {"K": 5, "SAMPLE": False, **size}
    yield "mixture sample", mixture._draw_kernel, types | low, {"K": 5, "SAMPLE": True, **size}

    lanes = (
        "group",
        "rank",
        "bits",
        "offset",
        "remaining",
        "state",
        "next_escape",
        "escapes_left",
        "decoded",
    )
    types = {"words": INT, "escapes": SHORT, "tables": SHORT, "order": LONG, **dict.fromkeys(lanes, LONG)}
    types |= {"count": LONG, "cumulative": INT, "out": SHORT}
    yield "lanes", rans._decode_kernel, types, {"SIZE": 256}
    yield "lanes 1", rans._decode_kernel, types, {"SIZE": 256, "n": 1, "n_tables": 1}

    types = {
        "base": SHORT,
        "out": INT,
        "linear": INT,
        "moves": INT,
        "before": INT,
        "first": SHORT,
        "second": SHORT,
        "picture": INT,
    }
    types |= {"log2_residual": SHORT, "surprise": SHORT, "tables": SHORT, "index": SHORT, "rounded": SHORT}
    for channel in (0, 1, 2):
        for tuned, pictures in ((False, False), (True, False), (True, True)):
            form = {"CHANNEL": channel, "TUNED": tuned, "PICTURES": pictures, "SIZE": predict.BLOCK}
            yield f"predict {channel} {tuned} {pictures}", predict._predict_kernel, types, form

    lists = {"source_of": LONG, "output_of": LONG, "order": LONG, "starts": LONG}
    ones = {"c": 1, "h": 1, "w": 1, "height": 1, "width": 1}
    planes = {"source": FLOAT, "transforms": FLOAT, "out": FLOAT}
    for name, more in (("", size), (" 1x1", size | ones)):
        yield "glimpse" + name, glimpse._forward_kernel, planes | lists, more
        types = planes | lists | {"grad": FLOAT, "d_source": FLOAT, "parts": FLOAT}
        yield "glimpse gradient" + name, glimpse._backward_kernel, types, more
        types = {"source": BYTE, "boxes": LONG, "total": INT, "covered": INT}
        yield "boxes" + name, glimpse_box._boxes_kernel, types | lists, more
    looks = {"images": FLOAT, "points": FLOAT, "out": FLOAT}
    types = looks | {"grad": FLOAT, "d_images": FLOAT, "d_points": FLOAT}
    for name, more in (("", size), (" 1x1", size | {"c": 1, "h": 1, "w": 1, "area": 1})):
        yield "points" + name, glimpse_points._look_kernel, looks, more
        yield "points gradient" + name, glimpse_points._look_grad_kernel, types, more


def layers(part: Any) -> Iterator[IntConv]:
    """All layers of a model or of a part of one."""
    if isinstance(part, IntConv):
        yield part
    elif dataclasses.is_dataclass(part):
        for item in dataclasses.fields(part):
            yield from layers(getattr(part, item.name))
    elif isinstance(part, dict | tuple):
        for child in part.values() if isinstance(part, dict) else part:
            yield from layers(child)


def launches() -> Iterator[tuple[str, Tensor, IntConv, Tensor | None]]:
    """Name, input, layer and residual of the codec's convolutions: one of each shape, in two sizes."""
    shapes = {(tuple(layer.weight.shape), layer.head): layer for layer in layers(load_model())}
    assert len(shapes) > 20
    for (shape, head), layer in sorted(shapes.items()):
        _, channels, k, _ = shape
        for side in (k, k + 19):  # one position, 400
            x = torch.zeros((1, channels, side, side), dtype=torch.uint8)
            yield f"{list(shape)} {'head' if head else 'hidden'} {side - k + 1}", x, layer, None
    added = torch.zeros((1, 48, 20, 20), dtype=torch.uint8)
    layer = shapes[(48, 48, 3, 3), False]
    yield "residual", torch.zeros((1, 48, 22, 22), dtype=torch.uint8), layer, added
    yield "carrier", torch.zeros((1, 48, 22, 22), dtype=torch.int16), layer, None


def arguments(layer: IntConv) -> tuple[Tensor, Tensor, Tensor, bool]:
    """What a convolution takes of a layer."""
    return layer.weight, layer.bias, layer.shift, layer.head


def compile_layers() -> None:
    """Compile each convolution as its launcher launches it, and look at the machine code's instructions."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    hopper = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    driver.set_active(hopper)
    real, compiled = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: object, warmup: bool, **constants: Any) -> None:
        compiled.append((real(self, *args, grid=grid, warmup=True, **constants), constants))

    JITFunction.run = compile_only
    for name, x, layer, added in launches():
        conv.conv_int_triton(x, *arguments(layer), added)
        kernel, constants = compiled[-1]
        assert kernel.asm["cubin"], name
        code = kernel.asm["ptx"]
        # tensor cores, fed by copies that run ahead; in large tiles of 16 bytes each
        large = constants["ROWS"] == 128
        for instruction in ("wgmma.mma_async", "cp.async.cg") if large else ("mma.sync", "cp.async.c"):
            assert instruction in code, f"{name}: no {instruction}"
        print(name)
    wide = []
    for width in (21, 33, 48, 160):  # multiples of 16 among them
        conv.conv_int_triton(x[..., :1].to(torch.uint8).expand(-1, -1, -1, width), *arguments(layer))
        wide.append(compiled[-1][0])
    assert len({id(kernel) for kernel in wide}) == 1, "compiled anew for a width"
    n_compiled = len({id(kernel) for kernel, _ in compiled})
    assert n_compiled <= MAX_COMPILED, f"{n_compiled} kernels for the layers of one model"


def compile_all() -> None:
    """Compile each case to machine code and print its name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for name, kernel, types, constants in cases():
        names = kernel.arg_names
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
        values = {(names.index(n),): v for n, v in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert compiled.asm["cubin"], name
        print(name)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, "subprocess.Popen[str]"]:
    """This file in processes whose kernels are compiled, not interpreted: all at once, as each takes long."""
    pytest.importorskip("triton")
    started = {}
    for part in PARTS:
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
        env |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp(part)), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, part]
        started[part] = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    return started


@pytest.mark.parametrize("part", ["layers", "others"])
def test_all_kernels_compile(part: str, processes: dict[str, "subprocess.Popen[str]"]) -> None:
    said, errors = processes[part].communicate(timeout=300)
    assert processes[part].returncode == 0, errors[-4000:]
    assert said.splitlines() == [name for name, *_ in PARTS[part][1]()]


PARTS = {"layers": (compile_layers, launches), "others": (compile_all, cases)}
"""What compiles, and what it has to name."""

if __name__ == "__main__":
    PARTS[sys.argv[1]][0]()
