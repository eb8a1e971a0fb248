"""The checks of a CUDA device (tests/gpu_check.py) themselves: without one they can be tried on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "gpu_check.py"


def test_dry_run() -> None:
    """One line a check, all passed, of the device's path run by torch on the CPU."""
    groups = ("golden", "damage", "lists", "throughput")
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "-k", *groups]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert lines[0]["dry_run"]
    assert lines[-1] == {"done": True, "failed": []}
    checks = lines[1:-1]
    assert {line["outcome"] for line in checks} == {"passed"}
    assert len({line["check"] for line in checks}) == len(checks) > 20
    assert all(line["decode_MB_s"] > 0 for line in checks if line["check"].startswith("throughput"))


def test_a_failed_check_is_told() -> None:
    """An exception is a failed check, which is named, and stops no other."""
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); sys.argv = ['', '--device', 'cpu'];"
        "import gpu_check as g; g.check('good', lambda: {}); g.check('bad', lambda: g.demand(False, 'why'));"
        "g.check('after', lambda: {}); assert g.failed == ['bad'], g.failed"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    outcomes = [json.loads(line)["outcome"] for line in result.stdout.splitlines()]
    assert outcomes == ["passed", "failed", "passed"]
