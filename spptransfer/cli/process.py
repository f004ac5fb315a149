"""The process of a command: what its signals do, and what happens to streams that fail."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from spptransfer.errors import OutputError

if TYPE_CHECKING:
    from spptransfer.experiment.preparation import StopRequest

# How long a signal that comes twice is one: torch's launcher passes on what a terminal has sent
# to all of its processes already.
ONE_SIGNAL_SECONDS = 2.0


@contextlib.contextmanager
def _answered(answer: Callable[[], None], *names: str) -> Iterator[None]:
    """Let the signals that this system has call a function of ours for a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, lambda *_: answer()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Say in one line what an interrupt leaves of a command that keeps nothing."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(message) from interrupt


def terminable() -> contextlib.AbstractContextManager[None]:
    """Let SIGTERM end a command as Ctrl-C does: with what is finished kept, and our status."""
    return _answered(_interrupt, "SIGTERM", "SIGBREAK")


def stopping(stop: StopRequest) -> contextlib.AbstractContextManager[None]:
    """Let the first signal finish the rows in work where some are, any other stop at once."""

    def ask() -> None:
        if not stop.extracting or stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        words = "finishing the rows in work; once more to stop at once"
        print(f"\nspptransfer: {words}", file=sys.stderr, flush=True)

    return _answered(ask, "SIGINT", "SIGTERM", "SIGBREAK")


def stopping_training(stop: threading.Event) -> contextlib.AbstractContextManager[None]:
    """Let the first signal finish the step in work, a later one stop at once."""
    asked = 0.0

    def ask() -> None:
        nonlocal asked
        if stop.is_set() and time.monotonic() > asked + ONE_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        asked = asked or time.monotonic()
        stop.set()

    return _answered(ask, "SIGINT", "SIGTERM", "SIGBREAK")


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
