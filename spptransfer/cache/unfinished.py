"""What there is of a cache before it is finished: a folder with parts, a draft, or both."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spptransfer.cache.checked import checked_runs, compare_rows, is_sound
from spptransfer.cache.draft import SKELETON, Draft
from spptransfer.cache.files import appearing, make_folder, remove_leftovers
from spptransfer.cache.ids import encode, encoded_width
from spptransfer.cache.layout import FORMAT_VERSION, Header, row_runs
from spptransfer.cache.lock import Lock
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.rows import CHECKSUM_BYTES, OK, Chunk, FeatureRows, Rows
from spptransfer.cache.writing import write_cache
from spptransfer.errors import CacheError
from spptransfer.spec import FeatureSpec


class LostDraftError(CacheError):
    """A draft whose rows cannot be found any more."""


def parts_folder(path: Path) -> Path:
    """Folder in which a cache is being made."""
    return path.with_name(f"{path.name}.parts")


def part_files(folder: Path) -> list[Path]:
    """Rows that were written as small caches of their own."""
    return sorted(folder.glob("part-*.h5"))


def draft_files(folder: Path) -> list[Path]:
    """Files in which rows lie where they will stay."""
    return sorted(folder.glob("draft-*.h5"))


@contextlib.contextmanager
def held(path: Path) -> Iterator[Path]:
    """Keep other writers from a cache, and offer its `parts_folder`, which goes if it is empty.

    Raises
    ------
    CacheError
        If somebody else writes it.
    """
    folder = parts_folder(path)
    make_folder(folder)
    lock = Lock(folder / "lock", path)
    lock.acquire()
    try:
        yield folder
    finally:
        leave(folder, lock)


def leave(folder: Path, lock: Lock) -> None:
    """Release a lock and remove the folder if nothing waits there, unless it is no longer ours."""
    if lock.is_ours() and not (part_files(folder) or draft_files(folder)):
        shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def by_age(files: Iterable[Path]) -> list[Path]:
    """Files in the order in which they were last written to."""
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def is_begun(path: Path) -> bool:
    """Whether some rows of a cache wait for the others."""
    folder = parts_folder(path)
    return bool(part_files(folder)) or any(map(_any_row, draft_files(folder)))


def _any_row(path: Path) -> bool:
    try:
        return any(len(positions) for positions in noted_rows(open_draft(path)))
    except CacheError:
        return False


def note_file(path: Path) -> Path:
    """File that says what lies where in a draft, and who computed it."""
    return path.with_suffix(".json")


def write_note(draft: Draft, computed_by: Iterable[str]) -> None:
    """Note what is known of a draft, for whoever goes on with it."""
    _put_note(note_file(draft.path), draft.header(computed_by).body())


def _put_note(path: Path, content: bytes) -> None:
    with appearing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def open_draft(path: Path) -> FeatureCache:
    """Open a draft for reading; which of its rows are there `noted_rows` says.

    Raises
    ------
    LostDraftError
        If there is no note, or it is not true.
    CacheError
        If files cannot be read now, or a later release began the draft.
    """
    note = note_file(path)
    try:
        content, size = note.read_bytes(), path.stat().st_size
    except FileNotFoundError as error:
        raise LostDraftError(f"cannot read '{note}': {error.strerror}") from error
    except OSError as error:
        raise CacheError(f"cannot read '{error.filename}': {error.strerror}") from error
    try:
        header = Header.parse(content, note)
        version = header.attributes["format_version"]
        if version == FORMAT_VERSION and size >= header.file_bytes:
            return FeatureCache(path, header)
    except (CacheError, KeyError, TypeError) as error:
        if isinstance(error.__cause__, OSError):  # the disk may be in order again later
            raise
        raise LostDraftError(f"the note of a draft is no header: {error}") from error
    if version != FORMAT_VERSION:
        raise CacheError(
            f"'{path}' was begun in format version {version}; this release writes {FORMAT_VERSION}"
        )
    raise LostDraftError(f"'{path}' is truncated: {size:,} of {header.file_bytes:,} bytes")


def noted_rows(draft: FeatureCache) -> Iterator[npt.NDArray[np.intp]]:
    """Numbers of the rows that a draft has, some at a time; they may have been torn by a kill."""
    for run in row_runs(draft.count, CHECKSUM_BYTES):
        there = draft.file.rows("rows/checksum", run).any(axis=1)
        yield run.start + np.flatnonzero(there)


def intact_rows(draft: FeatureCache) -> Iterator[npt.NDArray[np.intp]]:
    """Numbers of the rows with features that a kill has left whole, some at a time."""
    for noted in noted_rows(draft):
        for run in checked_runs(draft, len(noted)):
            chunk, right = compare_rows(draft, noted[run])
            yield noted[run][right & (chunk.rows.status == OK)]


def is_draft(path: Path) -> bool:
    """Whether a file's name is that of a draft."""
    return path.match("*.parts/draft-*.h5")


def move_draft(path: Path) -> Path:
    """Give a draft another name, under which its rows are still found."""
    names = (path.with_name(f"{path.stem}-{number}.h5") for number in count(1))
    other = next(name for name in names if not name.exists())
    # A note too many does no harm, one too few would cost all rows.
    _put_note(note_file(other), note_file(path).read_bytes())
    path.rename(other)
    note_file(path).unlink()
    return other


def remove_remains(path: Path) -> None:
    """Remove what killed processes left beside a cache: temporary files, notes without drafts."""
    folder = parts_folder(path)
    remove_leftovers(folder)
    remove_leftovers(path.parent, f"{path.name}.*")
    remove_leftovers(path.parent, f"{SKELETON}-*")
    for note in folder.glob("draft-*.json"):
        if not note.with_suffix(".h5").exists():
            note.unlink(missing_ok=True)


def remove_draft(path: Path) -> None:
    """Remove a draft with its note, if it is there."""
    path.unlink(missing_ok=True)
    note_file(path).unlink(missing_ok=True)


def write_part(
    folder: Path,
    number: int,
    rows: Rows,
    features: FeatureRows,
    *,
    spec: FeatureSpec,
    channels: int,
    dataset: str,
    computed_by: Iterable[str] = (),
) -> Path:
    """Write finished rows as a part.

    Parameters
    ----------
    folder : Path
        The `parts_folder`.
    number : int
        Sorts the parts; names become unique by their content.
    rows : Rows
        The rows' table.
    features : mapping from Block to ndarray of shape (n_rows, block.width)
        The rows' features.
    spec, channels, dataset, computed_by
        As in `write_cache`.

    Returns
    -------
    Path
        The part.
    """
    identity = b"\n".join([*encode(rows.ids).tolist(), *rows.digest.tolist()])
    name = f"part-{number:06d}-{hashlib.sha256(identity).hexdigest()[:12]}.h5"
    write_cache(
        folder / name,
        spec=spec,
        channels=channels,
        dataset=dataset,
        count=len(rows),
        id_width=encoded_width(rows.ids),
        chunks=[Chunk(rows, features)],
        computed_by=computed_by,
    )
    return folder / name


def open_part(path: Path) -> FeatureCache | None:
    """Open a part if it is what was written, to the last byte."""
    try:
        cache = FeatureCache(path)
    except CacheError:
        return None
    return cache if is_sound(cache) else None
