"""What every page of a report is made with: templates, their style and script, thumbnails."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from spptransfer.errors import ImageError
from spptransfer.files import atomic_write, make_folder
from spptransfer.images import Place, decode, read_bytes, reduction_of, upright_size
from spptransfer.report import analysis, figures, formatting, grid, tables
from spptransfer.text import plural

# Beyond these a page would grow past a few megabytes and no eye would follow.
CLASS_LIMIT = 250  # of the matrix and of the maps
FAILURES_SHOWN = 200
NAME_LIMIT = 200  # characters, of what may be as long as a user likes
TEXT_LIMIT = 2000
CAPTION_LIMIT = 60  # of a class below an image
THUMBNAIL_SIDE = 240
THUMBNAIL_BYTES = 24_000

_HERE = Path(__file__).parent
logger = logging.getLogger(__name__)

# From a small upright image, and the pixels it has for one of the file, to the one shown.
Draw = Callable[[Image.Image, float], Image.Image]


def fill(name: str, style: str, **values: Any) -> str:
    """Fill a template, with the style and the script of one name that lie beside it.

    Its content policy forbids the page everything but these and embedded images: should a hostile
    name ever slip through the escaping, the browser still runs nothing of it.
    """
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
    for kind, suffix in (("style", "css"), ("script", "js")):
        file = _HERE / f"{style}.{suffix}"
        if file.exists():
            values[kind] = Markup(file.read_text(encoding="utf-8"))
            digest = hashlib.sha256(values[kind].encode("utf-8")).digest()
            policy += f"; {kind}-src 'sha256-{base64.b64encode(digest).decode('ascii')}'"
    return _environment().get_template(f"{name}.html").render(policy=policy, **values)


def write_page(page: str, target: Path) -> Path:
    """Write a page in one step, so that a reader never sees half of it."""
    make_folder(target.parent)
    with atomic_write(target) as temporary:
        # A file name that is no valid UTF-8 arrives as lone surrogates, which have no encoding.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return target


@cache
def _environment() -> Environment:
    """Jinja, with escaping on, the number formats and the drawing functions."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        percent=formatting.percent,
        duration=formatting.duration,
        count=formatting.count,
        signed=formatting.signed,
        flatten=formatting.flatten,
        name=partial(formatting.cut, width=NAME_LIMIT),
        text=partial(formatting.cut, width=TEXT_LIMIT),
        brief=partial(formatting.clean, width=CAPTION_LIMIT),
        shown=tables.shown,
        envelope=analysis.envelope,
    )
    environment.globals.update(
        figures=figures,
        grid=grid,
        plural=plural,
        failures_shown=FAILURES_SHOWN,
        class_limit=CLASS_LIMIT,
        limit_per_class=analysis.limit_per_class,
    )
    return environment


def thumbnail(path: Place, draw: Draw | None = None) -> str | None:
    """Make a small upright JPEG of an image file, as the network saw it.

    Parameters
    ----------
    path : Path
        The image.
    draw : callable, optional
        Draws into it, see `Draw`.

    Returns
    -------
    str or None
        A ``data:image/jpeg;base64,…`` URI of at most `THUMBNAIL_SIDE` pixels a side and about
        `THUMBNAIL_BYTES` · 4/3 characters; None if there is no readable image.
    """
    try:
        data = read_bytes(path)
        size = upright_size(data)
        image = decode(data, reduction_of(min(size), THUMBNAIL_SIDE))
    except ImageError as error:
        logger.info("no thumbnail of '%s': %s", path, error)
        return None
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    if draw is not None:
        image = draw(image, max(image.size) / max(size))
    for quality in (80, 65, 45, 25):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= THUMBNAIL_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
