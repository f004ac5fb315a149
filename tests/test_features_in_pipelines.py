"""SPPFeatures as a step among scikit-learn's others."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from small_projects import CLASSES, draw_folder

from spptransfer import LinearSVM, PyramidNormalizer, SPPFeatures, backbones
from spptransfer.datasets.folder import read_folder


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
