"""Reading a cache beside plain h5py and numpy, and memory at few and at many rows.

    python benchmarks/cache_io.py [--rows 20000] [--memory]

Both sides of a line are timed in turns in one run, on a warm page cache; the median counts.
Memory is the most that a process of its own held at any time, imports included: what bringing
rows of a file into the order of the ids takes, in which the ids are held; what merging and the
like take; and what a `Dataset` takes. What a whole extraction takes: `benchmarks/growth.py`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from spptransfer.cache import FeatureCache
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.layout import blocks_of, row_runs
from spptransfer.cache.merge import merge
from spptransfer.cache.rows import OK, Chunk, Rows
from spptransfer.cache.verify import verify
from spptransfer.cache.workspace import Workspace
from spptransfer.cache.writing import write_cache
from spptransfer.datasets import Dataset
from spptransfer.spec import FeatureSpec

CHANNELS = 256
REPEATS = 7
ORDERS = {"backwards": -1, "scattered": 618_033}
TASKS = (
    "imports alone",
    *(f"finish, {order}" for order in ORDERS),
    "merge",
    "verify",
    "read in blocks",
    "Dataset of the ids",
)


class NumberedIds(Sequence):
    """Ids that take no memory; they go through all numbers by so many at a time."""

    def __init__(self, count: int, prefix: str = "", step: int = 1) -> None:
        self._count, self._prefix, self._step = count, prefix, step

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key):
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(self._count))]
        if not -self._count <= key < self._count:
            raise IndexError(key)
        return self._name(key * self._step % self._count)

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:08d}.jpg"


def make_spec(storage: str = "float32", levels: tuple[int, ...] = (6,)) -> FeatureSpec:
    return FeatureSpec(
        backbone="alexnet", weights_sha256="00", layer="spp", levels=levels, storage=storage
    )


def make_chunks(ids: Sequence[str], spec: FeatureSpec, channels: int) -> Iterator[Chunk]:
    """Random rows, half of the numbers zero as behind a ReLU."""
    generator = np.random.default_rng(0)
    (block,) = blocks_of(spec, channels)
    for run in row_runs(len(ids), 4 * block.width + 256):
        rows = Rows.empty(ids[run])
        rows.status[:] = OK
        rows.digest[:] = b"0" * 64
        values = generator.standard_normal((len(rows), block.width), dtype=np.float32)
        yield Chunk(rows, {block: np.maximum(values, 0).astype(spec.storage)})


def make_cache(path: Path, count: int, spec: FeatureSpec, channels: int, prefix: str = "") -> None:
    ids = NumberedIds(count, prefix)
    write_cache(
        path,
        spec=spec,
        channels=channels,
        dataset="benchmark",
        count=count,
        id_width=encoded_width(ids),
        chunks=make_chunks(ids, spec, channels),
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
    if task.startswith("finish"):
        ids = NumberedIds(count, step=ORDERS[task.removeprefix("finish, ")])
        spec = make_spec(levels=(1,))
        with Workspace(
            folder / "a.h5", spec=spec, channels=4, dataset="benchmark", ids=ids
        ) as workspace:
            workspace.finish(None)
    elif task == "merge":
        merge(folder / "c.h5", [folder / "a.h5", folder / "b.h5"])
    elif task == "verify":
        assert verify(folder / "a.h5") == []
    elif task == "read in blocks":
        for _ in FeatureCache.open(folder / "a.h5").iter_blocks():
            pass
    elif task == "Dataset of the ids":
        Dataset("benchmark", folder, NumberedIds(count), (), np.full(count, -1, np.int32))
    # Not getrusage's figure, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1e3)


def measure_apart(task: str, folder: Path, count: int) -> float:
    """Peak memory in MB of a process that does one thing."""
    command = [sys.executable, __file__, "--task", task, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def show_memory(what: str, few: float, many: float) -> None:
    print(f"{what:<44} {few:9.0f} MB {many:9.0f} MB {many - few:+9.0f} MB")


def compare_memory(folder: Path) -> None:
    print(
        f"\n{'peak memory, 4 numbers per row':<44} {'10,000':>12} {'1,000,000':>12} {'growth':>12}"
    )
    peaks: dict[str, list[float]] = {task: [] for task in TASKS}
    for count in (10_000, 1_000_000):
        make_cache(folder / "a.h5", count, make_spec(levels=(1,)), 4)
        for task in TASKS:
            if task == "merge":
                make_cache(folder / "b.h5", count, make_spec(levels=(1,)), 4, prefix="b")
            peaks[task].append(measure_apart(task, folder, count))
    for task, (few, many) in peaks.items():
        show_memory(task, few, many)


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
