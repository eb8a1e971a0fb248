"""Importing this makes `vbc` the checkout, for scripts that run where it is not installed.

A folder of links for this process and those it starts, as setup.py maps the names.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = Path(tempfile.mkdtemp(prefix="vbc-"))
atexit.register(shutil.rmtree, NAMES, ignore_errors=True)
(NAMES / "vbc").mkdir()
for name in ("bitstream", "codec", "kernels"):
    (NAMES / "vbc" / name).symlink_to(ROOT / name, target_is_directory=True)
sys.path.insert(0, str(NAMES))
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(NAMES), os.environ.get("PYTHONPATH")) if p)
