"""Bits-back coding: real bytes from models with latent variables (Townsend et al. 2019, arXiv:1901.04866).

`images.py` codes pictures with any model that says its levels; `densities.py` has the densities of latents,
`pixels.py` the order of pixels, `stack.py` the ANS stack. May import torch and constriction; knows no model.
"""

from vbc.codec.research.parts.bits_back.densities import (
    Density,
    DiagonalGaussian,
    FlowDensity,
    GaussianDensity,
    MixtureDensity,
)
from vbc.codec.research.parts.bits_back.images import (
    Coded,
    CodedModel,
    ImageLevel,
    LatentLevel,
    decode_images,
    encode_images,
)
from vbc.codec.research.parts.bits_back.pixels import PixelSteps, by_channel

__all__ = [
    "Coded",
    "CodedModel",
    "Density",
    "DiagonalGaussian",
    "FlowDensity",
    "GaussianDensity",
    "ImageLevel",
    "LatentLevel",
    "MixtureDensity",
    "PixelSteps",
    "by_channel",
    "decode_images",
    "encode_images",
]
