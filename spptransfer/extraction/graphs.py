"""Frequent batches on a GPU as graphs: all the kernels of one are launched at once."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.extraction.division import GPU_LANES
from spptransfer.extraction.transfers import Compute, Lanes, Numbers, Transfers
from spptransfer.processor import is_out_of_memory

logger = logging.getLogger(__name__)

# Capturing and proving a graph takes as long as some 15 batches: it has to have paid before.
OFTEN = 32
# One that had to go is captured again much later, or shapes in turn would be captured for ever.
OFTEN_AGAIN = 8 * OFTEN
GRAPHS_PER_LANE = 4
SHAPES_REMEMBERED = 1000
FAILURES_ALLOWED = 3
TIMINGS = 3
# The share of an eager batch's time that a replay may take.
WORTH = 0.95
_NEVER = -math.inf

Found = Sequence[Mapping[Any, torch.Tensor]]


class Graph(Protocol):
    """A computation for batches of one shape; what it finds, its next call writes over."""

    def __call__(self, pixels: torch.Tensor) -> Found:
        """Compute a batch."""

    def drop(self) -> None:
        """Give its memory back; nobody uses it any more."""


class Capturer(Protocol):
    """Makes graphs that share memory, so that no two of them may run at once."""

    def capture(self, compute: Compute, pixels: torch.Tensor) -> Graph:
        """Record what is computed from pixels of one shape."""

    def seconds(self, run: Callable[[], object]) -> float:
        """How long a run takes, from the first launch to the end of the last kernel."""


@dataclass
class _Lane:
    """Graphs that run one after the other; the last used come last."""

    capturer: Capturer | None = None
    graphs: dict[Hashable, Graph] = field(default_factory=dict)

    def graph(self, key: Hashable) -> Graph | None:
        found = self.graphs.pop(key, None)
        if found is not None:
            self.graphs[key] = found
        return found

    def drop_all(self) -> None:
        while self.graphs:
            self.graphs.popitem()[1].drop()
        self.capturer = None


class Graphs:
    """Computes batches, those of frequent shapes by graphs that proved themselves.

    A graph is kept only if on two batches it gives the bits that the computation itself gives,
    and takes less time. A lane is whoever computes at the moment; every lane has graphs and
    memory of its own.

    Parameters
    ----------
    transfers : Transfers
        The way to the device and back. It must be through with a batch's results when it
        returns.
    open_capturer : callable
        Makes the `Capturer` of a lane.
    lanes : int, default=GPU_LANES
        How many batches are computed at once.

    Notes
    -----
    Once a batch failed, as for want of memory, or captures failed several times, there are no
    graphs any more; the batch is computed again without.

    Examples
    --------
    >>> from spptransfer.extraction.capturing import CudaCapturer
    >>> from spptransfer.extraction.transfers import stay
    >>> graphs = Graphs(stay, lambda: CudaCapturer(torch.device("cuda")))
    >>> views = np.full((1, 2, 2, 3), 7, np.uint8)
    >>> graphs(views, lambda pixels: [{"sum": pixels.sum()}], key=views.shape)
    [{'sum': array(84)}]
    >>> graphs.held
    0
    """

    def __init__(
        self, transfers: Transfers, open_capturer: Callable[[], Capturer], lanes: int = GPU_LANES
    ) -> None:
        self._transfers = transfers
        self._open_capturer = open_capturer
        self._gate = Lanes(lanes)
        self._lock = threading.Lock()
        self._free: list[_Lane] = []
        self._seen: dict[Hashable, float] = {}
        self._failures = 0
        self._stopped = False

    @property
    def held(self) -> int:
        """Number of graphs in lanes where nobody computes."""
        with self._lock:
            return sum(len(lane.graphs) for lane in self._free)

    def __call__(
        self, views: npt.NDArray[np.uint8], compute: Compute, key: Hashable = None
    ) -> list[dict[Any, Numbers]]:
        """Compute a batch.

        Parameters
        ----------
        views : ndarray of uint8
            The batch.
        compute : callable
            What becomes of its pixels.
        key : hashable, optional
            Batches of the same key have the same shape and the same computation, in which no
            decision depends on the pixels. None if there must not be a graph.

        Returns
        -------
        list of dict of ndarray
            What `compute` found.
        """
        stopped = self._stopped
        try:
            return self._computed(views, compute, key)
        except (RuntimeError, MemoryError) as error:
            if stopped:
                raise
            with self._gate.all():
                self._stop(error)
        # Not in the handler: the error keeps alive what the failed run has in memory.
        return self._computed(views, compute, None)

    def _computed(
        self, views: npt.NDArray[np.uint8], compute: Compute, key: Hashable
    ) -> list[dict[Any, Numbers]]:
        with self._gate.one(), self._some_lane() as lane:
            graph = lane.graph(key)
            # What a replay finds is home, or on its way in the same stream and waited for, before
            # the lane is free for the next replay, which writes over it.
            found = self._transfers(views, compute if graph is None else graph)
        if graph is None and self._is_due(key):
            self._try(lane, views, compute, key)
        return found

    @contextlib.contextmanager
    def _some_lane(self) -> Iterator[_Lane]:
        with self._lock:
            lane = self._free.pop() if self._free else _Lane()
        try:
            yield lane
        finally:
            with self._lock:
                self._free.append(lane)

    def _is_due(self, key: Hashable) -> bool:
        if key is None or self._stopped:
            return False
        with self._lock:
            self._seen[key] = count = self._seen.pop(key, 0) + 1
            if len(self._seen) > SHAPES_REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return count >= OFTEN

    def _try(
        self, lane: _Lane, views: npt.NDArray[np.uint8], compute: Compute, key: Hashable
    ) -> None:
        """Capture a graph, and keep it if it proves itself."""
        # Alone, though capturing allows others to go on: torch's streams are 32 that are dealt out
        # again and again, and what another thread launches in the captured one is not computed;
        # while there is a capture no cached memory is given back, so that others would lack it;
        # and times are measured.
        with self._gate.all():
            refused = self._seen.get(key) == _NEVER  # while this thread waited
            if self._stopped or refused or key in lane.graphs:
                return
            try:
                self._transfers(views, lambda pixels: self._prove(lane, pixels, compute, key))
            except Exception as error:  # The batch itself is home; the next ones go on without.
                logger.info("no graph for batches of %s: %s", key, error)
                self._postpone(key, _NEVER)
                self._failures += 1
                if is_out_of_memory(error) or self._failures >= FAILURES_ALLOWED:
                    self._stop(error)

    def _prove(self, lane: _Lane, pixels: torch.Tensor, compute: Compute, key: Hashable) -> Found:
        if lane.capturer is None:
            lane.capturer = self._open_capturer()
        graph = lane.capturer.capture(compute, pixels)
        try:
            objection = _objection(graph, compute, pixels, lane.capturer.seconds)
        except BaseException:
            graph.drop()
            raise
        if objection:
            graph.drop()
            self._postpone(key, _NEVER)
            logger.info("no graph for batches of %s: %s", key, objection)
            return []
        logger.info("batches of %s are computed by a graph", key)
        lane.graphs[key] = graph
        if len(lane.graphs) > GRAPHS_PER_LANE:
            oldest = next(iter(lane.graphs))
            lane.graphs.pop(oldest).drop()
            self._postpone(oldest, OFTEN - OFTEN_AGAIN)
        return []

    def _postpone(self, key: Hashable, count: float) -> None:
        with self._lock:
            self._seen[key] = count

    def _stop(self, error: BaseException) -> None:
        """Drop the graphs of all lanes, all of which are free, and make no more."""
        if not self._stopped:
            logger.info("no graphs from here on: %s", error)
        self._stopped = True
        for lane in self._free:
            lane.drop_all()


def _objection(
    graph: Graph,
    compute: Compute,
    pixels: torch.Tensor,
    seconds: Callable[[Callable[[], object]], float],
) -> str:
    """Why a graph is not worth having; empty if it is."""
    # A batch that was not captured as well, and the captured one once more after it. To the bit:
    # the same kernels run in both ways, and which way a batch goes depends on the threads' order.
    for batch in (255 - pixels, pixels):
        if not _same_bits(graph(batch), compute(batch)):
            return "its numbers differ"
    eager, replayed = [], []
    for _ in range(TIMINGS):
        eager.append(seconds(lambda: compute(pixels)))
        replayed.append(seconds(lambda: graph(pixels)))
    before, after = statistics.median(eager), statistics.median(replayed)
    if after > WORTH * before:
        return f"it takes {after * 1000:.3g} ms instead of {before * 1000:.3g}"
    return ""


def _same_bits(found: Found, expected: Found) -> bool:
    if [set(one) for one in found] != [set(one) for one in expected]:
        return False
    pairs = [(a[key], b[key]) for a, b in zip(found, expected, strict=True) for key in a]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))
        for a, b in pairs
    )


def _bytes(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1).view(torch.uint8)
