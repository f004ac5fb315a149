"""Images + backbone -> rows of features: reading, batches of one size, threads, shards."""

from __future__ import annotations

from spptransfer.extraction.engine import Extraction, Interrupted, extract
from spptransfer.extraction.shards import extract_shards, shard_of, shard_path

__all__ = [
    "Extraction",
    "Interrupted",
    "extract",
    "extract_shards",
    "shard_of",
    "shard_path",
]
