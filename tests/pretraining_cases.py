"""Pre-training pipelines that take seconds, shared by tests."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from spptransfer.cli import main
from spptransfer.pretraining.config import PretrainingPipeline, parse_pretraining

TIMES = ("seconds", "images_per_second")
SECTIONS = {
    "network": {"name": "zf5-64", "levels": [2, 1], "dropout": 0.2},
    "images": {"resize": 36, "size": 32, "small": 24, "sizes": "multi"},
    "training": {
        "epochs": 2,
        "batch": 8,
        "schedule": "cosine",
        "precision": "float32",
        "checkpoint_every": 1,
    },
}


def values(root: Path, **sections):
    """A pipeline as a mapping; `sections` change single values of its sections."""
    base = {"dataset": {"root": str(root), "val": None, "train": "", "holdout": 0.3}, **SECTIONS}
    changed = {name: {**base[name], **sections.pop(name, {})} for name in base}
    return {**changed, **sections}


def pipeline(root: Path, **sections) -> PretrainingPipeline:
    return parse_pretraining(values(root, **sections))


def run_command(said: dict[str, str], arguments: list[str]) -> None:
    """Run a command of the package as this process, told something by its environment."""
    os.environ.update(said)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def curve(folder: Path) -> list[dict]:
    """The metrics of a run without times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in lines
    ]


def same_tensors(one, other) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
