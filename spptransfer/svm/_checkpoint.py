"""What a search has finished, in one file that is replaced as a whole."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._rows import Rows
from spptransfer.svm._types import Array

FORMAT = "spptransfer-svm-search-1"


class Checkpoint:
    """Arrays saved under the fingerprint of the search that they belong to."""

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self.path = None if path is None else Path(path)
        self.fingerprint = fingerprint

    def load(self) -> dict[str, Array] | None:
        """What was saved last, or None for a fresh start."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(f"checkpoint {self.path} cannot be read; delete it") from error
        if str(arrays.pop("fingerprint", "")) != self.fingerprint:
            raise ConfigError(
                f"checkpoint {self.path} belongs to other data or parameters; delete it or name "
                "another file"
            )
        return arrays

    def save(self, arrays: dict[str, Any]) -> None:
        """Write everything beside the file, then rename it into place."""
        if self.path is None:
            return
        beside = self.path.with_name(self.path.name + ".tmp")
        with beside.open("wb") as file:
            np.savez(file, fingerprint=np.array(self.fingerprint), **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def remove(self) -> None:
        """Leave nothing behind once the search has ended."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def fingerprint(rows: Rows, *parts: Any) -> str:
    """Identify data and parameters: any change of them changes it."""
    digest = hashlib.sha256(FORMAT.encode())
    for _, block in rows.blocks(rows.working_dtype):
        digest.update(block.tobytes())
    for part in parts:
        is_array = isinstance(part, np.ndarray)
        digest.update(repr((part.shape, part.dtype) if is_array else part).encode())
        if is_array:
            digest.update(part.tobytes())
    return digest.hexdigest()
