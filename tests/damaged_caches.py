"""Caches that are not, or not yet, what was written, as a kill or a power cut leaves them."""

from __future__ import annotations

from pathlib import Path

import h5py
from cache_files import write_cache

from spptransfer.cache import FeatureCache


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def position_of(path, name, row):
    cache = FeatureCache.open(path)
    start, stop = cache.extents[name]
    cache.close()
    return start + (stop - start) // cache.count * row + 3


def rewrite(path, change):
    """Write the cache anew with right checksums around wrong contents."""
    cache = FeatureCache.open(path)
    rows, block = cache.rows_at(slice(None)), cache.blocks[0]
    features = {block: cache.read(block, slice(None))}
    change(rows, features[block])
    write_cache(path, rows, features, cache.spec, cache.channels)


def unfinished_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.partial"))


def unfinished_file(path: Path) -> Path:
    (file,) = unfinished_files(path)
    return file


def overwrite(path: Path, dataset: str, row: int, content: bytes = b"", at: int = 0) -> None:
    """Write over bytes of an unfinished row; by default with zeros, as if they never got there."""
    with h5py.File(unfinished_file(path), "r", locking=False) as opened:
        node = opened[dataset]
        size = node.id.get_storage_size() // node.shape[0]
        start = node.id.get_offset() + row * size
    with open(unfinished_file(path), "r+b") as file:
        file.seek(start + at)
        file.write(content or bytes(size))
