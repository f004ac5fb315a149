"""Who makes the parts: threads of this process, processes here, or a Dask cluster."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from uuid import uuid4

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from spptransfer.backbones.loading import Backbone
from spptransfer.cache.workspace import Written
from spptransfer.errors import CacheError, ConfigError, SPPTransferError
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.division import Division
from spptransfer.extraction.parts import PartMaker, PartSettings
from spptransfer.extraction.plan import Part
from spptransfer.extraction.progress import Clock, Progress
from spptransfer.extraction.readers import ProcessReaders, Readers
from spptransfer.extraction.workers import end_with, leave_interrupts
from spptransfer.memory import keep_freed_memory, release_memory
from spptransfer.runtimes import count_callers

_DIED = (
    "a worker process died (killed, or out of memory); everything finished is kept: "
    "run the same command again"
)
# How long nobody may be there to work for a Dask scheduler, and how often that is looked at, in
# seconds.
_PATIENCE, _GLANCE = 60, 0.05

# Parts in work: one is written while another is computed; of a GPU's more are being read.
CPU_PARTS, GPU_PARTS = 2, 4

LoadBackbone = Callable[[], Backbone]
# What each cache has of a part, by its number.
WrittenPart = list[tuple[int, Written]]


@dataclass(frozen=True)
class Done:
    """What a worker process reports of a part it wrote, for each cache."""

    written: WrittenPart
    images: int
    seconds: dict[str, float]
    batches: tuple[int, int]


@dataclass(frozen=True, eq=False)
class PartTask:
    """What it takes to make parts in any process.

    Parameters
    ----------
    settings : tuple of PartSettings
        What is common to all parts, for every cache; folders must be the same for all processes.
    load_backbone : callable
        Returns the `Backbone`; it travels by pickle.
    device : str
        A torch device.
    runtime : str, default="torch"
        Who computes the maps.
    """

    settings: tuple[PartSettings, ...]
    load_backbone: LoadBackbone
    device: str
    runtime: str = "torch"
    key: str = field(default_factory=lambda: uuid4().hex)
    directory: str = field(default_factory=os.getcwd)
    asked_by: int = field(default_factory=os.getpid)

    def __call__(self, part: Part) -> Done:
        """Make a part in a worker process, which keeps the backbone for the next one."""
        end_with(self.asked_by)
        # Workers outlive a call; relative paths must mean what they mean to the caller.
        with contextlib.suppress(OSError):
            os.chdir(self.directory)
        leave_interrupts()
        computer, clock = self._computer_here(), Clock()
        with keep_freed_memory(), PartMaker(self.settings, computer, clock, workers=1) as maker:
            written = maker.make(part)
        batches = clock.batches, clock.full_batches
        return Done(written, len(part.ids), clock.seconds(), batches)

    def _computer_here(self) -> FeatureComputer:
        """The one of this worker process, which its threads share."""
        with _LOADING:
            if self.key not in _COMPUTERS:
                _COMPUTERS.clear()
                try:
                    _COMPUTERS[self.key] = self.computer(_tasks_at_once())
                except SPPTransferError as error:
                    # What is amiss there may be in order where the command runs.
                    where = f"a worker on '{platform.node()}' cannot compute"
                    raise type(error)(f"{where}: {error}") from error
            return _COMPUTERS[self.key]

    def computer(self, threads: int = 1) -> FeatureComputer:
        """Load the backbone, for so many threads."""
        specs = [cache.spec for cache in self.settings]
        return FeatureComputer(
            self.load_backbone(), specs, self.device, runtime=self.runtime, threads=threads
        )


_COMPUTERS: dict[str, FeatureComputer] = {}
_LOADING = threading.Lock()


def _tasks_at_once() -> int:
    """How many parts this worker process makes at once; a Dask worker one in each thread."""
    distributed = sys.modules.get("distributed")
    try:
        return 1 if distributed is None else int(distributed.get_worker().state.nthreads)
    except ValueError:  # this is no Dask worker
        return 1


def run(
    division: Division,
    parts: Iterable[Part],
    task: PartTask,
    scheduler: str | None,
    progress: Progress,
) -> Generator[WrittenPart]:
    """Make parts as the work is divided; yields what was written of each."""
    if division.engine == "dask":
        return run_dask(parts, task, scheduler, progress)
    if division.engine == "threads":
        return run_threads(parts, task, division.jobs, progress)
    run_here = run_readers if division.on_gpu else run_processes
    return run_here(parts, task, division.jobs, progress)


def run_readers(
    parts: Iterable[Part], task: PartTask, jobs: int, progress: Progress
) -> Generator[WrittenPart]:
    """Make parts with processes that read and threads, of this process, that compute.

    Yields
    ------
    list of (int, Path or ndarray)
        Cache by its number and what its workspace adopts, for every finished part, in order.

    Raises
    ------
    CacheError
        If a process dies.
    """
    try:
        with ProcessReaders(jobs) as readers:
            yield from run_threads(parts, task, jobs, progress, readers)
    except TerminatedWorkerError as error:
        raise CacheError(_DIED) from error


def run_threads(
    parts: Iterable[Part],
    task: PartTask,
    jobs: int,
    progress: Progress,
    readers: Readers | None = None,
) -> Generator[WrittenPart]:
    """Make parts with threads, a few at a time, so that one is written as another computes.

    Yields
    ------
    list of (int, Path or ndarray)
        Cache by its number and what its workspace adopts, for every finished part, in order.
    """
    computer = task.computer(jobs)
    release_memory()  # that was needed to load and to prepare
    workers = count_callers(task.runtime, jobs)
    at_once = CPU_PARTS if computer.device.type == "cpu" else GPU_PARTS
    # The maker closes first: it cancels the batches that a part in work still waits for.
    with (
        ThreadPoolExecutor(at_once, "part") as pool,
        PartMaker(task.settings, computer, progress.clock, workers, readers) as maker,
    ):
        running: deque[Future[WrittenPart]] = deque()
        for part in parts:
            running.append(pool.submit(maker.make, part, progress.note))
            if len(running) == at_once:
                yield running.popleft().result()
            if progress.stopped:
                return
        while running:
            yield running.popleft().result()
            if progress.stopped:
                return


def run_processes(
    parts: Iterable[Part], task: PartTask, jobs: int, progress: Progress
) -> Generator[WrittenPart]:
    """Make parts with worker processes on this machine.

    Yields
    ------
    list of (int, Path or ndarray)
        Cache by its number and what its workspace adopts, for every finished part, in any order.

    Raises
    ------
    CacheError
        If a worker process dies.
    """
    waiting = (joblib.delayed(task)(part) for part in parts if not progress.stopped)
    parallel = joblib.Parallel(
        return_as="generator_unordered", batch_size=1, n_jobs=jobs, backend="loky"
    )
    try:
        with _closing_quietly(parallel(waiting)) as results:
            yield from _noted(results, progress)
    except TerminatedWorkerError as error:
        raise CacheError(_DIED) from error


@contextlib.contextmanager
def _closing_quietly(results: Generator[Done]) -> Iterator[Generator[Done]]:
    """Close them without joblib's warning that parts in work are given up: who stops knows."""
    try:
        yield results
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* tasks which were still being processed")
            results.close()


def run_dask(
    parts: Iterable[Part], task: PartTask, scheduler: str | None, progress: Progress
) -> Generator[WrittenPart]:
    """Make parts with the workers of a Dask cluster; those of a dead worker go to another one.

    Parameters
    ----------
    scheduler : str or None
        Address such as ``"tcp://10.0.0.1:8786"``; None starts a cluster on this machine.

    Yields
    ------
    list of (int, Path or ndarray)
        Cache by its number and what its workspace adopts, for every finished part, in any order.

    Raises
    ------
    ConfigError
        If Dask is not installed, or no scheduler answers, or no worker joins it.
    CacheError
        If one part after the other takes workers with it.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise ConfigError("engine 'dask' needs: pip install 'dask[distributed]'") from error
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at '{scheduler}': {error}") from error
    with client:
        try:
            yield from _noted(_on_cluster(client, parts, task), progress)
        except KilledWorker as error:
            raise CacheError(_DIED) from error


def _on_cluster(client: Any, parts: Iterable[Part], task: PartTask) -> Iterator[Done]:
    """Make parts, as many at once as keep all workers busy, those that join later too.

    Joblib, over Dask, would make them in this process where there is but one thread to work.
    """
    from distributed import as_completed

    waiting, running = iter(parts), as_completed()
    while True:
        threads = sum(client.nthreads().values())
        room = 2 * max(1, threads) - running.count()
        for part in islice(waiting, max(0, room)):
            running.add(client.submit(task, part, pure=False))
        if running.is_empty():
            return
        while not running.has_ready():
            # Only now: some clusters begin to grow when there is work, and workers may all die.
            if not client.nthreads():
                _await_worker(client)
            time.sleep(_GLANCE)
        yield next(running).result()


def _await_worker(client: Any) -> None:
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        address = client.scheduler_info()["address"]
        raise ConfigError(f"the Dask scheduler at '{address}' has no workers") from error


def _noted(results: Iterable[Done], progress: Progress) -> Generator[WrittenPart]:
    for done in results:
        progress.clock.add(done.seconds)
        progress.clock.count(*done.batches)
        progress.note(done.images)
        yield done.written
        if progress.stopped:
            return
