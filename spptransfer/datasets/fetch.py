"""Fetch the official archives of VOC 2007 and Caltech-101, check them, and unpack them."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spptransfer.datasets.catalogue import DEFAULT_DATA_ROOT
from spptransfer.datasets.unpacking import unpack
from spptransfer.errors import ConfigError, DatasetError, suggestion

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Archive:
    """An official archive, known by its content.

    Parameters
    ----------
    filename : str
        Name under which it is distributed.
    sha256 : str
        Hexadecimal digest.
    size : int
        In bytes.
    marker : str
        A path that exists below the dataset's folder once the archive is unpacked.
    mirrors : tuple of str, default=()
        Addresses to try, in this order; empty for one that is only accepted from a file.
    inner : str, optional
        Name of the tar archive inside, where the archive itself is a zip.
    """

    filename: str
    sha256: str
    size: int
    marker: str
    mirrors: tuple[str, ...] = ()
    inner: str | None = None


def _voc2007(filename: str, sha256: str, size: int, split: str) -> Archive:
    """One of the two archives of VOC 2007 and its mirrors."""
    hosts = (
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007",
        "https://pjreddie.com/media/files",
    )
    marker = f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt"
    return Archive(filename, sha256, size, marker, tuple(f"{host}/{filename}" for host in hosts))


_CALTECH101_RECORD = "https://data.caltech.edu/{}records/mzrjq-6wc02/files/caltech-101.zip{}"

# Digests and sizes as TensorFlow Datasets records them. Where two archives have one marker,
# the one with mirrors is fetched and either is accepted from a file.
OFFICIAL: Mapping[str, tuple[Archive, ...]] = {
    "caltech101": (
        Archive(
            "caltech-101.zip",
            "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
            137_414_764,
            "101_ObjectCategories",
            (
                _CALTECH101_RECORD.format("", "?download=1"),
                _CALTECH101_RECORD.format("api/", "/content"),
            ),
            inner="101_ObjectCategories.tar.gz",
        ),
        Archive(
            "101_ObjectCategories.tar.gz",
            "af6ece2f339791ca20f855943d8b55dd60892c0a25105fcd631ee3d6430f9926",
            131_740_031,
            "101_ObjectCategories",
        ),
    ),
    "voc2007": (
        _voc2007(
            "VOCtrainval_06-Nov-2007.tar",
            "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
            460_032_000,
            "trainval",
        ),
        _voc2007(
            "VOCtest_06-Nov-2007.tar",
            "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
            451_020_800,
            "test",
        ),
    ),
}


def fetch(
    name: str,
    data_root: str | os.PathLike[str] | None = None,
    *,
    from_file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    progress: bool = True,
    official: Mapping[str, tuple[Archive, ...]] = OFFICIAL,
) -> Path:
    """Put a dataset's official files below the data root.

    What is there already is neither fetched nor replaced. Downloads are checked by SHA-256 and
    unpacked beside the place where they will stand; a folder appears there only when complete.

    Parameters
    ----------
    name : {"caltech101", "voc2007"}
        Which dataset.
    data_root : path-like, optional
        The dataset goes to ``<data_root>/<name>``, unless a part of it lies in `data_root`
        itself; ``data`` in the current folder by default.
    from_file : path-like or sequence of path-like, optional
        Archives that were downloaded by other means, under any name; nothing is fetched then.
    progress : bool, default=True
        Whether to show a progress bar while downloading.
    official : mapping, optional
        The archives to know, by dataset.

    Returns
    -------
    Path
        The folder that the dataset can be opened from.

    Raises
    ------
    ConfigError
        If there are no official archives of that name.
    DatasetError
        If no mirror gives the file, a file has another checksum, or an archive is damaged.
    """
    if name not in official:
        raise ConfigError(f"there is nothing to fetch for '{name}'; {suggestion(name, official)}")
    root = _home(name, official[name], DEFAULT_DATA_ROOT if data_root is None else Path(data_root))
    if from_file is not None:
        files = [from_file] if isinstance(from_file, (str, os.PathLike)) else from_file
        known = {_recognised(Path(file), official[name]): Path(file) for file in files}
        for archive, file in known.items():
            _install(archive, file, root)
        return root
    for archive in _missing(official[name], root):
        downloads = root / ".downloads"
        _install(archive, _download(archive, downloads, progress), root)
        shutil.rmtree(downloads)
    return root


def _home(name: str, archives: Iterable[Archive], around: Path) -> Path:
    """The dataset's folder: the data root itself if a part of the dataset lies there."""
    tops = {archive.marker.partition("/")[0] for archive in archives}
    return around if any((around / top).is_dir() for top in tops) else around / name


def _missing(archives: Iterable[Archive], root: Path) -> list[Archive]:
    """Archives to fetch, one for each marker that is not there."""
    wanted = {archive.marker: archive for archive in archives if archive.mirrors}
    missing = [archive for marker, archive in wanted.items() if not (root / marker).exists()]
    if not missing:
        logger.info("%s is complete; nothing to fetch", root)
    return missing


def _download(archive: Archive, folder: Path, progress: bool) -> Path:
    """Download from the first mirror that gives the file with its checksum."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=TIMEOUT_SECONDS)
    failures = []
    for url in archive.mirrors:
        logger.info("fetching %s (%d MB)", url, archive.size // 1_000_000)
        try:
            return Path(
                pooch.retrieve(
                    url,
                    known_hash=f"sha256:{archive.sha256}",
                    fname=archive.filename,
                    path=folder,
                    downloader=downloader,
                )
            )
        # requests' errors are OSErrors; pooch raises ValueError on a wrong checksum.
        except (OSError, ValueError) as error:
            failures.append(f"{url} ({_reason(error)})")
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()
    raise DatasetError(
        f"could not fetch {archive.filename}: {'; '.join(failures)}; "
        f"download it by other means and pass the file with --from"
    )


def _recognised(file: Path, archives: Sequence[Archive]) -> Archive:
    """Tell by its content which archive a file is."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"cannot read {file}: {error.strerror}") from error
    for archive in archives:
        if archive.sha256 == digest:
            return archive
    expected = ", ".join(
        f"{archive.filename} ({archive.size:,} bytes, SHA-256 {archive.sha256[:12]}...)"
        for archive in archives
    )
    raise DatasetError(
        f"{file} ({size:,} bytes, SHA-256 {digest[:12]}...) is none of the official archives: "
        f"{expected}; if you trust it, unpack it yourself"
    )


def _install(archive: Archive, file: Path, root: Path) -> None:
    """Unpack an archive beside its place, then move what it holds there."""
    if (root / archive.marker).exists():
        logger.info("%s is there already", root / archive.marker)
        return
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as temporary:
        staging = Path(temporary)
        n_files = unpack(file, staging, inner=archive.inner)
        if not (staging / archive.marker).exists():
            raise DatasetError(f"{file} does not hold {archive.marker}")
        for top in sorted(staging.iterdir()):
            _move(top, root / top.name, last=root / archive.marker)
    logger.info("unpacked %d files of %s into %s", n_files, archive.filename, root)


def _move(source: Path, target: Path, *, last: Path) -> None:
    """Move a folder to its place, or its files where the folder exists; `last` at the end.

    The marker says that an archive is complete, so it must not be there before the rest.
    """
    if not target.exists():
        source.rename(target)
        return
    files = [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: target / path.relative_to(source) == last):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)


def _reason(error: Exception) -> str:
    """Say in one short line why a download failed."""
    # What requests wraps in its own errors is the readable part.
    wrapped = error.args[0] if error.args else error
    text = " ".join(str(getattr(wrapped, "reason", wrapped)).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
