"""A cache in the making: a folder of finished parts beside the place where the file will stand."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.files import make_folder, remove_leftovers
from spptransfer.cache.ids import encode, encoded_width, id_runs
from spptransfer.cache.layout import Block, blocks_of, row_runs
from spptransfer.cache.lock import Lock
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import (
    CHECKSUM_BYTES,
    OK,
    TABLE_BYTES,
    Chunk,
    FeatureRows,
    Rows,
    checksums,
)
from spptransfer.cache.writing import Labels, write_cache
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

# Positions of some rows among those of a run, the file that has them, and where it has them.
_Place = tuple[npt.NDArray[np.intp], FeatureCache, npt.NDArray[np.intp]]


def parts_folder(path: Path) -> Path:
    """Folder in which the parts of a cache lie while it is being made."""
    return path.with_name(f"{path.name}.parts")


def precision_note(path: Path) -> Path:
    """File beside a cache that says why it has its precision."""
    return path.with_suffix(".precision.json")


def write_part(
    folder: Path,
    number: int,
    rows: Rows,
    features: FeatureRows,
    *,
    spec: FeatureSpec,
    channels: int,
    dataset: str,
    computed_by: Iterable[str] = (),
) -> Path:
    """Write finished rows as a part.

    Parameters
    ----------
    folder : Path
        The `parts_folder`.
    number : int
        Sorts the parts; names become unique by their content.
    rows : Rows
        The rows' table.
    features : mapping from Block to ndarray of shape (n_rows, block.width)
        The rows' features.
    spec, channels, dataset, computed_by
        As in `write_cache`.

    Returns
    -------
    Path
        The part.
    """
    identity = b"\n".join([*encode(rows.ids).tolist(), *rows.digest.tolist()])
    name = f"part-{number:06d}-{hashlib.sha256(identity).hexdigest()[:12]}.h5"
    write_cache(
        folder / name,
        spec=spec,
        channels=channels,
        dataset=dataset,
        count=len(rows),
        id_width=encoded_width(rows.ids),
        chunks=[Chunk(rows, features)],
        computed_by=computed_by,
    )
    return folder / name


class Workspace:
    """Rows known so far for one cache file: those of the finished file and of all parts.

    Use it as a context manager: it holds the cache against other writers until it is left.

    Parameters
    ----------
    path : Path
        Where the finished file stands or will stand.
    spec : FeatureSpec
        Spec of all rows. Where a finished file of a wider spec stands, its spec is taken.
    channels : int
        Channels of the spec's layer.
    dataset : str
        Name of the dataset.
    ids : sequence of str
        All ids that the finished file is to hold, in order.

    Raises
    ------
    CacheError
        If another process holds the cache (the message says which one and since when), or an id
        ends in a NUL.
    SpecMismatchError
        If the file or a part was made with another spec.
    """

    def __init__(
        self, path: Path, *, spec: FeatureSpec, channels: int, dataset: str, ids: Sequence[str]
    ) -> None:
        self.path = path
        self.spec = spec
        self.channels = channels
        self.dataset = dataset
        self.folder = parts_folder(path)
        self.finished: FeatureCache | None = None
        self._lock = Lock(self.folder / "lock", path)
        for id in ids:
            if id.endswith("\0"):
                raise CacheError(
                    f"the id {id!r} ends in a NUL, which fixed-length text cannot hold"
                )
        # All that is held of a row: its packed id, and 8 bytes to say where it lies.
        self._ids = Ids.of(ids)
        self._sources: list[Path] = []
        self._computed_by: set[str] = set()
        self._source = np.full(len(ids), -1, dtype=np.int32)
        self._row = np.zeros(len(ids), dtype=np.int32)
        self._open = lru_cache(maxsize=8)(FeatureCache)

    def __enter__(self) -> Workspace:
        make_folder(self.folder)
        self._lock.acquire()
        try:
            self._take_stock()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not any(self.folder.glob("part-*.h5")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _take_stock(self) -> None:
        remove_leftovers(self.folder)
        remove_leftovers(self.path.parent, f"{self.path.name}.*")
        if self.path.exists():
            self.finished = FeatureCache.open(self.path, self.spec)
            self.spec = self.finished.spec
            self._note(self.finished)
        for part in sorted(self.folder.glob("part-*.h5")):
            cache = _open_intact(part)
            if cache is not None:
                self._adopt(cache)
            else:
                logger.warning("'%s' is damaged and will be made again", part)
                part.unlink()

    def adopt(self, part: Path) -> None:
        """Make the rows of a part known."""
        self._adopt(FeatureCache(part))

    def _adopt(self, part: FeatureCache) -> None:
        if part.spec != self.spec:
            differences = "; ".join(part.spec.differences(self.spec))
            raise SpecMismatchError(f"'{part.path}' was made with another spec: {differences}")
        self._note(part)

    def _note(self, cache: FeatureCache) -> None:
        for start, positions in self._positions(cache):
            rows = np.flatnonzero(positions >= 0)
            self._source[positions[rows]] = len(self._sources)
            self._row[positions[rows]] = start + rows
        self._sources.append(cache.path)
        self._computed_by.update(cache.computed_by)

    def _positions(self, cache: FeatureCache) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Positions of a cache's rows among all ids, some at a time, -1 for those of other ids."""
        for run in row_runs(cache.count, TABLE_BYTES):
            yield run.start, self._ids.find(cache.ids_at(run))

    def count_removed(self) -> int:
        """Rows of the finished file that no id asks for any more."""
        if self.finished is None:
            return 0
        return sum(int((found < 0).sum()) for _, found in self._positions(self.finished))

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of the ids have a row."""
        return self._source >= 0

    def known_rows(self) -> Iterator[tuple[npt.NDArray[np.intp], Rows]]:
        """Newest rows known, some at a time, with their positions among all ids."""
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for here, cache, rows in self._whereabouts(run):
                yield run.start + here, cache.rows_at(rows)

    def known_failures(self) -> Iterator[tuple[str, str]]:
        """Ids and reasons of the rows known that have no features."""
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for _, cache, rows in self._whereabouts(run):
                failed = rows[cache.file.rows("rows/status", rows) != OK]
                if len(failed):
                    table = cache.rows_at(failed)
                    yield from zip(table.ids, table.error, strict=True)

    def _whereabouts(self, run: slice) -> Iterator[_Place]:
        """Which rows of a run each source holds, and at which of its own."""
        for source in np.unique(self._source[run]):
            if source >= 0:
                here = np.flatnonzero(self._source[run] == source)
                rows = self._row[run][here].astype(np.intp)
                yield here, self._open(self._sources[source]), rows

    def is_finished(self, labels: Labels | None) -> bool:
        """Whether the finished file already holds exactly the rows known, in order, and labels."""
        if self.finished is None or self.finished.count != len(self._ids):
            return False
        if self._source.any() or not all(
            np.array_equal(self._row[run], np.arange(run.start, run.stop))
            for run in id_runs(len(self._ids))
        ):
            return False
        targets = self.finished.targets
        if labels is None or targets is None:
            return labels is None and targets is None
        same_classes = tuple(labels.classes) == self.finished.classes
        return same_classes and np.array_equal(labels.targets, targets)

    def finish(self, labels: Labels | None) -> None:
        """Bring the rows of all ids, which must be known, into one finished file; drop the parts.

        Parameters
        ----------
        labels : Labels or None
            Labels in the order of the ids.
        """
        if not self.is_finished(labels):
            write_cache(
                self.path,
                spec=self.spec,
                channels=self.channels,
                dataset=self.dataset,
                count=len(self._ids),
                id_width=encoded_width(self._ids),
                chunks=self._gather(),
                labels=labels,
                computed_by=self._computed_by,
            )
        for part in self.folder.glob("part-*.h5"):
            part.unlink()

    def _gather(self) -> Iterator[Chunk]:
        """Rows from wherever they are known, checked against their recorded checksums."""
        row_bytes = sum(b.width for b in self._blocks) * np.dtype(self.spec.storage).itemsize
        for run in row_runs(len(self._ids), row_bytes + TABLE_BYTES):
            places = sorted(self._whereabouts(run), key=lambda place: int(place[0][0]))
            if all(here[-1] - here[0] < len(here) for here, _, _ in places):
                # Side by side, as parts mostly are: nothing to put together.
                chunks: Iterable[Chunk] = (read_checked(cache, at) for _, cache, at in places)
            else:
                chunks = [self._together(run.stop - run.start, places)]
            start = run.start
            for chunk in chunks:
                stop = start + len(chunk.rows)
                if chunk.rows.ids != list(self._ids[start:stop]):
                    break
                yield chunk
                start = stop
            if start != run.stop:
                raise CacheError(f"'{self.path}' cannot be finished: not every image has a row")

    def _together(self, count: int, places: Iterable[_Place]) -> Chunk:
        """So many rows, each from its place."""
        rows = Rows.empty([""] * count)
        values = {b: np.empty((count, b.width), self.spec.storage) for b in self._blocks}
        recorded = np.empty((count, CHECKSUM_BYTES), np.uint8)
        for here, cache, at in places:
            chunk = read_checked(cache, at)
            assert chunk.checksums is not None
            rows.put(here, chunk.rows)
            recorded[here] = chunk.checksums
            for block in self._blocks:
                values[block][here] = chunk.features[block]
        return Chunk(rows, values, recorded)

    @property
    def _blocks(self) -> tuple[Block, ...]:
        return tuple(blocks_of(self.spec, self.channels))


def read_checked(cache: FeatureCache, positions: npt.NDArray[np.intp]) -> Chunk:
    """Read rows with all they have.

    Raises
    ------
    CacheError
        If a row is not what was written.
    """
    rows = cache.rows_at(positions)
    features = {block: cache.read(block, positions) for block in cache.blocks}
    recorded = cache.file.rows("rows/checksum", positions)
    right = (checksums(rows, features, cache.blocks) == recorded).all(axis=1)
    for wrong in np.flatnonzero(~right)[:1]:
        raise CacheError(f"row '{rows.ids[wrong]}' of '{cache.path}' is not what was written")
    cache.file.release(sum(values.nbytes for values in features.values()))
    return Chunk(rows, features, recorded)


def _open_intact(part: Path) -> FeatureCache | None:
    try:
        cache = FeatureCache(part)
    except CacheError:
        return None
    return cache if cache.file.is_intact() else None
