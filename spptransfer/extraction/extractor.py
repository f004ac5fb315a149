"""Images become rows of features: read, batched and computed by a pool of threads.

On a CPU every thread decodes and computes batches of its own, with one thread each: images are
independent, so parallelism belongs between them, not inside an operator.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.cache.layout import Block, blocks_of
from spptransfer.cache.rows import FAILED, OK, RowTable
from spptransfer.extraction.batches import Mask, Part, batch_size, group
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.progress import Clock, Progress
from spptransfer.extraction.reading import (
    OUT_OF_MEMORY,
    ImageInfo,
    Rendering,
    Source,
    Views,
    decode_views,
    read_header,
    view_sizes,
)
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.devices import is_out_of_memory, may_be_unsupported
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

NOT_FINITE = "the features are not finite (NaN or infinite numbers)"

# Headers that one thread reads in a row.
_HEADERS = 8
# Parts in work: one is written while another is computed; of a GPU's more are being read.
_CPU_PARTS, _GPU_PARTS = 2, 4

Features = dict[Block, npt.NDArray[Any]]


class Rows(NamedTuple):
    """What one cache gets of a part: positions, table and features of the images it lacked."""

    positions: npt.NDArray[np.intp]
    table: RowTable
    features: Features


@dataclass(frozen=True)
class _Batch:
    """Images of a part that are wanted by the same caches, with views of the same sizes."""

    wanted: tuple[int, ...]
    renderings: tuple[Rendering, ...]
    positions: tuple[int, ...]


class _RowBuffer:
    """The rows of one cache while their part is computed."""

    def __init__(self, spec: FeatureSpec, channels: int, part: Part, lacking: Mask) -> None:
        count = len(part.ids)
        self.spec = spec
        self.lacking = lacking
        self.table = RowTable.empty(part.ids)
        self.features: Features = {
            block: np.full((count, block.width), np.nan, spec.storage)
            for block in blocks_of(spec, channels)
        }

    def note_header(self, position: int, info: ImageInfo, error: str) -> None:
        table = self.table
        table.digest[position] = info.digest.encode()
        table.height[position], table.width[position] = info.height, info.width
        table.stamp[position] = info.stamp
        table.error[position] = error

    def note_features(self, scale: int, positions: Sequence[int], vectors: Mapping) -> None:
        for block, values in self.features.items():
            if block.scale == scale:
                with np.errstate(over="ignore"):  # float16's range is checked by `take`
                    values[list(positions)] = vectors[block.level]

    def take(self, part: Part) -> Rows:
        """Return the rows that were lacking; numbers that are not finite make a failed row."""
        finite = np.ones(len(part.ids), dtype=bool)
        for values in self.features.values():
            finite &= np.isfinite(values).all(axis=1)
        for position in np.flatnonzero(self.lacking):
            failed = self.table.error[position] or ("" if finite[position] else NOT_FINITE)
            self.table.error[position] = failed
            self.table.status[position] = FAILED if failed else OK
            for values in self.features.values() if failed else ():
                values[position] = np.nan
        if self.lacking.all():
            return Rows(part.positions, self.table, self.features)
        kept = np.flatnonzero(self.lacking)
        features = {block: values[kept] for block, values in self.features.items()}
        return Rows(part.positions[kept], self.table.take(kept), features)


class Extractor:
    """Compute rows of features with a pool of threads, for one spec or for several at once.

    Use it as a context manager.
    """

    def __init__(
        self,
        specs: Sequence[FeatureSpec],
        backbone: Backbone | BackboneRef,
        options: ComputeOptions,
        *,
        progress: Progress | None = None,
        batch_pixels: int | None = None,
    ) -> None:
        self._computer = FeatureComputer(specs, backbone, options)
        self._specs = self._computer.specs
        self.runtime = runtime = self._computer.runtime
        self._channels = [runtime.backbone.info.layer(spec.layer).channels for spec in specs]
        self._batch_pixels = batch_pixels or runtime.batch_pixels
        self._progress = progress or Progress(0, Clock())
        self._clock = self._progress.clock
        self._clock.threads |= {"read": runtime.workers, "compute": runtime.computers}
        self._stack, self._turn = contextlib.ExitStack(), threading.Lock()

    def __enter__(self) -> Extractor:
        runtime = self.runtime
        self._turn.acquire()
        self._stack.callback(self._turn.release)
        self._stack.enter_context(self._computer)
        self._slots = _Slots(runtime.computers)
        on_cpu = runtime.device == "cpu"
        self._parts_at_once = _CPU_PARTS if on_cpu else _GPU_PARTS
        self._parts = self._pool(self._parts_at_once, "part")
        self._workers = self._pool(runtime.workers, "worker", runtime.thread_initializer())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pool(self, threads: int, name: str, initializer: Any = None) -> ThreadPoolExecutor:
        """Open a pool that cancels what waits when it is left; the last opened is left first."""
        pool = ThreadPoolExecutor(threads, name, initializer)
        self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool

    def compute(self, sources: Sequence[Source], ids: Sequence[str] = ()) -> list[Rows]:
        """Compute the rows of some images, for every spec."""
        count = len(sources)
        names = ids or [str(number) for number in range(count)]
        lacking = tuple(np.ones(count, dtype=bool) for _ in self._specs)
        part = Part(np.arange(count), names, sources, lacking)
        return self._compute_part(part, self._read_headers(part))

    def run(self, parts: Iterable[Part]) -> Generator[tuple[Part, list[Rows]]]:
        """Compute parts, a few at once, and yield each with its rows for every spec, in order."""
        running: deque[tuple[Part, Future[list[Rows]]]] = deque()
        for part, infos in self._read(parts):
            running.append((part, self._parts.submit(self._compute_part, part, infos)))
            if len(running) == self._parts_at_once:
                first, rows = running.popleft()
                yield first, rows.result()
        for part, rows in running:
            yield part, rows.result()

    def _read(self, parts: Iterable[Part]) -> Iterator[tuple[Part, Sequence[ImageInfo] | None]]:
        """Yield parts, with what processes have read of them where those are asked for."""
        if not self.runtime.read_processes:
            yield from ((part, None) for part in parts)
            return
        from spptransfer.extraction.loading import load_in_processes

        renderings = self._renderings(range(len(self._specs)))
        yield from load_in_processes(parts, renderings, self.runtime.read_processes)

    def _read_headers(self, part: Part) -> list[ImageInfo]:
        def read(start: int) -> list[ImageInfo]:
            with self._clock.measure("read"):
                return [read_header(source) for source in part.sources[start : start + _HEADERS]]

        chunks = self._workers.map(read, range(0, len(part.sources), _HEADERS))
        return [info for chunk in chunks for info in chunk]

    def _compute_part(self, part: Part, infos: Sequence[ImageInfo] | None) -> list[Rows]:
        """Compute all that the caches lack of a part; every image is decoded once."""
        buffers = [
            _RowBuffer(spec, channels, part, lacking)
            for spec, channels, lacking in zip(
                self._specs, self._channels, part.lacking, strict=True
            )
        ]
        known = list(self._read_headers(part) if infos is None else infos)
        tasks = [
            self._workers.submit(self._work, batch, part, known, buffers)
            for batch in self._plan(part, known, buffers)
        ]
        # In order: `as_completed` would wait for ever for what a shutdown cancels.
        done = sum(task.result() for task in tasks)
        self._progress.note(len(part.ids) - done)  # what was no use to decode
        return [buffer.take(part) for buffer in buffers]

    def _renderings(self, wanted: Iterable[int]) -> tuple[Rendering, ...]:
        """Return the scales and views of some specs, each once."""
        specs = [self._specs[number] for number in wanted]
        pairs = [Rendering(scale, spec.view) for spec in specs for scale in spec.scales]
        return tuple(dict.fromkeys(pairs))

    def _plan(
        self, part: Part, infos: Sequence[ImageInfo], buffers: Sequence[_RowBuffer]
    ) -> list[_Batch]:
        """Group images by the caches that want them and by the sizes of their views."""
        keys: list[tuple[tuple[int, ...], tuple[tuple[int, int], ...]] | None] = []
        costs = []
        for position, info in enumerate(infos):
            wanted: dict[int, tuple[tuple[int, int], ...]] = {}
            for number, lacking in enumerate(part.lacking):
                if lacking[position]:
                    sizes = view_sizes(info, self._renderings([number]))
                    error = sizes if isinstance(sizes, str) else ""
                    buffers[number].note_header(position, info, error)
                    if not isinstance(sizes, str):  # one cache's scale may be too much for it
                        wanted[number] = sizes
            all_sizes = tuple(size for sizes in wanted.values() for size in sizes)
            keys.append((tuple(wanted), all_sizes) if wanted else None)
            costs.append(max((height * width for height, width in all_sizes), default=0))
        batches, full = [], 0
        # The largest first, so that in the end no thread waits long for the last one.
        for positions in sorted(group(keys, costs, self._batch_pixels), key=len, reverse=True):
            numbers, _ = keys[positions[0]] or ((), ())
            full += len(positions) == batch_size(costs[positions[0]], self._batch_pixels)
            batches.append(_Batch(numbers, self._renderings(numbers), tuple(positions)))
        self._clock.count(len(batches), full)
        return batches

    def _work(
        self, batch: _Batch, part: Part, infos: list[ImageInfo], buffers: Sequence[_RowBuffer]
    ) -> int:
        """Decode the images of a batch and compute its features."""
        decoded: dict[int, Views] = {}
        with self._clock.measure("read"):
            for position in batch.positions:
                info, infos[position] = infos[position], ImageInfo()  # its bytes are let go
                views = info.views or decode_views(part.sources[position], info, batch.renderings)
                if isinstance(views, str):
                    for number in batch.wanted:
                        buffers[number].table.error[position] = views
                else:
                    decoded[position] = views
        for rendering in batch.renderings if decoded else ():
            views_at = {position: views[rendering] for position, views in decoded.items()}
            wanted = [n for n in batch.wanted if rendering in self._renderings([n])]
            self._compute(rendering.scale, wanted, views_at, buffers)
        self._progress.note(len(batch.positions))
        return len(batch.positions)

    def _compute(
        self,
        scale: int,
        wanted: Sequence[int],
        views: Mapping[int, npt.NDArray[np.uint8]],
        buffers: Sequence[_RowBuffer],
        alone: bool = False,
    ) -> None:
        """Compute a batch; halve it where memory does not suffice, down to one image alone."""
        positions = list(views)
        try:
            slots = self._slots.all() if alone else self._slots.one()
            with slots, self._clock.measure("compute"):
                vectors = self._computer.compute(np.stack(list(views.values())), wanted)
        except (RuntimeError, MemoryError) as error:
            # What fits nowhere is an image's failure; that cuDNN lacks an operator is not.
            if not is_out_of_memory(error) or (alone and may_be_unsupported(error)):
                raise
        else:
            for number, found in zip(wanted, vectors, strict=True):
                buffers[number].note_features(scale, positions, found)
            return
        middle = len(positions) // 2
        if middle:
            logger.info("a batch of %d images does not fit in memory; halving it", len(positions))
            for half in (positions[:middle], positions[middle:]):
                self._compute(scale, wanted, {i: views[i] for i in half}, buffers)
        elif not alone:
            logger.info("an image does not fit in memory beside others; trying it alone")
            self._compute(scale, wanted, views, buffers, alone=True)
        else:
            for number in wanted:
                buffers[number].table.error[positions[0]] = OUT_OF_MEMORY


class _Slots:
    """Limit how many batches are computed at once: so many, or one alone where memory is short."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.Semaphore(count)
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with self._free:
            yield

    @contextlib.contextmanager
    def all(self) -> Iterator[None]:
        # In turn, or two would wait for each other with half of the slots each.
        with self._turn, contextlib.ExitStack() as stack:
            for _ in range(self._count):
                stack.enter_context(self._free)
            yield


def without_features(rows: Rows) -> dict[int, str]:
    """Return the reasons of failed rows by their position."""
    failed = np.flatnonzero(rows.table.status != OK)
    return {int(position): rows.table.error[position] for position in failed}
