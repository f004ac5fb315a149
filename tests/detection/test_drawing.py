"""Boxes and names drawn into images: within them, visible, in the colours of their classes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spptransfer.detection.drawing import class_colours, draw_detections
from spptransfer.detection.evaluation import SIMILAR_CLASSES

VOC = sorted({name for names in SIMILAR_CLASSES for name in names} | {"bottle", "tvmonitor"})
number = st.floats(-300, 300) | st.sampled_from([math.nan, math.inf, -math.inf])


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.lists(st.tuples(number, number, number, number), max_size=4),
    st.text(max_size=30) | st.just("not UTF-8: \udcff"),
)
def test_any_box_and_name_can_be_drawn_into_an_image_of_any_size(size, boxes, name):
    image = Image.new("RGB", size, "grey")
    drawn = draw_detections(image, boxes, [name] * len(boxes), np.zeros(len(boxes)), boxes)
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert image.getextrema() == ((128, 128),) * 3  # the image stays as it was
    assert (drawn.tobytes() == image.tobytes()) == (not boxes)


def test_a_box_is_drawn_along_its_first_and_last_pixels():
    drawn = np.asarray(draw_detections(Image.new("RGB", (50, 40)), [[10, 5, 30, 25]], ["cat"]))
    rows, columns = np.nonzero((drawn == class_colours(["cat"])["cat"]).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 24, 10, 29)
    assert len(rows) == 4 * 19


@pytest.mark.parametrize("size", [(60, 40), (240, 180), (500, 375), (2000, 3000)])
def test_a_label_is_readable_at_any_size(size):
    corner = [size[0] * 0.9, size[1] * 0.9, size[0], size[1]]  # no room for it to the right
    bare = draw_detections(Image.new("RGB", size), [corner], ["dog"])
    drawn = draw_detections(Image.new("RGB", size), [corner], ["dog"], [-0.5])
    label = np.abs(np.asarray(drawn, int) - np.asarray(bare, int)).max(axis=2) > 60
    rows, columns = np.nonzero(label)
    assert np.ptp(rows) >= 8
    assert np.ptp(columns) >= 30
    assert np.ptp(columns) < size[0]


def test_colours_are_of_the_name_and_of_twenty_classes_none_are_alike():
    colours = class_colours(VOC)
    assert colours == class_colours(reversed(VOC))
    assert class_colours(["cat"])["cat"] == class_colours(["cat", "zebra"])["cat"]
    assert min(math.dist(*two) for two in itertools.combinations(colours.values(), 2)) > 50


def test_arrays_and_images_of_other_modes_are_taken_too():
    grey = np.full((30, 20), 90, np.uint8)
    one = draw_detections(grey, [[1, 1, 9, 9]], ["cat"], [1.0])
    other = draw_detections(Image.fromarray(grey), [[1, 1, 9, 9]], ["cat"], [1.0])
    assert one.tobytes() == other.tobytes()
