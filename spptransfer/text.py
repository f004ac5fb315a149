"""Names and numbers as text: only as many as a line holds, and in the right form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def listed(names: Sequence[str], shown: int = 8) -> str:
    """List the first of some names, and count the others.

    Examples
    --------
    >>> listed([str(number) for number in range(10)])
    '0, 1, 2, 3, 4, 5, 6, 7 and 2 more'
    """
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def counted(numbers: Mapping[str, int]) -> str:
    """List names with their numbers, the most frequent first.

    Examples
    --------
    >>> counted({"tset": 7, "dev": 12})
    'dev (12), tset (7)'
    """
    order = sorted(numbers, key=lambda name: (-numbers[name], name))
    return listed([f"{name} ({numbers[name]:,})" for name in order])


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Write a number with its noun in the right form.

    Examples
    --------
    >>> plural(1, "image"), plural(1200, "image"), plural(3, "class", "classes")
    ('1 image', '1,200 images', '3 classes')
    """
    return f"{int(number):,} {noun if number == 1 else nouns or noun + 's'}"
