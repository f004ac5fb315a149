from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from spptransfer import metrics, protocols
from spptransfer.datasets import Dataset
from spptransfer.normalization import PyramidNormalizer
from spptransfer.protocols.evaluate import Training, evaluate, measure


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
