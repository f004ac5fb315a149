from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spptransfer.datasets import open_dataset
from spptransfer.datasets.caltech101 import BACKGROUND, FOLDER, find_caltech101, read_caltech101


def make_caltech101(root: Path, n_categories: int = 101, n_images: int = 2) -> Path:
    """Empty files in the layout of the official archive, the stray file `tmp` included."""
    for name in (BACKGROUND, *(f"category_{k:03d}" for k in range(n_categories))):
        folder = root / FOLDER / name
        folder.mkdir(parents=True)
        for number in range(1, n_images + 1):
            (folder / f"image_{number:04d}.jpg").touch()
    (root / FOLDER / BACKGROUND / "tmp").touch()
    return root / FOLDER


@pytest.mark.parametrize("above", [".", "caltech101", "caltech-101"])
def test_it_is_found_from_the_folder_around_it(tmp_path, above):
    categories = make_caltech101(tmp_path / above, n_categories=1)
    assert find_caltech101(tmp_path).samefile(categories)
    assert find_caltech101(categories) == categories


def test_a_renamed_folder_of_categories_is_recognised(tmp_path):
    renamed = make_caltech101(tmp_path, n_categories=1).rename(tmp_path / "images")
    assert find_caltech101(renamed) == renamed
    assert find_caltech101(tmp_path) is None


def test_the_file_that_is_no_image_does_not_count(tmp_path):
    dataset = read_caltech101(make_caltech101(tmp_path))
    assert len(dataset) == 204
    assert len(dataset.classes) == 102
    assert f"{BACKGROUND}/image_0001.jpg" in dataset.ids
    assert not any(id.endswith("tmp") for id in dataset.ids)


def test_the_complete_archive_has_9144_images_in_102_categories(caltech101_root):
    dataset = open_dataset("caltech101", data_root=caltech101_root)
    assert len(dataset) == 9144
    assert len(dataset.classes) == 102
    sizes = np.bincount(dataset.targets)
    assert dict(zip(dataset.classes, sizes, strict=True))["airplanes"] == 800
    assert sizes.min() == 31
    assert dataset.path("accordion/image_0001.jpg").is_file()


def test_every_way_to_name_the_place_gives_the_same_ids(caltech101_root):
    ids = open_dataset("caltech101", data_root=caltech101_root).ids
    assert open_dataset("caltech101", caltech101_root).ids == ids
    assert open_dataset("caltech101", caltech101_root / FOLDER).ids == ids
    assert open_dataset("caltech101", data_root=caltech101_root.parent).ids == ids
