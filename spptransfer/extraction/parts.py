"""One part: a run of images read, batched, computed and written by a pool of threads."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import Block, blocks_of
from spptransfer.cache.rows import OK, Chunk, Rows
from spptransfer.cache.unfinished import write_part
from spptransfer.cache.workspace import Written
from spptransfer.extraction.batches import (
    CHUNK,
    OUT_OF_MEMORY,
    Batch,
    Gathering,
    Probe,
    Rendering,
    group,
    measure,
)
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.division import GPU_LANES
from spptransfer.extraction.plan import Part
from spptransfer.extraction.progress import Clock
from spptransfer.extraction.readers import Readers, ThreadReaders, Wanted
from spptransfer.extraction.transfers import Lanes
from spptransfer.processor import beginning, is_out_of_memory, may_be_unsupported
from spptransfer.runtimes import describe_runtime, has_threads
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

NOT_FINITE = "the features are not finite (NaN or infinite numbers)"

PartFeatures = dict[Block, npt.NDArray[Any]]


@dataclass(frozen=True)
class PartSettings:
    """What all parts of one extraction have in common.

    `folder` is where parts are written, `dataset` the name recorded in them; `batch_pixels`
    bounds a batch at its largest scale, None for what suits the device. `put` is the method of
    the `Workspace` where this process writes its cache: rows go where they will stay then, and
    no part is written.
    """

    folder: Path
    spec: FeatureSpec
    channels: int
    dataset: str
    batch_pixels: int | None = None
    put: Callable[..., npt.NDArray[np.intp]] | None = None


class Sheet:
    """What one cache gets of a part: the table of its rows, and the features of every block.

    Parameters
    ----------
    settings : PartSettings
        The cache.
    ids : sequence of str
        All images of the part.
    wanted : ndarray of bool, shape (n_images,)
        Which of them the cache lacks; the others stay empty.
    """

    def __init__(
        self, settings: PartSettings, ids: Sequence[str], wanted: npt.NDArray[np.bool_]
    ) -> None:
        spec = settings.spec
        self.settings = settings
        self.wanted = wanted
        self.rows = Rows.empty(ids)
        self.blocks = blocks_of(spec, settings.channels)
        self.features: PartFeatures = {
            b: np.full((len(ids), b.width), np.nan, spec.storage) for b in self.blocks
        }
        self.renderings = [Rendering(scale, spec.view) for scale in spec.scales]
        self.sizes: list[tuple[tuple[int, int], ...] | None] = [None] * len(ids)

    def note_probe(self, position: int, seen: Probe) -> None:
        """Put down what is known of an image before it is decoded."""
        spec, rows = self.settings.spec, self.rows
        found = measure(seen, spec.scales, spec.view)
        rows.digest[position] = found.digest.encode()
        rows.height[position], rows.width[position] = found.height, found.width
        rows.size[position] = found.stamp.size
        rows.modified[position] = found.stamp.modified
        rows.changed[position] = found.stamp.changed
        rows.error[position] = found.error
        self.sizes[position] = found.view_sizes

    def note_vectors(
        self, scale: int, positions: Sequence[int], vectors: Mapping[Any, Any]
    ) -> None:
        """Put down the features of a batch."""
        for block in self.blocks:
            if block.scale == scale:
                with np.errstate(over="ignore"):  # float16's range is checked by `close`
                    self.features[block][positions] = vectors[block.level]

    def close(self) -> None:
        """Accept rows whose numbers, as they are stored, are all finite; empty the others."""
        finite = np.ones(len(self.rows), dtype=bool)
        for values in self.features.values():
            finite &= np.isfinite(values).all(axis=1)
        for position in np.flatnonzero(self.wanted):
            if finite[position] and not self.rows.error[position]:
                self.rows.status[position] = OK
                continue
            self.rows.error[position] = self.rows.error[position] or NOT_FINITE
            for values in self.features.values():
                values[position] = np.nan

    def taken(self) -> tuple[Rows, PartFeatures]:
        """Rows and features of the images that the cache lacked."""
        if self.wanted.all():
            return self.rows, self.features
        kept = np.flatnonzero(self.wanted)
        return self.rows.take(kept), {b: values[kept] for b, values in self.features.items()}


class PartMaker:
    """Makes parts with a pool of worker threads, for one cache or for several at once.

    On a CPU every worker computes its own batch with one thread of its own: images are
    independent, so parallelism belongs between them, not inside an operator.

    Parameters
    ----------
    settings : PartSettings or sequence of PartSettings
        What is common to all parts, for every cache.
    computer : FeatureComputer
        Runs the backbone; its specs are those of the caches, in their order.
    clock : Clock
        Where the time goes.
    workers : int
        Number of threads.
    readers : Readers, optional
        Who reads the images; by default the threads do it themselves.
    """

    def __init__(
        self,
        settings: PartSettings | Sequence[PartSettings],
        computer: FeatureComputer,
        clock: Clock,
        workers: int,
        readers: Readers | None = None,
    ) -> None:
        self._readers = readers or ThreadReaders()
        self._caches = (settings,) if isinstance(settings, PartSettings) else tuple(settings)
        self._computer = computer
        self._clock = clock
        on_cpu = computer.device.type == "cpu"
        self._batch_pixels = self._caches[0].batch_pixels or computer.batch_pixels
        begin = beginning(workers, waiting=has_threads(computer.runtime)) if on_cpu else None
        self._workers = ThreadPoolExecutor(workers, "worker", begin)
        self._lanes = Lanes(workers if on_cpu else min(workers, GPU_LANES))

    def __enter__(self) -> PartMaker:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    def make(
        self, part: Part, note: Callable[[int], Any] = lambda count: None
    ) -> list[tuple[int, Written]]:
        """Compute a part and write what each cache lacks of it.

        Parameters
        ----------
        part : Part
            Ids and images.
        note : callable
            Is told of every few images done.

        Returns
        -------
        list of (int, Path or ndarray)
            Number of the cache and what its workspace adopts, for every cache that lacked
            something.
        """
        written: list[tuple[int, Written]] = []
        for number, sheet in enumerate(self._fill(part, note)):
            if sheet.wanted.any():
                with self._clock.measure("write"):
                    written.append((number, self._write(part, number, sheet)))
        return written

    def _write(self, part: Part, number: int, sheet: Sheet) -> Written:
        rows, features = sheet.taken()
        settings, computed_by = sheet.settings, [describe_runtime(self._computer.runtime)]
        if settings.put is not None:
            positions = part.lacking_positions(number)
            return settings.put(positions, Chunk(rows, features), computed_by)
        return write_part(
            settings.folder,
            part.number,
            rows,
            features,
            spec=settings.spec,
            channels=settings.channels,
            dataset=settings.dataset,
            computed_by=computed_by,
        )

    def compute(
        self, part: Part, note: Callable[[int], Any] = lambda count: None
    ) -> tuple[Rows, PartFeatures]:
        """Compute a part for the first cache: the table of its rows, the features of its blocks."""
        return self._fill(part, note)[0].taken()

    def _fill(self, part: Part, note: Callable[[int], Any]) -> list[Sheet]:
        """Compute all that the caches lack of a part; every image is decoded once."""
        sheets = [
            Sheet(cache, part.ids, part.lacking(number))
            for number, cache in enumerate(self._caches)
        ]
        kept = {}
        for position, seen in enumerate(self._looks(part)):
            kept[position] = seen.data
            for sheet in sheets:
                if sheet.wanted[position]:
                    sheet.note_probe(position, seen)
        plan = _plan(sheets, self._batch_pixels)
        self._clock.count(len(plan), sum(batch.full for batch in plan))
        gathering = Gathering(plan)
        work = partial(self._load, gathering=gathering, part=part, kept=kept, sheets=sheets)
        chunks = [self._workers.submit(work, chunk) for chunk in gathering.chunks()]
        note(sum(all(sheet.sizes[i] is None for sheet in sheets) for i in range(len(part.ids))))
        # In order: `as_completed` would wait for ever for what a shutdown cancels.
        for done in chunks:
            note(done.result())
        for sheet in sheets:
            sheet.close()
        return sheets

    def _looks(self, part: Part) -> Iterator[Probe]:
        """What is known of each image before it is decoded, in order."""

        def look(start: int) -> list[Probe]:
            with self._clock.measure("read"):
                return self._readers.look(part.sources[start : start + CHUNK])

        starts = range(0, len(part.sources), CHUNK)
        return itertools.chain.from_iterable(self._workers.map(look, starts))

    def _load(
        self,
        chunk: Sequence[int],
        gathering: Gathering,
        part: Part,
        kept: dict[int, bytes],
        sheets: Sequence[Sheet],
    ) -> int:
        """Decode some images; compute the batches that are complete thereby."""
        wanted = [
            Wanted(part.sources[i], _digest(sheets, i), gathering.renderings(i), kept.pop(i))
            for i in chunk
        ]
        with self._clock.measure("read"):
            loaded = dict(zip(chunk, self._readers.load(wanted), strict=True))
        for position in chunk:
            image = loaded.pop(position)
            for number in gathering.wanted(position) if image.error else ():
                sheets[number].rows.error[position] = image.error
            for batch, views in gathering.put(position, image.views):
                if views:
                    self._compute(batch, views, sheets)
        return len(chunk)

    def _compute(
        self,
        batch: Batch,
        views: Mapping[int, npt.NDArray[np.uint8]],
        sheets: Sequence[Sheet],
        alone: bool = False,
    ) -> None:
        """Compute a batch; halve it where memory does not suffice, down to one image alone."""
        positions, wanted = list(views), batch.wanted
        try:
            with self._lanes.all() if alone else self._lanes.one(), self._clock.measure("compute"):
                vectors = self._computer.compute(np.stack(list(views.values())), wanted)
        except (RuntimeError, MemoryError) as error:
            # What fits nowhere is an image's failure; that cuDNN lacks an operator is not.
            if not is_out_of_memory(error) or (alone and may_be_unsupported(error)):
                raise
        else:
            for number, found in zip(wanted, vectors, strict=True):
                sheets[number].note_vectors(batch.rendering.scale, positions, found)
            return
        smaller = _halves(batch, positions)
        if not smaller and alone:
            sheets[wanted[0]].rows.error[positions[0]] = OUT_OF_MEMORY
            return
        if not smaller:
            logger.info("an image does not fit in memory beside others; trying it alone")
            self._compute(batch, views, sheets, alone=True)
            return
        logger.info("a batch of %d images does not fit in memory; halving it", len(positions))
        for half in smaller:
            self._compute(half, {i: views[i] for i in half.positions}, sheets)


def _plan(sheets: Sequence[Sheet], budget: int) -> list[Batch]:
    """Batches for every rendering, as they would be if it were the only one."""
    batches = []
    for rendering in dict.fromkeys(r for sheet in sheets for r in sheet.renderings):
        keys = [_key(sheets, rendering, position) for position in range(len(sheets[0].rows))]
        costs = [key[1][0] * key[1][1] if key else 0 for key in keys]
        # The largest first, so that in the end no thread waits long for the last one.
        for positions in sorted(group(keys, costs, budget), key=len, reverse=True):
            key = keys[positions[0]]
            assert key is not None
            full = (len(positions) + 1) * costs[positions[0]] > budget
            batches.append(Batch(rendering, key[0], tuple(positions), full))
    return batches


def _key(
    sheets: Sequence[Sheet], rendering: Rendering, position: int
) -> tuple[tuple[int, ...], tuple[int, int]] | None:
    """Caches that want an image at a rendering, and the size of the view; None if none does."""
    sizes = {
        number: found[sheet.renderings.index(rendering)]
        for number, sheet in enumerate(sheets)
        if rendering in sheet.renderings and (found := sheet.sizes[position]) is not None
    }
    return (tuple(sizes), next(iter(sizes.values()))) if sizes else None


def _digest(sheets: Sequence[Sheet], position: int) -> str:
    """SHA-256 of an image's file when it was looked at."""
    return next(bytes(s.rows.digest[position]).decode() for s in sheets if s.wanted[position])


def _halves(batch: Batch, positions: Sequence[int]) -> list[Batch]:
    """Two halves of a batch, or of the caches that want its only image; none if neither is left."""
    middle = len(positions) // 2
    if middle:
        parts = [(batch.wanted, positions[:middle]), (batch.wanted, positions[middle:])]
    elif len(batch.wanted) > 1:
        parts = [((number,), positions) for number in batch.wanted]
    else:
        return []
    return [Batch(batch.rendering, wanted, tuple(some)) for wanted, some in parts]
