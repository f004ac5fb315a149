from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_projects import draw_folder, draw_image, experiment, pipeline

from spptransfer.backbones import BackboneRef
from spptransfer.errors import ConfigError
from spptransfer.experiment import Machine, Shards, extract_features, prepare
from spptransfer.extraction import shard_path
from spptransfer.runtimes import ComputeOptions


def test_what_is_wanted_follows_from_the_pipeline(images, tmp_path):
    found = experiment(images, tmp_path, features={"levels": [6, 3, 1], "scales": [96, 64]})
    assert found.wanted.levels == (6,)
    assert found.wanted.scales == (64, 96)
    assert found.selection["levels"] == (6, 3, 1)
    assert len(found.dataset) == 18


def test_naming_another_backbone_suffices(images, tmp_path):
    def found(backbone, **more):
        given = {"backbone": backbone, "weights": "random", "levels": None, "scales": None, **more}
        return experiment(images, tmp_path, features=given)

    for backbone, levels, scales in (
        ("squeezenet1_1", (6, 3, 2, 1), (224,)),
        ("mobilenet_v2", (3, 2, 1), (224,)),
        ("spp-mini", (6, 3, 2, 1), (96, 128)),
    ):
        own, named = found(backbone), found(backbone, levels=levels, scales=scales)
        assert own.wanted.fingerprint == named.wanted.fingerprint
        assert own.selection == named.selection
        assert own.pipeline == named.pipeline  # what is put down has the numbers
    assert found("mobilenet_v2", layer="stage4").selection["levels"] == (6, 3, 2, 1)


def test_the_size_of_a_cache_is_told_once_before_it_is_made(images, tmp_path, told):
    found = experiment(images, tmp_path, features={"precision": "float32"})
    for _ in range(2):
        (done,) = extract_features([found])
    lines = [line for line in told() if line.startswith("cache to make")]
    assert lines == ["cache to make: 18 images x 1,728 numbers x 4 bytes = 0.1 MB"]
    assert done.path.stat().st_size > 18 * 1728 * 4


def test_several_layers_have_one_cache_and_are_normalised_block_by_block(images, tmp_path):
    both = experiment(images, tmp_path, features={"layer": ["spp", "fc6"]})
    assert both.selection["layers"] == ("spp", "fc6")
    assert "-spp_mini-fc6+spp-" in both.cache[0].name
    assert both.pipeline.classifier.normalize == ("l2_block",)
    assert experiment(images, tmp_path).pipeline.classifier.normalize == ("l2",)
    given = {"features": {"layer": ["spp", "fc6"]}, "classifier": {"normalize": ["l2"]}}
    assert experiment(images, tmp_path, **given).pipeline.classifier.normalize == ("l2",)


def test_a_wrong_machine_is_told_even_if_nothing_has_to_be_computed(images):
    with pytest.raises(ConfigError, match="device: 'tpu' is unknown; allowed: auto, cpu"):
        prepare("small", pipeline(images), Machine(compute=ComputeOptions(device="tpu")))


def cache_name(*arguments, **sections) -> str:
    return experiment(*arguments, **sections).cache[0].name


def test_a_folder_has_one_cache_however_its_path_is_written(images, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(images)
    monkeypatch.chdir(images.parent)
    ways = [images, Path("photos"), images / ".." / "photos", tmp_path / "link"]
    assert len({cache_name(way, tmp_path) for way in ways}) == 1


def test_tables_in_one_folder_have_different_caches(images, tmp_path):
    ids = [str(path.relative_to(images)) for path in sorted(images.rglob("*.png"))]
    for name, chosen in {"a.csv": ids[:12], "b.csv": ids[6:]}.items():
        rows = "".join(f"{id},{Path(id).parent}\n" for id in chosen)
        (images / name).write_text(f"path,label\n{rows}")
    try:
        names = {
            cache_name(images / table, tmp_path, dataset={"name": "csv"})
            for table in ("a.csv", "b.csv")
        }
    finally:
        for table in ("a.csv", "b.csv"):
            (images / table).unlink()
    assert len(names) == 2


def test_a_table_has_one_cache_whether_it_or_its_folder_is_named(tmp_path):
    draw_image(tmp_path / "photos" / "x.png", 0, 0)
    (tmp_path / "photos" / "labels.csv").write_text("path,label\nx.png,bee\n")
    names = {
        cache_name(root, tmp_path, dataset={"name": "csv"})
        for root in (tmp_path / "photos", tmp_path / "photos" / "labels.csv")
    }
    assert len(names) == 1


@pytest.mark.parametrize("folder", ["with space", "uni-çödé-日本", "x" * 120, "a[b]*?", "..."])
def test_any_folder_name_makes_a_plain_file_name(folder, tmp_path):
    name = cache_name(draw_folder(tmp_path / folder, per_class=1), tmp_path)
    assert len(name) < 120
    assert all(c.isalnum() or c in "-_." for c in name)
    many = [f"conv{number}" for number in range(1, 6)]
    assert len(cache_name(tmp_path / folder, tmp_path, features={"layer": many})) < 140
    assert name.isascii()


def test_the_cache_changes_with_whatever_changes_a_value_and_with_nothing_else(images, tmp_path):
    copied = tmp_path / "copy.safetensors"
    shutil.copy(BackboneRef("spp-mini", "embedded").path(), copied)
    plain = cache_name(images, tmp_path)
    changes = {"layer": "conv3", "levels": [4], "scales": [80], "view": "warp", "flip": True}
    changes |= {"pooling": "mean", "precision": "bfloat16", "storage": "float16"}
    for key, value in {**changes, "weights": "random:1"}.items():
        assert cache_name(images, tmp_path, features={key: value}) != plain, key
    for section, change in {
        "features": {"weights": str(copied)},
        "classifier": {"C": [3.0], "normalize": ["l2_block"]},
        "protocol": {"seed": 5},
    }.items():
        assert cache_name(images, tmp_path, **{section: change}) == plain


def test_a_wider_cache_serves_what_follows_from_it(images, tmp_path):
    features = {"layer": ["fc6", "spp"], "levels": [6], "scales": [64, 96]}
    wide = experiment(images, tmp_path, features=features)
    (done,) = extract_features([wide])
    for features in (
        {"levels": [3, 2, 1], "scales": [96]},
        {"levels": [6, 1], "scales": [64]},
        {"layer": "fc6", "scales": [96]},
        {"layer": ["spp", "fc6"], "levels": [3]},
    ):
        narrow = experiment(images, tmp_path, features=features)
        assert narrow.wanted != wide.wanted
        assert narrow.cache == (done.path, wide.wanted)
    for features in (
        {"levels": [4]},
        {"scales": [64, 80]},
        {"view": "warp"},
        {"layer": ["fc6", "fc7"]},
    ):
        other = experiment(images, tmp_path, features={"levels": [6], **features})
        assert other.cache[0] != done.path


def test_a_shard_is_not_taken_for_the_whole(images, tmp_path):
    found = experiment(images, tmp_path, features={"precision": "float32"})
    (done,) = extract_features([found], Shards(3, index=2))
    assert done.path == shard_path(found.cache[0], 2, 3)
    again = experiment(images, tmp_path, features={"precision": "float32"})
    assert again.cache == found.cache
    assert not again.cache[0].exists()


def test_a_damaged_candidate_is_passed_over(images, tmp_path):
    exact = experiment(images, tmp_path).cache[0]
    exact.parent.mkdir(exist_ok=True)
    damaged = exact.with_name(exact.name.rpartition("-")[0] + "-0123456789ab.h5")
    damaged.write_bytes(b"no cache")
    assert experiment(images, tmp_path).cache[0] == exact
