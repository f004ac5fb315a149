"""Several caches from one pass: each is what it would be if it had been made alone."""

from __future__ import annotations

import numpy as np
import pytest
from extraction_cases import (
    NET,
    SEVERAL,
    SPEC,
    altered,
    assert_alike,
    awkward_images,
    broken_images,
    forbidden,
    make_dataset,
    many_images,
    net,
    open_folder,
    run,
    run_several,
)
from image_files import encode, picture

from spptransfer import images
from spptransfer.cache import FeatureCache
from spptransfer.errors import ConfigError, DatasetError, SpecMismatchError
from spptransfer.specify import feature_spec


def watched():
    """A backbone, and the shapes of the batches that go through it."""
    seen = []
    return net(lambda batch: seen.append(batch.shape)), seen


def passes(seen):
    return sum(shape[0] for shape in seen)


def test_caches_made_together_are_those_made_alone(tmp_path):
    files = awkward_images() | many_images(9) | broken_images()
    dataset = make_dataset(tmp_path / "images", files)
    together = run_several(dataset, tmp_path / "together")
    for name, spec in SEVERAL.items():
        alone = run(dataset, tmp_path / f"{name}.h5", spec)
        assert together[name].failures == alone.failures
        assert set(alone.failures) == set(broken_images())
        assert_alike(tmp_path / "together" / f"{name}.h5", tmp_path / f"{name}.h5")


def test_an_image_is_decoded_once_and_computed_once_per_view_and_scale(tmp_path, monkeypatch):
    dataset, (backbone, seen) = make_dataset(tmp_path / "images", many_images(9)), watched()
    decoded, views = [], images.views
    monkeypatch.setattr(
        images, "views", lambda data, *how: decoded.append(data) or views(data, *how)
    )
    run_several(dataset, tmp_path, backbone=backbone)
    assert sorted(decoded) == sorted(dataset.path(id).read_bytes() for id in dataset.ids)
    full_32, full_40, crop_32 = 9, 9, 9
    assert passes(seen) == full_32 + full_40 + crop_32


def test_a_cache_of_several_layers_has_those_of_each_side_by_side_from_one_pass(tmp_path):
    dataset, (backbone, seen) = make_dataset(tmp_path / "images", many_images(9)), watched()
    given = {"levels": [3, 1], "scales": [40, 32], "pooling": "mean", "flip": True}
    order = ["mean", "high", "low"]
    run(dataset, tmp_path / "all.h5", feature_spec(NET, layer=order, **given), backbone)
    assert passes(seen) == 2 * 2 * 9  # scales and mirror images
    together, alone = FeatureCache.open(tmp_path / "all.h5"), []
    for layer in order:
        run(dataset, tmp_path / f"{layer}.h5", feature_spec(NET, layer=layer, **given))
        alone.append(FeatureCache.open(tmp_path / f"{layer}.h5").matrix(scales=[40, 32]))
        np.testing.assert_array_equal(together.matrix(layers=layer, scales=[40, 32]), alone[-1])
    found = together.matrix(layers=order, scales=[40, 32])
    np.testing.assert_array_equal(found, np.hstack(alone))


# ---- what is there already ----


def test_a_cache_that_is_up_to_date_is_not_computed_again(tmp_path):
    dataset, (backbone, seen) = make_dataset(tmp_path / "images", many_images(6)), watched()
    run_several(dataset, tmp_path, ["high", "vector"])
    before = [(tmp_path / name).read_bytes() for name in ("high.h5", "vector.h5")]
    done = run_several(dataset, tmp_path, ["high", "low", "vector"], backbone)
    assert [each.added for each in done.values()] == [0, 6, 0]
    assert [each.computed_by is None for each in done.values()] == [True, False, True]
    assert passes(seen) == 6
    assert [(tmp_path / name).read_bytes() for name in ("high.h5", "vector.h5")] == before
    run(dataset, tmp_path / "alone.h5", SEVERAL["low"])
    assert_alike(tmp_path / "low.h5", tmp_path / "alone.h5")
    run_several(dataset, tmp_path, ["high", "low", "vector"], net(forbidden))


def test_images_that_one_cache_lacks_are_computed_for_it_alone(tmp_path):
    dataset, (backbone, seen) = make_dataset(tmp_path / "images", many_images(9)), watched()
    run_several(open_folder(dataset.root, dataset.ids[:7]), tmp_path, ["low"])
    run_several(open_folder(dataset.root, dataset.ids[2:]), tmp_path, ["larger"])
    done = run_several(dataset, tmp_path, ["low", "larger"], backbone)
    assert [(each.added, each.unchanged) for each in done.values()] == [(2, 7), (2, 7)]
    # Two images at the one scale of the one, two others at the two scales of the other.
    assert passes(seen) == 2 + 2 * 2
    assert sum(shape[0] for shape in seen if min(shape[2:]) == 40) == 2
    for name in ("low", "larger"):
        run(dataset, tmp_path / "alone" / f"{name}.h5", SEVERAL[name])
        assert_alike(tmp_path / f"{name}.h5", tmp_path / "alone" / f"{name}.h5")


# ---- failures ----


def test_numbers_too_large_for_one_caches_storage_fail_there_only(tmp_path):
    loud = net()
    loud.module.high[0].weight.data *= 1e7
    dataset = make_dataset(tmp_path / "images", many_images(3))
    done = run_several(dataset, tmp_path, ["high", "crop"], loud)
    assert {name: len(each.failures) for name, each in done.items()} == {"high": 0, "crop": 3}
    told = "in float16 storage, whose largest number is 65504; `storage: float32` holds larger"
    assert told in done["crop"].failures["0000.png"]


def test_a_view_too_large_at_one_scale_fails_where_it_is_wanted_only(tmp_path, monkeypatch):
    files = {"a.png": encode(picture(40, 50)), "long.png": encode(picture(4, 60))}
    dataset = make_dataset(tmp_path / "images", files)
    monkeypatch.setattr(images, "MAX_VIEW_PIXELS", 32 * 32 * 16)
    done = run_several(dataset, tmp_path, ["high", "larger", "crop"])
    assert [list(each.failures) for each in done.values()] == [[], ["long.png"], []]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": True}, "flip: False is not True"),
        ({"precision": "bfloat16"}, "precision: float32 is not bfloat16"),
        ({"weights_sha256": "11"}, "weights_sha256: .* is not 11"),
    ],
)
def test_specs_that_no_single_pass_can_serve_are_refused(tmp_path, changes, message):
    specs = [SPEC, altered(SEVERAL["vector"], **changes)]
    dataset = make_dataset(tmp_path / "images", many_images(1))
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    with pytest.raises(ConfigError, match=f"cannot be extracted together: {message}"):
        run(dataset, paths, specs, net(forbidden))
    assert not list(tmp_path.glob("*.h5*"))


def test_requests_that_make_no_sense_are_refused_by_name(tmp_path):
    dataset, path = make_dataset(tmp_path / "images", many_images(1)), tmp_path / "a.h5"
    with pytest.raises(ConfigError, match=r"two kinds .* written to one cache, '.*a\.h5'"):
        run(dataset, [path, path], [SPEC, SEVERAL["low"]])
    with pytest.raises(DatasetError, match="has no images"):
        run(open_folder(tmp_path, []), [path], [SPEC])
    run(dataset, path)
    with pytest.raises(SpecMismatchError, match=r"layers: \['high'\] is not \['low'\]"):
        run(dataset, [tmp_path / "b.h5", path], [SPEC, SEVERAL["low"]], net(forbidden))
