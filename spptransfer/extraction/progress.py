"""How far an extraction is, and where its time goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

from tqdm import tqdm


class Clock:
    """Add up what threads spend on reading, computing and writing, and count their batches.

    Examples
    --------
    >>> clock = Clock()
    >>> clock.threads["read"] = 2
    >>> clock.add({"read": 3.0, "write": 0.5})
    >>> clock.seconds()
    {'read': 1.5, 'compute': 0.0, 'write': 0.5}
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self.threads = dict.fromkeys(self._spent, 1)
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
        """Count seconds that a thread measured."""
        with self._lock:
            for kind, seconds in spent.items():
                self._spent[kind] += seconds

    def count(self, batches: int, full: int) -> None:
        """Count batches, and how many of them are as large as they may be."""
        with self._lock:
            self.batches += batches
            self.full_batches += full

    def seconds(self) -> dict[str, float]:
        """Return wall-clock seconds by kind of work."""
        return {kind: spent / self.threads[kind] for kind, spent in self._spent.items()}

    def share(self, kind: str) -> float:
        """Return the share of the wall-clock time so far that went into one kind of work."""
        elapsed = time.perf_counter() - self._started
        return min(1.0, self.seconds()[kind] / max(elapsed, 1e-9))


class Progress:
    """A bar with images per second, time left and the shares of reading and computing.

    On a CPU the workers do both, one after the other, and the shares add up to nearly one; on a
    GPU they overlap, and it is the side with the smaller share that waits.
    """

    def __init__(self, total: int, clock: Clock, shown: bool = False, label: str = "") -> None:
        self.clock = clock
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
