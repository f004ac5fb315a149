"""Bring caches up to date with a dataset: only new and changed images are read."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spptransfer import images
from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.backbones.probe import probe
from spptransfer.cache import FeatureCache, Labels
from spptransfer.cache.layout import short_text
from spptransfer.cache.rows import OK, RowTable
from spptransfer.cache.verify import Problem
from spptransfer.cache.writer import CacheWriter
from spptransfer.datasets import Dataset
from spptransfer.errors import ConfigError, DatasetError, ImageError, SPPTransferError
from spptransfer.extraction import reading
from spptransfer.extraction.reading import Mask, Part
from spptransfer.ids import Ids
from spptransfer.runtimes import ComputeOptions, check_options, for_images
from spptransfer.spec import FeatureSpec, layers_of, shared_part

# Other batches, runtimes or devices may round differently; a wrong image differs far more.
TOLERANCE = {"float32": 1e-3, "float16": 1e-2}


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
    few_images : bool
        Whether torch computed because there are too few images for another runtime's start.
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
    few_images: bool = False


def extract(
    dataset: Dataset,
    specs: Sequence[FeatureSpec],
    paths: Sequence[Path],
    backbone: Backbone | BackboneRef,
    options: ComputeOptions = ComputeOptions(),
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
    redo: Collection[str] = (),
) -> list[Extraction]:
    """Make each cache hold one row for every image of a dataset.

    Rows whose image file is unchanged are kept: a file of the same size and time stamps is not
    even opened, one of other time stamps but the same content is not decoded. What a killed
    run had finished is taken over. Several caches are filled from one pass: each image is
    decoded once, and goes through the network once per view and scale, for all that lack it.

    Parameters
    ----------
    dataset : Dataset
        Images by id.
    specs : sequence of FeatureSpec
        What to compute; they differ in nothing but layers, levels, pooling, scales, view and
        storage. A cache that already holds more keeps doing so.
    paths : sequence of Path
        Where the finished HDF5 file stands or will stand, for each spec.
    backbone : Backbone or BackboneRef
        The network; one that is referred to is loaded only if an image has to be computed.
    options : ComputeOptions
        Device, runtime and threads. Features of different runtimes agree within rounding, so a
        cache begun with one can be finished with another. With ``runtime: auto`` torch computes
        a dataset of fewer than 64 images.
    progress : bool, default=False
        Show a bar with images per second, time left and the shares of reading and computing.
    stop : threading.Event, optional
        Once set, the oldest part in work is finished and `Interrupted` is raised.
    redo : collection of str, optional
        Ids to extract anew although nothing about them changed.

    Returns
    -------
    list of Extraction
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
    _check(dataset, specs, paths)
    check_options(options, specs[0].precision)
    chosen = for_images(options, len(dataset))
    labels = Labels(dataset.classes, dataset.targets) if dataset.labelled else None
    with contextlib.ExitStack() as stack:
        plans = []
        for one, to in zip(specs, paths, strict=True):
            writer = CacheWriter(
                to,
                spec=one,
                channels=backbone.info.channels_of(one.layers),
                dataset=dataset.name,
                ids=Ids.of(dataset.ids),
                labels=labels,
            )
            plans.append(_Plan(dataset, stack.enter_context(writer), redo))
        seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}
        if any(plan.todo.any() for plan in plans):
            _fill(dataset, plans, backbone, chosen, seconds, shown=progress, stop=stop)
        begin = time.perf_counter()
        for plan in plans:
            plan.done.failures = plan.writer.failures()  # whose files may be gone afterwards
            plan.writer.finish()
            plan.done.seconds = seconds
            plan.done.few_images = plan.done.device == "cpu" and chosen is not options
        seconds["write"] += time.perf_counter() - begin
    return [plan.done for plan in plans]


def _check(dataset: Dataset, specs: Sequence[FeatureSpec], paths: Sequence[Path]) -> None:
    if not len(dataset):
        raise DatasetError(f"dataset '{dataset.name}' in '{dataset.root}' has no images")
    if not specs:
        raise ConfigError("at least one feature spec is needed")
    for other in specs[1:]:
        differences = shared_part(specs[0]).differences(shared_part(other))
        if differences:
            raise ConfigError(
                f"these features cannot be extracted together: {'; '.join(differences)}"
            )
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"two kinds of features cannot be written to one cache, '{path}'")


class _Plan:
    """A dataset compared with the rows known of one cache, and what is done about it."""

    def __init__(self, dataset: Dataset, writer: CacheWriter, redo: Collection[str]) -> None:
        self.writer = writer
        self.todo: Mask = ~writer.known
        again, count = dataset.positions(redo), len(dataset)
        added = int(self.todo.sum())
        failed = np.zeros(count, dtype=bool)
        for positions, table in writer.known_rows():
            failed[positions] = table.status != OK
            for i, path in enumerate(dataset.iter_paths(positions)):
                self.todo[positions[i]] = not self._is_unchanged(table, i, path)
        self.todo[again] = True
        unchanged = count - int(self.todo.sum())
        self.done = Extraction(
            writer.path,
            added=added,
            changed=count - unchanged - added,
            unchanged=unchanged,
            removed=writer.removed,
            reused=unchanged - int((failed & ~self.todo).sum()),
        )

    def _is_unchanged(self, table: RowTable, i: int, path: Path) -> bool:
        """Tell whether a row still describes its file, by the file's stamp alone where it can."""
        error = table.error[i]
        if error in reading.PASSING:
            return False
        known = tuple(table.stamp[i].tolist())
        try:
            # What could not even be read may be readable now, and its stamp would not tell.
            if reading.stamp_of(path) == known and (table.digest[i] or not error):
                return True
            return images.content_digest(images.read_bytes(path)).encode() == table.digest[i]
        except (OSError, ValueError, ImageError):
            found = reading.view_sizes(
                reading.read_header(path), reading.renderings_of([self.writer.spec])
            )
            return isinstance(found, str) and short_text(found) == error


def _fill(
    dataset: Dataset,
    plans: Sequence[_Plan],
    backbone: Backbone | BackboneRef,
    options: ComputeOptions,
    seconds: dict[str, float],
    *,
    shown: bool,
    stop: threading.Event | None,
) -> None:
    """Compute all that the caches lack of a dataset, and put the rows."""
    from spptransfer.extraction.extractor import Extractor  # imports torch

    _check_room(plans)
    specs = [plan.writer.spec for plan in plans]
    todo = np.logical_or.reduce([plan.todo for plan in plans])
    left = int(todo.sum())
    label = f"{specs[0].backbone} {', '.join(layers_of(specs))}" if shown else None
    with Extractor(specs, backbone, options, total=left, label=label) as extractor:
        runtime, progress = extractor.runtime, extractor.progress
        for plan in plans:
            plan.writer.use_probe(probe(runtime.backbone, plan.writer.spec.layers))
        parts = _parts_of(dataset, plans, todo, runtime.part_rows)
        # Whatever goes wrong here, nobody computes any more when the caches are left.
        with contextlib.closing(extractor.run(parts)) as computed:
            for part, rows_of_caches in computed:
                with progress.measure("write"):
                    for plan, rows in zip(plans, rows_of_caches, strict=True):
                        if len(rows.positions):
                            plan.writer.put(*rows, runtime.description)
                left -= len(part.ids)
                if left and stop is not None and stop.is_set():
                    paths = ", ".join([f"'{plan.writer.path}'" for plan in plans])
                    raise Interrupted(
                        f"interrupted: what is finished of {paths} is kept; "
                        "run the same command again to go on"
                    )
        seconds.update({kind: progress.seconds(kind) for kind in seconds})
    for plan in plans:
        plan.done.batches = int(progress.totals["batches"])
        plan.done.full_batches = int(progress.totals["full"])
        if plan.todo.any():
            plan.done.computed_by, plan.done.device = runtime.description, runtime.device


def _check_room(plans: Sequence[_Plan]) -> None:
    """Make sure that there is room for all rows of all caches that are going to be written."""
    taken: Counter[int] = Counter()
    for plan in plans:
        if plan.todo.any():
            disk = plan.writer.path.parent.stat().st_dev
            taken[disk] += plan.writer.begin(taken[disk])


def _parts_of(
    dataset: Dataset, plans: Sequence[_Plan], todo: Mask, part_rows: int
) -> Iterator[Part]:
    """Cut the dataset, not the work left, into parts, each with what every cache lacks of it.

    A resumed run then meets the same parts, hence the same batches, as an uninterrupted one.
    """
    known = Ids.of(dataset.ids)
    for start in range(0, len(todo), part_rows):
        chosen = start + np.flatnonzero(todo[start : start + part_rows])
        if len(chosen):
            ids, paths = list(known.take(chosen)), list(dataset.iter_paths(chosen))
            yield Part(chosen, ids, paths, tuple([plan.todo[chosen] for plan in plans]))


# ---- rows extracted again ----


def compare_sample(
    path: Path,
    problems: Sequence[Problem],
    dataset: Dataset,
    backbone: Backbone | BackboneRef,
    options: ComputeOptions,
    *,
    sample: int = 10,
) -> list[Problem]:
    """Extract some rows of a cache again, away from it, and compare."""
    from spptransfer.extraction.extractor import Extractor  # imports torch

    cache, bad = FeatureCache.open(path), {problem.id for problem in problems}
    good = np.flatnonzero(cache.column("rows/status") == OK)
    drawn = random.Random(0).sample(range(len(good)), min(sample + len(bad), len(good)))
    named = zip(cache.ids_at(good[drawn]), good[drawn].tolist(), strict=True)
    chosen = dict(sorted([(id, row) for id, row in named if id not in bad][:sample]))
    if not chosen:
        return []
    few = for_images(options, len(chosen))
    with Extractor([cache.spec], backbone, few) as extractor:
        (rows,) = extractor.compute(list(map(dataset.path, chosen)))
    failures, found = rows.failures(), []
    for i, (id, row) in enumerate(chosen.items()):
        if i in failures:
            found.append(Problem(id, f"extracted again, it fails: {failures[i]}"))
            continue
        distance = 0.0
        for block in cache.blocks:
            stored = cache.read(block, slice(row, row + 1)).astype(np.float64)
            difference = np.abs(stored - rows.features[block][i]).max()
            distance = max(distance, float(difference / max(np.abs(stored).max(), 1e-12)))
        if distance > TOLERANCE[cache.spec.storage]:
            what = f"extracted again, it differs by {distance:.2g} of its maximum"
            found.append(Problem(id, what))
    return found


def repair(
    path: Path,
    problems: Sequence[Problem],
    dataset: Dataset,
    backbone: Backbone | BackboneRef,
    options: ComputeOptions,
    *,
    progress: bool = False,
) -> Extraction:
    """Extract anew the rows that `verify` complained of, and write the file anew around them."""
    spec = FeatureCache.open(path).spec
    redo = set(dataset.ids).intersection([problem.id for problem in problems])
    # One row is made anew at least: then the whole file is, with the bytes that are no row's.
    redo = redo or set(dataset.ids[:1])
    return extract(dataset, [spec], [path], backbone, options, progress=progress, redo=redo)[0]
