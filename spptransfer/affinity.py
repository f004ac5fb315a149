"""Which processors threads run on (CPU affinity).

Beside another busy process, a system that moves threads about leaves two of them on one processor
now and then, and gives the other process one of its own. Threads that stay where they are share
one processor with it and have the others to themselves.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable


def count_processors() -> int:
    """How many processors the calling thread may use.

    Examples
    --------
    >>> count_processors() >= 1
    True
    """
    return len(os.sched_getaffinity(0))


def are_one_each(threads: int) -> bool:
    """Whether so many threads are one for each of several processors, so that each can have one.

    With fewer, other processes of ours may want the same ones, and the system had better choose.
    """
    return threads > 1 and threads == count_processors()


def spread() -> Callable[[], None]:
    """Make a function that keeps each thread which calls it to the next processor in turn.

    Returns
    -------
    callable
        It concerns the calling thread alone, and no other one of the process.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(1, initializer=spread()) as pool:
    ...     pool.submit(count_processors).result()
    1
    """
    processors = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def stay() -> None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it, a processor may be gone
            os.sched_setaffinity(0, {next(processors)})

    return stay
