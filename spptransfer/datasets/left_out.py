"""What lies among a user's images and is not read: counted, to be told in a line."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container

from spptransfer.text import counted, listed, plural

# Notes, labels and what systems and programs leave beside images: nobody misses them.
_COMPANION_SUFFIXES = frozenset(
    {".txt", ".md", ".rst", ".html", ".htm", ".log", ".csv", ".tsv", ".json", ".jsonl", ".xml"}
    | {".yaml", ".yml", ".toml", ".cfg", ".ini", ".md5", ".sha256", ".py", ".ipynb"}
    | {".db", ".lnk", ".url", ".xmp", ".aae"}
)
_COMPANION_NAMES = frozenset({"readme", "license", "makefile", "tmp"})  # Caltech-101 holds a tmp
_COMPANION_FOLDERS = frozenset({"__MACOSX"})


class LeftOut:
    """Files whose suffix is not an image's, and the folders that were looked into.

    Examples
    --------
    >>> left_out = LeftOut()
    >>> for name in ("a.HEIC", "b.heic", "photo", "notes.txt"):
    ...     left_out.note_file(name)
    >>> left_out.files()
    '3 files by suffix: .heic (2), none (1)'
    >>> left_out.note_folder("cat")
    >>> left_out.note_folder("heic")
    >>> left_out.folders_without({"cat"})
    'heic'
    """

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.folders: list[str] = []

    def note_file(self, name: str) -> None:
        """Count a file that is not read, unless nobody would take it for an image."""
        stem, suffix = os.path.splitext(name.lower())
        is_companion = suffix in _COMPANION_SUFFIXES if suffix else stem in _COMPANION_NAMES
        if not is_companion:
            self.suffixes[suffix or "none"] += 1

    def note_folder(self, name: str) -> None:
        """Put down a folder directly below the root."""
        if name not in _COMPANION_FOLDERS:
            self.folders.append(name)

    def files(self) -> str:
        """Say how many files were left out for which suffixes; nothing if none was."""
        number = self.suffixes.total()
        return f"{plural(number, 'file')} by suffix: {counted(self.suffixes)}" if number else ""

    def folders_without(self, classes: Container[str]) -> str:
        """Name the folders that hold no image; nothing if all are classes."""
        return listed(sorted(name for name in self.folders if name not in classes))
