"""Images per second from files on the disk to features, beside the ways everyone writes it.

Every contender runs in a process of its own, on the same files, weights and scale, and ends with
the same pyramid features on the disk:

- eager loop: decode, resize, forward one image, torch's default threads
- eager, 1 thread: the same with one thread inside operators
- DataLoader: as many loading processes as processors, one image per batch, one compute thread
- spptransfer: `spptransfer.extraction.extract` into a cache

    python benchmarks/extraction.py --images photos/ --backbone alexnet --weights alexnet.pth
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

CONTENDERS = ("eager loop", "eager, 1 thread", "DataLoader", "spptransfer", "spptransfer bfloat16")


def main() -> None:
    options = parse()
    if options.contender:
        print(json.dumps(CONTEST[options.contender](options)))
        return
    results = {}
    for _ in range(options.repeat):
        for contender in CONTENDERS:
            command = [sys.executable, __file__, *sys.argv[1:], "--contender", contender]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.setdefault(contender, []).append(json.loads(done.stdout.splitlines()[-1]))
    show(options, results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--scale", type=int, default=224)
    parser.add_argument("--limit", type=int, default=400, help="number of images")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; the median is shown")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def show(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> None:
    processors = len(os.sched_getaffinity(0))
    print(
        f"{options.backbone}, s = {options.scale}, {len(files(options))} images, "
        f"{processors} processors, median of {options.repeat}"
    )
    print(f"{'':22}{'images/s':>10}{'over eager':>12}{'peak MB':>10}")
    rates = {
        name: sorted(r["rate"] for r in runs)[len(runs) // 2] for name, runs in results.items()
    }
    for name, runs in results.items():
        peak = max(run["peak"] for run in runs)
        print(f"{name:22}{rates[name]:10.1f}{rates[name] / rates['eager loop']:11.1f}x{peak:10.0f}")


def files(options: argparse.Namespace) -> list[Path]:
    """Images spread over the whole folder, so that their shapes are mixed."""
    found = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    return found[:: max(1, len(found) // options.limit)][: options.limit]


def measured(images: int, seconds: float) -> dict[str, float]:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"rate": images / seconds, "peak": (own + children) / 1024}


class Views:
    """A Dataset as everyone writes it: PIL, shorter side to s, normalised tensor."""

    def __init__(self, paths: list[Path], scale: int) -> None:
        self.paths, self.scale = paths, scale

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int):
        import numpy as np
        import torch
        from PIL import Image

        image = Image.open(self.paths[number]).convert("RGB")
        ratio = self.scale / min(image.size)
        size = [max(self.scale, round(side * ratio)) for side in image.size]
        pixels = torch.from_numpy(np.array(image.resize(size, Image.BILINEAR)))
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        return (pixels.permute(2, 0, 1).float() / 255 - mean) / std


def plain(options: argparse.Namespace, *, threads: int | None, loaders: int) -> dict[str, float]:
    """The field's loop: an unfolded eager network, adaptive max pooling, features to a .npy."""
    import numpy as np
    import torch

    from spptransfer import backbones
    from spptransfer.backbones.base import cut

    if threads:
        torch.set_num_threads(threads)
    network = backbones.network(options.backbone)
    backbone = backbones.load(options.backbone, options.weights)
    trunk, _ = cut(network.eval(), backbone.info.layer("spp"))
    views = Views(files(options), options.scale)
    loader = views if not loaders else torch.utils.data.DataLoader(views, num_workers=loaders)
    rows = []
    start = time.perf_counter()
    with torch.inference_mode():
        for view in loader:
            maps = trunk(view if view.dim() == 4 else view[None])
            pooled = [torch.nn.functional.adaptive_max_pool2d(maps, n) for n in (6, 3, 2, 1)]
            rows.append(torch.cat([p.flatten(1) for p in pooled], 1).numpy())
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "features.npy", np.concatenate(rows))
    return measured(len(views), time.perf_counter() - start)


def ours(options: argparse.Namespace, *, precision: str) -> dict[str, float]:
    import numpy as np

    from spptransfer import backbones
    from spptransfer.datasets import Dataset
    from spptransfer.extraction import extract
    from spptransfer.features import feature_spec

    paths = files(options)
    ids = tuple(str(path.relative_to(options.images)) for path in paths)
    unlabelled = np.full(len(ids), -1, np.int32)
    dataset = Dataset("folder", options.images, ids, (), unlabelled)
    spec = feature_spec(
        backbone=options.backbone,
        weights=options.weights,
        scales=[options.scale],
        precision=precision,
    )
    backbone = backbones.load(options.backbone, options.weights)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        extract(
            dataset,
            spec,
            channels=backbone.info.layer("spp").channels,
            path=Path(folder) / "features.h5",
            load_backbone=lambda: backbone,
        )
    return measured(len(paths), time.perf_counter() - start)


CONTEST = {
    "eager loop": partial(plain, threads=None, loaders=0),
    "eager, 1 thread": partial(plain, threads=1, loaders=0),
    "DataLoader": partial(plain, threads=1, loaders=len(os.sched_getaffinity(0))),
    "spptransfer": partial(ours, precision="float32"),
    "spptransfer bfloat16": partial(ours, precision="bfloat16"),
}

if __name__ == "__main__":
    main()
