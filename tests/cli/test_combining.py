"""`spptransfer combine`, as users call it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def runs(finished, tmp_path, monkeypatch) -> list[Path]:
    """Two runs on the same splits, below the current folder."""
    monkeypatch.chdir(tmp_path)
    (one,) = (finished / "runs").iterdir()
    for name in ("one", "two"):
        shutil.copytree(one, tmp_path / "runs" / name)
    return [Path("runs/one"), Path("runs/two")]


def test_combine_prints_each_run_and_the_combination(cli, runs):
    done = cli("combine", *runs)
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["run", "overall", "accuracy"]
    assert [line.split()[0] for line in lines[1:4]] == ["runs/one", "runs/two", "combined"]
    assert len({line.split()[1] for line in lines[1:4]}) == 1
    assert Path(lines[-1].removeprefix("report: ")).exists()


@pytest.mark.parametrize("concat", [(), ("--concat",)])
def test_json_has_the_usual_keys_and_each_run(cli, runs, concat):
    done = cli("combine", *runs, *concat, "--json", "--quiet")
    assert done.status == 0
    assert done.json["headline"]["metric"] == "overall accuracy"
    assert [Path(each["run"]).name for each in done.json["combined"]] == ["one", "two"]
    assert done.json["model"] is None
    assert Path(done.json["report"]).exists()
    assert cli("report", done.json["run"]).status == 0


def test_what_cannot_be_combined_is_one_line(cli, runs):
    (runs[1] / "splits.json").write_text('{"splits": [{"train": ["a"], "test": ["b"]}]}')
    done = cli("combine", *runs)
    assert done.status == 2
    assert "'runs/one' and 'runs/two' have other splits" in done.complaint
    assert cli("combine", runs[0]).complaint.endswith("give at least two runs to combine")


def test_compare_prints_what_differs_and_json_has_every_difference(cli, runs, tmp_path):
    done = cli("compare", "one", *runs[1:])  # a name among the runs, and a folder
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["run", "overall", "accuracy", "difference", "p"]
    assert [line.split()[0] for line in lines[1:3]] == ["one", "two"]
    done = cli("compare", *runs, "--json", "--quiet", "--html", "compared.html")
    assert [each["name"] for each in done.json["runs"]] == ["one", "two"]
    assert done.json["runs"][1]["difference"]["mean"] == 0
    assert Path(done.json["report"]) == tmp_path / "compared.html"
    assert "two" in Path("compared.html").read_text()
    assert cli("compare", *runs, "--classes", "--format", "csv").out.startswith("class,one,two\n")
    assert "did you mean 'latex'" in cli("compare", *runs, "--format", "latx").complaint


def test_report_prints_or_writes_the_metrics_in_other_formats(cli, runs):
    done = cli("report", "one", "--format", "csv")
    assert done.out.splitlines()[0] == "metric,value"
    assert done.out.splitlines()[1].startswith("overall accuracy,")
    latest = cli("report", "runs", "--format", "csv")
    assert latest.out.startswith("metric,value")
    assert "the latest run" in latest.err
    assert cli("report", runs[0], "--format", "latex", "--output", "out/table.tex").status == 0
    assert Path("out/table.tex").read_text().startswith("\\begin{tabular}")
    assert "allowed: html, text" in cli("report", runs[0], "--format", "pdf").complaint
