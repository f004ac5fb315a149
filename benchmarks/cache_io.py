"""Reading a cache beside plain h5py and numpy, and memory at 10,000 and 1,000,000 rows.

    python benchmarks/cache_io.py [--rows 20000] [--memory]

Both sides of a line are timed in turns in one run, on a warm page cache; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from spptransfer.cache import FeatureCache
from spptransfer.cache.layout import blocks_of, row_runs
from spptransfer.cache.merge import merge
from spptransfer.cache.rows import OK, Rows, encode
from spptransfer.cache.verify import verify
from spptransfer.cache.workspace import Workspace
from spptransfer.cache.writing import write_cache
from spptransfer.spec import FeatureSpec

CHANNELS = 256
REPEATS = 7
TASKS = ("finish", "merge", "verify", "read in blocks")


def make_spec(storage: str = "float32", levels: tuple[int, ...] = (6,)) -> FeatureSpec:
    return FeatureSpec(
        backbone="alexnet", weights_sha256="00", layer="spp", levels=levels, storage=storage
    )


def make_chunks(ids: list[str], spec: FeatureSpec, channels: int) -> Iterator[tuple[Rows, dict]]:
    """Random rows, half of the numbers zero as behind a ReLU."""
    generator = np.random.default_rng(0)
    (block,) = blocks_of(spec, channels)
    for run in row_runs(len(ids), 4 * block.width + 256):
        rows = Rows.empty(ids[run])
        rows.status[:] = OK
        rows.digest[:] = b"0" * 64
        values = generator.standard_normal((len(rows), block.width), dtype=np.float32)
        yield rows, {block: np.maximum(values, 0).astype(spec.storage)}


def make_cache(path: Path, count: int, spec: FeatureSpec, channels: int, prefix: str = "") -> None:
    ids = [f"{prefix}{i:08d}.jpg" for i in range(count)]
    chunks = make_chunks(ids, spec, channels)
    write_cache(
        path, spec=spec, channels=channels, dataset="benchmark", ids=encode(ids), chunks=chunks
    )


def median_seconds(*actions: Callable[[], object]) -> list[float]:
    """Median time of each action, taken in turns."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(REPEATS):
        for action, spent in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def show(what: str, ours: float, peer: str, theirs: float) -> None:
    print(
        f"{what:<44} {1e3 * ours:9.1f} ms   {peer:<22} {1e3 * theirs:9.1f} ms   "
        f"ratio {theirs / ours:5.2f}"
    )


def compare_reading(folder: Path, count: int) -> None:
    for storage in ("float32", "float16"):
        spec = make_spec(storage)
        make_cache(folder / "a.h5", count, spec, CHANNELS)
        cache = FeatureCache.open(folder / "a.h5", spec)
        name = cache.blocks[0].name
        with h5py.File(folder / "plain.h5", "w") as file:
            file.create_dataset("features", data=cache.matrix(dtype=storage))
        np.save(folder / "plain.npy", cache.matrix(dtype=storage))

        def read_plain() -> np.ndarray:
            with h5py.File(folder / "plain.h5") as file:
                return file["features"][()]

        ours, theirs = median_seconds(lambda: cache.matrix(dtype=storage), read_plain)  # noqa: B023
        show(
            f"{storage}: full matrix, {count} x {cache.blocks[0].width}", ours, "plain h5py", theirs
        )

        mapped = np.load(folder / "plain.npy", mmap_mode="r")
        view = cache.view(dtype=storage)
        generator = np.random.default_rng(1)
        chosen = [np.sort(generator.choice(count, 256, replace=False)) for _ in range(20)]
        ours, theirs = median_seconds(
            lambda: [view[rows] for rows in chosen],  # noqa: B023
            lambda: [np.array(mapped[rows]) for rows in chosen],  # noqa: B023
        )
        show(f"{storage}: 20 x 256 random rows", ours, "numpy memmap", theirs)
        print(f"{'':<44} {cache.header.extents[name].nbytes / 1e6:9.1f} MB of features")


def measure_memory(task: str, folder: Path, count: int) -> None:
    """Do one thing with narrow rows and print this process's peak memory in MB."""
    spec = make_spec(levels=(1,))
    if task == "finish":
        ids = [f"{i:08d}.jpg" for i in range(count)]
        with Workspace(
            folder / "a.h5", spec=spec, channels=4, dataset="benchmark", ids=ids[::-1]
        ) as workspace:
            workspace.finish(None)
    elif task == "merge":
        merge(folder / "c.h5", [folder / "a.h5", folder / "b.h5"])
    elif task == "verify":
        assert verify(folder / "a.h5") == []
    else:
        view = FeatureCache.open(folder / "a.h5").view()
        for start in range(0, len(view), 1024):
            view[start : start + 1024]
    # Not getrusage's figure, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1e3)


def compare_memory(folder: Path) -> None:
    print(
        f"\n{'peak memory of one process, 4 numbers per row':<44} {'10,000':>12} {'1,000,000':>12}"
    )
    for task in TASKS:
        peaks = []
        for count in (10_000, 1_000_000):
            make_cache(folder / "a.h5", count, make_spec(levels=(1,)), 4)
            make_cache(folder / "b.h5", count, make_spec(levels=(1,)), 4, prefix="b")
            command = [sys.executable, __file__, "--task", task, str(folder), str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout))
        print(f"{task:<44} {peaks[0]:9.0f} MB {peaks[1]:9.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        task, folder, count = given.task
        measure_memory(task, Path(folder), int(count))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare_reading(Path(folder), given.rows)
        if given.memory:
            compare_memory(Path(folder))


if __name__ == "__main__":
    main()
