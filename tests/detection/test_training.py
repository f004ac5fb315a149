"""Training survives kills and broken images, and takes the windows that it should."""

from __future__ import annotations

import threading
from collections import defaultdict

import numpy as np
import pytest
from painted_images import PaintedImages

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import overlaps, paired_overlaps
from spptransfer.detection.detections import Detections
from spptransfer.detection.evaluation import evaluate_detections
from spptransfer.detection.passes import Passes
from spptransfer.detection.regression import decode_boxes
from spptransfer.detection.sampling import best_objects
from spptransfer.detection.settings import DetectionSection
from spptransfer.detection.training import Plan, Trained, Trainer, fit_sigmoids
from spptransfer.errors import DatasetError
from spptransfer.extraction import Interrupted


class Recorded(Passes):
    """Passes that remember the arrays of each stage."""

    def __init__(self, folder, stop=None) -> None:
        super().__init__(folder, 2, progress=False, stop=stop or threading.Event())
        self.found = defaultdict(list)

    def run(self, name, positions, work):
        for part in super().run(name, positions, work):
            self.found[name].append(part)
            yield part

    def all_of(self, name, key):
        return np.concatenate([part[key] for part in self.found[name] if key in part])


def train(images, passes, held_out=(1, 4), C=(0.1, 10.0), features=None, **settings) -> Trained:
    section = DetectionSection(**{"proposals": "grid", "mining_rounds": 2, **settings})
    plan = Plan(features or images.features, section, images.n_classes, C=C)
    given = plan, images.paths, images.objects, images.propose, held_out, images, passes
    return Trainer(*given).train()


def numbers(trained: Trained) -> dict:
    """All of a detector, arrays to the byte; not the time that it took."""
    arrays = {"coef": trained.coef, "intercept": trained.intercept, "sigmoids": trained.sigmoids}
    arrays |= {"moves": trained.regression[0], "stays": trained.regression[1]}
    facts = {name: getattr(trained, name) for name in ("C", "heldout", "counts", "failures")}
    return facts | {name: (array.shape, array.tobytes()) for name, array in arrays.items()}


class Killed(BaseException):
    """What ends a process in the middle."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of three files a pass that nobody disturbed."""
    images = PaintedImages(70, broken=[3])
    trained = train(images, Recorded(tmp_path_factory.mktemp("whole")), range(0, 70, 5))
    return numbers(trained), images.asked


# Of 224 images in all: 70 for the sampling and for each round of mining, and 14 held out.
@pytest.mark.parametrize(
    ("how", "at"),
    [("killed", 40), ("killed", 180), ("killed", 215), ("stopped", 1), ("stopped", 205)],
)
def test_a_training_that_ended_early_goes_on_to_the_same_detector(whole, tmp_path, how, at):
    expected, asked = whole
    images, stop = PaintedImages(70, broken=[3]), threading.Event()

    def end():
        if images.asked >= at:
            if how == "killed":
                raise Killed
            stop.set()

    images.before = end
    with pytest.raises((Killed, Interrupted)) as ended:
        train(images, Recorded(tmp_path / "kept", stop), range(0, 70, 5))
    if how == "stopped":
        assert "run the same command again to go on" in str(ended.value)
    before, images.asked, images.before = images.asked, 0, lambda: None
    resumed = train(images, Recorded(tmp_path / "kept"), range(0, 70, 5))
    assert numbers(resumed) == expected
    assert images.asked <= asked - before + (32 + 2 if how == "killed" else 0)


def test_broken_images_are_told_and_the_others_train(tmp_path):
    images = PaintedImages(8, broken=[0, 4])
    trained = train(images, Recorded(tmp_path), positive_overlap=1.0)
    assert trained.failures == {n: f"'00{n}.png': cannot read the image" for n in (0, 4)}
    readable = [each for number, each in enumerate(images.objects) if number not in (0, 4)]
    assert trained.counts["positives"] == sum(len(each.labels) for each in readable)
    assert np.isfinite(trained.coef).all()


def test_where_no_image_can_be_read_the_first_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"^no image can be read; the first: '000.png': .*$"):
        train(PaintedImages(4, broken=range(4)), Recorded(tmp_path), ())


def test_where_no_image_held_out_can_be_read_the_first_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"^no image held out .* can be read.*'001.png': .*$"):
        train(PaintedImages(8, broken=[1, 4]), Recorded(tmp_path))


@pytest.mark.parametrize("difficult", [False, True])
def test_images_without_objects_that_train_are_refused(tmp_path, difficult):
    images = PaintedImages(4)
    images.objects = [
        each._replace(difficult=np.ones(len(each.labels), bool)) if difficult else Objects.of()
        for each in images.objects
    ]
    with pytest.raises(DatasetError, match=r"^no image to train on shows an object.*$"):
        train(images, Recorded(tmp_path))
    assert images.asked == 0


def test_C_is_the_best_on_the_images_held_out(tmp_path):
    images, costs = PaintedImages(12), (1e-7, 1.0, 100.0)
    passes = Recorded(tmp_path)
    trained = train(images, passes, (2, 5, 9), costs)
    scores = {one["C"]: one["score"] for one in trained.heldout}
    assert tuple(scores) == costs
    assert max(costs, key=lambda C: scores[C]) == trained.C
    assert scores[trained.C] > 0.8
    assert set(passes.all_of("held-out", "images")) == {2, 5, 9}


def test_without_images_held_out_C_is_the_given_one(tmp_path):
    trained = train(PaintedImages(6), Recorded(tmp_path), (), (3.0,))
    assert (trained.C, trained.heldout) == (3.0, [])
    assert trained.sigmoids.tolist() == [[1, 0], [1, 0]]


def test_the_regression_moves_windows_towards_the_objects_of_other_images(tmp_path):
    trained, others = train(PaintedImages(60), Recorded(tmp_path)), PaintedImages(90)
    before, after = [], []
    for position in range(60, 90):
        maps, objects = others.maps_of(others.paths[position]), others.objects[position]
        windows = others.propose(position, maps)
        rows, nearest = best_objects(windows, objects, 0.5)
        features = trained.normalizer.transform(others.features.compute(maps, windows[rows]))
        coef, intercept = (array[objects.labels[nearest]] for array in trained.regression)
        changes = np.einsum("nf,nkf->nk", features, coef) + intercept
        moved = decode_boxes(windows[rows], changes, (128, 128))
        before += paired_overlaps(windows[rows], objects.boxes[nearest]).tolist()
        after += paired_overlaps(moved, objects.boxes[nearest]).tolist()
    assert np.mean(after) > np.mean(before) + 0.02


def test_a_single_class_is_a_detector_too(tmp_path):
    trained = train(PaintedImages(8, n_classes=1), Recorded(tmp_path))
    assert trained.coef.shape == (1, 4 * 10)
    assert max(one["score"] for one in trained.heldout) > 0.8


@pytest.mark.parametrize("held_out", [(1, 4), ()])
def test_a_class_without_objects_to_train_on_is_never_found(tmp_path, held_out):
    images = PaintedImages(8, n_classes=3)
    images.objects = [each._replace(labels=each.labels % 2) for each in images.objects]
    trained = train(images, Recorded(tmp_path), held_out)
    rows = np.random.default_rng(0).random((20, images.features.width)).astype(np.float32)
    values = trained.normalizer.transform(rows) @ trained.coef[2] + trained.intercept[2]
    assert (values < -0.9).all()
    assert not trained.regression[0][2].any()


def test_hard_negatives_are_negatives_and_no_window_trains_twice(tmp_path):
    images, passes = PaintedImages(10), Recorded(tmp_path)
    trained = train(images, passes, mined_per_image=4, negatives_per_image=3)
    stages = ("sample", "mine0", "mine1")
    assert len(passes.all_of("mine0", "images"))
    known: dict[int, set] = defaultdict(set)
    for stage in stages:
        boxes, of = passes.all_of(stage, "boxes"), passes.all_of(stage, "images")
        for box, image, targets in zip(boxes, of, passes.all_of(stage, "targets"), strict=True):
            assert tuple(box) not in known[image]
            known[image].add(tuple(box))
            objects = images.objects[image]
            for label in np.flatnonzero(targets == -1):
                near = overlaps(box[None], objects.boxes[objects.labels == label])
                assert near.max(initial=0) <= 0.3
            if stage != "sample":
                assert -1 in targets
                assert 1 not in targets
        if stage != "sample":
            assert np.bincount(of).max() <= 4
    assert trained.counts["windows"] == sum(map(len, known.values()))


def test_windows_that_are_only_scored_are_never_all_in_memory(tmp_path):
    images, counts = PaintedImages(4), []

    class Counting(type(images.features)):
        def compute(self, maps, boxes):
            counts.append(len(boxes))
            return super().compute(maps, boxes)

    few, seed = images.propose, np.random.default_rng(0)
    many = seed.uniform(0, 60, (9000, 2))
    many = np.hstack([many, many + seed.uniform(8, 60, (9000, 2))])
    images.propose = lambda position, maps: np.concatenate([many, few(position, maps)])
    counting = Counting(**vars(images.features))
    train(images, Recorded(tmp_path), (1,), features=counting)
    assert max(counts) < 9000 / 4
    assert sum(counts) > 3 * 9000


def evaluated(scores, right):
    """An evaluation of detections of one class that are right or not, one in each image."""
    count = len(scores)
    boxes = np.tile([0.0, 0, 10, 10], (count, 1)) + np.where(right, 0, 50)[:, None]
    found = Detections(
        np.arange(count), boxes, np.zeros(count, np.int32), np.asarray(scores, np.float32)
    )
    return evaluate_detections(found, [Objects.of([[0, 0, 10, 10]], [0])] * count, ["disc", "star"])


def test_confidences_follow_the_share_of_detections_that_are_right():
    random = np.random.default_rng(0)
    scores = random.normal(0, 2, 4000)
    right = random.random(4000) < 1 / (1 + np.exp(-(1.5 * scores - 1)))
    slope, offset = fit_sigmoids(evaluated(scores, right))[0]
    assert (slope, offset) == (pytest.approx(1.5, rel=0.1), pytest.approx(-1, abs=0.15))


@pytest.mark.parametrize(
    ("scores", "right"),
    [
        ([], []),
        ([1.0, 2.0], [True, True]),
        ([1.0, 2.0], [False, False]),
        ([2.0, 1.0, 0.5], [False, True, True]),  # the better, the more often wrong
        ([2.0, 1.0], [True, False]),  # apart: any slope would do
    ],
)
def test_confidences_rise_with_the_decision_value_whatever_was_found(scores, right):
    sigmoids = fit_sigmoids(evaluated(scores, np.array(right, bool)))
    assert sigmoids.dtype == np.float32
    assert np.isfinite(sigmoids).all()
    assert (sigmoids[:, 0] > 0).all()
    np.testing.assert_array_equal(sigmoids[0], sigmoids[1])
