"""What training computes in: bfloat16 where the device multiplies it, else float32."""

import functools
import platform

import torch


def autocast(device: str, wanted: bool = True) -> torch.autocast:
    """A context in which layers compute in bfloat16, where that is wanted and pays on a device ("cuda:1")."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and bfloat16_pays(kind))


@functools.cache
def bfloat16_pays(kind: str) -> bool:
    """Whether a kind of device is faster in bfloat16 than in float32.

    A processor of x86 without instructions for it emulates it: a step of training then takes four times as
    long, where with them it takes half as long.
    """
    if kind != "cpu":
        return True
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if platform.machine() in ("x86_64", "AMD64") and known is not None:
        return bool(known())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
