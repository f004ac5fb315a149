"""Datasets of awkward images and small backbones, for all tests of extraction."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from image_files import encode, picture, png_that_claims, rotated_by_exif
from PIL import Image
from torch import nn

from spptransfer import backbones
from spptransfer.backbones import BackboneRef
from spptransfer.cache import FeatureCache
from spptransfer.datasets import Dataset
from spptransfer.extraction import extract
from spptransfer.runtimes import ComputeOptions
from spptransfer.specify import feature_spec

TORCH = ComputeOptions(device="cpu", runtime="torch", threads=2)


# ---- images ----


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


def many_images(count: int) -> dict[str, bytes]:
    return {f"{i:04d}.png": encode(picture(32 + i % 3, 35 + i % 2, i)) for i in range(count)}


def make_dataset(root: Path, files: dict[str, bytes], extra: tuple[str, ...] = ()) -> Dataset:
    root.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return open_folder(root, (*files, *extra))


def open_folder(root: Path, ids) -> Dataset:
    targets = np.arange(len(ids), dtype=np.int32) % 2
    return Dataset("folder", root, tuple(ids), ("ant", "bee"), targets)


# ---- backbones ----


class Net(nn.Module):
    """Two maps and a vector of the user's own; tells somebody what goes through it."""

    def __init__(self, observe: Callable[[torch.Tensor], object] = lambda images: None) -> None:
        super().__init__()
        self.observe = observe
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.low = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
            self.high = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
            self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.observe(images)
        return self.mean(self.high(self.low(images)))


def net(observe: Callable[[torch.Tensor], object] | None = None):
    """A backbone of it; what happens while it is wrapped or probed is not told."""
    ready = []

    def tell(images):
        if observe and ready and images.shape != (1, 3, 64, 64):
            observe(images)

    module = Net(tell)
    backbone = backbones.from_module(
        module, ["low", "high", "mean"], mean=[0.5] * 3, std=[0.25] * 3, name="net", is_local=True
    )
    ready.append(True)
    return backbone


NET = net()
SPEC = feature_spec(NET, layer="high", levels=[3], scales=[32])
SEVERAL = {
    "low": feature_spec(NET, layer="low", levels=[3], scales=[32]),
    "average": feature_spec(NET, layer="high", levels=[4, 3], scales=[32], pooling="mean"),
    "high": SPEC,
    "crop": feature_spec(
        NET, layer="high", levels=[8], scales=[32], view="center_crop", storage="float16"
    ),
    "larger": feature_spec(NET, layer="high", levels=[2], scales=[32, 40]),
    "vector": feature_spec(NET, layer="mean", levels=[], scales=[32]),
    "both": feature_spec(NET, layer=["mean", "high"], levels=[3], scales=[32, 40], pooling="mean"),
}
MINI = BackboneRef("spp-mini", "embedded")
MINI_SPEC = feature_spec(MINI, layer="conv3", levels=[2], scales=[32])


def altered(spec, **changes):
    return dataclasses.replace(spec, **changes)


def assert_near(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_alike(one: Path, other: Path):
    """Two files of one spec hold the same rows, failed ones included, up to rounding."""
    a, b = FeatureCache.open(one), FeatureCache.open(other)
    assert (a.fingerprint, a.dataset, a.ids) == (b.fingerprint, b.dataset, b.ids)
    assert (a.digests(), a.failures) == (b.digests(), b.failures)
    assert a.labels().tolist() == b.labels().tolist()
    tolerance = 1e-3 if a.spec.storage == "float16" else 1e-5
    for block in a.blocks:
        x, y = (cache.read(block, slice(None)).astype(np.float64) for cache in (a, b))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.nanmax(np.abs(y)))


# ---- runs ----


def run(dataset, path, spec=SPEC, backbone=NET, options=TORCH, **given):
    """Fill one cache, or several where there are several specs."""
    if isinstance(spec, list):
        return extract(dataset, spec, path, backbone, options, **given)
    return extract(dataset, [spec], [path], backbone, options, **given)[0]


def run_several(dataset, folder, names=tuple(SEVERAL), backbone=NET, options=TORCH, **given):
    """Fill one cache per name in a folder from one pass; returns what was done by name."""
    folder.mkdir(exist_ok=True, parents=True)
    specs, paths = [SEVERAL[name] for name in names], [folder / f"{name}.h5" for name in names]
    done = extract(dataset, specs, paths, backbone, options, **given)
    return dict(zip(names, done, strict=True))


def counts(done):
    """Added, changed, unchanged, removed and failed."""
    return done.added, done.changed, done.unchanged, done.removed, len(done.failures)


def forbidden(images):
    """For `net`, where nothing may be computed."""
    raise AssertionError("nothing is to be computed")


class StopAfter(threading.Event):
    """An event that is set once it has been asked a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0
