"""Fetch the official archives of VOC 2007 and Caltech-101, check them, and unpack them."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from spptransfer.datasets.registry import DEFAULT_DATA_ROOT
from spptransfer.errors import ConfigError, DatasetError, suggestion
from spptransfer.files import download, sha256_of

logger = logging.getLogger(__name__)

MAX_BYTES = 4 << 30
MAX_FILES = 100_000


@dataclass(frozen=True)
class Archive:
    """An official archive, known by its content.

    `marker` is a path that exists below the dataset's folder once the archive is unpacked;
    `mirrors` are tried in order, and empty for an archive that is only accepted from a file;
    `inner` is the name of the tar archive inside one that is a zip.
    """

    filename: str
    sha256: str
    size: int
    marker: str
    mirrors: tuple[str, ...] = ()
    inner: str | None = None


def _voc2007(filename: str, sha256: str, size: int, split: str) -> Archive:
    marker = f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt"
    return Archive(filename, sha256, size, marker, tuple(f"{host}/{filename}" for host in _HOSTS))


_HOSTS = (
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2007",
    "https://pjreddie.com/media/files",
)
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
    """
    if name not in official:
        raise ConfigError(f"there is nothing to fetch for '{name}'; {suggestion(name, official)}")
    around = DEFAULT_DATA_ROOT if data_root is None else Path(data_root)
    tops = {archive.marker.partition("/")[0] for archive in official[name]}
    root = around if any((around / top).is_dir() for top in tops) else around / name
    if from_file is not None:
        files = [from_file] if isinstance(from_file, (str, os.PathLike)) else from_file
        known = {_recognised(Path(file), official[name]): Path(file) for file in files}
        for archive, file in known.items():
            _install(archive, file, root)
        return root
    wanted = {archive.marker: archive for archive in official[name] if archive.mirrors}
    missing = [archive for marker, archive in wanted.items() if not (root / marker).exists()]
    if not missing:
        logger.info("%s is complete; nothing to fetch", root)
    for archive in missing:
        downloads = root / ".downloads"
        _install(archive, _download(archive, downloads, progress), root)
        shutil.rmtree(downloads)
    return root


def _download(archive: Archive, folder: Path, progress: bool) -> Path:
    """Download from the first mirror that gives the file with its checksum."""
    path = folder / archive.filename
    if path.exists() and sha256_of(path) == archive.sha256:
        return path  # from a run that was stopped while it unpacked
    try:
        download(archive.mirrors, archive.sha256, path, progress=progress)
    except OSError as error:
        for empty in (folder, folder.parent):
            with suppress(OSError):
                empty.rmdir()
        raise DatasetError(
            f"could not fetch {archive.filename}: {error}; "
            f"download it by other means and pass the file with --from"
        ) from error
    return path


def _recognised(file: Path, archives: Sequence[Archive]) -> Archive:
    """Tell by its content which archive a file is."""
    try:
        size, digest = file.stat().st_size, sha256_of(file)
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


def unpack(
    archive: Path,
    destination: Path,
    *,
    inner: str | None = None,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> int:
    """Unpack a tar archive, or one inside a zip archive, and return its number of files.

    It can neither write elsewhere nor fill the disk: only plain files and folders that stay below
    `destination` are accepted, by the filter ``data`` of `tarfile`, up to the limits. What macOS
    adds to archives is skipped; what was unpacked before an error stays there.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DatasetError(f"unpack {archive} yourself: only Python 3.11.4 or later does it safely")
    n_files = n_members = n_bytes = 0
    try:
        with ExitStack() as stack:
            stream: IO[bytes] = stack.enter_context(archive.open("rb"))
            if inner is not None:
                outer = zipfile.ZipFile(stream)
                found = (name for name in outer.namelist() if PurePosixPath(name).name == inner)
                name = next((name for name in found if not _is_clutter(name)), None)
                if name is None:
                    raise DatasetError(f"{archive} does not hold {inner}")
                stream = stack.enter_context(outer.open(name))
            tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|*"))
            for member in tar:
                if _is_clutter(member.name):
                    continue
                n_members, n_bytes = n_members + 1, n_bytes + member.size
                if n_members > max_files or n_bytes > max_bytes:
                    limits = f"{max_files:,} files or {max_bytes:,} bytes"
                    raise DatasetError(f"refused: the archive holds more than {limits}")
                tar.extract(member, destination, filter=_plain_and_inside)
                n_files += member.isfile()
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DatasetError(f"{archive} is damaged: {error}") from error
    except OSError as error:
        raise DatasetError(f"cannot unpack {archive} into {destination}: {error}") from error
    return n_files


def _plain_and_inside(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo:
    """Refuse links, devices, and paths that are absolute or climb out."""
    if not (member.isfile() or member.isdir()):
        raise DatasetError(f"refused: '{member.name}' in the archive is a link or a device")
    outside = f"refused: '{member.name}' in the archive would lie outside its folder"
    if ".." in PurePosixPath(member.name.replace("\\", "/")).parts:
        raise DatasetError(outside)
    try:
        filtered = tarfile.data_filter(member, destination)
    except tarfile.FilterError as error:
        raise DatasetError(outside) from error
    if filtered.name != member.name:  # the filter takes a leading slash away
        raise DatasetError(outside)
    return filtered


def _is_clutter(name: str) -> bool:
    """Whether macOS put it there."""
    path = PurePosixPath(name)
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts
