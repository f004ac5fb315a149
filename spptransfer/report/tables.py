"""One table in every format: as text for a terminal, for documents, and for programs.

People read numbers in percent with their deviations. CSV and JSON have them as fractions of 1,
each deviation in a column of its own.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from spptransfer.errors import one_of
from spptransfer.report.formatting import NOTHING, clean, percent

WIDTH = 100
_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"±": r"$\pm$", "−": "$-$", NOTHING: "--"},
    }
)


class Measured(NamedTuple):
    """A fraction of 1 and its standard deviation over the splits; `signed` for a difference."""

    value: float | None
    std: float | None = None
    signed: bool = False

    def __str__(self) -> str:
        """Write it in percent, without the sign of it."""
        text = percent(self.value, 2)
        if self.signed and text != NOTHING:
            text = f"{100 * (self.value or 0):+.2f}".replace("-", "−")
        known = self.std is not None and self.value is not None
        return f"{text} ± {percent(self.std, 2)}" if known else text


Cell: TypeAlias = str | int | float | Measured | None


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header, and sentences about them that follow it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def columns(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """Return each column's name and cells."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return list(zip(self.header, columns, strict=True))


def write_table(table: Table, format: str) -> str:
    r"""Write a table in one of `FORMATS`, without a trailing newline.

    Parameters
    ----------
    table : Table
        What to write. CSV and JSON have no room for its notes.
    format : {"text", "markdown", "latex", "csv", "json"}
        LaTeX's is a ``tabular`` with the rules of the package booktabs.

    Returns
    -------
    str
        Lines.

    Raises
    ------
    ConfigError
        If the format is unknown.

    Examples
    --------
    >>> table = Table(["run", "accuracy"], [["a", Measured(0.9, 0.02)], ["b", None]])
    >>> print(write_table(table, "markdown"))
    | run | accuracy |
    |---|---:|
    | a | 90.00 ± 2.00 |
    | b | – |
    >>> print(write_table(table, "csv"))
    run,accuracy,accuracy std
    a,0.9,0.02
    b,,
    """
    return FORMATS[one_of("--format", format, list(FORMATS))](table)


def shown(cell: Cell) -> str:
    """Write a cell for people."""
    if cell is None:
        return NOTHING
    return f"{cell:.3g}" if isinstance(cell, float) else clean(cell)


def is_numeric(cells: Sequence[Cell]) -> bool:
    """Tell whether a column holds numbers, which stand to the right."""
    return any(not isinstance(cell, str | None) for cell in cells) and not any(
        isinstance(cell, str) for cell in cells
    )


def _text(table: Table) -> str:
    """Lay a table out; where it is too wide, rows and columns change places."""
    columns, to_right = [], []
    for name, cells in table.columns():
        columns.append([clean(name), *map(shown, cells)])
        to_right.append(is_numeric(cells))
    if sum(max(map(len, column)) + 2 for column in columns) > WIDTH + 2:
        columns = [list(row) for row in zip(*columns, strict=True)]
        to_right = [False] * len(columns)
    padded = []
    for column, right in zip(columns, to_right, strict=True):
        width = max(map(len, column))
        padded.append([cell.rjust(width) if right else cell.ljust(width) for cell in column])
    lines = ["  ".join(line).rstrip() for line in zip(*padded, strict=True)]
    notes = [textwrap.fill(clean(note), WIDTH, subsequent_indent="  ") for note in table.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    marks = ["---:" if is_numeric(cells) else "---" for _, cells in table.columns()]
    lines = [line(list(map(clean, table.header))), f"|{'|'.join(marks)}|"]
    lines += [line(list(map(shown, row))) for row in table.rows]
    return "\n".join([*lines, *(f"\n{clean(note)}" for note in table.notes)])


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cell.translate(_LATEX) for cell in cells)} \\\\"

    marks = "".join("r" if is_numeric(cells) else "l" for _, cells in table.columns())
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{marks}}}",
            "\\toprule",
            line(list(map(clean, table.header))),
            "\\midrule",
            *(line(list(map(shown, row))) for row in table.rows),
            "\\bottomrule",
            "\\end{tabular}",
            *(f"% {clean(note)}" for note in table.notes),
        ]
    )


def _numbers(table: Table) -> dict[str, list[Any]]:
    """Return the columns as programs read them: a deviation is a number of its own."""
    found: dict[str, list[Any]] = {}
    for name, cells in table.columns():
        if any(isinstance(cell, Measured) for cell in cells):
            pairs = [cell if isinstance(cell, Measured) else Measured(None) for cell in cells]
            found[name] = [pair.value for pair in pairs]
            if any(pair.std is not None for pair in pairs):
                found[f"{name} std"] = [pair.std for pair in pairs]
        else:
            found[name] = list(cells)
    return found


def _csv(table: Table) -> str:
    found, text = _numbers(table), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(clean, found))
    for row in zip(*found.values(), strict=True):
        writer.writerow([clean(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue().rstrip("\n")


def _json(table: Table) -> str:
    found = _numbers(table)
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return json.dumps(rows, indent=1)


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}
