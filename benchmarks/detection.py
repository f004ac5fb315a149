"""Time of the detector beside R-CNN's way: every window warped through the same network.

    python benchmarks/detection.py PHOTOS --weights FOLDER

For each setting, per image and in seconds of processor time: what a detector does with the windows
of one feature map, by stage, and what R-CNN's way costs, which warps each window to 224 x 224
pixels and computes the network on all of them, in batches, by the same runtime, in the same
precision, with as many threads. R-CNN's way is measured on a sample of the windows and multiplied.
Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from spptransfer import images
from spptransfer.backbones import BackboneRef
from spptransfer.backbones.dilation import dilate
from spptransfer.detection.features import WindowFeatures
from spptransfer.detection.methods import open_proposer
from spptransfer.detection.selection import select_detections
from spptransfer.detection.settings import DetectionSection
from spptransfer.extraction.maps import MapExtractor
from spptransfer.images import Rendering
from spptransfer.normalization import PyramidNormalizer
from spptransfer.runtimes import ComputeOptions
from spptransfer.runtimes.devices import limit_threads
from spptransfer.runtimes.runtime import open_runtime

# Backbone, layer, stride, scales; the weights' file where there is one.
SETTINGS = {
    "alexnet": ("alexnet", "conv5", 16, [688], "alexnet_trunk.pth"),
    "alexnet, 5 scales": ("alexnet", "conv5", 16, [480, 576, 688, 864, 1200], "alexnet_trunk.pth"),
    "mobilenet_v2": ("mobilenet_v2", "stage7", 16, [512], "mobilenet_v2_trunk.pth"),
}
# He et al., TPAMI 2015, table 10: seconds on a GPU, without proposals.
PAPER = {"SPP-net, 1 scale": 0.142, "SPP-net, 5 scales": 0.382, "R-CNN": 14.46}
CLASSES, LEVELS, SIDE, BATCH = 20, (6, 3, 2, 1), 224, 32


class Stages(defaultdict):
    """Seconds of processor time by stage."""

    def __init__(self) -> None:
        super().__init__(float)

    @contextmanager
    def time(self, name: str):
        begun = time.process_time()
        yield
        self[name] += time.process_time() - begun


def backbone_of(name: str, layer: str, folder: Path | None, file: str):
    weights = "random" if folder is None else str(folder / file)
    return BackboneRef(name, weights).load([layer])


def detector(setting, photos, windows, folder, method) -> dict[str, float]:
    name, layer, stride, scales, file = setting
    backbone = dilate(backbone_of(name, layer, folder, file), stride)
    features = WindowFeatures(backbone.info.channels_of([layer]), LEVELS)
    draw = np.random.default_rng(0)
    coef = draw.standard_normal((CLASSES, features.width), np.float32)
    normalizer, svms = PyramidNormalizer(["l2"]).fit(coef), (coef, np.zeros(CLASSES, np.float32))
    no_regression = coef[:0, None].repeat(4, axis=1), np.zeros((0, 4), np.float32)
    stages, proposer = Stages(), open_proposer(method)
    with MapExtractor(backbone, [layer], scales, options=ComputeOptions(threads=1)) as extractor:
        extractor.maps_of(photos[0])
        for photo in photos:
            with stages.time("proposals"):
                pixels = np.asarray(images.decode(images.read_bytes(photo)))
                boxes = proposer.propose(pixels)
            boxes = random_windows(pixels.shape, windows, draw)
            with stages.time("read and maps"):
                maps = extractor.maps_of(photo)
            with stages.time("pool and score"):
                found = features.score(maps, boxes, normalizer, svms, no_regression)
            with stages.time("select"):
                select_detections(boxes, *found, pixels.shape[1::-1], DetectionSection())
    return {name: seconds / len(photos) for name, seconds in stages.items()}


def rcnn(setting, photos, windows, folder, sample) -> dict[str, float]:
    name, layer, _, _, file = setting
    backbone = backbone_of(name, layer, folder, file)
    stages, draw = Stages(), np.random.default_rng(0)
    runtime = open_runtime(
        backbone, [layer], precision="float32", options=ComputeOptions(threads=1)
    )
    view = Rendering(SIDE, "warp", backbone.info.grid, backbone.info.longest)
    with runtime, runtime.session():
        runtime.maps(runtime.upload(np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)), [layer])
        for photo in photos:
            with stages.time("read"):
                pixels = np.asarray(images.decode(images.read_bytes(photo)))
            boxes = random_windows(pixels.shape, windows, draw)[:sample].round().astype(int)
            for start in range(0, len(boxes), BATCH):
                with stages.time("warp"):
                    crops = [
                        images.render(images.from_array(pixels[y0:y1, x0:x1]), *view)
                        for x0, y0, x1, y1 in boxes[start : start + BATCH]
                    ]
                with stages.time("maps"):
                    runtime.maps(runtime.upload(np.stack(crops)), [layer])
    scaled = {"read": 1.0, "warp": windows / sample, "maps": windows / sample}
    return {name: stages[name] * scaled[name] / len(photos) for name in stages}


def random_windows(shape, count: int, draw) -> np.ndarray:
    """Draw windows of at least 20 pixels, of all sizes and shapes."""
    sides = np.array(shape[1::-1])
    extent = 20 + (sides - 20) * draw.random((count, 2)) ** 2
    low = draw.random((count, 2)) * (sides - extent)
    return np.hstack([low, low + extent])


def measure(arguments) -> dict[str, object]:
    """Run one way of one setting in a process of its own, which has its own peak memory."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of JPEG images")
    parser.add_argument("--weights", type=Path, help="folder of weights; random without")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--windows", type=int, default=2000)
    parser.add_argument("--sample", type=int, default=64, help="windows that R-CNN's way computes")
    parser.add_argument("--proposals", default="selective_search")
    parser.add_argument("--way", choices=["detector", "rcnn"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    photos = sorted(given.photos.glob("*.jpg"))[: given.images]
    if given.way:
        limit_threads()
        torch.set_grad_enabled(False)
        setting = SETTINGS[given.settings[0]]
        last = given.proposals if given.way == "detector" else given.sample
        way = detector if given.way == "detector" else rcnn
        seconds = way(setting, photos, given.windows, given.weights, last)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    print(f"{given.images} images, {given.windows} windows each; processor seconds an image, MB")
    for name in given.settings:
        options = sys.argv[1:]
        ours = measure([*options, "--settings", name, "--way", "detector"])
        theirs = measure([*options, "--settings", name, "--way", "rcnn"])
        tell(name, ours, theirs)
    print("\nthe paper, seconds on a GPU without proposals:", PAPER)


def tell(name, ours, theirs) -> None:
    proposals = ours["seconds"].pop("proposals")
    one, other = sum(ours["seconds"].values()), sum(theirs["seconds"].values())
    print(f"\n{name}")
    for way, found in (("one map", ours), ("R-CNN's way", theirs)):
        stages = ", ".join(f"{stage} {spent:.3f}" for stage, spent in found["seconds"].items())
        total = sum(found["seconds"].values())
        print(f"  {way:12} {total:8.3f} s  {found['peak']:6.0f} MB  ({stages})")
    print(
        f"  ratio {other / one:.1f} without proposals; with their {proposals:.2f} s "
        f"{(other + proposals) / (one + proposals):.1f}"
    )


if __name__ == "__main__":
    main()
