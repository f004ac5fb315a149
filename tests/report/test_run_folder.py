from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spptransfer.errors import ConfigError
from spptransfer.report.run_folder import MissingPartError, RunFolder


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no results\.json"):
        RunFolder.open(tmp_path)


def test_a_file_instead_of_a_folder_is_no_run(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder.open(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "{", "\x00\xff", "[" * 100_000])
def test_damaged_json_is_one_line(tmp_path, text):
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        RunFolder.open(tmp_path)
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", [[], 1, None, {}, {"format": "other"}])
def test_json_of_another_kind_is_refused(tmp_path, contents):
    (tmp_path / "results.json").write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match="not a results file"):
        RunFolder.open(tmp_path)


def test_a_later_version_is_refused_by_number(make_run):
    run = make_run(2, change=lambda results: results.update(format_version=2))
    with pytest.raises(ConfigError, match="version 2; this spptransfer reads version 1"):
        RunFolder.open(run)


def test_a_lacking_section_is_named(make_run):
    run = make_run(2, change=lambda results: results.pop("headline"))
    with pytest.raises(ConfigError, match="lacks 'headline'"):
        RunFolder.open(run)


def test_optional_sections_are_empty_where_absent_or_null(make_run):
    run = make_run(2, change=lambda results: (results.pop("rows"), results.update(timings=None)))
    results = RunFolder.open(run).results
    assert results["rows"] == {}
    assert results["timings"] == {}


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_come_split_by_split_as_written(make_run, multi_label):
    run = make_run(3, splits=2, test=9, multi_label=multi_label)
    splits = list(RunFolder.open(run).predictions())
    assert len(splits) == 2
    with np.load(run / "predictions.npz") as arrays:
        for number, split in enumerate(splits):
            np.testing.assert_array_equal(split.ids, arrays[f"split{number:02d}/ids"])
            np.testing.assert_array_equal(split.scores, arrays[f"split{number:02d}/scores"])
            np.testing.assert_array_equal(split.targets, arrays[f"split{number:02d}/targets"])


def test_a_missing_score_never_wins(make_run):
    run = make_run(3, test=3)
    scores = np.array([[np.nan, -5, -6], [np.nan, np.nan, -9], [0, np.nan, 1]], np.float32)
    ids, targets = np.array(["a", "b", "c"]), np.arange(3)
    np.savez(
        run / "predictions.npz",
        **{"split00/ids": ids, "split00/scores": scores, "split00/targets": targets},
    )
    (split,) = RunFolder.open(run).predictions()
    assert split.predicted.tolist() == [1, 2, 2]


def test_absent_parts_say_which_file_is_missing(make_run):
    run = RunFolder.open(make_run(2, predictions=False, model=False))
    with pytest.raises(MissingPartError, match=r"no predictions\.npz"):
        list(run.predictions())
    with pytest.raises(MissingPartError, match=r"no model\.safetensors"):
        list(run.weight_blocks())


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"\x80\x04pickle"])
def test_damaged_parts_are_told_from_absent_ones(make_run, damage):
    run = make_run(2)
    (run / "predictions.npz").write_bytes(damage)
    (run / "model.safetensors").write_bytes(damage)
    with pytest.raises(MissingPartError, match="cannot be read"):
        list(RunFolder.open(run).predictions())
    with pytest.raises(MissingPartError, match="cannot be read"):
        list(RunFolder.open(run).weight_blocks())


def test_pickled_predictions_are_never_loaded(make_run):
    run = make_run(2)
    np.savez(run / "predictions.npz", **{"split00/ids": np.array([{}], dtype=object)})
    with pytest.raises(MissingPartError, match="cannot be read"):
        list(RunFolder.open(run).predictions())


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("scores", np.zeros((40, 3), np.float32)),
        ("scores", np.zeros(40, np.float32)),
        ("targets", np.zeros((40, 2), np.int8)),
        ("targets", np.full(40, 2, np.int32)),
        ("targets", np.full(40, -1, np.int32)),
    ],
)
def test_predictions_that_do_not_fit_the_results_are_refused(make_run, name, array):
    run = make_run(2, test=40)
    with np.load(run / "predictions.npz") as file:
        arrays = {**file, f"split00/{name}": array}
    np.savez(run / "predictions.npz", **arrays)
    with pytest.raises(MissingPartError, match=f"split00/{name}"):
        list(RunFolder.open(run).predictions())


def test_weights_of_another_shape_are_refused(make_run):
    run = make_run(3)
    weights = np.zeros((2, 63), np.float32)
    save_file({"coef": weights}, run / "model.safetensors")
    with pytest.raises(MissingPartError, match=r"coef has shape \(2, 63\), not \(3, 63\)"):
        list(RunFolder.open(run).weight_blocks())


def test_weight_blocks_are_the_columns_of_the_matrix(make_run):
    run = make_run(3, levels=(4, None, 1))
    coefficients = load_file(run / "model.safetensors")["coef"]
    blocks = list(RunFolder.open(run).weight_blocks())
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

    assert RunFolder.open(make_run(2, change=change)).image_path(image_id) == tmp_path / relative


def test_without_a_root_no_image_has_a_path(make_run):
    assert RunFolder.open(make_run(2)).image_path("x") is None
