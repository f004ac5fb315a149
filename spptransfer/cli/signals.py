"""What Ctrl-C and SIGTERM do to a command."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spptransfer.experiment import Machine

_ONE_SIGNAL_SECONDS = 2


@contextlib.contextmanager
def _answered(answer: Callable[[], None], *numbers: int) -> Iterator[None]:
    """Let signals call a function of ours for a while."""

    def handle(signum: int, frame: Any) -> None:
        answer()

    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: with what is finished kept, and our status."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _answered(_interrupt, signal.SIGTERM):
        yield


@contextlib.contextmanager
def stopping(machine: Machine) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM finish the parts in work, the second one stop at once."""

    def ask() -> None:
        if not machine.stop.extracting or machine.stop.is_set():
            raise KeyboardInterrupt
        machine.stop.set()
        print(
            "\nspptransfer: finishing the parts in work; once more to stop at once",
            file=sys.stderr,
            flush=True,
        )

    with _answered(ask, signal.SIGINT, signal.SIGTERM):
        yield


@contextlib.contextmanager
def stopping_training(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM finish the step in work, a later one stop at once."""
    asked = 0.0

    def ask() -> None:
        nonlocal asked
        # Torch's launcher passes on the signal that the terminal has sent to its processes too.
        if stop.is_set() and time.monotonic() > asked + _ONE_SIGNAL_SECONDS:
            raise KeyboardInterrupt
        asked = asked or time.monotonic()
        stop.set()

    with _answered(ask, signal.SIGINT, signal.SIGTERM):
        yield
