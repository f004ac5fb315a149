"""An extraction by another runtime than torch makes the same cache."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from cache_files import make_spec
from extraction_cases import (
    SPEC,
    StopAfter,
    awkward_images,
    broken_images,
    make_dataset,
    many_images,
    mini,
    run,
    run_together,
)
from runtime_cases import PACKAGES, need
from unfinished_caches import drafted_rows

from spptransfer import SPPFeatures
from spptransfer.cache import FeatureCache
from spptransfer.errors import ConfigError
from spptransfer.extraction import Interrupted, compute, precision, runners
from spptransfer.extraction.compute import FeatureComputer
from spptransfer.extraction.precision import choose_precision
from spptransfer.runtimes import describe_runtime


@pytest.fixture(params=list(PACKAGES))
def runtime(request) -> str:
    need(request.param)
    return request.param


def blocks(path) -> list[np.ndarray]:
    cache = FeatureCache.open(path)
    return [cache.read(block, slice(None)) for block in cache.blocks]


def assert_same_rows(found, expected, tolerance=1e-5):
    """Row for row; a row that failed has failed in both."""
    left, right = FeatureCache.open(found), FeatureCache.open(expected)
    assert left.fingerprint == right.fingerprint
    assert left.rows.ids == right.rows.ids
    assert left.failures == right.failures
    for mine, other in zip(blocks(found), blocks(expected), strict=True):
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(other))
        lengths = np.linalg.norm(np.nan_to_num(other).astype(np.float64), axis=1)
        errors = np.linalg.norm(
            np.nan_to_num(mine).astype(np.float64) - np.nan_to_num(other), axis=1
        )
        assert (errors <= tolerance * lengths).all()


@pytest.mark.parametrize("strip_pixels", [compute.STRIP_PIXELS, 1 << 13])
def test_a_cache_is_torchs_row_for_row_whole_or_in_strips(
    runtime, strip_pixels, tmp_path, monkeypatch
):
    dataset = make_dataset(tmp_path / "images", awkward_images() | broken_images())
    run(dataset, tmp_path / "torch.h5")
    monkeypatch.setattr(compute, "STRIP_PIXELS", strip_pixels)
    run(dataset, tmp_path / "other.h5", runtime=runtime)
    assert_same_rows(tmp_path / "other.h5", tmp_path / "torch.h5")


def test_several_layers_views_and_vectors_are_torchs(runtime, tmp_path):
    dataset = make_dataset(tmp_path / "images", awkward_images())
    names = ("conv1", "conv4", "crop", "larger", "fc6", "fc7")
    run_together(dataset, tmp_path / "torch", names)
    run_together(dataset, tmp_path / "other", names, runtime=runtime)
    for name in names:
        # One of them is stored in float16.
        tolerance = 1e-3 if name == "crop" else 2e-5
        files = (tmp_path / folder / f"{name}.h5" for folder in ("other", "torch"))
        assert_same_rows(*files, tolerance=tolerance)


def test_the_cache_tells_who_computed_it(runtime, tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    run(dataset, tmp_path / "a.h5", runtime=runtime)
    assert FeatureCache.open(tmp_path / "a.h5").computed_by == (describe_runtime(runtime),)


def test_a_cache_begun_with_one_runtime_is_finished_with_another(runtime, tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(32))
    run(dataset, tmp_path / "torch.h5")
    path = tmp_path / "a.h5"
    with pytest.raises(Interrupted):
        run(dataset, path, runtime=runtime, jobs=1, stop=StopAfter(2))
    begun = len(drafted_rows(path))
    assert 0 < begun < 32
    assert run(dataset, path).added == 32 - begun
    assert_same_rows(path, tmp_path / "torch.h5")
    both = {describe_runtime("torch"), describe_runtime(runtime)}
    assert set(FeatureCache.open(path).computed_by) == both


def test_a_stopped_run_goes_on_to_the_same_bytes(runtime, tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(32))
    run(dataset, tmp_path / "undisturbed.h5", runtime=runtime)
    with pytest.raises(Interrupted):
        run(dataset, tmp_path / "a.h5", runtime=runtime, jobs=1, stop=StopAfter(2))
    run(dataset, tmp_path / "a.h5", runtime=runtime, jobs=3)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_nothing_is_loaded_where_nothing_is_to_be_computed(runtime, tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    run(dataset, tmp_path / "a.h5")
    monkeypatch.setattr(compute, "open_network", None)
    assert run(dataset, tmp_path / "a.h5", runtime=runtime).unchanged == 3


@pytest.mark.slow
def test_worker_processes_use_the_runtime_too(runtime, tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(8))
    run(dataset, tmp_path / "torch.h5")
    run(dataset, tmp_path / "other.h5", runtime=runtime, engine="processes")
    assert_same_rows(tmp_path / "other.h5", tmp_path / "torch.h5")
    assert FeatureCache.open(tmp_path / "other.h5").computed_by == (describe_runtime(runtime),)


def test_only_the_layers_that_are_lacking_are_computed(runtime):
    specs = [
        make_spec(backbone="spp-mini", layer=layer, scales=(64,)) for layer in ("conv4", "spp")
    ]
    computer = FeatureComputer(mini(), specs, runtime=runtime)
    asked = []
    maps = computer._network.maps
    computer._network.maps = lambda pixels, layers: asked.append(layers) or maps(pixels, layers)
    views = np.zeros((2, 64, 80, 3), np.uint8)
    both = computer.compute(views, [0, 1])
    (alone,) = computer.compute(views, [0])
    assert asked == [("conv4", "spp"), ("conv4",)]
    np.testing.assert_allclose(alone[4], both[0][4], rtol=1e-4, atol=1e-5)


def test_images_are_computed_one_by_one(runtime, tmp_path, monkeypatch):
    seen = []
    compute_batch = FeatureComputer.compute

    def note(self, views, wanted):
        seen.append(len(views))
        return compute_batch(self, views, wanted)

    monkeypatch.setattr(FeatureComputer, "compute", note)
    monkeypatch.setattr(compute, "RUNTIME_BATCH_PIXELS", 1)
    dataset = make_dataset(tmp_path / "images", many_images(6))
    run(dataset, tmp_path / "a.h5", runtime=runtime)
    assert seen == [1] * 6


def test_bfloat16_is_tried_by_the_runtime_that_will_compute(monkeypatch):
    need("openvino")
    opened = []
    open_network = compute.open_network

    def note(runtime, *given, precision, **options):
        opened.append((runtime, precision))
        return open_network(runtime, *given, precision=precision, **options)

    monkeypatch.setattr(compute, "open_network", note)
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    spec = make_spec(backbone="spp-mini", layer="spp", scales=(64,))
    choice = choose_precision(lambda: fresh("spp"), [spec], [photo], count=100, runtime="openvino")
    assert opened == [("openvino", "float32"), ("openvino", "bfloat16")]
    assert choice.gain > 0


def test_bfloat16_is_not_tried_where_it_is_not_offered():
    choice = choose_precision(mini, [SPEC], [], count=100, runtime="onnxruntime")
    assert (choice.precision, choice.gain) == ("float32", None)
    assert choice.reason == "onnxruntime has no arithmetic for bfloat16"


def test_bfloat16_in_a_cache_is_within_tolerance_vectors_included(tmp_path):
    need("openvino")
    dataset = make_dataset(tmp_path / "images", many_images(4))
    for layer, levels in (("spp", (6,)), ("fc6", ())):
        spec = make_spec(backbone="spp-mini", layer=layer, levels=levels, scales=(64,))
        low = dataclasses.replace(spec, precision="bfloat16")
        exact, found = (
            FeatureComputer(fresh(layer), one, runtime=name)
            for one, name in ((spec, "torch"), (low, "openvino"))
        )
        views = np.stack([np.asarray(view) for view in views_of(dataset)])
        for key, values in exact(views).items():
            error = np.linalg.norm(found(views)[key] - values) / np.linalg.norm(values)
            assert 0 < error < 3e-2


def fresh(layer):
    from spptransfer import backbones

    return backbones.load("spp-mini", "embedded", layer=layer)


def views_of(dataset):
    from spptransfer import images

    for id in dataset.ids:
        yield images.render(images.decode(dataset.path(id).read_bytes()), 64)[:, :64]


def test_sppfeatures_are_torchs(runtime):
    draw = np.random.default_rng(0).integers
    photos = [draw(0, 256, (70, width, 3), np.uint8) for width in (60, 69)]
    options = {"levels": [3, 1], "scales": [64], "device": "cpu"}
    expected = SPPFeatures("spp-mini", "embedded", **options).fit_transform(photos)
    other = SPPFeatures("spp-mini", "embedded", runtime=runtime, **options)
    found = other.fit_transform(photos)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    other.set_params(runtime="torch")
    np.testing.assert_array_equal(other.transform(photos), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnx"}, "runtime: 'onnx' is unknown; allowed: torch"),
        ({"runtime": "openvino", "device": "cuda"}, "'cuda' is not for runtime 'openvino'"),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "allowed: float32"),
    ],
)
def test_what_a_runtime_cannot_do_is_told_in_one_line(options, message, tmp_path):
    if options["runtime"] in PACKAGES:
        need(options["runtime"])
    spec = dataclasses.replace(SPEC, precision=options.pop("precision", "float32"))
    dataset = make_dataset(tmp_path / "images", many_images(1))
    with pytest.raises(ConfigError, match=message) as caught:
        run(dataset, tmp_path / "a.h5", spec, stop=threading.Event(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("processors", [2, 3])
def test_one_thread_more_asks_a_runtime_whose_own_have_all_processors(
    tmp_path, monkeypatch, processors
):
    need("openvino")
    made, maker = [], runners.PartMaker

    def noted(settings, computer, clock, workers, *readers):
        made.append(workers)
        return maker(settings, computer, clock, workers, *readers)

    monkeypatch.setattr(runners, "PartMaker", noted)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    dataset = make_dataset(tmp_path / "images", many_images(4))
    run(dataset, tmp_path / "own.h5", runtime="openvino", jobs=2)
    run(dataset, tmp_path / "torch.h5", runtime="torch", jobs=2)
    assert made == ([3, 2] if processors == 2 else [2, 2])
