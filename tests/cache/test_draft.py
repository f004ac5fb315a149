from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_files import CHANNELS, make_ids, make_rows, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from spptransfer.cache import FeatureCache, files, positioned
from spptransfer.cache.draft import Draft
from spptransfer.cache.files import bytes_held
from spptransfer.cache.ids import encoded_width
from spptransfer.cache.outline import Labels, Outline
from spptransfer.cache.rows import Chunk
from spptransfer.cache.verify import verify
from spptransfer.cache.writing import write_cache
from spptransfer.errors import CacheError

SPEC = make_spec(scales=(48, 64), levels=(4, 3))
IDS = make_ids(30)
FAILED = (4, 11, 12, 29)
ROWS, FEATURES = make_rows(IDS, SPEC, failed=FAILED)
LABELS = Labels(("ant", "bee"), np.arange(30, dtype=np.int32) % 2)
COMPUTED_BY = ("torch 2", "openvino 3")


def outline(ids=IDS, spec=SPEC):
    return Outline(spec, CHANNELS, "made up", len(ids), encoded_width(ids))


def begin(path, **given):
    return contextlib.closing(Draft(path, outline(**given), path.with_name("finished.h5")))


def chunk(positions):
    features = {block: values[positions] for block, values in FEATURES.items()}
    return Chunk(ROWS.take(positions), features)


def put(draft, *positions):
    for some in positions:
        some = np.array(some, dtype=np.intp)
        draft.put(some, chunk(some))


def written_at_once(path):
    write_cache(
        path,
        spec=SPEC,
        channels=CHANNELS,
        dataset="made up",
        count=len(IDS),
        id_width=encoded_width(IDS),
        chunks=[Chunk(ROWS, FEATURES)],
        labels=LABELS,
        computed_by=COMPUTED_BY,
    )
    return path.read_bytes()


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 4), min_size=30, max_size=30), st.permutations(range(5)), st.booleans()
)
def test_rows_put_in_any_order_give_the_bytes_of_rows_written_at_once(part_of, order, again):
    with tempfile.TemporaryDirectory() as folder:
        expected = written_at_once(Path(folder, "at_once.h5"))
        path = Path(folder, "draft.h5")
        with begin(path) as draft:
            for part in order:
                put(draft, np.flatnonzero(np.array(part_of) == part))
            if again:
                put(draft, [3, 4, 5, 11], [29])
            draft.seal(LABELS, COMPUTED_BY)
        assert path.read_bytes() == expected
        assert verify(path) == []


def test_threads_fill_it_at_once(tmp_path):
    expected = written_at_once(tmp_path / "at_once.h5")
    with begin(tmp_path / "draft.h5") as draft:
        threads = [
            threading.Thread(target=put, args=(draft, *([i] for i in range(k, 30, 3))))
            for k in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        draft.seal(LABELS, COMPUTED_BY)
    assert (tmp_path / "draft.h5").read_bytes() == expected


def test_a_draft_that_is_opened_again_keeps_its_rows(tmp_path):
    expected = written_at_once(tmp_path / "at_once.h5")
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(10), range(20, 25))
    with begin(tmp_path / "draft.h5") as draft:
        # Reasons are not kept: whoever goes on puts failed rows again.
        put(draft, range(10, 20), range(25, 30), [4])
        draft.seal(LABELS, COMPUTED_BY)
    assert (tmp_path / "draft.h5").read_bytes() == expected


@pytest.mark.parametrize("torn", [0, 1, 700])
def test_a_seal_that_a_kill_or_a_power_cut_broke_off_is_made_again(tmp_path, torn):
    expected = written_at_once(tmp_path / "at_once.h5")
    path = tmp_path / "draft.h5"
    with begin(path) as draft:
        put(draft, range(30))
        draft.seal(LABELS, COMPUTED_BY)
    with open(path, "r+b") as file:
        file.write(bytes(torn))
    with begin(path) as draft:
        put(draft, FAILED)
        draft.seal(LABELS, COMPUTED_BY)
    assert path.read_bytes() == expected


def test_it_is_no_cache_before_it_is_sealed(tmp_path):
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(30))
        with pytest.raises(CacheError, match="no feature cache"):
            FeatureCache.open(tmp_path / "draft.h5")
        draft.seal(None, ())
    assert len(FeatureCache.open(tmp_path / "draft.h5")) == 26


def test_plain_h5py_reads_the_sealed_file(tmp_path):
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(15, 30), range(15))
        draft.seal(LABELS, COMPUTED_BY)
    with h5py.File(tmp_path / "draft.h5") as file:
        for block, values in FEATURES.items():
            np.testing.assert_array_equal(file[block.name][()], values)
        assert file["failures/row"][()].tolist() == list(FAILED)
        assert file["failures/error"][()].tolist() == [f"reason {i}".encode() for i in FAILED]
        assert file.attrs["computed_by"] == "openvino 3, torch 2"


def test_room_takes_nothing_on_the_disk(tmp_path):
    wide = make_spec(levels=(6,), scales=(64,))
    ids = make_ids(20_000)
    with begin(tmp_path / "draft.h5", ids=ids, spec=wide):
        size = (tmp_path / "draft.h5").stat().st_size
        assert size > 8_000_000
        assert bytes_held(tmp_path / "draft.h5") < 100_000


@pytest.mark.parametrize("positions", [[-1, 0], [29, 30]])
def test_rows_that_are_not_announced_are_refused(tmp_path, positions):
    with begin(tmp_path / "draft.h5") as draft, pytest.raises(ValueError, match="announced"):
        draft.put(np.array(positions), chunk(np.array([0, 1])))


def test_a_disk_that_is_too_small_is_named_with_the_file_and_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("usage", (), {"free": 9000}))
    with pytest.raises(CacheError, match=r"full while writing '.*finished.h5' \(.* kB are needed"):
        Draft(tmp_path / "draft.h5", outline(), tmp_path / "finished.h5")
    assert list(tmp_path.iterdir()) == []


def test_what_a_draft_holds_already_needs_no_further_space(tmp_path, monkeypatch):
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(30))
        os.sync()
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("usage", (), {"free": 9000}))
    with begin(tmp_path / "draft.h5") as draft:
        assert draft.outline.needed > 9000


def test_a_row_that_failed_again_has_its_latest_reason(tmp_path):
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(30))
        later = chunk(np.array([11]))
        later.rows.error[0] = "another reason"
        draft.put(np.array([11]), later)
        failures = draft.failures()
    assert failures.rows.tolist() == list(FAILED)
    assert list(failures.reasons) == ["reason 4", "another reason", "reason 12", "reason 29"]


def test_a_file_of_more_names_than_its_header_was_made_for_is_still_sealed(tmp_path):
    names = [f"torch {number}.13.0+cpu" for number in range(40)]
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(30))
        draft.seal(LABELS, names)
    assert FeatureCache.open(tmp_path / "draft.h5").computed_by == tuple(sorted(names))


# --- durable rows, and those who come too late --------------------------------------------------


def noted(draft):
    offset = draft.extents["rows/checksum"].offset
    raw = np.frombuffer(draft._file.read(30 * 16, offset), np.uint8).reshape(30, 16)
    return np.flatnonzero(raw.any(axis=1)).tolist()


class Disk:
    """Notes what a draft holds each time that it is forced to the disk, and fails if told to."""

    def __init__(self, draft, fails_at=()):
        self.draft, self.fails_at, self.seen = draft, fails_at, []

    def __call__(self, descriptor):
        self.seen.append(noted(self.draft))
        if len(self.seen) in self.fails_at:
            raise OSError(errno.EIO, "Input/output error")


def put_durably(draft, positions):
    positions = np.array(positions, np.intp)
    draft.put(positions, chunk(positions), durable=True)


def test_a_checksum_is_written_when_all_else_is_on_the_disk(tmp_path, monkeypatch):
    with begin(tmp_path / "draft.h5") as draft:
        disk = Disk(draft)
        monkeypatch.setattr(positioned, "_sync_data", disk)
        put_durably(draft, [2, 3])
        assert disk.seen == [[], [2, 3]]


def test_a_row_that_is_written_over_is_not_there_meanwhile(tmp_path, monkeypatch):
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(6))
        disk = Disk(draft)
        monkeypatch.setattr(positioned, "_sync_data", disk)
        put_durably(draft, [2, 9])
        assert disk.seen == [[0, 1, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5, 9]]


@pytest.mark.parametrize("call", [1, 2])
def test_rows_that_may_not_be_on_the_disk_are_not_there_and_no_more_are_put(
    tmp_path, monkeypatch, call
):
    with begin(tmp_path / "draft.h5") as draft:
        put_durably(draft, [0])
        monkeypatch.setattr(positioned, "_sync_data", Disk(draft, fails_at=[call]))
        with pytest.raises(CacheError, match=r"cannot write '.*finished.h5': Input/output error"):
            put_durably(draft, [1, 2])
        assert noted(draft) == [0]
        with pytest.raises(CacheError, match="an earlier write did not reach the disk"):
            put_durably(draft, [3])
        assert noted(draft) == [0]


def test_who_puts_after_the_end_writes_to_no_other_file(tmp_path):
    draft = Draft(tmp_path / "draft.h5", outline(), tmp_path / "finished.h5")
    draft.close()
    draft.close()
    with begin(tmp_path / "another.h5"):  # has the number of the descriptor by now
        before = (tmp_path / "another.h5").read_bytes()
        with pytest.raises(CacheError, match=r"finished.h5' is no longer being written"):
            put(draft, range(30))
        assert (tmp_path / "another.h5").read_bytes() == before


def test_closing_waits_for_those_who_put(tmp_path, monkeypatch):
    draft = Draft(tmp_path / "draft.h5", outline(), tmp_path / "finished.h5")
    inside, go_on = threading.Event(), threading.Event()

    def wait(descriptor):
        inside.set()
        assert go_on.wait(30)

    monkeypatch.setattr(positioned, "_sync_data", wait)
    putting = threading.Thread(target=put_durably, args=(draft, [4]))
    closing = threading.Thread(target=draft.close)
    putting.start()
    assert inside.wait(30)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    putting.join(30)
    closing.join(30)
    assert not closing.is_alive()
    with begin(tmp_path / "draft.h5") as again:
        assert noted(again) == [4]


@pytest.mark.parametrize("removed", [True, False])
def test_a_file_that_somebody_else_finished_or_removed_is_left_alone(tmp_path, removed):
    with begin(tmp_path / "draft.h5") as draft:
        put(draft, range(30))
        if removed:
            (tmp_path / "draft.h5").unlink()
        else:
            (tmp_path / "draft.h5").rename(tmp_path / "finished.h5")
        for late in (lambda: put(draft, [1]), lambda: draft.seal(None, ())):
            with pytest.raises(CacheError, match="finished or removed by somebody else"):
                late()


def test_a_draft_that_cannot_be_made_leaves_no_file_open(tmp_path, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "ftruncate", lambda *given: (_ for _ in ()).throw(OSError(27, "large")))
    with pytest.raises(CacheError, match="disk is full"):
        Draft(tmp_path / "draft.h5", outline(), tmp_path / "finished.h5")
    assert len(os.listdir("/proc/self/fd")) == before
