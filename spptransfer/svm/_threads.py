"""Independent pieces of work: one thread each, instead of all threads on each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar

import threadpoolctl

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
def _controller() -> threadpoolctl.ThreadpoolController:
    # Finding the loaded libraries takes milliseconds, limiting them microseconds.
    return threadpoolctl.ThreadpoolController()


class _Limit:
    """BLAS's limit, which is the whole process's: set by the first that asks, lifted by the last.

    Two fits side by side would otherwise each restore what they found, in the wrong order.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.n_threads = 1
        self.lift: Callable[[], None]

    def enter(self) -> None:
        with self.lock:
            if not self.users:
                # BLAS alone, since lifting sets all: OpenMP's limits are each thread's own.
                blas = _controller().select(user_api="blas")
                self.n_threads = max((pool["num_threads"] for pool in blas.info()), default=1)
                self.lift = blas.limit(limits=1).restore_original_limits
            self.users += 1

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                # The thread that set the limit may be at work elsewhere; it alone could lift it.
                _let_go_of_blas()
                self.lift()
                _let_go_of_blas()


def _let_go_of_blas() -> None:
    """Allow any thread to set OpenBLAS's limit, which newer threadpoolctl keeps to one."""
    let_go = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if let_go is not None:
        let_go(force=True)


class _TorchLimit:
    """Torch's limit: each thread has its own, which new threads take over from whoever set it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.n_threads = 1

    def hold(self, torch: Any) -> None:
        if _inside.torch is None:
            with self.lock:
                if not self.holders:
                    self.n_threads = torch.get_num_threads()
                self.holders += 1
                torch.set_num_threads(1)
            _inside.torch = torch

    def release(self) -> None:
        if _inside.torch is not None:
            with self.lock:
                self.holders -= 1
                _inside.torch.set_num_threads(self.n_threads)
            _inside.torch = None


class _Inside(threading.local):
    """What a thread is in the middle of."""

    def __init__(self) -> None:
        self.depth = 0
        self.worker = False
        self.torch: Any = None


_limit = _Limit()
_torch_limit = _TorchLimit()
_inside = _Inside()


@contextmanager
def own_threads() -> Iterator[int]:
    """Keep BLAS to one thread and give `for_each` those that it had; their number is the value.

    A small factorisation, or a product with few columns, is split among threads that then mostly
    wait for each other, and burn the processor's time while they do.
    """
    _limit.enter()
    _inside.depth += 1
    try:
        yield 1 if _inside.worker else _limit.n_threads
    finally:
        _inside.depth -= 1
        if not _inside.depth:
            _torch_limit.release()
        _limit.leave()


def limit_torch(torch: Any) -> None:
    """Keep torch to one thread, too, in this thread until it leaves `own_threads`."""
    _torch_limit.hold(torch)


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function with every item, on as many threads as BLAS had; results in order.

    The calling thread is one of them: every other one keeps memory of its own. What is called may
    call it again: there it is a plain loop.
    """
    items = list(items)
    with own_threads() as n_threads:
        n_others = min(n_threads, len(items)) - 1
        if n_others < 1:
            return [function(item) for item in items]
        share = _Share(function, items)
        with ThreadPoolExecutor(n_others) as executor:
            others = [executor.submit(share.work) for _ in range(n_others)]
            share.work()
            for other in others:
                other.result()
        return [share.results[number] for number in range(len(items))]


class _Share(Generic[Item, Result]):
    """Items that threads take one by one, until none is left or one of them failed."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
        self.function = function
        self.left = deque(enumerate(items))
        self.results: dict[int, Result] = {}

    def _next(self) -> tuple[int, Item] | None:
        try:
            return self.left.popleft()
        except IndexError:
            return None

    def work(self) -> None:
        """Take items as long as there are any."""
        with own_threads():
            _inside.worker = True
            try:
                while (taken := self._next()) is not None:
                    number, item = taken
                    self.results[number] = self.function(item)
            except BaseException:
                self.left.clear()
                raise
            finally:
                _inside.worker = False
