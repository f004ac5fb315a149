"""Many small dense problems at once: one thread each, instead of all threads on each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import TypeVar, cast

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")


@cache
def _controller() -> ThreadpoolController:
    # Finding the loaded libraries takes milliseconds, limiting them microseconds.
    return ThreadpoolController()


def single_threaded() -> AbstractContextManager[object]:
    """Keep BLAS to one thread inside a with statement."""
    return cast(AbstractContextManager[object], _controller().limit(limits=1, user_api="blas"))


def for_each(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call a function that works in place with every item, on as many threads as BLAS has.

    BLAS itself splits a small factorisation among threads that then mostly wait for each other.
    """
    pools = _controller().select(user_api="blas").info()
    n_threads = max((pool["num_threads"] for pool in pools), default=1)
    with single_threaded(), ThreadPoolExecutor(n_threads) as executor:
        for _ in executor.map(function, items):
            pass
