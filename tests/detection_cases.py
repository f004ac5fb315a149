"""Random detections and objects, with all that makes their evaluation hard."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.detections import Detections

CLASSES = ("cat", "dog", "car")


@st.composite
def boxes(draw):
    """A box on a coarse grid, so that equal overlaps and those of exactly 0.5 are common."""
    x, y = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    return [x, y, x + draw(st.integers(1, 4)), y + draw(st.integers(1, 4))]


@st.composite
def scenes(draw):
    """Detections and the objects of up to three images, some of them empty."""
    label = st.integers(0, len(CLASSES) - 1)
    objects = []
    for _ in range(draw(st.integers(1, 3))):
        drawn = draw(st.lists(st.tuples(boxes(), label, st.booleans()), max_size=5))
        objects.append(
            Objects.of(*([list(column) for column in zip(*drawn, strict=True)] or [[], [], []]))
        )
    image = st.integers(0, len(objects) - 1)
    score = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
    found = draw(st.lists(st.tuples(image, boxes(), label, score), max_size=14))
    return detections(found), objects


def detections(found) -> Detections:
    """Detections from (image, box, label, score) of each."""
    images, drawn, labels, scores = zip(*found, strict=True) if found else ((), (), (), ())
    return Detections(
        np.array(images, np.intp),
        np.array(drawn, np.float64).reshape(-1, 4),
        np.array(labels, np.int32),
        np.array(scores, np.float32),
    )
