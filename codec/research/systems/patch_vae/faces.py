"""Patch-VAEs of toy faces, trained once for the studies `patch-maps` and `patch-probes`."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vbc.codec.research.parts.loop import PLANS
from vbc.codec.research.parts.toy_faces import ToyFaces, train_and_test
from vbc.codec.research.run import Setting, read_json
from vbc.codec.research.systems.patch_vae.model import THESIS, PatchVAE, form, trained

IMAGES_AT_ONCE = 50


def faces() -> tuple[ToyFaces, ToyFaces]:
    """The faces to train on and to test with; the same for every seed of training."""
    return train_and_test()


def models_folder(setting: Setting) -> Path:
    """Where the models of both studies are."""
    return setting.out.parent / f"toy-face-models-{setting.seed}"


def steps_said(setting: Setting) -> str:
    """A sentence on how long the models were trained, by whichever study did it."""
    steps = read_json(models_folder(setting) / PLANS).items()
    return "Steps of the patch-VAEs of toy faces: " + ", ".join(f"{name}: {n}" for name, n in steps) + "."


def face_models(setting: Setting, images: Tensor, seconds: float) -> dict[str, PatchVAE]:
    """A model of each form of the thesis, trained for some seconds each, or found beside the run's folder.

    Both studies look into `toy-face-models-SEED` beside their own folders: the second finds what the first
    trained.
    """
    shared = replace(setting, out=models_folder(setting))
    shared.out.mkdir(exist_ok=True)
    return {name: trained(form(name), images, seconds, shared, f"faces {name}") for name in THESIS}


@torch.no_grad()
def code_maps(model: PatchVAE, images: Tensor, stride: int = 1) -> Tensor:
    """Means of q(z|x) of patches at every `stride`-th position: float16 [N, k, H', W'] of uint8 [N, C, H,
    W]."""
    device = next(model.parameters()).device
    parts = torch.split(images, IMAGES_AT_ONCE)
    return torch.cat([model.encoder(x.to(device), stride).mean.half() for x in parts])
