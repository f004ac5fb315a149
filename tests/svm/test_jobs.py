"""A search whose folds are spread over joblib's workers finds what it finds on its own."""

from __future__ import annotations

from contextlib import contextmanager

import h5py
import joblib
import numpy as np
import pytest
from cache_files import make_cache
from sklearn.model_selection import KFold

from spptransfer.cache import FeatureCache
from spptransfer.errors import ConfigError
from spptransfer.svm import LinearSVMCV

COSTS = (0.1, 1.0, 10.0)


def data(shape, n_classes=3):
    rng = np.random.default_rng(0)
    y = np.arange(shape[0]) % n_classes
    return rng.normal(size=shape) + 0.4 * rng.normal(size=(n_classes, shape[1]))[y], y


@contextmanager
def dask_cluster():
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        protocol="tcp://",  # so that what is sent is pickled, as between processes
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        yield


def threads():
    return joblib.parallel_config("threading", n_jobs=2)


@pytest.mark.parametrize("workers", [threads, dask_cluster])
@pytest.mark.parametrize("shape", [(60, 90), (120, 12)])
def test_the_result_is_that_of_one_job(shape, workers):
    X, y = data(shape)
    for per_class in (False, True):
        search = LinearSVMCV(
            COSTS, cv=list(KFold(4).split(X)), per_class=per_class, class_weight="balanced"
        )
        here = vars(search.fit(X, y)).copy()
        with workers():
            search.fit(X, y)
        there = vars(search)
        np.testing.assert_array_equal(there["C_"], here["C_"])
        np.testing.assert_allclose(there["coef_"], here["coef_"], atol=1e-6)
        np.testing.assert_allclose(there["intercept_"], here["intercept_"], atol=1e-6)
        assert there["duality_gap_"].max() <= 1e-6
        for name in ("mean_test_score", "split3_test_score", "rank_test_score"):
            np.testing.assert_allclose(there["cv_results_"][name], here["cv_results_"][name])
        assert there["cv_results_"]["max_duality_gap"].max() <= 1e-6


def test_workers_open_a_feature_cache_where_it_lies(tmp_path):
    make_cache(tmp_path / "features.h5", 60)
    cache = FeatureCache.open(tmp_path / "features.h5")
    X, y = cache.view(dtype=np.float16), cache.labels()
    here = LinearSVMCV(COSTS).fit(X, y)
    with dask_cluster():
        there = LinearSVMCV(COSTS).fit(X, y)
    assert there.C_ == here.C_
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-6)


def test_a_search_without_refit_is_spread_too():
    X, y = data((60, 90))
    with threads():
        search = LinearSVMCV(COSTS, refit=False).fit(X, y)
    assert search.C_ == LinearSVMCV(COSTS).fit(X, y).C_
    assert not hasattr(search, "coef_")


def test_what_cannot_be_sent_is_named(tmp_path):
    X, y = data((60, 90))
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file["X"] = X
        with pytest.raises(ConfigError, match="X is a Dataset, which cannot be sent"):
            LinearSVMCV(COSTS, n_jobs=2).fit(file["X"], y)
