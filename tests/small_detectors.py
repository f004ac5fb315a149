"""A few drawn scenes and a pipeline that trains a detector on them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spptransfer.config import parse_pipeline
from spptransfer.datasets.generated import generate_scenes
from spptransfer.experiment import Experiment, prepare

SECTIONS: dict[str, dict[str, Any]] = {
    "features": {"backbone": "spp-mini", "levels": [3, 2, 1], "scales": [128]},
    "classifier": {"normalize": ["l2"], "C": [1.0, 10.0]},
    "detection": {"proposals": "grid", "max_windows": 150},
    "protocol": {"name": "detection", "test": "val", "folds": 2},
}


def draw_scenes(root: Path, train: int = 14, val: int = 5) -> Path:
    generate_scenes(root, train=train, val=val)
    return root


def detection_values(root: Path, **sections: dict[str, Any] | None) -> dict[str, Any]:
    """A pipeline as a mapping; `sections` change single values of its sections, or remove one."""
    base = {"dataset": {"name": "coco", "root": str(root)}, **SECTIONS}
    changed = {name: {**base[name], **(sections.get(name) or {})} for name in base}
    return {name: one for name, one in changed.items() if sections.get(name, {}) is not None}


def detection_experiment(root: Path, machine: Any, **sections: dict[str, Any]) -> Experiment:
    return prepare("scenes", parse_pipeline(detection_values(root, **sections)), machine)


def write_detection_pipeline(path: Path, root: Path, **sections: dict[str, Any] | None) -> Path:
    path.write_text(yaml.safe_dump(detection_values(root, **sections)))
    return path
