"""Reading a cache beside plain h5py and numpy, and memory at few and at many rows.

    python benchmarks/cache_io.py [--rows 20000] [--memory]

Both sides of a line are timed in turns in one run, on a warm page cache; the median counts.
Memory is the most that a process of its own held at any time, imports included. Ids are made up
as they are asked for; what a `Dataset` that holds them takes has a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from spptransfer.cache import FeatureCache
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.layout import blocks_of, row_runs
from spptransfer.cache.merge import merge
from spptransfer.cache.rows import OK, Rows
from spptransfer.cache.verify import verify
from spptransfer.cache.workspace import Workspace
from spptransfer.cache.writing import write_cache
from spptransfer.datasets import Dataset
from spptransfer.spec import FeatureSpec

CHANNELS = 256
REPEATS = 7
TASKS = ("imports alone", "finish", "merge", "verify", "read in blocks", "Dataset of the ids")


class NumberedIds(Sequence):
    """Ids that take no memory; `step` -1 counts down."""

    def __init__(self, count: int, prefix: str = "", step: int = 1) -> None:
        self._numbers = range(count)[::step]
        self._prefix = prefix

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, key):
        if isinstance(key, slice):
            return [self._name(number) for number in self._numbers[key]]
        return self._name(self._numbers[key])

    def _name(self, number: int) -> str:
        return f"{self._prefix}{number:08d}.jpg"


def make_spec(storage: str = "float32", levels: tuple[int, ...] = (6,)) -> FeatureSpec:
    return FeatureSpec(
        backbone="alexnet", weights_sha256="00", layer="spp", levels=levels, storage=storage
    )


def make_chunks(
    ids: Sequence[str], spec: FeatureSpec, channels: int
) -> Iterator[tuple[Rows, dict]]:
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
    if task == "finish":
        ids = NumberedIds(count, step=-1)
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
        Dataset("benchmark", folder, tuple(NumberedIds(count)), (), np.full(count, -1, np.int32))
    elif task == "extract":
        extract_images(folder)
    # Not getrusage's figure, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1e3)


def extract_images(folder: Path) -> None:
    from spptransfer import backbones
    from spptransfer.datasets import open_dataset
    from spptransfer.extraction import extract
    from spptransfer.features import feature_spec

    spec = feature_spec(backbone="squeezenet1_1", weights="random", scales=[32], levels=[1])
    extract(
        open_dataset("folder", folder / "images"),
        spec,
        channels=512,
        path=folder / "extracted.h5",
        load_backbone=partial(backbones.load, "squeezenet1_1", "random"),
    )


def draw_images(folder: Path, count: int) -> None:
    """Small photographs of nothing, of a few sizes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / "images" / "ab"[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = generator.integers(0, 256, (36, 40 + number % 4, 3), dtype=np.uint8)
        Image.fromarray(samples).save(path)


def measure_apart(task: str, folder: Path, count: int) -> float:
    """Peak memory in MB of a process that does one thing."""
    command = [sys.executable, __file__, "--task", task, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def show_title(what: str, few: str, many: str) -> None:
    print(f"\n{what:<44} {few:>12} {many:>12} {'growth':>12}")


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
    show_title("peak memory, images", "1,000", "6,000")
    found = []
    for count in (1000, 6000):
        draw_images(folder / str(count), count)
        found.append(measure_apart("extract", folder / str(count), count))
    show_memory("extract, squeezenet1_1, scale 32", *found)


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
