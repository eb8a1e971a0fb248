"""Packaging: the top-level folders install as `vbc.codec`, `vbc.kernels` and `vbc.bitstream`; the rest is in
pyproject.toml."""

from pathlib import Path

from setuptools import setup

FOLDERS = ("codec", "kernels", "bitstream")
ROOMS = {
    "vbc." + ".".join(init.parent.parts): str(init.parent)
    for folder in FOLDERS
    for init in sorted(Path(folder).rglob("__init__.py"))
}

setup(
    packages=list(ROOMS),
    package_dir=ROOMS,
    package_data={f"vbc.{folder}": ["py.typed"] for folder in FOLDERS}
    | {"vbc.codec": ["py.typed", "weights/*.safetensors", "weights/index.json"]},
)
