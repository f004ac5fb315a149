"""Who looks at images and decodes them: the threads that ask, or processes of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple, Protocol

import numpy as np
from joblib.externals.loky import ProcessPoolExecutor

from spptransfer.extraction.batches import Loaded, Probe, Rendering, Source, load, look
from spptransfer.extraction.slots import Address, Slot, put
from spptransfer.extraction.workers import end_with, leave_interrupts

# Of memory that a thread and a process share: eight views of 392 x 588 fit; more is asked for when
# it is needed.
SLOT_BYTES, MOST_SLOT_BYTES = 6 << 20, 256 << 20
_NOTHING = np.empty(0, np.uint8)


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
    other. What processes read has to travel, though, through memory that they share where the
    system has it (`Slot`), else through pipes: `benchmarks/reading.py` compares them.

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
        self._pool = ProcessPoolExecutor(count, initializer=_begin, initargs=(os.getpid(),))
        self._pool.submit(int)  # they all start now, beside what comes before reading
        # As many as there are threads that ask at once.
        self._free: SimpleQueue[Slot | None] = SimpleQueue()

    def __enter__(self) -> ProcessReaders:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)
        while not self._free.empty():
            if slot := self._free.get():
                slot.close()

    def look(self, sources: Sequence[Source]) -> list[Probe]:
        """Read what the headers of some images say."""
        found: list[Probe] = self._pool.submit(_look, sources).result()
        return found

    def load(self, wanted: Sequence[Wanted]) -> list[Loaded]:
        """Decode some images and render their views."""
        slot = _new_slot(SLOT_BYTES) if self._free.empty() else self._free.get()
        try:
            sent = self._pool.submit(_load, wanted, slot and slot.address).result()
            found = sent.images if slot is None else sent.unpacked(slot)
            if slot is not None and slot.address.size < sent.size <= MOST_SLOT_BYTES:
                slot.close()
                slot = _new_slot(sent.size)
        finally:
            self._free.put(slot)
        return found


def _new_slot(size: int) -> Slot | None:
    try:
        return Slot(size)
    except OSError:
        return None


@dataclass(frozen=True)
class _Sent:
    """Decoded images on their way; where there are `shapes` the views are in a slot."""

    images: list[Loaded]
    size: int
    shapes: tuple[tuple[int, ...], ...] = ()

    def unpacked(self, slot: Slot) -> list[Loaded]:
        """Bring images and views together."""
        views = iter(slot.take(self.shapes))
        return [
            replace(image, views=tuple(islice(views, len(image.views)))) if self.shapes else image
            for image in self.images
        ]


def _begin(asked_by: int) -> None:
    import torch

    end_with(asked_by)
    torch.set_num_threads(1)
    leave_interrupts()


def _look(sources: Sequence[Source]) -> list[Probe]:
    # The contents stay: they would travel there and back.
    return [replace(seen, data=b"") for seen in ThreadReaders().look(sources)]


def _load(wanted: Sequence[Wanted], address: Address | None) -> _Sent:
    images = ThreadReaders().load(wanted)
    views = [view for image in images for view in image.views]
    size = sum(view.nbytes for view in views)
    if address is None or not put(address, views):
        return _Sent(images, size)
    # Empty ones travel in their stead.
    hollow = [replace(image, views=(_NOTHING,) * len(image.views)) for image in images]
    return _Sent(hollow, size, tuple(view.shape for view in views))
