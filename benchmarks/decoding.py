"""Decoding, resizing and normalising as an extraction does them, beside the alternatives.

    pip install simplejpeg PyTurboJPEG opencv-python-headless imagecodecs  # the peers
    python benchmarks/decoding.py photos/
    python benchmarks/decoding.py photos/ --images 8 --rounds 3 --large 1     # seconds

Figures are milliseconds of processor time per image, of one thread, with freed memory kept as in an
extraction, and how many times as fast that is as the first line of the table. All contenders of a
table take turns in every round, and the median over the rounds counts. Files are read beforehand.
All start from the same bytes and end with an array of height x width x 3. Peers that cannot be
imported are left out with a line; PyTurboJPEG also needs the system's libturbojpeg. "fast" is
libjpeg's fast DCT with its fast upsampling. OpenCV's INTER_LINEAR does not antialias.

"off by" is the mean difference in grey levels, and the largest one. In the tables of large files it
is that of the view at the scale, from the one that Pillow's whole decoding gives. Those files are
made up, once from a photo enlarged (smooth: what a resize takes from it hardly depends on the
decoder) and once from many photos side by side (more detail than a camera delivers), and saved as
JPEG of quality 90; "memory" is what decoding one of the latter adds to a process's peak. What share
of an extraction all this has: `benchmarks/decoding_share.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoding_peers import (
    Contenders,
    decoders,
    normalizers,
    pillow,
    resizers,
    scaled_decoders,
    to_array,
    to_view,
    ways,
)
from PIL import Image, features

from spptransfer.images import decode, views
from spptransfer.memory import keep_freed_memory
from spptransfer.resizing import reduction_of

SCALES = (224, 392)
SHORTER = (2250, 3000)  # of the large files, which are 4:3
BATCH = 4  # views of 224 x 300 in a batch on a CPU


def milliseconds(contenders: Contenders, items: Sequence[Any], rounds: int) -> dict[str, float]:
    """Median over rounds of each contender's processor time per item."""
    for contender in contenders.values():
        contender(items[0])
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            start = time.thread_time()
            for item in items:
                contenders[name](item)
            times[name].append(1e3 * (time.thread_time() - start) / len(items))
    return {name: statistics.median(spent) for name, spent in times.items()}


def off_by(
    contender: Callable[[Any], Any], base: Callable[[Any], Any], items: Sequence[Any]
) -> str:
    means, largest = [], 0.0
    for item in items:
        ours, theirs = contender(item), base(item)
        if isinstance(ours, torch.Tensor) and ours.ndim == 4:
            ours = ours[0].permute(1, 2, 0).round().numpy()
        if ours.shape != theirs.shape:
            return "another size"
        gap = np.abs(np.asarray(ours, np.float32) - np.asarray(theirs, np.float32))
        means.append(gap.mean())
        largest = max(largest, float(gap.max()))
    return "the same bytes" if largest == 0 else f"{np.mean(means):.3f}, {largest:.3g}"


def show(title: str, times: dict[str, float], further: dict[str, str]) -> None:
    print(f"\n{title}")
    for name, spent in times.items():
        first = next(iter(times.values()))
        print(f"  {name:<36} {spent:8.2f} ms {first / spent:6.2f} x   {further.get(name, '')}")


def made_up(photos: Sequence[Path], shorter: int, number: int) -> dict[str, bytes]:
    """Content of two JPEG files of that size: one photo enlarged, and many side by side."""
    size = (shorter * 4 // 3, shorter)
    with Image.open(photos[number]) as photo:
        enlarged = photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    mosaic = Image.new("RGB", size)
    corners = [(x, y) for y in range(0, size[1], 250) for x in range(0, size[0], 333)]
    for place, corner in enumerate(corners):
        with Image.open(photos[(number + place) % len(photos)]) as photo:
            mosaic.paste(photo.convert("RGB").crop((0, 0, 333, 250)), corner)
    pictures = {"one photo enlarged": enlarged, "many photos side by side": mosaic}
    return {name: saved(picture, quality=90) for name, picture in pictures.items()}


def saved(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def kilobytes(contents: Sequence[bytes]) -> str:
    return f"{sum(map(len, contents)) / len(contents) / 1e3:.0f} kB each"


def compare_scaled(photos: Sequence[Path], options: argparse.Namespace) -> None:
    for shorter in SHORTER:
        files = [made_up(photos, shorter, number) for number in range(options.large)]
        for scale in SCALES:
            if reduction_of(shorter, scale) == 1:
                continue
            contenders = scaled_decoders(shorter, shorter * 4 // 3, scale)
            memory = {
                name: f"{peak(name, files[0], shorter, scale):4.0f} MB" for name in contenders
            }
            whole = (shorter, shorter * 4 // 3)
            arrays = {n: lambda data, c=c: to_array(c(data)) for n, c in contenders.items()}
            shown = {
                n: lambda data, c=c, size=whole, scale=scale: to_view(c(data), scale, size)
                for n, c in contenders.items()
            }
            for kind in files[0]:
                contents = [file[kind] for file in files]
                rounds = options.rounds // 2 + 1
                to_the_view = milliseconds(shown, contents, rounds)
                further = {
                    name: f"with resize {to_the_view[name]:7.2f} ms   memory {memory[name]}   "
                    f"off by {off_by(shown[name], shown['Pillow, whole'], contents)}"
                    for name in contenders
                }
                what = f"{whole[1]} x {whole[0]}, {kind}, {kilobytes(contents)}"
                title = f"decoding {what}, for s = {scale}"
                show(title, milliseconds(arrays, contents, rounds), further)


def peak(name: str, files: dict[str, bytes], shorter: int, scale: int) -> float:
    """MB that decoding one file adds to the peak of a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(files["many photos side by side"])
        file.flush()
        command = [sys.executable, __file__, file.name, "--task", name, str(shorter), str(scale)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_memory(path: Path, name: str, shorter: int, scale: int) -> None:
    data = path.read_bytes()
    contender = scaled_decoders(shorter, shorter * 4 // 3, scale)[name]
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory_in_mb("VmRSS:")
    to_array(contender(data))
    print(memory_in_mb("VmHWM:") - before)


def memory_in_mb(what: str) -> float:
    return int(Path("/proc/self/status").read_text().split(what)[1].split()[0]) / 1e3


def compare(photos: Sequence[Path], rounds: int) -> None:
    contents = [path.read_bytes() for path in photos]
    whole = decoders()
    further = {name: off_by(decoder, pillow, contents) for name, decoder in whole.items()}
    show(f"decoding, {kilobytes(contents)}", milliseconds(whole, contents, rounds), further)
    finer = [saved(decode(data), quality=95) for data in contents]
    further = {name: off_by(decoder, pillow, finer) for name, decoder in whole.items()}
    title = f"decoding the same photos saved at quality 95, {kilobytes(finer)}"
    show(title, milliseconds(whole, finer, rounds), further)
    decoded = [decode(data) for data in contents]
    for scale in SCALES:
        contenders = resizers(scale)
        base = contenders["Pillow, bilinear"]
        further = {name: off_by(resizer, base, decoded) for name, resizer in contenders.items()}
        show(f"resizing to s = {scale}", milliseconds(contenders, decoded, rounds), further)
    for scale in SCALES:
        shown = [views(data, [(scale, "full")])[0] for data in contents]
        shape = max((view.shape for view in shown), key=[v.shape for v in shown].count)
        alike = [view for view in shown if view.shape == shape]
        starts = range(0, len(alike) - BATCH + 1, BATCH)
        batches = [torch.from_numpy(np.stack(alike[at : at + BATCH])) for at in starts]
        contenders = normalizers()
        base = contenders["permute, float, div, sub, div"]
        times = milliseconds(contenders, batches, rounds)
        gaps = [
            max(float((c(b) - base(b)).abs().max()) for b in batches) for c in contenders.values()
        ]
        further = {n: f"largest difference {g:.1g}" for n, g in zip(contenders, gaps, strict=True)}
        title = f"normalising batches of {BATCH} x {shape[0]} x {shape[1]}, per image"
        show(title, {name: spent / BATCH for name, spent in times.items()}, further)
    for scale in SCALES:
        contenders = ways(scale, whole)
        base = next(iter(contenders.values()))
        further = {name: off_by(way, base, contents) for name, way in contenders.items()}
        title = f"from a file's bytes to the view, s = {scale}"
        show(title, milliseconds(contenders, contents, rounds), further)


def versions() -> str:
    found = [f"torch {torch.__version__}", f"pillow {version('pillow')}"]
    found.append(f"its libjpeg-turbo {features.version('libjpeg_turbo')}")
    for package in ("simplejpeg", "PyTurboJPEG", "opencv-python-headless", "imagecodecs"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of .jpg files")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--large", type=int, default=2, help="large files of each kind and size")
    parser.add_argument("--rounds", type=int, default=7, help="half for large files")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.task:
        name, shorter, scale = options.task
        measure_memory(options.photos, name, int(shorter), int(scale))
        return
    photos = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    photos = photos[:: max(1, len(photos) // options.images)][: options.images]
    print(f"{len(photos)} photos; {versions()}; load {os.getloadavg()[0]:.1f}")
    with keep_freed_memory(), torch.inference_mode():
        compare(photos, options.rounds)
        compare_scaled(photos, options)


if __name__ == "__main__":
    main()
