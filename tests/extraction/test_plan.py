from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cache_files import CHANNELS, make_rows, make_spec
from extraction_cases import make_dataset, many_images, run
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.cache import FeatureCache
from spptransfer.cache.unfinished import write_part
from spptransfer.cache.workspace import Workspace
from spptransfer.datasets import Dataset
from spptransfer.errors import DatasetError
from spptransfer.extraction.joint import JointPlan
from spptransfer.extraction.plan import Plan
from spptransfer.ids import Ids

SPEC = make_spec()


def workspace(path: Path, dataset: Dataset) -> Workspace:
    return Workspace(path, spec=SPEC, channels=CHANNELS, dataset=dataset.name, ids=dataset.ids)


def know(space: Workspace, dataset: Dataset, ids: list[str], failed=()) -> None:
    """Add a part with rows as they would be of the files that are there."""
    rows, features = make_rows(ids, SPEC, failed=failed)
    for i, id in enumerate(ids):
        status = os.stat(dataset.path(id))
        rows.size[i] = status.st_size
        rows.modified[i], rows.changed[i] = status.st_mtime_ns, status.st_ctime_ns
    part = write_part(
        space.folder, 0, rows, features, spec=SPEC, channels=CHANNELS, dataset=dataset.name
    )
    space.adopt(part)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return make_dataset(tmp_path / "images", many_images(10))


def test_what_is_known_and_unchanged_is_not_done_again(tmp_path, dataset):
    ids = list(dataset.ids)
    with workspace(tmp_path / "a.h5", dataset) as space:
        know(space, dataset, ids[2:7])
        dataset.path(ids[3]).write_bytes(b"changed")
        plan = Plan(dataset, space)
    assert np.flatnonzero(plan.todo).tolist() == [0, 1, 3, 7, 8, 9]
    assert (plan.added, plan.changed, plan.unchanged, plan.removed) == (5, 1, 4, 0)


def test_what_is_asked_for_again_is_done_again(tmp_path, dataset):
    ids = list(dataset.ids)
    with workspace(tmp_path / "a.h5", dataset) as space:
        know(space, dataset, ids[:9])
        plan = Plan(dataset, space, redo={ids[1], ids[9]})
        assert np.flatnonzero(plan.todo).tolist() == [1, 9]
        assert (plan.added, plan.changed, plan.unchanged) == (1, 1, 8)
        with pytest.raises(DatasetError, match=r"has no image 'nowhere\.png'"):
            Plan(dataset, space, redo=["nowhere.png"])


def test_what_could_not_be_read_is_tried_again_until_it_can_or_the_reason_is_another(
    tmp_path, dataset, monkeypatch
):
    reasons = {1: errno.EIO, 3: errno.ESTALE, 5: errno.EIO}
    read = Path.read_bytes

    def failing(path):
        row = dataset.ids.index(path.name) if path.name in dataset.ids else -1
        if (number := reasons.get(row)) is not None:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    run(dataset, tmp_path / "a.h5")
    assert sorted(FeatureCache.open(tmp_path / "a.h5").failures) == [
        dataset.ids[number] for number in reasons
    ]
    del reasons[1]
    reasons[3] = errno.EIO
    report = run(dataset, tmp_path / "a.h5")
    assert (report.changed, report.unchanged) == (2, 8)
    reasons.clear()
    assert run(dataset, tmp_path / "a.h5").changed == 2
    assert not FeatureCache.open(tmp_path / "a.h5").failures


def test_parts_are_cut_from_the_dataset_whatever_is_left_to_do(tmp_path, dataset):
    ids = list(dataset.ids)
    with workspace(tmp_path / "a.h5", dataset) as space:
        know(space, dataset, ids[2:7])
        plan = JointPlan([Plan(dataset, space)])
        parts = list(plan.parts(4))
        assert plan.count_parts(4) == len(parts) == 3
    assert [(part.number, part.ids) for part in parts] == [
        (0, tuple(ids[:2])),
        (1, (ids[7],)),
        (2, tuple(ids[8:])),
    ]
    assert all(part.sources == tuple(map(dataset.path, part.ids)) for part in parts)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 12))
@settings(deadline=None)
def test_as_many_parts_are_counted_as_there_are(todo, part_rows):
    plan = Plan.__new__(Plan)
    ids = Ids(f"{number}" for number in range(len(todo)))
    plan._dataset = Dataset("made up", Path("/i"), ids, (), np.full(len(todo), -1, np.int32))
    plan._ids, plan.todo = ids, np.array(todo)
    joint = JointPlan([plan])
    parts = list(joint.parts(part_rows))
    assert joint.count_parts(part_rows) == len(parts)
    assert [int(id) for part in parts for id in part.ids] == np.flatnonzero(todo).tolist()


def test_failures_are_told_by_id(tmp_path, dataset):
    ids = list(dataset.ids)
    with workspace(tmp_path / "a.h5", dataset) as space:
        know(space, dataset, ids, failed=(3, 8))
        failures = Plan(dataset, space).failures()
    assert failures == {ids[3]: "reason 3", ids[8]: "reason 8"}


def test_a_plan_takes_two_numbers_and_a_flag_per_image(tmp_path):
    """With the index of the ids in the workspace, but without the ids."""
    count = 50_000
    ids = Ids(f"{number:08d}.jpg" for number in range(count))
    dataset = Dataset("made up", tmp_path, ids, (), np.full(count, -1, np.int32))
    tracemalloc.start()
    try:
        with workspace(tmp_path / "a.h5", dataset) as space:
            plan = JointPlan([Plan(dataset, space)])
            for _ in zip(plan.parts(128), range(3), strict=False):
                pass
            held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < 12
    assert peak / count < 40
