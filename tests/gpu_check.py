"""Run the kernel tests on CUDA: `python tests/gpu_check.py [pytest arguments]` prints one JSON line per
check.

The first line names the machine. Exit status as pytest's; 4 where there is no CUDA device.
"""

import json
import os
import sys
from pathlib import Path

os.environ["VBC_KERNEL_DEVICE"] = "cuda"
os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault(
    "TRITON_DEFAULT_FP_FUSION", "1"
)  # triton 3.9 warns where it is unset; warnings are errors

import pytest
import torch


class Lines:
    """A pytest plugin that prints each test's outcome as it ends, in place of pytest's own report."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Take pytest's reporter out."""
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line per call, and one for a set-up or tear-down that went wrong or skipped."""
        if report.when != "call" and report.passed:
            return
        line = {
            "check": report.nodeid.rsplit("/", 1)[-1],
            "outcome": report.outcome,
            "time_s": round(report.duration, 3),
        }
        if report.failed:
            line["error"] = str(report.longrepr)[-2000:]
        elif report.skipped and isinstance(report.longrepr, tuple):
            line["reason"] = report.longrepr[2]
        print(json.dumps(line), flush=True)


def main(arguments: list[str]) -> int:
    """Run all tests/test_kernel_*.py."""
    if not torch.cuda.is_available():
        print(json.dumps({"error": f"torch {torch.__version__} sees no CUDA device"}))
        return 4
    import triton

    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    print(json.dumps(machine), flush=True)
    here = Path(__file__).parent
    files = sorted(str(p) for p in here.glob("test_kernel_*.py"))
    options = ["--tb=short", "-p", "no:cacheprovider", *arguments]
    return int(pytest.main([*options, *files], plugins=[Lines()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
