"""Who looks at images and decodes them: the threads that ask, or processes of their own."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from joblib.externals.loky import ProcessPoolExecutor

from spptransfer.extraction.batches import Loaded, Probe, Rendering, Source, load, look


class Wanted(NamedTuple):
    """An image to be decoded; see `spptransfer.extraction.batches.load`."""

    source: Source
    digest: str
    renderings: Sequence[Rendering]
    data: bytes = b""


class Readers(Protocol):
    """Those who read; any number of threads may ask at once, and wait for what they asked for."""

    def look(self, sources: Sequence[Source]) -> list[Probe]:
        """Read what the headers of some images say."""

    def load(self, wanted: Sequence[Wanted]) -> list[Loaded]:
        """Decode some images and render their views."""


class ThreadReaders:
    """Each thread reads for itself.

    Examples
    --------
    >>> import numpy as np
    >>> (seen,) = ThreadReaders().look([np.zeros((4, 5, 3), np.uint8)])
    >>> seen.height, seen.width
    (4, 5)
    """

    def look(self, sources: Sequence[Source]) -> list[Probe]:
        """Read what the headers of some images say."""
        return [look(source) for source in sources]

    def load(self, wanted: Sequence[Wanted]) -> list[Loaded]:
        """Decode some images and render their views."""
        return [load(*each) for each in wanted]


class ProcessReaders:
    """Processes that read, as many images at once as there are processes.

    Python lets one thread of a process interpret at a time, so that many threads wait for each
    other. What processes read has to travel, though: `benchmarks/reading.py` compares them.

    Parameters
    ----------
    count : int
        How many processes.

    Notes
    -----
    Use it as a context manager. If one of them dies, whoever asks gets loky's
    `TerminatedWorkerError`.
    """

    def __init__(self, count: int) -> None:
        self._pool = ProcessPoolExecutor(count, initializer=_begin)
        self._pool.submit(int)  # they all start now, beside what comes before reading

    def __enter__(self) -> ProcessReaders:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)

    def look(self, sources: Sequence[Source]) -> list[Probe]:
        """Read what the headers of some images say."""
        found: list[Probe] = self._pool.submit(_look, sources).result()
        return found

    def load(self, wanted: Sequence[Wanted]) -> list[Loaded]:
        """Decode some images and render their views."""
        found: list[Loaded] = self._pool.submit(_load, wanted).result()
        return found


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal; only the one that asks may stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _look(sources: Sequence[Source]) -> list[Probe]:
    # The contents stay: they would travel there and back.
    return [replace(seen, data=b"") for seen in ThreadReaders().look(sources)]


def _load(wanted: Sequence[Wanted]) -> list[Any]:
    return ThreadReaders().load(wanted)
