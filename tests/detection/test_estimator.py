from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from spptransfer import SPPDetector, TransferDetector
from spptransfer.detection.boxes import overlaps
from spptransfer.errors import ConfigError, DatasetError, ImageError
from spptransfer.extraction.maps import MapExtractor

COLOURS = {"blue": (30, 40, 220), "red": (220, 40, 30)}
SETTINGS = {"proposals": "grid", "max_windows": 900}


def painted(count: int, names: tuple[str, ...] = ("blue", "red"), seed: int = 0):
    """Grey images with a rectangle of each colour at random."""
    draw = np.random.default_rng(seed)
    images, objects = [], []
    for _ in range(count):
        image, boxes = draw.integers(110, 140, (96, 144, 3)).astype(np.uint8), []
        for number, name in enumerate(names):
            x, y = draw.integers(4, 24) + 70 * number, draw.integers(4, 40)
            image[y : y + 44, x : x + 44] = COLOURS[name]
            boxes.append([x, y, x + 44, y + 44])
        images.append(image)
        objects.append((boxes, list(names)))
    return images, objects


def detector(**changed) -> SPPDetector:
    given = {"levels": [3, 1], "scales": [128], "C": 3.0, "settings": SETTINGS}
    return SPPDetector("spp-mini", **{**given, **changed})


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(*painted(12))


def test_objects_are_found_where_they_are(fitted):
    images, objects = painted(4, seed=1)
    assert fitted.classes_ == ("blue", "red")
    assert fitted.score(images, objects) > 0.9
    for found, (boxes, labels) in zip(fitted.predict(images), objects, strict=True):
        for label, box in zip(labels, boxes, strict=True):
            best = found.take(found.labels == fitted.classes_.index(label)).boxes[:1]
            assert overlaps(best, np.array([box], float))[0, 0] > 0.5


def test_it_can_be_cloned_and_says_what_it_was_given(fitted):
    again = clone(fitted)
    assert again.get_params()["scales"] == [128]
    with pytest.raises(NotFittedError):
        again.predict([])


def test_a_class_is_added_without_touching_the_others(tmp_path):
    images, objects = painted(10, names=("blue",))
    first = detector().fit(images, objects)
    before = first.detector_
    shown, boxes = painted(10, seed=2)
    first.add_class("red", shown, [box[1:] for box, _ in boxes])
    after = first.detector_
    assert after.classes == ("blue", "red")
    for name in ("coef", "intercept", "box_coef", "box_intercept", "sigmoids"):
        kept = getattr(after, name)[:1]
        np.testing.assert_array_equal(kept, getattr(before, name))
    assert first.score(*painted(4, seed=3)) > 0.8
    after.save(tmp_path / "model.safetensors")
    assert TransferDetector.load(tmp_path).classes == ("blue", "red")
    with pytest.raises(ConfigError, match="has a class 'red' already"):
        first.add_class("red", shown, [box[1:] for box, _ in boxes])


def test_files_give_what_their_pixels_give(fitted, tmp_path):
    from PIL import Image

    images, _ = painted(1, seed=4)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    of_file, of_pixels = fitted.predict([tmp_path / "a.png", images[0]])
    np.testing.assert_array_equal(of_file.boxes, of_pixels.boxes)
    np.testing.assert_array_equal(of_file.scores, of_pixels.scores)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"settings": {"proposal": "grid"}}, "unknown key 'settings.proposal'"),
        ({"held_out": 1.5}, "held_out: 1.5 must be a share between 0 and 1"),
        ({"settings": {"positive_overlap": 0.1}}, "settings.positive_overlap: 0.1 must be more"),
        ({"held_out": 0, "C": [1.0, 2.0]}, "C: .* leaves a choice, but no image is held out"),
        ({"layer": "fc6"}, "layer 'fc6' is a vector"),
    ],
)
def test_a_wrong_parameter_is_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        detector(**changed).fit(*painted(3))


def test_images_and_objects_must_fit():
    images, objects = painted(3)
    with pytest.raises(DatasetError, match="3 images need as many objects, not 2"):
        detector().fit(images, objects[:2])
    with pytest.raises(DatasetError, match="unknown classes: red"):
        detector().fit(images, objects, classes=["blue", "green"])
    with pytest.raises(DatasetError, match="shows an object"):
        detector().fit(images, [([], [])] * 3, classes=["blue"])
    with pytest.raises(DatasetError, match="numbers need classes"):
        detector().fit(images, [([[0, 0, 9, 9]], [0])] * 3)
    with pytest.raises(DatasetError, match="labels of 1 classes must be from 0 to 0"):
        detector().fit(images, [([[0, 0, 9, 9]], [1])] * 3, classes=["blue"])
    with pytest.raises(ImageError, match="images must be a list of images, as \\[image\\]"):
        detector().fit(images[0], objects)


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 0, 0, 9], [0, 0, float("nan"), 9]])
def test_boxes_that_hold_nothing_are_refused_before_anything_is_computed(fitted, box):
    images, _ = painted(2)
    with pytest.raises(DatasetError, match=r"^image 1: the box \[.*\] is not x0 < x1, y0 < y1$"):
        detector().fit(images, [([[0, 0, 9, 9]], ["red"]), ([box], ["red"])])
    with pytest.raises(DatasetError, match="image 1: the box"):
        fitted.add_class("green", images, [[[0, 0, 9, 9]], [box]])


def test_an_image_that_cannot_be_read_is_told_and_the_others_train(tmp_path, caplog):
    images, objects = painted(8)
    (tmp_path / "a.png").write_bytes(b"")
    trained = detector().fit([*images, tmp_path / "a.png"], [*objects, objects[0]])
    assert "image 8 does not train: " in caplog.text
    assert trained.score(*painted(3, seed=1)) > 0.8
    with pytest.raises(ImageError, match=r"^'.*a.png': cannot read the image: the file is empty$"):
        trained.predict([images[0], str(tmp_path / "a.png")])
    with pytest.raises(ImageError, match=r"^image 1: an array of shape"):
        trained.predict([images[0], np.zeros((5, 5, 7), np.uint8)])


def test_windows_that_maps_propose_are_fitted_and_a_class_is_added_by_them():
    settings = {"proposals": {"name": "objectness", "scales": 4, "smallest": 0.2}}
    images, objects = painted(10, names=("blue",))
    trained = detector(settings={**settings, "max_windows": 100}).fit(images, objects)
    fitted_to = trained.detector_.objectness.tobytes()
    shown, boxes = painted(10, seed=2)
    trained.add_class("red", shown, [box[1:] for box, _ in boxes])
    assert trained.detector_.objectness.tobytes() == fitted_to
    assert trained.score(*painted(3, seed=3)) > 0.5


class Killed(BaseException):
    """What ends a process in the middle."""


def test_a_fit_that_was_killed_goes_on_where_it_stopped(fitted, tmp_path, monkeypatch):
    asked, whole = [], MapExtractor.maps_of
    limit = 15  # after the first pass

    def maps_of(self, image):
        asked.append(image)
        if len(asked) > limit:
            raise Killed
        return whole(self, image)

    monkeypatch.setattr(MapExtractor, "maps_of", maps_of)
    given = detector(cache_dir=tmp_path)
    with pytest.raises(Killed):
        clone(given).fit(*painted(12))
    asked.clear()
    limit = 100
    again = clone(given).fit(*painted(12))
    assert len(asked) < 12 + 12
    for name in ("coef", "intercept", "box_coef", "sigmoids"):
        found, expected = (getattr(each.detector_, name) for each in (again, fitted))
        assert found.tobytes() == expected.tobytes()
    assert not list(tmp_path.glob("detector-*"))
