"""Several processes that train one network, as `torchrun` starts them: each takes its part of every batch.

They keep equal weights, as they start from equal ones and step by the mean of all gradients. A process alone
is rank 0 of one, and nothing here costs it anything.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes that `torchrun` has started, if it has; yields the device of this one.

    device: as torch names it; "cuda" becomes the GPU of this process among those of its machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def n_processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """Which of them this one is; 0 saves, validates and reports."""
    return distributed.get_rank() if together() else 0


def together() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized()


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if together():
        distributed.barrier()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give all parameters the mean over processes of their gradients, in one message.

    One that has none in some process (a part that its share of the batch did not use) counts as zero there;
    one that has none in any stays without.
    """
    if not together():
        return
    learned = [p for p in parameters if p.requires_grad]
    used = torch.tensor([float(p.grad is not None) for p in learned], device=learned[0].device)
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned]
    flat = torch.cat([used, *gradients])
    distributed.all_reduce(flat)
    users, *sums = torch.split(flat, [len(learned), *(p.numel() for p in learned)])
    for p, n, total in zip(learned, users.tolist(), sums, strict=True):
        p.grad = total.view_as(p) / n_processes() if n else None
