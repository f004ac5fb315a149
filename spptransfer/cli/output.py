"""What commands print: plain tables, and one line of JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_KEYS = ("status", "headline", "metrics", "rows", "run", "cache", "report", "model")


@dataclass(frozen=True)
class Output:
    """Where a command's words go.

    Parameters
    ----------
    quiet : bool
        Print nothing but errors (and the line of JSON).
    json : bool
        End with one machine-readable line.
    """

    quiet: bool
    json: bool

    def say(self, text: str = "") -> None:
        """Print a line for people; next to JSON they read it on the error stream."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def finish(self, **values: Any) -> None:
        """Print the last line of JSON, if it was asked for."""
        if self.json:
            line = {**dict.fromkeys(_KEYS), **values}
            print(json.dumps(line, default=str), flush=True)


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Lay rows out in columns, numbers to the right.

    Examples
    --------
    >>> print(table([["alexnet", 2.5]], ["name", "size"]))
    name     size
    alexnet   2.5
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        for i in range(len(header))
    ]
    lines = [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [list(header), *cells]
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def log_warnings() -> None:
    """Show the library's warnings on the error stream, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("spptransfer: %(message)s"))
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("spptransfer")
    if not logger.handlers:
        logger.addHandler(handler)
