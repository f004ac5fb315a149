"""A search whose folds are spread over a Dask cluster finds what it finds on its own."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from cache_files import make_cache
from sklearn.model_selection import KFold

from spptransfer.cache import FeatureCache
from spptransfer.errors import ConfigError
from spptransfer.svm import LinearSVMCV

COSTS = (0.1, 1.0, 10.0)

distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")


def cluster(processes):
    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=processes,
        dashboard_address=None,
        protocol="tcp://",
    )


@pytest.fixture(scope="module")
def scheduler():
    with cluster(processes=False) as workers:
        yield workers.scheduler_address


def data(shape, n_classes=3):
    rng = np.random.default_rng(0)
    y = np.arange(shape[0]) % n_classes
    return rng.normal(size=shape) + 0.4 * rng.normal(size=(n_classes, shape[1]))[y], y


@pytest.mark.parametrize("shape", [(60, 90), (120, 12)])
@pytest.mark.parametrize("per_class", [False, True])
def test_the_result_is_the_local_one(shape, per_class, scheduler):
    X, y = data(shape)
    options = {"cv": list(KFold(4).split(X)), "per_class": per_class, "class_weight": "balanced"}
    here = LinearSVMCV(COSTS, **options).fit(X, y)
    there = LinearSVMCV(COSTS, engine="dask", scheduler=scheduler, **options).fit(X, y)
    np.testing.assert_array_equal(there.C_, here.C_)
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-6)
    np.testing.assert_allclose(there.intercept_, here.intercept_, atol=1e-6)
    assert there.duality_gap_.max() <= 1e-6
    for name in ("mean_test_score", "split3_test_score", "rank_test_score"):
        np.testing.assert_allclose(there.cv_results_[name], here.cv_results_[name])
    assert there.cv_results_["max_duality_gap"].max() <= 1e-6
    np.testing.assert_array_equal(there.predict(X), here.predict(X))


@pytest.mark.slow
def test_workers_in_other_processes_open_a_feature_cache_where_it_lies(tmp_path):
    make_cache(tmp_path / "features.h5", 60)
    cache = FeatureCache.open(tmp_path / "features.h5")
    X, y = cache.view(dtype=np.float16), cache.labels()
    here = LinearSVMCV(COSTS).fit(X, y)
    with cluster(processes=True) as workers:
        address = workers.scheduler_address
        there = LinearSVMCV(COSTS, engine="dask", scheduler=address).fit(X, y)
    assert there.C_ == here.C_
    np.testing.assert_allclose(there.coef_, here.coef_, atol=1e-6)


def test_a_search_without_refit_is_spread_too(scheduler):
    X, y = data((60, 90))
    search = LinearSVMCV(COSTS, refit=False, engine="dask", scheduler=scheduler).fit(X, y)
    assert search.C_ == LinearSVMCV(COSTS).fit(X, y).C_
    assert not hasattr(search, "coef_")


def test_what_cannot_be_sent_is_named(scheduler, tmp_path):
    X, y = data((60, 90))
    with h5py.File(tmp_path / "X.h5", "w") as file:
        file["X"] = X
        with pytest.raises(ConfigError, match="X is a Dataset, which cannot be sent"):
            LinearSVMCV(COSTS, engine="dask", scheduler=scheduler).fit(file["X"], y)


def test_wrong_engines_and_schedulers_are_named():
    X, y = data((60, 90))
    with pytest.raises(ConfigError, match="engine is 'desk'; did you mean 'dask'"):
        LinearSVMCV(COSTS, engine="desk").fit(X, y)
    with pytest.raises(ConfigError, match="no Dask scheduler answers at 'nowhere'"):
        LinearSVMCV(COSTS, engine="dask", scheduler="nowhere").fit(X, y)
