"""A dataset in shards: each an ordinary cache, made by the ordinary function, then merged."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
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
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

# How often the shards of workers that died are given to others.
_TRIES = 3


def shard_of(dataset: Dataset, index: int, count: int) -> Dataset:
    """Return a consecutive part of a dataset, as a dataset."""
    if not 1 <= count <= len(dataset):
        raise ConfigError(f"shards: {count} of {len(dataset):,} images; allowed: 1 to as many")
    if not 1 <= index <= count:
        raise ConfigError(f"shard: {index} of {count}; allowed: 1 to {count}")
    edges = [len(dataset) * number // count for number in (index - 1, index)]
    return dataset.subset(np.arange(*edges))


def shard_path(path: Path, index: int, count: int) -> Path:
    """Return where the cache of a shard lies.

    Examples
    --------
    >>> shard_path(Path("photos.h5"), 2, 8).name
    'photos.shard-2-of-8.h5'
    """
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

    Parameters
    ----------
    dataset, specs, paths, backbone, options, progress
        As in `extract`. The processes of one machine share its processors.
    shards : int
        How many shards; on this machine as many processes work at once.
    scheduler : str, optional
        Address of a Dask scheduler, such as ``"tcp://10.0.0.1:8786"``, whose workers see the
        images and the caches' folder at the same paths.
    stop : threading.Event, optional
        Once set, no further shard is begun and `Interrupted` is raised.

    Returns
    -------
    list of Extraction
        One for each cache.

    Raises
    ------
    ConfigError
        If there are fewer images than shards, or no Dask scheduler answers.
    CacheError
        If workers die again and again; what they finished is kept.
    Interrupted, DatasetError, SpecMismatchError
        As in `extract`.
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
        _connected(scheduler),
        joblib.parallel_config("loky" if scheduler is None else "dask"),
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
                        _cancel(made)
                        raise Interrupted("interrupted: what is finished of the shards is kept")
                return [found[index] for index in range(len(tasks))]
            except TerminatedWorkerError as error:
                if not left:
                    raise CacheError(
                        "worker processes died again and again (killed, or out of memory); "
                        "everything finished is kept: run the same command again"
                    ) from error
                logger.warning("a worker process died; its shard goes to another one")
    raise AssertionError("not reached")


def _cancel(made: Generator[Any]) -> None:
    """Give up what is still to come, without joblib's warning that it was in vain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.close()


def _extract_shard(index: int, folder: Path | None, *task: Any) -> tuple[int, list[Extraction]]:
    if folder is not None:
        os.chdir(folder)  # a process that joblib kept may be in another one than the caller
    return index, extract(*task)


class _connected:
    """Connect to a Dask scheduler for a while; to none without an address."""

    def __init__(self, scheduler: str | None) -> None:
        self._scheduler = scheduler
        self._client: Any = None

    def __enter__(self) -> Any:
        if self._scheduler is None:
            return None
        try:
            from distributed import Client
        except ImportError as error:
            raise ConfigError("--scheduler needs: pip install 'spptransfer[dask]'") from error
        try:
            self._client = Client(self._scheduler)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no Dask scheduler answers at '{self._scheduler}'") from error
        return self._client

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()


def _together(path: Path, pieces: Sequence[Extraction]) -> Extraction:
    """Add up what was done for the shards of one cache."""

    def total(name: str) -> int:
        return sum(getattr(piece, name) for piece in pieces)

    counts = ("added", "changed", "unchanged", "removed", "reused", "batches", "full_batches")
    kinds = pieces[0].seconds
    computed = [piece for piece in pieces if piece.computed_by]
    return Extraction(
        path,
        **{name: total(name) for name in counts},
        failures=dict(_failures(pieces)),
        # They worked side by side.
        seconds={kind: max(piece.seconds[kind] for piece in pieces) for kind in kinds},
        computed_by=computed[0].computed_by if computed else None,
        device=computed[0].device if computed else None,
    )


def _failures(pieces: Sequence[Extraction]) -> Iterator[tuple[str, str]]:
    for piece in pieces:
        yield from piece.failures.items()
