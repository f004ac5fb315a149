"""Caltech-101: 101 object categories and a background one, 9,144 images in all."""

from __future__ import annotations

from pathlib import Path

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.folder import read_folder

FOLDER = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"


def find_caltech101(place: Path) -> Path | None:
    """Find the folder of categories at or below a place, None where there is none."""
    for above in (".", "caltech101", "caltech-101"):
        if (place / above / FOLDER).is_dir():
            return place / above / FOLDER
    # A renamed copy is told from any other folder by the category no other dataset has.
    is_itself = place.name == FOLDER or (place / BACKGROUND).is_dir()
    return place if place.is_dir() and is_itself else None


def read_caltech101(categories: Path) -> Dataset:
    """Read Caltech-101 from its folder of categories, the background one among them.

    Only files with an image's suffix count: the official archive also holds a file
    ``BACKGROUND_Google/tmp`` that is none. Ids are such as ``accordion/image_0001.jpg``.
    """
    return read_folder(categories, name="caltech101")
