"""`spptransfer audit`, as users call it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from small_grids import COLUMNS, ROWS, grid_values


@pytest.fixture
def extracted(cli, project):
    """A project with its cache, two files of one content in two classes among them."""
    same = project / "photos" / "dog" / "same.png"
    same.write_bytes((project / "photos" / "bee" / "002.png").read_bytes())
    assert cli("extract", "small.yaml", "--device", "cpu").status == 0
    return project


def test_audit_prints_the_first_of_each_list_and_writes_a_page_and_tables(cli, extracted):
    done = cli("audit", "small.yaml")
    assert done.status == 0
    for words in ("near-copies:", "labels:", "outliers,", "bee/002.png", "dog/same.png"):
        assert words in done.out
    folder = Path("audit-small")
    names = {"audit.html", "near_copies.csv", "labels.csv", "outliers.csv"}
    assert {path.name for path in folder.iterdir()} == names
    page = (folder / "audit.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') > 20
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert len(page) < 8e6


def test_images_that_are_gone_are_shown_by_their_names(cli, extracted):
    for path in (extracted / "photos" / "cat").iterdir():
        path.write_bytes(b"")
    assert cli("audit", "small.yaml", "--output", "checked").status == 0
    assert "cat/000.png" in Path("checked/outliers.csv").read_text()
    assert "cat/" in Path("checked/audit.html").read_text()


def test_json_names_the_files_and_counts_what_was_found(cli, extracted):
    done = cli("audit", "small.yaml", "--json", "--quiet")
    assert done.json["status"] == "ok"
    assert done.json["rows"] == {"ok": 19, "failed": 0, "reused": 19}
    assert Path(done.json["report"]).exists()
    found = done.json["audit"]
    assert found["near_copies"] >= 1
    assert all(Path(path).exists() for path in found["files"])


def test_an_image_without_features_makes_the_audit_incomplete(cli, project):
    (project / "photos" / "cat" / "broken.png").write_bytes(b"no image")
    cli("extract", "small.yaml", "--device", "cpu")
    done = cli("audit", "small.yaml")
    assert done.status == 1
    assert "failed: cat/broken.png" in done.out


def test_what_cannot_be_audited_is_one_line(cli, project):
    assert "make it with `spptransfer extract`" in cli("audit", "small.yaml").complaint
    assert (
        "a detector keeps no features"
        in cli("audit", "detect_demo", "--data-root", project).complaint
    )
    table = grid_values(Path("photos"), ROWS, COLUMNS)
    (project / "table.yaml").write_text(yaml.safe_dump(table))
    assert "'table' has a grid; give" in cli("audit", "table.yaml").complaint
    assert not list(project.glob("audit-*"))
