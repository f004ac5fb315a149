from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from spptransfer import SPPDetector, TransferDetector
from spptransfer.detection.boxes import overlaps
from spptransfer.errors import ConfigError, DatasetError

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
        ({"settings": {"proposals": "objectness"}}, "objectness is fitted by pipelines only"),
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
