"""Images per second from JPEG files on the disk to features on the disk, beside the peers.

    pip install onnxruntime openvino onnx     # the peers, for this benchmark only
    python benchmarks/extraction.py photos/ --weights alexnet=alexnet.pth --json quiet.json
    python benchmarks/extraction.py photos/ --weights alexnet=alexnet.pth --busy --json busy.json
    python benchmarks/extraction.py --show quiet.json busy.json --markdown
    python benchmarks/extraction.py photos/ --images 4 --networks alexnet --scales 64   # seconds

Every contender runs in a process of its own, with the settings that it comes with (variables such
as OMP_NUM_THREADS are taken out of the environment), on the same files and the same float32
weights, and ends with the same 50-bin features of the last map in a file on the disk. The clock
runs from the first file's name to the closed file of features; imports, weights, compiling and
four images to warm up come before; what `extract` itself prepares, some tenths of a second, is on
the clock. Peers that cannot be imported are left out with a line.

ours               `spptransfer.extraction.extract` into a cache, float32, `auto`'s first choice
torch eager loop   decode, resize, forward one image, torch's default threads
torch DataLoader   the same from loading processes; the best of 1 and all compute threads
onnxruntime        dynamic shapes; the best of one caller with all threads, and one per processor
openvino           dynamic shapes, throughput hint, asynchronous requests, preprocessing inside
timm               for models of timm: crops in batches of 32 from a DataLoader; ours crops too
ours, torch / ours, onnxruntime / ours, openvino   as ours, with `runtime` set
ours bf16 / ours bf16, torch / ours bf16, openvino / openvino bf16   the same in bfloat16

GFLOP are counted exactly, for each image's own size (two for a multiplication with an addition);
"of GEMM" is their rate's share of a 4096 x 4096 x 4096 product's in the same precision on all
processors, measured at the start. "peak" is the most memory of the process, and what loading
processes hold alone. "error" is the relative l2 distance from our float32 features on images that
are at the scale already, so that everyone has the same pixels; "rows" that of all rows, each
contender having resized with its own means. `--busy` keeps a process beside them that computes on
one processor all the time. GEMM is measured before it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import extraction_models as models
import numpy as np
from extraction_peers import CONTENDERS, PROCESSORS, Job, measure
from extraction_tables import show_cell, show_markdown, title
from PIL import Image

from spptransfer.images import view_size

NETWORKS = ("alexnet", "resnet50", "vgg16", "mobilenet_v2")
SCALES = (224, 392)
CHECKS = 4
FEWEST = 12
# Seconds of one processor to decode and resize, for choosing how many images.
DECODING = 0.008
# Ends with the process that started it, however that ends.
BUSY = "import os; p = os.getppid()\nwhile os.getppid() == p: sum(range(1_000_000))"
Features = tuple[np.ndarray, np.ndarray]  # of the images to check, of all
THREAD_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_")


def main() -> None:
    options = parse()
    if options.show:
        parts = [json.loads(path.read_text()) for path in options.show]
        results = {**parts[0], "cells": [cell for part in parts for cell in part["cells"]]}
    else:
        for name in [name for name in os.environ if name.startswith(THREAD_VARIABLES)]:
            del os.environ[name]
        results = run(options)
    if options.markdown:
        show_markdown(results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, nargs="?", help="folder of .jpg files")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--scales", nargs="+", type=int, default=SCALES)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=tuple(CONTENDERS))
    parser.add_argument(
        "--weights", nargs="+", default=(), metavar="NETWORK=FILE", help="else random:0"
    )
    parser.add_argument("--images", type=int, help="per cell; by default what takes --seconds")
    parser.add_argument("--seconds", type=float, default=4, help="per cell of a fast contender")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median is shown")
    parser.add_argument("--busy", action="store_true", help="with another busy process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--show", type=Path, nargs="+", metavar="FILE", help="of --json; no runs")
    parser.add_argument("--markdown", action="store_true", help="end with tables in markdown")
    options = parser.parse_args()
    if not options.show and not options.photos:
        parser.error("name a folder of .jpg files, or --show FILE")
    return options


def apart(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function in a fresh process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every cell; the file of figures grows with each."""
    contenders = [name for name in options.contenders if is_there(name)]
    weights = dict.fromkeys(options.networks, "random:0")
    weights |= dict(pair.split("=", 1) for pair in options.weights)
    photos = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    gemm = apart(models.gemm_rates)
    results: dict[str, Any] = {
        "processors": PROCESSORS,
        "load before": os.getloadavg()[0],
        "gemm": gemm,
        "versions": versions(),
        "cells": [],
    }
    print(title(results), flush=True)
    with tempfile.TemporaryDirectory() as folder, beside(options.busy):
        for network in options.networks:
            model = Path(folder) / network.replace("/", "_")
            apart(models.export, network, weights[network], model, exported(contenders))
            for scale in options.scales:
                job, flops = plan(options, network, scale, photos, model, gemm["float32"])
                cell = compete(job, contenders, options.repeat)
                cell |= {"busy": options.busy, "gflop": flops / 1e9}
                results["cells"].append(cell)
                show_cell(cell, gemm)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1))
    return results


def is_there(name: str) -> bool:
    missing = [m for m in CONTENDERS[name].needs if importlib.util.find_spec(m) is None]
    if missing:
        print(f"left out: {name} (pip install {' '.join(missing)})")
    return not missing


def exported(contenders: Sequence[str]) -> list[str]:
    needed = {need for name in contenders for need in CONTENDERS[name].needs}
    return sorted(needed & {"onnx", "openvino"})


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in ("torch", "onnxruntime", "openvino", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextlib.contextmanager
def beside(wanted: bool) -> Iterator[None]:
    """Keep a process busy on one processor."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def plan(
    options: argparse.Namespace,
    network: str,
    scale: int,
    photos: Sequence[Path],
    model: Path,
    gemm: float,
) -> tuple[Job, float]:
    """Choose files, spread over the folder so that their shapes are mixed; operations per image."""
    typical = (scale, scale * 4 // 3)
    count = options.images
    if not count:
        gflop = apart(models.count_flops, network, [typical])[typical] / 1e9
        each = gflop / (0.7 * gemm) + DECODING / PROCESSORS
        count = max(FEWEST, round(options.seconds / each))
    files = tuple(photos[:: max(1, len(photos) // count)][:count])
    square = (scale, scale) if network.startswith("timm/") else None
    sizes = [square or view_of(path, scale) for path in files]
    flops = apart(models.count_flops, network, sizes)
    job = Job(network, scale, model, files, check_images(files, sizes, model))
    return job, sum(flops[size] for size in sizes) / len(files)


def view_of(path: Path, scale: int) -> tuple[int, int]:
    with open(path, "rb") as file:
        file.read()  # so that nobody meets a cold disk
    with Image.open(path) as image:
        return view_size(image.height, image.width, scale)


def check_images(
    files: Sequence[Path], sizes: Sequence[tuple[int, int]], model: Path
) -> tuple[Path, ...]:
    """Some photographs brought to the scale, without loss, of as many shapes as there are."""
    folder = model.with_name(f"{model.name}-check")
    folder.mkdir(exist_ok=True)
    pairs = list(zip(sizes, files, strict=True))
    chosen = [*dict(pairs).items(), *pairs][:CHECKS]
    written = []
    for number, ((height, width), path) in enumerate(chosen):
        written.append(folder / f"{height}-{number}.png")
        with Image.open(path) as image:
            image.convert("RGB").resize((width, height)).save(written[-1])
    return tuple(written)


def compete(job: Job, contenders: Sequence[str], rounds: int) -> dict[str, Any]:
    """Let all contenders extract in turn; who fails is left out with a line."""
    entries = []
    expected: Features | None = None
    for name in contenders:
        try:
            entry, features = take_turn(job, name, rounds)
        except Exception as error:
            print(f"failed: {name}: {type(error).__name__}: {error}", flush=True)
            continue
        expected = expected or features
        entry["error"] = distance(features[0], expected[0])
        entry["rows error"] = distance(features[1], expected[1])
        entries.append(entry)
    about = {"network": job.network, "scale": job.scale, "images": len(job.files)}
    return about | {"contenders": entries}


def take_turn(job: Job, name: str, rounds: int) -> tuple[dict[str, Any], Features]:
    """Measure a contender in all its settings; of the best one the median counts."""
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for setting in list(CONTENDERS[name].settings or [""]) * rounds:
            out = Path(folder) / f"out{sum(map(len, runs.values()))}"
            found = apart(measure, name, setting, job, out)
            features = read(out, len(job.checks), len(job.files))
            runs.setdefault(setting, []).append(found | {"load": os.getloadavg()[0]})
    medians = {setting: median(found) for setting, found in runs.items()}
    best = min(medians, key=lambda setting: medians[setting]["seconds"])
    entry = {"contender": name, "precision": CONTENDERS[name].precision, "setting": best}
    rate = len(job.files) / medians[best]["seconds"]
    return entry | medians[best] | {"rate": rate, "runs": runs}, features


def median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def read(out: Path, checks: int, rows: int) -> Features:
    """Features of the images to check, and of all, which are then removed."""
    found = []
    for what, count in (("check", checks), ("rows", rows)):
        found.append(np.load(out.with_name(f"{out.name}-{what}.npy")))
        if len(found[-1]) != count:
            raise ValueError(f"{len(found[-1])} rows for {count} images")
    for file in out.parent.glob(f"{out.name}-*"):
        file.unlink()
    return found[0], found[1]


def distance(features: np.ndarray, expected: np.ndarray) -> float:
    """Relative l2 distance, infinite for another shape."""
    if features.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(features - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
