"""Images become rows of features: read, batched and computed by a pool of threads.

On a CPU every thread decodes and computes batches of its own, with one thread each: images are
independent, so parallelism belongs between them, not inside an operator.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import operator
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.cache.layout import Block, blocks_of
from spptransfer.cache.rows import FAILED, OK, RowTable
from spptransfer.extraction import reading
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.reading import ImageInfo, Mask, Part, Source, Views
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.devices import is_out_of_memory, limit_threads, may_be_unsupported
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

NOT_FINITE = "the features are not finite (NaN or infinite numbers)"
TOO_LARGE = (
    "the features are not finite in float16 storage, whose largest number is 65504; "
    "`storage: float32` holds larger ones"
)

# Headers that one thread reads in a row.
_HEADERS = 8
# Parts in work: one is written while another is computed; of a GPU's more are being read.
_CPU_PARTS, _GPU_PARTS = 2, 4

Sizes = tuple[tuple[int, int], ...]


class Progress:
    """What threads spend on reading and computing, their batches, and a bar that tells it.

    On a CPU the workers do both, one after the other, and the shares add up to nearly one; on a
    GPU they overlap, and it is the side with the smaller share that waits.
    """

    def __init__(self, threads: Mapping[str, int], total: int, label: str | None) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._threads = threads
        self._started = time.perf_counter()
        hidden = label is None
        self.bar = tqdm(total=total, desc=label, unit="image", disable=hidden, smoothing=0.05)

    def add(self, kind: str, amount: float) -> None:
        """Count seconds or batches."""
        with self._lock:
            self.totals[kind] += amount

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - start)

    def seconds(self, kind: str) -> float:
        """Return wall-clock seconds spent on one kind of work."""
        return self.totals[kind] / self._threads[kind]

    def note(self, count: int) -> None:
        """Count images that are done."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        read, compute = (min(1.0, self.seconds(kind) / elapsed) for kind in ("read", "compute"))
        self.bar.set_postfix_str(f"reading {read:.0%}, computing {compute:.0%}", refresh=False)
        self.bar.update(count)


class Rows(NamedTuple):
    """What one cache gets of a part: positions, table and features of the images it lacked."""

    positions: npt.NDArray[np.intp]
    table: RowTable
    features: dict[Block, npt.NDArray[Any]]

    def failures(self) -> dict[int, str]:
        """Return the reasons of failed rows by their place."""
        failed = np.flatnonzero(self.table.status != OK).tolist()
        return {place: self.table.error[place] for place in failed}


class _RowBuffer:
    """The rows of one cache while their part is computed."""

    def __init__(
        self, spec: FeatureSpec, channels: Mapping[str, int], part: Part, lacking: Mask
    ) -> None:
        self.spec = spec
        self.lacking = lacking
        self.table = RowTable.empty(part.ids)
        self.features = {
            block: np.full((len(part.ids), block.width), np.nan, spec.storage)
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
                    values[list(positions)] = vectors[block.layer, block.level]

    def take(self, part: Part) -> Rows:
        """Return the rows that were lacking; numbers that are not finite make a failed row."""
        table, kept = self.table, np.flatnonzero(self.lacking)
        for position in kept:
            row = np.concatenate([values[position] for values in self.features.values()])
            failed = table.error[position]
            if not failed and not np.isfinite(row).all():
                overflown = self.spec.storage == "float16" and not np.isnan(row).any()
                failed = table.error[position] = TOO_LARGE if overflown else NOT_FINITE
            table.status[position] = FAILED if failed else OK
            for values in self.features.values() if failed else ():
                values[position] = np.nan
        features = {block: values[kept] for block, values in self.features.items()}
        return Rows(part.positions[kept], table.take(kept), features)


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
        total: int = 0,
        label: str | None = None,
    ) -> None:
        self._specs, self._total, self._label = specs, total, label
        self._computer = FeatureComputer(specs, backbone, options)
        self.runtime = self._computer.runtime
        self._stack, self._turn = contextlib.ExitStack(), threading.Lock()

    def __enter__(self) -> Extractor:
        runtime, stack = self.runtime, self._stack
        self._turn.acquire()
        stack.callback(self._turn.release)
        stack.enter_context(runtime)
        threads = {"read": runtime.workers, "compute": runtime.computers, "write": 1}
        self.progress = Progress(threads, self._total, self._label)
        stack.enter_context(self.progress.bar)
        # So many batches are computed at once, or one alone where memory is short; in turn, or
        # two would wait for each other with half of the slots each.
        self._slots, self._alone = threading.Semaphore(runtime.computers), threading.Lock()
        self._parts_at_once = _CPU_PARTS if runtime.device == "cpu" else _GPU_PARTS
        self._parts = self._pool(self._parts_at_once, "part")
        self._workers = self._pool(runtime.workers, "worker", limit_threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _pool(self, threads: int, name: str, initializer: Any = None) -> ThreadPoolExecutor:
        """Open a pool that cancels what waits when it is left; the last opened is left first."""
        pool = ThreadPoolExecutor(threads, name, initializer)
        self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool

    def compute(self, sources: Sequence[Source]) -> list[Rows]:
        """Compute the rows of some images, for every spec."""
        count = len(sources)
        lacking = (np.ones(count, dtype=bool),) * len(self._specs)
        return self._compute_part(Part(np.arange(count), [""] * count, sources, lacking), None)

    def run(self, parts: Iterable[Part]) -> Generator[tuple[Part, list[Rows]]]:
        """Compute parts, a few at once, and yield each with its rows for every spec, in order."""
        running: deque[tuple[Part, Future[list[Rows]]]] = deque()
        read: Iterable[tuple[Part, list[ImageInfo] | None]] = zip(parts, itertools.repeat(None))
        if processes := self.runtime.read_processes:
            read = reading.read_in_processes(parts, reading.renderings_of(self._specs), processes)
        for part, infos in read:
            running.append((part, self._parts.submit(self._compute_part, part, infos)))
            if len(running) == self._parts_at_once:
                first, rows = running.popleft()
                yield first, rows.result()
        for part, rows in running:
            yield part, rows.result()

    def _compute_part(self, part: Part, read: list[ImageInfo] | None) -> list[Rows]:
        """Compute all that the caches lack of a part; every image is decoded once."""
        channels_of = self.runtime.backbone.info.channels_of
        buffers = [
            _RowBuffer(spec, channels_of(spec.layers), part, lacking)
            for spec, lacking in zip(self._specs, part.lacking, strict=True)
        ]
        infos = self._read_headers(part) if read is None else read
        batches = self._plan(part, infos, buffers)
        tasks = [
            self._workers.submit(self._work, part, infos, buffers, wanted, positions)
            for wanted, positions in batches
        ]
        left = len(part.ids)
        # In order: `as_completed` would wait for ever for what a shutdown cancels.
        for task in tasks:
            left -= task.result()
        self.progress.note(left)  # what was no use to decode
        return [buffer.take(part) for buffer in buffers]

    def _read_headers(self, part: Part) -> list[ImageInfo]:
        def read(start: int) -> list[ImageInfo]:
            with self.progress.measure("read"):
                return list(map(reading.read_header, part.sources[start : start + _HEADERS]))

        chunks = self._workers.map(read, range(0, len(part.sources), _HEADERS))
        return list(itertools.chain.from_iterable(chunks))

    def _plan(
        self, part: Part, infos: Sequence[ImageInfo], buffers: Sequence[_RowBuffer]
    ) -> list[tuple[list[int], list[int]]]:
        """Group images by the caches that want them and by the sizes of their views."""
        keys: list[tuple[tuple[int, ...], Sizes] | None] = []
        costs = []
        for position, info in enumerate(infos):
            wanted: dict[int, Sizes] = {}
            for number, buffer in enumerate(buffers):
                if buffer.lacking[position]:
                    sizes = reading.view_sizes(info, reading.renderings_of([buffer.spec]))
                    error = sizes if isinstance(sizes, str) else ""
                    buffer.note_header(position, info, error)
                    if not isinstance(sizes, str):  # one cache's scale may be too much for it
                        wanted[number] = sizes
            all_sizes = tuple(itertools.chain.from_iterable(wanted.values()))
            keys.append((tuple(wanted), all_sizes) if wanted else None)
            costs.append(max(itertools.starmap(operator.mul, all_sizes), default=0))
        batches, budget = [], self.runtime.batch_pixels
        # The largest first, so that in the end no thread waits long for the last one.
        for positions in sorted(group(keys, costs, budget), key=len, reverse=True):
            first = positions[0]
            numbers, _ = keys[first] or ((), ())
            self.progress.add("batches", 1)
            self.progress.add("full", len(positions) == batch_size(costs[first], budget))
            batches.append((list(numbers), positions))
        return batches

    def _work(
        self,
        part: Part,
        infos: list[ImageInfo],
        buffers: Sequence[_RowBuffer],
        wanted: Sequence[int],
        positions: Sequence[int],
    ) -> int:
        """Decode the images of a batch and compute its features."""
        renderings = reading.renderings_of([self._specs[number] for number in wanted])
        decoded: dict[int, Views] = {}
        with self.progress.measure("read"):
            for position in positions:
                info, infos[position] = infos[position], ImageInfo()  # its bytes are let go
                views = info.views or reading.decode_views(part.sources[position], info, renderings)
                if isinstance(views, str):
                    for number in wanted:
                        buffers[number].table.error[position] = views
                else:
                    decoded[position] = views
        for rendering in renderings if decoded else ():
            views_at = {position: views[rendering] for position, views in decoded.items()}
            numbers = [n for n in reading.specs_with(rendering, self._specs) if n in wanted]
            self._compute(rendering.scale, numbers, views_at, buffers)
        self.progress.note(len(positions))
        return len(positions)

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
            with contextlib.ExitStack() as slots:
                slots.enter_context(self._alone if alone else contextlib.nullcontext())
                for _ in range(self.runtime.computers if alone else 1):
                    slots.enter_context(self._slots)
                slots.enter_context(self.progress.measure("compute"))
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
                buffers[number].table.error[positions[0]] = reading.OUT_OF_MEMORY


def group(
    keys: Sequence[Hashable | None], costs: Sequence[int], budget: int
) -> Iterator[list[int]]:
    """Cut positions into batches of equal keys, each within a budget.

    Examples
    --------
    >>> list(group(["a", "b", "a", None, "a"], [4, 9, 4, 0, 4], budget=8))
    [[0, 2], [4], [1]]
    """
    members: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            members.setdefault(key, []).append(position)
    for positions in members.values():
        size = batch_size(costs[positions[0]], budget)
        for start in range(0, len(positions), size):
            yield positions[start : start + size]


def batch_size(cost: int, budget: int) -> int:
    """Return how many images of a cost make a full batch."""
    return max(1, budget // max(1, cost))
