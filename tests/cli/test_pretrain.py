"""The command `pretrain`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from pretraining_cases import values


@pytest.fixture
def small(project) -> Path:
    """A pre-training pipeline for the images of the current folder."""
    path = project / "net.yaml"
    path.write_text(yaml.safe_dump(values(Path("photos"), training={"epochs": 1})))
    return path


def test_pretrain_ends_with_weights_metrics_and_one_line_of_json(cli, small, project):
    outcome = cli("pretrain", small, "--device", "cpu", "--threads", 1, "--json")
    assert outcome.status == 0
    told = outcome.json
    assert told["status"] == "ok"
    assert told["headline"]["metric"] == "val_top1"
    assert told["run"] == str(project / "runs" / "net")
    assert Path(told["model"]).exists()
    (line,) = (project / "runs" / "net" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["val_top1"] == told["headline"]["value"]


def test_a_finished_training_that_is_called_again_says_that_it_is_finished(cli, small):
    given = ("pretrain", small, "--set", "training.epochs=2", "--out", "here", "--threads", 1)
    first = cli(*given).out
    assert "finished before" not in first
    again = cli(*given)
    assert again.status == 0
    assert re.search(r"^finished before: 2 epochs of \d+ steps?; run: here$", again.out, re.M)
    assert "going on" not in again.out
    assert "epoch " not in again.out
    assert again.out.splitlines()[-1] == first.splitlines()[-1]


@pytest.mark.parametrize("device", ["cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_one_line(cli, small, device):
    outcome = cli("pretrain", small, "--device", device)
    assert outcome.status == 2
    assert "allowed: auto, cpu" in outcome.complaint


def test_of_several_processes_only_the_first_speaks(cli, small, monkeypatch):
    for key, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    outcome = cli("pretrain", small, "--device", "cuda:0", "--json")
    assert outcome.status == 2
    assert "2 processes need a GPU each; allowed: auto, cpu, cuda" in outcome.complaint


def test_the_help_replaces_a_key_that_pretraining_has(cli):
    told = " ".join(cli("pretrain", "--help").out.split())
    assert "training.epochs=90" in told
    assert "features." not in told
