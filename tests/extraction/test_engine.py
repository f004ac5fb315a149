from __future__ import annotations

import dataclasses
import os
import sys

import numpy as np
import pytest
import torch
from cache_files import make_spec
from extraction_cases import (
    CHANNELS,
    SPEC,
    StopAfter,
    awkward_images,
    backbone,
    counts,
    forbidden,
    fully_connected,
    make_dataset,
    many_images,
    open_folder,
    run,
)
from image_files import encode, picture
from PIL import Image
from unfinished_caches import drafted_rows

from spptransfer import images
from spptransfer.cache import FeatureCache
from spptransfer.cache.unfinished import parts_folder
from spptransfer.errors import CacheError, ConfigError, DatasetError, SpecMismatchError
from spptransfer.extraction import Interrupted, compute, runners
from spptransfer.extraction import parts as parts_module
from spptransfer.extraction.batches import Stamp
from spptransfer.extraction.compute import FeatureComputer


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    root = tmp_path_factory.mktemp("awkward")
    dataset = make_dataset(root / "images", awkward_images())
    report = run(dataset, root / "a.h5")
    return dataset, FeatureCache.open(root / "a.h5"), report


def test_every_awkward_image_has_the_features_of_the_plain_path(awkward):
    dataset, cache, report = awkward
    assert counts(report) == (len(dataset), 0, 0, 0, 0)
    assert cache.ids == list(dataset.ids)
    computer = FeatureComputer(backbone(), SPEC)
    for id in dataset.ids:
        image = images.decode(dataset.path(id).read_bytes())
        expected = computer(images.render(image, 48)[None])[3]
        np.testing.assert_allclose(cache.matrix([id]), expected, atol=1e-5 * expected.max())


def test_the_table_holds_digest_and_upright_size(awkward):
    dataset, cache, _ = awkward
    rows = cache.rows
    turned = rows.ids.index("turned.png")
    assert (rows.height[turned], rows.width[turned]) == (50, 70)
    data = dataset.path("turned.png").read_bytes()
    assert cache.digests()["turned.png"] == images.content_digest(data)


def test_labels_come_from_the_dataset_by_id(awkward):
    dataset, cache, _ = awkward
    some = list(dataset.ids)[::-2]
    expected = [dataset.classes[t] for t in dataset.targets_of(some)]
    assert cache.labels(some).tolist() == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"jobs": 1},
        {"jobs": 5},
        {"batch_pixels": 1},
        {"batch_pixels": 10**7},
        {"part_rows": 1},
        {"part_rows": 100},
    ],
    ids=str,
)
def test_batch_size_workers_and_parts_change_nothing_beyond_rounding(awkward, tmp_path, settings):
    dataset, cache, _ = awkward
    run(dataset, tmp_path / "b.h5", **settings)
    other = FeatureCache.open(tmp_path / "b.h5")
    assert other.fingerprint == cache.fingerprint
    np.testing.assert_allclose(other.matrix(), cache.matrix(), rtol=0, atol=1e-5)
    assert other.digests() == cache.digests()


def test_the_order_of_the_dataset_changes_nothing_beyond_rounding(awkward, tmp_path):
    dataset, cache, _ = awkward
    backwards = open_folder(dataset.root, dataset.ids[::-1])
    run(backwards, tmp_path / "b.h5")
    other = FeatureCache.open(tmp_path / "b.h5")
    assert other.ids == list(dataset.ids)[::-1]
    np.testing.assert_allclose(other.matrix(cache.ids), cache.matrix(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_same_settings_give_the_same_bytes(awkward, tmp_path, jobs):
    dataset, cache, _ = awkward
    run(dataset, tmp_path / "b.h5", jobs=jobs)
    assert (tmp_path / "b.h5").read_bytes() == cache.path.read_bytes()


def test_scales_are_stored_apart_and_equal_those_extracted_alone(awkward, tmp_path):
    dataset, cache, _ = awkward
    run(dataset, tmp_path / "b.h5", dataclasses.replace(SPEC, scales=(64, 48)))
    both = FeatureCache.open(tmp_path / "b.h5")
    np.testing.assert_allclose(both.matrix(scales=[48]), cache.matrix(), atol=1e-5)
    run(dataset, tmp_path / "c.h5", dataclasses.replace(SPEC, scales=(64,)))
    alone = FeatureCache.open(tmp_path / "c.h5").matrix()
    np.testing.assert_allclose(both.matrix(scales=[64]), alone, atol=1e-5)


def test_float16_storage_is_the_float32_features_rounded(awkward, tmp_path):
    dataset, cache, _ = awkward
    run(dataset, tmp_path / "b.h5", dataclasses.replace(SPEC, storage="float16"))
    half = FeatureCache.open(tmp_path / "b.h5")
    np.testing.assert_allclose(half.matrix(), cache.matrix(), rtol=1e-3, atol=1e-4)
    assert half.rows.status.tolist() == cache.rows.status.tolist()


def test_a_vector_layer_is_cached_as_vectors(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    spec = make_spec(backbone="alexnet", layer="fc6", levels=(), scales=(48,))
    run(dataset, tmp_path / "a.h5", spec, channels=4096, load_backbone=fully_connected)
    matrix = FeatureCache.open(tmp_path / "a.h5", spec).matrix()
    view = images.render(picture(40, 44, 0), 48)
    expected = FeatureComputer(fully_connected(), spec)(view[None])[None]
    np.testing.assert_allclose(matrix[:1], expected, rtol=1e-4, atol=1e-5)


def test_only_what_is_new_or_changed_is_decoded(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(6))
    run(dataset, tmp_path / "a.h5")
    before = FeatureCache.open(tmp_path / "a.h5").matrix()
    (dataset.root / "0002.png").write_bytes(encode(picture(41, 50, 99)))
    (dataset.root / "new.png").write_bytes(encode(picture(41, 50, 98)))
    ids = [id for id in dataset.ids if id != "0004.png"]
    decoded = []
    decode = images._decode
    monkeypatch.setattr(
        images, "_decode", lambda data, *how: decoded.append(data) or decode(data, *how)
    )
    report = run(open_folder(dataset.root, [*ids, "new.png"]), tmp_path / "a.h5")
    assert counts(report) == (1, 1, 4, 1, 0)
    assert len(decoded) == 2
    cache = FeatureCache.open(tmp_path / "a.h5")
    assert cache.ids == [*ids, "new.png"]
    same = (cache.matrix(ids) == before[[0, 1, 2, 3, 5]]).all(axis=1)
    assert same.tolist() == [True, True, False, True, True]


def test_an_updated_cache_equals_one_made_at_once(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(9))
    run(open_folder(dataset.root, dataset.ids[2:7]), tmp_path / "a.h5")
    run(dataset, tmp_path / "a.h5")
    run(dataset, tmp_path / "b.h5")
    a, b = (FeatureCache.open(tmp_path / name) for name in ("a.h5", "b.h5"))
    np.testing.assert_allclose(a.matrix(), b.matrix(), rtol=0, atol=1e-5)
    assert (a.digests(), a.labels().tolist()) == (b.digests(), b.labels().tolist())


def test_nothing_is_opened_where_nothing_changed(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    run(dataset, tmp_path / "a.h5")
    before = Stamp.of(tmp_path / "a.h5")
    monkeypatch.setattr(images, "read_bytes", forbidden)
    report = run(dataset, tmp_path / "a.h5", load_backbone=forbidden)
    assert counts(report) == (0, 0, 3, 0, 0)
    assert Stamp.of(tmp_path / "a.h5") == before


def test_an_untouched_file_under_a_new_time_is_not_decoded(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    run(dataset, tmp_path / "a.h5")
    os.utime(dataset.root / "0001.png", (1, 1))
    monkeypatch.setattr(images, "_decode", forbidden)
    report = run(dataset, tmp_path / "a.h5", load_backbone=forbidden)
    assert counts(report) == (0, 0, 3, 0, 0)


def test_a_change_that_keeps_size_and_time_is_found(tmp_path):
    dataset = make_dataset(tmp_path / "images", {})
    path = dataset.root / "a.bmp"
    path.write_bytes(encode(picture(20, 20, 1), "BMP"))
    status = path.stat()
    dataset = open_folder(dataset.root, ["a.bmp"])
    run(dataset, tmp_path / "a.h5")
    path.write_bytes(encode(picture(20, 20, 2), "BMP"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert counts(run(dataset, tmp_path / "a.h5")) == (0, 1, 0, 0, 0)


def test_rows_asked_for_again_are_extracted_again(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(3))
    run(dataset, tmp_path / "a.h5")
    report = run(dataset, tmp_path / "a.h5", redo=["0001.png"])
    assert counts(report) == (0, 1, 2, 0, 0)
    with pytest.raises(DatasetError, match="no image 'x'"):
        run(dataset, tmp_path / "a.h5", redo=["x"])


@pytest.mark.parametrize("checks", [1, 2, 3, 4])
def test_an_interrupted_run_keeps_its_parts_and_the_next_one_equals_an_uninterrupted_one(
    tmp_path, checks
):
    dataset = make_dataset(tmp_path / "images", many_images(14))
    with pytest.raises(Interrupted, match="run the same command again"):
        run(dataset, tmp_path / "a.h5", stop=StopAfter(checks - 1))
    kept = len(drafted_rows(tmp_path / "a.h5"))
    assert 4 * (checks - 1) <= kept <= 4 * (checks + 1)
    assert not (tmp_path / "a.h5").exists()
    report = run(dataset, tmp_path / "a.h5")
    assert report.unchanged == kept
    run(dataset, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_cache_of_another_spec_is_refused_before_any_work(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    run(dataset, tmp_path / "a.h5")
    other = dataclasses.replace(SPEC, view="warp")
    with pytest.raises(SpecMismatchError, match="view: full is not warp"):
        run(dataset, tmp_path / "a.h5", other, load_backbone=forbidden)


def test_a_wider_cache_serves_and_stays_wide(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(2))
    wide = dataclasses.replace(SPEC, scales=(48, 64))
    run(dataset, tmp_path / "a.h5", wide)
    (dataset.root / "0001.png").write_bytes(encode(picture(30, 30, 5)))
    assert run(dataset, tmp_path / "a.h5").changed == 1
    assert FeatureCache.open(tmp_path / "a.h5").spec == wide


def test_bad_requests_are_refused_by_name(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(1))
    with pytest.raises(DatasetError, match="has no images"):
        run(open_folder(tmp_path, []), tmp_path / "a.h5")
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        run(dataset, tmp_path / "a.h5", engine="thread")
    with pytest.raises(ConfigError, match="too small"):
        run(dataset, tmp_path / "a.h5", dataclasses.replace(SPEC, scales=(4,)))
    assert not parts_folder(tmp_path / "a.h5").exists()


def test_a_cache_that_vanishes_while_it_is_written_is_one_clear_line(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(9))
    make = parts_module.PartMaker.make

    def vanish(self, part, note=lambda count: None):
        if part.number == 1:
            import shutil

            shutil.rmtree(parts_folder(tmp_path / "a.h5"))
        return make(self, part, note)

    monkeypatch.setattr(parts_module.PartMaker, "make", vanish)
    with pytest.raises(CacheError, match="No such file"):
        run(dataset, tmp_path / "a.h5")
    monkeypatch.undo()
    assert run(dataset, tmp_path / "a.h5").added == 9


def test_the_time_is_split_into_reading_computing_and_writing(awkward):
    _, _, report = awkward
    assert set(report.seconds) == {"read", "compute", "write"}
    assert all(seconds > 0 for seconds in report.seconds.values())


def test_the_bar_says_what_is_computed_and_where_the_time_goes(tmp_path, capsys):
    dataset = make_dataset(tmp_path / "images", many_images(5) | {"broken.png": b"x"})
    run(dataset, tmp_path / "a.h5", progress=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "image/s" in shown or "s/image" in shown
    assert "squeezenet1_1 fire4: " in shown
    assert "reading" in shown
    assert "computing" in shown


def test_a_rerun_imports_no_torch(tmp_path):
    dataset = make_dataset(tmp_path / "images", {"a.png": encode(Image.new("L", (9, 9)))})
    run(dataset, tmp_path / "a.h5")
    code = f"""
import sys, numpy as np
from pathlib import Path
from spptransfer.cache import FeatureCache
from spptransfer.datasets import Dataset
from spptransfer.extraction import extract
path = Path({str(tmp_path / "a.h5")!r})
dataset = Dataset("folder", Path({str(dataset.root)!r}), ("a.png",), ("ant", "bee"),
                  np.zeros(1, np.int32))
report = extract(dataset, FeatureCache.open(path).spec, channels={CHANNELS}, path=path,
                 load_backbone=None)
assert report.unchanged == 1 and "torch" not in sys.modules
"""
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def choice(tmp_path, monkeypatch, **options):
    """Who makes the parts, how many of them, and whether for a GPU."""
    seen = []

    def record(division, parts, task, scheduler, progress):
        seen.append((division.engine, division.jobs, division.on_gpu))
        return runners.run_threads(parts, task, 1, progress)

    monkeypatch.setattr(runners, "run", record)
    run(make_dataset(tmp_path / "images", many_images(3)), tmp_path / "a.h5", **options)
    (chosen,) = seen
    return chosen


@pytest.mark.parametrize(
    ("jobs", "engine", "expected"),
    [
        (None, "auto", "threads"),
        (1, "auto", "threads"),
        (3, "auto", "processes"),
        (3, "threads", "threads"),
        (1, "processes", "processes"),
    ],
)
def test_a_number_of_jobs_asks_for_so_many_processes(tmp_path, monkeypatch, jobs, engine, expected):
    found = choice(tmp_path, monkeypatch, jobs=jobs, engine=engine)
    assert found == (expected, jobs or len(os.sched_getaffinity(0)), False)


@pytest.mark.parametrize(
    ("jobs", "engine", "expected"),
    [(4, "auto", "threads"), (4, "threads", "threads"), (4, "processes", "processes")],
)
def test_processes_read_for_a_gpu_if_they_are_asked_for(
    tmp_path, monkeypatch, jobs, engine, expected
):
    # Whoever chooses the engine takes it for a GPU; whoever computes then does not.
    answers = iter([torch.device("cuda")])
    monkeypatch.setattr(compute, "choose_device", lambda *_: next(answers, torch.device("cpu")))
    found = choice(tmp_path, monkeypatch, jobs=jobs, engine=engine)
    assert found == (expected, jobs, True)
