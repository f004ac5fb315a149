"""Near-copies, doubtful labels and outliers among a pipeline's images, from its cache alone."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spptransfer.cache import FeatureCache
from spptransfer.datasets import Dataset
from spptransfer.errors import CacheError, ConfigError
from spptransfer.experiment.preparation import Experiment, steps
from spptransfer.experiment.running import check, read_features, use_cache
from spptransfer.extraction import Extraction
from spptransfer.files import atomic_write, make_folder
from spptransfer.ids import Ids
from spptransfer.neighbours import (
    TEST,
    TRAIN,
    Pairs,
    isolation,
    near_copies,
    typical_distance,
    unit_rows,
)
from spptransfer.text import plural

FOLDS = 5
# Pairs are listed that are closer than this share of the typical distance.
CLOSE = 0.5

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Audit:
    """What an audit found; positions are those of images in `dataset`.

    Attributes
    ----------
    dataset : Dataset
        The images that have features.
    extraction : Extraction
        The cache, and the images that failed.
    near_copies : Pairs
        Pairs of images closer than `closer_than`.
    contradictions : ndarray of float32, shape (n_images,)
        By how much out-of-fold decision values contradict the label; -inf where nothing is known.
    others : ndarray of int, shape (n_images,)
        The class that each is about: the best other one, or of several labels the doubtful one.
    C : float, ndarray or None
        What the classifiers were trained with; None without labels.
    distances, ratios : ndarray of float32, shape (n_images,)
        Mean distance to the nearest images of the class, and that in medians of the class.
    """

    dataset: Dataset
    extraction: Extraction
    closer_than: float
    near_copies: Pairs
    contradictions: Floats
    others: Indices
    C: Any
    distances: Floats
    ratios: Floats

    @property
    def doubtful(self) -> Indices:
        """All images whose labels could be judged, the most contradicted first."""
        order = np.argsort(-self.contradictions, kind="stable")
        return order[np.isfinite(self.contradictions[order])]

    @property
    def outliers(self) -> Indices:
        """All images that have neighbours, those farthest from them first."""
        order = np.argsort(-self.ratios, kind="stable")
        return order[np.isfinite(self.ratios[order])]

    def label(self, position: int) -> str:
        """Name an image's class, or all of its classes."""
        classes, target = self.dataset.classes, self.dataset.targets[position]
        if self.dataset.multi_label:
            return "|".join(classes[k] for k in np.flatnonzero(target == 1))
        return classes[target] if classes else ""

    def doubt(self, position: int) -> str:
        """Say what the decision values hold against a label."""
        other, target = self.others[position], self.dataset.targets[position]
        is_labelled = self.dataset.multi_label and target[other] == 1
        return f"{'not ' if is_labelled else ''}{self.dataset.classes[other]}"


def audit(experiment: Experiment) -> Audit:
    """Look for near-copies, doubtful labels and outliers in the features of a cache."""
    if experiment.pipeline.detection is not None:
        raise ConfigError("a detector keeps no features to be audited; give another pipeline")
    extraction = use_cache(experiment)
    cache, given = FeatureCache.open(extraction.path), experiment.dataset
    labelled = given.labelled
    known, given = set(cache.ids), experiment.counted if labelled else given
    dataset = given.subset(i for i, id in enumerate(given.ids) if id in known)
    if len(dataset) < 2:
        raise CacheError(f"'{cache.path}' has {plural(len(dataset), 'image')}, too few to compare")
    X = _features(experiment, cache, dataset)
    units = unit_rows(X)
    steps.info("looking for near-copies among %s", plural(len(dataset), "image"))
    closer_than = CLOSE * typical_distance(units)
    pairs = near_copies(units, _roles(experiment, dataset), closer_than=closer_than)
    groups = dataset.targets if labelled and not dataset.multi_label else np.zeros(len(X), np.intp)
    distances, ratios = isolation(units, groups)
    del units
    margins, others = np.full(len(X), -np.inf, np.float32), np.zeros(len(X), np.intp)
    C = None
    if labelled:
        C, margins, others = _judge_labels(experiment, dataset, X)
    return Audit(dataset, extraction, closer_than, pairs, margins, others, C, distances, ratios)


def _features(experiment: Experiment, cache: FeatureCache, dataset: Dataset) -> Floats:
    from spptransfer.normalization import PyramidNormalizer  # imports scikit-learn

    selection = experiment.selection
    X = read_features(cache, dataset.ids, **selection)
    widths = [column.width for column in cache.columns(**selection)]
    names = experiment.pipeline.classifier.normalize or ()
    normalizer = PyramidNormalizer(names, block_sizes=widths, copy=False)
    return np.asarray(normalizer.fit_transform(X), np.float32)


def _roles(experiment: Experiment, dataset: Dataset) -> npt.NDArray[np.int8] | None:
    """What each split of the protocol does with each image; None without labels."""
    if not dataset.labelled:
        return None
    roles = np.zeros((len(experiment.splits), len(dataset)), np.int8)
    for role, split in zip(roles, experiment.splits, strict=True):
        for ids, what in ((split.train, TRAIN), (split.test, TEST)):
            found = Ids.of(dataset.ids).find(ids)  # -1 for images without features
            role[found[found >= 0]] = what
    return roles


def _judge_labels(
    experiment: Experiment, dataset: Dataset, X: Floats
) -> tuple[Any, Floats, Indices]:
    """Contradict labels by classifiers that were not trained on them, with C chosen on all."""
    from spptransfer.protocols.out_of_fold import (
        contradiction,
        deal_folds,
        held_out_values,
        shared_gram,
    )
    from spptransfer.protocols.training import fit_classifier

    training, targets = check(experiment), dataset.targets
    folds = deal_folds(targets, FOLDS)
    n_classes = len(dataset.classes)
    given: dict[str, Any] = {"training": training, "n_classes": n_classes}
    given["gram"] = shared_gram(X, folds, n_classes * len(training.C))
    steps.info("judging labels by classifiers of %d folds", len(folds))
    classifier = fit_classifier(X, targets, folds=folds, **given)
    values = held_out_values(classifier, X, targets, folds, **given)
    margins, others = contradiction(values, targets)
    # Where a class has a single image, nothing is learned of it without that image.
    single = (targets == 1) if dataset.multi_label else targets[:, None] == np.arange(n_classes)
    alone = single & (single.sum(axis=0) == 1)
    margins[alone.any(axis=1)] = -np.inf
    return classifier.C, margins, others


# ---- files ----


def write_tables(found: Audit, folder: Path) -> list[Path]:
    """Write what was found as ``near_copies.csv``, ``labels.csv`` and ``outliers.csv``."""
    make_folder(folder)
    ids, digests = found.dataset.ids, FeatureCache.open(found.extraction.path).digests()
    copies, near = [], found.near_copies
    for one, other, distance, across in zip(*(each.tolist() for each in near), strict=True):
        same = digests[ids[one]] == digests[ids[other]]
        names = [ids[one], ids[other], found.label(one), found.label(other)]
        copies.append([*names, f"{distance:.6f}", across, int(same)])
    labels = [
        [ids[i], found.label(i), found.doubt(i), f"{found.contradictions[i]:.6f}"]
        for i in found.doubtful.tolist()
    ]
    outliers = [
        [ids[i], found.label(i), f"{found.distances[i]:.6f}", f"{found.ratios[i]:.4f}"]
        for i in found.outliers.tolist()
    ]
    return [
        _write(folder / "near_copies.csv", NEAR_COPIES, copies),
        _write(folder / "labels.csv", LABELS, labels),
        _write(folder / "outliers.csv", OUTLIERS, outliers),
    ]


NEAR_COPIES = (
    "id",
    "other_id",
    "label",
    "other_label",
    "cosine_distance",
    "splits_with_one_in_training_and_one_in_test",
    "same_file",
)
LABELS = ("id", "label", "decision_values_say", "contradiction")
OUTLIERS = ("id", "label", "mean_distance_to_nearest", "times_the_median")


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows([header, *rows])
    return path
