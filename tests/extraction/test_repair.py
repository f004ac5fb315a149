from __future__ import annotations

import numpy as np
import pytest
from damaged_caches import flip, make, position_of, rewrite
from extraction_cases import backbone, forbidden, run
from unfinished_caches import drafted_rows

from spptransfer.cache import FeatureCache
from spptransfer.cache.draft import Draft
from spptransfer.cache.rows import checksums
from spptransfer.cache.verify import verify
from spptransfer.extraction.repair import compare_sample, repair


@pytest.fixture
def made(tmp_path):
    return make(tmp_path)


def found_by_both(path, dataset):
    problems = verify(path, dataset)
    return problems + compare_sample(path, problems, dataset, backbone)


def test_rows_of_a_sound_cache_come_out_again(made):
    dataset, path = made
    assert compare_sample(path, [], dataset, backbone, sample=4) == []


def test_a_sample_of_none_loads_no_network(made):
    dataset, path = made
    assert compare_sample(path, [], dataset, forbidden, sample=0) == []


def test_features_of_another_image_are_found_by_extracting_again(made):
    dataset, path = made
    rewrite(path, lambda rows, values: values.__setitem__(slice(0, 10), values[9::-1].copy()))
    assert verify(path, dataset) == []
    problems = found_by_both(path, dataset)
    assert len(problems) == 10
    assert "extracted again, it differs by" in problems[0].what


@pytest.mark.parametrize(
    "name",
    ["features/scale_48/level_3", "rows/id", "rows/status", "rows/by_id", "labels/targets", None],
)
def test_a_repaired_file_is_byte_for_byte_the_undamaged_one(made, name):
    dataset, path = made
    before = path.read_bytes()
    flip(path, position_of(path, name, 6) if name else len(before) - 1)
    assert verify(path)
    decoded = []

    def counting():
        decoded.append(1)
        return backbone()

    report = repair(path, verify(path, dataset), dataset, counting, jobs=1, part_rows=4)
    assert verify(path, dataset) == []
    cache = FeatureCache.open(path)
    rows = cache.rows
    values = {b: cache.read(b, slice(None)) for b in cache.blocks}
    path.write_bytes(before)
    original = FeatureCache.open(path)
    expected = {b: original.read(b, slice(None)) for b in original.blocks}
    assert rows.ids == original.rows.ids
    for block in expected:
        np.testing.assert_allclose(values[block], expected[block], rtol=0, atol=1e-5)
    assert checksums(rows, values, cache.blocks).shape == (14, 16)
    assert report.unchanged >= 8  # a flipped id may be that of another row


def test_a_row_of_another_image_is_repaired(made):
    dataset, path = made
    before = FeatureCache.open(path).matrix()
    rewrite(path, lambda rows, values: values.__setitem__(2, values[3]))
    repair(path, found_by_both(path, dataset), dataset, backbone)
    np.testing.assert_allclose(FeatureCache.open(path).matrix(), before, rtol=0, atol=1e-5)


def test_a_wrong_row_is_repaired_though_an_interrupted_update_has_it_too(made, monkeypatch):
    dataset, path = made
    before = FeatureCache.open(path).matrix()
    rewrite(path, lambda rows, values: values.__setitem__(2, values[3]))
    with monkeypatch.context() as patched:
        patched.setattr(Draft, "seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(dataset, path, redo=["0000.png"])
    assert 2 in drafted_rows(path)
    repair(path, found_by_both(path, dataset), dataset, backbone)
    np.testing.assert_allclose(FeatureCache.open(path).matrix(), before, rtol=0, atol=1e-5)


def interrupted(*_):
    raise KeyboardInterrupt
