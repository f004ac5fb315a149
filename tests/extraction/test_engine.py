"""One cache of one spec: what is in it, what is done again, and what an interruption leaves."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from extraction_cases import (
    MINI,
    MINI_SPEC,
    NET,
    SPEC,
    TORCH,
    StopAfter,
    altered,
    assert_near,
    awkward_images,
    counts,
    forbidden,
    make_dataset,
    many_images,
    net,
    open_folder,
    run,
)
from image_files import encode, picture

from spptransfer import SPPFeatures, images
from spptransfer.cache import FeatureCache
from spptransfer.cache.writer import merge
from spptransfer.errors import ConfigError, DatasetError, SpecMismatchError
from spptransfer.extraction import Interrupted
from spptransfer.runtimes import ComputeOptions, describe_runtime

# What a CPU computes and writes at a time.
PART = 128


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    root = tmp_path_factory.mktemp("awkward")
    dataset = make_dataset(root / "images", awkward_images())
    done = run(dataset, root / "a.h5")
    return dataset, FeatureCache.open(root / "a.h5"), done


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough images for three parts, and the cache of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("many")
    dataset = make_dataset(root / "images", many_images(2 * PART + 20))
    run(dataset, root / "a.h5")
    return dataset, root / "a.h5"


# ---- what is in the cache ----


def test_every_awkward_image_has_the_features_that_the_transformer_computes(awkward):
    dataset, cache, done = awkward
    assert counts(done) == (len(dataset), 0, 0, 0, 0)
    assert list(done.seconds) == ["read", "compute", "write"]
    assert all(seconds > 0 for seconds in done.seconds.values())
    assert cache.ids == list(dataset.ids)
    spp = SPPFeatures(NET, layer="high", levels=[3], scales=[32], device="cpu", runtime="torch")
    assert_near(cache.matrix(), spp.fit_transform(dataset.paths()))


def test_the_table_holds_digest_upright_size_and_labels_by_id(awkward):
    dataset, cache, _ = awkward
    (row,) = cache.find(["turned.png"])
    assert (cache.column("rows/height")[row], cache.column("rows/width")[row]) == (50, 70)
    data = dataset.path("turned.png").read_bytes()
    assert cache.digests()["turned.png"] == images.content_digest(data)
    some = list(dataset.ids)[::-2]
    expected = [dataset.classes[t] for t in dataset.targets_of(some)]
    assert cache.labels(some).tolist() == expected


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_change_nothing_beyond_rounding(awkward, tmp_path, runtime):
    pytest.importorskip(runtime)
    dataset, plain, spec = awkward[0], tmp_path / "a.h5", MINI_SPEC
    run(dataset, plain, spec, MINI)
    done = run(dataset, tmp_path / "b.h5", spec, MINI, dataclasses.replace(TORCH, runtime=runtime))
    one, other = FeatureCache.open(plain), FeatureCache.open(tmp_path / "b.h5")
    assert other.fingerprint == one.fingerprint
    assert_near(other.matrix(), one.matrix())
    assert other.digests() == one.digests()
    assert done.device == "cpu"
    assert other.computed_by == (done.computed_by,)
    assert done.computed_by == describe_runtime(runtime)


def test_no_runtime_is_started_for_a_dataset_of_fewer_than_64_images_whatever_is_left(tmp_path):
    pytest.importorskip("onnxruntime")
    dataset, auto = make_dataset(tmp_path / "images", many_images(64)), ComputeOptions("cpu")
    few = open_folder(dataset.root, dataset.ids[:63])
    torchs, others = describe_runtime("torch"), describe_runtime("onnxruntime")
    done = run(few, tmp_path / "a.h5", MINI_SPEC, MINI, auto)
    assert (done.computed_by, done.few_images) == (torchs, True)
    done = run(dataset, tmp_path / "a.h5", MINI_SPEC, MINI, auto)
    assert (done.added, done.computed_by, done.few_images) == (1, others, False)
    asked = dataclasses.replace(auto, runtime="onnxruntime")
    assert run(few, tmp_path / "b.h5", MINI_SPEC, MINI, asked).computed_by == others


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_settings_give_the_same_bytes_whatever_the_threads(many, tmp_path, threads):
    dataset, path = many
    run(dataset, tmp_path / "b.h5", options=dataclasses.replace(TORCH, threads=threads))
    assert (tmp_path / "b.h5").read_bytes() == path.read_bytes()


def test_float16_storage_is_the_float32_features_rounded(awkward, tmp_path):
    dataset, cache, _ = awkward
    run(dataset, tmp_path / "b.h5", altered(SPEC, storage="float16"))
    half = FeatureCache.open(tmp_path / "b.h5")
    (block,) = half.blocks
    expected = cache.matrix().astype(np.float16)
    np.testing.assert_array_equal(half.read(block, slice(None)), expected)


# ---- what is done again ----


def test_only_what_is_new_or_changed_is_read(tmp_path, read):
    dataset = make_dataset(tmp_path / "images", many_images(6))
    run(dataset, tmp_path / "a.h5")
    assert sorted(read) == list(dataset.ids)
    before = FeatureCache.open(tmp_path / "a.h5").matrix()
    (dataset.root / "0002.png").write_bytes(encode(picture(41, 50, 99)))
    (dataset.root / "new.png").write_bytes(encode(picture(41, 50, 98)))
    ids = [id for id in dataset.ids if id != "0004.png"]
    read.clear()
    done = run(open_folder(dataset.root, [*ids, "new.png"]), tmp_path / "a.h5")
    assert counts(done) == (1, 1, 4, 1, 0)
    assert set(read) == {"0002.png", "new.png"}
    cache = FeatureCache.open(tmp_path / "a.h5")
    assert cache.ids == [*ids, "new.png"]
    same = (cache.matrix(ids) == before[[0, 1, 2, 3, 5]]).all(axis=1)
    assert same.tolist() == [True, True, False, True, True]


def test_nothing_is_opened_or_computed_where_nothing_changed(tmp_path, read):
    """A file under a new time is opened, but not decoded."""
    dataset, path = make_dataset(tmp_path / "images", many_images(3)), tmp_path / "a.h5"
    run(dataset, path)
    before, names = path.stat(), sorted(os.listdir(tmp_path))
    read.clear()
    done = run(dataset, path, backbone=net(forbidden))
    assert counts(done) == (0, 0, 3, 0, 0)
    assert (done.computed_by, done.device, done.batches, done.reused) == (None, None, 0, 3)
    assert not read
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(os.listdir(tmp_path)) == names == ["a.h5", "images"]
    os.utime(dataset.root / "0001.png", (1, 1))
    assert counts(run(dataset, path, backbone=net(forbidden))) == (0, 0, 3, 0, 0)
    assert read == ["0001.png"]


def test_a_change_that_keeps_size_and_time_is_found(tmp_path):
    path = tmp_path / "images" / "a.bmp"
    dataset = make_dataset(path.parent, {"a.bmp": encode(picture(20, 20, 1), "BMP")})
    status = path.stat()
    run(dataset, tmp_path / "a.h5")
    path.write_bytes(encode(picture(20, 20, 2), "BMP"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert counts(run(dataset, tmp_path / "a.h5")) == (0, 1, 0, 0, 0)


def test_rows_asked_for_again_are_extracted_again(tmp_path, read):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    run(dataset, tmp_path / "a.h5")
    read.clear()
    assert counts(run(dataset, tmp_path / "a.h5", redo=["0001.png"])) == (0, 1, 2, 0, 0)
    assert set(read) == {"0001.png"}
    with pytest.raises(DatasetError, match=r"has no image .*'x'"):
        run(dataset, tmp_path / "a.h5", redo=["x"])


def test_a_wider_cache_serves_and_stays_wide(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    wide = altered(SPEC, scales=(32, 40))
    run(dataset, tmp_path / "a.h5", wide)
    (dataset.root / "0001.png").write_bytes(encode(picture(30, 30, 5)))
    assert run(dataset, tmp_path / "a.h5").changed == 1
    assert FeatureCache.open(tmp_path / "a.h5").spec == wide


def test_other_labels_are_written_without_computing_anything(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(4))
    run(dataset, tmp_path / "a.h5")
    renamed = dataclasses.replace(dataset, classes=("wasp", "bee"))
    assert run(renamed, tmp_path / "a.h5", backbone=net(forbidden)).unchanged == 4
    assert FeatureCache.open(tmp_path / "a.h5").classes == ("wasp", "bee")


# ---- interruptions ----


@pytest.mark.parametrize("parts", [1, 2])
def test_an_interrupted_run_keeps_its_parts_and_the_next_one_ends_in_the_same_bytes(
    many, tmp_path, parts
):
    dataset, undisturbed = many
    with pytest.raises(Interrupted, match="run the same command again to go on"):
        run(dataset, tmp_path / "a.h5", stop=StopAfter(parts - 1))
    assert not (tmp_path / "a.h5").exists()
    computed = []
    done = run(dataset, tmp_path / "a.h5", backbone=net(lambda batch: computed.extend(batch)))
    assert done.unchanged == parts * PART
    assert len(computed) == done.added == len(dataset) - parts * PART
    assert (tmp_path / "a.h5").read_bytes() == undisturbed.read_bytes()


def changed(backbone):
    """The same weights under code that computes a little else."""
    backbone.module.register_forward_pre_hook(lambda module, images: (images[0] * 1.05,))
    return backbone


def test_another_releases_features_are_not_mixed_with_those_of_a_cache(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(4))
    run(dataset, tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    more = make_dataset(tmp_path / "images", many_images(6))
    with pytest.raises(SpecMismatchError, match=r"another release .* differ by 5\.2%"):
        run(more, tmp_path / "a.h5", backbone=changed(net()))
    assert (tmp_path / "a.h5").read_bytes() == before
    run(more, tmp_path / "b.h5", backbone=changed(net()))
    with pytest.raises(SpecMismatchError, match="another release"):
        merge(tmp_path / "c.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert run(more, tmp_path / "a.h5").added == 2


# ---- what is refused, and what is told ----


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"spec": altered(SPEC, scales=(4,))}, ConfigError, "scales: 4 is too small for 'net'"),
        ({"options": ComputeOptions(threads=0)}, ConfigError, "threads: 0 must be"),
        ({"spec": altered(SPEC, layers=("hihg",))}, ConfigError, "unknown layer 'hihg'"),
        ({"spec": []}, ConfigError, "at least one feature spec is needed"),
    ],
)
def test_bad_requests_are_refused_by_name_and_leave_nothing_behind(tmp_path, given, error, message):
    dataset = make_dataset(tmp_path / "images", many_images(1))
    with pytest.raises(error, match=message) as told:
        run(dataset, tmp_path / "a.h5", **given)
    assert "\n" not in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_images_of_one_size_share_batches_in_whatever_order_they_come(tmp_path):
    """Those that are alike make one batch, however many others lie between them."""
    sizes = [(32, 40), (32, 60), (32, 40), (32, 60), (32, 40), (900, 900)]
    files = {f"{i}.png": encode(picture(*size, i)) for i, size in enumerate(sizes)}
    dataset = make_dataset(tmp_path / "images", files)
    seen = []
    done = run(dataset, tmp_path / "a.h5", backbone=net(lambda batch: seen.append(batch.shape)))
    assert sorted(shape[0] for shape in seen) == [1, 2, 3]
    assert (done.batches, done.full_batches) == (3, 0)


def test_the_bar_says_what_is_computed_and_where_the_time_goes(tmp_path, capsys):
    dataset = make_dataset(tmp_path / "images", many_images(5) | {"broken.png": b"x"})
    run(dataset, tmp_path / "a.h5", progress=True)
    shown = capsys.readouterr().err
    for text in ("6/6", "net high: ", "reading ", "computing "):
        assert text in shown
    assert "image/s" in shown or "s/image" in shown
