"""A dataset in shards: each an ordinary cache, made by the ordinary function, then merged."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from spptransfer.backbones import Backbone, BackboneRef
from spptransfer.cache.writer import merge
from spptransfer.datasets import Dataset
from spptransfer.errors import CacheError, ConfigError
from spptransfer.extraction.engine import Extraction, Interrupted, extract
from spptransfer.runtimes import ComputeOptions
from spptransfer.scheduler import dask_workers
from spptransfer.spec import FeatureSpec
from spptransfer.text import plural

logger = logging.getLogger(__name__)

# How often the shards of workers that died are given to others.
_TRIES = 3


def shard_of(dataset: Dataset, index: int, count: int) -> Dataset:
    """Return a consecutive part of a dataset, as a dataset."""
    if count > (most := len(dataset)):
        raise ConfigError(
            f"shards: {count:,} are more than the {plural(most, 'image')}; allowed: 1 to {most}"
        )
    if not 1 <= index <= count:
        raise ConfigError(f"shard: {index} of {count}; allowed: 1 to {count}")
    edges = [len(dataset) * number // count for number in (index - 1, index)]
    return dataset.subset(np.arange(*edges))


def shard_path(path: Path, index: int, count: int) -> Path:
    """Return where the cache of a shard lies."""
    return path.with_name(f"{path.stem}.shard-{index}-of-{count}{path.suffix}")


def extract_shards(
    dataset: Dataset,
    specs: Sequence[FeatureSpec],
    paths: Sequence[Path],
    backbone: Backbone | BackboneRef,
    options: ComputeOptions = ComputeOptions(),
    *,
    shards: int,
    scheduler: str | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> list[Extraction]:
    """Fill caches by several processes, or by the workers of a Dask cluster.

    Each makes caches of a shard of the dataset by `extract`; in the end they are merged. The
    shard of a process that died is resumed by another one, and a run that was killed goes on with
    the shards that it left. A cache that is there already is brought up to date by this process.

    The processes of one machine, as many as shards, share its processors; the workers of a Dask
    `scheduler`, such as ``"tcp://10.0.0.1:8786"``, see the images and the caches' folder at the
    same paths. Once `stop` is set no further shard is begun. Otherwise as `extract`.
    """
    if any(path.exists() for path in paths):
        logger.info("the cache is there already: this process brings it up to date")
        return extract(dataset, specs, paths, backbone, options, progress=progress, stop=stop)
    tasks = [
        (
            shard_of(dataset, index, shards),
            list(specs),
            [shard_path(path, index, shards) for path in paths],
            backbone,
            options if scheduler else options.shared_by(shards),
        )
        for index in range(1, shards + 1)
    ]
    done = _run(tasks, scheduler, progress=progress, stop=stop)
    merged = []
    for number, path in enumerate(paths):
        pieces = [task[2][number] for task in tasks]
        merge(path, pieces)
        for piece in pieces:
            piece.unlink()
        merged.append(_together(path, [extractions[number] for extractions in done]))
    return merged


def _run(
    tasks: Sequence[tuple[Any, ...]],
    scheduler: str | None,
    *,
    progress: bool,
    stop: threading.Event | None,
) -> list[list[Extraction]]:
    """Make all shards; those whose worker died are begun again, and resume what is there."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    from tqdm import tqdm

    folder = None if scheduler else Path.cwd()
    with (
        dask_workers(scheduler, "--scheduler") if scheduler else joblib.parallel_config("loky"),
        tqdm(total=len(tasks), unit="shard", disable=not progress) as bar,
    ):
        for left in reversed(range(_TRIES)):
            found: dict[int, list[Extraction]] = {}
            parallel = joblib.Parallel(len(tasks), batch_size=1, return_as="generator_unordered")
            made = parallel(
                joblib.delayed(_extract_shard)(index, folder, *task)
                for index, task in enumerate(tasks)
            )
            try:
                for index, extractions in made:
                    found[index] = extractions
                    bar.update(len(found) - bar.n)
                    if stop is not None and stop.is_set() and len(found) < len(tasks):
                        with warnings.catch_warnings():  # joblib says that some was in vain
                            warnings.simplefilter("ignore")
                            made.close()
                        raise Interrupted("interrupted: what is finished of the shards is kept")
                break
            except TerminatedWorkerError as error:
                if not left:
                    raise CacheError(
                        "worker processes died again and again (killed, or out of memory); "
                        "everything finished is kept: run the same command again"
                    ) from error
                logger.warning("a worker process died; its shard goes to another one")
    return [found[index] for index in range(len(tasks))]


def _extract_shard(index: int, folder: Path | None, *task: Any) -> tuple[int, list[Extraction]]:
    if folder is not None:
        os.chdir(folder)  # a process that joblib kept may be in another one than the caller
    return index, extract(*task)


def _together(path: Path, pieces: Sequence[Extraction]) -> Extraction:
    """Add up what was done for the shards of one cache."""
    counts = ("added", "changed", "unchanged", "removed", "reused", "batches", "full_batches")
    computed = [piece for piece in pieces if piece.computed_by] or pieces
    return Extraction(
        path,
        **{name: sum([getattr(piece, name) for piece in pieces]) for name in counts},
        failures={id: why for piece in pieces for id, why in piece.failures.items()},
        # They worked side by side.
        seconds={kind: max([p.seconds[kind] for p in pieces]) for kind in pieces[0].seconds},
        computed_by=computed[0].computed_by,
        device=computed[0].device,
        few_images=computed[0].few_images,
    )
