"""What is read of a run folder, what is refused, and what results say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from spptransfer.errors import ConfigError
from spptransfer.report.run_folder import (
    MissingPartError,
    RunFolder,
    chosen_C,
    dataset_title,
    metrics_of,
    per_class_metric,
    read_results,
    stages,
    validation_curves,
)

HEADLINE = {"metric": "b", "value": 0.5, "std": None}


def opened(run) -> RunFolder:
    return RunFolder.of(run, read_results(run))


def test_a_folder_without_results_and_a_file_are_no_run_folders(tmp_path):
    (tmp_path / "model").write_text("")
    for path in (tmp_path, tmp_path / "model"):
        with pytest.raises(ConfigError, match=r"is not a run folder: it has no results\.json"):
            read_results(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "cannot be read") for text in ("", "{", "\x00\xff", "[" * 100_000)),
        *((text, "not a results file") for text in ("[]", "1", "null", '{"format": "other"}')),
        (
            '{"format": "spptransfer-results", "format_version": 2}',
            "version 2; this spptransfer reads version 1",
        ),
    ],
)
def test_what_holds_no_results_is_told_in_one_line(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message) as caught:
        read_results(tmp_path)
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lacking_section_is_named(make_run):
    run = make_run(2, change=lambda results: results.pop("headline"))
    with pytest.raises(ConfigError, match="lacks 'headline'"):
        opened(run)


def test_optional_sections_are_empty_where_absent_or_null(make_run):
    run = make_run(2, change=lambda results: (results.pop("rows"), results.update(timings=None)))
    results = opened(run).results
    assert results["rows"] == results["timings"] == {}


def test_nan_in_the_results_is_no_number(make_run):
    run = make_run(2, change=lambda results: results.update(name=math.nan, command=-math.inf))
    assert (read_results(run)["name"], read_results(run)["command"]) == (None, None)


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_come_split_by_split_as_written(make_run, multi_label):
    run = make_run(3, splits=2, test=9, multi_label=multi_label)
    splits = opened(run).predictions()
    assert len(splits) == 2
    with np.load(run / "predictions.npz") as arrays:
        for number, split in enumerate(splits):
            for key, array in split._asdict().items():
                np.testing.assert_array_equal(array, arrays[f"split{number:02d}/{key}"])


def test_a_missing_score_never_wins(make_run, change_predictions):
    scores = np.array([[np.nan, -5, -6], [np.nan, np.nan, -9], [0, np.nan, 1]], np.float32)
    run = change_predictions(make_run(3, test=3), scores=scores)
    (split,) = opened(run).predictions()
    assert split.scores.argmax(axis=1).tolist() == [1, 2, 2]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"\x80\x04pickle"])
def test_damaged_parts_are_told_from_absent_ones(make_run, damage):
    run = make_run(2)
    (run / "predictions.npz").write_bytes(damage)
    (run / "model.safetensors").write_bytes(damage)
    with pytest.raises(MissingPartError, match="cannot be read"):
        opened(run).predictions()
    with pytest.raises(MissingPartError, match="cannot be read"):
        list(opened(run).weight_blocks())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("ids", np.array([{}], dtype=object)),  # pickled: never loaded
        ("scores", np.zeros((40, 3), np.float32)),
        ("scores", np.zeros(40, np.float32)),
        ("targets", np.zeros((40, 2), np.int8)),
        ("targets", np.full(40, 2, np.int32)),
        ("targets", np.full(40, -1, np.int32)),
    ],
)
def test_predictions_that_do_not_fit_the_results_are_refused(
    make_run, change_predictions, name, array
):
    run = change_predictions(make_run(2, test=40), **{name: array})
    with pytest.raises(MissingPartError, match=r"predictions\.npz cannot be read"):
        opened(run).predictions()


def test_weights_of_another_shape_are_refused(make_run):
    run = make_run(3)
    save_file({"coef": np.zeros((2, 63), np.float32)}, run / "model.safetensors")
    with pytest.raises(MissingPartError, match=r"coef has shape \(2, 63\), not \(3, 63\)"):
        list(opened(run).weight_blocks())


def test_weight_blocks_are_the_columns_of_the_matrix(make_run):
    run = make_run(3, levels=(4, None, 1))
    coefficients = load_file(run / "model.safetensors")["coef"]
    blocks = list(opened(run).weight_blocks())
    assert [level for level, _ in blocks] == [4, None, 1]
    np.testing.assert_array_equal(np.hstack([weights for _, weights in blocks]), coefficients)


@pytest.mark.parametrize(
    ("template", "image_id", "relative"),
    [
        ("{id}", "a/b.jpg", "a/b.jpg"),
        ("JPEGImages/{id}.jpg", "000012", "JPEGImages/000012.jpg"),
        ("{id}", "{id.__class__}", "{id.__class__}"),
        ("{id.__class__}", "x", "{id.__class__}"),
        (None, "x", "x"),
    ],
)
def test_image_paths_fill_in_the_id_and_nothing_else(
    make_run, tmp_path, template, image_id, relative
):
    def change(results):
        results["dataset"].update(root=str(tmp_path), path_template=template)

    assert opened(make_run(2, change=change)).image_path(image_id) == tmp_path / relative


def test_without_a_root_no_image_has_a_path(make_run):
    assert opened(make_run(2)).image_path("x") is None


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_a_dataset_without_a_name_of_its_own_is_called_by_its_folder(layout):
    assert dataset_title({"dataset": {"name": layout, "root": "/data/my birds"}}) == "my birds"
    assert dataset_title({"dataset": {"name": layout, "root": None}}) == layout
    assert dataset_title({"dataset": {"name": "caltech101", "root": "/data/x"}}) == "caltech101"


def test_the_headline_comes_first_even_if_it_is_not_among_the_metrics():
    results = {"headline": HEADLINE, "metrics": {name: {"value": 0.1} for name in "cab"}}
    assert list(metrics_of(results)) == ["b", "c", "a"]
    assert metrics_of({"headline": HEADLINE}) == {"b": HEADLINE}


def test_the_headline_is_shown_per_class_only_where_it_is_known():
    known = {"a": {"value": 0, "per_class": {"x": 1.0}}, "b": {"value": 0, "per_class": None}}
    assert per_class_metric({"headline": HEADLINE, "metrics": known}) == "a"
    known["b"]["per_class"] = {"x": 0.5}
    assert per_class_metric({"headline": HEADLINE, "metrics": known}) == "b"
    assert per_class_metric({"headline": HEADLINE, "metrics": {}}) is None


def test_choices_of_C_are_counted_class_by_class():
    splits = [{"C": {"a": 1, "b": 10}}, {"C": {"a": 1.0, "b": 0.1}}, {}]
    assert chosen_C({"splits": splits}) == {"a": {1.0: 2}, "b": {10.0: 1, 0.1: 1}}


def test_validation_curves_rise_in_C_and_leave_out_what_was_not_scored():
    points = [{"C": 1, "score": 0.8}, {"C": 0.1, "score": 0.7}, {"C": 10, "score": None}]
    splits = [{"validation": points}, {"validation": None}, {}]
    assert validation_curves({"splits": splits}) == [[(0.1, 0.7), (1.0, 0.8)]]


@given(
    st.dictionaries(
        st.sampled_from(["load", "read", "compute", "write", "train", "total"]),
        st.none() | st.floats(0, 1e6),
    )
)
def test_the_stages_make_up_the_whole_even_if_they_overlap(timings):
    shares = [share for _, _, share in stages(timings)]
    assert shares == [] or sum(shares) == pytest.approx(1)
    assert all(share >= 0 for share in shares)
