"""Independent pieces of work: one thread each, instead of all threads on each."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from typing import Any, Generic, TypeVar, cast

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
    """The libraries' limit, for the whole process: set by the first that asks, lifted by the last.

    Two fits side by side would otherwise each restore what they found, in the wrong order.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.n_threads = 1
        self.holds_torch = False
        self.stack = ExitStack()

    def enter(self) -> None:
        with self.lock:
            if not self.users:
                pools = _controller().select(user_api="blas").info()
                self.n_threads = max((pool["num_threads"] for pool in pools), default=1)
                limit = _controller().limit(limits=1, user_api="blas")
                self.stack.enter_context(cast(AbstractContextManager[object], limit))
            self.users += 1
            self._hold_torch()

    def take_torch(self) -> None:
        with self.lock:
            self._hold_torch()

    def _hold_torch(self) -> None:
        torch: Any = sys.modules.get("torch")
        # Another thread may be in the middle of importing it.
        if self.users and not self.holds_torch and hasattr(torch, "set_num_threads"):
            self.stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            self.holds_torch = True

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.stack.close()
                self.holds_torch = False


_limit = _Limit()
_inside = threading.local()


def limit_torch() -> None:
    """Keep torch, loaded by now, to one thread until everybody has left `own_threads`."""
    _limit.take_torch()


@contextmanager
def own_threads() -> Iterator[int]:
    """Keep BLAS to one thread and give `for_each` those that it had; their number is the value.

    The same goes for torch where it is loaded. A small factorisation, or a product with few
    columns, is split among threads that then mostly wait for each other, and burn the processor's
    time while they do.
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


def release_memory() -> None:
    """Give the system back what is free, where the C library can be told to.

    It keeps what one phase had in use for the next one, and a share for each thread that ended.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return cast(Callable[[int], int], ctypes.CDLL(None).malloc_trim)
    except (OSError, AttributeError, TypeError):  # not glibc
        return None
