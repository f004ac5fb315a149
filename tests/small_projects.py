"""Small folders of images and pipelines on them, shared by the tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cache_files import make_rows, open_writer
from PIL import Image

from spptransfer.config import Pipeline, parse_pipeline
from spptransfer.experiment import Experiment, Machine, prepare
from spptransfer.runtimes import ComputeOptions

CLASSES = ("bee", "cat", "dog")
PER_CLASS = 6
SIZES = ((60, 40), (40, 60), (50, 50))
SECTIONS = {
    "features": {"backbone": "spp-mini", "weights": "embedded", "levels": [3, 1], "scales": [64]},
    "classifier": {"C": [1.0]},
    "protocol": {"name": "folder", "test_fraction": 0.5, "folds": 0},
}


def draw_image(path: Path, kind: int, number: int, size: tuple[int, int] | None = None) -> None:
    """Stripes whose width and direction tell the class, with a colour that does not."""
    generator = np.random.default_rng([kind, number])
    height, width = size or SIZES[number % len(SIZES)]
    y, x = np.mgrid[0:height, 0:width]
    wave = np.sin((x if kind % 2 else y + x * (kind // 2)) / (1 + kind))
    colour = generator.uniform(60, 120, 3)
    samples = 128 + wave[:, :, None] * colour + generator.normal(0, 8, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(samples, 0, 255).astype(np.uint8)).save(path)


def draw_folder(root: Path, classes=CLASSES, per_class: int = PER_CLASS) -> Path:
    """A folder of class folders."""
    for kind, name in enumerate(classes):
        for number in range(per_class):
            draw_image(root / name / f"{number:03d}.png", kind, number)
    return root


def values(root: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A pipeline as a mapping; `sections` change single values of its sections."""
    base = {"dataset": {"name": "folder", "root": str(root)}, **SECTIONS}
    return {name: {**base[name], **sections.get(name, {})} for name in base}


def pipeline(root: Path, **sections: dict[str, Any]) -> Pipeline:
    return parse_pipeline(values(root, **sections))


def machine_in(work: Path, **given: Any) -> Machine:
    given = {"compute": ComputeOptions(device="cpu", threads=2), **given}
    return Machine(cache_dir=work / "cache", runs_dir=work / "runs", **given)


def experiment(root: Path, work: Path, **sections: dict[str, Any]) -> Experiment:
    return prepare("small", pipeline(root, **sections), machine_in(work))


def begin_cache(of: Experiment) -> None:
    """Leave the cache of an experiment as a kill after the first row does."""
    path, spec = of.cache
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = of.backbone.info.channels_of(spec.layers)
    rows, features = make_rows(list(of.dataset.ids[:1]), spec, channels)
    with open_writer(path, of.dataset.ids, spec, channels=channels) as writer:
        writer.begin()
        writer.put(np.array([0]), rows, features, "torch 2.0")


def write_pipeline(path: Path, root: Path, **sections: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values(root, **sections)))
    return path
