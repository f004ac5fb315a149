"""Time and memory of an extraction against the number of images.

    python benchmarks/growth.py [--rows 10000 1000000] [--images 1000 50000]

Every line is a process of its own with the real engine, a real network (spp-mini, random
weights, scale 16, level 1: 64 numbers per image) and the settings that users get. Memory is the
most that the process held at any time, PyTorch included. The load of the machine stands beside
each line, for other work makes the times longer.

rows      A table that lists so many images, labelled: hard links to 400 small files, so that
          each has a path, a row and a place in a part of its own. "start-up" ends when the first
          part could be computed: the table was read, each image looked for, the cache compared.
resumed   The same, after a kill that left all parts but the first one. "start-up" is the time
          until that part could be computed, the rest brings all parts into one file.
images    A folder of so many different small files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ORIGINALS = 400
PER_FOLDER = 1000
SCALE, CHANNELS = 16, 64
TASKS = ("rows", "resumed", "images")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--images", type=int, nargs="*", default=[1_000, 50_000])
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--place", type=Path, help="a folder on a disk with room; else a temporary")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(run_extraction(given.run)))
        return
    for task in given.tasks:
        show_title(task)
        for count in given.images if task == "images" else given.rows:
            with tempfile.TemporaryDirectory(dir=given.place) as folder:
                place = Path(folder)
                draw_images(place, count) if task == "images" else link_images(place, count)
                if task == "resumed":
                    leave_parts(place)
                show_line(count, measure(place))


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


def measure(place: Path) -> dict[str, float]:
    """Extract what lies at a place in a process of its own."""
    command = [sys.executable, __file__, "--run", str(place)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run_extraction(place: Path) -> dict[str, float]:
    """Seconds to the first part and in all, and this process's peak memory in MB."""
    from spptransfer import backbones
    from spptransfer.extraction import extract

    for module in ("extraction.runners", "features"):  # their imports take seconds
        importlib.import_module(f"spptransfer.{module}")
    begin, started = time.perf_counter(), []

    def load() -> backbones.Backbone:
        started.append(time.perf_counter() - begin)
        return backbones.load("spp-mini", "random")

    done = extract(
        open_images(place),
        make_spec(),
        channels=CHANNELS,
        path=place / "features.h5",
        load_backbone=load,
    )
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
    from spptransfer.features import feature_spec

    return feature_spec(backbone="spp-mini", weights="random", scales=[SCALE], levels=[1])


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
    """All parts of an extraction but the first one, as they are found after a kill."""
    from spptransfer.cache.layout import blocks_of
    from spptransfer.cache.rows import OK, Rows
    from spptransfer.cache.workspace import parts_folder, write_part
    from spptransfer.extraction.engine import PART_ROWS

    dataset, spec = open_images(place), make_spec()
    (block,) = blocks_of(spec, CHANNELS)
    folder = parts_folder(place / "features.h5")
    folder.mkdir()
    generator = np.random.default_rng(0)
    for start in range(PART_ROWS, len(dataset), PART_ROWS):
        ids = dataset.ids[start : start + PART_ROWS]
        rows = Rows.empty(ids)
        stamps = [os.stat(path) for path in map(dataset.path, ids)]
        rows.size[:] = [stamp.st_size for stamp in stamps]
        rows.modified[:] = [stamp.st_mtime_ns for stamp in stamps]
        rows.changed[:] = [stamp.st_ctime_ns for stamp in stamps]
        rows.status[:], rows.height[:], rows.width[:] = OK, 20, 22
        features = {block: generator.random((len(ids), block.width), np.float32)}
        number = start // PART_ROWS
        write_part(
            folder, number, rows, features, spec=spec, channels=CHANNELS, dataset=dataset.name
        )


if __name__ == "__main__":
    main()
