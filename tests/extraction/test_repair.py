"""Rows that are not what they should be are found by extracting again, and made anew."""

from __future__ import annotations

import numpy as np
import pytest
from damaged_caches import flip, make, position_of, rewrite
from extraction_cases import NET, SPEC, TORCH, StopAfter, many_images, run

from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.extraction import Interrupted, compare_sample, repair


@pytest.fixture
def made(tmp_path):
    return make(tmp_path)


def found_by_both(path, dataset):
    problems = verify(path, dataset)
    return problems + compare_sample(path, problems, dataset, NET, TORCH)


def swap(rows, values):
    values[2] = values[3]


def test_rows_of_a_sound_cache_come_out_again(made):
    dataset, path = made
    assert compare_sample(path, [], dataset, NET, TORCH, sample=4) == []


def test_features_of_another_image_are_found_by_extracting_again(made):
    dataset, path = made
    rewrite(path, lambda rows, values: values.__setitem__(slice(0, 10), values[9::-1].copy()))
    assert verify(path, dataset) == []
    problems = found_by_both(path, dataset)
    assert len(problems) == 10
    assert "extracted again, it differs by" in problems[0].what


@pytest.mark.parametrize("name", ["features/high/scale_32/level_3", "rows/id", "rows/status"])
def test_a_repaired_file_holds_what_the_undamaged_one_held(made, name):
    dataset, path = made
    original = FeatureCache.open(path)
    expected, ids, failures = (
        original.matrix(sorted(many_images(10))),
        original.ids,
        original.failures,
    )
    flip(path, position_of(path, name, 6))
    problems = verify(path, dataset)
    assert problems
    done = repair(path, problems, dataset, NET, TORCH)
    assert verify(path, dataset) == []
    cache = FeatureCache.open(path)
    assert (cache.ids, cache.failures) == (ids, failures)
    np.testing.assert_allclose(
        cache.matrix(sorted(many_images(10))), expected, rtol=0, atol=1e-5 * expected.max()
    )
    assert done.unchanged >= 8  # a flipped id may be that of another row


def test_a_byte_that_is_no_rows_is_repaired(made):
    dataset, path = made
    flip(path, FeatureCache.open(path).extents["rows/status"][1])
    problems = verify(path, dataset)
    assert [problem.id for problem in problems] == [None]
    assert repair(path, problems, dataset, NET, TORCH).unchanged == 13
    assert verify(path, dataset) == []


def test_a_row_of_another_image_is_repaired(made):
    dataset, path = made
    before = FeatureCache.open(path).matrix(dataset.ids[:10])
    rewrite(path, swap)
    done = repair(path, found_by_both(path, dataset), dataset, NET, TORCH)
    assert done.unchanged == 13
    after = FeatureCache.open(path).matrix(dataset.ids[:10])
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * before.max())


def test_a_wrong_row_is_repaired_though_an_interrupted_update_has_it_too(made):
    dataset, path = made
    before = FeatureCache.open(path).matrix(dataset.ids[:10])
    rewrite(path, swap)
    more = many_images(300)
    for name, content in more.items():
        (dataset.root / name).write_bytes(content)
    larger = type(dataset)(
        dataset.name, dataset.root, (*dataset.ids, *list(more)[10:]), (), np.full(304, -1, np.int32)
    )
    with pytest.raises(Interrupted):
        run(larger, path, SPEC, stop=StopAfter(1))
    repair(path, found_by_both(path, dataset), dataset, NET, TORCH)
    after = FeatureCache.open(path).matrix(dataset.ids[:10])
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * before.max())
