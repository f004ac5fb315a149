"""Numbers as people read them, the same in the report and on the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOTHING = "–"


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage without its sign; a dash where there is none.

    Examples
    --------
    >>> percent(0.8971), percent(0.8971, digits=2), percent(None)
    ('89.7', '89.71', '–')
    """
    if fraction is None or not math.isfinite(fraction):
        return NOTHING
    return f"{100 * fraction:.{digits}f}"


def plus_minus(value: float | None, std: float | None) -> str:
    """Write a fraction in percent, without its sign, and its deviation if it has one.

    Examples
    --------
    >>> plus_minus(0.9, 0.02), plus_minus(0.9, None)
    ('90.00 ± 2.00', '90.00')
    """
    return percent(value, 2) if std is None else f"{percent(value, 2)} ± {percent(std, 2)}"


def cut(value: Any, width: int) -> str:
    """Write a value with at most so many characters.

    Examples
    --------
    >>> cut("a long name", 7)
    'a long…'
    """
    text = str(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def clean(value: Any, width: int | None = None) -> str:
    r"""Write a value without control characters, which could rewrite the terminal.

    Examples
    --------
    >>> clean("a\x1b[2Jb"), clean("a long name", 7)
    ('a�[2Jb', 'a long…')
    """
    text = str(value) if width is None else cut(value, width)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "�" for character in text)


def duration(seconds: float | None) -> str:
    """Write a length of time with the two largest units that matter.

    Examples
    --------
    >>> duration(0.42), duration(12.31), duration(200.3), duration(7500)
    ('0.4 s', '12.3 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: float | None) -> str:
    """Write a whole number with its thousands set apart.

    Examples
    --------
    >>> count(12800), count(None)
    ('12,800', '–')
    """
    return NOTHING if number is None else f"{int(number):,}"


def signed(score: float) -> str:
    """Write a decision value with its sign, which is what it says, and a true minus.

    Examples
    --------
    >>> signed(0.834), signed(-0.2)
    ('+0.834', '−0.200')
    """
    return f"{score:+.3f}".replace("-", "−")


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """List a nested mapping, as it stands in a JSON file, as dotted names with values as text.

    Examples
    --------
    >>> flatten({"a": [6, 0.5], "b": {"flip": False, "mean": None, "std": []}})
    [('a', '6, 0.5'), ('b.flip', 'no'), ('b.mean', '–'), ('b.std', '–')]
    """
    if not isinstance(value, Mapping):
        return [(prefix, _as_text(value))]
    rows = []
    for key, item in value.items():
        rows += flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return rows


def _as_text(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_as_text, value)) or NOTHING
    return str(value)
