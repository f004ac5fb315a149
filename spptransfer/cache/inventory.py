"""What caches there are, what they hold, and which files nobody needs any more."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spptransfer.cache.files import bytes_held
from spptransfer.cache.layout import ForeignFileError
from spptransfer.cache.lock import Lock
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import OK
from spptransfer.cache.unfinished import (
    draft_files,
    is_draft,
    noted_rows,
    open_draft,
    part_files,
    parts_folder,
)
from spptransfer.errors import CacheError
from spptransfer.spec import FeatureSpec

_SUFFIX = ".h5"
_PARTS = ".h5.parts"


@dataclass(frozen=True)
class CacheInfo:
    """What is known of a cache, finished or not.

    Attributes
    ----------
    path : Path
        The cache file.
    bytes : int
        Size of the file and of its unfinished parts.
    complete : bool
        Whether the file is there and no part of it is waiting to be brought in.
    rows, failed : int
        Rows with and without features; of the parts and drafts where there is no file yet, where
        a row that was being copied from one to the other counts twice.
    dataset : str
        Name of the dataset.
    spec : FeatureSpec or None
        What determines the values; None where nothing readable is there.
    computed_by : tuple of str
        Names and versions of what computed the rows.
    error : str
        Why the file cannot be read, if so.
    foreign : bool
        Whether that is because it is no cache of ours.
    """

    path: Path
    bytes: int
    complete: bool
    rows: int = 0
    failed: int = 0
    dataset: str = ""
    spec: FeatureSpec | None = None
    computed_by: tuple[str, ...] = ()
    error: str = ""
    foreign: bool = False

    def describe(self) -> str:
        """All that is known of it as text, one field per line."""
        state = "complete" if self.complete else "unfinished"
        lines = [
            f"cache: {self.path}",
            f"state: {self.error or state}",
            f"bytes: {self.bytes:,}",
        ]
        if self.spec is not None:
            lines += [
                f"dataset: {self.dataset}",
                f"rows: {self.rows:,} with features, {self.failed:,} failed",
                f"computed by: {', '.join(self.computed_by) or 'not recorded'}",
                f"fingerprint: {self.spec.fingerprint}",
            ]
            lines += [f"{name}: {_plain(value)}" for name, value in self.spec.to_dict().items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Removal:
    """A file or folder that can go, and why."""

    path: Path
    bytes: int
    reason: str


def precision_note(path: Path) -> Path:
    """File beside a cache that says why it has its precision."""
    return path.with_suffix(".precision.json")


def inspect(path: Path) -> CacheInfo:
    """Find out about one cache without raising for whatever is wrong with it.

    Parameters
    ----------
    path : Path
        The cache file; it may be unfinished, so that only its parts or a draft are there.

    Returns
    -------
    CacheInfo

    Raises
    ------
    CacheError
        If neither the file nor a part of it is there.
    """
    parts = [*draft_files(parts_folder(path)), *part_files(parts_folder(path))]
    if not path.exists() and not parts_folder(path).exists():
        raise CacheError(f"there is no cache '{path}'")
    size = sum(bytes_held(file) for file in [path, *parts] if file.is_file())
    rows, failed, first, error, foreign = 0, 0, None, "", False
    runtimes: set[str] = set()
    for file in [path] if path.exists() else parts:
        try:
            cache = open_draft(file) if is_draft(file) else FeatureCache(file)
            here, lost = _count_draft(cache) if is_draft(file) else _count(cache)
        except CacheError as problem:
            error, foreign = str(problem), isinstance(problem, ForeignFileError)
            continue
        first = first or cache
        runtimes.update(cache.computed_by)
        rows, failed = rows + here, failed + lost
    complete = path.exists() and not parts and not error and not is_draft(path)
    if first is None:
        return CacheInfo(path, size, complete, error=error, foreign=foreign)
    found = (first.dataset, first.spec, tuple(sorted(runtimes)))
    return CacheInfo(path, size, complete, rows, failed, *found, error, foreign)


def _count(cache: FeatureCache) -> tuple[int, int]:
    return len(cache), cache.count - len(cache)


def _count_draft(draft: FeatureCache) -> tuple[int, int]:
    status = [draft.file.rows("rows/status", positions) for positions in noted_rows(draft)]
    good = sum(int(np.count_nonzero(some == OK)) for some in status)
    return good, sum(map(len, status)) - good


def list_caches(folder: Path) -> list[CacheInfo]:
    """All caches in a folder, finished or not, by name.

    Parameters
    ----------
    folder : Path
        Where caches lie.

    Returns
    -------
    list of CacheInfo
        Files that are no caches of ours are left out, damaged ones are in.
    """
    if not folder.is_dir():
        return []
    finished = {path for path in folder.glob(f"*{_SUFFIX}") if path.is_file()}
    unfinished = set(map(_cache_of, _workspaces(folder)))
    infos = [inspect(path) for path in sorted(finished | unfinished)]
    return [info for info in infos if not info.foreign]


def prune(
    folder: Path, keep: Collection[Path] = (), *, dry_run: bool = True, caches: bool = True
) -> list[Removal]:
    """Remove unfinished parts and caches that nobody refers to.

    Parameters
    ----------
    folder : Path
        Where caches lie.
    keep : collection of Path
        Caches that pipeline files refer to; these and their parts stay.
    dry_run : bool, default=True
        Only say what would go.
    caches : bool, default=True
        Whether finished caches go too, and not unfinished parts alone.

    Returns
    -------
    list of Removal
        What goes. What a running process is writing stays.
    """
    kept = {path.resolve() for path in keep}
    removals = []
    for parts in _workspaces(folder):
        cache = _cache_of(parts)
        if cache.resolve() not in kept and _is_idle(cache):
            size = sum(bytes_held(file) for file in parts.iterdir() if file.is_file())
            removals.append(Removal(parts, size, "unfinished parts"))
    for info in list_caches(folder) if caches else []:
        free = info.path.resolve() not in kept and _is_idle(info.path)
        if free and info.path.exists():
            size = info.path.stat().st_size
            removals.append(Removal(info.path, size, "no pipeline file refers to it"))
    return removals if dry_run else [removal for removal in removals if _remove(removal.path)]


def _workspaces(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{_PARTS}") if path.is_dir())


def _cache_of(parts: Path) -> Path:
    """The cache that a folder of parts belongs to."""
    return parts.with_name(parts.name.removesuffix(".parts"))


def _is_idle(cache: Path) -> bool:
    """Whether nobody writes a cache right now."""
    with _writer(cache) as idle:
        return idle


@contextlib.contextmanager
def _writer(cache: Path) -> Iterator[bool]:
    """Be the one who writes a cache, if nobody else is."""
    file = parts_folder(cache) / "lock"
    lock = Lock(file, cache)
    try:
        if file.exists():
            lock.acquire()
    except CacheError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _remove(path: Path) -> bool:
    """Remove a file or a folder of parts, unless somebody has begun to write there."""
    try:
        if not path.is_dir():
            precision_note(path).unlink(missing_ok=True)
            path.unlink()
            return True
        with _writer(_cache_of(path)) as idle:
            if idle:
                shutil.rmtree(path)
            return idle
    except OSError as error:
        raise CacheError(f"cannot remove '{path}': {error.strerror}") from error


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
