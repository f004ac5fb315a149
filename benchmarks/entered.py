"""How many files and functions of the package the smallest run enters.

    python benchmarks/entered.py [--list]

The run: 12 small images that this script draws, the embedded network, two values of C, by the
command. A file counts once anything in it was executed, a function once it was called, in any
thread; the bodies of modules and classes are no functions, comprehensions are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
from PIL import Image

PIPELINE = """\
dataset:    {{name: folder, root: '{images}'}}
features:   {{backbone: spp-mini, weights: embedded, levels: [2, 1], scales: [64],
             precision: float32}}
classifier: {{C: [0.1, 1]}}
protocol:   {{name: folder, test_fraction: 0.5, splits: 1, seed: 0}}
"""
PACKAGE = str(Path(__file__).resolve().parent.parent / "spptransfer")

entered: set[CodeType] = set()


def note(frame: FrameType, event: str, _: object) -> None:
    if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
        entered.add(frame.f_code)


def draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / ("ant", "bee", "cat")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), np.uint8)).save(path)


def run(folder: Path) -> None:
    draw(folder / "images")
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(PIPELINE.format(images=(folder / "images").as_posix()))
    arguments = ["run", str(pipeline), "--cache-dir", str(folder / "cache"), "--device", "cpu"]
    arguments += ["--runs-dir", str(folder / "runs"), "--quiet"]
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        from spptransfer.cli import main

        status = main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    if status:
        raise SystemExit(f"the run ended with status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name them")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(PACKAGE).parent))
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
    functions: dict[str, set[str]] = defaultdict(set)
    for code in entered:
        called = functions[Path(code.co_filename).relative_to(PACKAGE).as_posix()]
        if code.co_flags & CO_OPTIMIZED:  # bodies of modules and classes lack it
            called.add(code.co_qualname)
    if options.list:
        for file, names in sorted(functions.items()):
            print(f"{file}: {', '.join(sorted(names))}")
    called_in = sum(map(bool, functions.values()))
    print(f"{len(functions)} files, {sum(map(len, functions.values()))} functions")
    print(f"(functions were called in {called_in} files; the others were imported only)")


if __name__ == "__main__":
    main()
