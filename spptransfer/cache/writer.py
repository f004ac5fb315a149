"""Writing a cache: rows known so far, wherever they lie, new ones, and the end; and merging.

An unfinished cache is a file beside the finished one's place, with room for every row, which is
filled in any order. A row of it counts if its status is not 0 and its checksum fits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.backbones.probe import PROBE_NUMBERS, Probe, difference
from spptransfer.cache.layout import (
    COMPUTED_BY_BYTES,
    Block,
    DamagedFileError,
    Labels,
    Layout,
    row_runs,
    seal_of,
    short_text,
)
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import (
    OK,
    PENDING,
    TABLE_BYTES,
    Numbers,
    RowFile,
    RowTable,
    checksums,
    runs_of,
)
from spptransfer.errors import CacheError, SpecMismatchError
from spptransfer.files import (
    atomic_write,
    bytes_held,
    check_space,
    exclusive_lock,
    is_read_only,
    make_folder,
    os_errors_as_cache_error,
    remove_leftovers,
    resolve_symlink,
    sync_folder,
)
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

logger = logging.getLogger(__name__)

_PARTIAL = re.compile(r"(.+)\.[0-9a-f]{12}\.partial", re.DOTALL)
_NOWHERE = -1

Rows = npt.NDArray[np.intp]


def writer_lock(path: Path) -> contextlib.AbstractContextManager[None]:
    """Acquire the right to write a cache."""
    return exclusive_lock(Path(f"{path}.lock"), f"the cache '{path}'")


def partial_path(path: Path, layout: Layout) -> Path:
    """Return the name under which a cache is being made."""
    return path.with_name(f"{path.name}.{layout.digest[:12]}.partial")


def unfinished_in(folder: Path) -> dict[Path, Path]:
    """Return the unfinished files in a folder by name, each with the cache it is going to be."""
    found = {file: _PARTIAL.fullmatch(file.name) for file in sorted(folder.glob("*.partial"))}
    return {file: file.with_name(name[1]) for file, name in found.items() if name}


def partial_files(path: Path) -> list[Path]:
    """List the unfinished files of a cache, those last written to at the end."""
    found = [file for file, cache in unfinished_in(path.parent).items() if cache == path]
    return sorted(found, key=lambda file: file.stat().st_mtime_ns)


class PartialFile(RowFile):
    """An unfinished file, opened for writing or, of an earlier run, for taking rows over."""

    @classmethod
    def create(cls, path: Path, layout: Layout) -> PartialFile:
        """Make a file without any row; it appears whole or not at all."""
        with atomic_write(path, layout.needed) as temporary:
            layout.create(temporary)
        return cls(path, writable=True)

    def whole_rows(self) -> Iterator[Rows]:
        """Go through the numbers of the rows that a kill has left whole, some at a time."""
        noted = np.flatnonzero(self.column("rows/status") != PENDING)
        for run in row_runs(len(noted), self.row_bytes):
            _, right = self.compare(noted[run])
            yield noted[run][right]

    def put(self, positions: Rows, numbers: Numbers, *, durable: bool = True) -> None:
        """Write rows with all they have where they will stay."""
        if not np.array_equal(numbers["rows/id"], self.rows("rows/id", positions)):
            raise ValueError(f"rows {positions} are not those of the file")
        # A row counts once its status and a checksum that fits are on the disk. So all else comes
        # first, and is forced there before them: the system writes in any order until it is told.
        # A row that is written over stops counting before anything of it changes.
        last = {name: numbers[name] for name in ("rows/status", "rows/checksum")}
        pending = {"rows/status": np.full(len(positions), PENDING, np.uint8)}
        if self.rows("rows/status", positions).any():
            self._write(positions, pending, durable)
        rest = numbers.keys() - {"rows/id", *last}
        self._write(positions, {name: numbers[name] for name in sorted(rest)}, durable)
        try:
            self._write(positions, last, durable)
        except OSError:
            # What did not reach the disk may still be read back from memory, by the next run.
            with contextlib.suppress(OSError):
                self._write(positions, pending, False)
            raise

    def _write(self, positions: Rows, numbers: Numbers, durable: bool) -> None:
        for name, column in numbers.items():
            for first, run in runs_of(positions):
                self._data[name][first : first + run.stop - run.start] = column[run]
        if durable:
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._raw.fileno())

    def note(self, computed_by: Iterable[str], probe: Probe) -> None:
        """Write down what took part in computing the rows."""
        names = short_text(", ".join(sorted(computed_by)), COMPUTED_BY_BYTES)
        self._data["computed_by"][()] = np.bytes_(names.encode())
        self._data["probe"][()] = probe
        self._sync()

    def finish(self, computed_by: Iterable[str], probe: Probe) -> None:
        """Seal a file all of whose rows were put, and close it.

        HDF5 is done with the file before the first page says that it is whole, and that page is
        on the disk before the caller gives the file its name.
        """
        self.note(computed_by, probe)
        self._file.close()
        page = seal_of(self._raw, self.head_bytes)
        self._raw.seek(0)
        self._raw.write(page)
        os.fsync(self._raw.fileno())
        self.close()


class CacheWriter:
    """Rows known so far for one cache file: those of the finished file and of unfinished ones.

    Use it as a context manager: it holds the cache against other writers until it is left. Where
    we may not write, a finished file can still be looked at, and `finish` if it lacks nothing.
    """

    def __init__(
        self,
        path: Path,
        *,
        spec: FeatureSpec,
        channels: Mapping[str, int],
        dataset: str,
        ids: Ids,
        labels: Labels | None,
    ) -> None:
        self.path = resolve_symlink(path)
        # A finished file that holds more than is asked for keeps its spec.
        self.spec = spec
        self._ids = Ids.of(ids)
        self._layout = Layout(spec, channels, dataset, self._ids, labels)
        self._finished: FeatureCache | None = None
        self._partial: PartialFile | None = None
        self._is_empty = False
        self._read_only: CacheError | None = None
        self._computed_by: set[str] = set()
        self._probe: Probe = np.zeros((len(spec.layers), PROBE_NUMBERS), np.float32)
        # Of every id: which of the files has its row, and where. 6 bytes are all that is held.
        self._files: list[RowFile] = []
        self._file = np.full(len(self._ids), _NOWHERE, np.int16)
        self._row = np.zeros(len(self._ids), np.int32)
        # How many rows of the finished file no id asks for any more.
        self.removed = 0

    def __enter__(self) -> CacheWriter:
        with contextlib.ExitStack() as stack:
            try:
                make_folder(self.path.parent)
                stack.enter_context(writer_lock(self.path))
            except CacheError as error:
                if not (self.path.exists() and is_read_only(error)):
                    raise
                self._read_only = error
            stack.callback(self._close)
            self._take_stock()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _close(self) -> None:
        for file in self._files:
            file.close()
        if self._partial is not None and self._is_empty:
            self._partial.path.unlink(missing_ok=True)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which of the ids have a row."""
        return self._file != _NOWHERE

    def _take_stock(self) -> None:
        files = []
        if self._read_only is None:
            remove_leftovers(self.path.parent, f"{glob.escape(self.path.name)}.*")
            files = partial_files(self.path)
        if self.path.exists():
            self._finished = cache = FeatureCache.open(self.path, self.spec)
            self.spec, self._probe = cache.spec, np.zeros_like(cache.probe)
            self._layout = dataclasses.replace(
                self._layout, spec=cache.spec, channels=cache.channels
            )
            # What was written last counts; the finished file among equals, as it was made of them.
            files = sorted([*files, self.path], key=lambda file: file.stat().st_mtime_ns)
        for path in files:
            if self._finished is not None and path == self.path:
                every = np.arange(self._finished.count)
                runs = (every[run] for run in row_runs(len(every), TABLE_BYTES))
                _, self.removed = self._take(self._finished, runs)
            else:
                self._take_partial(path)

    def _take_partial(self, path: Path) -> None:
        """Make the rows of an unfinished file known that a kill has left whole."""
        own = path == partial_path(self.path, self._layout)
        try:
            partial = PartialFile(path, writable=own)
            if own and not partial.matches(self._layout):
                partial.close()
                raise DamagedFileError(path, "it is not what its name says")
        except DamagedFileError as error:
            logger.warning("%s (its rows will be made again)", error)
            path.unlink()
            return
        if partial.spec != self.spec:
            partial.close()
            differences = "; ".join(partial.spec.differences(self.spec))
            raise SpecMismatchError(f"'{path}' was made with another spec: {differences}")
        if own:
            self._partial = partial
        wanted, others = self._take(partial, partial.whole_rows())
        if own:
            self._is_empty = not wanted
        elif not wanted + others:  # rows of other ids may be asked for again
            partial.close()
            path.unlink()

    def _take(self, file: RowFile, runs: Iterable[Rows]) -> tuple[int, int]:
        """Make rows of a file known; return how many are asked for, and how many are not."""
        self._files.append(file)
        wanted, others = 0, 0
        for rows in runs:
            positions = self._ids.find(file.rows("rows/id", rows))
            here = positions >= 0
            self._note(file, positions[here], rows[here])
            wanted, others = wanted + int(here.sum()), others + int((~here).sum())
        if wanted:
            self._computed_by.update(file.computed_by)
            self._probe = file.probe if file.probe.any() else self._probe
        return wanted, others

    def _note(self, file: RowFile, positions: Rows, rows: Rows) -> None:
        self._file[positions] = self._files.index(file)
        self._row[positions] = rows

    def _places(self, run: slice) -> Iterator[tuple[Rows, RowFile, Rows]]:
        """Say which ids of a run each file has a row of, by position, and at which of its own."""
        numbers = self._file[run]
        for number in np.unique(numbers[numbers != _NOWHERE]):
            here = run.start + np.flatnonzero(numbers == number)
            yield here, self._files[number], self._row[here].astype(np.intp)

    def known_rows(self) -> Iterator[tuple[Rows, RowTable]]:
        """Go through the newest rows known, some at a time, without their features."""
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for here, file, rows in self._places(run):
                yield here, file.rows_at(rows)

    def failures(self) -> dict[str, str]:
        """Return the reason for every row known that has no features, by id."""
        found: dict[str, str] = {}
        for run in row_runs(len(self._ids), TABLE_BYTES):
            for _, file, rows in self._places(run):
                found |= file.failures_at(rows)
        return found

    def begin(self, besides: int = 0) -> int:
        """Make sure that there is room for all rows."""
        if self._read_only is not None:
            raise self._read_only
        path, needed = partial_path(self.path, self._layout), self._layout.needed
        lacking = needed - (bytes_held(path) if path.exists() else 0)
        with os_errors_as_cache_error(self.path, needed + besides):
            check_space(path, lacking + besides)
            if self._partial is None:
                self._partial = PartialFile.create(path, self._layout)
                self._files.append(self._partial)
                self._is_empty = True
        return lacking

    def use_probe(self, found: Probe) -> None:
        """Refuse a backbone that computes other features than those that are here already."""
        _check_probe(self.path, found, self._probe)
        self._probe = self._probe if self._probe.any() else found

    def put(
        self,
        positions: Rows,
        table: RowTable,
        features: Mapping[Block, npt.NDArray[Any]],
        computed_by: str,
    ) -> None:
        """Write new rows where they will stay, and force them onto the disk."""
        numbers, partial = table.numbers(), self._begun()
        for block in partial.blocks:
            numbers[block.name] = features[block].astype(self.spec.storage, copy=False)
        numbers["rows/checksum"] = checksums(numbers, partial.blocks)
        with os_errors_as_cache_error(self.path, self._layout.needed):
            if computed_by not in self._computed_by:
                self._computed_by.add(computed_by)
                partial.note(self._computed_by, self._probe)
        self._put(partial, positions, numbers)

    def _begun(self) -> PartialFile:
        """Return the file that is going to be the finished one."""
        if self._partial is None:
            self.begin()
        assert self._partial is not None
        return self._partial

    def _put(self, partial: PartialFile, positions: Rows, numbers: Numbers) -> None:
        with os_errors_as_cache_error(self.path, self._layout.needed):
            partial.put(positions, numbers)
        self._is_empty = False
        self._note(partial, positions, positions)

    def finish(self) -> None:
        """Bring the rows of all ids, which must be known, into the finished file."""
        if not self.known.all():
            raise CacheError(f"'{self.path}' cannot be finished: not every image has a row")
        finished = self._finished
        if finished is None or not (
            (self._file == self._files.index(finished)).all() and finished.matches(self._layout)
        ):
            partial = self._begun()
            for run in row_runs(len(self._ids), partial.row_bytes):
                for here, file, rows in self._places(run):
                    if file is not partial:
                        self._put(partial, here, file.checked(rows))
            with os_errors_as_cache_error(self.path, self._layout.needed):
                partial.finish(self._computed_by, self._probe)
                for file in self._files:  # Windows replaces no file that is open
                    file.close()
                os.replace(partial.path, self.path)
                sync_folder(self.path.parent)
        for file in self._files:
            file.close()
        with os_errors_as_cache_error(self.path):
            for path in [] if self._read_only else partial_files(self.path):
                path.unlink()


def _check_probe(path: Path, found: Probe, known: Probe) -> None:
    if off := difference(found, known):
        raise SpecMismatchError(
            f"'{path}' was computed by another release of the network or of torch: features of one "
            f"image differ by {off:.1%}; extract into another folder, or install what made it"
        )


def merge(path: Path, sources: Sequence[Path]) -> FeatureCache:
    """Merge the rows of several caches, made here or elsewhere, into one.

    Parameters
    ----------
    path : Path
        The cache to write; it may be one of the sources.
    sources : sequence of Path
        Caches with one fingerprint. Rows come in the order of the sources; where an id has
        features in several, they must be equal bit for bit.

    Returns
    -------
    FeatureCache
        The merged cache. It has labels if all sources have the same classes.

    Raises
    ------
    CacheError
        If there is no source, a row is damaged, or rows of one id differ; the message names it.
        If another cache is at `path` already, or somebody writes it.
    SpecMismatchError
        If the sources were made with different specs; the message names the fields.
    """
    if not sources:
        raise CacheError("merge: at least one cache is needed")
    path = resolve_symlink(path)
    with os_errors_as_cache_error(path):
        path.parent.stat()
    with writer_lock(path), contextlib.ExitStack() as stack:
        remove_leftovers(path.parent)
        if path.exists() and not any(s.exists() and s.samefile(path) for s in sources):
            raise CacheError(
                f"'{path}' is there already: name it among the caches too, or delete it"
            )
        caches = [FeatureCache.open(source) for source in sources]
        for cache in caches:
            stack.callback(cache.close)
        _merge(path, caches)
    return FeatureCache.open(path)


def _merge(path: Path, caches: Sequence[FeatureCache]) -> None:
    first = caches[0]
    for cache in caches[1:]:
        if (cache.spec, cache.channels) != (first.spec, first.channels):
            differences = "; ".join(first.spec.differences(cache.spec))
            raise SpecMismatchError(
                f"'{first.path}' and '{cache.path}' have different specs: {differences}"
            )
        _check_probe(cache.path, first.probe, cache.probe)
    chosen = _choose_rows(caches)
    parts = [cache.rows("rows/id", rows) for cache, rows in zip(caches, chosen, strict=True)]
    ids, labels = Ids(np.concatenate(parts)), _merge_labels(caches, chosen)
    layout = Layout(first.spec, first.channels, first.dataset, ids, labels)
    with atomic_write(path, layout.needed) as temporary:
        layout.create(temporary)
        with contextlib.closing(PartialFile(temporary, writable=True)) as merged:
            start = 0
            for cache, rows in zip(caches, chosen, strict=True):
                for run in row_runs(len(rows), cache.row_bytes):
                    positions = np.arange(start + run.start, start + run.stop)
                    merged.put(positions, cache.checked(rows[run]), durable=False)
                start += len(rows)
            merged.finish({by for cache in caches for by in cache.computed_by}, first.probe)
        for cache in caches:  # Windows replaces no file that is open
            cache.close()


def _choose_rows(caches: Sequence[FeatureCache]) -> list[Rows]:
    """Choose rows of each cache: the first with features of every id, else the first."""
    good = np.concatenate([cache.column("rows/status") == OK for cache in caches])
    ids = np.concatenate([cache.column("rows/id") for cache in caches])
    # Equal ids side by side, those with features first and otherwise in the order of the sources.
    order = np.lexsort((~good, ids))
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]]) + 1
    rest = order[again]
    if len(rest):
        recorded = np.concatenate([cache.column("rows/checksum") for cache in caches])
        differ = (recorded[rest] != recorded[order[again - 1]]).any(axis=1)
        for name in ids[rest[differ & good[rest]]][:1]:
            raise CacheError(
                f"the caches disagree about the row '{name.decode('utf-8', 'surrogateescape')}': "
                "extract it anew in one of them"
            )
    taken = np.ones(len(good), dtype=bool)
    taken[rest] = False
    ends = np.cumsum([cache.count for cache in caches])
    return [np.flatnonzero(part) for part in np.split(taken, ends[:-1])]


def _merge_labels(caches: Sequence[FeatureCache], chosen: Sequence[Rows]) -> Labels | None:
    """Join labels of the same classes, either one or several per image; else there are none."""
    targets = [cache.targets for cache in caches]
    shapes = {None if labels is None else labels.ndim for labels in targets}
    if len({cache.classes for cache in caches}) > 1 or len(shapes) > 1 or None in shapes:
        return None
    parts = [t[rows] for t, rows in zip(targets, chosen, strict=True) if t is not None]
    return Labels(caches[0].classes, np.concatenate(parts))
