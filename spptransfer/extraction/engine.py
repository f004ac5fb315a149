"""Bring a cache up to date with a dataset: only new and changed images are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from spptransfer.cache.workspace import Workspace
from spptransfer.cache.writing import Labels
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError, SPPTransferError, suggestion
from spptransfer.extraction.plan import Plan
from spptransfer.extraction.progress import Clock, Progress
from spptransfer.spec import FeatureSpec

PART_ROWS = 128

Engine = Literal["auto", "threads", "processes", "dask"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


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
    failures : mapping of str to str
        Reason for every image without features, by id.
    seconds : dict of str to float
        Wall-clock time split into ``read`` (read, decode, resize), ``compute`` and ``write``.
    """

    path: Path
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def extract(
    dataset: Dataset,
    spec: FeatureSpec,
    *,
    channels: int,
    path: Path,
    load_backbone: Callable[[], Any],
    device: str = "cpu",
    jobs: int | None = None,
    engine: Engine = "threads",
    scheduler: str | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
    redo: Collection[str] = (),
    part_rows: int = PART_ROWS,
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
    jobs : int, optional
        Threads or processes, by default one per processor that we may use.
    engine : {"auto", "threads", "processes", "dask"}
        Who makes the parts: threads of this process, processes on this machine, or the workers
        of a Dask cluster, which must see the images and the cache's folder at the same paths.
        With ``"auto"`` a number of `jobs` asks for so many processes, unless the device is a
        GPU; without one, threads do.
    scheduler : str, optional
        Address of the Dask scheduler; by default a cluster is started on this machine.
    progress : bool, default=False
        Show a bar with images per second, time left and the device's busy share.
    stop : threading.Event, optional
        Once set, the oldest part in work is finished and `Interrupted` is raised.
    redo : collection of str, optional
        Ids to extract anew although nothing about them changed.
    part_rows : int, default=128
        Images per part: at most this much work per worker is lost in a kill.
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
        If the scales are too small for the backbone, or there is no such engine.
    Interrupted
        If `stop` was set before all was done.
    """
    if not len(dataset):
        raise DatasetError(f"dataset '{dataset.name}' in '{dataset.root}' has no images")
    if engine not in ENGINES:
        raise ConfigError(f"engine: {engine!r} is unknown; {suggestion(str(engine), ENGINES)}")
    asked, jobs = jobs, jobs or len(os.sched_getaffinity(0))
    clock = Clock(readers=jobs, computers=jobs)
    stop = stop or threading.Event()
    with Workspace(
        path, spec=spec, channels=channels, dataset=dataset.name, ids=dataset.ids
    ) as workspace:
        plan = Plan(dataset, workspace, redo)
        if plan.todo.any():
            from spptransfer.extraction import runners
            from spptransfer.extraction.compute import choose_device

            on_cpu = choose_device(device).type == "cpu"
            if not on_cpu:  # one batch at a time, whoever reads it
                clock = Clock(readers=jobs, computers=1)
            if engine == "auto":
                engine = "processes" if on_cpu and (asked or 1) > 1 else "threads"
            settings = runners.PartSettings(
                workspace.folder, workspace.spec, channels, dataset.name, batch_pixels
            )
            task = runners.PartTask(settings, load_backbone, device)
            with Progress(int(plan.todo.sum()), clock, stop, shown=progress) as bar:
                parts = plan.parts(part_rows)
                made = 0
                for part in runners.run(engine, parts, task, jobs, scheduler, bar):
                    workspace.adopt(part)
                    made += 1
            if made < plan.count_parts(part_rows):
                raise Interrupted(
                    f"interrupted: the finished parts of '{path}' are kept; "
                    "run the same command again to go on"
                )
        with clock.measure("write"):
            failures = plan.failures()  # the parts that know them are gone afterwards
            workspace.finish(_labels(dataset))
    return Extraction(
        path,
        added=plan.added,
        changed=plan.changed,
        unchanged=plan.unchanged,
        removed=plan.removed,
        failures=failures,
        seconds=clock.seconds(),
    )


def _labels(dataset: Dataset) -> Labels | None:
    return Labels(dataset.classes, dataset.targets) if dataset.labelled else None
