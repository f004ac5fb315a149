"""A page from its template to its file, alone and without trust in what it shows."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spptransfer.files import atomic_write, make_folder

_HERE = Path(__file__).parent


def templates() -> Environment:
    """Jinja for the templates of this package, with escaping on."""
    return Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def asset(name: str) -> Markup:
    """Read a file of this package that goes into the page as it stands."""
    return Markup((_HERE / name).read_text(encoding="utf-8"))


def inline_source(text: str) -> str:
    """Name an inline element's text in a content security policy."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


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
    with atomic_write(target) as temporary:
        # A file name that is no valid UTF-8 arrives as lone surrogates, which have no encoding.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
