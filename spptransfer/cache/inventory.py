"""What caches there are, what they hold, and which files nobody needs any more."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spptransfer.cache.layout import ForeignFileError
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import FAILED, OK
from spptransfer.cache.writer import PartialFile, partial_files, unfinished_in, writer_lock
from spptransfer.errors import CacheError
from spptransfer.files import bytes_held
from spptransfer.spec import FeatureSpec


@dataclass
class CacheInfo:
    """What is known of a cache, finished or not."""

    path: Path
    bytes: int
    complete: bool
    rows: int = 0
    failed: int = 0
    dataset: str = ""
    spec: FeatureSpec | None = None
    computed_by: set[str] = field(default_factory=set)
    error: str = ""
    foreign: bool = False

    def describe(self) -> str:
        """Return all that is known of it as text, one field per line."""
        state = "complete" if self.complete else "unfinished"
        told = {"cache": self.path, "state": self.error or state, "bytes": f"{self.bytes:,}"}
        if self.spec is not None:
            told |= {
                "dataset": self.dataset,
                "rows": f"{self.rows:,} with features, {self.failed:,} failed",
                "computed by": ", ".join(sorted(self.computed_by)) or "not recorded",
                "fingerprint": self.spec.fingerprint,
            }
            shown = self.spec.to_dict() | {"layers": " + ".join(self.spec.layers)}
            for name, value in shown.items():
                told[name] = value if isinstance(value, str) else json.dumps(value)
        return "\n".join(f"{name}: {value}" for name, value in told.items())


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
            if partial.column("rows/status").any():
                return True
    return False


def inspect(path: Path) -> CacheInfo:
    """Describe one cache without raising for whatever is wrong with it."""
    partials = partial_files(path)
    files = [path] if path.exists() else partials
    if not files:
        raise CacheError(f"there is no cache '{path}'")
    size = sum(bytes_held(file) for file in {*files, *partials})
    info = CacheInfo(path, size, complete=path.exists() and not partials)
    for file in files:
        kind = PartialFile if file in partials else FeatureCache
        try:
            with contextlib.closing(kind(file)) as found:
                status = found.column("rows/status")
                info.rows += int(np.count_nonzero(status == OK))
                info.failed += int(np.count_nonzero(status == FAILED))
                info.spec, info.dataset = found.spec, found.dataset
                info.computed_by.update(found.computed_by)
        except CacheError as error:
            info.error, info.foreign = str(error), isinstance(error, ForeignFileError)
            info.complete = False
    return info


def list_caches(folder: Path) -> list[CacheInfo]:
    """List the caches in a folder, finished or not, by name."""
    finished = {path for path in folder.glob("*.h5") if path.is_file()}
    infos = [inspect(path) for path in sorted(finished.union(unfinished_in(folder).values()))]
    return [info for info in infos if not info.foreign]


def prune(
    folder: Path, keep: Collection[Path] = (), *, dry_run: bool = True, caches: bool = True
) -> list[Removal]:
    """Remove unfinished files and caches that nobody refers to."""
    kept = {path.resolve() for path in keep}
    # Files that may go, each with its cache.
    found = [
        (Removal(file, bytes_held(file), "an unfinished file"), cache)
        for file, cache in unfinished_in(folder).items()
    ]
    for info in list_caches(folder) if caches else []:
        if info.path.exists():
            size = info.path.stat().st_size
            found.append((Removal(info.path, size, "no pipeline file refers to it"), info.path))
    removals = []
    for removal, cache in found:
        with contextlib.ExitStack() as stack:
            try:
                if Path(f"{cache}.lock").exists():
                    stack.enter_context(writer_lock(cache))
            except CacheError:  # somebody writes it
                continue
            if cache.resolve() not in kept:
                removals.append(removal)
                if not dry_run:
                    _remove(removal.path)
    for lock in [] if dry_run else folder.glob("*.h5.lock"):  # what a killed process left
        with contextlib.suppress(CacheError), writer_lock(lock.with_suffix("")):
            pass
    return removals


def _remove(path: Path) -> None:
    try:
        if path.suffix == ".h5":
            precision_note(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"cannot remove '{path}': {error.strerror}") from error
