"""What caches there are, what they hold, and which files nobody needs any more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spptransfer.cache.partial import PartialFile, cache_of, partial_files, unfinished_in
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import FAILED, OK
from spptransfer.cache.seal import ForeignFileError
from spptransfer.cache.stored import RowFile
from spptransfer.cache.writer import writer_lock
from spptransfer.errors import CacheError
from spptransfer.files import bytes_held
from spptransfer.spec import FeatureSpec


@dataclass(frozen=True)
class CacheInfo:
    """What is known of a cache, finished or not."""

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
        """Return all that is known of it as text, one field per line."""
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
    """A file that can go, and why."""

    path: Path
    bytes: int
    reason: str


def precision_note(path: Path) -> Path:
    """Return the file beside a cache that says why it has its precision."""
    return path.with_suffix(".precision.json")


def is_begun(path: Path) -> bool:
    """Tell whether some rows of a cache wait for the others."""
    for file in partial_files(path):
        with contextlib.suppress(CacheError), contextlib.closing(PartialFile(file)) as partial:
            if any(_count(partial)):
                return True
    return False


def inspect(path: Path) -> CacheInfo:
    """Describe one cache without raising for whatever is wrong with it."""
    partials = partial_files(path)
    if not path.exists() and not partials:
        raise CacheError(f"there is no cache '{path}'")
    size = sum(bytes_held(file) for file in [path, *partials] if file.is_file())
    counts, opened, error, foreign = np.zeros(2, int), [], "", False
    for file in [path] if path.exists() else partials:
        kind = PartialFile if file in partials else FeatureCache
        try:
            with contextlib.closing(kind(file)) as found:
                counts += _count(found)
                opened.append(found)
        except CacheError as problem:
            error, foreign = str(problem), isinstance(problem, ForeignFileError)
    complete = path.exists() and not partials and not error
    if not opened:
        return CacheInfo(path, size, complete, error=error, foreign=foreign)
    first, rows, failed = opened[0], int(counts[0]), int(counts[1])
    computed_by = tuple(sorted({name for found in opened for name in found.computed_by}))
    told = (first.dataset, first.spec, computed_by, error, foreign)
    return CacheInfo(path, size, complete, rows, failed, *told)


def _count(file: RowFile) -> tuple[int, int]:
    """Count the rows with features and those without."""
    status = file.column("status")
    return int(np.count_nonzero(status == OK)), int(np.count_nonzero(status == FAILED))


def list_caches(folder: Path) -> list[CacheInfo]:
    """List the caches in a folder, finished or not, by name."""
    finished = {path for path in folder.glob("*.h5") if path.is_file()}
    unfinished = set(map(cache_of, unfinished_in(folder)))
    infos = [inspect(path) for path in sorted(finished | unfinished)]
    return [info for info in infos if not info.foreign]


def prune(
    folder: Path, keep: Collection[Path] = (), *, dry_run: bool = True, caches: bool = True
) -> list[Removal]:
    """Remove unfinished files and caches that nobody refers to."""
    kept = {path.resolve() for path in keep}
    found = [
        Removal(file, bytes_held(file), "an unfinished file") for file in unfinished_in(folder)
    ]
    for info in list_caches(folder) if caches else []:
        if info.path.exists():
            size = info.path.stat().st_size
            found.append(Removal(info.path, size, "no pipeline file refers to it"))
    removals = []
    for removal in found:
        cache = cache_of(removal.path)
        if cache.resolve() in kept:
            continue
        with _writer(cache) as idle:
            if idle:
                removals.append(removal)
                if not dry_run:
                    _remove(removal.path)
    for lock in [] if dry_run else folder.glob("*.h5.lock"):  # what a killed process left
        with _writer(lock.with_suffix("")):
            pass
    return removals


@contextlib.contextmanager
def _writer(cache: Path) -> Iterator[bool]:
    """Acquire the writer lock; yield False if another process holds it."""
    with contextlib.ExitStack() as stack:
        try:
            if Path(f"{cache}.lock").exists():
                stack.enter_context(writer_lock(cache))
        except CacheError:
            yield False
            return
        yield True


def _remove(path: Path) -> None:
    try:
        if cache_of(path) == path:
            precision_note(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot remove '{path}': {error.strerror}") from error


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
