from __future__ import annotations

import os
import tracemalloc
import unicodedata
from pathlib import Path

import pytest

from spptransfer.datasets.csv_file import find_csv, read_csv
from spptransfer.errors import DatasetError


@pytest.fixture
def table(tmp_path):
    """Write a table, and an image for each of the names given."""

    def write(text: str, images=("a.jpg", "b.jpg", "sub/c.png"), encoding="utf-8") -> Path:
        for image in images:
            (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / image).touch()
        path = tmp_path / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_one_label_per_image(table):
    dataset = read_csv(table("path,label\na.jpg,dog\nsub/c.png,cat\nb.jpg,dog\n"))
    assert dataset.ids == ("a.jpg", "sub/c.png", "b.jpg")
    assert dataset.classes == ("cat", "dog")
    assert dataset.targets.tolist() == [1, 0, 1]
    assert dataset.official_splits == {}
    assert dataset.path("sub/c.png").is_file()


def test_several_labels_per_image_and_none(table):
    dataset = read_csv(table("path,labels\na.jpg,dog; cat\nb.jpg,\nsub/c.png,cat;;cat;\n"))
    assert dataset.classes == ("cat", "dog")
    assert dataset.targets.tolist() == [[1, 1], [-1, -1], [1, -1]]


def test_columns_come_in_any_order_and_others_are_ignored(table):
    text = "Split,author,LABEL,Path\ntrain,me,dog,a.jpg\ntest,you,cat,b.jpg\n,me,cat,sub/c.png\n"
    dataset = read_csv(table(text))
    assert dataset.ids == ("a.jpg", "b.jpg", "sub/c.png")
    assert dataset.targets.tolist() == [1, 0, 0]
    assert dataset.official_splits == {"train": ("a.jpg",), "test": ("b.jpg",)}


def test_what_spreadsheets_write_is_read(table):
    text = 'path,label\r\n"a.jpg","dog, small"\r\n\r\n b.jpg ,cat\r\n,\r\n'
    dataset = read_csv(table(text, encoding="utf-8-sig"))
    assert dataset.ids == ("a.jpg", "b.jpg")
    assert dataset.classes == ("cat", "dog, small")


def test_paths_may_be_absolute_or_climb(table, tmp_path):
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere.jpg"
    elsewhere.touch()
    for path in (str(elsewhere), f"../{elsewhere.name}"):
        dataset = read_csv(table(f"path,label\n{path},dog\n"))
        assert dataset.path(path).samefile(elsewhere)


def test_paths_with_backslashes_name_the_same_images_everywhere(table):
    text = "path,label,split\nsub\\c.png,dog,train\n.\\a.jpg,cat,train\n"
    dataset = read_csv(table(text))
    assert dataset.ids == ("sub/c.png", "a.jpg")
    assert dataset.official_splits == {"train": ("sub/c.png", "a.jpg")}
    assert all(path.is_file() for path in dataset.paths())


@pytest.mark.parametrize(
    "path",
    ["sub/c.png", "sub\\c.png", "./sub/c.png", "sub//c.png", "sub/../sub/c.png", "{0}/sub/c.png"],
)
def test_one_path_written_in_two_ways_is_told_with_both_rows(table, tmp_path, path):
    text = f"path,label\na.jpg,cat\n{path.format(tmp_path)},dog\nsub/c.png,cat\n"
    with pytest.raises(DatasetError, match=r"row 4: 'sub/c.png' is already in row 3"):
        read_csv(table(text))


def test_labels_that_differ_only_by_unicodes_form_are_one_class(table):
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    dataset = read_csv(table(f"path,label\na.jpg,{forms[0]}\nb.jpg,{forms[1]}\nsub/c.png,x\n"))
    assert dataset.classes == (forms[0], "x")
    assert dataset.targets.tolist() == [0, 0, 1]


def test_a_table_in_the_encoding_of_its_byte_order_mark_is_read(table):
    for encoding in ("utf-8-sig", "utf-16"):
        dataset = read_csv(table("path,label\na.jpg,Füchse\n", encoding=encoding))
        assert (dataset.ids, dataset.classes) == (("a.jpg",), ("Füchse",))


@pytest.mark.skipif(os.sep == "\\", reason="a backslash is no part of a name here")
def test_a_name_that_holds_a_backslash_is_kept_where_such_a_file_is(table):
    text = "path,label\nsub\\c.png,dog\nsub\\d.png,cat\n"
    dataset = read_csv(table(text, images=("sub\\c.png", "sub/c.png", "sub/d.png")))
    assert dataset.ids == ("sub\\c.png", "sub/d.png")
    assert all(path.is_file() for path in dataset.paths())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the header is ''; allowed: path,label or"),
        ("a.jpg,dog\n", "the header is 'a.jpg,dog'"),
        ("path;label\na.jpg;dog\n", "the header is 'path;label'"),
        ("path,label,labels\n", "the header is"),
        ("path,path,label\n", "the header is"),
        ("path,label\n", "no rows"),
        ("path,label\na.jpg,dog\nb.jpg\n", "row 3: 1 columns where the header has 2"),
        ("path,label\na.jpg,dog\nb.jpg,cat,x\n", "row 3: 3 columns"),
        ("path,label\na.jpg,\n", "row 2: the label is empty"),
        ("path,label\n,dog\n", "row 2: the path is empty"),
        ("path,label\na.jpg,dog\n\na.jpg,cat\n", "row 4: 'a.jpg' is already in row 2"),
        ("path,labels\na.jpg,\n", "no row has a label"),
        ('path,label\n"a.jpg,dog\n', "row 2"),
        ("path,label\na.jpg\0,dog\n", "the path .* ends in a NUL"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(table, text, message):
    with pytest.raises(DatasetError, match=message):
        read_csv(table(text))


def test_a_missing_image_is_no_reason_to_refuse_a_table(table):
    dataset = read_csv(table("path,label\nno.jpg,dog\nsub,cat\nb.jpg,cat\n"))
    assert dataset.ids == ("no.jpg", "sub", "b.jpg")
    dataset.check_images()


def test_another_encoding_is_refused(table):
    with pytest.raises(DatasetError, match="is not UTF-8 text"):
        read_csv(table("path,label\na.jpg,Füchse\n", encoding="latin-1"))


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read .*labels\.csv: neither a file nor a fol"):
        read_csv(tmp_path / "labels.csv")


def test_the_only_table_of_a_folder_is_found(table, tmp_path):
    path = table("path,label\na.jpg,dog\n")
    assert find_csv(path) == path
    assert find_csv(tmp_path) == path
    (tmp_path / "more.csv").touch()
    assert find_csv(tmp_path) is None
    with pytest.raises(DatasetError, match="nor a folder with one CSV file"):
        read_csv(tmp_path)
    assert find_csv(tmp_path / "none") is None


def test_a_large_table_is_held_as_text_of_fixed_width_and_numbers(tmp_path):
    rows = (f"{number % 100:02d}/{number:06d}.jpg,a;b,train\n" for number in range(20_000))
    (tmp_path / "labels.csv").write_text("path,labels,split\n" + "".join(rows))
    tracemalloc.start()
    try:
        dataset = read_csv(tmp_path / "labels.csv")
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == 20_000
    assert held / len(dataset) < 70  # two ids of 13 bytes, their order, and two labels
    assert peak / len(dataset) < 200
