"""Who makes the parts: threads of this process, processes here, or a Dask cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from spptransfer.backbones.loading import Backbone
from spptransfer.errors import CacheError, ConfigError
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.parts import PartMaker, PartSettings
from spptransfer.extraction.plan import Part
from spptransfer.extraction.progress import Clock, Progress

LoadBackbone = Callable[[], Backbone]
PartFiles = list[tuple[int, Path]]


@dataclass(frozen=True)
class Done:
    """What a worker process reports of a part it wrote, for each cache."""

    files: PartFiles
    images: int
    seconds: dict[str, float]


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

    def __call__(self, part: Part) -> Done:
        """Make a part in a worker process, which keeps the backbone for the next one."""
        # Workers outlive a call; relative paths must mean what they mean to the caller.
        with contextlib.suppress(OSError):
            os.chdir(self.directory)
        # Ctrl-C reaches every process of a terminal; only the one that asked for parts may stop.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.key not in _COMPUTERS:
            _COMPUTERS.clear()
            _COMPUTERS[self.key] = self.computer()
        clock = Clock()
        with PartMaker(self.settings, _COMPUTERS[self.key], clock, workers=1) as maker:
            files = maker.make(part)
        return Done(files, len(part.ids), clock.seconds())

    def computer(self, threads: int = 1) -> FeatureComputer:
        """Load the backbone, for so many threads."""
        specs = [cache.spec for cache in self.settings]
        return FeatureComputer(
            self.load_backbone(), specs, self.device, runtime=self.runtime, threads=threads
        )


_COMPUTERS: dict[str, FeatureComputer] = {}


def run(
    engine: str,
    parts: Iterable[Part],
    task: PartTask,
    jobs: int,
    scheduler: str | None,
    progress: Progress,
) -> Iterator[PartFiles]:
    """Make parts with one of the engines of `extract`; yields the files of finished parts."""
    if engine == "dask":
        return run_dask(parts, task, scheduler, progress)
    run_here = run_processes if engine == "processes" else run_threads
    return run_here(parts, task, jobs, progress)


def run_threads(
    parts: Iterable[Part], task: PartTask, jobs: int, progress: Progress
) -> Iterator[PartFiles]:
    """Make parts with threads, two parts at a time, so that one is written as another computes.

    Yields
    ------
    list of (int, Path)
        Cache by its number and file, for every finished part, in order.
    """
    computer = task.computer(jobs)
    # The maker closes first: it cancels the batches that a part in work still waits for.
    with (
        ThreadPoolExecutor(2, "part") as pool,
        PartMaker(task.settings, computer, progress.clock, jobs) as maker,
    ):
        running: deque[Future[PartFiles]] = deque()
        for part in parts:
            running.append(pool.submit(maker.make, part, progress.note))
            if len(running) == 2:
                yield running.popleft().result()
            if progress.stopped:
                return
        while running:
            yield running.popleft().result()
            if progress.stopped:
                return


def run_processes(
    parts: Iterable[Part], task: PartTask, jobs: int, progress: Progress
) -> Iterator[PartFiles]:
    """Make parts with worker processes on this machine.

    Yields
    ------
    list of (int, Path)
        Cache by its number and file, for every finished part, in any order.

    Raises
    ------
    CacheError
        If a worker process dies.
    """
    try:
        yield from _run(parts, task, progress, n_jobs=jobs, backend="loky")
    except TerminatedWorkerError as error:
        raise CacheError(
            "a worker process died (killed, or out of memory); everything finished is kept: "
            "run the same command again"
        ) from error


def run_dask(
    parts: Iterable[Part], task: PartTask, scheduler: str | None, progress: Progress
) -> Iterator[PartFiles]:
    """Make parts with the workers of a Dask cluster; those of a dead worker go to another one.

    Parameters
    ----------
    scheduler : str or None
        Address such as ``"tcp://10.0.0.1:8786"``; None starts a cluster on this machine.

    Yields
    ------
    list of (int, Path)
        Cache by its number and file, for every finished part, in any order.

    Raises
    ------
    ConfigError
        If Dask is not installed or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("engine 'dask' needs: pip install 'dask[distributed]'") from error
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at '{scheduler}': {error}") from error
    with client, joblib.parallel_config("dask", client=client):
        yield from _run(parts, task, progress)


def _run(
    parts: Iterable[Part], task: PartTask, progress: Progress, **options: Any
) -> Iterator[PartFiles]:
    waiting = (joblib.delayed(task)(part) for part in parts if not progress.stopped)
    parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, **options)
    with contextlib.closing(parallel(waiting)) as results:
        for done in results:
            progress.clock.add(done.seconds)
            progress.note(done.images)
            yield done.files
            if progress.stopped:
                return
