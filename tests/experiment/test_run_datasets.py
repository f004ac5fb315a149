"""Runs on tables, and on files of awkward names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_projects import draw_folder, draw_image, experiment

from spptransfer.errors import DatasetError
from spptransfer.experiment import Experiment, extract_features, run
from spptransfer.models import TransferModel

COMMAND = "spptransfer run small.yaml"


def test_several_labels_per_image_from_a_table(tmp_path):
    for number in range(24):
        draw_image(tmp_path / "photos" / f"{number}.png", number % 4, number)
    labels = ["bee", "cat", "bee;cat", ""]
    rows = "".join(f"{n}.png,{labels[n % 4]},{'train' if n < 16 else 'test'}\n" for n in range(24))
    (tmp_path / "photos" / "labels.csv").write_text(f"path,labels,split\n{rows}")
    settings = {
        "dataset": {"name": "csv", "root": str(tmp_path / "photos" / "labels.csv")},
        "protocol": {"name": "csv", "test_fraction": None},
    }
    result = run(experiment(tmp_path, tmp_path, **settings), COMMAND).results
    assert result["dataset"]["multi_label"] is True
    assert [(s["train"], s["test"]) for s in result["splits"]] == [(16, 8)]
    assert set(result["metrics"]) == {
        "mean average precision (11-point)",
        "mean average precision (area)",
        "mean average precision (uninterpolated)",
    }
    assert set(result["metrics"]["mean average precision (area)"]["per_class"]) == {"bee", "cat"}
    assert result["headline"]["std"] is None


@pytest.fixture
def table(tmp_path) -> Path:
    """A table of all images of a folder."""
    root = draw_folder(tmp_path / "photos")
    rows = "".join(f"{p.relative_to(root)},{p.parent.name}\n" for p in sorted(root.rglob("*.png")))
    (root / "table.csv").write_text(f"path,label\n{rows}")
    return root / "table.csv"


def on_table(table: Path, work: Path) -> Experiment:
    return experiment(table, work, dataset={"name": "csv"}, protocol={"name": "csv"})


def test_a_missing_image_of_a_table_is_a_failed_row(table, tmp_path):
    (table.parent / "bee" / "000.png").unlink()
    rows = run(on_table(table, tmp_path), COMMAND).results["rows"]
    assert (rows["ok"], rows["failed"]) == (17, 1)
    assert rows["failures"] == [
        {"id": "bee/000.png", "error": "cannot read the image: No such file or directory"}
    ]


@pytest.mark.parametrize(
    "begin", [lambda each: run(each, COMMAND), lambda each: extract_features([each])]
)
def test_a_table_none_of_whose_images_is_there_costs_no_cache(table, tmp_path, begin):
    extracted = extract_features([on_table(table, tmp_path)])[0].path
    before = extracted.read_bytes()
    for path in table.parent.rglob("*.png"):
        path.unlink()
    for work in (tmp_path, tmp_path / "without cache"):
        with pytest.raises(DatasetError, match=r"none of its 18 images .*bee/000\.png"):
            begin(on_table(table, work))
    assert extracted.read_bytes() == before
    assert run(on_table(table, tmp_path), COMMAND, from_cache=True).results["rows"]["ok"] == 18


def test_awkward_file_names_go_all_the_way(tmp_path):
    root = draw_folder(tmp_path / "my photos", classes=("a b", "ç\n日本", "<b>&'\""))
    for folder in list(root.iterdir()):
        draw_image(folder / "name with\nnewline, comma; 'quote' {id}.png", 0, 7)
    result = run(experiment(root, tmp_path), COMMAND)
    assert result.results["rows"]["ok"] == 21
    assert "<b>&'" not in result.report.read_text().replace("&lt;b&gt;", "")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_file_names_that_are_no_utf8_go_all_the_way(tmp_path):
    root = draw_folder(tmp_path / "photos", classes=("bee", "d\udce9g"))
    draw_image(root / "bee" / "000.png", 0, 7)
    (root / "bee" / "000.png").rename(root / "bee" / "\udcff.png")
    (root / "bee" / "\udcfe.png").write_bytes(b"broken")
    result = run(experiment(root, tmp_path), COMMAND)
    assert result.results["rows"]["ok"] == 12
    assert [row["id"] for row in result.results["rows"]["failures"]] == ["bee/\udcfe.png"]
    assert result.results["dataset"]["classes"] == ["bee", "d\udce9g"]
    lists = {"protocol": {"split_file": str(result.folder / "splits.json")}}
    again = run(experiment(root, tmp_path, **lists), COMMAND, from_cache=True)
    assert again.results["headline"] == result.results["headline"]
    assert TransferModel.load(result.model).classes == ("bee", "d\udce9g")
