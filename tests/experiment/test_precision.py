"""What `precision: auto` becomes: chosen once, told, put down, and kept to."""

from __future__ import annotations

import json

import pytest
from small_projects import begin_cache, experiment, machine_in, pipeline, values

from spptransfer.cache import FeatureCache
from spptransfer.cache.inventory import precision_note
from spptransfer.config import parse_pipeline
from spptransfer.errors import ConfigError
from spptransfer.experiment import extract_features, prepare_grid, run, run_grid
from spptransfer.experiment.preparation import prepare, resolve_precision
from spptransfer.extraction import precision
from spptransfer.extraction.precision import PrecisionChoice
from spptransfer.runtimes import ComputeOptions

COMMAND = "spptransfer run small.yaml"
LOW = PrecisionChoice("bfloat16", "2.0 times as fast; off by 0.40 %", 0.004, 2.0)
HIGH = PrecisionChoice("float32", "bfloat16 is only 1.00 times as fast here", None, 1.0)
UNTRIED = PrecisionChoice("float32", "fewer than 64 images: bfloat16 is not tried")


class Trial:
    """A trial that comes out as it is told to; `layers` are those that it was made for."""

    def __init__(self) -> None:
        self.outcome, self.layers = LOW, []

    def __call__(self, backbone, specs, sources, options, *, count):
        self.layers.append([layer for spec in specs for layer in spec.layers])
        assert count == len(list(sources)) == 18
        return self.outcome


@pytest.fixture
def trial(monkeypatch):
    """The trial is that of another room, with tests of its own; its outcome is given here."""
    made = Trial()
    monkeypatch.setattr(precision, "choose_precision", made)
    return made


def given(name):
    return {"precision": name}


def test_the_choice_is_in_the_spec_told_once_and_its_figures_are_recorded(
    images, tmp_path, trial, told
):
    done = run(experiment(images, tmp_path), COMMAND)
    features = done.results["features"]
    assert features["spec"]["precision"] == "bfloat16"
    assert features["precision_choice"] == vars(LOW)
    assert LOW.reason in (done.folder / "log.txt").read_text()
    (cache,) = (tmp_path / "cache").glob("*.h5")
    assert FeatureCache.open(cache).spec.precision == "bfloat16"
    assert json.loads(precision_note(cache).read_text()) == vars(LOW)
    run(experiment(images, tmp_path), COMMAND)
    assert told().count(f"precision: bfloat16 ({LOW.reason})") == 1
    assert len(trial.layers) == 1


@pytest.mark.parametrize("choice", [LOW, HIGH])
def test_a_later_run_uses_the_cache_that_is_there(images, tmp_path, trial, choice):
    trial.outcome = choice
    path = extract_features([experiment(images, tmp_path)])[0].path
    again = experiment(images, tmp_path)
    assert not again.undecided
    assert again.cache[0] == path
    assert extract_features([again])[0].unchanged == 18
    trained = run(again, COMMAND, from_cache=True).results["features"]
    assert trained["precision_choice"] == vars(choice)
    named = run(experiment(images, tmp_path, features=given(choice.precision)), COMMAND)
    assert named.results["features"]["precision_choice"] is None
    assert len(trial.layers) == 1


def test_of_two_that_choose_at_once_the_second_takes_what_the_first_chose(images, tmp_path, trial):
    first, second = experiment(images, tmp_path), experiment(images, tmp_path)
    (decided,) = resolve_precision([first])
    trial.outcome = HIGH
    assert resolve_precision([second])[0].wanted == decided.wanted


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_begun_cache_is_gone_on_with_in_its_precision(images, tmp_path, trial, name):
    begin_cache(experiment(images, tmp_path, features=given(name)))
    assert experiment(images, tmp_path).wanted.precision == name


def test_a_finished_cache_goes_before_one_that_was_only_begun(images, tmp_path, trial):
    finished = experiment(images, tmp_path, features=given("bfloat16"))
    path = extract_features([finished])[0].path
    begin_cache(experiment(images, tmp_path, features=given("float32")))
    assert experiment(images, tmp_path).cache[0] == path


def test_a_wider_cache_is_used_in_its_precision(images, tmp_path, trial):
    wide = {"precision": "bfloat16", "levels": [3, 2, 1], "scales": [64, 72]}
    path = extract_features([experiment(images, tmp_path, features=wide)])[0].path
    assert experiment(images, tmp_path).cache[0] == path


def test_without_a_trial_there_are_no_figures(images, tmp_path, trial):
    trial.outcome = UNTRIED
    (decided,) = resolve_precision([experiment(images, tmp_path)])
    assert decided.wanted.precision == "float32"
    assert decided.precision_choice is None
    assert not list((tmp_path / "cache").glob("*.precision.json"))


@pytest.mark.parametrize("content", ["", "[1]", "no JSON"])
def test_a_damaged_note_is_no_error(images, tmp_path, trial, content):
    (decided,) = resolve_precision([experiment(images, tmp_path)])
    precision_note(decided.cache[0]).write_text(content)
    assert decided.precision_choice is None


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_precision_asked_for_by_name_is_not_discussed(images, tmp_path, trial, name):
    asked_for = experiment(images, tmp_path, features=given(name))
    assert resolve_precision([asked_for]) == [asked_for]
    assert asked_for.wanted.precision == name
    assert trial.layers == []


def test_all_that_one_pass_serves_gets_one_precision(images, tmp_path, trial):
    layers = [{"layer": name} for name in ("conv3", "conv4")]
    explicit = experiment(images, tmp_path, features={"layer": "conv5"} | given("float16"))
    first = [experiment(images, tmp_path, features=layer) for layer in layers]
    decided = resolve_precision([first[0], explicit, first[1]])
    assert [each.wanted.precision for each in decided] == ["bfloat16", "float16", "bfloat16"]
    both = [experiment(images, tmp_path, features=at) for at in (layers[0], {"layer": "spp"})]
    assert {each.wanted.precision for each in resolve_precision(both)} == {"bfloat16"}
    assert trial.layers == [["conv3", "conv4"]]


def test_a_table_of_runs_chooses_once(images, tmp_path, trial, told):
    rows = [{"label": name, "set": {"features.layer": name}} for name in ("conv4", "conv5")]
    grid = {"rows": rows, "columns": [{"label": "all", "set": {}}]}
    table = parse_pipeline({**values(images), "grid": grid})
    done = run_grid(prepare_grid("table", table, machine_in(tmp_path)), COMMAND)
    assert trial.layers == [["conv4", "conv5"]]
    assert f"precision: bfloat16 ({LOW.reason})" in told()
    caches = (tmp_path / "cache").glob("*.h5")
    assert {FeatureCache.open(path).spec.precision for path in caches} == {"bfloat16"}
    again = run_grid(prepare_grid("table", table, machine_in(tmp_path)), COMMAND, from_cache=True)
    assert again.results["cells"] == done.results["cells"]


def test_settings_that_do_not_fit_are_told_before_anything_is_tried(images, tmp_path, trial):
    wrong = experiment(images, tmp_path, classifier={"class_weight": {1: 2, -1: 1}, "C": [1]})
    with pytest.raises(ConfigError, match="class_weight"):
        run(wrong, COMMAND)
    assert trial.layers == []


def test_a_runtime_without_bfloat16_passes_over_caches_in_it(images, tmp_path, trial):
    pytest.importorskip("onnxruntime", reason="runtime 'onnxruntime' is not installed")
    extract_features([experiment(images, tmp_path)])
    assert experiment(images, tmp_path).wanted.precision == "bfloat16"
    machine = machine_in(tmp_path, compute=ComputeOptions(device="cpu", runtime="onnxruntime"))
    assert prepare("small", pipeline(images), machine).undecided
    with pytest.raises(ConfigError, match="'bfloat16' is not offered by runtime 'onnxruntime'"):
        prepare("small", pipeline(images, features=given("bfloat16")), machine)
