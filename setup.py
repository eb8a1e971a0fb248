"""Packaging: the top-level folders install as `vbc.codec`, `vbc.kernels` and `vbc.bitstream`; the rest is in
pyproject.toml."""

from setuptools import setup

FOLDERS = {"vbc.codec": "codec", "vbc.kernels": "kernels", "vbc.bitstream": "bitstream"}

setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    package_data={package: ["py.typed"] for package in FOLDERS}
    | {"vbc.codec": ["py.typed", "weights/*.safetensors"]},
)
