from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from cache_files import CHANNELS, make_cache, make_ids, make_rows, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.cache import FeatureCache
from spptransfer.cache.lock import STALE_SECONDS
from spptransfer.cache.outline import Labels
from spptransfer.cache.unfinished import parts_folder, write_part
from spptransfer.cache.verify import verify
from spptransfer.cache.workspace import Workspace
from spptransfer.errors import CacheError, SpecMismatchError

SPEC = make_spec()
IDS = make_ids(12)


def workspace(path, spec=SPEC, ids=IDS):
    return Workspace(path, spec=spec, channels=CHANNELS, dataset="made up", ids=ids)


def put(space, number, ids, seed=0, spec=SPEC):
    rows, features = make_rows(ids, spec, seed=seed)
    part = write_part(
        space.folder, number, rows, features, spec=spec, channels=CHANNELS, dataset="made up"
    )
    space.adopt(part)
    return features


def fill(path, ids=IDS, seed=0):
    with workspace(path, ids=ids) as space:
        put(space, 0, ids, seed)
        space.finish(None)


def matrix(path, ids=None):
    return FeatureCache.open(path).matrix(ids)


def test_parts_in_any_order_become_one_file_in_the_order_of_the_ids(tmp_path):
    with workspace(tmp_path / "a.h5") as space:
        second = put(space, 1, IDS[6:][::-1], seed=1)
        first = put(space, 0, IDS[:6])
        assert space.known.all()
        space.finish(None)
    block = next(iter(first))
    expected = np.concatenate([first[block], second[block][::-1]])
    np.testing.assert_array_equal(matrix(tmp_path / "a.h5"), expected)
    assert not parts_folder(tmp_path / "a.h5").exists()


def test_parts_outlive_their_writer_and_are_taken_over(tmp_path):
    with workspace(tmp_path / "a.h5") as space:
        put(space, 0, IDS[:6])
    with workspace(tmp_path / "a.h5") as space:
        assert space.known.tolist() == [True] * 6 + [False] * 6
        put(space, 1, IDS[6:])
        space.finish(None)
    assert FeatureCache.open(tmp_path / "a.h5").ids == IDS


def test_a_newer_part_replaces_rows_of_the_finished_file(tmp_path):
    fill(tmp_path / "a.h5")
    before = matrix(tmp_path / "a.h5")
    with workspace(tmp_path / "a.h5") as space:
        put(space, 0, IDS[3:5], seed=9)
        space.finish(None)
    same = (matrix(tmp_path / "a.h5") == before).all(axis=1)
    assert same.tolist() == [i not in (3, 4) for i in range(12)]


def test_removed_ids_disappear_and_the_order_follows_the_dataset(tmp_path):
    fill(tmp_path / "a.h5")
    kept = IDS[8:2:-1]
    expected = matrix(tmp_path / "a.h5", kept)
    with workspace(tmp_path / "a.h5", ids=kept) as space:
        space.finish(None)
    assert FeatureCache.open(tmp_path / "a.h5").ids == kept
    np.testing.assert_array_equal(matrix(tmp_path / "a.h5"), expected)


def test_a_file_that_is_up_to_date_is_not_written_again(tmp_path):
    fill(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").stat().st_ino
    with workspace(tmp_path / "a.h5") as space:
        space.finish(None)
    assert (tmp_path / "a.h5").stat().st_ino == before


def test_other_labels_alone_are_written_without_other_features(tmp_path):
    fill(tmp_path / "a.h5")
    before = matrix(tmp_path / "a.h5")
    labels = Labels(("x", "y"), np.arange(12, dtype=np.int32) % 2)
    with workspace(tmp_path / "a.h5") as space:
        space.finish(labels)
    assert FeatureCache.open(tmp_path / "a.h5").labels(IDS[1:3]).tolist() == ["y", "x"]
    np.testing.assert_array_equal(matrix(tmp_path / "a.h5"), before)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_part_is_left_out(tmp_path, damage):
    with workspace(tmp_path / "a.h5") as space:
        put(space, 0, IDS[:6])
    (part,) = parts_folder(tmp_path / "a.h5").glob("part-*.h5")
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[damage])
    with workspace(tmp_path / "a.h5") as space:
        assert not space.known.any()
    assert not part.exists()


def test_damaged_rows_are_never_carried_into_a_new_file(tmp_path):
    fill(tmp_path / "a.h5")
    content = bytearray((tmp_path / "a.h5").read_bytes())
    extent = FeatureCache.open(tmp_path / "a.h5").file.header.extents["features/scale_64/level_4"]
    content[extent.offset + extent.nbytes // 2] ^= 1
    (tmp_path / "a.h5").write_bytes(content)
    with workspace(tmp_path / "a.h5", ids=IDS[1:]) as space, pytest.raises(CacheError) as caught:
        space.finish(None)
    assert f"row '{IDS[6]}'" in str(caught.value)
    assert "is not what was written" in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "part"])
def test_rows_of_another_spec_are_neither_used_nor_lost(tmp_path, kind):
    with workspace(tmp_path / "a.h5") as space:
        put(space, 0, IDS)
        if kind == "file":
            space.finish(None)
    other = dataclasses.replace(SPEC, view="warp")
    with (
        pytest.raises(SpecMismatchError, match="view: full is not warp"),
        workspace(tmp_path / "a.h5", other),
    ):
        pass
    with workspace(tmp_path / "a.h5") as space:
        assert space.known.all()


def test_a_wider_file_keeps_its_spec(tmp_path):
    wide = make_spec(scales=(48, 64))
    make_cache(tmp_path / "a.h5", 12, wide, labels=None)
    with workspace(tmp_path / "a.h5") as space:
        assert space.spec == wide
        space.finish(None)
    assert FeatureCache.open(tmp_path / "a.h5").spec == wide


def test_a_second_writer_is_told_who_writes_and_since_when(tmp_path):
    with (
        workspace(tmp_path / "a.h5"),
        pytest.raises(CacheError, match=rf"written by process {os.getpid()} on .* since 20"),
        workspace(tmp_path / "a.h5"),
    ):
        pass
    with workspace(tmp_path / "a.h5"):
        pass


def _hold_until_killed(path, ready):
    with workspace(path):
        ready.set()
        time.sleep(60)


def test_a_killed_writer_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold_until_killed, args=(tmp_path / "a.h5", ready))
    process.start()
    ready.wait(30)
    with pytest.raises(CacheError, match=f"process {process.pid} "), workspace(tmp_path / "a.h5"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with workspace(tmp_path / "a.h5"):
        pass


@pytest.mark.parametrize(("age", "held"), [(0, True), (STALE_SECONDS + 60, False)])
def test_a_writer_on_another_host_is_believed_while_it_shows_itself(tmp_path, age, held):
    lock = parts_folder(tmp_path / "a.h5") / "lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"process": 1, "host": "elsewhere", "since": "2026-01-01"}))
    os.utime(lock, (time.time() - age,) * 2)
    if held:
        with pytest.raises(CacheError, match="on elsewhere"), workspace(tmp_path / "a.h5"):
            pass
    else:
        with workspace(tmp_path / "a.h5"):
            pass


@pytest.mark.parametrize("content", ["", "{", "null", "[1]", '{"process": 1}', "\0\0"])
def test_a_lock_file_with_any_content_can_be_taken(tmp_path, content):
    lock = parts_folder(tmp_path / "a.h5") / "lock"
    lock.parent.mkdir()
    lock.write_text(content)
    with workspace(tmp_path / "a.h5"):
        pass


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot write"), workspace(tmp_path / "file" / "a.h5"):
        pass


def test_an_id_that_cannot_be_stored_is_refused_before_any_work(tmp_path):
    with pytest.raises(CacheError, match=r"the id 'a\\x00' ends in a NUL"):
        workspace(tmp_path / "a.h5", ids=["b", "a\0"])


@pytest.mark.parametrize("id", ["\ud800", "\udcc3\udca9"])  # the second one has the bytes of é
def test_an_id_that_would_not_come_back_is_refused_before_any_work(tmp_path, id):
    with pytest.raises(CacheError, match=r"the id '.*' is no text in UTF-8"):
        workspace(tmp_path / "a.h5", ids=["b", id])
    workspace(tmp_path / "a.h5", ids=["é", "\udcff"])


def test_a_finished_file_without_a_single_good_row_is_known_all_the_same(tmp_path):
    make_cache(tmp_path / "a.h5", 12, SPEC, failed=range(12), labels=None)
    with workspace(tmp_path / "a.h5") as space:
        assert space.known.all()
        assert len(list(space.known_failures())) == 12


def test_labels_that_no_file_can_hold_leave_the_finished_one(tmp_path):
    path = tmp_path / "a.h5"
    make_cache(path, 12, SPEC)
    before = path.read_bytes()
    for targets in (np.linspace(0, 1, 12), np.full(12, 1 << 40), np.zeros(11, np.int32)):
        with workspace(path) as space, pytest.raises(CacheError, match="do not fit 12 rows"):
            space.finish(Labels(("ant", "bee"), targets))
        assert path.read_bytes() == before
    with workspace(path) as space:
        space.finish(Labels(("ant", "bee"), np.ones(12, ">i2")))
    targets = FeatureCache.open(path).targets
    assert (targets.dtype, targets.tolist()) == (np.dtype("<i4"), [1] * 12)


def test_what_cannot_be_removed_in_the_end_is_one_line_and_the_file_is_there(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    with workspace(path) as space:
        put(space, 0, IDS)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", _refuse)
            with pytest.raises(CacheError, match=r"cannot write '.*a\.h5': Input/output error"):
                space.finish(None)
    assert FeatureCache.open(path).ids == IDS


def _refuse(path, missing_ok=False):
    raise OSError(errno.EIO, "Input/output error")


def test_a_file_is_not_finished_before_every_image_has_a_row(tmp_path):
    with workspace(tmp_path / "a.h5") as space:
        put(space, 0, IDS[:6])
        with pytest.raises(CacheError, match="not every image has a row"):
            space.finish(None)
    assert not (tmp_path / "a.h5").exists()
    assert list(parts_folder(tmp_path / "a.h5").glob("part-*.h5"))


def test_a_file_in_a_wholly_other_order_is_brought_into_the_right_one(tmp_path):
    ids = make_ids(900)
    make_cache(tmp_path / "a.h5", ids=ids, spec=SPEC, labels=None, failed=(5, 800))
    before = FeatureCache.open(tmp_path / "a.h5")
    shuffled = [ids[i] for i in np.random.default_rng(0).permutation(len(ids))]
    kept = [id for id in shuffled if id not in before.failures]
    expected, reasons = before.matrix(kept), dict(before.failures)
    with workspace(tmp_path / "a.h5", ids=shuffled) as space:
        assert dict(space.known_failures()) == reasons
        space.finish(None)
    after = FeatureCache.open(tmp_path / "a.h5")
    assert after.rows.ids == shuffled
    assert after.failures == reasons
    np.testing.assert_array_equal(after.matrix(), expected)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_rows_of_parts_of_any_kind_come_together_in_order(part_of, random):
    ids = make_ids(len(part_of))
    with (
        tempfile.TemporaryDirectory() as folder,
        workspace(Path(folder, "a.h5"), ids=ids) as space,
    ):
        expected = {}
        for number in set(part_of):
            own = [id for id, part in zip(ids, part_of, strict=True) if part == number]
            if random.random() < 0.5:
                random.shuffle(own)
            (values,) = put(space, number, own, seed=number).values()
            expected |= dict(zip(own, values, strict=True))
        space.finish(None)
        finished = FeatureCache.open(Path(folder, "a.h5"))
        np.testing.assert_array_equal(finished.matrix(), np.stack([expected[id] for id in ids]))
        assert verify(finished.path) == []
