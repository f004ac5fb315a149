"""Caches that are not what was written, shared by the tests of those who find out."""

from __future__ import annotations

from cache_files import write_cache

from spptransfer.cache import FeatureCache


def make(folder):
    """A dataset of images, four of them broken, and its cache."""
    from extraction_cases import broken_images, make_dataset, many_images, run

    dataset = make_dataset(folder / "images", many_images(10) | broken_images())
    run(dataset, folder / "a.h5")
    return dataset, folder / "a.h5"


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
