"""An unfinished cache: a file with room for every row, filled in any order."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache.layout import PAGE, Layout, short_text
from spptransfer.cache.rows import PENDING, FeatureRows, RowTable, checksums
from spptransfer.cache.seal import DamagedFileError, Seal
from spptransfer.cache.stored import RowFile
from spptransfer.errors import CacheError
from spptransfer.files import sync_file, sync_folder, temporary_name

_NAME = re.compile(r"(.+)\.[0-9a-f]{12}\.partial", re.DOTALL)


def partial_path(path: Path, layout: Layout) -> Path:
    """Return the name under which a cache is being made."""
    return path.with_name(f"{path.name}.{layout.digest[:12]}.partial")


def partial_files(path: Path) -> list[Path]:
    """List the unfinished files of a cache, those last written to at the end."""
    # Not by a pattern, which a name may hold by itself.
    found = [other for other in unfinished_in(path.parent) if cache_of(other) == path]
    return sorted(found, key=lambda file: file.stat().st_mtime_ns)


def unfinished_in(folder: Path) -> list[Path]:
    """List the unfinished files in a folder, by name."""
    return sorted(file for file in folder.glob("*.partial") if _NAME.fullmatch(file.name))


def cache_of(partial: Path) -> Path:
    """Return the cache that an unfinished file is going to be."""
    found = _NAME.fullmatch(partial.name)
    return partial.with_name(found[1]) if found else partial


class PartialFile(RowFile):
    """An unfinished file, opened for writing or, of an earlier run, for taking rows over."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._writing = threading.RLock()
        self._failed = False
        super().__init__(path, writable=writable)

    @classmethod
    def create(cls, path: Path, layout: Layout) -> PartialFile:
        """Make a file without any row; it appears whole or not at all."""
        with temporary_name(path) as temporary:
            layout.create(temporary)
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
        return cls(path, writable=True)

    def check_layout(self, layout: Layout) -> None:
        """Refuse a file that another list of rows belongs to, or other labels."""
        labels, targets = layout.labels, self.targets
        same = self.spec == layout.spec and self.dataset == layout.dataset
        same &= np.array_equal(self.column("id"), layout.encoded_ids)
        same &= self.classes == (tuple(labels.classes) if labels else ())
        same &= (labels is None) == (targets is None)
        if labels is not None and targets is not None:
            same &= np.array_equal(targets, labels.targets)
        if not same:
            raise DamagedFileError(self.path, "it is not what its name says")

    def known_rows(self) -> Iterator[npt.NDArray[np.intp]]:
        """Go through the numbers of the rows that a kill has left whole, some at a time."""
        noted = np.flatnonzero(self.column("status") != PENDING)
        for run in self.checked_runs(len(noted)):
            *_, right = self.compare(noted[run])
            yield noted[run][right]

    def put(
        self,
        positions: npt.NDArray[np.intp],
        table: RowTable,
        features: FeatureRows,
        *,
        known: npt.NDArray[np.uint8] | None = None,
        durable: bool = True,
    ) -> None:
        """Write rows where they will stay; several threads may do so at once."""
        columns = table.columns()
        values = {b: features[b].astype(self.spec.storage, copy=False) for b in self.blocks}
        recorded = checksums(columns, values, self.blocks) if known is None else known
        ids = columns.pop("id")
        status = columns.pop("status")
        numbers = {f"rows/{name}": column for name, column in columns.items()}
        numbers |= {block.name: column for block, column in values.items()}
        # A row counts once its status and a checksum that fits are on the disk. So all else comes
        # first, and is forced there before them: the system writes in any order until it is told.
        # A row that is written over stops counting before anything of it changes.
        with self._writing:
            if not self._data:
                raise CacheError(f"'{self.path}' is no longer being written")
            if not np.array_equal(ids, self._rows("rows/id", positions)):
                raise ValueError(f"rows {positions} are not those of the file")
            if self._rows("rows/status", positions).any():
                self._write({"rows/status": np.zeros_like(status)}, positions, durable)
            self._write(numbers, positions, durable)
            try:
                last = {"rows/status": status, "rows/checksum": recorded}
                self._write(last, positions, durable)
            except OSError:
                # What did not reach the disk may still be read back from memory, by the next run.
                with contextlib.suppress(OSError):
                    self._write({"rows/status": np.zeros_like(status)}, positions, False)
                raise

    def _write(
        self, numbers: Mapping[str, npt.NDArray[Any]], positions: npt.NDArray[np.intp], sync: bool
    ) -> None:
        for name, column in numbers.items():
            for start, run in _runs(positions):
                self._data[name][start : start + run.stop - run.start] = column[run]
        if sync:
            self._sync()

    def _sync(self) -> None:
        """Force what was written onto the disk; once that failed it fails for good.

        The system reports to one thread what may have lost the bytes of another.
        """
        if self._failed:
            raise OSError("an earlier write did not reach the disk")
        try:
            self._file.flush()
            os.fsync(self._raw.fileno())
        except OSError:
            self._failed = True
            raise

    def note(self, computed_by: Iterable[str]) -> None:
        """Write down what took part in computing the rows."""
        with self._writing:
            names = short_text(", ".join(sorted(computed_by)), self._data["computed_by"].dtype.str)
            self._data["computed_by"][()] = np.bytes_(names.encode())
            self._sync()

    def unseal(self) -> None:
        """Take back the first page of a file that was finished but for its name."""
        self._raw.seek(0)
        if self._raw.read(PAGE).strip(b"\0"):
            self._raw.seek(0)
            self._raw.write(bytes(PAGE))
            os.fsync(self._raw.fileno())

    def finish(self, computed_by: Iterable[str]) -> None:
        """Seal a file all of whose rows were put, and close it.

        HDF5 is done with the file before the first page says that it is whole, and that page is
        on the disk before the caller gives the file its name.
        """
        self.note(computed_by)
        with self._writing:
            self._file.close()
            Seal.of(self._raw, self.head_bytes).write(self._raw)
            os.fsync(self._raw.fileno())
            self.close()

    def close(self) -> None:
        """Let go of the file, which stays as it is."""
        with self._writing, contextlib.suppress(OSError, RuntimeError):  # HDF5 holds nothing back
            super().close()


def _runs(positions: npt.NDArray[np.intp]) -> Iterator[tuple[int, slice]]:
    """Cut ascending positions into neighbours: the first one's position, and where they are."""
    edges = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
    for start, stop in pairwise(edges):
        if stop > start:
            yield int(positions[start]), slice(start, stop)
