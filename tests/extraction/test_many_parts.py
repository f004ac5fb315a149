from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, picture

from spptransfer import backbones
from spptransfer.cache import FeatureCache
from spptransfer.datasets import open_dataset
from spptransfer.extraction import extract
from spptransfer.specify import feature_spec


@pytest.mark.parametrize("part_rows", [1, 7])
def test_more_parts_than_are_kept_open_become_one_file(tmp_path, part_rows):
    for number in range(60):
        name = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(encode(picture(20 + number % 3, 24, seed=number)))
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no image")
    spec = feature_spec(backbone="squeezenet1_1", weights="random", scales=[32], levels=[1])
    result = extract(
        open_dataset("folder", tmp_path / "images"),
        spec,
        channels=512,
        path=tmp_path / "features.h5",
        load_backbone=partial(backbones.load, "squeezenet1_1", "random"),
        part_rows=part_rows,
    )
    assert list(result.failures) == ["a/broken.png"]
    cache = FeatureCache.open(tmp_path / "features.h5")
    assert len(cache) == 60
    assert np.isfinite(cache.matrix()).all()


def test_worker_processes_follow_their_caller_into_another_folder(tmp_path, monkeypatch):
    spec = feature_spec(backbone="squeezenet1_1", weights="random", scales=[32], levels=[1])
    for place in ("first", "second"):
        for number in range(4):
            image = tmp_path / place / "images" / "ab"[number % 2] / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(encode(picture(20, 24, seed=number)))
        monkeypatch.chdir(tmp_path / place)
        extract(
            open_dataset("folder", "images"),
            spec,
            channels=512,
            path=Path("features.h5"),
            load_backbone=partial(backbones.load, "squeezenet1_1", "random"),
            jobs=2,
            engine="processes",
            part_rows=2,
        )
        assert len(FeatureCache.open(tmp_path / place / "features.h5")) == 4
