"""A cache in the making: a folder of finished parts beside the place where the file will stand."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.files import make_folder
from spptransfer.cache.layout import Block, Rows, blocks_of, row_blocks
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.writing import FeatureRows, Labels, write_cache
from spptransfer.errors import CacheError
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)


class Workspace:
    """Rows known so far for one cache file: those of the finished file and of all parts.

    Use it as a context manager: it holds the cache against other writers until it is left.

    Parameters
    ----------
    path : Path
        Where the finished file stands or will stand.
    spec : FeatureSpec
        Spec of all rows.
    dataset : str
        Name of the dataset.

    Raises
    ------
    CacheError
        If another process holds the cache; the message says which one and since when.
    """

    def __init__(self, path: Path, *, spec: FeatureSpec, dataset: str) -> None:
        self.path = path
        self.spec = spec
        self.dataset = dataset
        self.folder = path.with_name(f"{path.stem}.parts")
        self._sources: list[FeatureCache] = []
        self._known: dict[str, tuple[int, int]] = {}
        self._lock: IO[str] | None = None

    def __enter__(self) -> Workspace:
        make_folder(self.folder)
        self._lock = _hold(self.folder / "lock", self.path)
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        if self.path.exists():
            self._add(FeatureCache.open(self.path, self.spec))
        for part in sorted(self.folder.glob("part-*.h5")):
            self._add_part(part)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            if not any(self.folder.glob("part-*.h5")):
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def _add_part(self, part: Path) -> None:
        try:
            self._add(FeatureCache.open(part, self.spec))
        except CacheError as error:
            logger.warning("part set aside: %s", error)
            part.unlink()

    def _add(self, source: FeatureCache) -> None:
        self._sources.append(source)
        number = len(self._sources) - 1
        self._known.update({id: (number, row) for row, id in enumerate(source.rows.ids)})

    @property
    def finished(self) -> FeatureCache | None:
        """The finished file as it was when the workspace was entered."""
        first = self._sources[0] if self._sources else None
        return first if first is not None and first.path == self.path else None

    def find(self, id: str) -> tuple[Rows, int] | None:
        """Table and position of the newest row known for an id."""
        if id not in self._known:
            return None
        source, position = self._known[id]
        return self._sources[source].rows, position

    def write_part(self, number: int, rows: Rows, features: FeatureRows) -> None:
        """Write finished rows as a part and make them known.

        Parameters
        ----------
        number : int
            Sorts the parts; names become unique by their content.
        rows : Rows
            The rows' table.
        features : mapping from Block to ndarray of shape (n_rows, block.width)
            The rows' features.
        """
        identity = "\n".join([*rows.ids, *map(bytes.decode, rows.digest.tolist())])
        name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        path = self.folder / f"part-{number:06d}-{name}.h5"
        write_cache(
            path,
            spec=self.spec,
            blocks=tuple(features),
            rows=rows,
            features=(
                {b: values[run] for b, values in features.items()} for run in row_blocks(len(rows))
            ),
            dataset=self.dataset,
        )
        self._add(FeatureCache.open(path, self.spec))

    def is_finished(self, ids: Sequence[str], labels: Labels | None) -> bool:
        """Whether the finished file already holds exactly these rows, in order, and labels."""
        finished = self.finished
        if finished is None or finished.rows.ids != list(ids):
            return False
        if any(self._known[id][0] != 0 for id in ids):
            return False
        if labels is None:
            return not finished.classes
        return tuple(labels.classes) == finished.classes and np.array_equal(
            labels.targets, finished._targets if finished._targets is not None else []
        )

    def finish(self, ids: Sequence[str], labels: Labels | None) -> None:
        """Bring the known rows of these ids into one finished file and drop the parts.

        Parameters
        ----------
        ids : sequence of str
            All ids, in the order of the dataset; each must be known.
        labels : Labels or None
            Labels in the same order.
        """
        if not self.is_finished(ids, labels):
            sources = np.array([self._known[id] for id in ids], dtype=np.intp).reshape(-1, 2)
            rows = Rows.empty(ids)
            for position, (source, row) in enumerate(sources):
                rows.copy_row(position, self._sources[source].rows, row)
            blocks = blocks_of(self.spec, self._sources[0].channels)
            write_cache(
                self.path,
                spec=self.spec,
                blocks=blocks,
                rows=rows,
                features=self._gather(sources, blocks),
                dataset=self.dataset,
                labels=labels,
            )
        for part in self.folder.glob("part-*.h5"):
            part.unlink()

    def _gather(
        self, sources: npt.NDArray[np.intp], blocks: Sequence[Block]
    ) -> Iterator[Mapping[Block, npt.NDArray[Any]]]:
        for run in row_blocks(len(sources)):
            chosen = sources[run]
            values = {b: np.empty((len(chosen), b.width), self.spec.storage) for b in blocks}
            for source in np.unique(chosen[:, 0]):
                here = chosen[:, 0] == source
                for block in blocks:
                    values[block][here] = self._sources[source].stored(block)[chosen[here, 1]]
            yield values


def _hold(lock: Path, cache: Path) -> IO[str]:
    """Take the lock that dies with its process; say who has it where that is not possible."""
    file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 - held until the workspace is left
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = _holder(file.read())
        file.close()
        raise CacheError(f"the cache '{cache}' is being written by {holder}") from error
    file.truncate(0)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, file)
    file.flush()
    return file


def _holder(text: str) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        holder = json.loads(text)
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    return "another process"
