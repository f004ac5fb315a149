"""Rows that are not what they should be are found by extracting again, and made anew."""

from __future__ import annotations

import pytest
from damaged_caches import flip, position_of, rewrite
from extraction_cases import (
    NET,
    TORCH,
    StopAfter,
    assert_near,
    broken_images,
    make_dataset,
    many_images,
    open_folder,
    run,
)

from spptransfer.cache import FeatureCache
from spptransfer.cache.verify import verify
from spptransfer.extraction import Interrupted, compare_sample, repair


@pytest.fixture
def made(tmp_path):
    """A dataset of images, four of them broken, and its cache."""
    dataset = make_dataset(tmp_path / "images", many_images(10) | broken_images())
    run(dataset, tmp_path / "a.h5")
    return dataset, tmp_path / "a.h5"


def found_by_both(path, dataset):
    problems = verify(path, dataset)
    return problems + compare_sample(path, problems, dataset, NET, TORCH)


def swap(rows, values):
    values[2] = values[3]


def test_rows_of_a_sound_cache_come_out_again(made):
    dataset, path = made
    assert compare_sample(path, [], dataset, NET, TORCH, sample=4) == []


@pytest.mark.parametrize("name", ["features/high/scale_32/level_3", "rows/id", "rows/status"])
def test_a_repaired_file_holds_what_the_undamaged_one_held(made, name):
    dataset, path = made
    before = FeatureCache.open(path)
    expected, ids, failures = before.matrix(), before.ids, dict(before.failures)
    flip(path, position_of(path, name, 6))
    problems = verify(path, dataset)
    assert problems
    done = repair(path, problems, dataset, NET, TORCH)
    assert verify(path, dataset) == []
    after = FeatureCache.open(path)
    assert (after.ids, after.failures) == (ids, failures)
    assert_near(after.matrix(), expected)
    assert done.unchanged >= 8  # a flipped id may be that of another row


def test_a_byte_that_is_no_rows_is_repaired(made):
    dataset, path = made
    flip(path, FeatureCache.open(path).extents["rows/status"][1])
    problems = verify(path, dataset)
    assert [problem.id for problem in problems] == [None]
    assert repair(path, problems, dataset, NET, TORCH).unchanged == 13
    assert verify(path, dataset) == []


def test_a_row_of_another_image_is_found_by_extracting_again_and_repaired(made):
    dataset, path = made
    before = FeatureCache.open(path).matrix(dataset.ids[:10])
    rewrite(path, swap)
    assert verify(path, dataset) == []
    (problem,) = found_by_both(path, dataset)
    assert "extracted again, it differs by" in problem.what
    assert repair(path, [problem], dataset, NET, TORCH).unchanged == 13
    after = FeatureCache.open(path).matrix(dataset.ids[:10])
    assert_near(after, before)


def test_a_wrong_row_is_repaired_though_an_interrupted_update_has_it_too(made):
    dataset, path = made
    before = FeatureCache.open(path).matrix(dataset.ids[:10])
    rewrite(path, swap)
    more = many_images(300)
    for name, content in more.items():
        (dataset.root / name).write_bytes(content)
    with pytest.raises(Interrupted):
        run(open_folder(dataset.root, [*dataset.ids, *list(more)[10:]]), path, stop=StopAfter(1))
    repair(path, found_by_both(path, dataset), dataset, NET, TORCH)
    after = FeatureCache.open(path).matrix(dataset.ids[:10])
    assert_near(after, before)
