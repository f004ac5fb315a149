"""Several caches from one pass: each is what it would be if it had been made alone."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from extraction_cases import (
    SEVERAL,
    StopAfter,
    awkward_images,
    broken_images,
    channels_of,
    forbidden,
    make_dataset,
    many_images,
    mini,
    open_folder,
    run,
    run_alone,
    run_together,
)
from image_files import encode, picture
from unfinished_caches import drafted_rows, overwrite

from spptransfer import backbones, images
from spptransfer.backbones.loading import Backbone
from spptransfer.cache import FeatureCache, files
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.outline import Outline
from spptransfer.errors import CacheError, ConfigError, DatasetError, SpecMismatchError
from spptransfer.extraction import Destination, Interrupted, extract_together
from spptransfer.extraction.batches import OUT_OF_MEMORY
from spptransfer.extraction.compute import FeatureComputer


def bytes_of(folder, names=tuple(SEVERAL)):
    return {name: (folder / f"{name}.h5").read_bytes() for name in names}


def awkward_dataset(root):
    return make_dataset(root / "images", awkward_images() | many_images(9) | broken_images())


@pytest.fixture
def passes(monkeypatch):
    """Shapes of all batches that go through the network's first convolution."""
    seen = []
    monkeypatch.setattr(Backbone, "fused", lambda self: self)  # the hook is on a plain module
    hook = mini().trunk[0].register_forward_hook(lambda *call: seen.append(call[1][0].shape))
    yield seen
    hook.remove()


@pytest.fixture
def decoded(monkeypatch):
    """Contents of all files that are decoded."""
    seen = []
    views = images.views
    monkeypatch.setattr(images, "views", lambda data, *how: seen.append(data) or views(data, *how))
    return seen


# --- the same bytes ---------------------------------------------------------------------------


def test_caches_made_together_are_those_made_alone_byte_for_byte(tmp_path):
    dataset = awkward_dataset(tmp_path)
    together = run_together(dataset, tmp_path / "together")
    for name in SEVERAL:
        alone = run_alone(dataset, tmp_path / "alone", name)
        assert together[name].failures == alone.failures
        assert set(alone.failures) == set(broken_images())
    assert bytes_of(tmp_path / "together") == bytes_of(tmp_path / "alone")


def test_long_views_go_through_in_strips_that_do_not_depend_on_the_layers(tmp_path, monkeypatch):
    from spptransfer.extraction import compute

    monkeypatch.setattr(compute, "STRIP_PIXELS", 64 * 400)
    files = {"wide.png": encode(picture(5, 130)), "tall.png": encode(picture(140, 6))}
    dataset = make_dataset(tmp_path / "images", files | many_images(2))
    run_together(dataset, tmp_path / "together")
    for name in SEVERAL:
        run_alone(dataset, tmp_path / "alone", name)
    assert bytes_of(tmp_path / "together") == bytes_of(tmp_path / "alone")


def test_the_disk_must_have_room_for_all_caches_at_once(tmp_path, monkeypatch, decoded):
    dataset, names = awkward_dataset(tmp_path), ("conv1", "conv4")
    width = encoded_width(dataset.ids)
    needed = [
        Outline(SEVERAL[name], channels_of(SEVERAL[name]), "images", len(dataset), width).needed
        for name in names
    ]

    def disk_of(free):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    disk_of(sum(needed) - 1)
    with pytest.raises(CacheError, match=r"full while writing '.*conv4.h5' \(.* are needed\)"):
        run_together(dataset, tmp_path / "together", names)
    assert not decoded
    for name in names:
        run_alone(dataset, tmp_path / "alone", name)
    disk_of(sum(needed))
    run_together(dataset, tmp_path / "together", names)
    assert bytes_of(tmp_path / "together", names) == bytes_of(tmp_path / "alone", names)


@pytest.mark.slow
def test_worker_processes_give_the_same_bytes_as_threads(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(20))
    run_together(dataset, tmp_path / "threads")
    run_together(dataset, tmp_path / "processes", engine="processes")
    assert bytes_of(tmp_path / "threads") == bytes_of(tmp_path / "processes")


# --- one pass ---------------------------------------------------------------------------------


def test_an_image_is_decoded_once_for_all_layers_views_and_scales(tmp_path, decoded):
    dataset = make_dataset(tmp_path / "images", many_images(9))
    run_together(dataset, tmp_path)
    assert sorted(decoded) == sorted(dataset.path(id).read_bytes() for id in dataset.ids)


def test_an_image_goes_through_the_network_once_per_view_and_scale(tmp_path, passes):
    dataset = make_dataset(tmp_path / "images", many_images(9))
    run_together(dataset, tmp_path)
    full_64, full_72, crop_64 = 9, 9, 9
    assert sum(shape[0] for shape in passes) == full_64 + full_72 + crop_64


def test_what_lies_beyond_the_deepest_layer_is_not_computed(monkeypatch):
    monkeypatch.setattr(Backbone, "fused", lambda self: self)
    computer = FeatureComputer(mini(), list(SEVERAL.values()))
    views = np.zeros((1, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        ran = []
        hooks = [
            module.register_forward_hook(lambda module, *_: ran.append(module))
            for module in (*mini().trunk, *mini().head)
        ]
        computer.compute(views, [0])
        shallow = len(ran)
        computer.compute(views, [0, len(SEVERAL) - 1])
    for hook in hooks:
        hook.remove()
    assert shallow == len(backbones.load("spp-mini", "random", layer="conv1").trunk)
    assert len(ran) - shallow == len(mini().trunk) + len(mini().head)


@pytest.mark.parametrize("name", backbones.names())
def test_every_layer_of_every_network_is_a_tap_of_one_pass(name):
    with torch.device("meta"):
        network = backbones.network(name).eval()
    for layers, part in (("map", network.trunk), ("vector", network.head)):
        named = [at.name for at in backbones.describe(name).layers if at.kind == layers]
        if not named:
            continue
        deepest = list(part(named[-1]))
        for layer in named:
            modules = list(part(layer))
            same = [
                one is other or (type(one) is type(other) and not list(one.parameters()))
                for one, other in zip(modules, deepest, strict=False)
            ]
            assert all(same), layer


@pytest.mark.parametrize(
    "name",
    [
        "spp-mini",
        "squeezenet1_1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("alexnet", "vgg11_bn", "resnet18", "mobilenet_v2", "zf5", "overfeat-7")
        ),
    ],
)
def test_taps_are_the_layers_loaded_alone_bit_for_bit(name):
    info = backbones.describe(name)
    batch = torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(3))
    layers = [at.name for at in info.layers]
    several = backbones.load(name, "random", layer=layers)
    assert set(several.layers) == set(layers)
    with torch.inference_mode():
        maps = several.maps_of(batch, layers)
        vectors = [at.name for at in info.layers if at.kind == "vector"]
        found = maps | several.vectors_of(maps["spp"], vectors)
        for layer in layers:
            expected = backbones.load(name, "random", layer=layer)(batch)
            assert torch.equal(found[layer], expected), layer


# --- what is there already --------------------------------------------------------------------


def test_a_cache_that_is_up_to_date_is_not_computed_again(tmp_path, passes):
    dataset = make_dataset(tmp_path / "images", many_images(6))
    run_together(dataset, tmp_path / "both", ["spp", "fc7"])
    before = bytes_of(tmp_path / "both", ["spp", "fc7"])
    passes.clear()
    reports = run_together(dataset, tmp_path / "both", ["spp", "conv1", "fc7"])
    assert {name: r.added for name, r in reports.items()} == {"spp": 0, "conv1": 6, "fc7": 0}
    assert sum(shape[0] for shape in passes) == 6
    assert bytes_of(tmp_path / "both", ["spp", "fc7"]) == before
    run_alone(dataset, tmp_path / "alone", "conv1")
    assert bytes_of(tmp_path / "both", ["conv1"]) == bytes_of(tmp_path / "alone", ["conv1"])
    run_together(dataset, tmp_path / "both", ["spp", "conv1", "fc7"], load_backbone=forbidden)


def test_images_that_one_cache_lacks_are_computed_for_it_alone(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(9))
    run_together(open_folder(dataset.root, dataset.ids[:7]), tmp_path / "a", ["conv1"])
    run_together(open_folder(dataset.root, dataset.ids[2:]), tmp_path / "a", ["fc6"])
    asked = []
    compute = FeatureComputer.compute
    monkeypatch.setattr(
        FeatureComputer,
        "compute",
        lambda self, views, wanted: (
            asked.append((len(views), tuple(wanted))) or compute(self, views, wanted)
        ),
    )
    reports = run_together(dataset, tmp_path / "a", ["conv1", "fc6"])
    assert {name: (r.added, r.unchanged) for name, r in reports.items()} == {
        "conv1": (2, 7),
        "fc6": (2, 7),
    }
    counts = {wanted: 0 for _, wanted in asked}
    for count, wanted in asked:
        counts[wanted] += count
    assert counts == {(1,): 2, (0,): 2}
    for name in ("conv1", "fc6"):
        assert FeatureCache.open(tmp_path / "a" / f"{name}.h5").ids == list(dataset.ids)


def test_a_changed_image_is_extracted_anew_for_all(tmp_path, decoded):
    dataset = make_dataset(tmp_path / "images", many_images(6))
    run_together(dataset, tmp_path, ["spp", "fc6"])
    (dataset.root / "0003.png").write_bytes(encode(picture(41, 50, 99)))
    decoded.clear()
    reports = run_together(dataset, tmp_path, ["spp", "fc6"])
    assert [(r.changed, r.unchanged) for r in reports.values()] == [(1, 5), (1, 5)]
    assert len(decoded) == 1


@pytest.mark.parametrize("checks", [1, 2])
def test_an_interrupted_pass_goes_on_and_ends_like_single_uninterrupted_ones(tmp_path, checks):
    names = ["conv1", "fc6", "larger"]
    dataset = make_dataset(tmp_path / "images", many_images(14))
    with pytest.raises(Interrupted, match=r"conv1\.h5', .*larger\.h5' are kept"):
        run_together(dataset, tmp_path / "a", names, stop=StopAfter(checks))
    for name in names:
        assert drafted_rows(tmp_path / "a" / f"{name}.h5")
    run_together(dataset, tmp_path / "a", names)
    for name in names:
        run_alone(dataset, tmp_path / "b", name)
    assert bytes_of(tmp_path / "a", names) == bytes_of(tmp_path / "b", names)


def test_parts_that_only_some_caches_have_are_made_for_the_others(tmp_path):
    names = ["spp", "fc6", "conv1"]
    dataset = make_dataset(tmp_path / "images", many_images(14))
    with pytest.raises(Interrupted):
        run_together(dataset, tmp_path / "a", names, stop=StopAfter(2))
    for row in range(4, 8):
        overwrite(tmp_path / "a" / "spp.h5", "rows/checksum", row)
    reports = run_together(dataset, tmp_path / "a", names)
    assert reports["spp"].added == reports["fc6"].added + 4
    for name in names:
        run_alone(dataset, tmp_path / "b", name)
    assert bytes_of(tmp_path / "a", names) == bytes_of(tmp_path / "b", names)


# --- failures ---------------------------------------------------------------------------------


def test_numbers_too_large_for_one_caches_storage_fail_there_only(tmp_path):
    loud = backbones.load("spp-mini", "embedded", layer=["spp", "conv5"])
    loud.trunk[-3].weight.data *= 1e7
    dataset = make_dataset(tmp_path / "images", many_images(3))
    reports = run_together(dataset, tmp_path, ["spp", "crop"], load_backbone=lambda: loud)
    assert {name: len(r.failures) for name, r in reports.items()} == {"spp": 0, "crop": 3}


def _without_memory(network, fits):
    original = network.maps_of

    def maps_of(pixels, layers):
        if not fits(pixels, layers):
            raise torch.OutOfMemoryError("out of memory")
        return original(pixels, layers)

    network.maps_of = maps_of
    network.fused = lambda: network
    return network


def test_an_image_that_fits_for_each_layer_but_not_for_all_is_computed_layer_by_layer(tmp_path):
    network = backbones.load("spp-mini", "embedded", layer=["conv1", "spp", "fc6", "fc7"])
    small = _without_memory(network, lambda pixels, layers: len(layers) == 1)
    dataset = make_dataset(tmp_path / "images", many_images(5))
    reports = run_together(
        dataset, tmp_path / "a", ["conv1", "spp", "fc7"], load_backbone=lambda: small
    )
    assert not any(report.failures for report in reports.values())
    for name in ("conv1", "spp", "fc7"):
        run_alone(dataset, tmp_path / "b", name)
        a, b = (FeatureCache.open(tmp_path / f / f"{name}.h5").matrix() for f in "ab")
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_a_scale_that_does_not_fit_fails_where_it_is_wanted_only(tmp_path):
    network = backbones.load("spp-mini", "embedded", layer=["conv1", "spp"])
    small = _without_memory(network, lambda pixels, layers: pixels.shape[2] < 72)
    dataset = make_dataset(tmp_path / "images", {"a.png": encode(picture(40, 50))})
    reports = run_together(dataset, tmp_path, ["spp", "larger"], load_backbone=lambda: small)
    assert reports["spp"].failures == {}
    assert reports["larger"].failures == {"a.png": OUT_OF_MEMORY}


def test_a_view_too_large_at_one_scale_fails_where_it_is_wanted_only(tmp_path, monkeypatch):
    files = {"a.png": encode(picture(40, 50)), "long.png": encode(picture(4, 60))}
    dataset = make_dataset(tmp_path / "images", files)
    monkeypatch.setattr(images, "MAX_VIEW_PIXELS", 64 * 64 * 16)
    reports = run_together(dataset, tmp_path, ["spp", "larger", "crop"])
    assert {name: list(r.failures) for name, r in reports.items()} == {
        "spp": [],
        "larger": ["long.png"],
        "crop": [],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": True}, "flip: False is not True"),
        ({"precision": "bfloat16"}, "precision: float32 is not bfloat16"),
        ({"weights_sha256": "11"}, "weights_sha256: 00 is not 11"),
    ],
)
def test_specs_that_no_single_pass_can_serve_are_refused(tmp_path, changes, message):
    specs = [SEVERAL["spp"], dataclasses.replace(SEVERAL["fc6"], **changes)]
    destinations = [
        Destination(tmp_path / f"{number}.h5", spec, channels_of(spec))
        for number, spec in enumerate(specs)
    ]
    dataset = make_dataset(tmp_path / "images", many_images(1))
    with pytest.raises(ConfigError, match=f"cannot be extracted together: {message}"):
        extract_together(dataset, destinations, load_backbone=forbidden)
    assert not list(tmp_path.glob("*.h5*"))


def test_requests_that_make_no_sense_are_refused_by_name(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(1))
    spec = SEVERAL["spp"]
    twice = [Destination(tmp_path / "a.h5", spec, 64), Destination(tmp_path / "a.h5", spec, 64)]
    with pytest.raises(ConfigError, match=r"to one cache, '.*a\.h5'"):
        extract_together(dataset, twice, load_backbone=forbidden)
    with pytest.raises(ConfigError, match="at least one"):
        extract_together(dataset, [], load_backbone=forbidden)
    with pytest.raises(DatasetError, match="has no images"):
        extract_together(open_folder(tmp_path, []), twice[:1], load_backbone=forbidden)
    network = backbones.load("spp-mini", "embedded")
    with pytest.raises(ConfigError, match=r"layer 'fc7' is not one .* loaded for: spp"):
        run_together(dataset, tmp_path, ["spp", "fc7"], load_backbone=lambda: network)


def test_a_file_of_another_spec_is_refused_and_the_others_are_released(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    run(
        dataset,
        tmp_path / "fc6.h5",
        dataclasses.replace(SEVERAL["fc6"], view="warp"),
        load_backbone=mini,
        channels=channels_of(SEVERAL["fc6"]),
    )
    with pytest.raises(SpecMismatchError, match="view: warp is not full"):
        run_together(dataset, tmp_path, ["spp", "fc6"])
    assert run_together(dataset, tmp_path, ["spp"])["spp"].added == 2
    assert threading.active_count() < 20
