"""The first page of a finished file: it says that the file is whole, before HDF5 reads any of it.

The page is HDF5's user block, which every HDF5 reader skips. It is one line, then zeros. An
unfinished file has nothing but zeros there, so nobody takes it for a cache.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from spptransfer.cache.layout import FORMAT, FORMAT_VERSION, PAGE
from spptransfer.errors import CacheError

_TITLE = re.compile(rb"spptransfer-features (\d{1,9}) (.{0,120})\n")
_FIELDS = re.compile(rb"(\d{1,18}) (\d{1,18}) ([0-9a-f]{64})")
_PIECE = 1 << 20
_WAY_OUT = "copy it anew if it is a copy, or remove it and extract again"


class ForeignFileError(CacheError):
    """A file that does not begin as ours do."""


class DamagedFileError(CacheError):
    """A file that is not what was written."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"'{path}' is damaged: {' '.join(str(reason).split())}; {_WAY_OUT}")


@dataclass(frozen=True)
class Seal:
    """Length of a file and of its head, and the SHA-256 of the head behind the first page.

    As the head holds the checksums of all rows, the hash identifies the whole content.
    """

    file_bytes: int
    head_bytes: int
    sha256: str

    def write(self, file: IO[bytes]) -> None:
        """Write the first page; the file is a cache then."""
        fields = f"{self.file_bytes} {self.head_bytes} {self.sha256}"
        file.seek(0)
        file.write(f"{FORMAT} {FORMAT_VERSION} {fields}\n".encode().ljust(PAGE, b"\0"))

    @classmethod
    def of(cls, file: IO[bytes], head_bytes: int) -> Seal:
        """Compute the seal of a file whose rows are complete."""
        return cls(file.seek(0, 2), head_bytes, _head_sha256(file, head_bytes))

    @classmethod
    def read(cls, file: IO[bytes], path: Path) -> Seal:
        """Read the first page and compare the file with it, without trusting what it says."""
        file.seek(0)
        page = file.read(PAGE)
        title = _TITLE.match(page)
        if title is None:
            raise ForeignFileError(f"'{path}' is no feature cache of spptransfer: {_guess(page)}")
        if int(title[1]) != FORMAT_VERSION:
            version = int(title[1])
            raise CacheError(
                f"'{path}' has format version {version}; this release reads {FORMAT_VERSION}"
            )
        fields = _FIELDS.fullmatch(title[2])
        if fields is None or page[title.end() :].strip(b"\0") or len(page) < PAGE:
            raise DamagedFileError(path, "its first page is not what was written")
        seal, size = cls(int(fields[1]), int(fields[2]), fields[3].decode()), file.seek(0, 2)
        if size != seal.file_bytes:
            what = f"it is truncated or was added to ({size:,} of {seal.file_bytes:,} bytes)"
            raise DamagedFileError(path, what)
        if seal.head_bytes > size or _head_sha256(file, seal.head_bytes) != seal.sha256:
            raise DamagedFileError(path, "its head is not what was written")
        return seal


def _head_sha256(file: IO[bytes], stop: int) -> str:
    hasher, position = hashlib.sha256(), file.seek(PAGE)
    while piece := file.read(min(_PIECE, max(0, stop - position))):
        hasher.update(piece)
        position += len(piece)
    return hasher.hexdigest()


def _guess(page: bytes) -> str:
    """Say what a foreign file probably is."""
    if not page:
        return "it is empty"
    if not page.strip(b"\0"):
        return "it is not finished yet; run the command that makes it again"
    if page.startswith(b"\x89HDF"):
        return "it is an HDF5 file of another program"
    return "it is another kind of file"
