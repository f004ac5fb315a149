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
