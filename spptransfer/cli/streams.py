"""The streams of a command: whatever cannot be written to them is one error of ours."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from spptransfer.errors import OutputError


@contextlib.contextmanager
def checked_streams() -> Iterator[None]:
    """Let a failure to print be an `OutputError`, unless it is the reader who has left.

    A name that a stream cannot show is escaped; that ends no command.
    """
    _replace_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out: Any = _Checked(sys.stdout)
    err: Any = _Checked(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class _Checked:
    """A stream that tells its own failures from all others, and goes nowhere after the first."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if text == "":  # typer tries that, to see what kind of stream it is
            return 0
        with self._told():
            return int(self._stream.write(text))

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Python writes what is left once more at exit, and would complain.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            reason = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"cannot write the output: {reason}") from error


def _replace_closed() -> None:
    """Put the null device where a stream was closed before we began, lest a file take its number.

    What stands for the output cannot be written, so that whatever is printed fails.
    """
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, encoding="utf-8"))
