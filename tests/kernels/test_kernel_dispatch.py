"""Which path is taken, what a missing triton or GPU says, and the known-answer cache."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vbc.kernels import dispatch
from vbc.kernels.dispatch import (
    CudaMissing,
    block,
    ceil_div,
    check_same_device,
    check_tensor,
    known_answer,
    on_device,
    require_device,
    use_triton,
)

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from vbc.kernels import conv, dispatch, logistic, rans
from vbc.kernels.research import glimpse
from vbc.kernels.research import glimpse_box
from vbc.kernels.research import glimpse_points
from vbc.kernels.research import masked_conv
from vbc.kernels.research import mixture
assert not dispatch.HAVE_TRITON
x = torch.full((1, 4, 5, 5), 3, dtype=torch.uint8)
layer = (torch.ones(2, 4, 3, 3, dtype=torch.int8), torch.zeros(2, dtype=torch.int32), torch.full((2,), 2))
assert conv.IntConv(*layer)(x).flatten().tolist() == [27] * 18
assert logistic.logistic_bits(torch.zeros(2), torch.zeros(2)).shape == (2,)
try:
    conv.conv_int_triton(x, *layer)
except dispatch.TritonMissing as e:
    print(e)
"""


def test_works_without_triton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "_conv_kernel needs triton: pip install triton"


def test_cpu_tensors_take_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not use_triton(torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert use_triton(torch.zeros(1)) == dispatch.HAVE_TRITON


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert require_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="cpu or cuda"):
        require_device("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CudaMissing, match="sees no CUDA"):
        require_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert require_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(CudaMissing, match="2 CUDA devices"):
        require_device("cuda:2")


def test_checks() -> None:
    x = torch.zeros(2, 3)
    check_tensor("x", x, (torch.float32,), (None, 3))
    for dtypes, shape in (
        ((torch.int8, torch.uint8), (2, 3)),
        ((torch.float32,), (2, 4)),
        ((torch.float32,), (2,)),
    ):
        with pytest.raises(ValueError, match="x must"):
            check_tensor("x", x, dtypes, shape)
    with pytest.raises(ValueError, match="weight is on meta"):
        check_same_device(x, weight=torch.zeros(1, device="meta"))


def test_sizes() -> None:
    assert [ceil_div(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [block(n, 16, 64) for n in (0, 1, 16, 17, 64, 1000)] == [16, 16, 16, 32, 64, 64]


def test_known_answer_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_KNOWN", {})
    calls = []

    def passing() -> bool:
        calls.append(1)
        return True

    def failing() -> bool:
        raise NotImplementedError

    assert known_answer("a path", (1,), passing)
    assert known_answer("a path", (1,), failing)
    assert len(calls) == 1
    with pytest.warns(RuntimeWarning, match="another path fails its known-answer test"):
        assert not known_answer("another path", (1,), failing)
    assert not known_answer("another path", (1,), passing)


class TritonError(Exception):
    """As triton.errors has it: no RuntimeError."""


@pytest.mark.parametrize("error", [TritonError, ImportError, TypeError, OSError, AssertionError, KeyError])
def test_whatever_a_launch_raises_is_a_failure(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_KNOWN", {})

    def failing() -> bool:
        raise error("too few registers")

    with pytest.warns(RuntimeWarning, match=rf"{error.__name__}: .*too few registers.*slower path"):
        assert not known_answer("a path", (1,), failing)
    assert not known_answer("a path", (1,), lambda: True), "tested once"


def test_errors_of_triton_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the installed one, as it makes them."""
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources, PTXASError

    for error in (OutOfResources(300_000, 232_448, "shared memory"), PTXASError("Internal error")):
        assert not isinstance(error, RuntimeError)
        monkeypatch.setattr(dispatch, "_KNOWN", {})

        def failing(error: Exception = error) -> bool:
            raise error

        with pytest.warns(RuntimeWarning, match=type(error).__name__):
            assert not known_answer("a path", (), failing)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, MemoryError, torch.cuda.OutOfMemoryError])
def test_what_says_nothing_about_a_path_goes_through(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_KNOWN", {})

    def stopping() -> bool:
        raise stop

    with pytest.raises(stop):
        known_answer("a path", (), stopping)
    assert known_answer("a path", (), lambda: True), "tested again"


def test_launches_go_to_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", current)
    for name in ("cpu", "meta", "cuda:1", "cuda"):
        with on_device(torch.device(name)):
            pass
    assert entered == [torch.device("cuda:1"), torch.device("cuda")]


def launches(path: Path) -> Iterator[tuple[str, bool]]:
    """The kernels that a file launches, `kernel[grid](...)`, and whether that is within `on_device`."""

    def visit(node: ast.AST, guarded: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.With):
            guarded |= any(ast.unparse(item.context_expr).startswith("on_device(") for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            name = ast.unparse(node.func.value)
            if name.endswith("_kernel"):
                yield name, guarded
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded)

    return visit(ast.parse(path.read_text()), False)


@pytest.mark.parametrize(
    "name",
    [
        "conv",
        "logistic",
        "predict",
        "rans",
        *(f"research/{n}" for n in ("glimpse", "glimpse_box", "glimpse_points", "masked_conv", "mixture")),
    ],
)
def test_every_launch_is_on_its_device(name: str) -> None:
    """Triton launches on the current CUDA device, wherever the tensors are."""
    found = list(launches(Path(dispatch.__file__).parent / f"{name}.py"))
    assert found
    assert [kernel for kernel, guarded in found if not guarded] == []
