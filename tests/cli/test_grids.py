"""Commands on a file with a grid: one table, one page, one line of JSON."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, real_data
from small_projects import values

GRID = {
    "title": "Stripes in three ways",
    "rows": [
        {
            "label": "conv4",
            "set": {"features.layer": "conv4", "features.levels": []},
            "only": ["crop 64"],
        },
        {"label": "10 bins", "set": {"features.levels": [3, 1]}},
        {"label": "fc6", "set": {"features.layer": "fc6"}},
    ],
    "columns": [
        {
            "label": "crop 64",
            "set": {"features.view": "center_crop"},
            "paper": {"ZF-5 SPP": {"conv4": 81.03, "fc6": [88.54, 0.5]}},
        },
        {"label": "full 72", "set": {"features.scales": [72]}},
    ],
}
CELLS = ["conv4, crop 64", "10 bins, crop 64", "10 bins, full 72", "fc6, crop 64", "fc6, full 72"]


def write_grid(path: Path, root: Path, **changes) -> None:
    given = values(root, protocol={"splits": 2})
    given["features"].pop("levels")
    path.write_text(yaml.safe_dump({**given, "grid": {**GRID, **changes}}))


@pytest.fixture
def table(project) -> Path:
    write_grid(project / "table.yaml", Path("photos"))
    return project


def test_run_prints_the_table_with_the_papers_numbers(cli, table):
    done = cli("run", "table.yaml")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == (
        "table: 18 images of folder; a table of 3 rows and 2 columns, 5 of 5 cells can be computed"
    )
    assert lines[2].startswith(
        "one pass of spp-mini for conv4, spp, fc6 at center_crop 64, full 72"
    )
    assert sum("Stripes in three ways" in line for line in lines) == 2
    for words in ("crop 64", "ZF-5", "81.03", "88.54 ± 0.50", "mean per-class accuracy", "report:"):
        assert words in done.out
    assert str(table) not in done.out


def test_the_last_line_is_json_of_the_usual_shape(cli, table):
    line = cli("run", "table.yaml", "--json").json
    assert set(line) == {
        "status", "headline", "metrics", "rows", "run", "cache", "report", "model",
    }  # fmt: skip
    assert line["status"] == "ok"
    assert list(line["metrics"]) == CELLS
    assert all(0 <= value <= 1 for value in line["metrics"].values())
    assert line["rows"] == {"ok": 18, "failed": 0, "reused": 0}
    assert line["headline"] is line["cache"] is line["model"] is None
    results = json.loads(Path(line["run"], "results.json").read_text())
    assert {f"{c['row']}, {c['column']}": c["value"] for c in results["cells"]} == line["metrics"]
    assert Path(line["report"]).parent == Path(line["run"])
    again = cli("run", "table.yaml", "--json")
    assert again.json["rows"]["reused"] == 18
    assert again.json["metrics"] == line["metrics"]


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


def test_report_writes_the_page_of_a_table_anew(cli, table):
    line = cli("run", "table.yaml", "--json").json
    page = Path(line["report"]).read_text()
    Path(line["report"]).unlink()
    assert cli("report", line["run"], "--json").json["report"] == line["report"]
    assert Path(line["report"]).read_text() == page
    assert cli("report", line["run"], "--output", "page.html").status == 0
    assert Path("page.html").read_text() == page


# --- as a user starts it ----------------------------------------------------------------------


def start(arguments, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "spptransfer", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.slow
def test_a_table_that_is_killed_again_and_again_ends_like_one_that_is_not(table):
    whole = start(["run", "table.yaml", "--json", "--cache-dir", "a", "--runs-dir", "x"], table)
    begin = time.monotonic()
    expected = json.loads(whole.communicate(timeout=600)[0].splitlines()[-1])
    duration = time.monotonic() - begin
    chance = random.Random(4)
    command = ["run", "table.yaml", "--json", "--cache-dir", "b", "--runs-dir", "y"]
    for _ in range(3):
        running = start(command, table)
        time.sleep(chance.uniform(0.3, 1.0) * duration)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    done = start(command, table)
    out, err = done.communicate(timeout=600)
    assert done.returncode == 0, err
    line = json.loads(out.splitlines()[-1])
    assert line["metrics"] == expected["metrics"]
    for cache in (table / "a").glob("*.h5"):
        assert (table / "b" / cache.name).read_bytes() == cache.read_bytes()
    left = {path.name for path in Path(line["run"]).iterdir() if path.is_dir()}
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
