"""What commands print: plain tables, and one line of JSON for machines."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

DONE, INCOMPLETE = 0, 1
_KEYS = ("status", "headline", "metrics", "rows", "run", "cache", "report", "model")


@dataclass(frozen=True)
class Output:
    """Where a command's words go."""

    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False
    json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False

    def say(self, text: str = "") -> None:
        """Print a line for people; next to JSON they read it on the error stream."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def complain(self, text: str) -> None:
        """Print a line about something that failed, which `quiet` does not silence."""
        if self.quiet:
            print(text, file=sys.stderr, flush=True)
        else:
            self.say(text)

    def emit(self, values: Any) -> None:
        """Print a line of JSON before the last one."""
        print(json.dumps(values, default=str), flush=True)

    def finish(self, incomplete: bool = False, **values: Any) -> int:
        """Print the last line of JSON, if it was asked for, and return the exit status."""
        if self.json:
            known = {"status": "incomplete" if incomplete else "ok"}
            self.emit({**dict.fromkeys(_KEYS), **known, **values})
        return INCOMPLETE if incomplete else DONE

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        """Say what the library logs of the steps that it takes."""
        from spptransfer.experiment.preparation import STEPS

        logger = logging.getLogger(STEPS)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            with _handled(logger, _Lines(self.say)):
                yield
        finally:
            logger.setLevel(level)

    def tell_failures(
        self,
        failures: Mapping[str, str],
        shown: int = 10,
        hint: str = "; `spptransfer cache info` lists all",
    ) -> None:
        """List the first images that failed, and count the others."""
        for id, error in islice(failures.items(), shown):
            self.complain(f"  failed: {printable(id)}: {printable(error)}")
        if len(failures) > shown:
            self.complain(f"  ... and {len(failures) - shown:,} more{hint}")


class _Lines(logging.Handler):
    """Hands every record on as one line."""

    def __init__(self, say: Callable[[str], object], level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(printable(record.getMessage()))


@contextlib.contextmanager
def _handled(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def warnings_shown() -> contextlib.AbstractContextManager[None]:
    """Show the library's warnings on the error stream, one line each."""

    def say(line: str) -> None:
        print(f"spptransfer: {on_one_line(line)}", file=sys.stderr, flush=True)

    return _handled(logging.getLogger("spptransfer"), _Lines(say, logging.WARNING))


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
    r"""Write text as a terminal can show it on one line, whatever a file is called.

    Examples
    --------
    >>> printable("two\nlines"), printable("caf\xe9"), printable("\udcff")
    ('two\\nlines', 'café', '\\udcff')
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(name)
    )


def on_one_line(message: str) -> str:
    r"""Write a message without line breaks, with nothing that a terminal would obey.

    Examples
    --------
    >>> on_one_line("a \n  b")
    'a b'
    """
    return printable(" ".join(message.split()))


def short_path(path: Path) -> str:
    """Write a path as short as it can be told from here."""
    path, here = path.resolve(), Path.cwd()
    return printable(path.relative_to(here) if path.is_relative_to(here) else path)
