"""Processors and memory of this machine, asked in a way that every system knows."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil


def count_processors() -> int:
    """Count the processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent from macOS and Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def processor_name() -> str:
    """Name the processor as its maker does, where the system tells."""
    with contextlib.suppress(OSError):  # Linux
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*: (.+)$", about, re.MULTILINE):
            return found[1].strip()
    on_a_mac = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return _output(on_a_mac) or platform.processor() or platform.machine() or "unknown"


def checkout() -> dict[str, str]:
    """Return the commit of the checkout that this package runs from; nothing if it is installed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    commit = _output(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    )
    return {"commit": commit} if commit else {}


def _output(command: list[str]) -> str:
    """Run a command and return what it prints, or nothing where it is absent or fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return ""


def available_memory() -> int:
    """Return the bytes of memory that can be taken without swapping."""
    return int(psutil.virtual_memory().available)
