from __future__ import annotations

import pickle

import numpy as np
import pytest
from cache_files import make_cache, make_spec
from releases import needs
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import LinearSVC

from spptransfer.cache import FeatureCache


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "a.h5"
    make_cache(path, 60, make_spec(levels=(2,)), failed=[5])
    return FeatureCache.open(path)


MASK = np.arange(59) % 2 == 0


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(7),
        slice(3, 9),
        slice(None, None, -3),
        [4, 2, 2],
        [],
        np.array([1, 58, -2]),
        np.array([], dtype=int),
        MASK,
        MASK.tolist(),
        Ellipsis,
        (slice(2, 5), slice(1, 4)),
        (slice(None), 3),
        ([1, 2], Ellipsis),
        (5, 2),
        (Ellipsis, [0, 3]),
        (Ellipsis,),
    ],
    ids=repr,
)
def test_slicing_gives_what_slicing_the_matrix_gives(cache, key):
    expected = cache.matrix(levels=[2, 1])[key]
    found = cache.view(levels=[2, 1])[key]
    np.testing.assert_array_equal(found, expected)
    assert np.shape(found) == np.shape(expected)


def test_an_index_beyond_the_rows_is_an_index_error(cache):
    with pytest.raises(IndexError):
        cache.view()[59]


def test_it_looks_like_a_matrix(cache):
    view = cache.view(levels=[1], dtype="float16")
    assert (view.shape, view.ndim, view.dtype, len(view)) == ((59, 3), 2, np.float16, 59)
    assert view.nbytes == 354
    assert np.asarray(view, dtype=np.float64).dtype == np.float64
    assert "59 x 3 float16" in repr(view)
    np.testing.assert_array_equal(np.array(list(view)), np.asarray(view))


@needs("numpy", "2", "arrays are not told that a copy is unwanted")
def test_an_array_without_a_copy_is_refused(cache):
    with pytest.raises(ValueError, match="without being read"):
        np.array(cache.view(), copy=False)


def test_a_pickle_holds_row_numbers_not_features(cache):
    view = cache.view()
    data = pickle.dumps(view)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data), view)


def test_cross_validation_takes_a_view_like_an_array(cache):
    view, y = cache.view(levels=[2, 1]), cache.labels()
    on_matrix = cross_val_score(LinearSVC(), np.asarray(view), y, cv=3)
    np.testing.assert_array_equal(cross_val_score(LinearSVC(), view, y, cv=3), on_matrix)
    search = GridSearchCV(LinearSVC(), {"C": [0.1, 1]}, cv=3).fit(view, y)
    assert search.best_estimator_.predict(view).shape == y.shape


def _sum(view, row):
    return float(view[row].sum())


def test_forked_processes_do_not_disturb_each_other(cache):
    multiprocessing = pytest.importorskip("multiprocessing").get_context("fork")
    view = cache.view()
    with multiprocessing.Pool(3) as pool:
        sums = pool.starmap(_sum, [(view, i) for i in range(40)])
    np.testing.assert_allclose(sums, np.asarray(view)[:40].sum(axis=1), rtol=1e-5)
