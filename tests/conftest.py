"""Device of the kernel tests: the CPU through Triton's interpreter, or CUDA for tests/gpu_check.py."""

import importlib
import os

import pytest

KERNEL_DEVICE = os.environ.get("VBC_KERNEL_DEVICE", "cpu")
KERNELS = ("conv", "glimpse", "glimpse_box", "logistic", "masked_conv", "mixture", "rans")

if KERNEL_DEVICE == "cpu":
    # Triton reads the variable when a kernel is defined; the fixture sets it again for the tests that run
    # one, so that all other tests take the fast CPU paths.
    os.environ["TRITON_INTERPRET"] = "1"
    for name in KERNELS:
        importlib.import_module(f"vbc.kernels.{name}")
    del os.environ["TRITON_INTERPRET"]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a kernel test puts its tensors; public functions take the Triton path there."""
    pytest.importorskip("triton")
    if KERNEL_DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return KERNEL_DEVICE
