"""``python -m spptransfer`` is the command ``spptransfer``, and this is where both begin."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main() -> int:
    """Import the command line and run it; Ctrl-C says the same during the first as later."""
    # What a shell starts in the background ignores Ctrl-C, which stays so.
    listening = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listening:
        signal.signal(signal.SIGINT, _end)
    if sys.stderr is None or not sys.stderr.isatty():
        for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
            os.environ.setdefault(name, "60")  # seconds: a log needs no bar that moves
    from spptransfer.cli import main as command

    if listening:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


def _end(signum: int, frame: Any) -> None:
    """End at once: nothing has begun, and modules half imported might hide an exception."""
    os.write(2, b"spptransfer: interrupted before anything was begun\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
