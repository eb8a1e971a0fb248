"""Device of the kernel tests: the CPU through Triton's interpreter, or CUDA for tests/gpu_check.py."""

import os

# Triton reads this when a kernel is defined, so it stands before the imports. The fixture sets it again for
# the tests that run a kernel; all other tests take the fast CPU paths.
os.environ["TRITON_INTERPRET"] = "1" if os.environ.get("VBC_KERNEL_DEVICE", "cpu") == "cpu" else "0"

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from checks import group_sides

from vbc.bitstream import ans
from vbc.codec.model import Model, load_model

RESEARCH = ("glimpse", "glimpse_box", "glimpse_points", "masked_conv", "mixture")
for name in ("conv", "logistic", "predict", "rans", *(f"research.{n}" for n in RESEARCH)):
    importlib.import_module(f"vbc.kernels.{name}")
del os.environ["TRITON_INTERPRET"]
KERNEL_DEVICE = os.environ.get("VBC_KERNEL_DEVICE", "cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a kernel test puts its tensors; public functions take the Triton path there."""
    pytest.importorskip("triton")
    if KERNEL_DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return KERNEL_DEVICE


@pytest.fixture(scope="session")
def tiny_path() -> Path:
    """Weights of the tiny frozen model (scripts/make_golden.py)."""
    return Path(__file__).parent / "golden" / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Model:
    """The tiny frozen model: fast, and never retrained."""
    return load_model(tiny_path)


@pytest.fixture
def small_groups() -> Iterator[None]:
    """Groups so small that a picture of a few thousand pixels has dozens of them."""
    with group_sides():
        yield


@pytest.fixture
def short_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes so short that steps of a few thousand symbols have several."""
    monkeypatch.setattr(ans, "LANE_BYTES", 2560)
