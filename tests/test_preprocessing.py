from __future__ import annotations

import dataclasses

import pytest
from cache_files import make_spec

from spptransfer import backbones, images
from spptransfer.errors import ModelError
from spptransfer.preprocessing import check_current, preprocessing_of


@pytest.mark.parametrize("name", ["alexnet", "spp-mini", "zf5"])
def test_it_says_how_images_are_made_and_normalised(name):
    found, info = preprocessing_of(name), backbones.describe(name)
    assert found.items() >= images.description().items()
    assert (found["mean"], found["std"]) == (list(info.mean), list(info.std))


def test_a_spec_of_this_version_is_current():
    check_current(make_spec())


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": {**preprocessing_of("squeezenet1_1"), "resize": "another library's"}},
        {"preprocessing": {**preprocessing_of("squeezenet1_1"), "mean": [0, 0, 0]}},
        {"preprocessing": {}},
        {"numerics": 0},
    ],
)
def test_a_spec_of_another_version_is_refused_in_one_line(changes):
    with pytest.raises(ModelError, match="another version of spptransfer") as told:
        check_current(dataclasses.replace(make_spec(), **changes))
    assert "\n" not in str(told.value)
