from __future__ import annotations

import dataclasses
import json

import pytest
from cache_files import make_spec
from hypothesis import given
from hypothesis import strategies as st

from spptransfer.errors import CacheError
from spptransfer.spec import FeatureSpec

SPEC = make_spec(levels=(6,), scales=(224,))


def test_a_spec_comes_back_from_json_as_it_was():
    again = FeatureSpec.from_dict(json.loads(json.dumps(SPEC.to_dict())))
    assert again == SPEC
    assert again.fingerprint == SPEC.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "alexnet"},
        {"weights_sha256": "01"},
        {"layers": ("fire4",)},
        {"layers": ("spp", "fire4")},
        {"layers": ("spp", "fc6"), "vectors": ("fc6",)},
        {"levels": (6, 4)},
        {"levels": ()},
        {"pooling": "mean"},
        {"scales": (225,)},
        {"scales": (224, 256)},
        {"view": "warp"},
        {"flip": True},
        {"precision": "bfloat16"},
        {"storage": "float16"},
        {"preprocessing": {"mean": [0, 0, 0]}},
        {"numerics": 2},
    ],
)
def test_the_fingerprint_changes_with_everything_that_changes_a_value(change):
    assert dataclasses.replace(SPEC, **change).fingerprint != SPEC.fingerprint


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1, 6), (2, 6, 3)])
def test_levels_that_follow_from_others_do_not_change_the_fingerprint(levels):
    assert dataclasses.replace(SPEC, levels=levels).fingerprint == SPEC.fingerprint


@pytest.mark.parametrize(
    "values",
    [
        {},
        {**SPEC.to_dict(), "colour": 1},
        {**SPEC.to_dict(), "levels": "63"},
        {**SPEC.to_dict(), "levels": 6},
        {**SPEC.to_dict(), "scales": [1e300]},
        {**SPEC.to_dict(), "backbone": 7},
        {**SPEC.to_dict(), "layers": 7},
        {**SPEC.to_dict(), "layers": ["spp", 7]},
        {**SPEC.to_dict(), "vectors": 7},
        {**SPEC.to_dict(), "flip": "yes"},
        {**SPEC.to_dict(), "view": []},
    ],
)
def test_what_is_no_spec_is_refused(values):
    with pytest.raises(CacheError, match="not a feature spec"):
        FeatureSpec.from_dict(values)


def test_differences_name_the_field_and_both_values():
    other = dataclasses.replace(SPEC, scales=(392,), flip=True)
    assert SPEC.differences(other) == [
        "scales: [224] is not [392]",
        "flip: False is not True",
    ]
    assert SPEC.differences(SPEC) == []


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True),
    st.booleans(),
)
def test_a_spec_covers_exactly_what_its_levels_determine(stored, wanted, flip):
    spec, other = (make_spec(levels=tuple(levels), flip=flip) for levels in (stored, wanted))
    determined = {
        level for level in range(1, 13) for n in stored if (n == level if flip else n % level == 0)
    }
    assert spec.covers(other) == (set(wanted) <= determined)


def test_a_spec_covers_fewer_scales_but_not_more():
    wide = make_spec(scales=(48, 64))
    assert wide.covers(make_spec(scales=(64,)))
    assert not make_spec(scales=(64,)).covers(wide)


def test_a_spec_covers_fewer_layers_but_not_more():
    both = make_spec(layers=("spp", "fc6"), vectors=("fc6",), pooling="mean")
    vector, map = make_spec(layers=("fc6",), levels=()), make_spec(pooling="mean")
    assert both.covers(vector)
    assert both.covers(map)
    assert not map.covers(both)
    assert not vector.covers(both)
    assert not both.covers(make_spec())


def test_the_order_of_layers_does_not_change_the_fingerprint():
    one, other = (make_spec(layers=layers) for layers in (("spp", "conv4"), ("conv4", "spp")))
    assert one.fingerprint == other.fingerprint
    assert one.origin == "squeezenet1_1 conv4 + spp"


def test_a_vector_covers_no_map_and_a_map_no_vector():
    vector = make_spec(levels=())
    assert vector.covers(vector)
    assert not vector.covers(make_spec())
    assert not make_spec().covers(vector)
