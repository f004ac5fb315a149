"""A run's results for people: an HTML page, and a table for the terminal."""

from __future__ import annotations

from spptransfer.report.page import write_report
from spptransfer.report.terminal import terminal_table

__all__ = ["terminal_table", "write_report"]
