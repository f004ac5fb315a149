"""Caltech-101: 101 object categories and a background one, 9,144 images in all."""

from __future__ import annotations

from pathlib import Path

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.folder import read_folder

FOLDER = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"


def find_caltech101(place: Path) -> Path | None:
    """Find the folder of categories at or below a place.

    Parameters
    ----------
    place : Path
        The folder ``101_ObjectCategories`` itself, one that holds it, or one that holds
        ``caltech101/101_ObjectCategories``.

    Returns
    -------
    Path or None
        The folder of categories.
    """
    for above in (".", "caltech101", "caltech-101"):
        if (place / above / FOLDER).is_dir():
            return place / above / FOLDER
    # A renamed copy is told from any other folder by the category no other dataset has.
    is_itself = place.name == FOLDER or (place / BACKGROUND).is_dir()
    return place if place.is_dir() and is_itself else None


def read_caltech101(categories: Path) -> Dataset:
    """Read Caltech-101 from its folder of categories.

    Only files with an image's suffix count: the official archive also holds a file
    ``BACKGROUND_Google/tmp`` that is none.

    Parameters
    ----------
    categories : Path
        The folder ``101_ObjectCategories``.

    Returns
    -------
    Dataset
        With one label per image; the background category is a class like the others. Ids are
        relative to the folder of categories, such as ``accordion/image_0001.jpg``.

    Raises
    ------
    DatasetError
        If the folder holds no images.
    """
    return read_folder(categories, name="caltech101")
