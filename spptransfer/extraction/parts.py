"""One part: a run of images read, batched and computed by a pool of threads."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from spptransfer.cache.layout import OK, Block, Rows, blocks_of
from spptransfer.extraction.batches import Loaded, Probe, Source, group, load, probe
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.images import check_view
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

# A CPU gains nothing from larger batches, a GPU does.
CPU_BATCH_PIXELS = 8 * 224 * 300
GPU_BATCH_PIXELS = 128 * 224 * 300

NOT_FINITE = "the features are not finite (NaN or infinite numbers)"

PartFeatures = dict[Block, npt.NDArray[Any]]


class Clock:
    """Adds up what worker threads spend on reading and computing, and the main one on writing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: dict[str, float] = {"read": 0.0, "compute": 0.0, "write": 0.0}
        self.workers = 1
        self.started = time.perf_counter()

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                self._spent[kind] += elapsed

    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by kind; what workers did side by side is divided by their number."""
        shared = {kind: self._spent[kind] / self.workers for kind in ("read", "compute")}
        return {**shared, "write": self._spent["write"]}

    def busy_share(self) -> float:
        """Share of the wall-clock time in which the device computed."""
        elapsed = time.perf_counter() - self.started
        return min(1.0, self._spent["compute"] / self.workers / max(elapsed, 1e-9))


class PartMaker:
    """Turns runs of images into rows and features with a pool of worker threads.

    On a CPU every worker computes its own batch with one thread of its own: images are
    independent, so parallelism belongs between them, not inside an operator.

    Parameters
    ----------
    computer : FeatureComputer
        Runs the backbone.
    spec : FeatureSpec
        What is computed.
    channels : int
        Channels of the spec's layer.
    clock : Clock
        Where the time goes.
    workers : int
        Number of threads.
    batch_pixels : int or None
        Pixels per batch at the largest scale; None for what suits the device.
    """

    Pending = Future[tuple[Rows, PartFeatures]]

    def __init__(
        self,
        computer: FeatureComputer,
        spec: FeatureSpec,
        channels: int,
        clock: Clock,
        workers: int,
        batch_pixels: int | None = None,
    ) -> None:
        self._computer = computer
        self._spec = spec
        self._view = check_view(spec.view)
        self._blocks = blocks_of(spec, channels)
        self.clock = clock
        on_cpu = computer.device.type == "cpu"
        clock.workers = workers if on_cpu else 1
        self._batch_pixels = batch_pixels or (CPU_BATCH_PIXELS if on_cpu else GPU_BATCH_PIXELS)
        self._workers = ThreadPoolExecutor(workers, "worker", self._begin_worker)
        self._parts = ThreadPoolExecutor(2, "part")
        # A GPU takes one batch at a time, or two would share its memory.
        self._device = contextlib.nullcontext() if on_cpu else threading.Lock()

    def _begin_worker(self) -> None:
        if self._computer.device.type == "cpu":
            torch.set_num_threads(1)

    def __enter__(self) -> PartMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        self._parts.shutdown(wait=True, cancel_futures=True)

    def start(self, ids: Sequence[str], sources: Sequence[Source], bar: tqdm[Any]) -> Pending:
        """Begin a part; its result is the table of rows and the features of every block."""
        return self._parts.submit(self._make, ids, sources, bar)

    def _make(
        self, ids: Sequence[str], sources: Sequence[Source], bar: tqdm[Any]
    ) -> tuple[Rows, PartFeatures]:
        rows = Rows.empty(ids)
        shape = len(ids)
        features = {b: np.full((shape, b.width), np.nan, self._spec.storage) for b in self._blocks}
        probes = list(self._workers.map(self._probe, sources))
        for position, found in enumerate(probes):
            _note_probe(rows, position, found)
        batches = [
            self._workers.submit(self._compute, batch, sources, probes, rows, features)
            for batch in self._batches(probes)
        ]
        bar.update(sum(found.view_sizes is None for found in probes))
        for done in as_completed(batches):
            bar.update(done.result())
            bar.set_postfix_str(f"computing {self.clock.busy_share():.0%}", refresh=False)
        return rows, features

    def _probe(self, source: Source) -> Probe:
        with self.clock.measure("read"):
            return probe(source, self._spec.scales, self._view)

    def _batches(self, probes: Sequence[Probe]) -> Iterator[list[int]]:
        """Group by the views' sizes at all scales, which are then computed from one decoding."""
        keys = [found.view_sizes for found in probes]
        costs = [max((h * w for h, w in sizes), default=0) if sizes else 0 for sizes in keys]
        return group(keys, costs, self._batch_pixels)

    def _compute(
        self,
        batch: Sequence[int],
        sources: Sequence[Source],
        probes: Sequence[Probe],
        rows: Rows,
        features: PartFeatures,
    ) -> int:
        """Decode a batch, compute it at every scale, put the results in their rows."""
        with self.clock.measure("read"):
            loaded = {i: load(sources[i], probes[i], self._spec.scales, self._view) for i in batch}
        for position, image in loaded.items():
            rows.digest[position] = image.digest.encode()
            rows.error[position] = image.error
        readable = [position for position in batch if loaded[position].views]
        if readable:
            self._fill([loaded[i] for i in readable], readable, features)
            _note_results(rows, readable, features)
        return len(batch)

    def _fill(
        self, loaded: Sequence[Loaded], positions: Sequence[int], features: PartFeatures
    ) -> None:
        for number, scale in enumerate(self._spec.scales):
            views = np.stack([image.views[number] for image in loaded])
            with self._device, self.clock.measure("compute"):
                vectors = self._computer(views)
            for block in self._blocks:
                if block.scale == scale:
                    features[block][positions] = vectors[block.level]


def _note_probe(rows: Rows, position: int, found: Probe) -> None:
    rows.size[position], rows.modified[position] = found.size, found.modified
    rows.height[position], rows.width[position] = found.height, found.width
    rows.error[position] = found.error


def _note_results(rows: Rows, positions: Sequence[int], features: PartFeatures) -> None:
    """Accept rows whose numbers are all finite; the others fail and keep no number."""
    for position in positions:
        if all(np.isfinite(values[position]).all() for values in features.values()):
            rows.status[position] = OK
            continue
        rows.error[position] = NOT_FINITE
        for values in features.values():
            values[position] = np.nan
