from __future__ import annotations

import dataclasses
import json

import pytest
from small_projects import draw_folder, experiment, pipeline

from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import precision_note
from spptransfer.cache.unfinished import parts_folder
from spptransfer.config import parse_pipeline
from spptransfer.errors import ConfigError
from spptransfer.experiment import (
    Machine,
    extract_features,
    prepare,
    prepare_grid,
    run,
    run_grid,
    train,
)
from spptransfer.experiment import precision as experiment_precision
from spptransfer.experiment.precision import decide
from spptransfer.extraction import precision
from spptransfer.extraction.precision import PrecisionChoice

LOW = PrecisionChoice("bfloat16", "2.0 times as fast; off by 0.40 %", 0.004, 2.0)
HIGH = PrecisionChoice("float32", "bfloat16 is only 1.00 times as fast here", None, 1.0)
UNTRIED = PrecisionChoice("float32", "fewer than 64 images: bfloat16 is not tried")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def asked(monkeypatch):
    """Layers that a choice was asked for, which is always bfloat16."""
    seen = []

    def choose(load_backbone, specs, sources, *, count, device, runtime):
        seen.append([spec.layer for spec in specs])
        assert count == len(list(sources)) == 18
        return LOW

    monkeypatch.setattr(precision, "choose_precision", choose)
    return seen


def choosing(monkeypatch, choice):
    monkeypatch.setattr(precision, "choose_precision", lambda *_, **__: choice)


def forbid(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the choice has been made")

    monkeypatch.setattr(precision, "choose_precision", fail)


def given(name):
    return {"precision": name}


def test_the_choice_is_in_the_spec_and_its_figures_are_recorded(images, tmp_path, asked):
    done = run(experiment(images, tmp_path), "spptransfer run small.yaml")
    features = done.results["features"]
    assert features["spec"]["precision"] == "bfloat16"
    assert features["precision_choice"] == LOW.to_dict()
    assert "2.0 times as fast; off by 0.40 %" in (done.folder / "log.txt").read_text()
    (cache,) = (tmp_path / "cache").glob("*.h5")
    assert FeatureCache(cache).spec.precision == "bfloat16"
    assert json.loads(precision_note(cache).read_text()) == LOW.to_dict()
    assert len(asked) == 1


def test_what_was_chosen_is_told_once(images, tmp_path, asked):
    told = []
    (decided,) = decide([experiment(images, tmp_path)], told.append)
    assert told == [f"precision: bfloat16 ({LOW.reason})"]
    assert decide([decided], told.append) == [decided]
    assert len(told) == len(asked) == 1


def test_whoever_runs_or_extracts_is_told_what_was_chosen(images, tmp_path, asked):
    told = []
    run(experiment(images, tmp_path / "run"), "spptransfer run small.yaml", told.append)
    extract_features(experiment(images, tmp_path / "extract"), told.append)
    assert told == 2 * [f"precision: bfloat16 ({LOW.reason})"]
    assert len(asked) == 2


def test_the_cache_of_an_experiment_is_looked_for_once(images, tmp_path, monkeypatch, asked):
    layers = ("conv3", "conv4", "conv5")
    three = [experiment(images, tmp_path, features={"layer": name}) for name in layers]
    settle, seen = experiment_precision.settle, []
    monkeypatch.setattr(
        experiment_precision, "settle", lambda each: seen.append(each) or settle(each)
    )
    decide(three)
    assert seen == three


def test_the_figures_do_not_change_the_fingerprint(images, tmp_path, asked):
    (decided,) = decide([experiment(images, tmp_path)])
    explicit = experiment(images, tmp_path, features=given("bfloat16"))
    assert decided.wanted.fingerprint == explicit.wanted.fingerprint
    assert decided.cache[0] == explicit.cache[0]


@pytest.mark.parametrize("choice", [LOW, HIGH])
def test_a_later_run_uses_the_cache_that_is_there(images, tmp_path, monkeypatch, choice):
    choosing(monkeypatch, choice)
    path = extract_features(experiment(images, tmp_path)).path
    forbid(monkeypatch)
    again = experiment(images, tmp_path)
    assert not again.undecided
    assert again.cache[0] == path
    assert extract_features(again).unchanged == 18
    trained = train(again, "spptransfer train small.yaml").results["features"]
    assert trained["precision_choice"] == choice.to_dict()


def test_a_choice_is_kept_although_nothing_was_extracted_yet(images, tmp_path, monkeypatch, asked):
    (decided,) = decide([experiment(images, tmp_path)])
    forbid(monkeypatch)
    assert experiment(images, tmp_path).wanted == decided.wanted


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_begun_cache_is_gone_on_with_in_its_precision(images, tmp_path, monkeypatch, name):
    forbid(monkeypatch)
    begun = parts_folder(experiment(images, tmp_path, features=given(name)).cache[0])
    begun.mkdir(parents=True)
    assert experiment(images, tmp_path).undecided
    (begun / "part-000000-0123456789ab.h5").touch()
    assert experiment(images, tmp_path).wanted.precision == name


def test_a_wider_cache_is_used_in_its_precision(images, tmp_path, monkeypatch):
    forbid(monkeypatch)
    wide = {"precision": "bfloat16", "levels": [3, 2, 1], "scales": [64, 72]}
    path = extract_features(experiment(images, tmp_path, features=wide)).path
    assert experiment(images, tmp_path).cache[0] == path


def test_without_a_trial_there_are_no_figures(images, tmp_path, monkeypatch):
    choosing(monkeypatch, UNTRIED)
    (decided,) = decide([experiment(images, tmp_path)])
    assert decided.wanted.precision == "float32"
    assert decided.precision_choice is None
    assert not list((tmp_path / "cache").glob("*.precision.json"))


@pytest.mark.parametrize("content", ["", "[1]", "no JSON"])
def test_a_damaged_note_is_no_error(images, tmp_path, asked, content):
    (decided,) = decide([experiment(images, tmp_path)])
    precision_note(decided.cache[0]).write_text(content)
    assert decided.precision_choice is None


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_precision_asked_for_by_name_is_not_discussed(images, tmp_path, monkeypatch, name):
    forbid(monkeypatch)
    asked_for = experiment(images, tmp_path, features=given(name))
    assert decide([asked_for]) == [asked_for]
    assert asked_for.wanted.precision == name


def test_all_that_one_pass_serves_gets_one_precision(images, tmp_path, asked, monkeypatch):
    layers = [{"layer": name} for name in ("conv3", "conv4")]
    explicit = experiment(images, tmp_path, features={"layer": "conv5"} | given("float16"))
    first = [experiment(images, tmp_path, features=layer) for layer in layers]
    decided = decide([first[0], explicit, first[1]])
    assert [each.wanted.precision for each in decided] == ["bfloat16", "float16", "bfloat16"]
    assert asked == [["conv3", "conv4"]]
    forbid(monkeypatch)
    (follower,) = decide([experiment(images, tmp_path, features=layers[0])])
    assert follower.wanted == decided[0].wanted
    both = [experiment(images, tmp_path, features=at) for at in (layers[0], {"layer": "spp"})]
    assert {each.wanted.precision for each in decide(both)} == {"bfloat16"}


def test_a_table_of_runs_chooses_once(images, tmp_path, asked, monkeypatch):
    checked = pipeline(images).model_dump(mode="json")
    rows = [{"label": name, "set": {"features.layer": name}} for name in ("conv4", "conv5")]
    columns = [{"label": "all", "set": {}}]
    machine = experiment(images, tmp_path).machine
    table = parse_pipeline({**checked, "grid": {"rows": rows, "columns": columns}})
    told = []
    done = run_grid(prepare_grid("table", table, machine), "spptransfer run", told.append)
    assert asked == [["conv4", "conv5"]]
    assert f"precision: bfloat16 ({LOW.reason})" in told
    assert {FeatureCache(e.path).spec.precision for e in done.extractions} == {"bfloat16"}
    forbid(monkeypatch)
    again = run_grid(prepare_grid("table", table, machine), "spptransfer run", from_caches=True)
    assert again.results["cells"] == done.results["cells"]


def test_a_pipeline_is_prepared_without_a_choice(images, tmp_path, monkeypatch):
    forbid(monkeypatch)
    machine = experiment(images, tmp_path).machine
    assert prepare("small", pipeline(images), machine).undecided


def test_a_finished_cache_goes_before_one_that_was_only_begun(images, tmp_path, monkeypatch):
    forbid(monkeypatch)
    done = extract_features(experiment(images, tmp_path, features=given("bfloat16"))).path
    begun = parts_folder(experiment(images, tmp_path, features=given("float32")).cache[0])
    begun.mkdir(parents=True)
    (begun / "part-000000-0123456789ab.h5").touch()
    assert experiment(images, tmp_path).cache[0] == done


def test_settings_that_do_not_fit_are_told_before_anything_is_tried(images, tmp_path, monkeypatch):
    forbid(monkeypatch)
    wrong = experiment(images, tmp_path, classifier={"class_weight": {1: 2, -1: 1}, "C": [1]})
    with pytest.raises(ConfigError, match="class_weight"):
        run(wrong, "spptransfer run small.yaml")


def test_a_cluster_computes_in_float32_unless_told_otherwise(images, tmp_path, monkeypatch):
    forbid(monkeypatch)
    told = []
    mine = experiment(images, tmp_path)
    clustered = dataclasses.replace(mine, machine=dataclasses.replace(mine.machine, engine="dask"))
    (decided,) = decide([clustered], told.append)
    assert decided.wanted.precision == "float32"
    assert "cluster" in told[0]


def test_figures_are_not_reported_of_a_precision_asked_for_by_name(
    images, tmp_path, monkeypatch, asked
):
    extract_features(experiment(images, tmp_path))
    forbid(monkeypatch)
    named = run(experiment(images, tmp_path, features=given("bfloat16")), "spptransfer run x.yaml")
    assert named.results["features"]["precision_choice"] is None


def test_a_runtime_without_bfloat16_passes_over_caches_in_it(images, tmp_path, asked):
    pytest.importorskip("onnxruntime", reason="runtime 'onnxruntime' is not installed")
    extract_features(experiment(images, tmp_path))
    assert experiment(images, tmp_path).wanted.precision == "bfloat16"
    machine = Machine(cache_dir=tmp_path / "cache", device="cpu", runtime="onnxruntime")
    undecided = prepare("small", pipeline(images), machine)
    assert undecided.undecided
    with pytest.raises(ConfigError, match="'bfloat16' is not offered by runtime 'onnxruntime'"):
        prepare("small", pipeline(images, features={"precision": "bfloat16"}), machine)


def test_the_runtime_that_will_compute_is_the_one_that_is_tried(images, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="runtime 'openvino' is not installed")
    tried = []
    monkeypatch.setattr(
        precision, "choose_precision", lambda *_, runtime, **__: tried.append(runtime) or HIGH
    )
    machine = Machine(cache_dir=tmp_path / "cache", device="cpu", runtime="openvino")
    decide([prepare("small", pipeline(images), machine)])
    assert tried == ["openvino"]
