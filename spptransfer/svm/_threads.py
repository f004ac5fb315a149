"""Independent pieces of work: one thread each, instead of all threads on each."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from operator import itemgetter
from typing import Any, TypeVar

import threadpoolctl

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _blas() -> threadpoolctl.ThreadpoolController:
    # Finding the loaded libraries takes milliseconds, limiting them microseconds. BLAS alone,
    # since lifting sets all: OpenMP's limits are each thread's own.
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def _n_threads() -> int:
    return max(map(itemgetter("num_threads"), _blas().info()), default=1)


def _changed(change: Callable[[], Any], n_threads: int) -> Any:
    """Change BLAS's limit in a thread that ends.

    Threadpoolctl leaves OpenBLAS to the thread that changed it first, for as long as that lives. If
    that is the one we are in, it has to do it itself.
    """
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(change).result()
    return done if _n_threads() == n_threads else change()


class _Limits:
    """The limits of BLAS and of torch: set by the first that asks, lifted by the last.

    Two fits side by side would otherwise each restore what they found, in the wrong order.
    """

    lock = threading.Lock()
    users = torch_users = 0
    n_threads = torch_threads = 1
    blas: Any = None


class _Inside(threading.local):
    """What a thread is in the middle of."""

    depth = 0
    worker = False
    torch = False


_limits = _Limits()
_inside = _Inside()


@contextmanager
def own_threads() -> Iterator[int]:
    """Keep BLAS to one thread and give `for_each` those that it had; their number is the value.

    A small factorisation, or a product with few columns, is split among threads that then mostly
    wait for each other, and burn the processor's time while they do.
    """
    with _limits.lock:
        if not _limits.users:
            _limits.n_threads = _n_threads()
            _limits.blas = _changed(partial(_blas().limit, limits=1), 1)
        _limits.users += 1
    _inside.depth += 1
    try:
        yield 1 if _inside.worker else _limits.n_threads
    finally:
        _inside.depth -= 1
        with _limits.lock:
            if _inside.torch and not _inside.depth:
                _inside.torch = False
                _limits.torch_users -= 1
                sys.modules["torch"].set_num_threads(_limits.torch_threads)
            _limits.users -= 1
            if not _limits.users:
                _changed(_limits.blas.restore_original_limits, _limits.n_threads)


def limit_torch() -> None:
    """Keep torch to one thread, too, in this thread until it leaves `own_threads`.

    Each thread has its own limit, which new threads take over from whoever set it last.
    """
    if not _inside.torch:
        torch: Any = sys.modules["torch"]
        with _limits.lock:
            if not _limits.torch_users:
                _limits.torch_threads = torch.get_num_threads()
            _limits.torch_users += 1
            torch.set_num_threads(1)
        _inside.torch = True


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call a function with every item, on as many threads as BLAS had; results in order.

    The calling thread is one of them: every other one keeps memory of its own. What is called may
    call it again: there it is a plain loop.
    """
    items = list(items)
    left, results = deque(enumerate(items)), {}

    def work() -> None:
        """Take items one by one, until none is left or a thread failed."""
        with own_threads():
            _inside.worker = True
            try:
                while left:
                    try:
                        number, item = left.popleft()
                    except IndexError:  # another thread was faster
                        break
                    results[number] = function(item)
            except BaseException:
                left.clear()
                raise
            finally:
                _inside.worker = False

    with own_threads() as n_threads:
        n_others = min(n_threads, len(items)) - 1
        if n_others < 1:
            return list(map(function, items))
        with ThreadPoolExecutor(n_others) as executor:
            others = [executor.submit(work) for _ in range(n_others)]
            work()
            for other in others:
                other.result()
    return [results[number] for number in range(len(items))]
