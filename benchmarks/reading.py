"""Images per second from files to bytes: by threads, by processes, by a DataLoader.

    python benchmarks/reading.py photos/
    python benchmarks/reading.py photos/ --readers 1 --images 16 --rounds 1     # seconds

What feeds a GPU. Every contender runs in a process of its own, on the same files, at one scale:

threads      as `spptransfer.extraction.extract` reads by default
processes    as it reads many images for a GPU (`engine="processes"`)
pipes        the same where there is no memory to share
DataLoader   torch's, with as many workers, Pillow's decoder and resize, 8 images per batch

The clock runs from the first file's name to the last view in the process that asked; imports
and starting our processes come before, which is "started" (a DataLoader forks its workers within
the clock, in hundredths of a second). Ours looks at every header and takes an SHA-256 as well.
"here" is processor time per image of the process that asks, which bounds what any number of
processes can feed it; "peak" is the most memory of it, and what its children hold alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import extraction_peers as peers
from extraction import apart
from extraction_peers import PROCESSORS

CHUNK = 8
Read = Callable[[Sequence[Path]], int]  # bytes of all views
Contender = tuple[Read, Callable[[], int]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of .jpg files")
    parser.add_argument("--scale", type=int, default=224)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, PROCESSORS, 2 * PROCESSORS])
    parser.add_argument("--rounds", type=int, default=3, help="the median is shown")
    options = parser.parse_args()
    files = sorted(p for p in options.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    files = (files * (options.images // len(files) + 1))[: options.images]
    print(f"{len(files)} images at s = {options.scale}, {PROCESSORS} processors")
    print("\n| readers | | images/s | here | started | peak |\n|---|---|---|---|---|---|")
    for count in dict.fromkeys(options.readers):
        for name in CONTENDERS:
            runs = [
                apart(measure, name, count, options.scale, files) for _ in range(options.rounds)
            ]
            rate, here, started, peak = map(statistics.median, zip(*runs, strict=True))
            figures = f"{rate:,.0f} | {1e3 * here:.2f} ms | {started:.1f} s | {peak / 1e6:,.0f} MB"
            print(f"| {count} | {name} | {figures} |")


def measure(
    name: str, count: int, scale: int, files: Sequence[Path]
) -> tuple[float, float, float, int]:
    """Images per second, seconds of our processor per image, seconds to start, bytes of memory."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    with contextlib.ExitStack() as stack:
        read, memory = CONTENDERS[name](count, scale, stack)
        read(files[: CHUNK * count])
        started = time.perf_counter() - start
        start, used = time.perf_counter(), time.process_time()
        found = read(files)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        assert found >= len(files) * scale * scale * 3
        return len(files) / seconds, used / len(files), started, memory()


def by_threads(count: int, scale: int, stack: contextlib.ExitStack) -> Contender:
    from spptransfer.extraction.readers import ThreadReaders

    return reading(ThreadReaders(), count, scale, stack), peers.peak_bytes


def by_processes(count: int, scale: int, stack: contextlib.ExitStack) -> Contender:
    from spptransfer.extraction.readers import ProcessReaders

    readers = stack.enter_context(ProcessReaders(count))
    return reading(readers, count, scale, stack), lambda: peers.peak_bytes() + held_by_children()


def by_pipes(count: int, scale: int, stack: contextlib.ExitStack) -> Contender:
    from spptransfer.extraction import readers

    readers._new_slot = lambda size: None
    return by_processes(count, scale, stack)


def reading(readers, count: int, scale: int, stack: contextlib.ExitStack) -> Read:
    """Look at all files, then decode them, eight in a row."""
    from spptransfer.extraction.batches import Rendering
    from spptransfer.extraction.readers import Wanted

    pool = stack.enter_context(ThreadPoolExecutor(count))

    def read(files: Sequence[Path]) -> int:
        chunks = [files[at : at + CHUNK] for at in range(0, len(files), CHUNK)]

        def load(chunk: Sequence[Path]) -> int:
            wanted = [
                Wanted(path, seen.digest, [Rendering(scale, "full")], seen.data)
                for path, seen in zip(chunk, readers.look(chunk), strict=True)
            ]
            return sum(view.nbytes for image in readers.load(wanted) for view in image.views)

        return sum(pool.map(load, chunks))

    return read


def by_loader(count: int, scale: int, stack: contextlib.ExitStack) -> Contender:
    from torch.utils.data import DataLoader

    held = [0]

    def read(files: Sequence[Path]) -> int:
        views = Views(files, scale)
        # Torch's default on Linux, which a process that was itself spawned would not have.
        how = {"collate_fn": list, "multiprocessing_context": "fork"}
        loader = DataLoader(views, batch_size=CHUNK, num_workers=count, **how)
        found = 0
        for number, batch in enumerate(loader):
            found += sum(view.nbytes for view in batch)
            if number == len(loader) // 2:
                held[0] = held_by_children()
        return found

    return read, lambda: peers.peak_bytes() + held[0]


class Views:
    """A Dataset as everyone writes it."""

    def __init__(self, files: Sequence[Path], scale: int) -> None:
        self.files, self.scale = files, scale

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int):
        import torch

        return torch.from_numpy(peers.resized(self.files[number], self.scale))


def held_by_children() -> int:
    """Memory that processes started by this one hold alone."""
    held = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if peers.status_number(status, "PPid:") == os.getpid():
                rollup = status.with_name("smaps_rollup")
                keys = ("Private_Clean:", "Private_Dirty:")
                held += sum(1024 * peers.status_number(rollup, key) for key in keys)
    return held


CONTENDERS = {
    "threads": by_threads,
    "processes": by_processes,
    "pipes": by_pipes,
    "DataLoader": by_loader,
}


if __name__ == "__main__":
    main()
