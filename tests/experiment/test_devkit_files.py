"""What a run leaves for the VOC devkit, evaluated as the devkit does from files alone."""

from __future__ import annotations

import numpy as np
import pytest
from small_projects import CLASSES, SECTIONS, draw_image, machine_in

from spptransfer.config import parse_pipeline
from spptransfer.experiment import prepare, run

PER_SPLIT = 12


@pytest.fixture
def tree(tmp_path):
    """A small VOC 2007: images of one class each, some of them difficult for another."""
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for first, split in enumerate(("train", "test")):
        ids = [f"{first * 100 + n:06d}" for n in range(PER_SPLIT)]
        for n, id in enumerate(ids):
            draw_image(main.parents[1] / "JPEGImages" / f"{id}.jpg", n % 3, int(id))
        for kind, name in enumerate(CLASSES):
            labels = [1 if n % 3 == kind else -int(drawn.random() < 0.8) for n in range(PER_SPLIT)]
            lines = [f"{id} {label:2d}\n" for id, label in zip(ids, labels, strict=True)]
            (main / f"{name}_{split}.txt").write_text("".join(lines))
    return tmp_path


def eleven_points(scores: dict[str, float], labels: dict[str, int]) -> float:
    """VOCevalcls.m: precision at recalls of 0, 0.1 and so on, without difficult images."""
    order = sorted(scores, key=lambda id: -scores[id])
    hits = np.array([labels[id] == 1 for id in order if labels[id] != 0])
    recall, precision = hits.cumsum() / hits.sum(), hits.cumsum() / np.arange(1, len(hits) + 1)
    return np.mean([precision[recall >= n / 10 - 1e-12].max(initial=0) for n in range(11)])


def read(path, kind):
    return {id: kind(value) for id, value in map(str.split, path.read_text().splitlines())}


@pytest.mark.parametrize("protocol", ["voc2007", "voc2007-vissl"])
def test_the_files_of_a_run_give_its_average_precisions(tree, protocol):
    values = {
        **SECTIONS,
        "dataset": {"name": "voc2007", "root": str(tree)},
        "protocol": {"name": protocol, "train": "train", "test": "test", "folds": 0},
    }
    done = run(prepare("small", parse_pipeline(values), machine_in(tree)), "spptransfer run")
    files = sorted((done.folder / "devkit").iterdir())
    assert [file.name for file in files] == [f"comp1_cls_test_{name}.txt" for name in CLASSES]
    main = tree / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    found = [
        eleven_points(read(file, float), read(main / f"{name}_test.txt", int))
        for name, file in zip(CLASSES, files, strict=True)
    ]
    value = done.results["metrics"]["mean average precision (11-point)"]["value"]
    assert value == pytest.approx(np.mean(found))
