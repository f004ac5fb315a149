"""Windows of a dense grid are ordered by the overlap that maps tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.methods import open_proposer
from spptransfer.detection.objectness import Objectness
from spptransfer.detection.recall import recall
from spptransfer.errors import ConfigError
from spptransfer.extraction.maps import FeatureMaps

NOTHING = np.zeros((1, 1, 3), np.uint8)


def scene(seed):
    """Maps of an image of 160 x 240 pixels, one channel of which shows where its object is."""
    random = np.random.default_rng(seed)
    sides = random.integers(3, 9, 2)
    top, left = random.integers(0, [20 - sides[0], 30 - sides[1]])
    bottom, right = top + sides[0], left + sides[1]
    map = torch.from_numpy(random.random((4, 20, 30), np.float32))
    map[0] *= 0.1
    map[0, top:bottom, left:right] = 1
    maps = FeatureMaps({"low": map}, {"low": (8.0, 8.0)}, {"low": (4.0, 4.0)}, (160, 240), 160)
    return [maps], Objects.of(8 * np.array([[left, top, right, bottom]]), [0])


def test_objects_are_found_with_fewer_windows_than_a_grid_needs():
    fitted = Objectness(scales=6, smallest=0.15).fit(map(scene, range(40)))
    new = [scene(seed) for seed in range(40, 60)]
    objects = [there for _, there in new]
    ours = [fitted.propose(NOTHING, maps) for maps, _ in new]
    grid = open_proposer("grid", step=1 / 3, max_windows=9000)
    image = np.broadcast_to(np.uint8(0), (160, 240, 3))
    assert recall(ours, objects, [100]).found[0, 0] > 0.8
    assert recall([grid.propose(image)] * 20, objects, [100]).found[0, 0] < 0.4
    for windows in ours:
        assert windows.dtype == np.float32
        assert windows[0].tolist() == [0, 0, 240, 160]
        assert len(np.unique(windows, axis=0)) == len(windows) <= 2000


def test_what_was_fitted_is_its_coefficients_and_part_of_the_key():
    fitted = Objectness(scales=4, max_windows=50).fit(map(scene, range(3)))
    again = Objectness(scales=4, max_windows=50, coef=fitted.coef)
    maps, _ = scene(9)
    assert np.array_equal(fitted.propose(NOTHING, maps), again.propose(NOTHING, maps))
    assert fitted.key == again.key != Objectness(scales=4, max_windows=50).key
    assert fitted.fit(map(scene, range(3))).key == fitted.key


def test_without_a_fit_or_objects_nothing_is_proposed():
    maps, _ = scene(0)
    with pytest.raises(ConfigError, match="objectness has not been fitted"):
        Objectness().propose(NOTHING, maps)
    with pytest.raises(ConfigError, match="needs training images with objects"):
        Objectness().fit([(maps, Objects.of())])
    with pytest.raises(ConfigError, match=r"proposals\.max_windows: 0 is no whole number"):
        Objectness(max_windows=0)
