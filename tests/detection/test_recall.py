"""Recall of proposals equals its definition, window by window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.datasets.annotations import Objects
from spptransfer.detection.boxes import overlaps
from spptransfer.detection.recall import recall


def boxes(random, count):
    corner = random.integers(0, 20, (count, 2))
    return np.concatenate([corner, corner + random.integers(1, 20, (count, 2))], 1).astype(float)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=5),
    counts=st.lists(st.integers(1, 15), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_recall_is_the_share_of_objects_that_the_first_windows_overlap(sizes, counts, seed):
    random = np.random.default_rng(seed)
    proposals, objects = [], []
    for windows, number in sizes:
        proposals.append(boxes(random, windows).astype(np.float32))
        hard = random.random(number) < 0.3
        objects.append(Objects.of(boxes(random, number), np.zeros(number, int), hard))
    found = recall(iter(proposals), iter(objects), counts, (0.3, 0.7))
    hits = [
        [
            [overlaps(box[None], windows[:count]).max(initial=0) >= limit for limit in (0.3, 0.7)]
            for windows, there in zip(proposals, objects, strict=True)
            for box in there.boxes[~there.difficult]
        ]
        for count in counts
    ]
    assert found.objects == len(hits[0])
    assert found.windows == pytest.approx(np.mean([len(each) for each in proposals]))
    if found.objects:
        assert np.allclose(found.found, np.mean(hits, axis=1))
    else:
        assert np.isnan(found.found).all()
    assert (found.images, found.empty) == (len(sizes), [len(each) for each in proposals].count(0))


def test_images_without_counterpart_are_no_oversight():
    with pytest.raises(ValueError, match="zip"):
        recall([], [Objects.of()])
