"""Processes read what threads read; one that dies costs the parts in work, and is told."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from extraction_cases import (
    StopAfter,
    awkward_images,
    broken_images,
    make_dataset,
    many_images,
    run,
)
from joblib.externals.loky.process_executor import TerminatedWorkerError

from spptransfer.cache import FeatureCache
from spptransfer.errors import CacheError
from spptransfer.extraction import Interrupted, runners
from spptransfer.extraction import readers as readers_module
from spptransfer.extraction.batches import Rendering, measure
from spptransfer.extraction.readers import ProcessReaders, ThreadReaders, Wanted

RENDERINGS = [Rendering(48, "full"), Rendering(30, "center_crop")]


@pytest.fixture(scope="module")
def readers():
    with ProcessReaders(2) as readers:
        yield readers


@pytest.fixture
def files(tmp_path):
    dataset = make_dataset(tmp_path / "images", awkward_images() | broken_images(), ("gone.png",))
    return [dataset.path(id) for id in dataset.ids]


@pytest.fixture
def read_apart(monkeypatch):
    """On a machine without a GPU too, processes read and threads compute."""
    monkeypatch.setattr(runners, "run_processes", runners.run_readers)


def wanted_of(sources, seen):
    for source, probe in zip(sources, seen, strict=True):
        if measure(probe, [48, 30], "full").view_sizes:
            yield Wanted(source, probe.digest, RENDERINGS)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.digest, one.error) == (other.digest, other.error)
        assert len(one.views) == len(other.views)
        for view, same in zip(one.views, other.views, strict=True):
            np.testing.assert_array_equal(view, same)


def test_processes_see_what_threads_see_but_send_no_contents(files, readers):
    found, expected = readers.look(files), ThreadReaders().look(files)
    assert any(probe.data for probe in expected)
    assert not any(probe.data for probe in found)
    assert found == [dataclasses.replace(probe, data=b"") for probe in expected]


def test_processes_decode_what_threads_decode(files, readers):
    wanted = list(wanted_of(files, readers.look(files)))
    assert len(wanted) > 10
    expected = ThreadReaders().load(wanted)
    assert any(loaded.error for loaded in expected)
    assert_same(readers.load(wanted), expected)


def test_arrays_are_read_too(readers):
    arrays = [np.full((40, 60, 3), 7, np.uint8), np.zeros((1, 9), np.uint8)]
    seen = readers.look(arrays)
    assert [(probe.height, probe.width) for probe in seen] == [(40, 60), (1, 9)]
    wanted = [Wanted(array, "", RENDERINGS) for array in arrays]
    assert_same(readers.load(wanted), ThreadReaders().load(wanted))


def test_many_threads_ask_at_once_and_each_gets_its_own(files, readers):
    wanted = list(wanted_of(files, readers.look(files)))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(readers.load, [[one] for one in wanted * 4]))
    expected = [ThreadReaders().load([one]) for one in wanted]
    for number, loaded in enumerate(found):
        assert_same(loaded, expected[number % len(wanted)])


def sent_of(readers, wanted):
    """What comes back for images, and how their views came."""
    seen = []
    submit = readers._pool.submit

    class Watched:
        def __init__(self, *given):
            self._future = submit(*given)

        def result(self):
            seen.append(self._future.result())
            return seen[-1]

    readers._pool.submit = Watched
    try:
        return readers.load(wanted), seen[-1]
    finally:
        readers._pool.submit = submit


def test_views_come_through_shared_memory_where_there_is_some(files, readers):
    wanted = list(wanted_of(files, readers.look(files)))
    found, sent = sent_of(readers, wanted)
    assert_same(found, ThreadReaders().load(wanted))
    if hasattr(os, "memfd_create"):
        assert len(sent.shapes) == sum(len(image.views) for image in found)
        assert not any(view.size for image in sent.images for view in image.views)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no such memory")
def test_views_that_do_not_fit_come_through_the_pipe_and_the_next_ones_fit(files, monkeypatch):
    monkeypatch.setattr(readers_module, "SLOT_BYTES", 1000)
    with ProcessReaders(1) as readers:
        wanted = list(wanted_of(files, readers.look(files)))
        expected = ThreadReaders().load(wanted)
        for first in (True, False):
            found, sent = sent_of(readers, wanted)
            assert_same(found, expected)
            assert (sent.shapes == ()) == first


def test_there_is_a_bound_to_what_is_shared(files, monkeypatch):
    monkeypatch.setattr(readers_module, "SLOT_BYTES", 1000)
    monkeypatch.setattr(readers_module, "MOST_SLOT_BYTES", 2000)
    with ProcessReaders(1) as readers:
        wanted = list(wanted_of(files, readers.look(files)))
        for _ in range(2):
            found, sent = sent_of(readers, wanted)
            assert_same(found, ThreadReaders().load(wanted))
            assert sent.shapes == ()


def test_a_system_without_shared_memory_sends_views_through_pipes(files, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with ProcessReaders(1) as readers:
        wanted = list(wanted_of(files, readers.look(files)))
        found, sent = sent_of(readers, wanted)
        assert_same(found, ThreadReaders().load(wanted))
        assert sent.shapes == ()


def test_no_shared_memory_is_left_open(files):
    def open_files():
        count = 0
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # that of the listing itself
                count += "memfd:views" in os.readlink(f"/proc/self/fd/{name}")
        return count

    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no such memory")
    before = open_files()
    with ProcessReaders(1) as readers, ThreadPoolExecutor(3) as pool:
        wanted = list(wanted_of(files, readers.look(files)))
        list(pool.map(readers.load, [wanted] * 6))
        assert open_files() > before
    assert open_files() == before


def test_who_asks_after_a_process_died_is_told(files):
    with ProcessReaders(1) as readers:
        readers.look(files[:1])
        readers._pool.submit(os._exit, 1)

        def ask():
            for _ in range(100):
                readers.look(files[:1])

        with pytest.raises(TerminatedWorkerError):
            ask()


# --- in an extraction -------------------------------------------------------------------------


@pytest.mark.usefixtures("read_apart")
def test_a_cache_is_the_same_whoever_reads(tmp_path):
    files = awkward_images() | broken_images() | many_images(30)
    dataset = make_dataset(tmp_path / "images", files)
    apart = run(dataset, tmp_path / "apart.h5", engine="processes", jobs=2)
    here = run(dataset, tmp_path / "here.h5", engine="threads", jobs=2)
    assert apart.failures == here.failures
    assert set(apart.failures) == set(broken_images())
    assert (tmp_path / "apart.h5").read_bytes() == (tmp_path / "here.h5").read_bytes()


def test_a_reader_that_dies_ends_the_command_and_the_next_one_goes_on(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "images", many_images(40))

    class Dying(ProcessReaders):
        calls = 0

        def load(self, wanted):
            Dying.calls += 1
            if Dying.calls == 6:
                self._pool.submit(os._exit, 1)
            return super().load(wanted)

    with monkeypatch.context() as patch:
        patch.setattr(runners, "run_processes", runners.run_readers)
        patch.setattr(runners, "ProcessReaders", Dying)
        with pytest.raises(CacheError, match=r"^a worker process died .* run the same command"):
            run(dataset, tmp_path / "a.h5", engine="processes", jobs=2, part_rows=4)
    assert not (tmp_path / "a.h5").exists()
    report = run(dataset, tmp_path / "a.h5")
    assert report.added + report.unchanged == 40
    run(dataset, tmp_path / "b.h5")
    a, b = (FeatureCache.open(tmp_path / name).matrix() for name in ("a.h5", "b.h5"))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("read_apart")
def test_an_extraction_that_is_stopped_keeps_what_is_finished(tmp_path):
    dataset = make_dataset(tmp_path / "images", many_images(40))
    with pytest.raises(Interrupted):
        run(dataset, tmp_path / "a.h5", engine="processes", jobs=2, part_rows=4, stop=StopAfter(2))
    report = run(dataset, tmp_path / "a.h5", engine="processes", jobs=2)
    assert 0 < report.unchanged < 40
    assert report.added + report.unchanged == 40
