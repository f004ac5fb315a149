"""Bring caches up to date with a dataset: only new and changed images are read."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.cache import Labels
from spptransfer.cache.writer import CacheWriter
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError, SPPTransferError
from spptransfer.extraction.plan import Plan, parts_of
from spptransfer.extraction.progress import Clock, Progress
from spptransfer.extraction.specs import check_alike, layers_of
from spptransfer.ids import Ids
from spptransfer.runtimes import ComputeOptions, check_options
from spptransfer.spec import FeatureSpec


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
    computed_by, device : str or None
        Runtime with its version, and where it computed; None where nothing was computed.
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
    computed_by: str | None = None
    device: str | None = None


@overload
def extract(
    dataset: Dataset,
    spec: FeatureSpec,
    path: Path,
    backbone: Backbone | BackboneRef,
    options: ComputeOptions = ...,
    *,
    progress: bool = ...,
    stop: threading.Event | None = ...,
    redo: Collection[str] = ...,
) -> Extraction: ...
@overload
def extract(
    dataset: Dataset,
    spec: Sequence[FeatureSpec],
    path: Sequence[Path],
    backbone: Backbone | BackboneRef,
    options: ComputeOptions = ...,
    *,
    progress: bool = ...,
    stop: threading.Event | None = ...,
    redo: Collection[str] = ...,
) -> list[Extraction]: ...
def extract(
    dataset: Dataset,
    spec: FeatureSpec | Sequence[FeatureSpec],
    path: Path | Sequence[Path],
    backbone: Backbone | BackboneRef,
    options: ComputeOptions = ComputeOptions(),
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
    redo: Collection[str] = (),
) -> Extraction | list[Extraction]:
    """Make the cache at `path` hold one row for every image of a dataset.

    Rows whose image file is unchanged are kept: a file of the same size and time stamps is not
    even opened, one of other time stamps but the same content is not decoded. What a killed
    run had finished is taken over. Several caches are filled from one pass: each image is
    decoded once, and goes through the network once per view and scale, for all that lack it.

    Parameters
    ----------
    dataset : Dataset
        Images by id.
    spec : FeatureSpec or sequence of FeatureSpec
        What to compute. Where the file at `path` already holds more, it keeps doing so. Several
        specs differ in nothing but layer, levels, pooling, scales, view and storage.
    path : Path or sequence of Path
        Where the finished HDF5 file stands or will stand, for each spec.
    backbone : Backbone or BackboneRef
        The network; one that is referred to is loaded only if an image has to be computed.
    options : ComputeOptions
        Device, runtime and threads. Features of different runtimes agree within rounding, so a
        cache begun with one can be finished with another.
    progress : bool, default=False
        Show a bar with images per second, time left and the shares of reading and computing.
    stop : threading.Event, optional
        Once set, the oldest part in work is finished and `Interrupted` is raised.
    redo : collection of str, optional
        Ids to extract anew although nothing about them changed.

    Returns
    -------
    Extraction or list of Extraction
        For each cache; the seconds are those of all of them together.

    Raises
    ------
    CacheError
        If a cache cannot be written, is damaged or held by another process.
    SpecMismatchError
        If the file at a path was made with another spec.
    DatasetError
        If the dataset has no images.
    ConfigError
        If the specs cannot be computed together, two paths are the same, or the options ask for
        what is not there.
    Interrupted
        If `stop` was set before all was done.
    """
    several = not isinstance(spec, FeatureSpec)
    specs = list(spec) if not isinstance(spec, FeatureSpec) else [spec]
    paths = [path] if isinstance(path, Path) else list(path)
    _check(dataset, specs, paths)
    check_options(options, specs[0].precision)
    labels = Labels(dataset.classes, dataset.targets) if dataset.labelled else None
    clock, made_by = Clock(), _MadeBy()
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                CacheWriter(
                    to,
                    spec=one,
                    channels=backbone.info.layer(one.layer).channels,
                    dataset=dataset.name,
                    ids=Ids.of(dataset.ids),
                    labels=labels,
                )
            )
            for one, to in zip(specs, paths, strict=True)
        ]
        plans = [Plan(dataset, writer, redo) for writer in writers]
        if any(plan.todo.any() for plan in plans):
            made_by = _fill(
                dataset, writers, plans, backbone, options, clock, shown=progress, stop=stop
            )
        done = [
            _finish(writer, plan, clock, made_by)
            for writer, plan in zip(writers, plans, strict=True)
        ]
    return done if several else done[0]


def _check(dataset: Dataset, specs: Sequence[FeatureSpec], paths: Sequence[Path]) -> None:
    if not len(dataset):
        raise DatasetError(f"dataset '{dataset.name}' in '{dataset.root}' has no images")
    check_alike(specs)
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"two kinds of features cannot be written to one cache, '{path}'")


@dataclass(frozen=True)
class _MadeBy:
    """Who computed, and where."""

    computed_by: str | None = None
    device: str | None = None


def _fill(
    dataset: Dataset,
    writers: Sequence[CacheWriter],
    plans: Sequence[Plan],
    backbone: Backbone | BackboneRef,
    options: ComputeOptions,
    clock: Clock,
    *,
    shown: bool,
    stop: threading.Event | None,
) -> _MadeBy:
    """Compute all that the caches lack of a dataset, and put the rows."""
    from spptransfer.extraction.extractor import Extractor  # imports torch

    _check_room(writers, plans)
    specs = [writer.spec for writer in writers]
    left = int(np.logical_or.reduce([plan.todo for plan in plans]).sum())
    label = f"{specs[0].backbone} {', '.join(layers_of(specs))}"
    with (
        Progress(left, clock, shown, label) as bar,
        Extractor(specs, backbone, options, progress=bar) as extractor,
    ):
        computed_by = extractor.runtime.description
        parts = parts_of(dataset, plans, extractor.runtime.part_rows)
        # Whatever goes wrong here, nobody computes any more when the caches are left.
        with contextlib.closing(extractor.run(parts)) as done:
            for part, rows_of_caches in done:
                with clock.measure("write"):
                    for writer, rows in zip(writers, rows_of_caches, strict=True):
                        if len(rows.positions):
                            writer.put(rows.positions, rows.table, rows.features, computed_by)
                left -= len(part.ids)
                if left and stop is not None and stop.is_set():
                    raise Interrupted(_interrupted(writers))
        return _MadeBy(computed_by, extractor.runtime.device)


def _interrupted(writers: Sequence[CacheWriter]) -> str:
    paths = ", ".join(f"'{writer.path}'" for writer in writers)
    return f"interrupted: what is finished of {paths} is kept; run the same command again to go on"


def _check_room(writers: Sequence[CacheWriter], plans: Sequence[Plan]) -> None:
    """Make sure that there is room for all rows of all caches that are going to be written."""
    taken: dict[int, int] = {}
    for writer, plan in zip(writers, plans, strict=True):
        if plan.todo.any():
            disk = writer.path.parent.stat().st_dev
            besides = taken.get(disk, 0)
            taken[disk] = besides + writer.begin(besides)


def _finish(writer: CacheWriter, plan: Plan, clock: Clock, made_by: _MadeBy) -> Extraction:
    """Make the finished file of one cache."""
    with clock.measure("write"):
        failures = writer.failures()  # the files that know them may be gone afterwards
        writer.finish()
    computed = plan.added + plan.changed > 0
    return Extraction(
        writer.path,
        added=plan.added,
        changed=plan.changed,
        unchanged=plan.unchanged,
        removed=plan.removed,
        reused=plan.reused,
        failures=failures,
        seconds=clock.seconds(),
        batches=clock.batches,
        full_batches=clock.full_batches,
        computed_by=made_by.computed_by if computed else None,
        device=made_by.device if computed else None,
    )
