from __future__ import annotations

import dataclasses

import pytest
import torch

from spptransfer import backbones, images
from spptransfer.backbones import BackboneRef
from spptransfer.errors import ConfigError, ModelError
from spptransfer.pyramid import SpatialPyramidPooling
from spptransfer.specify import check_current, feature_spec, preprocessing_of

MINI = BackboneRef("spp-mini", "embedded")


def test_auto_precision_is_float32():
    assert feature_spec(MINI) == feature_spec(MINI, precision="float32")
    assert feature_spec(MINI).precision == "float32"


def test_a_backbone_by_name_and_a_loaded_one_have_one_spec():
    loaded = backbones.load("spp-mini", "embedded", layer=["conv3", "fc6"])
    for layer in ("conv3", "fc6"):
        assert feature_spec(loaded, layer=layer) == feature_spec(MINI, layer=layer)


def test_only_the_maps_of_several_layers_have_levels():
    both = feature_spec(MINI, layer=["fc6", "conv3"], levels=[4, 2])
    assert (both.layers, both.vectors, both.levels) == (("conv3", "fc6"), ("fc6",), (4,))
    vectors = feature_spec(MINI, layer=["fc7", "fc6"], levels=[4, 2])
    assert (vectors.vectors, vectors.levels) == (("fc6", "fc7"), ())
    whole = feature_spec(MINI, layer=["fc6", "conv3"], levels=[], view="warp", scales=[64])
    assert (
        whole.levels
        == feature_spec(MINI, layer="conv3", levels=[], view="warp", scales=[64]).levels
    )


@pytest.mark.parametrize("view", ["center_crop", "warp"])
@pytest.mark.parametrize("layer", ["conv1", "conv3", "spp"])
@pytest.mark.parametrize("scale", [17, 64, 99])
def test_without_levels_the_bins_are_the_cells_of_the_map(view, layer, scale):
    spec = feature_spec(MINI, layer=layer, levels=[], scales=[scale], view=view)
    backbone = MINI.load([layer])
    assert feature_spec(backbone, layer=layer, levels=[], scales=[scale], view=view) == spec
    maps = backbone.maps_of(torch.randn(2, 3, scale, scale), [layer])[layer]
    assert maps.shape[2:] == spec.levels * 2
    assert SpatialPyramidPooling(spec.levels)(maps).equal(maps.flatten(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": []}, "whose size differs .* allowed views: center_crop, warp"),
        (
            {"levels": [], "view": "warp", "scales": [64, 96]},
            r"at one scale, not at \[64, 96\]",
        ),
        (
            {"levels": [], "view": "warp", "scales": [64], "layer": ["conv3", "conv4"]},
            r"the whole map of one layer, not of \['conv3', 'conv4'\]",
        ),
        ({"layer": ["spp", "conv9"]}, "unknown layer 'conv9' .*: did you mean"),
        ({"layer": ["spp", "spp"]}, r"layer: \['spp', 'spp'\] holds a layer twice"),
        ({"layer": []}, r"layer: \[\] must be a layer's name or a list of names, as \[fc6, spp\]"),
        ({"layer": None}, "unknown layer 'None'"),
        ({"storage": "int8"}, "storage: 'int8' is unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given, message):
    with pytest.raises(ConfigError, match=message) as told:
        feature_spec(MINI, **given)
    assert "\n" not in str(told.value)


# ---- decoding, resizing, mean and std ----


@pytest.mark.parametrize("name", ["alexnet", "spp-mini", "zf5"])
def test_the_preprocessing_says_how_images_are_made_and_normalised(name):
    info = backbones.describe(name)
    found = preprocessing_of(info)
    assert found.items() >= images.description().items()
    assert (found["mean"], found["std"]) == (list(info.mean), list(info.std))


def test_a_spec_of_this_version_is_current():
    check_current(feature_spec(MINI), MINI.info)


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": {**preprocessing_of(MINI.info), "resize": "another library's"}},
        {"preprocessing": {**preprocessing_of(MINI.info), "mean": [0, 0, 0]}},
        {"preprocessing": {}},
        {"numerics": 0},
    ],
)
def test_a_spec_of_another_version_is_refused_in_one_line(changes):
    with pytest.raises(ModelError, match="another version of spptransfer") as told:
        check_current(dataclasses.replace(feature_spec(MINI), **changes), MINI.info)
    assert "\n" not in str(told.value)
