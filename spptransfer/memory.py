"""What the C library does with memory that is freed, and Python's collector with old objects.

By itself glibc gives large pieces back to the system at once and gets them again, page by page
and filled with zeros, for the next map of the same size. Where pages are dear (virtual machines)
much of an extraction's time goes there. Other C libraries are left alone.

By itself Python's collector looks at all objects there are now and then, those of torch and of all
other modules too, and no thread gets on meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator
from functools import cache

# Parameters of mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_KEEPING = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
# Defaults of glibc; of the thresholds, which adapt until somebody sets them, what they would have
# become in a process with large arrays.
_USUAL = {
    _MMAP_MAX: 65_536,
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: 64 << 20,
    _TOP_PAD: 128 << 10,
}

_lock = threading.Lock()
_keeping = 0
_overlooking = 0


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory for what comes next, and give it back in the end.

    Threads that begin inside share one pool, so that what one has freed serves another one.

    Examples
    --------
    >>> with keep_freed_memory():
    ...     done = bytearray(1 << 26) == bytes(1 << 26)
    """
    _change(1)
    try:
        yield
    finally:
        _change(-1)
        release_memory()


def _change(by: int) -> None:
    """Count those who want memory to be kept; the first and the last one set what is done."""
    global _keeping
    with _lock:
        before, _keeping = _keeping, _keeping + by
        if bool(before) == bool(_keeping):
            return
        for parameter, value in (_KEEPING if _keeping else _USUAL).items():
            _call("mallopt", parameter, value)


@contextlib.contextmanager
def overlook_old_objects() -> Iterator[None]:
    """Have the garbage collector look only at objects that are made inside, until it ends.

    Examples
    --------
    >>> with overlook_old_objects():
    ...     gc.get_freeze_count() > 0
    True
    """
    global _overlooking
    with _lock:
        _overlooking += 1
        if _overlooking == 1:
            gc.freeze()
    try:
        yield
    finally:
        with _lock:
            _overlooking -= 1
            if not _overlooking:
                gc.unfreeze()


def release_memory() -> None:
    """Give the system back what is free, where the C library can be told to.

    It keeps what one phase had in use for the next one, and a share for each thread that ended.
    """
    _call("malloc_trim", 0)


def _call(name: str, *values: int) -> None:
    library = _glibc()
    if library is not None:
        getattr(library, name)(*values)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is the one with these functions."""
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (OSError, AttributeError, TypeError):
        return None
