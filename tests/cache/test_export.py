from __future__ import annotations

import csv
import importlib.util

import numpy as np
import pytest
from cache_files import make_cache, make_spec

from spptransfer.cache import FeatureCache, Labels
from spptransfer.cache.export import export
from spptransfer.errors import CacheError, ConfigError


@pytest.fixture
def cache(tmp_path):
    make_cache(tmp_path / "a.h5", 10, make_spec(scales=(48, 64), levels=(2,)), failed=[4])
    return FeatureCache.open(tmp_path / "a.h5")


def test_npz_holds_what_the_matrix_holds(cache, tmp_path):
    assert export(cache, tmp_path / "x.npz", levels=[2, 1]) == 9
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["features"], cache.matrix(levels=[2, 1]))
        assert file["ids"].tolist() == cache.ids
        assert file["labels"].tolist() == cache.labels().tolist()
        assert file["classes"].tolist() == ["ant", "bee", "cat"]
        assert file["columns"][0] == "scale48_level2_channel0_bin0_0"
        assert len(file["columns"]) == file["features"].shape[1]


def test_csv_restores_every_number_exactly(cache, tmp_path):
    some = cache.ids[7:2:-2]
    export(cache, tmp_path / "x.csv", some, levels=[1], combine="max")
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "label", *(f"max_level1_channel{i}_bin0_0" for i in range(3))]
    assert [row[0] for row in rows] == some
    assert [row[1] for row in rows] == cache.labels(some).tolist()
    numbers = np.array([row[2:] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(numbers, cache.matrix(some, levels=[1], combine="max"))


def test_several_labels_per_image_become_a_column_per_class(tmp_path):
    labels = Labels(("a", "b"), np.array([[1, -1], [0, 1]], dtype=np.int8))
    make_cache(tmp_path / "a.h5", 2, make_spec(levels=(1,)), labels=labels)
    export(FeatureCache.open(tmp_path / "a.h5"), tmp_path / "x.csv")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0].startswith("id,label_a,label_b,scale64_level1_channel0_bin0_0")
    assert lines[2].split(",")[1:3] == ["0", "1"]


def test_parquet_holds_what_the_matrix_holds(cache, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    export(cache, tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column("id").to_pylist() == cache.ids
    stored = np.stack([table.column(i).to_numpy() for i in range(2, table.num_columns)], axis=1)
    np.testing.assert_array_equal(stored, cache.matrix())


def test_tensors_for_the_projector_come_with_metadata_and_its_configuration(cache, tmp_path):
    assert export(cache, tmp_path / "tensors.tsv", levels=[1]) == 9
    read = np.loadtxt(tmp_path / "tensors.tsv", dtype=np.float32, delimiter="\t")
    np.testing.assert_array_equal(read, cache.matrix(levels=[1]))
    header, *lines = (tmp_path / "metadata.tsv").read_text().splitlines()
    assert header == "id\tlabel"
    expected = zip(cache.ids, cache.labels().tolist(), strict=True)
    assert [tuple(line.split("\t")) for line in lines] == list(expected)
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "tensors.tsv"' in config
    assert 'metadata_path: "metadata.tsv"' in config
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(ConfigError, match=r"name the file tensors\.tsv"):
        export(cache, tmp_path / "metadata.tsv")


def test_metadata_of_ids_alone_have_no_header_and_stay_on_one_line_each(tmp_path):
    ids = ["a\tb.jpg", "two\nlines.jpg", "\udcff.jpg"]
    make_cache(tmp_path / "a.h5", ids=ids, labels=None)
    export(FeatureCache.open(tmp_path / "a.h5"), tmp_path / "tensors.tsv")
    lines = (tmp_path / "metadata.tsv").read_text("utf-8").splitlines()
    assert sorted(lines) == sorted(["a\\tb.jpg", "two\\nlines.jpg", "\\udcff.jpg"])


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_ids_and_classes_of_any_kind_are_exported(tmp_path, suffix):
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    ids, classes = ["\udcff.jpg", 'ü, "line\nbreak".jpg'], ("c\udce9", "d")
    expected = list(zip(ids, classes, strict=True))
    labels = Labels(classes, np.arange(2, dtype=np.int32))
    make_cache(tmp_path / "a.h5", ids=ids, labels=labels)
    path = tmp_path / f"x{suffix}"
    export(FeatureCache.open(tmp_path / "a.h5"), path)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = list(zip(file["ids"].tolist(), file["labels"].tolist(), strict=True))
    elif suffix == ".csv":
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            found = [tuple(row[:2]) for row in csv.reader(file)][1:]
    else:
        columns = parquet.read_table(path).to_pydict()
        found = list(zip(columns["id"], columns["label"], strict=True))
        expected[0] = ("\\udcff.jpg", "c\\udce9")  # it takes nothing but UTF-8
    assert found == expected


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is there")
def test_parquet_without_pyarrow_says_what_to_install(cache, tmp_path):
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        export(cache, tmp_path / "x.parquet")


def test_a_failed_export_leaves_nothing_behind(cache, tmp_path):
    with pytest.raises(CacheError, match="has no row 'x'"):
        export(cache, tmp_path / "x.csv", ["x"])
    with pytest.raises(CacheError, match="no rows to export"):
        export(cache, tmp_path / "x.csv", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
