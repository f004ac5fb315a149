"""Passes over images whose results are kept on the disk, some images at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spptransfer.extraction import Interrupted
from spptransfer.files import atomic_write, make_folder, remove_leftovers
from spptransfer.runtimes.devices import limit_threads

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# Images of a file: what a kill costs at most.
_CHUNK = 32


class Passes:
    """Make arrays of images by a pool of threads, and keep them.

    A file gets its final name once it is complete, and what has one is not made again: whatever
    was killed goes on where it stopped, and ends in the same numbers.

    Parameters
    ----------
    folder : Path
        It belongs to one training alone.
    workers : int
        Threads.
    progress : bool
        Whether to show progress bars.
    stop : threading.Event
        Set to stop after the file in work.
    """

    def __init__(
        self, folder: Path, workers: int, *, progress: bool, stop: threading.Event
    ) -> None:
        make_folder(folder)
        remove_leftovers(folder)
        self.folder, self.workers, self.progress, self.stop = folder, workers, progress, stop
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of a block to that of a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def run(
        self, name: str, positions: Sequence[int], work: Callable[[int], Arrays]
    ) -> Iterator[Arrays]:
        """Yield what becomes of images, those of a file together."""
        bar = tqdm(total=len(positions), unit="image", desc=name, disable=not self.progress)
        threads = ThreadPoolExecutor(self.workers, name, limit_threads)
        with self.timed(name.rstrip("0123456789")), bar, threads:
            for start in range(0, len(positions), _CHUNK):
                part = positions[start : start + _CHUNK]
                path = self.folder / f"{name}-{start:07d}.npz"
                if not path.exists():
                    if self.stop.is_set():
                        raise Interrupted(
                            f"interrupted: what is finished is in '{self.folder}'; "
                            "run the same command again to go on"
                        )
                    _save(path, join_arrays(list(threads.map(work, part))))
                with np.load(path, allow_pickle=False) as arrays:
                    yield dict(arrays)
                bar.update(len(part))


def join_arrays(parts: Sequence[Mapping[str, Array]]) -> Arrays:
    """Put arrays of the same names one after the other."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
