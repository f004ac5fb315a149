"""Reading a cache beside plain h5py and numpy, and memory at few and at many rows.

    python benchmarks/cache_io.py [--rows 8000] [--memory]

Both sides of a line are timed in turns in one run, on a warm page cache; the median counts.
Memory is the most that a process of its own held at any time, imports included, on a system with
`/proc`. What a whole extraction takes: `benchmarks/growth.py`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from spptransfer.cache import FeatureCache
from spptransfer.cache.layout import blocks_of, row_runs
from spptransfer.cache.rows import OK, RowTable
from spptransfer.cache.verify import verify
from spptransfer.cache.writer import CacheWriter, merge
from spptransfer.ids import Ids
from spptransfer.spec import FeatureSpec

CHANNELS = 256
REPEATS = 7
ORDERS = {"in order": 1, "backwards": -1, "scattered": 618_031}


def make_spec(storage: str = "float32", levels: tuple[int, ...] = (6,)) -> FeatureSpec:
    return FeatureSpec(
        backbone="alexnet", weights_sha256="00", layers=("spp",), levels=levels, storage=storage
    )


def make_ids(count: int, prefix: str = "", step: int = 1) -> Ids:
    return Ids(f"{prefix}{number * step % count:08d}.jpg" for number in range(count))


def open_writer(path: Path, ids: Ids, spec: FeatureSpec, channels: int) -> CacheWriter:
    return CacheWriter(
        path, spec=spec, channels={"spp": channels}, dataset="benchmark", ids=ids, labels=None
    )


def make_cache(path: Path, count: int, spec: FeatureSpec, channels: int, prefix: str = "") -> None:
    """Write random rows, half of the numbers zero as behind a ReLU."""
    generator = np.random.default_rng(0)
    ids, (block,) = make_ids(count, prefix), blocks_of(spec, {"spp": channels})
    with open_writer(path, ids, spec, channels) as writer:
        for run in row_runs(count, 4 * block.width + 256):
            rows = RowTable.empty(list(ids[run]))
            rows.status[:] = OK
            rows.digest[:] = b"0" * 64
            values = generator.standard_normal((len(rows), block.width), dtype=np.float32)
            features = {block: np.maximum(values, 0).astype(spec.storage)}
            writer.put(np.arange(run.start, run.stop), rows, features, "benchmark 1")
        writer.finish()


def median_seconds(*actions: Callable[[], object]) -> list[float]:
    """Median time of each action, taken in turns."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(REPEATS):
        for action, spent in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def show(what: str, peer: str, ours: float, theirs: float) -> None:
    print(
        f"{what:<44} {1e3 * ours:9.1f} ms   {peer:<22} {1e3 * theirs:9.1f} ms   "
        f"ratio {theirs / ours:5.2f}"
    )


def compare_reading(folder: Path, count: int, storage: str) -> None:
    make_cache(folder / f"{storage}.h5", count, make_spec(storage), CHANNELS)
    cache = FeatureCache.open(folder / f"{storage}.h5")
    with h5py.File(folder / "plain.h5", "w") as file:
        file.create_dataset("features", data=cache.matrix(dtype=storage))
    np.save(folder / "plain.npy", cache.matrix(dtype=storage))

    def read_plain() -> np.ndarray:
        with h5py.File(folder / "plain.h5") as file:
            return file["features"][()]

    times = median_seconds(lambda: cache.matrix(dtype=storage), read_plain)
    show(f"{storage}: full matrix, {count} x {cache.blocks[0].width}", "plain h5py", *times)
    mapped, view = np.load(folder / "plain.npy", mmap_mode="r"), cache.view(dtype=storage)
    generator = np.random.default_rng(1)
    chosen = [np.sort(generator.choice(count, 256, replace=False)) for _ in range(20)]
    times = median_seconds(
        lambda: [view[rows] for rows in chosen],
        lambda: [np.array(mapped[rows]) for rows in chosen],
    )
    show(f"{storage}: 20 x 256 random rows", "numpy memmap", *times)


def update(folder: Path, count: int, order: str) -> None:
    """Bring the rows of a file into another order."""
    ids, spec = make_ids(count, step=ORDERS[order]), make_spec(levels=(1,))
    with open_writer(folder / "a.h5", ids, spec, 4) as writer:
        for _ in writer.known_rows():
            pass
        writer.finish()


def read_in_blocks(folder: Path, count: int) -> None:
    for _ in FeatureCache.open(folder / "a.h5").iter_blocks():
        pass


TASKS: dict[str, Callable[[Path, int], object]] = {
    "imports alone": lambda folder, count: None,
    "nothing to do": lambda folder, count: update(folder, count, "in order"),
    "write anew, backwards": lambda folder, count: update(folder, count, "backwards"),
    "write anew, scattered": lambda folder, count: update(folder, count, "scattered"),
    "find all ids": lambda folder, count: FeatureCache.open(folder / "a.h5").find(make_ids(count)),
    "read in blocks": read_in_blocks,
    "verify": lambda folder, count: verify(folder / "a.h5"),
    "merge": lambda folder, count: merge(folder / "c.h5", [folder / "a.h5", folder / "b.h5"]),
}


def measure_apart(task: str, folder: Path, count: int) -> float:
    """Peak memory in MB of a process that does one thing with narrow rows."""
    command = [sys.executable, __file__, "--task", task, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def compare_memory(folder: Path, counts: tuple[int, ...]) -> None:
    peaks: dict[str, list[float]] = {task: [] for task in TASKS}
    for count in counts:
        make_cache(folder / "a.h5", count, make_spec(levels=(1,)), 4)
        make_cache(folder / "b.h5", count, make_spec(levels=(1,)), 4, prefix="b")
        for task, found in peaks.items():
            found.append(measure_apart(task, folder, count))
        for name in ("a.h5", "b.h5", "c.h5"):
            (folder / name).unlink()
    print(f"\n{'peak memory, 4 numbers per row':<36}" + "".join(f"{n:>12,}" for n in counts))
    for task, found in peaks.items():
        print(f"{task:<36}" + "".join(f"{peak:>9.0f} MB" for peak in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--many", type=int, default=1_000_000, help="rows for that at the most")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        task, folder, count = given.task
        TASKS[task](Path(folder), int(count))
        # Not getrusage's figure, which a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1e3)
        return
    with tempfile.TemporaryDirectory() as folder:
        for storage in ("float32", "float16"):
            compare_reading(Path(folder), given.rows, storage)
        if given.memory:
            compare_memory(Path(folder), (10_000, given.many))


if __name__ == "__main__":
    main()
