"""Every kernel compiles for Hopper GPUs (sm_90), with no GPU needed.

The interpreter accepts more than the compiler does.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vbc.kernels import conv, logistic, predict, rans
from vbc.kernels.research import glimpse, glimpse_box, masked_conv, mixture

INT8, HALF, INT, FLOAT, BYTE, LONG, SHORT = "*i8", "*fp16", "*i32", "*fp32", "*u8", "*i64", "*i16"
Case = tuple[str, Any, dict[str, str], dict[str, Any]]
"""Name, kernel, types of the arguments that are not int32, compile-time constants (1 is one, too)."""


def cases() -> Iterator[Case]:
    """All kernels, in all their forms."""
    ones = {"n_positions": 1, "height": 1, "width": 1, "c_in": 1, "c_out": 1}
    tile = {"K": 3, "ROWS": 64, "COLS": 32}
    ints = {"bias": INT, "shift": INT, "residual": BYTE}
    conv_types = {"x": INT8, "weight": INT8, "y": BYTE, **ints}
    hidden = {"HEAD": False, "RESIDUAL": True, "CARRIER": False, "DEPTH": 64, **tile}
    yield "conv", conv._conv_kernel, conv_types, hidden
    yield "conv 1x1x1", conv._conv_kernel, conv_types, hidden | ones
    head = {"HEAD": True, "RESIDUAL": False, "CARRIER": True, "DEPTH": 32, **tile}
    yield "conv carrier", conv._conv_kernel, {"x": HALF, "weight": HALF, "y": INT, **ints}, head

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

    types = {"base": SHORT, "out": INT, "linear": INT, "moves": INT, "before": INT, "values": SHORT}
    types |= {"log2_residual": SHORT, "surprise": SHORT, "tables": SHORT, "index": SHORT, "rounded": SHORT}
    for channel in (0, 1, 2):
        for tuned in (False, True):
            form = {"CHANNEL": channel, "TUNED": tuned, "SIZE": predict.BLOCK}
            yield f"predict {channel} {tuned}", predict._predict_kernel, types, form

    lists = {"source_of": LONG, "output_of": LONG, "order": LONG, "starts": LONG}
    ones = {"c": 1, "h": 1, "w": 1, "height": 1, "width": 1}
    planes = {"source": FLOAT, "transforms": FLOAT, "out": FLOAT}
    for name, more in (("", size), (" 1x1", size | ones)):
        yield "glimpse" + name, glimpse._forward_kernel, planes | lists, more
        types = planes | lists | {"grad": FLOAT, "d_source": FLOAT, "parts": FLOAT}
        yield "glimpse gradient" + name, glimpse._backward_kernel, types, more
        types = {"source": BYTE, "boxes": LONG, "total": INT, "covered": INT}
        yield "boxes" + name, glimpse_box._boxes_kernel, types | lists, more


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


def test_all_kernels_compile(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")} | {
        "TRITON_CACHE_DIR": str(tmp_path)
    }
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines() == [name for name, *_ in cases()]


if __name__ == "__main__":
    compile_all()
