"""Pooling windows of a map beside cutting each out: time of one thread, and peak memory.

    python benchmarks/windows.py [--windows 2000] [--map 256 42 60] [--precision float32]

The windows are random with sides even on a logarithmic scale from 3 cells on, of which about a
third have a side under 6 cells, as those of selective search. All contenders run in turns; the
median of processor time counts, that of the system's part (mostly fresh memory) included. Peers
are `torch.nn.functional.adaptive_max_pool2d` window by window and, where torchvision has its
compiled part, `torchvision.ops.roi_pool`; ours must be equal to the former to the bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import adaptive_max_pool2d

from spptransfer.pyramid.windows import pool_windows

REPEATS = 5
Cells = np.ndarray
Contender = Callable[[], torch.Tensor]


def random_windows(count: int, height: int, width: int) -> Cells:
    random, sides = np.random.default_rng(0), np.array([height, width])
    lengths = np.exp(random.uniform(np.log(3), np.log(sides), (count, 2)))
    lengths = np.clip(np.ceil(lengths), 1, sides).astype(int)
    corners = (random.random((count, 2)) * (sides - lengths + 1)).astype(int)
    return np.concatenate([corners, corners + lengths], axis=1)


def one_by_one(map: torch.Tensor, windows: Cells, levels: list[int]) -> torch.Tensor:
    rows = []
    for top, left, bottom, right in windows.tolist():
        part = map[:, top:bottom, left:right]
        rows.append(torch.cat([adaptive_max_pool2d(part, level).ravel() for level in levels]))
    return torch.stack(rows)


def roi_pooled(map: torch.Tensor, windows: Cells, levels: list[int]) -> torch.Tensor:
    from torchvision.ops import roi_pool

    top, left, bottom, right = windows.T
    corners = np.stack([0 * top, left, top, right - 1, bottom - 1], axis=1)  # those included
    boxes = torch.from_numpy(corners).to(map.dtype)
    return torch.cat([roi_pool(map[None], boxes, level).flatten(1) for level in levels], dim=1)


def contenders(map: torch.Tensor, windows: Cells, levels: list[int]) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "ours": lambda: pool_windows(map, windows, levels),
        "adaptive_max_pool2d": lambda: one_by_one(map, windows, levels),
    }
    try:
        roi_pooled(map, windows[:1], levels)
        found["roi_pool"] = lambda: roi_pooled(map, windows, levels)
    except (ImportError, RuntimeError) as error:
        print(f"roi_pool is left out: {error}", file=sys.stderr)
    return found


def peak_bytes() -> int:
    """The most that this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--map", type=int, nargs=3, default=[256, 42, 60], help="C, h, w")
    parser.add_argument("--levels", type=int, nargs="+", default=[6, 3, 2, 1])
    parser.add_argument("--precision", choices=["float32", "float16"], default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    map = torch.randn(given.map, generator=torch.Generator().manual_seed(0)).relu()
    map = map.to(getattr(torch, given.precision))
    windows = random_windows(given.windows, *given.map[1:])
    different = len(np.unique(windows, axis=0))
    thin = ((windows[:, 2:] - windows[:, :2]) < 6).any(axis=1).mean()
    print(
        f"{len(windows):,} windows, {different:,} different, {thin:.0%} with a side under 6 cells"
    )

    before = peak_bytes()
    ours = pool_windows(map, windows, given.levels)
    if before:
        size = ours.numel() * ours.element_size()
        print(
            f"peak memory: {(peak_bytes() - before) / 1e6:.0f} MB, {size / 1e6:.0f} of them result"
        )
    assert ours.equal(one_by_one(map, windows, given.levels))

    every = contenders(map, windows, given.levels)
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(REPEATS):
        for name, run in every.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    for name, spent in times.items():
        seconds = statistics.median(spent)
        print(f"{name:<20} {seconds:6.3f} s  {1000 * seconds / len(windows):6.3f} ms per window")


if __name__ == "__main__":
    main()
