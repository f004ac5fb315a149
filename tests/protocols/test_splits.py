from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.datasets import Dataset
from spptransfer.errors import DatasetError
from spptransfer.protocols import (
    Split,
    check_splits,
    read_splits,
    shared_content,
    splits_checksum,
    write_splits,
)
from spptransfer.protocols.splits import deal, images_per_class, ranked, with_folds


def single_label(*sizes: int) -> Dataset:
    labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
    ids = tuple(f"{label}/{number}.jpg" for number, label in enumerate(labels))
    return Dataset(
        "folder", Path("/i"), ids, tuple(f"class {k}" for k in range(len(sizes))), labels
    )


def multi_label(targets) -> Dataset:
    array = np.array(targets, dtype=np.int8)
    ids = tuple(f"{number}.jpg" for number in range(len(array)))
    return Dataset("csv", Path("/i"), ids, tuple("abcdefg"[: array.shape[1]]), array)


# ------------------------------------------------------------------------------- what a split is


def test_overlap_of_train_and_test_is_refused_with_an_example():
    with pytest.raises(DatasetError, match="split 1: 2 images are in train and test, 'b' for one"):
        Split("split 1", ("a", "b", "c"), ("c", "b", "d"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ((), ("a",), "no train images"),
        (("a", "a"), ("b",), "train list holds an id more than once"),
        (("a",), ("b", "b"), "test list holds an id more than once"),
    ],
)
def test_empty_lists_and_repeated_ids_are_refused(train, test, message):
    with pytest.raises(DatasetError, match=message):
        Split("split 1", train, test)


@pytest.mark.parametrize("fold", [(), ("a", "b"), ("c",), ("a", "c"), ("a", "a")])
def test_a_fold_must_be_a_proper_part_of_train(fold):
    with pytest.raises(DatasetError, match="fold 2 must hold some but not all train images"):
        Split("split 1", ("a", "b"), ("c",), (("a",), fold))


# ------------------------------------------------------------------------------------ checksums


def test_the_checksum_is_that_of_the_canonical_lists():
    text = '{"folds":[["b"]],"test":["c"],"train":["a","b"]}'
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert Split("any", ("b", "a"), ("c",), (("b",),)).checksum == expected


def test_the_checksum_ignores_order_and_name_but_nothing_else():
    split = Split("split 1", ("a", "b", "c"), ("d", "e"), (("a", "b"),))
    assert Split("other", ("c", "a", "b"), ("e", "d"), (("b", "a"),)).checksum == split.checksum
    changed = [
        Split("split 1", ("a", "b", "f"), ("d", "e"), (("a", "b"),)),
        Split("split 1", ("a", "b", "c"), ("d",), (("a", "b"),)),
        Split("split 1", ("a", "b", "c"), ("d", "e"), (("a",),)),
        Split("split 1", ("a", "b", "c"), ("d", "e")),
        Split("split 1", ("a", "b", "c", "d"), ("e",), (("a", "b"),)),
    ]
    assert split.checksum not in {other.checksum for other in changed}
    assert len({other.checksum for other in changed}) == len(changed)


def test_ids_that_look_alike_when_joined_have_different_checksums():
    assert Split("s", ("a,b",), ("c",)).checksum != Split("s", ("a", "b"), ("c",)).checksum
    assert Split("s", ('a","b',), ("c",)).checksum != Split("s", ("a", "b"), ("c",)).checksum


def test_the_overall_checksum_depends_on_the_order_of_splits():
    one, two = Split("1", ("a",), ("b",)), Split("2", ("b",), ("a",))
    assert splits_checksum([one, two]) != splits_checksum([two, one])


# ----------------------------------------------------------------------------- the seeded rule


def test_the_order_is_that_of_the_sha256_digests():
    ids = [f"cat/{number}.jpg" for number in range(50)]
    digests = {id: hashlib.sha256(f"7/3/{id}".encode()).hexdigest() for id in ids}
    assert ranked(ids, 7, "3") == sorted(ids, key=digests.__getitem__)


@given(st.sets(st.text(max_size=5), max_size=20), st.integers(0, 5))
def test_an_ids_rank_does_not_depend_on_the_other_ids(ids, seed):
    order = ranked(ids, seed, "1")
    assert sorted(order) == sorted(ids)
    some = sorted(ids)[::2]
    assert ranked(some, seed, "1") == [id for id in order if id in set(some)]


def test_another_seed_or_split_gives_another_order():
    ids = [str(number) for number in range(100)]
    orders = {tuple(ranked(ids, seed, split)) for seed in (0, 1) for split in ("1", "2")}
    assert len(orders) == 4


# ------------------------------------------------------------------------------ strata and folds


def test_ignored_labels_do_not_count_as_images_of_a_class():
    dataset = multi_label([[1, 0], [1, 1], [0, -1]])
    assert images_per_class(dataset, dataset.ids).tolist() == [2, 1]
    assert images_per_class(single_label(2, 3), ["1/2.jpg"]).tolist() == [0, 1]


SETTINGS = {"seed": 0, "folds": 3, "choose_C": "shared", "splits": 1}


def folded(dataset, **changes):
    return with_folds(Split("s", tuple(dataset.ids), ()), dataset, SETTINGS | changes, "1")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 5), st.integers(0, 3))
def test_folds_cover_train_once_and_share_every_class_evenly(sizes, n_folds, seed):
    dataset = single_label(*sizes)
    if len(dataset) < n_folds:
        with pytest.raises(DatasetError, match="cannot be dealt"):
            folded(dataset, folds=n_folds, seed=seed)
        return
    folds = folded(dataset, folds=n_folds, seed=seed).folds
    assert sorted(id for fold in folds for id in fold) == sorted(dataset.ids)
    counts = np.array([images_per_class(dataset, fold) for fold in folds])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 6))
def test_folds_of_several_labels_hold_their_share_of_every_label(seed, n_folds, n_labels):
    rng = np.random.default_rng(seed)
    targets = np.where(rng.random((120, n_labels)) < rng.uniform(0.02, 0.5, n_labels), 1, -1)
    targets[rng.random(targets.shape) < 0.05] = 0
    dataset = multi_label(targets)
    folds = folded(dataset, folds=n_folds).folds
    assert sorted(id for fold in folds for id in fold) == sorted(dataset.ids)
    counts = np.array([images_per_class(dataset, fold) for fold in folds])
    share = images_per_class(dataset, dataset.ids) / n_folds
    assert np.abs(counts - share).mean() <= 1.5
    rarest = share.argmin()
    assert np.ptp(counts[:, rarest]) <= 1


def test_an_image_of_several_labels_goes_where_its_rarest_is_wanted_most():
    # Worked by hand after Sechidis et al. (2011), figure 1, with the first part for their draws.
    present = np.array([[1, 1], [1, 0], [1, 0], [0, 1], [0, 0], [1, 0]], dtype=bool)
    parts = deal(present, (0.5, 0.5))
    assert [part.tolist() for part in parts] == [[0, 2, 4], [1, 3, 5]]


def test_where_C_is_chosen_per_class_a_split_says_how_many_folds_each_class_has():
    dataset = multi_label([[1, -1], [-1, 1]] * 6)
    split = folded(dataset, choose_C="per class")
    assert (split.folds, split.class_folds, split.n_folds) == ((), 3, 3)
    assert split.train == tuple(ranked(dataset.ids, 0, "1/folds"))
    official = {key: value for key, value in SETTINGS.items() if key != "splits"}
    listed = with_folds(
        Split("s", tuple(dataset.ids), ()), dataset, official | {"choose_C": "per class"}, "1"
    )
    assert listed.train == dataset.ids
    assert listed.checksum != split.checksum  # whose order of training images tells the folds


def test_no_folds_are_asked_for_with_zero():
    assert folded(single_label(2, 2), folds=0).n_folds == 0


# ------------------------------------------------------------------------- splits and a dataset


def test_splits_that_fit_the_dataset_pass():
    dataset = single_label(3, 3)
    folds = (("0/0.jpg", "1/3.jpg"), ("0/1.jpg", "1/4.jpg"))
    train = ("0/0.jpg", "0/1.jpg", "1/3.jpg", "1/4.jpg")
    check_splits([Split("1", train, ("0/2.jpg",), folds)], dataset)


def test_ids_that_the_dataset_lacks_are_named():
    dataset = single_label(3, 3)
    train = ("0/0.jpg", "1/3.jpg")
    for split in (Split("1", (*train, "no.jpg"), ("0/1.jpg",)), Split("1", train, ("no.jpg",))):
        with pytest.raises(DatasetError, match=r"no image with the id 'no\.jpg'"):
            check_splits([split], dataset)


def test_a_class_without_training_images_is_named():
    with pytest.raises(DatasetError, match="split 9: class 'class 1' has no training image"):
        check_splits([Split("split 9", ("0/0.jpg",), ("1/3.jpg",))], single_label(3, 3))
    dataset = multi_label([[1, 0], [1, -1], [-1, 1]])
    with pytest.raises(DatasetError, match="class 'b' has no training image"):
        check_splits([Split("1", ("0.jpg", "1.jpg"), ("2.jpg",))], dataset)


def test_a_class_without_images_beside_a_fold_is_named():
    train = ("0/0.jpg", "0/1.jpg", "1/3.jpg")
    split = Split("1", train, ("1/4.jpg",), (("0/0.jpg", "1/3.jpg"), ("0/1.jpg",)))
    with pytest.raises(DatasetError, match=r"class 'class 1' has too few .*protocol\.folds=0"):
        check_splits([split], single_label(3, 3))


def test_a_class_of_one_training_image_cannot_have_folds_of_its_own():
    dataset = multi_label([[1, -1], [-1, 1], [1, -1], [1, 1]])
    split = Split("1", ("0.jpg", "1.jpg", "2.jpg"), ("3.jpg",), class_folds=3)
    with pytest.raises(DatasetError, match=r"class 'b' has too few .* by 3 folds"):
        check_splits([split], dataset)


def test_a_split_without_test_images_is_refused():
    with pytest.raises(DatasetError, match="split 1: there are no test images"):
        check_splits([Split("split 1", ("0/0.jpg", "1/3.jpg"), ())], single_label(3, 3))


def test_no_splits_are_refused():
    with pytest.raises(DatasetError, match="no splits"):
        check_splits([], single_label(3, 3))


def test_the_same_content_in_train_and_test_is_reported():
    split = Split("1", ("a", "b", "c"), ("d", "e", "f", "g"))
    digests = {"a": "1", "b": "2", "c": "2", "d": "2", "e": "3", "f": "1"}
    assert shared_content(split, digests) == [("b", "d"), ("a", "f")]
    assert shared_content(split, {}) == []
    assert shared_content(split, {"d": "2", "e": "2"}) == []


# -------------------------------------------------------------------------------------- the file

AWKWARD = [
    Split("split 1", ("ü/ñ.jpg", 'a"b', "c\nd"), ("日本/画像.png",), (("c\nd",),)),
    Split("split 2", ("x", "z"), ("y",), class_folds=2),
]


def test_splits_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new folder" / "splits.json"
    write_splits(path, AWKWARD, description="what they are")
    assert read_splits(path) == AWKWARD
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["checksum"] == splits_checksum(AWKWARD)
    assert content["description"] == "what they are"
    assert [path.name for path in path.parent.iterdir()] == ["splits.json"]


def test_ids_that_are_no_utf8_are_ranked_written_and_read_like_others(tmp_path):
    ids = ["a", "\udcff", "ü"]
    assert sorted(ranked(ids, 0, "1")) == sorted(ids)
    splits = [Split("split 1", train=("a", "ü"), test=("\udcff",))]
    write_splits(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json") == splits
    assert '"ü"' in (tmp_path / "splits.json").read_text("utf-8")


def test_lists_written_by_hand_need_neither_names_nor_checksum(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text('{"splits": [{"train": ["a"], "test": ["b"]}]}')
    assert read_splits(path) == [Split("split 1", ("a",), ("b",))]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark
    assert read_splits(path) == [Split("split 1", ("a",), ("b",))]


def test_lists_that_were_changed_are_refused(tmp_path):
    path = tmp_path / "splits.json"
    write_splits(path, AWKWARD)
    path.write_text(path.read_text().replace('"y"', '"w"'))
    with pytest.raises(DatasetError, match="do not have the checksum"):
        read_splits(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"splits": [{"train": ["a"]}]}',
        '{"splits": [{"train": "ab", "test": ["c"]}]}',
        '{"splits": [{"train": [1], "test": ["c"]}]}',
        '{"splits": [{"train": ["a"], "test": ["c"], "class_folds": 1}]}',
        '{"splits": 3}',
        '{"format": "something-else", "splits": []}',
        '{"format_version": 99, "splits": []}',
    ],
)
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"splits\.json.*(expected|not a file)") as caught:
        read_splits(path)
    assert "\n" not in str(caught.value)


def test_a_file_with_overlapping_lists_is_refused(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text('{"splits": [{"train": ["a"], "test": ["a"]}]}')
    with pytest.raises(DatasetError, match="in train and test"):
        read_splits(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="No such file"):
        read_splits(tmp_path / "splits.json")
