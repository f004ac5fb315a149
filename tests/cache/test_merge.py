from __future__ import annotations

import numpy as np
import pytest
from cache_files import make_cache, make_ids, make_spec, write_cache
from damaged_caches import flip, position_of

from spptransfer.cache import Labels
from spptransfer.cache.verify import verify
from spptransfer.cache.writer import merge
from spptransfer.errors import CacheError

IDS = make_ids(12)


def test_caches_of_disjoint_ids_become_one(tmp_path):
    _, a = make_cache(tmp_path / "a.h5", ids=IDS[:5])
    _, b = make_cache(tmp_path / "b.h5", ids=IDS[5:], seed=1)
    merged = merge(tmp_path / "c.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert merged.ids == IDS
    block = merged.blocks[0]
    np.testing.assert_array_equal(merged.matrix(), np.concatenate([a[block], b[block]]))
    assert len(merged.labels()) == 12
    assert verify(tmp_path / "c.h5") == []


def test_a_cache_that_adds_nothing_changes_nothing(tmp_path):
    make_cache(tmp_path / "a.h5")
    merge(tmp_path / "b.h5", [tmp_path / "a.h5"] * 3)
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    make_cache(tmp_path / "a.h5")
    with pytest.raises(CacheError, match=r"cannot write .*No such file"):
        merge(tmp_path / "gone" / "b.h5", [tmp_path / "a.h5"])


@pytest.mark.parametrize(
    "other",
    [
        Labels(("x",), np.zeros(7, np.int32)),
        Labels(("ant", "bee", "cat"), np.ones((7, 3), np.int8)),
    ],
)
def test_labels_of_other_classes_or_of_several_an_image_are_not_mixed(tmp_path, other):
    make_cache(tmp_path / "a.h5", ids=IDS[:5])
    make_cache(tmp_path / "b.h5", ids=IDS[5:], seed=1, labels=other)
    merged = merge(tmp_path / "c.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert (merged.ids, merged.classes) == (IDS, ())


def test_a_row_with_features_goes_before_a_failed_one(tmp_path):
    make_cache(tmp_path / "a.h5", ids=IDS[:4], failed=[1, 2])
    make_cache(tmp_path / "b.h5", ids=IDS[1:2], seed=1)
    merged = merge(tmp_path / "c.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert set(merged.ids) == {IDS[0], IDS[1], IDS[3]}
    assert dict(merged.failures) == {IDS[2]: "reason 2"}


def test_a_cache_may_be_merged_into_itself(tmp_path):
    make_cache(tmp_path / "a.h5", ids=IDS[:5])
    make_cache(tmp_path / "b.h5", ids=IDS[5:], seed=1)
    assert len(merge(tmp_path / "a.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])) == 12


def test_a_damaged_row_is_not_carried_over(tmp_path):
    make_cache(tmp_path / "a.h5")
    flip(tmp_path / "a.h5", position_of(tmp_path / "a.h5", "features/spp/scale_64/level_4", 2))
    with pytest.raises(CacheError, match="is not what was written"):
        merge(tmp_path / "c.h5", [tmp_path / "a.h5"])


def test_nothing_to_merge_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="at least one"):
        merge(tmp_path / "c.h5", [])


def test_nothing_is_merged_over_a_cache_that_is_no_source(tmp_path):
    make_cache(tmp_path / "a.h5", 4)
    make_cache(tmp_path / "c.h5", 4, make_spec(weights_sha256="ff"))
    before = (tmp_path / "c.h5").read_bytes()
    with pytest.raises(CacheError, match=r"c\.h5' is there already"):
        merge(tmp_path / "c.h5", [tmp_path / "a.h5"])
    assert (tmp_path / "c.h5").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5", "c.h5"]


def test_shards_merged_in_order_are_the_cache_of_the_whole(tmp_path):
    rows, features = make_cache(tmp_path / "whole.h5", 40, failed=[7], labels=None)
    for number in range(4):
        part = np.arange(number * 10, number * 10 + 10)
        some = {block: values[part] for block, values in features.items()}
        write_cache(tmp_path / f"{number}.h5", rows.take(part), some, make_spec())
    merged = merge(tmp_path / "m.h5", [tmp_path / f"{number}.h5" for number in range(4)])
    assert merged.path.read_bytes() == (tmp_path / "whole.h5").read_bytes()
