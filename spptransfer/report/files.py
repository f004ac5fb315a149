"""A page as a file."""

from __future__ import annotations

from pathlib import Path

from spptransfer.cache.files import appearing, make_folder


def write_page(target: Path, page: str) -> None:
    """Write a page in one step, so that a reader never sees half of it.

    Parameters
    ----------
    target : Path
        The file; its folder is made where there is none.
    page : str
        The HTML text.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    make_folder(target.parent)
    with appearing(target) as temporary:
        # A file name that is no valid UTF-8 arrives as lone surrogates, which have no encoding.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
