"""Bring a cache up to date with a dataset: only new and changed images are read."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from spptransfer import images
from spptransfer.cache.layout import OK, Rows
from spptransfer.cache.workspace import Workspace
from spptransfer.cache.writing import Labels
from spptransfer.datasets import Dataset
from spptransfer.errors import DatasetError, SPPTransferError
from spptransfer.extraction.parts import Clock, PartMaker
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

PART_ROWS = 128


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
    load_backbone: Callable[[], object],
    device: str = "cpu",
    jobs: int | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
    part_rows: int = PART_ROWS,
    batch_pixels: int | None = None,
) -> Extraction:
    """Make the cache at `path` hold one row for every image of a dataset.

    Rows whose image file is unchanged are kept: a file of the same size and time stamp is not
    even opened, one of another time stamp but the same content is not decoded. What a killed
    run had finished is taken over.

    Parameters
    ----------
    dataset : Dataset
        Images by id.
    spec : FeatureSpec
        What to compute.
    channels : int
        Channels of the spec's layer.
    path : Path
        Where the finished HDF5 file stands or will stand.
    load_backbone : callable
        Returns the `Backbone`; called only if an image has to be computed.
    device : str, default="cpu"
        A torch device.
    jobs : int, optional
        Threads that decode and compute, by default one per processor that we may use.
    progress : bool, default=False
        Show a bar with images per second, time left and the device's busy share.
    stop : threading.Event, optional
        Once set, the parts in work are finished and `Interrupted` is raised.
    part_rows : int, default=128
        Images per part: at most this much work is lost in a kill.
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
    Interrupted
        If `stop` was set before all was done.
    """
    if not len(dataset):
        raise DatasetError(f"dataset '{dataset.name}' in '{dataset.root}' has no images")
    clock = Clock()
    with Workspace(path, spec=spec, dataset=dataset.name) as workspace:
        plan = _Plan(dataset, workspace)
        if plan.todo:
            from spptransfer.extraction.compute import FeatureComputer

            computer = FeatureComputer(load_backbone(), spec, device)  # type: ignore[arg-type]
            workers = jobs or len(os.sched_getaffinity(0))
            with PartMaker(computer, spec, channels, clock, workers, batch_pixels) as maker:
                _run_parts(dataset, plan.parts(part_rows), maker, workspace, progress, stop)
        with clock.measure("write"):
            workspace.finish(dataset.ids, _labels(dataset))
    result = plan.result(path)
    result.seconds = clock.seconds()
    return result


class _Plan:
    """Compares a dataset with the rows known so far."""

    def __init__(self, dataset: Dataset, workspace: Workspace) -> None:
        self._dataset = dataset
        self._workspace = workspace
        self.todo: set[str] = set()
        self.added = self.changed = self.unchanged = 0
        for id in dataset.ids:
            self._classify(id)
        finished = workspace.finished
        before = set(finished.rows.ids) if finished else set()
        self.removed = len(before.difference(dataset.ids))

    def _classify(self, id: str) -> None:
        known = self._workspace.find(id)
        if known is None:
            self.added += 1
            self.todo.add(id)
        elif _is_unchanged(self._dataset.path(id), *known):
            self.unchanged += 1
        else:
            self.changed += 1
            self.todo.add(id)

    def parts(self, part_rows: int) -> Iterator[tuple[int, list[str]]]:
        """Cut the dataset, not the work left, into parts.

        A resumed run then meets the same parts, hence the same batches, as an uninterrupted one.
        """
        ids = self._dataset.ids
        for number, start in enumerate(range(0, len(ids), part_rows)):
            part = [id for id in ids[start : start + part_rows] if id in self.todo]
            if part:
                yield number, part

    def result(self, path: Path) -> Extraction:
        """Summary, once the workspace has a row for every image."""
        failures = {}
        for id in self._dataset.ids:
            rows, position = self._workspace.find(id) or (None, 0)
            if rows is not None and rows.status[position] != OK:
                failures[id] = rows.error[position]
        return Extraction(path, self.added, self.changed, self.unchanged, self.removed, failures)


def _is_unchanged(path: Path, rows: Rows, position: int) -> bool:
    """Whether a known row still describes the file; rows of unreadable files never do."""
    digest = rows.digest[position]
    if not digest:
        return False
    try:
        status = path.stat()
        same = (status.st_size, status.st_mtime_ns) == (
            rows.size[position],
            rows.modified[position],
        )
        return same or images.content_digest(images.read_bytes(path)).encode() == digest
    except (OSError, ValueError, SPPTransferError):
        return False


def _run_parts(
    dataset: Dataset,
    parts: Iterator[tuple[int, list[str]]],
    maker: PartMaker,
    workspace: Workspace,
    progress: bool,
    stop: threading.Event | None,
) -> None:
    """Keep two parts in work, so that one can be written while the other computes."""
    running: deque[tuple[int, PartMaker.Pending]] = deque()
    work = list(parts)
    total = sum(len(ids) for _, ids in work)
    with tqdm(total=total, unit="image", disable=not progress, smoothing=0.05) as bar:

        def write_oldest() -> None:
            number, pending = running.popleft()
            rows, features = pending.result()
            with maker.clock.measure("write"):
                workspace.write_part(number, rows, features)

        for number, ids in work:
            if stop is not None and stop.is_set():
                break
            paths = [dataset.path(id) for id in ids]
            running.append((number, maker.start(ids, paths, bar)))
            if len(running) == 2:
                write_oldest()
        while running:
            write_oldest()
    if stop is not None and stop.is_set():
        raise Interrupted(
            f"interrupted: the finished parts of '{workspace.path}' are kept; "
            "run the same command again to go on"
        )


def _labels(dataset: Dataset) -> Labels | None:
    return Labels(dataset.classes, dataset.targets) if dataset.labelled else None
