"""Numbers as people read them, the same in the report and on the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOTHING = "–"


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage without its sign.

    Parameters
    ----------
    fraction : float or None
        A share in [0, 1]; None or NaN where there is none.
    digits : int, default=1
        Digits after the point.

    Returns
    -------
    str
        The number alone, a dash where there is none.

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


def clean(value: Any, width: int | None = None) -> str:
    r"""Text without control characters, which could rewrite the terminal, cut to a width.

    Examples
    --------
    >>> clean("a\x1b[2Jb"), clean("a long name", 7)
    ('a�[2Jb', 'a long…')
    """
    text = "".join(character if character.isprintable() else "�" for character in str(value))
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def duration(seconds: float | None) -> str:
    """Write a length of time with the two largest units that matter.

    Parameters
    ----------
    seconds : float or None
        Length in seconds.

    Returns
    -------
    str
        The length, a dash where there is none.

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

    Parameters
    ----------
    number : float or None
        The number.

    Returns
    -------
    str
        The number, a dash where there is none.

    Examples
    --------
    >>> count(12800), count(None)
    ('12,800', '–')
    """
    return NOTHING if number is None else f"{int(number):,}"


def signed(score: float) -> str:
    """Write a decision value with its sign, which is what it says.

    Parameters
    ----------
    score : float
        A decision value.

    Returns
    -------
    str
        The value with three digits and a true minus sign.

    Examples
    --------
    >>> signed(0.834), signed(-0.2)
    ('+0.834', '−0.200')
    """
    return f"{score:+.3f}".replace("-", "−")


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """List a nested mapping as dotted names with their values as text.

    Parameters
    ----------
    value : mapping or any other value
        What to list, as it stands in a JSON file.
    prefix : str, default=""
        Dotted name of `value` itself.

    Returns
    -------
    list of (str, str)
        Name and value, in the mapping's order.

    Examples
    --------
    >>> flatten({"levels": [6, 3], "preprocessing": {"flip": False, "mean": None}})
    [('levels', '6, 3'), ('preprocessing.flip', 'no'), ('preprocessing.mean', '–')]
    """
    if isinstance(value, Mapping):
        rows = []
        for key, item in value.items():
            rows += flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return rows
    return [(prefix, _as_text(value))]


def pick(mapping: Mapping[str, Any], *keys: str) -> list[tuple[str, str]]:
    """List some entries of a mapping as text.

    Parameters
    ----------
    mapping : mapping
        Where to look.
    *keys : str
        Which entries, in this order.

    Returns
    -------
    list of (str, str)
        Key and value, a dash for what is not there.

    Examples
    --------
    >>> pick({"levels": [6, 3], "dimension": 11520}, "dimension", "cache")
    [('dimension', '11520'), ('cache', '–')]
    """
    return [(key, _as_text(mapping.get(key))) for key in keys]


def _as_text(value: Any) -> str:
    """Write one JSON value for a table's cell."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(_as_text(item) for item in value) or NOTHING
    return str(value)
