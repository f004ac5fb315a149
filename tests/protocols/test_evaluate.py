from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import real_data
from hypothesis import given
from hypothesis import strategies as st
from sklearn.svm import LinearSVC

from spptransfer import SPPFeatures, metrics, protocols
from spptransfer.calibration import fit_sigmoids, probabilities
from spptransfer.datasets import Dataset, open_dataset
from spptransfer.normalization import PyramidNormalizer
from spptransfer.protocols import Split
from spptransfer.protocols.evaluate import evaluate, measure
from spptransfer.protocols.out_of_fold import deal_folds
from spptransfer.protocols.training import Training, fit_classifier


@pytest.fixture
def photos():
    """Sixty images of three classes whose features are noisy copies of the class's centre."""
    generator = np.random.default_rng(1)
    ids = tuple(f"{name}/{i}.jpg" for name in ("bee", "cat", "dog") for i in range(20))
    targets = np.repeat(np.arange(3), 20).astype(np.int32)
    features = generator.normal(size=(3, 80))[targets] + generator.normal(size=(60, 80))
    dataset = Dataset("folder", Path("photos"), ids, ("bee", "cat", "dog"), targets)
    return dataset, dict(zip(ids, features.astype(np.float32), strict=True))


def reader(features):
    return lambda ids: np.stack([features[id] for id in ids])


def splits_of(dataset, **settings):
    protocol = protocols.get("folder")
    return protocol.make_splits(dataset, protocol.settings(settings))


def test_a_split_is_what_one_would_do_by_hand(photos):
    dataset, features = photos
    (split,) = splits_of(dataset, test_fraction=0.5, folds=0)
    evaluation = evaluate(reader(features), dataset, [split], training=Training(C=(1.0,)))

    X = PyramidNormalizer().fit_transform(reader(features)(split.train))
    svc = LinearSVC(C=1.0, tol=1e-8).fit(X, dataset.targets_of(split.train))
    X_test = PyramidNormalizer().fit_transform(reader(features)(split.test))
    accuracy = svc.score(X_test, dataset.targets_of(split.test))

    result = evaluation.results[0]
    assert result.metrics[metrics.OVERALL_ACCURACY] == pytest.approx(accuracy)
    np.testing.assert_allclose(result.scores, svc.decision_function(X_test), atol=1e-3)
    assert evaluation.std(metrics.OVERALL_ACCURACY) is None


@pytest.mark.parametrize("folds", [0, 4])
def test_probabilities_are_fitted_to_images_that_a_classifier_was_not_trained_on(photos, folds):
    dataset, features = photos
    (split,) = splits_of(dataset, test_fraction=0.5, folds=folds)
    result = evaluate(reader(features), dataset, [split], training=Training()).results[0]
    X = PyramidNormalizer().fit_transform(reader(features)(split.train))
    y = dataset.targets_of(split.train)
    parts = [np.flatnonzero(np.isin(split.train, fold)) for fold in split.folds]
    values = np.empty((len(y), 3))
    for fold in parts or deal_folds(y):
        others = np.setdiff1d(np.arange(len(y)), fold)
        svc = LinearSVC(C=1.0, tol=1e-8).fit(X[others], y[others])
        values[fold] = svc.decision_function(X[fold])
    expected = probabilities(result.scores, fit_sigmoids(values, y), multi_label=False)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-3)


def test_labels_are_found_by_id_whatever_order_the_features_come_in(photos):
    dataset, features = photos
    splits = splits_of(dataset, test_fraction=0.5, folds=0)
    shuffled = Dataset(
        "folder", dataset.root, dataset.ids[::-1], dataset.classes, dataset.targets[::-1].copy()
    )
    training = Training(C=(1.0,))
    first = evaluate(reader(features), dataset, splits, training=training)
    second = evaluate(reader(features), shuffled, splits, training=training)
    np.testing.assert_allclose(first.results[0].scores, second.results[0].scores, atol=1e-4)


def test_mean_and_deviation_over_splits_are_those_of_the_values(photos):
    dataset, features = photos
    splits = splits_of(dataset, train_per_class=5, splits=4)
    evaluation = evaluate(
        reader(features), dataset, splits, training=Training(C=(0.1, 1.0)), normalize=["l2"]
    )
    values = evaluation.values(metrics.OVERALL_ACCURACY)
    assert len(values) == 4
    assert evaluation.mean(metrics.OVERALL_ACCURACY) == pytest.approx(np.mean(values))
    assert evaluation.std(metrics.OVERALL_ACCURACY) == pytest.approx(np.std(values, ddof=1))
    per_class = evaluation.class_means(metrics.MEAN_PER_CLASS_ACCURACY)
    assert per_class.mean() == pytest.approx(evaluation.mean(metrics.MEAN_PER_CLASS_ACCURACY))
    assert evaluation.class_means(metrics.OVERALL_ACCURACY) is None


def test_standardising_learns_from_the_training_part_alone(photos):
    dataset, features = photos
    (split,) = splits_of(dataset, test_fraction=0.5, folds=0)
    result = evaluate(
        reader(features), dataset, [split], training=Training(), normalize=["standardize", "l2"]
    ).results[0]
    expected = reader(features)(split.train).mean(axis=0)
    np.testing.assert_allclose(result.normalizer.mean_, expected, atol=1e-5)


def test_blocks_are_normalised_one_by_one(photos):
    dataset, features = photos
    (split,) = splits_of(dataset, test_fraction=0.5, folds=0)
    result = evaluate(
        reader(features),
        dataset,
        [split],
        training=Training(),
        normalize=["l2_block"],
        block_sizes=[30, 50],
    ).results[0]
    X = PyramidNormalizer(["l2_block"], block_sizes=[30, 50]).fit_transform(
        reader(features)(split.test)
    )
    np.testing.assert_allclose(result.classifier.decision_function(X), result.scores, atol=1e-5)


def test_several_labels_give_all_three_average_precisions():
    targets = np.array([[1, -1], [-1, 1], [0, 1], [1, -1]], dtype=np.int8)
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.7, 0.9], [0.2, 0.3]])
    values, per_class = measure(targets, scores)
    assert set(values) == set(metrics.MEAN_AVERAGE_PRECISION.values())
    for method, name in metrics.MEAN_AVERAGE_PRECISION.items():
        expected = [metrics.average_precision(targets[:, k], scores[:, k], method) for k in (0, 1)]
        np.testing.assert_allclose(per_class[name], expected)
        assert values[name] == pytest.approx(np.mean(expected))


def test_a_class_without_test_images_is_left_out_of_the_class_means(photos):
    dataset, features = photos
    (split,) = splits_of(dataset, test_fraction=0.5, folds=0)
    without_dogs = type(split)(
        split.name, split.train, tuple(id for id in split.test if not id.startswith("dog"))
    )
    evaluation = evaluate(reader(features), dataset, [without_dogs], training=Training())
    per_class = evaluation.class_means(metrics.MEAN_PER_CLASS_ACCURACY)
    assert np.isnan(per_class).tolist() == [False, False, True]


def several_labels(n_test: int):
    """Sixty images of three labels, the last of which no test image has."""
    rng = np.random.default_rng(3)
    targets = np.where(rng.random((60, 3)) < 0.4, 1, -1).astype(np.int8)
    targets[:n_test, 2] = -1
    ids = tuple(f"{i}.jpg" for i in range(60))
    features = (targets @ rng.normal(size=(3, 40)) + rng.normal(size=(60, 40))).astype(np.float32)
    dataset = Dataset("csv", Path("t"), ids, ("black", "red", "white"), targets)
    return dataset, dict(zip(ids, features, strict=True)), Split("s", ids[n_test:], ids[:n_test])


def test_a_label_that_no_test_image_has_is_left_out_of_the_mean_and_named():
    dataset, features, split = several_labels(30)
    evaluation = evaluate(reader(features), dataset, [split], training=Training())
    for name in metrics.MEAN_AVERAGE_PRECISION.values():
        assert evaluation.left_out(name).tolist() == [2]
        assert evaluation.mean(name) == pytest.approx(evaluation.class_means(name)[:2].mean())
    area = metrics.MEAN_AVERAGE_PRECISION["area"]
    said = evaluation.cautions(area, dataset.classes)
    assert said[0] == f"the {area} is over 2 of 3 classes: no test image shows white"


def test_classes_of_few_test_images_are_told_with_what_one_image_moves(photos):
    dataset, features = photos
    (split,) = splits_of(dataset, test_fraction=0.2, folds=0)  # 4 of each class
    evaluation = evaluate(reader(features), dataset, [split], training=Training())
    for metric in (metrics.OVERALL_ACCURACY, metrics.MEAN_PER_CLASS_ACCURACY):
        (told,) = evaluation.cautions(metric, dataset.classes)
        assert told == (
            "3 of 3 classes have fewer than 5 test images, bee (4), cat (4), dog (4): one image "
            "more or less moves such a class's number by up to about 25 points, and the "
            f"{metric} by up to about 8.3"
        )
    (split,) = splits_of(dataset, test_fraction=0.25, folds=0)
    evaluation = evaluate(reader(features), dataset, [split], training=Training())
    assert evaluation.cautions(metrics.OVERALL_ACCURACY, dataset.classes) == []


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_one_image_moves_an_average_precision_by_about_what_is_told_at_most(seed, n_positives):
    rng = np.random.default_rng(seed)
    y_true = np.repeat([1, -1], [n_positives, 20])
    scores, moved = rng.normal(size=len(y_true)), rng.integers(n_positives)
    changed = scores.copy()
    changed[moved] = 9
    lowest = np.where(np.arange(len(scores)) == moved, -9, scores)
    both = [metrics.average_precision(y_true, s, "uninterpolated") for s in (changed, lowest)]
    assert abs(both[0] - both[1]) <= 1.34 / n_positives  # worked out for ranks 1, 3, 5, 7 and last


@pytest.mark.parametrize("normalize", [("l2",), ("standardize", "l2")])
def test_a_model_for_use_is_trained_on_all_images_and_changes_no_number(photos, normalize):
    dataset, features = photos
    settings = protocols.get("folder").settings({"test_fraction": 0.5, "folds": 2})
    splits = protocols.get("folder").make_splits(dataset, settings)
    training, whole = Training(C=(0.01, 1.0)), protocols.all_images(dataset, settings)
    options = {"training": training, "normalize": normalize}
    plain = evaluate(reader(features), dataset, splits, **options)
    found = evaluate(reader(features), dataset, splits, **options, for_use=whole)
    assert plain.for_use is None
    assert [r.metrics for r in found.results] == [r.metrics for r in plain.results]
    model = found.for_use
    assert model.split.train == dataset.ids
    X = model.normalizer.transform(reader(features)(dataset.ids))
    folds = [dataset.positions(fold) for fold in whole.folds]
    by_hand = fit_classifier(X, dataset.targets, n_classes=3, training=training, folds=folds)
    assert model.classifier.C == by_hand.C
    np.testing.assert_allclose(model.classifier.coef, by_hand.coef, atol=1e-3)


@pytest.mark.slow
def test_the_part_of_voc2007_gives_the_number_and_the_C_of_vissls_trainer(voc2007_root):
    """Reference: VISSL's steps by scikit-learn, a grid search per class."""
    weights = real_data("weights/mobilenet_v2_trunk.pth")
    dataset = open_dataset("voc2007", data_root=voc2007_root)
    protocol = protocols.get("voc2007-vissl")
    (split,) = protocol.make_splits(dataset, protocol.settings({"train": "train", "test": "val"}))
    spp = SPPFeatures("mobilenet_v2", weights, levels=(1,))
    training = Training(
        C=protocol.C,
        class_weight=protocol.class_weight,
        chosen_by=protocol.chosen_by,
        per_class=True,
        difficult=protocol.difficult_in_training,
    )
    (result,) = evaluate(
        lambda ids: spp.fit_transform([dataset.path(id) for id in ids]),
        dataset,
        [split],
        training=training,
    ).results
    assert result.metrics["mean average precision (area)"] == pytest.approx(0.8113, abs=2e-4)
    grid_search = [1, 1, 2, 1, 0.1, 2, 0.1, 2, 5, 1, 1, 1, 1000, 1, 2, 1, 20, 1, 0.1, 0.1]
    assert result.classifier.C.tolist() == grid_search
