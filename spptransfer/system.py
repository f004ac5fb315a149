"""Processors and memory of this machine, asked in a way that every system knows."""

from __future__ import annotations

import os

import psutil


def count_processors() -> int:
    """Count the processors that this process may use.

    Examples
    --------
    >>> count_processors() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # absent from macOS and Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def available_memory() -> int:
    """Return the bytes of memory that can be taken without swapping.

    Examples
    --------
    >>> available_memory() > 0
    True
    """
    return int(psutil.virtual_memory().available)
