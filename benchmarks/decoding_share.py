"""What share of AlexNet's extraction decoding, resizing and normalising have.

    python benchmarks/decoding_share.py photos/

Processor time of whole extractions with one thread into a new cache, on random weights: per image,
and the shares of reading files, `images.views` (decoding and resizing) and normalising in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer import backbones, images
from spptransfer.datasets import Dataset
from spptransfer.extraction import extract
from spptransfer.features import feature_spec
from spptransfer.runtimes.torch import TorchNetwork

SETTINGS = ((224, "float32"), (224, "bfloat16"), (392, "float32"))
STEPS = (
    (images, "read_bytes", "reading"),
    (images, "views", "decoding and resizing"),
    (TorchNetwork, "_normalize", "normalising"),
)
WARM_UP = 8


def count_time(owner: Any, function: str, step: str, spent: dict[str, float]) -> None:
    """Add the processor time of each call of a function to what its step has spent."""
    original = getattr(owner, function)

    def counted(*given: Any, **named: Any) -> Any:
        start = time.thread_time()
        try:
            return original(*given, **named)
        finally:
            spent[step] += time.thread_time() - start

    setattr(owner, function, counted)


def run(root: Path, ids: Sequence[str], scale: int, precision: str) -> float:
    """Extract and return the seconds of processor time that the whole of it took."""
    backbone = backbones.load("alexnet", "random:0")
    spec = feature_spec(backbone="alexnet", weights="random:0", scales=[scale], precision=precision)
    dataset = Dataset("folder", root, tuple(ids), (), np.full(len(ids), -1, np.int32))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = extract(
            dataset,
            spec,
            channels=backbone.info.layer("spp").channels,
            path=Path(folder) / "cache.h5",
            load_backbone=lambda: backbone,
            jobs=1,
        )
    assert not done.failures, done.failures
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of .jpg files")
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    paths = [p for p in options.photos.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")]
    ids = sorted(path.relative_to(options.photos).as_posix() for path in paths)
    ids = ids[:: max(1, len(ids) // options.images)][: options.images]
    spent = dict.fromkeys((step for _, _, step in STEPS), 0.0)
    for owner, function, step in STEPS:
        count_time(owner, function, step, spent)
    for scale, precision in SETTINGS:
        run(options.photos, ids[:WARM_UP], scale, precision)
        spent.update(dict.fromkeys(spent, 0.0))
        whole = run(options.photos, ids, scale, precision)
        print(f"s = {scale}, {precision}: {1e3 * whole / len(ids):.2f} ms per image")
        for step, seconds in spent.items():
            print(f"  {step:<22} {1e3 * seconds / len(ids):6.2f} ms {seconds / whole:7.1%}")


if __name__ == "__main__":
    main()
