"""A learned image codec: one file from the first preview to lossless.

The functions and types below are loaded on first use, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbc.codec.api import FileInfo, cut, decode, decode_image, encode, read_info, strip, verify
    from vbc.codec.files.cutting import NothingLeft
    from vbc.codec.files.image_io import Metadata, UnsupportedImage
    from vbc.codec.incremental import IncrementalReader

__version__ = "0.1.0"

__all__ = [
    "FileInfo",
    "IncrementalReader",
    "Metadata",
    "NothingLeft",
    "UnsupportedImage",
    "cut",
    "decode",
    "decode_image",
    "encode",
    "read_info",
    "strip",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {
        "Metadata": "files.image_io",
        "NothingLeft": "files.cutting",
        "UnsupportedImage": "files.image_io",
        "IncrementalReader": "incremental",
    }
    home = homes.get(name, "api")
    return getattr(import_module(f"vbc.codec.{home}"), name)
