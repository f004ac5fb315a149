"""Datasets of awkward images and a small backbone, for all tests of extraction."""

from __future__ import annotations

import functools
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from cache_files import make_spec
from image_files import encode, picture, rotated_by_exif
from PIL import Image

from spptransfer import backbones
from spptransfer.datasets import Dataset
from spptransfer.extraction import Destination, extract, extract_together

LAYER, CHANNELS = "fire4", 256
SPEC = make_spec(backbone="squeezenet1_1", layer=LAYER, scales=(48,), levels=(3,))


@functools.cache
def backbone():
    return backbones.load("squeezenet1_1", "random", layer=LAYER)


@functools.cache
def fully_connected():
    return backbones.load("alexnet", "random", layer="fc6")


def awkward_images() -> dict[str, bytes]:
    cmyk = encode(picture(60, 80, 4).convert("CMYK"), "JPEG")
    return {
        "plain.png": encode(picture(50, 70, 1)),
        "portrait.png": encode(picture(90, 40, 2)),
        "a point.png": encode(Image.new("RGB", (1, 1), (200, 30, 90))),
        "strip.png": encode(picture(3, 400, 3)),
        "post.png": encode(picture(400, 3, 3)),
        "grey.png": encode(picture(60, 60).convert("L")),
        "cmyk.jpg": cmyk,
        "alpha.png": encode(picture(44, 66).convert("RGBA")),
        "turned.png": rotated_by_exif(picture(50, 70, 1), 6),
        "named wrongly.jpg": encode(picture(50, 70, 5)),
        "animated.gif": encode(
            picture(40, 40), "GIF", save_all=True, append_images=[picture(40, 40, 7)]
        ),
        "ünï code\n.png": encode(picture(50, 70, 6)),
        "x" * 200 + ".png": encode(picture(70, 50, 8)),
    }


def broken_images() -> dict[str, bytes]:
    return {
        "empty.jpg": b"",
        "text.jpg": b"no image at all",
        "cut.png": encode(picture(50, 70))[:900],
        "huge.png": png_that_claims(60_000, 60_000),
    }


def png_that_claims(height: int, width: int) -> bytes:
    """A tiny file whose header announces an enormous image."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + b"\0\0\0\0IDAT"


def make_dataset(root: Path, files: dict[str, bytes], extra: tuple[str, ...] = ()) -> Dataset:
    root.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return open_folder(root, (*files, *extra))


def open_folder(root: Path, ids) -> Dataset:
    targets = np.arange(len(ids), dtype=np.int32) % 2
    return Dataset("folder", root, tuple(ids), ("ant", "bee"), targets)


def many_images(count: int) -> dict[str, bytes]:
    return {f"{i:04d}.png": encode(picture(40 + i % 3, 44 + i % 2, i)) for i in range(count)}


def run(dataset, path, spec=SPEC, **options):
    options = {"load_backbone": backbone, "channels": CHANNELS, "jobs": 2, "part_rows": 4} | options
    return extract(dataset, spec, path=path, **options)


def counts(report):
    """Added, changed, unchanged, removed and failed."""
    return report.added, report.changed, report.unchanged, report.removed, len(report.failures)


MINI = {"backbone": "spp-mini", "scales": (64,)}
SEVERAL = {
    "conv1": make_spec(**MINI, layer="conv1", levels=(3,)),
    "conv4": make_spec(**MINI, layer="conv4", levels=(4, 3), pooling="mean"),
    "spp": make_spec(**MINI, layer="spp", levels=(6,)),
    "crop": make_spec(**MINI, layer="conv5", levels=(8,), view="center_crop", storage="float16"),
    "larger": make_spec(**MINI | {"scales": (64, 72)}, layer="spp", levels=(2,)),
    "fc6": make_spec(**MINI, layer="fc6", levels=()),
    "fc7": make_spec(**MINI, layer="fc7", levels=()),
}


@functools.cache
def mini():
    layers = sorted({spec.layer for spec in SEVERAL.values()})
    return backbones.load("spp-mini", "embedded", layer=layers)


def channels_of(spec) -> int:
    return backbones.describe(spec.backbone).layer(spec.layer).channels


def run_together(dataset, folder, names=tuple(SEVERAL), **options):
    """Fill one cache per name in a folder from one pass; returns their reports by name."""
    folder.mkdir(exist_ok=True, parents=True)
    destinations = [
        Destination(folder / f"{name}.h5", SEVERAL[name], channels_of(SEVERAL[name]))
        for name in names
    ]
    options = {"load_backbone": mini, "jobs": 2, "part_rows": 4} | options
    done = extract_together(dataset, destinations, **options)
    return dict(zip(names, done, strict=True))


def run_alone(dataset, folder, name, **options):
    """Fill one of these caches by itself, with a backbone that computes its layer only."""
    folder.mkdir(exist_ok=True, parents=True)
    spec = SEVERAL[name]
    load = functools.partial(backbones.load, "spp-mini", "embedded", layer=spec.layer)
    options = {"load_backbone": load, "channels": channels_of(spec)} | options
    return run(dataset, folder / f"{name}.h5", spec, **options)


class StopAfter(threading.Event):
    """An event that is set once it has been asked a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def forbidden():
    """In place of a backbone where none may be loaded."""
    raise AssertionError("the network must not be loaded")
