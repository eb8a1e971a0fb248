"""Work that follows on a thread of its own while the caller goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

MAX_BEHIND = 3
"""Outstanding calls: each may hold the activations of a group."""

T = TypeVar("T")


class Follower:
    """Runs calls one after the other on a thread of its own while the caller goes on, or at once.

    A context manager. An exception in a call is raised where its result is asked for, by one of the next
    calls, or at the end.
    """

    def __init__(self, threaded: bool):
        self._worker = ThreadPoolExecutor(1) if threaded else None
        self._pending: deque[Future[Any]] = deque()

    def __call__(self, work: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Have a call run; waits where too many are outstanding already."""
        if self._worker is None:
            done: Future[T] = Future()
            done.set_result(work(*arguments))
            return done
        while len(self._pending) >= MAX_BEHIND:
            self._pending.popleft().result()
        future = self._worker.submit(work, *arguments)
        self._pending.append(future)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._worker is None:
            return
        with self._worker:
            if kind is None:
                while self._pending:
                    self._pending.popleft().result()
            for call in self._pending:
                call.cancel()
