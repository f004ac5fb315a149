from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from spptransfer import metrics
from spptransfer.errors import ConfigError

# ----------------------------------------------------------------- the definitions, spelled out


def devkit_ranking(y_true, scores):
    """Targets of the images that take part, by falling score, ties in the given order."""
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    ranked = sorted(range(len(scores)), key=lambda position: -scores[position])
    y_true = signed(y_true)
    return [y_true[position] for position in ranked if y_true[position] != 0]


def signed(y_true):
    """The targets with -1 for absent, which 0 means where there is no -1."""
    return y_true if -1 in y_true else [1 if target == 1 else -1 for target in y_true]


def curve(ranking):
    """Exact (recall, precision) down a ranking."""
    positives = sum(target == 1 for target in ranking)
    found = 0
    points = []
    for rank, target in enumerate(ranking, start=1):
        found += target == 1
        points.append((Fraction(found, positives), Fraction(found, rank)))
    return points


def slow_eleven_point(y_true, scores):
    ranking = devkit_ranking(y_true, scores)
    if 1 not in ranking:
        return math.nan
    points = curve(ranking)
    best = [
        max((precision for recall, precision in points if recall >= Fraction(t, 10)), default=0)
        for t in range(11)
    ]
    return float(sum(best) / Fraction(11))


def slow_matlab(y_true, scores):
    """VOCevalcls.m in the double precision that MATLAB has; colon counts from both ends."""
    ranking = np.array(devkit_ranking(y_true, scores))
    if 1 not in ranking:
        return math.nan
    tp, fp = np.cumsum(ranking > 0), np.cumsum(ranking < 0)
    rec, prec = tp / (ranking > 0).sum(), tp / (fp + tp)
    half = [k * 0.1 for k in range(5)]
    points = [*half, 0.5, *(1 - t for t in half[::-1])]
    return sum(max(prec[rec >= t], default=0) for t in points) / 11


def slow_area(y_true, scores):
    """The VOC 2010 devkit's VOCap: sentinels, envelope, sum over the changes of recall."""
    ranking = devkit_ranking(y_true, scores)
    if 1 not in ranking:
        return math.nan
    recall = [Fraction(0), *(point[0] for point in curve(ranking)), Fraction(1)]
    precision = [Fraction(0), *(point[1] for point in curve(ranking)), Fraction(0)]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    changes = [i for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return float(sum((recall[i] - recall[i - 1]) * precision[i] for i in changes))


def slow_uninterpolated(y_true, scores):
    """Step over the distinct scores, from the highest down."""
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    kept = [(score, target) for score, target in zip(scores, signed(y_true), strict=True) if target]
    positives = sum(target == 1 for _, target in kept)
    if not positives:
        return math.nan
    total = Fraction(0)
    before = Fraction(0)
    for threshold in sorted({score for score, _ in kept}, reverse=True):
        retrieved = [target for score, target in kept if score >= threshold]
        found = sum(target == 1 for target in retrieved)
        recall = Fraction(found, positives)
        total += (recall - before) * Fraction(found, len(retrieved))
        before = recall
    return float(total)


SLOW = {
    "11-point": slow_eleven_point,
    "area": slow_area,
    "uninterpolated": slow_uninterpolated,
    "11-point-matlab": slow_matlab,
}

methods = pytest.mark.parametrize("method", metrics.METHODS)

rankings = st.lists(
    st.tuples(
        st.sampled_from([1, 0, -1]),
        st.one_of(
            st.integers(-3, 3).map(float),  # few values, so that ties are common
            st.floats(-1, 1),
            st.sampled_from([math.nan, math.inf, -math.inf]),
        ),
    ),
    max_size=40,
)


@methods
@settings(max_examples=300, deadline=None)
@given(ranking=rankings)
def test_average_precision_equals_its_definition_in_exact_fractions(method, ranking):
    y_true = [target for target, _ in ranking]
    scores = [score for _, score in ranking]
    expected = SLOW[method](y_true, scores)
    found = metrics.average_precision(y_true, scores, method)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=1, max_size=50).filter(
        lambda ranking: any(positive for positive, _ in ranking)
    )
)
def test_the_uninterpolated_number_is_scikit_learns_ties_included(ranking):
    y_true = np.array([1 if positive else -1 for positive, _ in ranking])
    scores = np.array([score for _, score in ranking], dtype=float)
    expected = sklearn_metrics.average_precision_score(y_true == 1, scores)
    found = metrics.average_precision(y_true, scores, "uninterpolated")
    assert found == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------------------- worked by hand


@pytest.mark.parametrize(
    ("method", "y_true", "expected"),
    [
        # Precision 1 up to recall 1/2 (t = 0 ... 0.5: six points), then 2/3 (five points).
        ("11-point", [1, -1, 1], (6 * 1 + 5 * 2 / 3) / 11),
        # Precisions at the positives: 1, 1/2, 3/5; the envelope lifts 1/2 to 3/5.
        ("area", [1, -1, -1, 1, 1], (1 + 3 / 5 + 3 / 5) / 3),
        ("uninterpolated", [1, -1, -1, 1, 1], (1 + 1 / 2 + 3 / 5) / 3),
    ],
)
def test_average_precision_is_the_number_worked_by_hand(method, y_true, expected):
    scores = -np.arange(len(y_true))
    assert metrics.average_precision(y_true, scores, method) == pytest.approx(expected)


@pytest.mark.parametrize("n_positives", [10, 20, 90])
def test_recall_of_exactly_three_tenths_reaches_the_point_0_3_but_not_matlabs(n_positives):
    # In floating point 3 * 0.1 > 3 / 10, which loses the precision of 1 at t = 0.3.
    first = 3 * n_positives // 10
    y_true = [1] * first + [-1] * 1000 + [1] * (n_positives - first)
    scores = -np.arange(len(y_true), dtype=float)
    tail = n_positives / (1000 + n_positives)
    for method, reached in {"11-point": 4, "11-point-matlab": 3}.items():
        found = metrics.average_precision(y_true, scores, method)
        assert found == pytest.approx((reached + (11 - reached) * tail) / 11)


# -------------------------------------------------------------------------------- awkward cases


@methods
@pytest.mark.parametrize("y_true", [[], [-1, -1], [0, 0], [0, -1]])
def test_without_a_positive_there_is_no_average_precision(method, y_true):
    assert math.isnan(metrics.average_precision(y_true, np.zeros(len(y_true)), method))


@methods
def test_difficult_images_ranked_first_are_neither_right_nor_wrong(method):
    kept = metrics.average_precision([1, -1, 1], [3, 2, 1], method)
    assert metrics.average_precision([0, 0, 1, -1, 0, 1, 0], [9, 8, 3, 2, 2, 1, 0], method) == kept


@methods
def test_scores_may_be_float32_or_whole_numbers(method):
    y_true, scores = [1, -1, 1, -1], [4, 3, 2, 1]
    expected = metrics.average_precision(y_true, np.array(scores, dtype=np.float64), method)
    for kind in (np.float32, np.float16, np.int64, np.uint8):
        assert metrics.average_precision(y_true, np.array(scores, dtype=kind), method) == expected


@methods
@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.float32])
def test_where_no_target_is_minus_one_zero_means_absent_as_for_linear_svm(method, dtype):
    rng = np.random.default_rng(0)
    Y = rng.random((200, 3)) < 0.3
    S = rng.normal(size=Y.shape)
    signed, values = metrics.mean_average_precision(np.where(Y, 1, -1), S, method)
    found, per_class = metrics.mean_average_precision(Y.astype(dtype), S, method)
    assert found == signed < 0.5
    np.testing.assert_array_equal(per_class, values)
    alone = metrics.average_precision(Y[:, 0].astype(dtype), S[:, 0], method)
    assert alone == pytest.approx(values[0])
    ours, theirs = (metrics.precision_recall_curve(y, S[:, 0]) for y in (Y[:, 0], 2 * Y[:, 0] - 1))
    np.testing.assert_array_equal(ours, theirs)


def test_one_minus_one_anywhere_in_the_matrix_makes_every_zero_ignored():
    Y, S = [[1, -1], [0, 1]], [[0.0, 1.0], [1.0, 0.0]]
    assert metrics.mean_average_precision(Y, S)[1].tolist() == [1, 0.5]


@pytest.mark.parametrize("y_true", [[2, 1], [0.5, 1], [[1], [1]]])
def test_targets_of_other_values_or_shapes_are_refused(y_true):
    with pytest.raises(ValueError, match=r"targets|y_true"):
        metrics.average_precision(y_true, [0, 1])


def test_targets_and_scores_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.average_precision([1, -1], [0.5])
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.average_precision([1, -1], [[0.5], [0.5]])


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean '11-point'"):
        metrics.average_precision([1], [1], "11point")


def test_inputs_are_left_as_they_were():
    y_true, scores = np.array([1, -1, 0]), np.array([0.1, np.nan, 0.3])
    before = scores.copy()
    for method in metrics.METHODS:
        metrics.average_precision(y_true, scores, method)
    np.testing.assert_array_equal(scores, before)
    assert y_true.tolist() == [1, -1, 0]


# --------------------------------------------------------------------------- all classes at once


@methods
def test_classes_together_give_what_each_gives_alone(method):
    rng = np.random.default_rng(1)
    Y = rng.choice([-1, 0, 1], size=(200, 7), p=[0.7, 0.1, 0.2])
    S = rng.normal(size=Y.shape).round(1)
    Y[:, 3] = -1
    mean, per_class = metrics.mean_average_precision(Y, S, method)
    alone = [metrics.average_precision(Y[:, k], S[:, k], method) for k in range(7)]
    np.testing.assert_allclose(per_class, alone, rtol=1e-14)
    assert mean == pytest.approx(np.nanmean(alone), abs=1e-15)
    assert math.isnan(per_class[3])


def test_the_mean_is_nan_only_if_no_class_has_a_positive():
    mean, per_class = metrics.mean_average_precision([[-1, 0]], [[0.0, 0.0]])
    assert math.isnan(mean)
    assert np.isnan(per_class).all()


def test_every_metric_goes_by_its_full_name():
    assert metrics.metrics_of(multi_label=True) == (
        "mean average precision (11-point)",
        "mean average precision (area)",
        "mean average precision (uninterpolated)",
    )
    assert metrics.metrics_of(multi_label=False) == ("overall accuracy", "mean per-class accuracy")


# ------------------------------------------------------------------------ precision-recall curve


def test_the_curve_has_a_point_per_image_that_takes_part():
    curve = metrics.precision_recall_curve([0, 1, -1, 1, 0], [9, 3, 2, 1, 0])
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 2, 1 / 2, 1])
    np.testing.assert_array_equal(curve.thresholds, [3, 2, 1])


def test_the_curve_agrees_with_scikit_learn_where_no_scores_tie():
    rng = np.random.default_rng(2)
    y_true = rng.choice([-1, 1], size=100)
    scores = rng.permutation(100).astype(float)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(y_true == 1, scores)
    curve = metrics.precision_recall_curve(y_true, scores)
    np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
    np.testing.assert_allclose(curve.recall, recall[:-1][::-1])


def test_the_curve_of_a_class_without_positives_has_no_recall():
    curve = metrics.precision_recall_curve([-1, 0], [1.0, 2.0])
    assert curve.precision.tolist() == [0]
    assert np.isnan(curve.recall).all()


# --------------------------------------------------------------------------------- accuracies


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_accuracies_agree_with_scikit_learn(pairs):
    y_true, y_pred = np.array(pairs).T
    confusion = sklearn_metrics.confusion_matrix(y_true, y_pred, labels=range(5))
    np.testing.assert_array_equal(metrics.confusion_matrix(y_true, y_pred, 5), confusion)
    assert metrics.overall_accuracy(y_true, y_pred) == pytest.approx(
        sklearn_metrics.accuracy_score(y_true, y_pred)
    )
    recalls = sklearn_metrics.recall_score(
        y_true, y_pred, labels=np.unique(y_true), average="macro", zero_division=0
    )
    assert metrics.mean_per_class_accuracy(y_true, y_pred, 5) == pytest.approx(recalls)


def test_a_class_without_images_does_not_lower_the_mean():
    assert np.isnan(metrics.per_class_accuracy([0, 1], [0, 1], 3)[2])
    assert metrics.mean_per_class_accuracy([0, 1], [0, 1], 3) == 1


def test_without_images_accuracies_are_nan():
    assert math.isnan(metrics.overall_accuracy([], []))
    assert math.isnan(metrics.mean_per_class_accuracy([], [], 2))
    assert metrics.confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("y_true", "y_pred"), [([0, 1], [0]), ([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0.5], [0])]
)
def test_class_indices_out_of_range_or_shape_are_refused(y_true, y_pred):
    with pytest.raises(ValueError, match=r"class indices|differ in shape"):
        metrics.per_class_accuracy(y_true, y_pred, 3)


@pytest.fixture
def top2():
    """A metric from outside the package."""

    def in_first_two(targets, scores):
        best = np.argsort(-scores, axis=1)[:, :2]
        return float((best == targets[:, None]).any(axis=1).mean())

    metrics.METRICS["top-2 accuracy"] = metrics.Metric(in_first_two, "single-label")
    yield "top-2 accuracy"
    del metrics.METRICS["top-2 accuracy"]


def test_a_metric_from_outside_is_measured_and_can_choose_c(top2):
    from spptransfer.protocols.evaluate import measure
    from spptransfer.protocols.training import Training, fit_classifier

    rng = np.random.default_rng(0)
    targets = np.arange(60) % 3
    X = (np.eye(3)[targets] + rng.normal(size=(60, 3))).astype(np.float32)
    folds = [np.arange(0, 60, 2), np.arange(1, 60, 2)]
    training = Training(C=(0.1, 10.0), chosen_by=top2)
    model = fit_classifier(X, targets, n_classes=3, training=training, folds=folds)
    values, _ = measure(targets, model.decision_function(X))
    assert set(values) == {*metrics.metrics_of(multi_label=False)}
    assert values["overall accuracy"] <= values[top2] <= 1


def test_a_metric_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="unknown metric 'overall acuracy'; did you mean"):
        metrics.metric_named("overall acuracy")
