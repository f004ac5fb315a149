"""Which datasets there are, where they are looked for, and how to get them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.caltech101 import find_caltech101, read_caltech101
from spptransfer.datasets.csv_file import find_csv, read_csv
from spptransfer.datasets.folder import read_folder
from spptransfer.datasets.generated import generate
from spptransfer.datasets.voc2007 import find_voc2007, read_voc2007
from spptransfer.errors import ConfigError, DatasetError, suggestion

DEFAULT_DATA_ROOT = Path("data")


@dataclass(frozen=True)
class _Source:
    """How a kind of dataset is found at a place, read, and obtained."""

    find: Callable[[Path], Path | None]
    read: Callable[..., Dataset]
    how: str
    has_own_root: bool = False
    """Whether the images are the user's, so that only `root` can say where they are."""


class DatasetStatus(NamedTuple):
    """What is known of a dataset on this machine."""

    name: str
    present: bool
    images: int
    where: Path | None
    how: str


def _find_folder(place: Path) -> Path | None:
    """Accept the place itself if it is a folder."""
    return place if place.is_dir() else None


def _read_demo(root: Path, *, seed: int = 0) -> Dataset:
    """Read the generated images, drawing them first if they are absent."""
    generate(root, seed)
    return read_folder(root, name="demo")


_SOURCES = {
    "caltech101": _Source(
        find_caltech101,
        read_caltech101,
        "`spptransfer datasets --fetch caltech101`, or unpack 101_ObjectCategories.tar.gz from "
        "https://data.caltech.edu/records/mzrjq-6wc02 and point --data-root at the folder with it",
    ),
    "csv": _Source(
        find_csv,
        read_csv,
        "set dataset.root to a CSV file with the header path,label (or path,labels) [,split]",
        has_own_root=True,
    ),
    "demo": _Source(_find_folder, _read_demo, "drawn on first use; nothing to download"),
    "folder": _Source(
        _find_folder,
        read_folder,
        "set dataset.root to a folder that holds one folder of images per class",
        has_own_root=True,
    ),
    "voc2007": _Source(
        find_voc2007,
        read_voc2007,
        "`spptransfer datasets --fetch voc2007`, or unpack VOCtrainval_06-Nov-2007.tar and "
        "VOCtest_06-Nov-2007.tar into one folder and point --data-root at it",
    ),
}


def names() -> tuple[str, ...]:
    """Names that `open_dataset` knows.

    Examples
    --------
    >>> names()
    ('caltech101', 'csv', 'demo', 'folder', 'voc2007')
    """
    return tuple(_SOURCES)


def open_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    data_root: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset:
    """Find and read a dataset.

    Parameters
    ----------
    name : str
        One of `names()`.
    root : path-like, optional
        Where the dataset is: for ``csv`` the table (or the folder with that one table), for the
        others a folder. A relative path is tried as it is, then below `data_root`. Without
        `root`, `data_root` itself and ``<data_root>/<name>`` are tried.
    data_root : path-like, optional
        Folder around the datasets; ``data`` in the current folder by default.
    **options
        ``separator`` (str, default ``";"``) for ``csv``; ``seed`` (int, default 0) for ``demo``.

    Returns
    -------
    Dataset
        Ids, paths, classes, targets and official splits; no image is opened.

    Raises
    ------
    ConfigError
        If the name or an option is unknown, or `root` is needed but not given.
    DatasetError
        If the dataset is not there (the message lists every place) or not laid out as expected.

    Examples
    --------
    >>> open_dataset("caltech", data_root="photos")
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: unknown dataset 'caltech'; did you mean 'caltech101'? ...
    """
    source = _source(name)
    _check_options(name, source, options)
    places = _places(name, source, root, data_root)
    if name == "demo":
        return source.read(places[-1] if root is None else Path(root), **options)
    for place in places:
        found = source.find(place)
        if found is not None:
            return source.read(found, **options)
    tried = ", ".join(str(place.absolute()) for place in places)
    raise DatasetError(f"dataset '{name}' not found; looked in {tried}; to get it: {source.how}")


def status(data_root: str | os.PathLike[str] | None = None) -> list[DatasetStatus]:
    """Say of each dataset whether it is here and how to get it.

    Parameters
    ----------
    data_root : path-like, optional
        Folder around the datasets; ``data`` in the current folder by default.

    Returns
    -------
    list of DatasetStatus
        One per name, in the order of `names()`. A dataset that is there but damaged counts as
        absent, with the error in `how`.

    Examples
    --------
    >>> status("no/such/folder")[2]
    DatasetStatus(name='demo', present=False, images=0, where=None,
                  how='drawn on first use; nothing to download')
    """
    return [_status_of(name, source, data_root) for name, source in _SOURCES.items()]


def _status_of(
    name: str, source: _Source, data_root: str | os.PathLike[str] | None
) -> DatasetStatus:
    """Status of one dataset, without drawing or fetching anything."""
    absent = DatasetStatus(name, False, 0, None, source.how)
    if source.has_own_root:
        return absent
    places = _places(name, source, None, data_root)
    read = source.read if name != "demo" else read_folder
    for place in places if name != "demo" else places[-1:]:
        found = source.find(place)
        if found is not None:
            try:
                dataset = read(found)
            except DatasetError as error:
                return absent._replace(where=found, how=str(error))
            return DatasetStatus(name, True, len(dataset), dataset.root, source.how)
    return absent


def _source(name: str) -> _Source:
    """Look up a name, with an error that gives the nearest one."""
    try:
        return _SOURCES[name]
    except (KeyError, TypeError):
        raise ConfigError(f"unknown dataset '{name}'; {suggestion(str(name), _SOURCES)}") from None


def _check_options(name: str, source: _Source, options: dict[str, Any]) -> None:
    """Refuse options that the dataset does not have, or of another type than their default."""
    parameters = list(inspect.signature(source.read).parameters.values())[1:]
    # `name` is how read_folder is told what it reads for; it is no option of a user's.
    allowed = {item.name: item.default for item in parameters if item.name != "name"}
    for option, value in options.items():
        if option not in allowed:
            hint = suggestion(option, allowed) if allowed else "it has no options"
            raise ConfigError(f"dataset '{name}' has no option '{option}'; {hint}")
        expected = type(allowed[option])
        if type(value) is not expected or value == "":
            raise ConfigError(
                f"dataset.{option} must be a {expected.__name__} such as "
                f"{allowed[option]!r}, not {value!r}"
            )


def _places(
    name: str,
    source: _Source,
    root: str | os.PathLike[str] | None,
    data_root: str | os.PathLike[str] | None,
) -> list[Path]:
    """Every place to look in, without repetition."""
    around = DEFAULT_DATA_ROOT if data_root is None else Path(data_root)
    if root is not None:
        # Joining an absolute root gives that root again.
        places = [Path(root).expanduser(), around / Path(root).expanduser()]
    elif source.has_own_root:
        raise ConfigError(f"dataset '{name}' needs dataset.root: {source.how}")
    else:
        places = [around, around / name]
    return list(dict.fromkeys(places))
