"""SPPFeatures as a step among scikit-learn's others."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from small_projects import CLASSES, draw_folder

from spptransfer import LinearSVM, LinearSVMCV, PyramidNormalizer, SPPFeatures, backbones
from spptransfer.datasets.folder import read_folder
from spptransfer.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    dataset = read_folder(draw_folder(tmp_path_factory.mktemp("classes")))
    return [dataset.path(id) for id in dataset.ids], np.array(dataset.classes)[dataset.targets]


def test_one_pipeline_goes_from_paths_to_classes(folder):
    paths, names = folder
    spp = SPPFeatures("spp-mini", "embedded", levels=(3, 1), scales=(64,), device="cpu")
    model = make_pipeline(spp, PyramidNormalizer(), LinearSVM())
    model.fit(paths, names)
    assert list(model.classes_) == list(CLASSES)
    assert model.score(paths, names) == 1
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(paths[::2]), names[::2])


def test_grid_search_chooses_features_of_a_users_network_and_c_from_paths(folder):
    paths, names = folder
    own = backbones.load("spp-mini", "embedded", layer="conv3").trunk  # a plain torch module
    last = list(own.named_children())[-1][0]
    spp = SPPFeatures(own, layer=last, scales=(64,), device="cpu", runtime="torch")
    model = make_pipeline(spp, PyramidNormalizer(), LinearSVM())
    grid = {"sppfeatures__levels": [(1,), (2, 1)], "linearsvm__C": [0.1, 1.0]}
    search = GridSearchCV(model, grid, cv=2).fit(paths, names)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.score(paths, names) > 0.5
    assert cross_val_score(search.best_estimator_, paths, names, cv=2).shape == (2,)


# Images are no matrices of numbers: scikit-learn itself leaves out its checks of those.
@parametrize_with_checks([SPPFeatures("squeezenet1_1", "random:0", levels=(1,), scales=(64,))])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("estimator", "values"),
    [
        (PyramidNormalizer(), {"steps": ["l2"]}),
        (PyramidNormalizer(["l2_block"]), {"block_sizes": [2, 2]}),
        (LinearSVMCV(), {"Cs": [0.1, 1.0]}),
        (SPPFeatures("spp-mini", "embedded"), {"levels": [2, 1]}),
        (SPPFeatures("spp-mini", "embedded"), {"scales": [64]}),
        (SPPFeatures(torch.nn.Conv2d(3, 4, 3), layer="output"), {"mean": [0.5] * 3}),
        (SPPFeatures(torch.nn.Conv2d(3, 4, 3), layer="output"), {"std": [0.5] * 3}),
    ],
)
def test_a_parameter_that_a_look_uses_up_is_refused(estimator, values):
    X, y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 2
    clone(estimator).set_params(**values).fit(X, y)
    used_up = {name: (value for value in given) for name, given in values.items()}
    with pytest.raises(ConfigError, match=r"generator object.*(list|sequence|three numbers)"):
        clone(estimator).set_params(**used_up).fit(X, y)
