"""Shards are ordinary caches: made by other processes or by hand, and merged in the end."""

from __future__ import annotations

import os
import threading

import pytest
from extraction_cases import (
    MINI,
    MINI_SPEC,
    TORCH,
    altered,
    assert_alike,
    broken_images,
    make_dataset,
    many_images,
    run,
)

from spptransfer.backbones import BackboneRef
from spptransfer.errors import CacheError
from spptransfer.extraction import Interrupted, extract_shards, shard_of

BOTH = {"layers": ("conv3", "fc6"), "vectors": ("fc6",)}
SPECS = [MINI_SPEC, altered(MINI_SPEC, **BOTH, view="warp", storage="float16")]


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "images", many_images(40) | broken_images())


def run_shards(dataset, folder, backbone=MINI, options=TORCH, **given):
    folder.mkdir(exist_ok=True)
    paths = [folder / "a.h5", folder / "b.h5"]
    return extract_shards(dataset, SPECS, paths, backbone, options, **given)


def test_processes_make_what_one_makes_and_leave_nothing_else(dataset, tmp_path):
    done = run_shards(dataset, tmp_path / "shards", shards=2)
    assert [each.added for each in done] == [len(dataset)] * 2
    assert all(set(each.failures) == set(broken_images()) for each in done)
    assert all(each.computed_by.startswith("torch ") and each.device == "cpu" for each in done)
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["a.h5", "b.h5"]
    for name, spec in zip(("a.h5", "b.h5"), SPECS, strict=True):
        run(dataset, tmp_path / name, spec, MINI)
        assert_alike(tmp_path / "shards" / name, tmp_path / name)


def test_a_cache_that_is_there_is_brought_up_to_date_by_this_process(dataset, tmp_path):
    (tmp_path / "shards").mkdir()
    run(dataset, tmp_path / "shards" / "a.h5", MINI_SPEC, MINI)
    done = run_shards(dataset, tmp_path / "shards", shards=2)
    assert [(each.added, each.unchanged) for each in done] == [(0, 44), (44, 0)]


class Suicidal(BackboneRef):
    """Loads the backbone, but kills the first processes that come here, as many as it has lives."""

    lives = 1

    def load(self, layers):
        for life in range(self.lives):
            marker = self.weights_dir / f"marker-{life}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), 9)
        return super().load(layers)

    def __reduce__(self):
        return type(self), (self.name, self.weights, self.weights_dir)


class SuicidalAlways(Suicidal):
    lives = 100


@pytest.mark.slow
def test_the_shard_of_a_killed_worker_is_made_by_another(dataset, tmp_path):
    backbone = Suicidal(MINI.name, MINI.weights, tmp_path)
    done = run_shards(dataset, tmp_path / "shards", backbone, shards=2)
    assert (tmp_path / "marker-0").exists()
    assert [len(each.failures) for each in done] == [4, 4]
    run(dataset, tmp_path / "a.h5", MINI_SPEC, MINI)
    assert_alike(tmp_path / "shards" / "a.h5", tmp_path / "a.h5")


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_one_clear_line_and_a_later_run_goes_on(
    dataset, tmp_path
):
    backbone = SuicidalAlways(MINI.name, MINI.weights, tmp_path)
    with pytest.raises(CacheError, match=r"died again and again .* everything finished is kept"):
        run_shards(dataset, tmp_path / "shards", backbone, shards=2)
    assert [each.added for each in run_shards(dataset, tmp_path / "shards", shards=2)] == [44] * 2


@pytest.mark.slow
@pytest.mark.filterwarnings("error")  # who stops it is not warned that he did
def test_a_stopped_run_keeps_the_shards_that_are_finished(dataset, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted, match="what is finished of the shards is kept"):
        run_shards(dataset, tmp_path / "shards", shards=2, stop=stop)
    assert not (tmp_path / "shards" / "a.h5").exists()
    done = run_shards(dataset, tmp_path / "shards", shards=2)
    assert [each.added + each.unchanged for each in done] == [44] * 2


@pytest.mark.slow
def test_the_workers_of_a_dask_cluster_make_the_same(dataset, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        scheduler = cluster.scheduler_address
        run_shards(dataset, tmp_path / "dask", shards=3, scheduler=scheduler)
    for name, spec in zip(("a.h5", "b.h5"), SPECS, strict=True):
        run(dataset, tmp_path / name, spec, MINI)
        assert_alike(tmp_path / "dask" / name, tmp_path / name)


# ---- by hand ----


@pytest.mark.parametrize("count", [1, 2, 7, 44])
def test_shards_part_the_images_evenly_in_their_order(dataset, count):
    shards = [shard_of(dataset, index, count) for index in range(1, count + 1)]
    assert [id for shard in shards for id in shard.ids] == list(dataset.ids)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for shard in shards:
        assert shard.path(shard.ids[0]) == dataset.path(shard.ids[0])
        assert shard.targets.tolist() == dataset.targets_of(list(shard.ids)).tolist()
        assert shard.classes == dataset.classes
