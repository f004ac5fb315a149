"""Caches that are not what was written, shared by the tests of those who find out."""

from __future__ import annotations

from extraction_cases import broken_images, make_dataset, many_images, run

from spptransfer.cache import FeatureCache
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.rows import Chunk
from spptransfer.cache.writing import write_cache


def make(folder):
    """A dataset of images, four of them broken, and its cache."""
    dataset = make_dataset(folder / "images", many_images(10) | broken_images())
    run(dataset, folder / "a.h5")
    return dataset, folder / "a.h5"


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def position_of(path, name, row):
    extent = FeatureCache.open(path).header.extents[name]
    return extent.offset + extent.nbytes // extent.shape[0] * row + 3


def rewrite(path, change):
    """Write the cache anew with right checksums around wrong contents."""
    cache = FeatureCache.open(path)
    rows, block = cache.rows, cache.blocks[0]
    features = {block: cache.read(block, slice(None))}
    change(rows, features[block])
    write_cache(
        path,
        spec=cache.spec,
        channels=cache.channels,
        dataset=cache.dataset,
        count=len(rows),
        id_width=encoded_width(rows.ids),
        chunks=[Chunk(rows, features)],
    )
