"""Coding blocks of a plane, for lossy and exact levels alike, and work on them that follows on a thread."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

MAX_BEHIND = 3
"""Outstanding calls of a follower: each may hold the activations of a coding block."""


def blocks(height: int, width: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Coding blocks in raster order."""
    for r in range(0, height, side):
        for c in range(0, width, side):
            yield slice(r, min(r + side, height)), slice(c, min(c + side, width))


class Follower:
    """Runs calls one after the other on a thread of its own while the caller goes on, or at once.

    A context manager. An exception in a call is raised by one of the next, or at the end.
    """

    def __init__(self, threaded: bool):
        self._worker = ThreadPoolExecutor(1) if threaded else None
        self._pending: deque[Future[None]] = deque()

    def __call__(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have a call run; waits where too many are outstanding already."""
        if self._worker is None:
            work(*arguments)
            return
        if len(self._pending) == MAX_BEHIND:
            self._pending.popleft().result()
        self._pending.append(self._worker.submit(work, *arguments))

    def wait(self) -> None:
        """Until all calls are done."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._worker is None:
            return
        with self._worker:
            if kind is None:
                self.wait()
            for call in self._pending:
                call.cancel()
