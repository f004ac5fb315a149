"""One part: a run of images read, batched, computed and written by a pool of threads."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from spptransfer.cache.layout import Block, blocks_of
from spptransfer.cache.rows import OK, Rows
from spptransfer.cache.workspace import write_part
from spptransfer.extraction.batches import OUT_OF_MEMORY, Loaded, Probe, Source, group, load, probe
from spptransfer.extraction.compute import FeatureComputer, is_out_of_memory
from spptransfer.extraction.plan import Part
from spptransfer.extraction.progress import Clock
from spptransfer.images import check_view
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

# A CPU gains nothing from larger batches, a GPU does.
CPU_BATCH_PIXELS = 8 * 224 * 300
GPU_BATCH_PIXELS = 128 * 224 * 300

NOT_FINITE = "the features are not finite (NaN or infinite numbers)"

PartFeatures = dict[Block, npt.NDArray[Any]]


@dataclass(frozen=True)
class PartSettings:
    """What all parts of one extraction have in common.

    `folder` is where parts are written, `dataset` the name recorded in them; `batch_pixels`
    bounds a batch at its largest scale, None for what suits the device.
    """

    folder: Path
    spec: FeatureSpec
    channels: int
    dataset: str
    batch_pixels: int | None = None


class PartMaker:
    """Makes parts with a pool of worker threads.

    On a CPU every worker computes its own batch with one thread of its own: images are
    independent, so parallelism belongs between them, not inside an operator.

    Parameters
    ----------
    settings : PartSettings
        What is common to all parts.
    computer : FeatureComputer
        Runs the backbone.
    clock : Clock
        Where the time goes.
    workers : int
        Number of threads.
    """

    def __init__(
        self, settings: PartSettings, computer: FeatureComputer, clock: Clock, workers: int
    ) -> None:
        self._settings = settings
        self._spec = settings.spec
        self._computer = computer
        self._clock = clock
        self._view = check_view(settings.spec.view)
        self._blocks = blocks_of(settings.spec, settings.channels)
        on_cpu = computer.device.type == "cpu"
        default = CPU_BATCH_PIXELS if on_cpu else GPU_BATCH_PIXELS
        self._batch_pixels = settings.batch_pixels or default
        begin = (lambda: torch.set_num_threads(1)) if on_cpu else None
        self._workers = ThreadPoolExecutor(workers, "worker", begin)
        # A GPU takes one batch at a time, or two would share its memory.
        self._device = contextlib.nullcontext() if on_cpu else threading.Lock()

    def __enter__(self) -> PartMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    def make(self, part: Part, note: Callable[[int], Any] = lambda count: None) -> Path:
        """Compute a part and write it.

        Parameters
        ----------
        part : Part
            Ids and images.
        note : callable
            Is told of every few images done.

        Returns
        -------
        Path
            The part's file.
        """
        rows, features = self.compute(part, note)
        settings = self._settings
        with self._clock.measure("write"):
            return write_part(
                settings.folder,
                part.number,
                rows,
                features,
                spec=settings.spec,
                channels=settings.channels,
                dataset=settings.dataset,
            )

    def compute(
        self, part: Part, note: Callable[[int], Any] = lambda count: None
    ) -> tuple[Rows, PartFeatures]:
        """Compute a part: the table of its rows, and the features of every block."""
        rows = Rows.empty(part.ids)
        storage = self._spec.storage
        features = {b: np.full((len(rows), b.width), np.nan, storage) for b in self._blocks}
        probes = list(self._workers.map(self._probe, part.sources))
        for position, found in enumerate(probes):
            _note_probe(rows, position, found)
        batches = [
            self._workers.submit(self._compute, batch, part.sources, probes, rows, features)
            for batch in self._batches(probes)
        ]
        note(sum(found.view_sizes is None for found in probes))
        # In order: `as_completed` would wait for ever for what a shutdown cancels.
        for done in batches:
            note(done.result())
        return rows, features

    def _probe(self, source: Source) -> Probe:
        with self._clock.measure("read"):
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
        with self._clock.measure("read"):
            loaded = {i: load(sources[i], probes[i], self._spec.scales, self._view) for i in batch}
        for position, image in loaded.items():
            rows.error[position] = image.error
        readable = [position for position in batch if loaded[position].views]
        if readable:
            self._fill([loaded[i] for i in readable], readable, rows, features)
        return len(batch)

    def _fill(
        self, loaded: Sequence[Loaded], positions: Sequence[int], rows: Rows, features: PartFeatures
    ) -> None:
        """Compute a batch; halve it where memory does not suffice."""
        try:
            for number, scale in enumerate(self._spec.scales):
                views = np.stack([image.views[number] for image in loaded])
                with self._device, self._clock.measure("compute"):
                    vectors = self._computer(views)
                for block in self._blocks:
                    if block.scale == scale:
                        with np.errstate(over="ignore"):  # float16's range is checked below
                            features[block][positions] = vectors[block.level]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            _note_results(rows, positions, features)
            return
        half = len(positions) // 2
        if not half:
            _fail(rows, positions[0], features, OUT_OF_MEMORY)
            return
        logger.info("a batch of %d images does not fit in memory; halving it", len(positions))
        self._fill(loaded[:half], positions[:half], rows, features)
        self._fill(loaded[half:], positions[half:], rows, features)


def _note_probe(rows: Rows, position: int, found: Probe) -> None:
    rows.digest[position] = found.digest.encode()
    rows.height[position], rows.width[position] = found.height, found.width
    rows.size[position] = found.stamp.size
    rows.modified[position] = found.stamp.modified
    rows.changed[position] = found.stamp.changed
    rows.error[position] = found.error


def _note_results(rows: Rows, positions: Sequence[int], features: PartFeatures) -> None:
    """Accept rows whose numbers, as they are stored, are all finite."""
    for position in positions:
        if all(np.isfinite(values[position]).all() for values in features.values()):
            rows.status[position] = OK
        else:
            _fail(rows, position, features, NOT_FINITE)


def _fail(rows: Rows, position: int, features: PartFeatures, error: str) -> None:
    rows.error[position] = error
    for values in features.values():
        values[position] = np.nan
