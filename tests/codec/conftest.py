"""Fixtures of the codec's tests."""

import pytest
import torch
from torch import Tensor

from vbc.kernels import conv, predict, rans

META = torch.device("meta")


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels on the device `meta`, which give tensors without values."""

    def launch(x: Tensor, packed: Tensor, bias: Tensor, shift: Tensor, head: bool, *rest: object) -> Tensor:
        assert all(t.device == META for t in (x, packed, bias, shift))
        side, outputs = packed.shape[1] - 1, packed.shape[0]
        size = (x.shape[0], outputs, x.shape[2] - side, x.shape[3] - side)
        dtype = torch.int32 if head else torch.uint8
        return torch.empty(size, dtype=dtype, device=META, memory_format=torch.channels_last)

    def tables(base: Tensor, out: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        return base.new_empty(out.shape[1]), base.new_empty(out.shape[1])

    for module in (conv, predict, rans):
        monkeypatch.setattr(module, "use_triton", lambda x: x.device == META)
        monkeypatch.setattr(module, "_triton_agrees", lambda *key: True)
    monkeypatch.setattr(conv, "_launch", launch)
    monkeypatch.setattr(predict, "channel_tables_triton", tables)
    monkeypatch.setattr(rans, "decode_step_triton", lambda lanes, index, *rest: torch.empty_like(index))
