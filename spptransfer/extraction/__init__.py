"""Images + backbone -> rows: grouping by size, batches, workers, parts."""

from __future__ import annotations

from spptransfer.extraction.engine import ENGINES, Extraction, Interrupted, extract

__all__ = ["ENGINES", "Extraction", "Interrupted", "extract"]
