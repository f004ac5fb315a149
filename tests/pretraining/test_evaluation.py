from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_network import CLASSES
from evaluation_cases import INFO, Labelled, averaged, computing, described, drawn, wave
from runtime_cases import PACKAGES, need
from torch import nn

from spptransfer import backbones
from spptransfer.errors import ConfigError, DatasetError, ImageError
from spptransfer.extraction.reading import OUT_OF_MEMORY
from spptransfer.pretraining import evaluation_views
from spptransfer.pretraining.evaluation import (
    NetworkClassifier,
    ViewAverager,
    load_classifier,
    make_scheme,
    measure_errors,
    rank_of_truth,
)
from spptransfer.runtimes import ComputeOptions, describe_runtime

# Errors ------------------------------------------------------------------------------------


def test_ranks_count_the_better_classes_and_break_ties_by_index():
    scores = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert rank_of_truth(scores, np.array([0, 1, 0, 2])).tolist() == [0, 2, 0, 2]


def test_top_1_and_top_5_are_counted_over_all_images(mini):
    found = drawn(1)
    scheme = make_scheme("center_crop", size=64)
    (errors,) = measure_errors([mini], found, [scheme]).errors
    every = np.concatenate([averaged(mini, [image], scheme) for image, _ in found])
    order = np.argsort(-every, axis=1)
    labels = np.array([label for _, label in found])[:, None]
    assert errors.top1_wrong == int((order[:, :1] != labels).all(1).sum())
    assert errors.top5_wrong == int((order[:, :5] != labels).all(1).sum())
    assert errors.top1_accuracy == 1 - errors.top1_wrong / len(found)
    assert errors.top5_accuracy == 1 - errors.top5_wrong / len(found)
    assert errors.seconds > 0


def test_several_networks_average_their_probabilities(mini):
    other = backbones.network("spp-mini", num_classes=len(CLASSES))
    other = NetworkClassifier(other, INFO)
    found, scheme = drawn(1), make_scheme("full", size=64)
    both = sum(
        np.concatenate([averaged(network, [image], scheme) for image, _ in found])
        for network in (mini, other)
    )
    wrong = int((rank_of_truth(both, np.array([label for _, label in found])) > 0).sum())
    (errors,) = measure_errors([mini, other], found, [scheme]).errors
    assert errors.top1_wrong == wrong


def test_the_same_network_twice_changes_nothing(mini):
    found, scheme = drawn(1), make_scheme("10-maps", size=64)
    once, twice = (measure_errors([mini] * count, found, [scheme]).errors[0] for count in (1, 2))
    assert (once.top1_wrong, once.top5_wrong) == (twice.top1_wrong, twice.top5_wrong)


@pytest.mark.parametrize("runtime", ["torch", *PACKAGES])
def test_a_network_can_be_asked_from_many_sides_at_once(mini, runtime):
    """Threads share the networks; a batch's neighbours change nothing."""
    need(runtime)
    found, schemes = drawn(1), [make_scheme("10-maps", size=64), make_scheme("full", size=64)]
    one = measure_errors([mini], found, schemes, options=computing(threads=1))
    three = measure_errors([mini], found, schemes, options=computing(runtime, 3))
    assert three.computed_by == (describe_runtime(runtime),)
    counts = [[(e.images, e.top1_wrong, e.top5_wrong) for e in x.errors] for x in (one, three)]
    assert counts[0] == counts[1]


class Awkward(Labelled):
    """The image at position 1 cannot be read."""

    def __getitem__(self, position):
        if position == 1:
            raise ImageError("cannot decode the image")
        return super().__getitem__(position)


def test_images_that_cannot_be_evaluated_are_named_and_do_not_count(mini, monkeypatch):
    monkeypatch.setattr(evaluation_views, "MOST_VIEW_PIXELS", 64 * 400)
    found = Awkward([(wave(64, 64), 0), (wave(64, 64), 1), (wave(10, 100), 2), (wave(70, 64), 3)])
    result = measure_errors([mini], found, [make_scheme("full", size=64, resize=64)])
    assert result.errors[0].images == 2
    assert list(result.failures) == [1, 2]
    assert result.failures[1] == "cannot decode the image"
    assert "at most 25,600 pixels are evaluated" in result.failures[2]


def test_scores_that_are_not_finite_are_no_answer():
    network = backbones.network("spp-mini", num_classes=len(CLASSES))
    nn.init.constant_(network.fc8.bias, torch.nan)
    with pytest.raises(DatasetError, match="not one image could be evaluated: the class scores"):
        measure_errors([NetworkClassifier(network, INFO)], drawn(1), [make_scheme("full", size=64)])


@pytest.fixture
def little_memory(monkeypatch):
    """Memory for two small images; an error of choice beyond."""
    asked, probabilities = [], ViewAverager.probabilities

    def short(self, views, scheme):
        asked.append(len(views[0]))
        if views[0].size > 2 * 64 * 64 * 3:
            raise short.error
        return probabilities(self, views, scheme)

    monkeypatch.setattr(ViewAverager, "probabilities", short)
    short.error, short.asked = torch.OutOfMemoryError("CUDA out of memory"), asked
    return short


def test_a_batch_that_does_not_fit_is_halved_down_to_an_image_that_fails(mini, little_memory):
    found = Labelled([*((wave(64, 64, i), i) for i in range(7)), (wave(64, 300), 7)])
    result = measure_errors([mini], found, [make_scheme("full", size=64)], options=computing())
    assert result.failures == {7: OUT_OF_MEMORY}
    assert result.errors[0].images == 7
    assert max(little_memory.asked) == 7
    assert sorted(little_memory.asked)[:2] == [1, 1]


def test_what_cannot_be_computed_at_all_is_no_failure_of_the_image(mini, little_memory):
    little_memory.error = RuntimeError(
        "GET was unable to find an engine to execute this computation"
    )
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        measure_errors([mini], Labelled([(wave(64, 300), 0)]), [make_scheme("full", size=64)])
    little_memory.error = RuntimeError("wrong shape")
    with pytest.raises(RuntimeError, match="wrong shape"):
        measure_errors([mini], Labelled([(wave(64, 300), 0)]), [make_scheme("full", size=64)])


def test_progress_is_told_of_every_image_under_every_scheme(mini):
    told = []
    schemes = [make_scheme(name, size=64) for name in ("full", "center_crop")]
    measure_errors([mini], drawn(1), schemes, note=told.append)
    assert sum(told) == 48


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"precision": "float16"}, "precision: 'float16' is unknown; "),
        ({"options": ComputeOptions("tpu")}, "device: 'tpu' is unknown; allowed: auto, cpu"),
        ({"options": ComputeOptions(runtime="onnx")}, "runtime: 'onnx' is unknown; "),
        (
            {"options": ComputeOptions("cuda", "openvino")},
            "'cuda' is not for runtime 'openvino'",
        ),
        (
            {"options": ComputeOptions(runtime="onnxruntime"), "precision": "bfloat16"},
            "allowed: float32$",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(mini, keywords, message):
    for runtime in PACKAGES:
        need(runtime)
    with pytest.raises(ConfigError, match=message):
        measure_errors([mini], drawn(1), [make_scheme("full", size=64)], **keywords)


# Classes -----------------------------------------------------------------------------------


def test_other_classes_than_the_networks_are_refused(mini):
    found = drawn(1)
    found.classes = CLASSES[:-1]
    with pytest.raises(ConfigError, match="24 classes cannot be evaluated on images of 23"):
        measure_errors([mini], found, [make_scheme("full", size=64)])


def test_no_images_are_refused(mini):
    with pytest.raises(DatasetError, match="no images"):
        measure_errors([mini], Labelled(), [make_scheme("full", size=64)])


def test_classes_are_matched_by_name_where_the_weights_know_names(mini, tmp_path):
    path = described(tmp_path / "w.safetensors", classes=CLASSES)
    named = load_classifier("spp-mini", path)
    found, scheme = drawn(1), make_scheme("full", size=96)
    few = Labelled((image, 9 - label) for image, label in found[:10])
    few.classes = CLASSES[:10][::-1]
    (errors,) = measure_errors([named], few, [scheme]).errors
    (all_of_them,) = measure_errors([mini], Labelled(found[:10]), [scheme]).errors
    assert errors.top1_wrong == all_of_them.top1_wrong
    few.classes = (*CLASSES[:9], "zebra")
    with pytest.raises(ConfigError, match="no class 'zebra'"):
        measure_errors([named], few, [scheme])
    with pytest.raises(ConfigError, match="different classes cannot be averaged"):
        measure_errors([named, mini], found, [scheme])
