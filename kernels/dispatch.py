"""Which path an operation takes, and the checks all operations share.

The only kernel file that reads the environment. Triton is optional: without it `jit` leaves a stand-in that
explains itself when launched, and everything takes the torch path.
"""

import importlib
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


triton: Any = _optional("triton")
tl: Any = _optional("triton.language") if triton is not None else None
HAVE_TRITON = triton is not None

# Annotations of a kernel's arguments: an address (the launcher's tensor), a number or tensor, a compile-time
# constant. Triton looks the names up when it compiles and accepts its own classes only.
if TYPE_CHECKING:
    Pointer: TypeAlias = Any
    Value: TypeAlias = Any
    constexpr: TypeAlias = Any
else:
    Pointer = Value = tl.tensor if HAVE_TRITON else object
    constexpr = tl.constexpr if HAVE_TRITON else int


class TritonMissing(RuntimeError):
    """A Triton kernel was launched and triton is not installed."""


class CudaMissing(RuntimeError):
    """A CUDA device was asked for and torch sees none."""


class _Absent:
    """What `jit` gives without triton: any launch raises `TritonMissing`."""

    def __init__(self, name: str):
        self.name = name

    def __getitem__(self, grid: object) -> Callable[..., None]:
        raise TritonMissing(f"{self.name} needs triton: pip install triton")


def jit(kernel: Callable[..., Any]) -> Any:
    """`triton.jit` where triton is installed. TRITON_INTERPRET counts at the time a kernel is defined."""
    return triton.jit(kernel) if HAVE_TRITON else _Absent(kernel.__name__)


def jit_for_any(*names: str) -> Callable[[Callable[..., Any]], Any]:
    """As `jit`, for a kernel whose arguments of these names are sizes that change from picture to picture.

    Triton compiles a kernel anew where an integer argument becomes 1 or a multiple of 16; not for these.
    """
    if HAVE_TRITON:
        decorator: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=names)
        return decorator
    return jit


def interpreting() -> bool:
    """True where TRITON_INTERPRET=1 asks for the kernels on the CPU."""
    return HAVE_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def use_triton(x: Tensor) -> bool:
    """True where the operation on x runs as a Triton kernel: CUDA tensors, all under TRITON_INTERPRET=1."""
    return HAVE_TRITON and (x.is_cuda or interpreting())


def require_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises CudaMissing where it is CUDA and torch does not see it, ValueError for other kinds of device.
    """
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, not {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise CudaMissing(f"{name!r} was asked for, but torch {torch.__version__} sees no CUDA device")
        n_devices = torch.cuda.device_count()
        if (device.index or 0) >= n_devices:
            raise CudaMissing(f"{name!r} was asked for, but torch sees {n_devices} CUDA devices")
    return device


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """A context in which launches go to this device; nothing on others than CUDA ones."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def check_tensor(
    name: str, x: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...]
) -> None:
    """Raise ValueError unless x has one of the dtypes and the shape (None: any size)."""
    if x.dtype not in dtypes:
        raise ValueError(f"{name} must be {' or '.join(str(d) for d in dtypes)}, not {x.dtype}")
    fits = x.dim() == len(shape) and all(s is None or s == n for s, n in zip(shape, x.shape, strict=True))
    if not fits:
        wanted = ", ".join("*" if s is None else str(s) for s in shape)
        raise ValueError(f"{name} must have shape [{wanted}], not {list(x.shape)}")


def check_same_device(x: Tensor, /, **others: Tensor) -> None:
    """Raise ValueError unless all tensors are where x is."""
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"{name} is on {other.device}, the input on {x.device}")


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up, for a >= 0 and b > 0."""
    return -(-a // b)


def block(n: int, low: int, high: int) -> int:
    """The power of two that holds n, within low..high (powers of two themselves)."""
    return max(low, min(high, 1 << max(0, n - 1).bit_length()))


_KNOWN: dict[tuple[object, ...], bool] = {}
"""What the known-answer tests of this process found."""


def known_answer(what: str, key: tuple[object, ...], check: Callable[[], bool]) -> bool:
    """Whether a fast path passes its known-answer test, run once per process for each key.

    A path that raises has failed: its operator is missing, the compiler refuses it (`triton.TritonError`, an
    Exception of its own), the machine has not what it takes. The first failure of each is warned of
    (RuntimeWarning); the caller then takes a slower path. A lack of memory says nothing about a path: it goes
    through, and the next call tests again.
    """
    full = (what, *key)
    if full not in _KNOWN:
        why = ""
        try:
            _KNOWN[full] = check()
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as e:  # torch, Triton and the compilers below them promise no kinds
            _KNOWN[full] = False
            why = f" ({type(e).__name__}: {e})"
        if not _KNOWN[full]:
            message = (
                f"{what} fails its known-answer test for {key}{why}; a slower path is used, "
                "results stay exact"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    return _KNOWN[full]
