from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os

import numpy as np
import pytest
from cache_files import make_cache
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.cache.layout import Block, Extent, Header, row_runs
from spptransfer.cache.reading import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.errors import CacheError


def read_header(path):
    with open(path, "rb") as file:
        return Header.read(file, path)


@pytest.fixture
def cache(tmp_path):
    make_cache(tmp_path / "a.h5")
    return tmp_path / "a.h5"


def reseal(path, change) -> None:
    """Change the header as a forger would: with right checksums."""
    header = read_header(path)
    fields = json.loads(json.dumps(header, default=vars))
    change(fields)
    fields["extents"] = {name: Extent(**extent) for name, extent in fields["extents"].items()}
    content = path.read_bytes()[header.header_bytes :]
    path.write_bytes(Header(**fields).pack() + content)


def test_a_header_is_read_as_it_was_written(cache):
    header = read_header(cache)
    assert header.file_bytes == cache.stat().st_size
    assert header.extents["rows/height"].shape == (10,)
    assert header.attributes["dataset"] == "made up"


@given(st.integers(0, 5000), st.integers(0, 10**8))
def test_runs_cover_every_row_once_in_order(count, row_bytes):
    rows = [row for run in row_runs(count, row_bytes) for row in range(run.start, run.stop)]
    assert rows == list(range(count))


def test_runs_of_wide_rows_hold_256_and_of_narrow_ones_more():
    assert next(row_runs(10**6, 10**6)).stop == 256
    assert next(row_runs(10**6, 16)).stop == 262_144


def test_a_vector_has_no_level_in_its_name():
    assert Block(224, None, 4096).name == "features/scale_224/vector"
    assert Block(224, None, 4096).width == 4096


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(1000), "HDF5 file of another program"),
        (b"id,label\nx,y\n", "another kind of file"),
        (b"\x00" * 100_000, "it is not finished yet"),
    ],
)
def test_a_foreign_file_gives_one_clear_line(tmp_path, content, message):
    path = tmp_path / "foreign.h5"
    path.write_bytes(content)
    with pytest.raises(CacheError, match=message) as caught:
        FeatureCache.open(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_give_one_clear_line(tmp_path):
    with pytest.raises(CacheError, match="No such file"):
        FeatureCache.open(tmp_path / "none.h5")
    with pytest.raises(CacheError, match="Is a directory"):
        FeatureCache.open(tmp_path)


def test_files_of_version_1_whose_hash_covers_the_features_are_read_and_verified(cache):
    expected = FeatureCache.open(cache).matrix()
    header = FeatureCache.open(cache).header
    behind = cache.read_bytes()[header.header_bytes :]
    older = dataclasses.replace(header, version=1, sha256=hashlib.sha256(behind).hexdigest())
    cache.write_bytes(older.pack() + behind)
    np.testing.assert_array_equal(FeatureCache.open(cache).matrix(), expected)
    assert verify(cache) == []
    content = bytearray(cache.read_bytes())
    content[header.extents["features/scale_64/level_4"].offset] ^= 1
    cache.write_bytes(content)
    assert "the file is not what was written (SHA-256)" in [p.what for p in verify(cache)]


def test_a_file_of_another_version_says_which_versions_are_read(cache):
    content = cache.read_bytes()
    cache.write_bytes(content.replace(b"spptransfer-features 2 ", b"spptransfer-features 7 ", 1))
    with pytest.raises(CacheError, match=r"format version 7; this release reads 1 and 2"):
        FeatureCache.open(cache)


@pytest.mark.parametrize("kept", [1, 100, 4096, 8192, -1])
def test_a_truncated_file_is_found_when_it_is_opened(cache, kept):
    cache.write_bytes(cache.read_bytes()[:kept])
    with pytest.raises(CacheError):
        FeatureCache.open(cache)


def test_a_file_that_was_added_to_is_found_when_it_is_opened(cache):
    with open(cache, "ab") as file:
        file.write(b"\0")
    with pytest.raises(CacheError, match=r"added to: .*; copy it anew .*, or remove it"):
        FeatureCache.open(cache)


def test_every_flipped_byte_of_the_header_is_found_when_the_file_is_opened(cache):
    content = cache.read_bytes()[: read_header(cache).header_bytes]
    with open(cache, "r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ 0x10]), position)
            with pytest.raises(CacheError):
                read_header(cache)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert read_header(cache)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 10**15},
        {"offset": -8},
        {"shape": [10**12]},
        {"shape": [2**62, 2**62]},
        {"shape": [-1]},
        {"shape": [True]},
        {"shape": ["10"]},
        {"shape": []},
        {"shape": [1, 1, 10]},
        {"dtype": "O"},
        {"dtype": "|V8"},
        {"dtype": "<f8"},
        {"dtype": "|S999999999999"},
        {"dtype": "nonsense"},
    ],
)
@pytest.mark.parametrize("name", ["rows/id", "rows/size", "features/scale_64/level_4"])
def test_a_forged_extent_neither_reads_outside_the_file_nor_allocates(cache, name, change):
    reseal(cache, lambda fields: fields["extents"][name].update(change))
    with pytest.raises(CacheError):
        FeatureCache.open(cache)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", 10**9),
        ("channels", "many"),
        ("channels", -1),
        ("fingerprint", "00"),
        ("spec", "[]"),
        ("spec", "{"),
        ("spec", 7),
        ("dataset", None),
    ],
)
def test_forged_attributes_are_refused(cache, field, value):
    if field == "dataset":
        reseal(cache, lambda fields: fields["attributes"].pop(field))
    else:
        reseal(cache, lambda fields: fields["attributes"].update({field: value}))
    with pytest.raises(CacheError):
        FeatureCache.open(cache)


@pytest.mark.parametrize("name", ["rows/id", "rows/checksum", "failures/row"])
def test_a_missing_dataset_is_named(cache, name):
    reseal(cache, lambda fields: fields["extents"].pop(name))
    with pytest.raises(CacheError, match=name):
        FeatureCache.open(cache)


def test_a_header_must_fit_in_its_place():
    with pytest.raises(ValueError, match="the header needs"):
        Header(64, 64, "0" * 64, {}, {}).pack()


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_line(content):
    file = io.BytesIO(content)
    file.fileno = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(CacheError) as caught:
        Header.read(file, "x")
    assert "\n" not in str(caught.value)
