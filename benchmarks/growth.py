"""Time and memory of an extraction against the number of images.

    python benchmarks/growth.py [--rows 10000 1000000] [--images 1000 50000]
    python benchmarks/growth.py --tasks start merge --backbone alexnet --weights alexnet.pth

Every line is a process of its own with the real engine, a real network (spp-mini, random
weights, scale 16, level 1: 192 numbers per image) and the settings that users get. Memory is the
most that the process held at any time, PyTorch included. The load of the machine stands beside
each line, for other work makes the times longer.

start     From nothing to one image: importing the package, `spptransfer --help`, imports and
          weights, and a whole `spptransfer extract` of one image at scale 224. The median of
          five processes each, and that of the processor time that they took, which other work
          lengthens less. Python's own start counts for the two commands only.

rows      A table that lists so many images, labelled: hard links to 400 small files, so that
          each has a path, a row and a place in a part of its own. "start-up" ends when the first
          part could be computed: the table was read, each image looked for, the cache compared.
resumed   The same, after a kill that left all parts but the first one. "start-up" is the time
          until that part could be computed, the rest brings all parts into one file.
images    A folder of so many different small files.
merge     Two caches of so many rows in all, 9,216 numbers each (AlexNet's at one scale), brought
          into one; their files were just written, so that they are read from memory.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ORIGINALS = 400
PER_FOLDER = 1000
SCALE, CHANNELS = 16, 192
MERGED_CHANNELS = 256
PART_ROWS = 128
REPEATS = 5
TASKS = ("start", "rows", "resumed", "images", "merge")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 50_000])
    parser.add_argument("--merged", type=int, nargs="*", default=[10_000, 40_000])
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--backbone", default="alexnet", help="of the start")
    parser.add_argument("--weights", default="random:0", help="of the start")
    parser.add_argument("--place", type=Path, help="a folder on a disk with room; else a temporary")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--merge", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run or given.merge:
        print(json.dumps(run_extraction(given.run) if given.run else run_merge(given.merge)))
        return
    for task in given.tasks:
        if task == "start":
            show_start(given)
        elif task == "merge":
            show_merges(given)
        else:
            show_extractions(task, given)


def show_extractions(task: str, given: argparse.Namespace) -> None:
    show_title(task)
    for count in given.images if task == "images" else given.rows:
        with tempfile.TemporaryDirectory(dir=given.place) as folder:
            place = Path(folder)
            draw_images(place, count) if task == "images" else link_images(place, count)
            if task == "resumed":
                leave_parts(place)
            show_line(count, measure("--run", place))


def show_title(task: str) -> None:
    print(
        f"\n{task:<9}{'images':>10}{'start-up':>12}{'in all':>12}{'images/s':>11}"
        f"{'peak memory':>14}{'load':>7}",
        flush=True,
    )


def show_line(count: int, found: dict[str, float]) -> None:
    print(
        f"{'':<9}{count:>10,}{found['start']:>10.1f} s{found['seconds']:>10.1f} s"
        f"{count / (found['seconds'] - found['start']):>11.0f}{found['peak']:>11.0f} MB"
        f"{os.getloadavg()[0]:>7.1f}",
        flush=True,
    )


def measure(what: str, place: Path) -> dict[str, float]:
    """Extract or merge what lies at a place in a process of its own."""
    command = [sys.executable, __file__, what, str(place)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run_extraction(place: Path) -> dict[str, float]:
    """Seconds to the first part and in all, and this process's peak memory in MB."""
    from spptransfer.backbones import BackboneRef
    from spptransfer.extraction import extract

    for module in ("extraction.extractor", "features"):  # their imports take seconds
        importlib.import_module(f"spptransfer.{module}")
    begin, started = time.perf_counter(), []

    class Timed(BackboneRef):
        def load(self, layers):
            started.append(time.perf_counter() - begin)
            return super().load(layers)

    backbone = Timed("spp-mini", "random")
    (done,) = extract(open_images(place), [make_spec()], [place / "features.h5"], backbone)
    assert not done.failures
    seconds = time.perf_counter() - begin
    return {"start": started[0], "seconds": seconds, "peak": peak_memory()}


def peak_memory() -> float:
    """Most memory in MB that this process ever held."""
    # Not getrusage's figure, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def open_images(place: Path):
    from spptransfer.datasets import open_dataset

    table = place / "images.csv"
    if table.exists():
        return open_dataset("csv", table)
    return open_dataset("folder", place / "images")


def make_spec():
    from spptransfer.backbones import BackboneRef
    from spptransfer.specify import feature_spec

    return feature_spec(BackboneRef("spp-mini", "random"), scales=[SCALE], levels=[1])


def draw_images(place: Path, count: int) -> None:
    """Small photographs of nothing, of a few sizes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = place / "images" / f"{number // PER_FOLDER:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = generator.integers(0, 256, (20, 22 + number % 4, 3), dtype=np.uint8)
        Image.fromarray(samples).save(path)


def link_images(place: Path, count: int) -> None:
    """So many names for a few images, and a table that lists them."""
    draw_images(place / "originals", ORIGINALS)
    originals = sorted((place / "originals").rglob("*.jpg"))
    with open(place / "images.csv", "w") as table:
        table.write("path,label\n")
        for start in range(0, count, PER_FOLDER):
            folder = place / f"{start // PER_FOLDER:04d}"
            folder.mkdir()
            for number in range(start, min(start + PER_FOLDER, count)):
                os.link(originals[number % ORIGINALS], folder / f"{number:07d}.jpg")
                table.write(f"{folder.name}/{number:07d}.jpg,class {number % 100:02d}\n")


def leave_parts(place: Path) -> None:
    """All rows of an extraction but those of the first part, as they are found after a kill."""
    from spptransfer.cache import Labels
    from spptransfer.cache.layout import blocks_of
    from spptransfer.cache.rows import OK, RowTable
    from spptransfer.cache.writer import CacheWriter

    dataset, spec = open_images(place), make_spec()
    (block,) = blocks_of(spec, {"spp": CHANNELS})
    generator = np.random.default_rng(0)
    with CacheWriter(
        place / "features.h5",
        spec=spec,
        channels={"spp": CHANNELS},
        dataset=dataset.name,
        ids=dataset.ids,
        labels=Labels(dataset.classes, dataset.targets),
    ) as writer:
        for start in range(PART_ROWS, len(dataset), PART_ROWS):
            ids = list(dataset.ids[start : start + PART_ROWS])
            rows = RowTable.empty(ids)
            stats = [os.stat(path) for path in map(dataset.path, ids)]
            rows.stamp[:] = [(at.st_size, at.st_mtime_ns, at.st_ctime_ns) for at in stats]
            rows.status[:], rows.height[:], rows.width[:] = OK, 20, 22
            features = {block: generator.random((len(ids), block.width), np.float32)}
            positions = np.arange(start, start + len(ids))
            writer.put(positions, rows, features, "made up")


def show_start(given: argparse.Namespace) -> None:
    """Print how long it takes until there is something."""
    clocks = "time.perf_counter(), time.process_time()"
    timed = f"import time; a, b = {clocks}; {{}}; c, d = {clocks}; print(c - a, d - b)"
    load = f"backbones.load({given.backbone!r}, {given.weights!r})"
    engine = "import spptransfer.features, spptransfer.extraction.extractor"
    within = [sys.executable, "-c"]
    module = [sys.executable, "-m", "spptransfer"]
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        place = Path(folder)
        tasks = {
            "import spptransfer": [*within, timed.format("import spptransfer")],
            "spptransfer --help": [*module, "--help"],
            "imports and weights": [
                *within,
                timed.format(f"{engine}; from spptransfer import backbones; {load}"),
            ],
            "extract one image": [*module, "extract", one_image(place, given), "--quiet"],
        }
        print(f"\nstart     {given.backbone:<22}{'seconds':>10}{'processor time':>16}{'load':>8}")
        for name, command in tasks.items():
            times = [start_once(command, place / f"cache-{i}") for i in range(REPEATS)]
            seconds, work = (statistics.median(column) for column in zip(*times, strict=True))
            load_now = os.getloadavg()[0]
            print(f"{'':<9} {name:<22}{seconds:>8.2f} s{work:>14.2f} s{load_now:>8.1f}", flush=True)


def start_once(command: list[str], cache: Path) -> tuple[float, float]:
    """Seconds that a process takes, and its processor time."""
    if "extract" in command:
        command = [*command, "--cache-dir", str(cache)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (seconds, work) if "-m" in command else tuple(map(float, done.stdout.split()))


def one_image(place: Path, given: argparse.Namespace) -> str:
    """An image, a table that lists it, and a pipeline file."""
    path = place / "photo.jpg"
    samples = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    Image.fromarray(samples).save(path)
    (place / "images.csv").write_text("path,label\nphoto.jpg,thing\n")
    weights = Path(given.weights).resolve() if Path(given.weights).exists() else given.weights
    features = {"backbone": given.backbone, "weights": str(weights), "scales": [224]}
    dataset = {"name": "csv", "root": str(place / "images.csv")}
    pipeline = {"dataset": dataset, "features": features, "protocol": {"name": "csv"}}
    (place / "pipeline.yaml").write_text(json.dumps(pipeline))  # JSON is YAML
    return str(place / "pipeline.yaml")


def show_merges(given: argparse.Namespace) -> None:
    """Print how fast caches become one."""
    print(f"\n{'merge':<9}{'rows':>10}{'in all':>10}{'rows/s':>10}{'MB/s':>8}{'peak memory':>14}")
    for count in given.merged:
        with tempfile.TemporaryDirectory(dir=given.place) as folder:
            found = measure("--merge", write_caches(Path(folder), count))
        rate = found["bytes"] / found["seconds"] / 1e6
        print(
            f"{'':<9}{count:>10,}{found['seconds']:>8.1f} s{count / found['seconds']:>10.0f}"
            f"{rate:>8.0f}{found['peak']:>11.0f} MB{os.getloadavg()[0]:>7.1f}",
            flush=True,
        )


def write_caches(place: Path, count: int) -> Path:
    """Two caches of half of the rows each."""
    from cache_io import make_cache, make_spec

    for name in ("a", "b"):
        make_cache(place / f"{name}.h5", count // 2, make_spec(), MERGED_CHANNELS, prefix=name)
    return place


def run_merge(place: Path) -> dict[str, float]:
    """Seconds, bytes of the merged file, and this process's peak memory in MB."""
    from spptransfer.cache.writer import merge

    start = time.perf_counter()
    merge(place / "c.h5", [place / "a.h5", place / "b.h5"])
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "bytes": (place / "c.h5").stat().st_size,
        "peak": peak_memory(),
    }


if __name__ == "__main__":
    main()
