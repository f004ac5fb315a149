"""Independent pieces of work: one thread each, instead of all threads on each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Generic, TypeVar, cast

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


class Once(Generic[Result]):
    """Something that the first thread that needs it computes for all of them."""

    def __init__(self, compute: Callable[[], Result]) -> None:
        self._compute: Callable[[], Result] | None = compute
        self._lock = threading.Lock()
        self._value: Result

    def get(self) -> Result:
        """The value."""
        with self._lock:
            if self._compute is not None:
                self._value, self._compute = self._compute(), None
            return self._value


@cache
def _controller() -> ThreadpoolController:
    # Finding the loaded libraries takes milliseconds, limiting them microseconds.
    return ThreadpoolController()


class _Limit:
    """BLAS's limit, which is the whole process's: set by the first that asks, lifted by the last.

    Two fits side by side would otherwise each restore what they found, in the wrong order.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.n_threads = 1
        self.stack = ExitStack()

    def enter(self) -> None:
        with self.lock:
            if not self.users:
                pools = _controller().select(user_api="blas").info()
                self.n_threads = max((pool["num_threads"] for pool in pools), default=1)
                limit = _controller().limit(limits=1, user_api="blas")
                self.stack.enter_context(cast(AbstractContextManager[object], limit))
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.stack.close()


_limit = _Limit()
_inside = threading.local()


@contextmanager
def own_threads() -> Iterator[int]:
    """Keep BLAS to one thread and give `for_each` those that it had; their number is the value.

    BLAS splits a small factorisation, or a product with few columns, among threads that then
    mostly wait for each other, and burn the processor's time while they do.
    """
    _limit.enter()
    try:
        yield 1 if getattr(_inside, "worker", False) else _limit.n_threads
    finally:
        _limit.leave()


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function with every item, on as many threads as BLAS had; results in order.

    What is called may call it again: there it is a plain loop.
    """
    items = list(items)

    def work(item: Item) -> Result:
        _inside.worker = True
        return function(item)

    with own_threads() as n_threads:
        if n_threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(n_threads, len(items))) as executor:
            return list(executor.map(work, items))
