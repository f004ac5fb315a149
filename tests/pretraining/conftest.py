"""A small training set, as a folder and in a ZIP file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_projects import draw_folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of class folders, images of several sizes."""
    return draw_folder(tmp_path_factory.mktemp("pretraining") / "photos", per_class=10)


@pytest.fixture(scope="session")
def zipped(photos: Path) -> Path:
    """The same as a ZIP file."""
    path = photos.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(photos.rglob("*.png")):
            archive.write(file, file.relative_to(photos.parent).as_posix())
    return path
