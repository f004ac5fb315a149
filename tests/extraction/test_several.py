"""Several caches from one pass: each is what it would be if it had been made alone."""

from __future__ import annotations

import numpy as np
import pytest
from extraction_cases import (
    SEVERAL,
    SPEC,
    StopAfter,
    altered,
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
from spptransfer.errors import CacheError, ConfigError, DatasetError, SpecMismatchError
from spptransfer.extraction import Interrupted


class Passes:
    """How many images went through the network, by the size of their views."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, batch) -> None:
        self.seen.append(tuple(batch.shape))

    def count(self) -> int:
        return sum(shape[0] for shape in self.seen)


def assert_alike(one, other, tolerance=1e-5):
    """Two files of one spec hold the same rows, failed ones included, up to rounding."""
    a, b = FeatureCache.open(one), FeatureCache.open(other)
    assert a.fingerprint == b.fingerprint
    assert (a.ids, a.digests(), a.failures) == (b.ids, b.digests(), b.failures)
    for block in a.blocks:
        x, y = (cache.read(block, slice(None)).astype(np.float64) for cache in (a, b))
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.nanmax(np.abs(y)))


def bytes_of(folder, names):
    return {name: (folder / f"{name}.h5").read_bytes() for name in names}


def test_caches_made_together_are_those_made_alone(tmp_path):
    files = awkward_images() | many_images(9) | broken_images()
    dataset = make_dataset(tmp_path / "images", files)
    together = run_several(dataset, tmp_path / "together")
    for name, spec in SEVERAL.items():
        alone = run(dataset, tmp_path / f"{name}.h5", spec)
        assert together[name].failures == alone.failures
        assert set(alone.failures) == set(broken_images())
        tolerance = 1e-3 if spec.storage == "float16" else 1e-5
        assert_alike(tmp_path / "together" / f"{name}.h5", tmp_path / f"{name}.h5", tolerance)


def test_an_image_is_decoded_once_for_all_layers_views_and_scales(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(9))
    decoded, views = [], images.views
    monkeypatch.setattr(
        images, "views", lambda data, *how: decoded.append(data) or views(data, *how)
    )
    run_several(dataset, tmp_path)
    assert sorted(decoded) == sorted(dataset.path(id).read_bytes() for id in dataset.ids)


def test_an_image_goes_through_the_network_once_per_view_and_scale(tmp_path):
    dataset, passes = make_dataset(tmp_path / "images", many_images(9)), Passes()
    run_several(dataset, tmp_path, backbone=net(passes))
    full_32, full_40, crop_32 = 9, 9, 9
    assert passes.count() == full_32 + full_40 + crop_32


# ---- what is there already ----


def test_a_cache_that_is_up_to_date_is_not_computed_again(tmp_path):
    dataset, passes = make_dataset(tmp_path / "images", many_images(6)), Passes()
    run_several(dataset, tmp_path, ["high", "vector"])
    before = bytes_of(tmp_path, ["high", "vector"])
    done = run_several(dataset, tmp_path, ["high", "low", "vector"], net(passes))
    assert {name: each.added for name, each in done.items()} == {"high": 0, "low": 6, "vector": 0}
    assert {name: each.computed_by is None for name, each in done.items()} == {
        "high": True,
        "low": False,
        "vector": True,
    }
    assert passes.count() == 6
    assert bytes_of(tmp_path, ["high", "vector"]) == before
    run(dataset, tmp_path / "alone.h5", SEVERAL["low"])
    assert_alike(tmp_path / "low.h5", tmp_path / "alone.h5")
    run_several(dataset, tmp_path, ["high", "low", "vector"], net(forbidden))


def test_images_that_one_cache_lacks_are_computed_for_it_alone(tmp_path):
    dataset, passes = make_dataset(tmp_path / "images", many_images(9)), Passes()
    run_several(open_folder(dataset.root, dataset.ids[:7]), tmp_path, ["low"])
    run_several(open_folder(dataset.root, dataset.ids[2:]), tmp_path, ["larger"])
    done = run_several(dataset, tmp_path, ["low", "larger"], net(passes))
    assert {name: (each.added, each.unchanged) for name, each in done.items()} == {
        "low": (2, 7),
        "larger": (2, 7),
    }
    # Two images at the one scale of the one, two others at the two scales of the other.
    assert passes.count() == 2 + 2 * 2
    assert sum(shape[0] for shape in passes.seen if min(shape[2:]) == 40) == 2
    for name in ("low", "larger"):
        run(dataset, tmp_path / "alone" / f"{name}.h5", SEVERAL[name])
        assert_alike(tmp_path / f"{name}.h5", tmp_path / "alone" / f"{name}.h5")


def test_an_interrupted_pass_goes_on_and_ends_in_the_bytes_of_an_undisturbed_one(tmp_path):
    names = ["low", "vector", "larger"]
    dataset = make_dataset(tmp_path / "images", many_images(150))
    with pytest.raises(Interrupted, match=r"low\.h5', .*larger\.h5' is kept"):
        run_several(dataset, tmp_path / "a", names, stop=StopAfter(0))
    done = run_several(dataset, tmp_path / "a", names)
    assert [each.unchanged for each in done.values()] == [128] * 3
    run_several(dataset, tmp_path / "b", names)
    assert bytes_of(tmp_path / "a", names) == bytes_of(tmp_path / "b", names)


# ---- failures ----


def test_numbers_too_large_for_one_caches_storage_fail_there_only(tmp_path):
    loud = net()
    loud.module.high[0].weight.data *= 1e7
    dataset = make_dataset(tmp_path / "images", many_images(3))
    done = run_several(dataset, tmp_path, ["high", "crop"], loud)
    assert {name: len(each.failures) for name, each in done.items()} == {"high": 0, "crop": 3}
    assert "not finite" in done["crop"].failures["0000.png"]


def test_a_view_too_large_at_one_scale_fails_where_it_is_wanted_only(tmp_path, monkeypatch):
    files = {"a.png": encode(picture(40, 50)), "long.png": encode(picture(4, 60))}
    dataset = make_dataset(tmp_path / "images", files)
    monkeypatch.setattr(images, "MAX_VIEW_PIXELS", 32 * 32 * 16)
    done = run_several(dataset, tmp_path, ["high", "larger", "crop"])
    assert {name: list(each.failures) for name, each in done.items()} == {
        "high": [],
        "larger": ["long.png"],
        "crop": [],
    }


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
    with pytest.raises(SpecMismatchError, match="layer: high is not low"):
        run(dataset, [tmp_path / "b.h5", path], [SPEC, SEVERAL["low"]], net(forbidden))


def test_one_of_several_that_is_being_written_holds_up_the_others(tmp_path):
    dataset, refused = make_dataset(tmp_path / "images", many_images(2)), []
    idle = net(forbidden)

    def meanwhile(batch):
        with pytest.raises(CacheError, match=r"high\.h5' is being written by process") as told:
            run_several(dataset, tmp_path, ["low", "high"], idle)
        refused.append(told)

    run_several(dataset, tmp_path, ["high"], net(meanwhile))
    assert refused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["high.h5", "images"]
