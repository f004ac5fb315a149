"""Which datasets there are, where they are looked for, and how to get them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

from pydantic import BaseModel, Field, create_model

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.coco import CocoOptions, read_coco
from spptransfer.datasets.csv_file import CsvOptions, read_csv
from spptransfer.datasets.folder import FolderOptions, find_caltech101, read_folder
from spptransfer.datasets.tar import TarOptions, find_tar, read_tar
from spptransfer.datasets.voc2007 import find_voc2007, read_voc2007
from spptransfer.datasets.yolo import YoloOptions, read_yolo
from spptransfer.errors import ConfigError, DatasetError, suggestion
from spptransfer.files import expand_path
from spptransfer.sections import CountFromZero, PathText, Section, check, named_section

DEFAULT_DATA_ROOT = Path("data")

StrPath = str | os.PathLike[str]
_Located = tuple[Path | None, list[Path]]


class DatasetSection(Section):
    """Which images: a registered dataset, where it is, and its options."""

    name: str
    root: PathText | None = Field(None, description="where it is; looked for if absent")

    def options(self) -> dict[str, Any]:
        """Return the options of this kind of dataset, those not given with their defaults."""
        return {key: value for key, value in self if key not in DatasetSection.model_fields}


@dataclass(frozen=True)
class _Kind:
    """How a kind of dataset is checked, found at a place, read, and obtained."""

    section: type[DatasetSection]
    find: Callable[[Path], Path | None] | None
    read: Callable[..., Dataset]
    how: str

    def locate(self, name: str, root: StrPath | None, data_root: StrPath | None) -> _Located:
        """Look everywhere that a dataset may be; the place is None where it is not there."""
        around = expand_path(DEFAULT_DATA_ROOT if data_root is None else data_root)
        if root is not None:
            given = expand_path(root)
            places = [given, around / given]  # an absolute root joined to another is itself
        else:
            places = [around / name, around] if self.find else [around / name]
        found = filter(None, map(self.find, places)) if self.find else filter(Path.exists, places)
        return next(found, None), list(dict.fromkeys(places))


class DatasetStatus(NamedTuple):
    """What is known of a dataset on this machine."""

    name: str
    present: bool
    images: int
    where: Path | None
    how: str


_KINDS: dict[str, _Kind] = {}


def register(
    name: str,
    read: Callable[..., Dataset],
    *,
    find: Callable[[Path], Path | None] | None = None,
    how: str = "",
    options: type[BaseModel] | None = None,
) -> None:
    """Register a dataset, so that `open_dataset` and pipeline files know it.

    Parameters
    ----------
    name : str
        The value of ``dataset.name``. What was registered under it before is replaced.
    read : callable
        ``read(place, **options) -> Dataset``; `place` is a Path that exists or that `find` gave.
    find : callable, optional
        ``find(place) -> Path or None``: the dataset at or below a place such as the data root.
        By default it is what ``dataset.root`` names, or ``<data_root>/<name>``.
    how : str, default=""
        How to get the dataset, for messages: "download ... and unpack it into ...".
    options : type, optional
        A pydantic model whose fields are the keys of the ``dataset`` section besides ``name`` and
        ``root``; a field ``root`` without a default makes that key a required one. By default
        the parameters of `read` after the first are the options, with their annotations as types.

    Raises
    ------
    ConfigError
        If an option is called ``name``.

    Examples
    --------
    >>> import numpy as np
    >>> def read_numbered(place, *, suffix: str = "jpg"):
    ...     ids = sorted(path.name for path in place.glob(f"*.{suffix}"))
    ...     even = np.array([int(id.split(".")[0]) % 2 == 0 for id in ids], dtype=np.int32)
    ...     return Dataset("numbered", place, ids, ("odd", "even"), even)
    >>> register("numbered", read_numbered, how="draw it")

    From now on a pipeline file may say ``dataset: {name: numbered, suffix: png}``:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for number in range(3):
    ...         Path(folder, f"{number}.png").touch()
    ...     open_dataset("numbered", folder, suffix="png").targets
    array([1, 0, 1], dtype=int32)
    >>> unregister("numbered")
    """
    fields = _options_of(read) if options is None else options
    if "name" in fields.model_fields:
        raise ConfigError(f"dataset '{name}': an option cannot be called 'name'")
    _KINDS[name] = _Kind(named_section(DatasetSection, name, fields), find, read, how)


def unregister(name: str) -> None:
    """Remove a dataset that was registered."""
    _kind(name)
    del _KINDS[name]


def _options_of(read: Callable[..., Dataset]) -> type[BaseModel]:
    """Derive the model of the options from the parameters of a reader."""
    types = get_type_hints(read, include_extras=True)
    _, *parameters = inspect.signature(read).parameters.values()
    fields: dict[str, Any] = {}
    for item in parameters:
        if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD):
            default = ... if item.default is item.empty else item.default
            fields[item.name] = (types.get(item.name, Any), default)
    return create_model("Options", **fields)


def names() -> tuple[str, ...]:
    """Return the names that `open_dataset` knows.

    Examples
    --------
    >>> names()
    ('caltech101', 'coco', 'csv', 'demo', 'folder', 'scenes', 'tar', 'voc2007', 'yolo')
    """
    return tuple(_KINDS)


def sections() -> dict[str, type[DatasetSection]]:
    """Return the schema of the ``dataset`` section for each name."""
    return {name: kind.section for name, kind in _KINDS.items()}


def open_dataset(
    name: str,
    root: StrPath | None = None,
    *,
    data_root: StrPath | None = None,
    **options: Any,
) -> Dataset:
    """Find and read a dataset.

    Parameters
    ----------
    name : str
        One of `names()`.
    root : path-like, optional
        Where the dataset is: for ``csv``, ``coco`` and ``yolo`` the file (or the folder with it),
        for the others a folder. A relative path is tried as it is, then below `data_root`. Without
        `root`, ``<data_root>/<name>`` and `data_root` itself are tried.
    data_root : path-like, optional
        Folder around the datasets; ``data`` in the current folder by default.
    **options
        ``separator`` (str, default ``";"``) for ``csv``; ``seed`` (int, default 0) for ``demo``
        and ``scenes``; for others what they were registered with.

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
    kind = _kind(name)
    given = {} if root is None else {"root": os.fspath(root)}
    section = check(kind.section, {"name": name, **given, **options}, where="dataset")
    found, places = kind.locate(name, section.root, data_root)
    if found is None:
        tried = ", ".join(str(place.absolute()) for place in places)
        how = f"; to get it: {kind.how}" if kind.how else ""
        raise DatasetError(f"dataset '{name}' not found; looked in {tried}{how}")
    dataset = kind.read(found, **section.options())
    return dataset if dataset.name == name else replace(dataset, name=name)


def status(data_root: StrPath | None = None) -> list[DatasetStatus]:
    """List the datasets, whether each is here, and how to get it.

    Examples
    --------
    >>> status("no/such/folder")[3]
    DatasetStatus(name='demo', present=False, images=0, where=None,
                  how='drawn on first use; nothing to download')
    """
    return [_status_of(name, kind, data_root) for name, kind in _KINDS.items()]


def _status_of(name: str, kind: _Kind, data_root: StrPath | None) -> DatasetStatus:
    absent = DatasetStatus(name, False, 0, None, kind.how)
    if kind.section.model_fields["root"].is_required():
        return absent
    found, _ = kind.locate(name, None, data_root)
    if found is None or not (found.is_file() or (found.is_dir() and any(found.iterdir()))):
        return absent
    try:
        dataset = open_dataset(name, data_root=data_root)
    except (ConfigError, DatasetError) as error:  # ConfigError: an option without a default
        return absent._replace(where=found, how=str(error))
    return DatasetStatus(name, True, len(dataset), dataset.root, kind.how)


def _kind(name: str) -> _Kind:
    """Look up a name."""
    try:
        return _KINDS[name]
    except (KeyError, TypeError):
        raise ConfigError(f"unknown dataset '{name}'; {suggestion(str(name), _KINDS)}") from None


_Seed = Annotated[CountFromZero, Field(description="of the drawn images")]


def _read_demo(place: Path, *, seed: _Seed = 0) -> Dataset:
    from spptransfer.datasets.generated import generate  # its shapes take a moment

    generate(place, seed)
    return read_folder(place)


def _read_scenes(place: Path, *, seed: _Seed = 0) -> Dataset:
    from spptransfer.datasets.generated import generate_scenes

    generate_scenes(place, seed)
    return read_coco(place)


register(
    "caltech101",
    read_folder,
    find=find_caltech101,
    how="`spptransfer datasets --fetch caltech101`, or unpack 101_ObjectCategories.tar.gz from "
    "https://data.caltech.edu/records/mzrjq-6wc02 and point --data-root at the folder with it",
)
register(
    "coco",
    read_coco,
    options=CocoOptions,
    how="set dataset.root to a folder with images and boxes in COCO's JSON format",
)
register(
    "csv",
    read_csv,
    options=CsvOptions,
    how="set dataset.root to a CSV file with the header path,label (or path,labels) [,split]",
)
register("demo", _read_demo, find=Path, how="drawn on first use; nothing to download")
register(
    "folder",
    read_folder,
    options=FolderOptions,
    how="set dataset.root to a folder that holds one folder of images per class",
)
register("scenes", _read_scenes, find=Path, how="drawn on first use; nothing to download")
register(
    "tar",
    read_tar,
    find=find_tar,
    options=TarOptions,
    how="set dataset.root to tar shards of WebDataset's layout, as shards-{0000..0099}.tar",
)
register(
    "voc2007",
    read_voc2007,
    find=find_voc2007,
    how="`spptransfer datasets --fetch voc2007`, or unpack VOCtrainval_06-Nov-2007.tar and "
    "VOCtest_06-Nov-2007.tar into one folder and point --data-root at it",
)
register(
    "yolo",
    read_yolo,
    options=YoloOptions,
    how="set dataset.root to a folder with data.yaml, images and labels in YOLO's layout",
)
