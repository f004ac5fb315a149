"""Bring a cache up to date with a dataset: only new and changed images are read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer.cache.outline import Labels
from spptransfer.cache.workspace import Workspace
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError, SPPTransferError
from spptransfer.extraction.division import Division, Engine, check_engine, divide
from spptransfer.extraction.joint import JointPlan, check_alike, label_of
from spptransfer.extraction.plan import Plan
from spptransfer.extraction.progress import Clock, Progress
from spptransfer.memory import keep_freed_memory, overlook_old_objects
from spptransfer.runtimes import check_runtime
from spptransfer.spec import FeatureSpec

if TYPE_CHECKING:
    from spptransfer.extraction.runners import PartTask


class Interrupted(SPPTransferError):
    """The extraction was asked to stop; everything finished so far is kept."""


@dataclass
class Extraction:
    """What an extraction did.

    Attributes
    ----------
    path : Path
        The finished cache.
    added, changed, unchanged, removed : int
        Images by what was known of them before.
    reused : int
        Unchanged images that have features.
    failures : mapping of str to str
        Reason for every image without features, by id.
    seconds : dict of str to float
        Wall-clock time split into ``read`` (read, decode, resize), ``compute`` and ``write``.
    batches, full_batches : int
        Into how many batches of images of one size the work was cut, and how many of those were
        as large as they may be.
    """

    path: Path
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    reused: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    full_batches: int = 0


@dataclass(frozen=True)
class Destination:
    """One cache to fill.

    Parameters
    ----------
    path : Path
        Where the finished HDF5 file stands or will stand.
    spec : FeatureSpec
        What to compute. Where the file at `path` already holds more, it keeps doing so.
    channels : int
        Channels of the spec's layer.
    """

    path: Path
    spec: FeatureSpec
    channels: int


def extract(
    dataset: Dataset,
    spec: FeatureSpec,
    *,
    channels: int,
    path: Path,
    load_backbone: Callable[[], Any],
    device: str = "cpu",
    runtime: str = "torch",
    jobs: int | None = None,
    engine: Engine = "threads",
    scheduler: str | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
    redo: Collection[str] = (),
    part_rows: int | None = None,
    batch_pixels: int | None = None,
) -> Extraction:
    """Make the cache at `path` hold one row for every image of a dataset.

    Rows whose image file is unchanged are kept: a file of the same size and time stamps is not
    even opened, one of other time stamps but the same content is not decoded. What a killed
    run had finished is taken over.

    Parameters
    ----------
    dataset : Dataset
        Images by id.
    spec : FeatureSpec
        What to compute. Where the file at `path` already holds more, it keeps doing so.
    channels : int
        Channels of the spec's layer.
    path : Path
        Where the finished HDF5 file stands or will stand.
    load_backbone : callable
        Returns the `Backbone`; called only if an image has to be computed. It is sent to the
        other processes by pickle where there are any.
    device : str, default="cpu"
        A torch device.
    runtime : {"torch", "openvino", "onnxruntime"}, default="torch"
        Who computes the network's maps; the others than torch on the CPU only. The features agree
        within rounding, so a cache begun with one can be finished with another.
    jobs : int, optional
        Threads or processes, by default one per processor that we may use.
    engine : {"auto", "threads", "processes", "dask"}
        Who makes the parts: threads of this process, processes on this machine, or the workers
        of a Dask cluster, which must see the images and the cache's folder at the same paths.
        For a GPU, processes only read images, for this one to compute. With ``"auto"`` a number
        of `jobs` asks for so many processes, unless the device is a GPU; without one, threads do.
    scheduler : str, optional
        Address of the Dask scheduler; by default a cluster is started on this machine.
    progress : bool, default=False
        Show a bar with images per second, time left and the shares of reading and computing.
    stop : threading.Event, optional
        Once set, the oldest part in work is finished and `Interrupted` is raised.
    redo : collection of str, optional
        Ids to extract anew although nothing about them changed.
    part_rows : int, optional
        Images per part, by default 128 on a CPU and 256 on a GPU. Those of one size in a part
        share batches; what is in work when the process is killed is lost.
    batch_pixels : int, optional
        Pixels per batch and scale, by default what suits the device.

    Returns
    -------
    Extraction

    Raises
    ------
    CacheError
        If the cache cannot be written, is damaged or held by another process.
    SpecMismatchError
        If the file at `path` was made with another spec.
    DatasetError
        If the dataset has no images.
    ConfigError
        If the scales are too small for the backbone, or there is no such engine or runtime.
    Interrupted
        If `stop` was set before all was done.
    """
    (done,) = extract_together(
        dataset,
        [Destination(path, spec, channels)],
        load_backbone=load_backbone,
        device=device,
        runtime=runtime,
        jobs=jobs,
        engine=engine,
        scheduler=scheduler,
        progress=progress,
        stop=stop,
        redo=redo,
        part_rows=part_rows,
        batch_pixels=batch_pixels,
    )
    return done


def extract_together(
    dataset: Dataset,
    destinations: Sequence[Destination],
    *,
    load_backbone: Callable[[], Any],
    device: str = "cpu",
    runtime: str = "torch",
    jobs: int | None = None,
    engine: Engine = "threads",
    scheduler: str | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
    redo: Collection[str] = (),
    part_rows: int | None = None,
    batch_pixels: int | None = None,
) -> list[Extraction]:
    """Bring several caches up to date with a dataset, from one pass over its images.

    Each image is decoded once and goes through the network once per view and scale, for all
    caches that lack it. What each cache then holds is what `extract` would have given it, byte
    for byte; what it holds already is not computed for it again.

    Parameters
    ----------
    dataset : Dataset
        Images by id.
    destinations : sequence of Destination
        The caches, at different paths. Their specs differ in nothing but layer, levels,
        pooling, scales, view and storage.
    load_backbone : callable
        Returns a `Backbone` with the layers of all specs.
    device, runtime, jobs, engine, scheduler, progress, stop, redo, part_rows, batch_pixels
        As in `extract`.

    Returns
    -------
    list of Extraction
        One for each cache; the seconds are those of all of them together.

    Raises
    ------
    ConfigError
        If the specs cannot be computed together, or two paths are the same.
    CacheError, SpecMismatchError, DatasetError, Interrupted
        As in `extract`.
    """
    _check(dataset, destinations, engine)
    check_runtime(runtime)
    crew = _Crew(
        load_backbone,
        device,
        runtime,
        jobs,
        engine,
        scheduler,
        progress,
        stop,
        part_rows,
        batch_pixels,
    )
    with contextlib.ExitStack() as stack:
        workspaces = [
            stack.enter_context(
                Workspace(
                    to.path,
                    spec=to.spec,
                    channels=to.channels,
                    dataset=dataset.name,
                    ids=dataset.ids,
                )
            )
            for to in destinations
        ]
        plan = JointPlan([Plan(dataset, workspace, redo) for workspace in workspaces])
        if plan.todo.any():
            with keep_freed_memory(), overlook_old_objects():
                crew.work(plan, workspaces)
        return [
            _finish(workspace, one, dataset, crew.clock)
            for workspace, one in zip(workspaces, plan.plans, strict=True)
        ]


@dataclass
class _Crew:
    """Who makes the parts, and how."""

    load_backbone: Callable[[], Any]
    device: str
    runtime: str
    jobs: int | None
    engine: Engine
    scheduler: str | None
    progress: bool
    stop: threading.Event | None
    part_rows: int | None
    batch_pixels: int | None
    clock: Clock = field(default_factory=Clock)

    def work(self, plan: JointPlan, workspaces: Sequence[Workspace]) -> None:
        """Make all parts of a plan and hand them to the caches."""
        from spptransfer.extraction.compute import choose_device
        from spptransfer.extraction.runners import run

        device = choose_device(self.device, self.runtime)
        division = divide(
            self.engine,
            self.jobs,
            self.runtime,
            on_gpu=device.type != "cpu",
            part_rows=self.part_rows,
        )
        self.clock = Clock(division.readers, division.computers)
        task = self._task(workspaces, division)
        if division.is_here:
            pairs = zip(workspaces, plan.plans, strict=True)
            _begin(workspace for workspace, own in pairs if own.todo.any())
        stop = self.stop or threading.Event()
        made = 0
        left, label = int(plan.todo.sum()), label_of([w.spec for w in workspaces])
        with Progress(left, self.clock, stop, shown=self.progress, label=label) as bar:
            parts = plan.parts(division.part_rows)
            made_by = run(division, parts, task, self.scheduler, bar)
            # Whatever goes wrong here, nobody makes parts any more when the caches are left.
            with contextlib.closing(made_by):
                for part in made_by:
                    for number, written in part:
                        workspaces[number].adopt(written)
                    made += 1
        if made < plan.count_parts(division.part_rows):
            paths = ", ".join(f"'{workspace.path}'" for workspace in workspaces)
            raise Interrupted(
                f"interrupted: the finished parts of {paths} are kept; "
                "run the same command again to go on"
            )

    def _task(self, workspaces: Sequence[Workspace], division: Division) -> PartTask:
        from spptransfer.extraction.runners import PartSettings, PartTask

        settings = tuple(
            PartSettings(
                workspace.folder,
                workspace.spec,
                workspace.channels,
                workspace.dataset,
                self.batch_pixels,
                workspace.put if division.is_here else None,
            )
            for workspace in workspaces
        )
        return PartTask(settings, self.load_backbone, self.device, self.runtime)


def _check(dataset: Dataset, destinations: Sequence[Destination], engine: str) -> None:
    if not len(dataset):
        raise DatasetError(f"dataset '{dataset.name}' in '{dataset.root}' has no images")
    check_engine(engine)
    check_alike([to.spec for to in destinations])
    paths = [to.path for to in destinations]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"two kinds of features cannot be written to one cache, '{path}'")


def _begin(workspaces: Iterable[Workspace]) -> None:
    """Make sure that there is room for all rows of all caches."""
    taken: dict[int, int] = {}
    for workspace in workspaces:
        disk = workspace.path.parent.stat().st_dev
        besides = taken.get(disk, 0)
        taken[disk] = besides + workspace.begin(besides)


def _finish(workspace: Workspace, plan: Plan, dataset: Dataset, clock: Clock) -> Extraction:
    """Make the finished file of one cache."""
    with clock.measure("write"):
        failures = plan.failures()  # the parts that know them are gone afterwards
        labelled = dataset.labelled
        workspace.finish(Labels(dataset.classes, dataset.targets) if labelled else None)
    return Extraction(
        workspace.path,
        added=plan.added,
        changed=plan.changed,
        unchanged=plan.unchanged,
        removed=plan.removed,
        reused=plan.reused,
        failures=failures,
        seconds=clock.seconds(),
        batches=clock.batches,
        full_batches=clock.full_batches,
    )
