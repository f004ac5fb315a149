from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from small_projects import draw_folder, experiment

from spptransfer import LinearSVM, PyramidNormalizer
from spptransfer.cache import FeatureCache
from spptransfer.datasets.folder import gather_images
from spptransfer.errors import ImageError, ModelError
from spptransfer.experiment import run
from spptransfer.models import TransferModel
from spptransfer.runtimes import ComputeOptions

CPU = ComputeOptions(device="cpu", threads=2)
WEIGHTS = Path(__import__("spptransfer").__file__).parent / "backbones/spp_mini.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on a small folder of images, with the weights in a file of the user's own."""
    work = tmp_path_factory.mktemp("work")
    images = draw_folder(work / "images")
    shutil.copy(WEIGHTS, work / "mine.safetensors")
    features = {"weights": str(work / "mine.safetensors"), "layer": ["spp", "fc6"]}
    features |= {"levels": [3, 2, 1], "scales": [64, 80]}
    settings = {"classifier": {"normalize": ["signed_sqrt", "standardize", "l2_block"]}}
    return run(experiment(images, work, features=features, **settings), "spptransfer run"), images


@pytest.fixture
def model(finished) -> TransferModel:
    return TransferModel.load(finished[0].model)


def scores_of(model, paths, **options):
    return list(model.score(paths, options=CPU, **options))


def test_a_model_survives_the_round_trip(model, tmp_path):
    model.save(tmp_path / "again.safetensors")
    again = TransferModel.load(tmp_path / "again.safetensors")
    for name, value in vars(model).items():
        if name == "normalizer":
            assert again.normalizer.get_params() == value.get_params()
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(again, name), value)
        else:
            assert getattr(again, name) == value
    X = np.random.default_rng(0).normal(size=(5, model.coef.shape[1])).astype(np.float32)
    np.testing.assert_array_equal(again.decision_function(X), model.decision_function(X))


def test_the_model_is_trained_on_all_labelled_images_and_scores_files_as_their_features(
    finished, model
):
    result, images = finished
    cache = FeatureCache.open(result.results["features"]["cache"])
    ids = list(cache.ids)
    assert model.layers == ("spp", "fc6")
    columns = {name: getattr(model, name) for name in ("layers", "levels", "scales", "combine")}
    X = cache.matrix(ids, **columns)
    normalizer = PyramidNormalizer(model.normalizer.steps, block_sizes=model.normalizer.block_sizes)
    by_hand = LinearSVM(C=1.0).fit(normalizer.fit_transform(X), [id.split("/")[0] for id in ids])
    expected = by_hand.decision_function(normalizer.transform(X))
    np.testing.assert_allclose(model.decision_function(X), expected, rtol=1e-3, atol=1e-4)
    scored = scores_of(model, [images / id for id in ids])
    np.testing.assert_allclose([s.values for s in scored], expected, rtol=1e-3, atol=1e-4)
    assert result.results["model"]["trained_on"] == "all 18 labelled images at C = 1"
    assert result.results["model"]["images"] == 18
    assert model.protocol.startswith("Trained on all 18 labelled images at C = 1. ")


def test_the_folder_of_a_run_stands_for_its_model(finished):
    assert TransferModel.load(finished[0].folder).classes == ("bee", "cat", "dog")


def test_scores_come_in_the_order_of_the_paths_with_reasons_for_the_broken(
    finished, model, tmp_path, monkeypatch
):
    monkeypatch.setattr("spptransfer.features.CHUNK", 4)
    good = sorted(finished[1].rglob("*.png"))
    (tmp_path / "broken.jpg").write_bytes(b"")
    paths = [*good[:5], tmp_path / "broken.jpg", tmp_path / "missing.png", *good[5:]]
    scored = scores_of(model, paths)
    assert [s.path for s in scored] == paths
    assert [s.values is None for s in scored] == [path not in good for path in paths]
    assert scored[5].error == "cannot read the image: the file is empty"
    assert "No such file" in scored[6].error
    assert not any(s.error for s in scored if s.values is not None)


def test_a_single_path_is_refused_with_the_right_way_to_write_it(model):
    with pytest.raises(ImageError, match=r"must be a list of images, as \['a.jpg'\]"):
        scores_of(model, "a.jpg")


def test_scoring_streams_in_bounded_memory(finished, model, monkeypatch):
    """Peak memory must not grow with the number of images, nor may more than two chunks be read."""
    monkeypatch.setattr("spptransfer.features.CHUNK", 8)
    image = next(finished[1].rglob("*.png"))
    read = []

    def endless():
        while True:
            read.append(image)
            yield image

    stream, peaks = model.score(endless(), options=CPU), []
    for _ in range(3):
        tracemalloc.start()
        for _ in range(24):
            next(stream)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert len(read) <= 3 * 24 + 8
    assert peaks[2] < 1.5 * peaks[1]


def test_one_label_is_the_largest_value_and_several_are_all_above_zero(model):
    values = np.array([-0.5, -0.2, -0.9])
    assert model.labels(values) == ["cat"]
    model.multi_label = True
    assert model.labels(values) == []
    assert model.labels(np.array([0.3, -0.1, 0.7])) == ["dog", "bee"]
    assert model.labels(np.array([0.0, -0.1, 0.7])) == ["dog"]


# ---- where the weights are ----


def test_thresholds_are_the_boundary_unless_set_and_are_kept_in_the_file(model, tmp_path):
    np.testing.assert_array_equal(model.thresholds, np.zeros(len(model.classes)))
    model.multi_label = True
    model.thresholds = np.array([0.5, -0.5, 0.0], np.float32)
    model.save(tmp_path / "model.safetensors")
    again = TransferModel.load(tmp_path / "model.safetensors")
    assert again.labels(np.array([0.4, -0.4, -0.1])) == ["cat"]
    assert again.labels(np.array([0.6, -0.6, 0.1])) == ["bee", "dog"]


def test_a_relative_path_is_kept_absolute(finished, tmp_path, monkeypatch):
    _, images = finished
    shutil.copy(WEIGHTS, tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    features = {"weights": "mine.safetensors"}
    model = TransferModel.load(run(experiment(images, tmp_path, features=features), "").model)
    monkeypatch.chdir("/")
    assert model.weights_path == tmp_path / "mine.safetensors"
    assert scores_of(model, [next(images.rglob("*.png"))])[0].values is not None


def test_catalogue_weights_are_found_by_name_on_another_machine(finished, model):
    model.weights, model.weights_path = "embedded", Path("/home/somebody else/spp_mini.safetensors")
    assert scores_of(model, [next(finished[1].rglob("*.png"))])[0].values is not None


def test_a_backbone_that_computes_something_else_by_now_scores_nothing(finished, model):
    model.probe = model.probe * np.float32(1.05)
    with pytest.raises(ModelError, match=r"computes other features .*: train it again"):
        scores_of(model, [next(finished[1].rglob("*.png"))])


# ---- what is no model ----


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80\x04K*.", b"\xff" * 64, b"\x00" * 4096])
def test_a_foreign_file_is_refused_in_one_line(data, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="is no model of spptransfer, or damaged") as caught:
        TransferModel.load(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value)


def test_no_truncated_file_is_taken_for_a_model(finished, tmp_path):
    data = finished[0].model.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [*range(0, 64, 7), *range(64, len(data), max(1, len(data) // 40)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            TransferModel.load(path)


def read_parts(path):
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["spptransfer"])


@pytest.mark.parametrize(
    "tamper",
    [
        lambda tensors, facts: facts.pop("spec"),
        lambda tensors, facts: facts.update(spec={"backbone": "alexnet"}),
        lambda tensors, facts: facts.update(spec=[1, 2]),
        lambda tensors, facts: facts["spec"].update(flip="yes"),
        lambda tensors, facts: facts.update(classes=["bee", "cat"]),
        lambda tensors, facts: facts.update(classes=7),
        lambda tensors, facts: facts.update(levels=7),
        lambda tensors, facts: facts.update(levels=[5]),
        lambda tensors, facts: facts.update(scales=[100]),
        lambda tensors, facts: facts.update(combine="sum"),
        lambda tensors, facts: facts.update(normalize=["exec"]),
        lambda tensors, facts: facts.update(format_version=99),
        lambda tensors, facts: facts.update(format="other"),
        lambda tensors, facts: tensors.pop("coef"),
        lambda tensors, facts: tensors.pop("thresholds"),
        lambda tensors, facts: tensors.update(coef=tensors["coef"][:, 1:].copy()),
        lambda tensors, facts: tensors.update(coef=tensors["coef"].ravel()),
        lambda tensors, facts: tensors.update(intercept=tensors["intercept"][1:].copy()),
        lambda tensors, facts: tensors.update(coef=tensors["coef"].astype(np.int32)),
        lambda tensors, facts: tensors.pop("normalizer.mean_"),
        lambda tensors, facts: tensors.update(
            {"normalizer.mean_": tensors["normalizer.mean_"][1:].copy()}
        ),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused_when_it_is_loaded(tamper, finished, tmp_path):
    tensors, facts = read_parts(finished[0].model)
    tamper(tensors, facts)
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, metadata={"spptransfer": json.dumps(facts)})
    with pytest.raises(ModelError) as caught:
        TransferModel.load(path)
    assert "odd.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- which files are scored ----


def test_a_broken_link_is_scored_so_that_its_failure_is_told(tmp_path):
    (tmp_path / "link.png").symlink_to("nowhere")
    assert gather_images([tmp_path / "link.png"]) == [tmp_path / "link.png"]


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_a_fitted_pipeline_becomes_a_model_that_scores_alike(tmp_path, names):
    from image_files import encode, picture
    from sklearn.pipeline import make_pipeline

    from spptransfer import LinearSVM, PyramidNormalizer, SPPFeatures

    paths = [tmp_path / f"{name}{i}.png" for name in names for i in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(encode(picture(40 + number, 50, seed=number)))
    labels = [path.name[0] for path in paths]
    pipeline = make_pipeline(
        SPPFeatures("squeezenet1_1", "random:3", levels=[2, 1], scales=[64]),
        PyramidNormalizer(["signed_sqrt", "standardize", "l2"]),
        LinearSVM(C=0.5),
    ).fit(paths, labels)
    TransferModel.from_pipeline(pipeline).save(tmp_path / "mine.safetensors")
    model = TransferModel.load(tmp_path / "mine.safetensors")
    values = np.array([scores.values for scores in model.score(paths)])
    expected = pipeline.decision_function(paths)
    if len(names) == 2:
        expected = np.column_stack([-expected, expected])
    np.testing.assert_allclose(values, expected, atol=1e-4)
    assert [model.labels(row) for row in values] == [[label] for label in pipeline.predict(paths)]
    assert f"{len(names)} classes; squeezenet1_1 spp" in repr(model)


def test_a_pipeline_of_other_steps_is_refused():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    with pytest.raises(ModelError, match="three fitted steps"):
        TransferModel.from_pipeline(make_pipeline(StandardScaler(), LinearSVC()))


def test_a_model_file_follows_the_users_umask(model, tmp_path):
    import os

    path = tmp_path / "plain"
    path.touch()
    model_path = tmp_path / "model.safetensors"
    model.save(model_path)
    assert model_path.stat().st_mode == os.stat(path).st_mode


def test_a_model_of_another_definition_of_images_is_not_used_silently(finished, model):
    _, images = finished
    older = {**model.spec.preprocessing, "resize": "bilinear, another library's"}
    model.spec = dataclasses.replace(model.spec, preprocessing=older)
    with pytest.raises(ModelError, match="another version of spptransfer") as told:
        scores_of(model, [images])
    assert "\n" not in str(told.value)
