"""How far an extraction is, where its time goes, and whether it shall stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm


class Clock:
    """Adds up what workers spend on reading, computing and writing, and counts their batches.

    Parameters
    ----------
    readers, computers : int, default=1
        How many of them read and compute side by side; wall-clock seconds are the sum of all
        workers' divided by that.

    Examples
    --------
    >>> clock = Clock(readers=2)
    >>> clock.add({"read": 3.0, "write": 0.5})
    >>> clock.seconds()
    {'read': 1.5, 'compute': 0.0, 'write': 0.5}
    """

    def __init__(self, readers: int = 1, computers: int = 1) -> None:
        self._lock = threading.Lock()
        self._spent = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self._share = {"read": readers, "compute": computers, "write": 1}
        self._started = time.perf_counter()
        self.batches, self.full_batches = 0, 0

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({kind: time.perf_counter() - start})

    def add(self, spent: Mapping[str, float]) -> None:
        """Count seconds that a worker measured."""
        with self._lock:
            for kind, seconds in spent.items():
                self._spent[kind] += seconds

    def count(self, batches: int, full: int) -> None:
        """Count batches, and how many of them are as large as they may be."""
        with self._lock:
            self.batches += batches
            self.full_batches += full

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by kind."""
        return {kind: spent / self._share[kind] for kind, spent in self._spent.items()}

    def share(self, kind: str) -> float:
        """Share of the wall-clock time so far that went into one kind of work."""
        elapsed = time.perf_counter() - self._started
        return min(1.0, self.seconds()[kind] / max(elapsed, 1e-9))


class Progress:
    """A bar with images per second, time left and the shares of reading and computing.

    On a CPU the workers do both, one after the other, and the shares add up to nearly one; on a
    GPU they overlap, and it is the side with the smaller share that waits.

    Parameters
    ----------
    total : int
        Images to do.
    clock : Clock
        Where the time goes.
    stop : threading.Event
        Set by whoever wants the extraction to end early.
    shown : bool, default=False
        Whether the bar is shown.
    label : str, default=""
        What is being computed.
    """

    def __init__(
        self,
        total: int,
        clock: Clock,
        stop: threading.Event,
        shown: bool = False,
        label: str = "",
    ) -> None:
        self.clock = clock
        self._stop = stop
        self._bar = tqdm(
            total=total, desc=label or None, unit="image", disable=not shown, smoothing=0.05
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def note(self, count: int) -> None:
        """Count images that are done."""
        read, compute = self.clock.share("read"), self.clock.share("compute")
        self._bar.set_postfix_str(f"reading {read:.0%}, computing {compute:.0%}", refresh=False)
        self._bar.update(count)

    @property
    def stopped(self) -> bool:
        """Whether no further part shall be begun."""
        return self._stop.is_set()
