"""Commands on a file with a grid: one table, one page, one line of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, real_data
from small_grids import COLUMNS, ROWS, grid_values

CELLS = [
    *("conv4, crop", "levels 3, 1, crop", "levels 3, 1, full 72"),
    *("fc6, crop", "fc6, full 72"),
]


@pytest.fixture
def table(project) -> Path:
    rows, columns = [ROWS[0], ROWS[1], ROWS[3]], [COLUMNS[0], COLUMNS[2]]
    given = grid_values(Path("photos"), rows, columns, protocol={"splits": 2})
    (project / "table.yaml").write_text(yaml.safe_dump(given))
    return project


def test_a_table_is_printed_with_the_papers_numbers_told_as_json_and_written_as_a_page(cli, table):
    done = cli("run", "table.yaml")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == (
        "table: 18 images of folder; a table of 3 rows and 2 columns, 5 of 5 cells can be computed"
    )
    assert lines[2].startswith(
        "one pass of spp-mini for conv4, spp, fc6 at center_crop 64, full 72"
    )
    assert sum("Stripes" in line for line in lines) == 2
    for words in ("crop", "full 72", "ZF-5", "88.54", "mean per-class accuracy", "report:"):
        assert words in done.out
    assert str(table) not in done.out

    line = cli("run", "table.yaml", "--json").json
    assert set(line) == {
        "status", "headline", "metrics", "rows", "run", "cache", "report", "model",
    }  # fmt: skip
    assert line["status"] == "ok"
    assert list(line["metrics"]) == CELLS
    assert all(0 <= value <= 1 for value in line["metrics"].values())
    assert line["rows"] == {"ok": 18, "failed": 0, "reused": 18}
    assert line["headline"] is line["cache"] is line["model"] is None
    results = json.loads(Path(line["run"], "results.json").read_text())
    assert {f"{c['row']}, {c['column']}": c["value"] for c in results["cells"]} == line["metrics"]
    assert Path(line["report"]).parent == Path(line["run"])

    page = Path(line["report"]).read_text()
    Path(line["report"]).unlink()
    assert cli("report", line["run"], "--json").json["report"] == line["report"]
    assert Path(line["report"]).read_text() == page
    assert cli("report", line["run"], "--output", "page.html").status == 0
    assert Path("page.html").read_text() == page


def test_extract_fills_all_caches_and_train_uses_them(cli, table):
    refused = cli("train", "table.yaml")
    assert refused.status == 2
    assert "make it with `spptransfer extract`" in refused.complaint
    done = cli("extract", "table.yaml", "--json")
    assert done.status == 0
    assert len(list(Path(done.json["cache"]).glob("*.h5"))) == 5
    assert done.err.count("18 images: 18 added") == 5
    for path in (table / "photos").rglob("*.png"):
        path.write_bytes(b"gone")
    trained = cli("train", "table.yaml", "--json")
    assert trained.status == 0
    assert list(trained.json["metrics"]) == CELLS


# --- as a user starts it ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_that_is_killed_again_and_again_ends_like_one_that_is_not(cli, table):
    options = ("run", "table.yaml", "--json", "--cache-dir")
    expected = cli(*options, "a", "--runs-dir", "x").json
    command = [sys.executable, "-m", "spptransfer", *options, "b", "--runs-dir", "y"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # While images are computed, and once a cell is trained.
    for begun in ("b/*.partial", "y/*/*/results.json"):
        running = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while running.poll() is None and not list(table.glob(begun)):
            time.sleep(0.005)
        running.kill()
        assert running.wait() == -signal.SIGKILL
    done = cli(*options, "b", "--runs-dir", "y")
    assert done.json["metrics"] == expected["metrics"]
    for cache in (table / "a").glob("*.h5"):
        assert (table / "b" / cache.name).read_bytes() == cache.read_bytes()
    left = {path.name for path in Path(done.json["run"]).iterdir() if path.is_dir()}
    assert len(left) == len(CELLS)


@pytest.mark.slow
def test_the_papers_caltech101_table_runs_on_weights_without_fully_connected_layers(
    cli, tmp_path, monkeypatch, caltech101_root
):
    """On a few categories; what the table then says about the paper is in the documentation."""
    monkeypatch.chdir(tmp_path)
    weights = real_data("weights/alexnet_trunk.pth")
    few = tmp_path / "few"
    for category in ("airplanes", "chair", "crab", "pizza"):
        (few / category).mkdir(parents=True)
        photos = sorted((caltech101_root / "101_ObjectCategories" / category).glob("*.jpg"))
        for photo in photos[:20]:
            (few / category / photo.name).symlink_to(photo)
    done = cli(
        "run", REPOSITORY / "pipelines/paper-caltech101.yaml", "--json",
        "--set", f"features.weights={weights}",
        "--set", f"dataset={{name: folder, root: {few}}}",
        "--set", "protocol={name: folder, train_per_class: 10, test_per_class: 10, folds: 0}",
    )  # fmt: skip
    assert done.status == 0
    assert len(done.json["metrics"]) == 8
    assert min(done.json["metrics"].values()) > 0.5
    assert "weights lack fc6: fc6, crop 224; fc6, full 224; fc6, warp 224" in done.err
