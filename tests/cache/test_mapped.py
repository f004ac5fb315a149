from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_files import make_cache, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.cache import mapped
from spptransfer.cache.mapped import MappedFile, as_slice

COUNT = 300


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> MappedFile:
    """Narrow rows and, with 12 kB, wide ones."""
    path: Path = tmp_path_factory.mktemp("cache") / "a.h5"
    make_cache(path, COUNT, make_spec(levels=(32,)))
    return MappedFile(path)


@pytest.mark.parametrize("window", [None, 64, 1000])
@pytest.mark.parametrize(
    "name", ["rows/id", "rows/status", "rows/checksum", "features/scale_64/level_32"]
)
@given(positions=st.lists(st.integers(0, COUNT - 1), max_size=40))
@settings(deadline=None, max_examples=30)
def test_rows_at_any_positions_are_those_of_the_whole_column(file, name, window, positions):
    """Whether they are read at once, through the map, or window by window."""
    expected = file.array(name)[np.array(positions, dtype=int)]
    before = mapped._RELEASE_BYTES
    mapped._RELEASE_BYTES = window or before
    try:
        found = file.rows(name, np.array(positions, dtype=np.intp))
    finally:
        mapped._RELEASE_BYTES = before
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@given(st.lists(st.integers(0, 30), max_size=8))
@settings(deadline=None)
def test_a_slice_is_given_for_consecutive_positions_only(positions):
    found = as_slice(np.array(positions, dtype=np.intp))
    consecutive = positions == list(range(positions[0], positions[-1] + 1)) if positions else True
    assert (found is not None) == consecutive
    if found is not None:
        assert list(range(found.start, found.stop)) == positions
