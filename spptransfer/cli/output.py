"""What commands print: plain tables, and one line of JSON for machines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spptransfer.text import plural

if TYPE_CHECKING:
    from spptransfer.extraction import Extraction

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

    def tell(self, text: str) -> None:
        """Say what the library tells of its progress, whatever names are in it."""
        self.say(printable(text))

    def complain(self, text: str) -> None:
        """Print a line about something that failed, which `quiet` does not silence."""
        if self.quiet:
            print(text, file=sys.stderr, flush=True)
        else:
            self.say(text)

    def emit(self, values: Any) -> None:
        """Print a line of JSON before the last one."""
        print(json.dumps(values, default=str), flush=True)

    def finish(self, **values: Any) -> None:
        """Print the last line of JSON, if it was asked for."""
        if self.json:
            self.emit({**dict.fromkeys(_KEYS), **values})


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
        bool(rows) and all(_is_number(row[i]) or row[i] is None for row in rows)
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else printable(value)


def printable(name: Any) -> str:
    r"""Text as a terminal can show it on one line, whatever a file is called.

    Examples
    --------
    >>> printable("two\nlines"), printable("caf\xe9"), printable("\udcff")
    ('two\\nlines', 'café', '\\udcff')
    """
    text = str(name)
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def on_one_line(message: str) -> str:
    r"""Message without line breaks, with nothing that a terminal would obey.

    Examples
    --------
    >>> on_one_line("a \n  b")
    'a b'
    """
    return printable(" ".join(message.split()))


def short_path(path: Path) -> str:
    """Path as short as it can be told from here."""
    path, here = path.resolve(), Path.cwd()
    return printable(path.relative_to(here) if path.is_relative_to(here) else path)


def counts(total: int, extraction: Extraction) -> str:
    """Say how many images went in, and what became of them."""
    return (
        f"{plural(total, 'image')}: {extraction.added:,} added, {extraction.changed:,} changed, "
        f"{extraction.unchanged:,} unchanged, {extraction.removed:,} removed, "
        f"{len(extraction.failures):,} failed"
    )


def effort(extraction: Extraction) -> str:
    """Say where the time went, and how many batches were as large as they may be."""
    spent = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in extraction.seconds.items())
    share = extraction.full_batches / extraction.batches if extraction.batches else 0.0
    return (
        f"{spent}; {extraction.batches:,} batches of images of one size, {share:.0%} of them full"
    )


def tell_failures(
    failures: Mapping[str, str],
    output: Output,
    shown: int = 10,
    hint: str = "; `spptransfer cache info` lists all",
) -> None:
    """List the first images that failed, and count the others."""
    for id, error in islice(failures.items(), shown):
        output.complain(f"  failed: {printable(id)}: {printable(error)}")
    if len(failures) > shown:
        output.complain(f"  ... and {len(failures) - shown:,} more{hint}")


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Show the library's warnings on the error stream, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    handler.setLevel(logging.WARNING)
    logger = logging.getLogger("spptransfer")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"spptransfer: {on_one_line(record.getMessage())}"
