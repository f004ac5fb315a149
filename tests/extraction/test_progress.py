"""Where the time goes, and how many batches are as large as they may be."""

from __future__ import annotations

import threading

import pytest
from extraction_cases import forbidden, make_dataset, run
from image_files import encode, picture

from spptransfer.extraction.progress import Clock, Progress

ALIKE, OTHER = (48, 60), (48, 80)
# Two views of 48 x 60 pixels at scale 48 fit, three do not.
BUDGET = 2 * 48 * 60


def photos(*sizes):
    return {f"{i:03d}.png": encode(picture(*size, i)) for i, size in enumerate(sizes)}


def test_seconds_are_those_of_all_workers_divided_by_how_many_there_are():
    clock = Clock(readers=4, computers=2)
    clock.add({"read": 8.0, "compute": 3.0, "write": 0.5})
    assert clock.seconds() == {"read": 2.0, "compute": 1.5, "write": 0.5}


def test_workers_count_together():
    clock = Clock()

    def work():
        for _ in range(1000):
            clock.count(3, 1)
            clock.add({"read": 1.0})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (clock.batches, clock.full_batches) == (12_000, 4000)
    assert clock.seconds()["read"] == 4000


def test_a_share_is_at_most_all():
    clock = Clock()
    clock.add({"compute": 1e9})
    assert clock.share("compute") == 1.0
    assert clock.share("read") == 0.0


def test_the_bar_says_what_reading_and_computing_take(capsys):
    clock = Clock()
    clock.add({"read": 1e9})
    with Progress(10, clock, threading.Event(), shown=True, label="features") as progress:
        progress.note(4)
        progress.note(6)
    shown = capsys.readouterr().err
    assert "features: 100%" in shown
    assert "reading 100%, computing 0%" in shown


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_batches_are_counted_and_those_that_are_full(tmp_path, engine):
    """Five alike make two pairs and one that is left; the larger one is a full batch by itself."""
    dataset = make_dataset(tmp_path / "images", photos(*[ALIKE] * 5, (96, 240)))
    report = run(
        dataset, tmp_path / "a.h5", part_rows=6, batch_pixels=BUDGET, engine=engine, jobs=2
    )
    assert (report.batches, report.full_batches) == (4, 3)


def test_the_order_of_files_does_not_matter_within_a_part(tmp_path):
    mixed = photos(ALIKE, OTHER, ALIKE, OTHER, ALIKE, OTHER, ALIKE)
    sorted_ = photos(*[ALIKE] * 4, *[OTHER] * 3)
    found = []
    for name, files in (("mixed", mixed), ("sorted", sorted_)):
        dataset = make_dataset(tmp_path / name, files)
        path = tmp_path / f"{name}.h5"
        report = run(dataset, path, part_rows=7, batch_pixels=2 * 48 * 80)
        found.append((report.batches, report.full_batches))
    assert found == [(4, 3), (4, 3)]


def test_where_nothing_is_computed_there_are_no_batches(tmp_path):
    dataset = make_dataset(tmp_path / "images", photos(ALIKE))
    run(dataset, tmp_path / "a.h5")
    again = run(dataset, tmp_path / "a.h5", load_backbone=forbidden)
    assert (again.batches, again.full_batches) == (0, 0)
