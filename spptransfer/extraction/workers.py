"""What every process does that works for another one on the same machine."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time

_LOOKING = 1  # second


@functools.cache
def end_with(process: int) -> None:
    """Have this process end soon after the one that began it: a closed terminal kills only that.

    What workers write appears whole or not at all, so they may end at any moment.

    Parameters
    ----------
    process : int
        Number of the process that asks; nothing is done if it is not our parent.

    Examples
    --------
    >>> end_with(os.getpid())
    """

    def watch() -> None:
        while os.getppid() == process:
            time.sleep(_LOOKING)
        os._exit(1)

    if os.getppid() == process:
        threading.Thread(target=watch, name="end-with", daemon=True).start()


def leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; only the one that asked for work may stop."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
